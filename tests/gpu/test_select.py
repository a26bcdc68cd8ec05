"""The selection on a GPU: agreement, 64-bit offsets, graphs, repeats, the memory that it takes, the memory checker."""

import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch

from capgate.kernels import fp8_mqa_logits, fp8_paged_mqa_logits, select_from_logits, select_keys, select_paged_keys
from capgate.kernels.key_selection.operation import operation
from support import judge, paged, selection, taking
from support.processes import environment

pytestmark = pytest.mark.gpu

KINDS = ["normal", "skewed", "equal", "few-values", "zeros", "nans", "all-nan", "infinities", "wide", "tiny", "outlier"]
WINDOWS = ["full", "causal", "suffix", "packed", "ragged", "extreme", "empty"]


@pytest.fixture(params=list(operation.variants))
def variant(request: pytest.FixtureRequest, gpu: torch.device) -> str:
    """Every variant of the selection that this GPU can run."""
    return taking.taken(operation, operation.example(gpu), request.param)


def needs(gigabytes: float) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < gigabytes * 1e9:
        pytest.skip(f"needs {gigabytes} GB of GPU memory, {free / 1e9:.1f} GB are free")


def test_the_triton_variant_is_taken(gpu: torch.device) -> None:
    """Known bug 13: Without it every test below could pass on the reference alone."""
    assert operation.select(operation.example(gpu)).name == "classic", operation.explain(operation.example(gpu))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_k", [1, 512, 2048])
@pytest.mark.parametrize("columns", [1500, 8192, 40_000])
def test_equal_unordered_and_distant_logits(variant: str, kind: str, top_k: int, columns: int) -> None:
    logits = selection.make_logits(kind, 67, columns, device="cuda")
    starts, ends = selection.judge.make_windows("ragged", 67, columns, device="cuda")
    for first, last in ((starts, ends), (None, torch.full_like(ends, columns))):
        selection.check(logits, first, last, top_k, variant)


@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize(("rows", "columns", "top_k"), [(515, 4099, 300), (300, 8192, 2048), (40, 70_001, 1024)], ids=str)
def test_windows(variant: str, windows: str, rows: int, columns: int, top_k: int) -> None:
    logits = selection.make_logits("normal", rows, columns, device="cuda")
    starts, ends = selection.judge.make_windows(windows, rows, columns, device="cuda")
    for layout in ({"gap": -columns % 64}, {"gap": 7, "offset": 3}, {"order": (1, 0), "gap": 1}, {"step": 3}):
        for relative in (False, True):
            laid_out = selection.judge.laid_out(logits, **layout)
            selection.check(laid_out, starts, ends, top_k, variant, relative=relative)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns", "top_k"), [(3, 70_001, 2048), (40, 33_000, 512), (1, 300_007, 17)], ids=str)
def test_sections_of_few_rows(gpu: torch.device, kind: str, rows: int, columns: int, top_k: int) -> None:
    problem = operation.example(gpu)._replace(top_k=top_k, cut=True)
    variant = taking.taken(operation, problem, "gluon_hopper")
    logits = selection.judge.laid_out(selection.make_logits(kind, rows, columns, device="cuda"), gap=-columns % 64)
    for windows in ("full", "ragged", "suffix", "extreme"):
        starts, ends = selection.judge.make_windows(windows, rows, columns, device="cuda")
        selection.check(logits, starts, ends, top_k, variant, relative=windows == "suffix")


def test_sections_of_bfloat16_logits(gpu: torch.device) -> None:
    problem = operation.example(gpu)._replace(top_k=2048, dtype="bfloat16", cut=True)
    variant = taking.taken(operation, problem, "gluon_hopper")
    logits = selection.make_logits("normal", 5, 65_536, device="cuda").bfloat16()
    ends = torch.tensor([65_536, 65_535, 30_001, 2048, 0], dtype=torch.int32, device="cuda")
    selection.check(logits, None, ends, 2048, variant)


@pytest.mark.parametrize("top_k", [1, 17, 4096, 8192])
def test_very_long_rows(variant: str, top_k: int) -> None:
    logits = selection.make_logits("normal", 5, 2**20 + 3, device="cuda")
    ends = torch.tensor([2**20 + 3, 2**19, 16_384, 16_385, 100], dtype=torch.int32, device="cuda")
    selection.check(logits, None, ends, top_k, variant)


@pytest.mark.parametrize("windows", ["full", "packed", "ragged", "extreme"])
def test_compressed_logits(variant: str, windows: str) -> None:
    starts, ends = selection.judge.make_windows(windows, 300, 9000, device="cuda")
    logits = selection.make_logits("normal", 300, 3000, device="cuda")
    selection.check(logits, starts, ends, 512, variant, num_keys=9000)


@pytest.mark.parametrize("stride", [2**20, 2**21], ids=["2-GiB", "2**31-cells"])
@pytest.mark.parametrize("columns", [1000, 20_000], ids=["one-launch", "two-launches"])
def test_bug_5_offsets(variant: str, stride: int, columns: int) -> None:
    """Known bug 5: 32-bit offset overflow. Rows lie 4 or 8 MiB apart, so that the last ones begin past 2**31 bytes or cells."""
    rows = 1030
    needs(1.1 * rows * stride * 4 / 1e9)
    memory = torch.zeros(rows * stride, device="cuda")
    logits = memory.as_strided((rows, columns), (stride, 1))
    logits.copy_(selection.make_logits("normal", rows, columns, device="cuda"))
    ends = torch.full((rows,), columns, dtype=torch.int32, device="cuda")
    indices, scores = select_from_logits(logits, None, ends, top_k=256, return_scores=True, variant=variant)
    right, right_scores = selection.expected(logits, None, ends, 256)
    assert torch.equal(indices, right)
    assert torch.equal(scores, right_scores)


def test_twenty_repeats_are_bitwise_equal(variant: str) -> None:
    logits = selection.make_logits("few-values", 515, 20_000, device="cuda")
    ends = torch.arange(515, dtype=torch.int32, device="cuda") * 40
    first, *others = (select_from_logits(logits, None, ends, top_k=512, variant=variant) for _ in range(20))
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("columns", [3000, 20_000], ids=["one-launch", "two-launches"])
@pytest.mark.parametrize("budget", [2**22, 2**31], ids=["chunks", "all-rows"])
def test_a_captured_graph_replays_with_operands_changed_in_place(
    variant: str, fp8: torch.dtype, columns: int, budget: int
) -> None:
    def operands(windows: str, seed: int) -> Any:
        return judge.make_call(61, columns, 64, 128, windows, dtype=fp8, device="cuda", seed=seed)

    def select(call: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return select_keys(*call, top_k=512, logits_budget_bytes=budget, return_scores=True, variant=variant)

    call = operands("causal", 0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        select(call)  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        indices, scores = select(call)
    for windows, seed in (("ragged", 1), ("packed", 2), ("empty", 3)):
        other = operands(windows, seed)
        for tensor, changed in zip(call, other, strict=True):
            tensor.view(torch.uint8).copy_(changed.view(torch.uint8))
        indices.fill_(7)
        graph.replay()
        right, right_scores = select(other)
        assert torch.equal(indices, right)
        assert torch.equal(scores, right_scores)


@pytest.mark.parametrize("windows", ["causal", "packed", "ragged"])
@pytest.mark.parametrize("budget", [2**21, 2**31], ids=["chunks", "all-rows"])
def test_dense(variant: str, fp8: torch.dtype, windows: str, budget: int) -> None:
    call = selection.judge.make_call(515, 4100, 64, 128, windows, dtype=fp8, device="cuda")
    logits = fp8_mqa_logits(*call, clean_logits=False)
    right, right_scores = selection.expected(logits, call.starts, call.ends, 512)
    indices, scores = select_keys(*call, top_k=512, logits_budget_bytes=budget, return_scores=True, variant=variant)
    assert torch.equal(indices, right)
    assert torch.equal(scores, right_scores)


@pytest.mark.parametrize("next_n", [1, 2])
@pytest.mark.parametrize("budget", [2**17, 2**31], ids=["chunks", "all-rows"])
def test_paged(variant: str, fp8: torch.dtype, next_n: int, budget: int) -> None:
    call = paged.make_call([1500, 0, 64, 1, 129, 260, 7000, 0, 33], next_n, 64, 128, dtype=fp8, device="cuda")
    logits = fp8_paged_mqa_logits(*call, max_context_len=7000)
    right, _ = selection.expected(logits, None, call.seen.clamp(0, 7000).flatten().int(), 512)
    indices = select_paged_keys(*call, max_context_len=7000, top_k=512, logits_budget_bytes=budget, variant=variant)
    assert torch.equal(indices, right)


@pytest.mark.parametrize(
    ("rows", "keys", "top_k", "budget"),
    [(4096, 8192, 2048, 2**31), (4096, 8192, 2048, 2**25), (2048, 65_536, 2048, 2**28), (64, 2**20, 512, 2**27)],
    ids=str,
)
def test_peak_memory_is_the_budget_and_the_result(fp8: torch.dtype, rows: int, keys: int, top_k: int, budget: int) -> None:
    """5 % more at most, by the default variants; a second call takes no more than the first."""
    needs(6)
    call = judge.make_call(rows, keys, 32, 64, "full", dtype=fp8, device="cuda")
    for _ in range(2):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        indices = select_keys(*call, top_k=top_k, logits_budget_bytes=budget)
        peak = torch.cuda.max_memory_allocated() - before
        assert peak <= 1.05 * budget + indices.numel() * 4, f"{peak / budget:.3f} of the budget"
        del indices


SMALL_CALLS = """
from support import selection

calls = 0
for kind in ("normal", "few-values", "nans"):
    for rows, columns, top_k in [(5, 1, 1), (7, 37, 8), (5, 3001, 512), (3, 8192, 2048), (2, 40_001, 2048)]:
        logits = selection.make_logits(kind, rows, columns, device="cuda")
        for windows in ("full", "ragged", "extreme"):
            starts, ends = selection.judge.make_windows(windows, rows, columns, device="cuda")
            selection.check(logits, starts, ends, top_k, "classic")
            selection.check(logits, starts, ends, top_k, "classic", num_keys=2 * columns)
            calls += 2
print(calls, "calls")
"""


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_the_sanitizer_finds_nothing_on_small_calls(tool: str) -> None:
    """Every tensor is an allocation of its own, so that a read or write past its end is seen."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not on PATH")
    options = ["--padding", "1024"] if tool == "memcheck" else []
    command = [sanitizer, "--tool", tool, *options, "--error-exitcode", "9", sys.executable, "-c", SMALL_CALLS]
    variables = environment(PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    run = subprocess.run(command, capture_output=True, text=True, timeout=1200, env=variables)
    assert run.returncode == 0, (run.stdout + run.stderr)[-6000:]
    assert "90 calls" in run.stdout
