"""Calls that repeat, on a GPU: the same cells as from calls that go the long way, whatever changes between two of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from capgate import compat, kernels
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


CALLS = pytest.mark.parametrize(
    ("function", "make", "operation"),
    [
        pytest.param(kernels.fp8_mqa_logits, dense, dense_operation, id="dense"),
        pytest.param(kernels.fp8_paged_mqa_logits, paged, paged_operation, id="paged"),
    ],
)
Function = Callable[..., torch.Tensor]
Make = Callable[[torch.device], dict[str, Any]]


def long_way(function: Function, operands: dict[str, Any], **options: Any) -> torch.Tensor:
    """The logits of a call that is new to everybody: under switches of its own nothing is remembered."""
    with compat.override():
        return function(**operands, clean_logits=True, **options).clone()


def variants(operation: compat.Operation[Any], device: torch.device) -> list[str]:
    caps = compat.capabilities(device)
    return [name for name, variant in operation.variants.items() if all(caps[needed] for needed in variant.requires)]


@CALLS
def test_other_operands_in_the_same_shapes(gpu: torch.device, function: Function, make: Make, operation: Any) -> None:
    for variant in variants(operation, gpu):
        for _ in range(6):
            operands = make(gpu)
            out = function(**operands, clean_logits=True, variant=variant)
            assert torch.equal(out, long_way(function, operands, variant=variant)), variant


@CALLS
def test_other_shapes_in_turn(gpu: torch.device, function: Function, make: Make, operation: Any) -> None:
    size = "rows" if make is dense else "requests"
    for _ in range(4):
        for count in (3, 8, 16):
            operands = make(gpu, **{size: count})  # type: ignore[call-arg]
            assert torch.equal(function(**operands, clean_logits=True), long_way(function, operands))


@CALLS
def test_operands_that_are_not_aligned(gpu: torch.device, function: Function, make: Make, operation: Any) -> None:
    operands = make(gpu)
    for turn in range(8):
        shifted = dict(operands)
        memory = torch.empty(operands["q"].numel() + 16, dtype=torch.uint8, device=gpu)
        offset = 1 if turn % 2 else 16
        shifted["q"] = memory[offset : offset + operands["q"].numel()].view(FN).view(operands["q"].shape)
        shifted["q"].view(torch.uint8).copy_(operands["q"].view(torch.uint8))
        assert torch.equal(function(**shifted, clean_logits=True), long_way(function, shifted))


@CALLS
def test_memory_that_is_read_is_never_written(gpu: torch.device, function: Function, make: Make, operation: Any) -> None:
    operands = make(gpu)
    shape = function(**operands, clean_logits=True).shape
    for _ in range(4):
        function(**operands, clean_logits=True, out=torch.empty(shape, device=gpu))
    rows, heads = operands["weights"].shape
    memory = torch.zeros(max(shape[0] * shape[1], rows * heads), device=gpu)
    weights = memory[: rows * heads].view(rows, heads)
    with pytest.raises(ValueError, match="out: shares memory with weights"):
        function(**(operands | {"weights": weights}), clean_logits=True, out=memory[: shape.numel()].view(shape))


@CALLS
def test_streams_graphs_and_hooks(gpu: torch.device, function: Function, make: Make, operation: Any) -> None:
    import triton

    operands = make(gpu)
    expected = long_way(function, operands)
    out = torch.empty_like(expected)
    call = lambda: function(**operands, clean_logits=True, out=out)  # noqa: E731 - the same call in many ways
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
    operands["weights"].neg_()
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
        named = function(**operands, clean_logits=True)
    with compat.override():
        assert torch.equal(named, function(**operands, clean_logits=True, variant="reference"))


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
                out = function(**several[number], clean_logits=True)
            torch.cuda.current_stream().synchronize()
            return torch.equal(out, expected[number])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
