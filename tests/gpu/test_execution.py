"""How calls run on a GPU: graphs, torch.compile, streams, forked children, discovery, and the memory checker."""

import subprocess
import sys
from typing import Any

import pytest
import torch

from capgate.compat import targets
from capgate.kernels import fp8_mqa_logits
from support import judge

pytestmark = pytest.mark.gpu

MODES = {"clean": (True, None), "unclean": (False, None), "compressed": (False, 100)}


def bits(logits: torch.Tensor) -> torch.Tensor:
    return logits.view(torch.int32)


@pytest.mark.parametrize(("clean_logits", "max_window"), MODES.values(), ids=MODES)
@pytest.mark.parametrize("given", [True, False], ids=["given-out", "new-tensor"])
def test_a_captured_graph_replays_with_operands_changed_in_place(
    variant: str, fp8: torch.dtype, given: bool, clean_logits: bool, max_window: int | None
) -> None:
    def operands(windows: str, seed: int) -> Any:
        return judge.make_call(61, 500, 64, 128, windows, dtype=fp8, device="cuda", seed=seed)

    call, columns = operands("causal", 0), max_window or 500
    keywords = {"clean_logits": clean_logits, "max_window": max_window, "variant": variant}
    if given:
        keywords["out"] = torch.zeros(61, columns, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        fp8_mqa_logits(*call, **keywords)  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = fp8_mqa_logits(*call, **keywords)
    for windows, seed in (("ragged", 1), ("packed", 2)):
        for tensor, changed in zip(call, operands(windows, seed), strict=True):
            tensor.view(torch.uint8).copy_(changed.view(torch.uint8))
        logits.fill_(7.0)
        graph.replay()
        expected = torch.full((61, columns), 7.0, device="cuda")
        fp8_mqa_logits(*call, **(keywords | {"out": expected}))
        assert torch.equal(bits(logits), bits(expected))
        assert (expected != 7.0).any()


@pytest.mark.filterwarnings("default")  # Inductor warns of its own affairs, differently in every release
def test_compiled_with_inductor_agrees_bitwise(fp8: torch.dtype) -> None:
    def score(call: Any, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fp8_mqa_logits(*call, out=out)
        return fp8_mqa_logits(*call) * 2, out + 1

    torch._dynamo.reset()
    compiled = torch.compile(score, fullgraph=True)
    for rows, keys in ((61, 500), (61, 500), (128, 1024), (17, 76)):
        call = judge.make_call(rows, keys, 64, 128, "ragged", dtype=fp8, device="cuda")
        given = torch.zeros(rows, keys, device="cuda"), torch.zeros(rows, keys, device="cuda")
        for one, other in zip(compiled(call, given[0]), score(call, given[1]), strict=True):
            assert torch.equal(bits(one), bits(other))
        assert torch.equal(bits(given[0]), bits(given[1]))


def test_a_call_runs_in_the_current_stream(variant: str, fp8: torch.dtype) -> None:
    """The operands arrive late in a stream of their own: a launch in any other one would read zeros."""
    call = judge.make_call(61, 500, 64, 128, dtype=fp8, device="cuda")
    expected = fp8_mqa_logits(*call, variant=variant)
    late = type(call)(*(torch.zeros_like(tensor) for tensor in call))
    busy = torch.rand(8192, 8192, device="cuda")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(10):
            busy = busy @ busy
            busy = busy / busy.amax()
        for tensor, value in zip(late, call, strict=True):
            tensor.view(torch.uint8).copy_(value.view(torch.uint8))
        logits = fp8_mqa_logits(*late, variant=variant)
    stream.synchronize()
    assert torch.equal(bits(logits), bits(expected))


FORK = """
import os, sys
if sys.argv[1] == "torch first":
    import torch
from capgate import compat
caps = compat.capabilities()
assert caps.gpu, caps.why("gpu")
assert any([caps[name] for name in caps])
child = os.fork()
if child == 0:
    import torch
    fine = float(torch.ones(3, device="cuda").sum()) == 3.0
    os._exit(0 if fine else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("order", ["capgate first", "torch first"])
def test_a_child_forked_after_every_capability_was_read_can_use_the_gpu(order: str) -> None:
    run = subprocess.run([sys.executable, "-c", FORK, order], capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, run.stderr


def test_a_devices_own_target_is_what_discovery_finds_without_a_driver(gpu: torch.device) -> None:
    assert torch.cuda.is_initialized()  # so that the driver answers for a device
    found = targets.discover()
    own = tuple(targets.of_device(torch.device("cuda", index)) for index in range(torch.cuda.device_count()))
    assert own == found.targets, found.notes
    assert targets.default() == own[0]
    assert targets.of_device(gpu) in own


SMALL_GRID = """
import sys

import torch
from support import judge
from capgate.kernels.mqa_logits.api import describe
from capgate.kernels.mqa_logits.operands import Inputs
from capgate.kernels.mqa_logits.operation import operation

example = operation.example(torch.device("cuda", 0))
grids = {
    "memcheck": [(1, 1), (1, 16), (1, 113), (17, 76), (61, 113)],
    "racecheck": [(17, 76), (1600, 1600)],  # as many tiles and rows for each program as reuse its shared memory
}
calls = 0
for rows, keys in grids[sys.argv[1]]:
    for heads, dim, windows in [(64, 128, "full"), (64, 128, "extreme" if rows < 100 else "causal"), (3, 32, "full")]:
        call = judge.make_call(rows, keys, heads, dim, windows, dtype=getattr(torch, example.dtype), device="cuda")
        for clean_logits, max_window in [(True, None), (False, None), (False, 50)]:
            columns = max_window or keys
            for variant in operation.variants:
                if sys.argv[1] == "racecheck" and variant == "gluon_hopper":
                    continue
                out = torch.zeros(rows, -(-columns // 4) * 4, device="cuda")[:, :columns]
                problem = describe(Inputs(*call), out, clean_logits, max_window is not None)
                if operation.explain(problem, variant=variant).variant:
                    judge.check(call, variant, clean_logits=clean_logits, max_window=max_window, out=out)
                    calls += 1
print(calls, "calls")
"""


def test_the_sanitizer_finds_nothing_on_the_small_grid(sanitizer: Any) -> None:
    """memcheck sees what lies outside of a tensor; racecheck what two warps of a program do to one word of shared memory."""
    sanitizer.passes(SMALL_GRID, calls={"memcheck": 45, "racecheck": 18}[sanitizer.tool])  # those of one variant
