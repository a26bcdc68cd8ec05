"""Calls that repeat, on a GPU: the same cells as from calls that go the long way, whatever changes between two of them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from capgate import compat, kernels
from capgate.kernels.key_selection.operation import operation as selection_operation
from capgate.kernels.mqa_logits.operation import operation as dense_operation
from capgate.kernels.paged_mqa_logits.operation import operation as paged_operation

FN = torch.float8_e4m3fn


def dense(device: torch.device, rows: int = 65, keys: int = 700, heads: int = 64) -> dict[str, Any]:
    return {
        "q": torch.randn(rows, heads, 128, device=device).to(FN),
        "k": torch.randn(keys, 128, device=device).to(FN),
        "k_scale": torch.rand(keys, device=device) + 0.5,
        "weights": torch.randn(rows, heads, device=device),
        "starts": torch.zeros(rows, dtype=torch.int32, device=device),
        "ends": torch.randint(0, keys + 1, (rows,), dtype=torch.int32, device=device),
    }


def paged(device: torch.device, requests: int = 5, next_n: int = 2, most: int = 1024) -> dict[str, Any]:
    blocks = requests * most // 64
    cache = torch.randint(0, 0x70, (blocks, 64, 1, 132), dtype=torch.uint8, device=device)
    cache.view(blocks, -1)[:, 64 * 128 :].view(torch.float32).fill_(0.5)
    return {
        "q": torch.randn(requests, next_n, 64, 128, device=device).to(FN),
        "kv_cache": cache,
        "weights": torch.randn(requests * next_n, 64, device=device),
        "context_lens": torch.randint(1, most, (requests,), dtype=torch.int32, device=device),
        "block_table": torch.randperm(blocks, device=device).to(torch.int32).view(requests, -1),
        "max_context_len": most,
    }


def scored(device: torch.device, rows: int = 65) -> dict[str, Any]:
    return {
        "logits": torch.randn(rows, 20000, device=device),
        "starts": torch.zeros(rows, dtype=torch.int32, device=device),
        "ends": torch.randint(0, 20001, (rows,), dtype=torch.int32, device=device),
    }


CALLS = pytest.mark.parametrize(
    ("function", "make", "operation"),
    [
        pytest.param(partial(kernels.fp8_mqa_logits, clean_logits=True), dense, dense_operation, id="dense"),
        pytest.param(partial(kernels.fp8_paged_mqa_logits, clean_logits=True), paged, paged_operation, id="paged"),
        pytest.param(partial(kernels.select_keys, top_k=100), dense, selection_operation, id="select_keys"),
        pytest.param(partial(kernels.select_paged_keys, top_k=100), paged, selection_operation, id="select_paged_keys"),
        pytest.param(partial(kernels.select_from_logits, top_k=100), scored, selection_operation, id="select_from_logits"),
    ],
)
Function = Callable[..., torch.Tensor]
Make = Callable[..., dict[str, Any]]


def long_way(function: Function, operands: dict[str, Any], **options: Any) -> torch.Tensor:
    """The result of a call that is new to everybody: under switches of its own nothing is remembered."""
    with compat.override():
        return function(**operands, **options).clone()


def floats(operands: dict[str, Any]) -> str:
    """The name of an operand of float32 that every result follows."""
    return "weights" if "weights" in operands else "logits"


def variants(operation: compat.Operation[Any], device: torch.device) -> list[str]:
    caps = compat.capabilities(device)
    return [name for name, variant in operation.variants.items() if all(caps[needed] for needed in variant.requires)]


@CALLS
def test_other_operands_in_the_same_shapes(gpu: torch.device, function: Function, make: Make, operation: Any) -> None:
    for variant in variants(operation, gpu):
        for _ in range(6):
            operands = make(gpu)
            out = function(**operands, variant=variant)
            assert torch.equal(out, long_way(function, operands, variant=variant)), variant


@CALLS
def test_other_shapes_in_turn(gpu: torch.device, function: Function, make: Make, operation: Any) -> None:
    size = "requests" if make is paged else "rows"
    for _ in range(4):
        for count in (3, 8, 16):
            operands = make(gpu, **{size: count})
            assert torch.equal(function(**operands), long_way(function, operands))


@CALLS
def test_operands_that_are_not_aligned(gpu: torch.device, function: Function, make: Make, operation: Any) -> None:
    operands = make(gpu)
    name, operand = next(iter(operands.items()))
    for turn in range(8):
        memory = torch.empty(operand.nbytes + 16, dtype=torch.uint8, device=gpu)
        offset = operand.itemsize if turn % 2 else 16
        shifted = operands | {name: memory[offset : offset + operand.nbytes].view(operand.dtype).view(operand.shape)}
        shifted[name].copy_(operand)
        assert torch.equal(function(**shifted), long_way(function, shifted))


@CALLS
def test_memory_that_is_read_is_never_written(gpu: torch.device, function: Function, make: Make, operation: Any) -> None:
    operands = make(gpu)
    out = function(**operands)
    for _ in range(4):
        function(**operands, out=torch.empty_like(out))
    name = floats(operands)
    operand = operands[name]
    memory = torch.zeros(max(out.nbytes, operand.nbytes), dtype=torch.uint8, device=gpu)
    read = memory[: operand.nbytes].view(operand.dtype).view(operand.shape)
    written = memory[: out.nbytes].view(out.dtype).view(out.shape)
    with pytest.raises(ValueError, match=f"out: shares memory with {name}"):
        function(**(operands | {name: read}), out=written)


@CALLS
def test_streams_graphs_and_hooks(gpu: torch.device, function: Function, make: Make, operation: Any) -> None:
    import triton

    operands = make(gpu)
    expected = long_way(function, operands)
    out = torch.empty_like(expected)
    call = lambda: function(**operands, out=out)  # noqa: E731 - the same call in many ways
    for _ in range(4):
        call()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        out.zero_()
        call()
    side.synchronize()
    assert torch.equal(out, expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    operands[floats(operands)].neg_()
    graph.replay()
    assert torch.equal(out, long_way(function, operands))
    seen: list[Any] = []
    triton.knobs.runtime.launch_enter_hook.add(seen.append)
    try:
        call()
    finally:
        triton.knobs.runtime.launch_enter_hook.remove(seen.append)
    assert seen


@CALLS
def test_a_variant_that_is_named_later(
    gpu: torch.device, function: Function, make: Make, operation: compat.Operation[Any]
) -> None:
    operands = make(gpu)
    for _ in range(4):
        function(**operands)
    with compat.override(variant={operation.name: "reference"}):
        named = function(**operands)
    with compat.override():
        assert torch.equal(named, function(**operands, variant="reference"))


@CALLS
def test_nothing_grows_and_no_cycle_is_left(gpu: torch.device, function: Function, make: Make, operation: Any) -> None:
    import gc

    several = [make(gpu) for _ in range(3)]
    out = torch.empty_like(function(**several[0]))
    for operands in several * 4:
        function(**operands, out=out)
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for turn in range(2000):
            function(**several[turn % 3], out=out)
        torch.cuda.synchronize()
        grown = len(gc.get_objects()) - before
        assert grown < 100
        assert gc.collect() < 100
    finally:
        gc.enable()


@CALLS
def test_threads(gpu: torch.device, function: Function, make: Make, operation: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    several = [make(gpu) for _ in range(4)]
    expected = [long_way(function, operands) for operands in several]

    def work(number: int) -> bool:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(50):
                out = function(**several[number])
            torch.cuda.current_stream().synchronize()
            return torch.equal(out, expected[number])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
