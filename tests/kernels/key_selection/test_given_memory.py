"""Results and a workspace that the caller gives: what is written, what is refused, and that nothing else is allocated."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from capgate.kernels import select_from_logits, select_keys, select_paged_keys
from support import judge, paged, selection

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning")

INT = torch.int32
ROW = 1024  # bytes that a row of logits or of candidates takes, in the calls below


class Allocations(TorchDispatchMode):
    """The bytes of every tensor with memory of its own that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        found = function(*arguments, **(keywords or {}))
        known = {
            x.untyped_storage().data_ptr() for x in (*arguments, *(keywords or {}).values()) if isinstance(x, torch.Tensor)
        }
        for tensor in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in known:
                self.sizes.append(tensor.untyped_storage().nbytes())
        return found


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One program selects from 512 logits at most, so that short rows need memory for candidates."""
    selection.shorten_blocks(monkeypatch)


def wide(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows in the middle of longer ones, of sevens."""
    return torch.full((rows, columns + 6), 7, dtype=dtype)[:, 2 : columns + 2]


def test_results_are_written_where_the_caller_says(variant: str) -> None:
    logits, ends = selection.make_logits("few-values", 3, 90), torch.tensor([90, 4, 70], dtype=INT)
    right, right_scores = selection.expected(logits, None, ends, 9)
    out, scores = wide(3, 9, INT), wide(3, 9, torch.float32)
    found = select_from_logits(logits, None, ends, top_k=9, return_scores=True, out=out, out_scores=scores, variant=variant)
    assert found[0] is out
    assert found[1] is scores
    assert torch.equal(out, right)
    assert torch.equal(scores, right_scores)
    for written in (out, scores):
        whole = judge.storage_of(written, written.dtype).view(3, -1)
        assert (whole[:, :2] == 7).all()
        assert (whole[:, -4:] == 7).all()
    only = wide(3, 9, INT)
    assert select_from_logits(logits, None, ends, top_k=9, out=only, variant=variant) is only
    assert torch.equal(only, right)


def calls() -> dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], int]]:
    """Each function, a call, and the bytes of a workspace that holds two of its four turns."""
    dense, cached = judge.make_call(8, 120, 16, 32, "ragged"), paged.make_call([130, 3, 70, 1], 2)
    return {
        "dense": (select_keys, tuple(dense), {"top_k": 7}, 8 * 4 * 256 // 4),
        "paged": (select_paged_keys, tuple(cached), {"top_k": 7, "max_context_len": 130}, 8 * 4 * 256 // 4),
    }


@pytest.mark.parametrize("name", ["dense", "paged"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.any_triton
def test_a_workspace_is_the_budget(name: str, dtype: torch.dtype) -> None:
    """Of any alignment and shape; what is too small for a row is refused."""
    function, operands, options, size = calls()[name]
    right = function(*operands, **options, return_scores=True)
    memory = torch.zeros(size + 32, dtype=torch.uint8)
    workspace = memory[16:] if dtype is torch.uint8 else memory.view(dtype).view(2, -1)
    found = function(*operands, **options, return_scores=True, workspace=workspace)
    assert all(map(torch.equal, found, right))
    assert memory.any(), "it was worked in"
    with pytest.raises(
        ValueError, match=r"^workspace: got 10\d\d aligned bytes, needs at least (1024|2048) for a (row|request) of"
    ):
        function(*operands, **options, workspace=torch.zeros(1023, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"^logits_budget_bytes: got 9, needs at least"):
        function(*operands, **options, workspace=memory, logits_budget_bytes=9)


@pytest.mark.usefixtures("short_blocks")
def test_candidates_of_long_rows_lie_in_the_workspace(variant: str) -> None:
    logits, ends = selection.make_logits("normal", 2, 600), torch.tensor([600, 20], dtype=INT)
    right, _ = selection.expected(logits, None, ends, 60)
    needed = 2 * 8 * 514  # a list for each row
    found = select_from_logits(
        logits, None, ends, top_k=60, workspace=torch.zeros(needed + 16, dtype=torch.uint8), variant=variant
    )
    assert torch.equal(found, right)
    with pytest.raises(ValueError, match=f"^workspace: got 96 aligned bytes, needs {needed} for 2 rows of 600 logits"):
        select_from_logits(logits, None, ends, top_k=60, workspace=torch.zeros(24), variant=variant)


@pytest.mark.usefixtures("interpreter", "short_blocks")
@pytest.mark.parametrize("name", ["dense", "paged", "logits"])
def test_nothing_that_grows_is_allocated(name: str) -> None:
    """By the classic variants, of more than a row takes; the paged call's requests have one row each."""
    top_k = 60 if name == "logits" else 8
    rows = 2 if name == "logits" else 8
    options = {"out": torch.zeros(rows, top_k, dtype=INT), "out_scores": torch.zeros(rows, top_k), "return_scores": True}
    options |= {"workspace": torch.zeros(2**15, dtype=torch.uint8), "variant": "classic", "top_k": top_k}
    if name == "dense":
        run = partial(select_keys, *judge.make_call(rows, 20, 16, 32), logits_variant="classic", **options)
    elif name == "paged":
        run = partial(select_paged_keys, *paged.make_call([20] * rows), max_context_len=20, logits_variant="classic", **options)
    else:
        run = partial(select_from_logits, torch.randn(rows, 600), None, torch.full((rows,), 600, dtype=INT), **options)
    with Allocations() as seen:
        run()
    assert max(seen.sizes, default=0) < ROW


GOOD: dict[str, Any] = {
    "out": lambda: torch.zeros(3, 4, dtype=INT),
    "out_scores": lambda: torch.zeros(3, 4),
    "return_scores": lambda: True,
}
BAD = {
    "out-list": ({"out": lambda: [1]}, TypeError, "out"),
    "out-narrow": ({"out": lambda: torch.zeros(3, 3, dtype=INT)}, ValueError, "out"),
    "out-int64": ({"out": lambda: torch.zeros(3, 4, dtype=torch.int64)}, TypeError, "out"),
    "out-meta": ({"out": lambda: torch.zeros(3, 4, dtype=INT, device="meta")}, ValueError, "out"),
    "out-one-row": ({"out": lambda: torch.zeros(1, 4, dtype=INT).expand(3, 4)}, ValueError, "out"),
    "out-turned": ({"out": lambda: torch.zeros(4, 3, dtype=INT).t()}, ValueError, "out"),
    "scores-half": ({"out_scores": lambda: torch.zeros(3, 4, dtype=torch.float16)}, TypeError, "out_scores"),
    "scores-not-wanted": ({"return_scores": lambda: False}, ValueError, "out_scores"),
    "scores-require-grad": ({"out_scores": lambda: torch.zeros(3, 4).requires_grad_()}, ValueError, "out_scores"),
    "workspace-number": ({"workspace": lambda: 4096}, TypeError, "workspace"),
    "workspace-int32": ({"workspace": lambda: torch.zeros(99, dtype=INT)}, TypeError, "workspace"),
    "workspace-apart": ({"workspace": lambda: torch.zeros(99, 2)[:, 0]}, ValueError, "workspace"),
    "workspace-meta": ({"workspace": lambda: torch.zeros(99, device="meta")}, ValueError, "workspace"),
}


@pytest.mark.any_triton
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_bad_memory_is_refused_by_name(bad: tuple[Any, Any, str]) -> None:
    replaced, error, name = bad
    logits, ends = torch.zeros(3, 20), torch.full((3,), 9, dtype=INT)
    select_from_logits(logits, None, ends, top_k=4, **{key: make() for key, make in GOOD.items()})
    with pytest.raises(error, match=f"^{name}: "):
        select_from_logits(logits, None, ends, top_k=4, **{key: make() for key, make in (GOOD | replaced).items()})


@pytest.mark.any_triton
def test_what_is_written_shares_no_memory() -> None:
    memory = torch.zeros(3, 40)
    logits, ends = memory[:, :20], torch.full((3,), 9, dtype=INT)
    for name, out in (("out", memory.view(INT)[:, 10:14]), ("workspace", memory)):
        with pytest.raises(ValueError, match=f"^{name}: shares memory with logits"):
            select_from_logits(logits, None, ends, top_k=4, **{name: out})
    shared = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"^out: shares memory with out_scores"):
        select_from_logits(logits, None, ends, top_k=4, return_scores=True, out=shared.view(INT), out_scores=shared)


@pytest.mark.any_triton
def test_compiled_calls_write_what_they_are_given() -> None:
    def step(logits: torch.Tensor, ends: torch.Tensor, out: torch.Tensor, workspace: torch.Tensor) -> torch.Tensor:
        options = {"offsets": ends, "page_table": out.new_ones(3, 99), "page_size": 2}
        return select_from_logits(logits * 2, None, ends, top_k=4, out=out, workspace=workspace, **options) + 1

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    logits, ends = torch.randn(3, 20), torch.tensor([20, 3, 9], dtype=INT)
    outs = [torch.zeros(3, 4, dtype=INT) for _ in range(2)]
    results = [run(logits, ends, out, torch.zeros(64)) for run, out in zip((step, compiled), outs, strict=True)]
    assert torch.equal(*results)
    assert torch.equal(*outs)
    assert outs[0].any()
