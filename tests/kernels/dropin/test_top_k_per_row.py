"""vLLM's and aiter's selections of each row's top keys: their own tests' grids in small, and what those do not ask."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from capgate.kernels.dropin import aiter, selected, vllm  # noqa: A004 - a library's name
from support import selection

pytestmark = pytest.mark.any_triton

INT = torch.int32


def make_logits(rows: int, columns: int, kind: str, seed: int = 0) -> torch.Tensor:
    """Random ones, some that differ in the lowest ten bits alone, or a row of one kind behind one of the other."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, columns, generator=generator)
    bits = 0x3F900000 | torch.randint(0, 2**10, (rows, columns), generator=generator, dtype=INT)
    close = bits.view(torch.float32)
    if kind == "mixed":
        return torch.where((torch.arange(rows) % 2 == 0)[:, None], normal, close)
    return normal if kind == "random" else close


def top_columns(logits: torch.Tensor, starts: torch.Tensor | None, ends: torch.Tensor, top_k: int) -> torch.Tensor:
    return selection.expected(logits, starts, ends, top_k)[0]


def counted_from_starts(columns: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    return torch.where(columns < 0, -1, columns - starts[:, None])


@pytest.mark.parametrize("kind", ["random", "10-bits", "mixed"])
@pytest.mark.parametrize(("rows", "top_k", "width"), [(1, 40, 200), (32, 60, 200), (9, 60, 20)])
def test_prefill(rows: int, top_k: int, width: int, kind: str) -> None:
    """Causal windows behind a prefix; -1 behind rows of fewer keys, ascending otherwise."""
    logits = make_logits(rows, width + rows, kind)
    starts, ends = torch.zeros(rows, dtype=INT), torch.arange(width + 1, width + rows + 1, dtype=INT)
    right = top_columns(logits, starts, ends, top_k)
    for prefill, values in ((vllm.top_k_per_row_prefill, ()), (aiter.top_k_per_row_prefill, (None,))):
        indices = torch.full((rows, top_k), -7, dtype=INT)
        assert prefill(logits, starts, ends, indices, *values, rows, logits.stride(0), logits.stride(1), top_k) is None
        assert torch.equal(indices, right)


def test_prefill_counts_from_the_start_in_vllm_and_in_columns_in_aiter() -> None:
    logits = make_logits(4, 90, "random")
    starts, ends = torch.tensor([0, 30, 85, 60], dtype=INT), torch.tensor([90, 70, 90, 60], dtype=INT)
    right, scores = selection.expected(logits, starts, ends, 12)
    indices, values = torch.zeros(4, 12, dtype=INT), torch.zeros(4, 12)
    aiter.top_k_per_row_prefill(logits, starts, ends, indices, values, 4, 90, 1, k=12, stable=True)
    assert torch.equal(indices, right)
    assert torch.equal(values, scores)
    vllm.top_k_per_row_prefill(logits, starts, ends, indices, 4, 90, 1, 12)
    assert torch.equal(indices, counted_from_starts(right, starts))


@pytest.mark.parametrize("kind", ["random", "10-bits"])
@pytest.mark.parametrize(("batch", "next_n"), [(1, 1), (3, 1), (2, 8), (5, 2)])
def test_decode(batch: int, next_n: int, kind: str) -> None:
    rows = batch * next_n
    logits = make_logits(rows, 150, kind)
    lens = torch.tensor([150, 3, 90, 1, 77][:batch], dtype=INT)
    ends = torch.tensor([int(length) - next_n + t + 1 for length in lens for t in range(next_n)], dtype=INT)
    right = top_columns(logits, None, ends, 20)
    for decode in (vllm.top_k_per_row_decode, aiter.top_k_per_row_decode):
        indices = torch.full((rows, 20), -7, dtype=INT)
        decode(logits, next_n, lens, indices, rows, 150, 1, 20)
        assert torch.equal(indices, right)
    for shape in ((batch, next_n), (rows, 1)):  # a length for each row, whatever the shape
        indices = torch.full((rows, 20), -7, dtype=INT)
        vllm.top_k_per_row_decode(logits, next_n, ends.view(shape), indices, rows, 150, 1, 20)
        assert torch.equal(indices, right)


@pytest.mark.parametrize("module", [vllm, aiter], ids=["vllm", "aiter"])
def test_what_is_wider_than_the_call_is_left_alone(module: Any) -> None:
    """Rows and columns of the caller's buffers that it does not ask for; padded rows of logits; rows at other strides."""
    memory, lens = make_logits(6, 128, "random"), torch.tensor([90, 80, 4, 0], dtype=INT)
    right = top_columns(memory[:, :90], None, torch.cat([lens, lens[:2]]), 7)
    buffer = torch.full((9, 16), -7, dtype=INT)
    module.top_k_per_row_decode(memory[:, :90], 1, lens, buffer, 4, 128, 1, 7)
    assert torch.equal(buffer[:4, :7], right[:4])
    assert (buffer[4:] == -7).all()
    assert (buffer[:, 7:] == -7).all()
    every_other = top_columns(memory[::2, :90], None, lens[:3], 7)
    module.top_k_per_row_decode(memory[:, :90], 1, lens, buffer, 3, 256, 1, 7)
    assert torch.equal(buffer[:3, :7], every_other)
    module.top_k_per_row_decode(memory[:0], 1, lens[:0], buffer[:0], 0, 128, 1, 7)


def test_bfloat16_logits_need_no_copy() -> None:
    logits, ends = make_logits(3, 80, "random").bfloat16(), torch.tensor([80, 60, 5], dtype=INT)
    indices = torch.zeros(3, 9, dtype=INT)
    vllm.top_k_per_row_prefill(logits, torch.zeros_like(ends), ends, indices, 3, 80, 1, 9)
    assert torch.equal(indices, top_columns(logits, None, ends, 9))


BY_LENGTH = {"persistent": vllm.persistent_topk, "cooperative": vllm.cooperative_topk}


@pytest.mark.parametrize("select", BY_LENGTH.values(), ids=BY_LENGTH)
@pytest.mark.parametrize("kind", ["random", "10-bits"])
def test_by_length(select: Callable[..., Any], kind: str) -> None:
    """Rows of fewer keys, of none, and past the logits; lengths of any shape; a bound that is no power of two."""
    logits, lens = make_logits(6, 1000, kind), torch.tensor([700, 512, 511, 1, 0, -3], dtype=INT)
    right = top_columns(logits, None, lens, 512)
    for lengths in (lens, lens.view(3, 2), lens.view(6, 1), lens.repeat_interleave(2)[::2]):
        output = torch.full((6, 512), -7, dtype=INT)
        assert select(logits, lengths, output, torch.empty(1 << 20, dtype=torch.uint8), 512, 700) is None
        assert torch.equal(output, right)
    select(logits[:1], torch.tensor([2000], dtype=INT), output[:1], torch.empty(0, dtype=torch.uint8), 512, 2000)
    assert torch.equal(output[:1], top_columns(logits[:1], None, torch.tensor([1000], dtype=INT), 512))
    select(logits[:0], lens[:0], output[:0], torch.empty(0, dtype=torch.uint8), 512, 700)


def test_only_the_persistent_one_trusts_its_bound() -> None:
    """vLLM's cooperative one does not look at it, and callers may pass anything; columns behind it may hold anything."""
    logits, lens = make_logits(1, 4096, "random"), torch.tensor([3000], dtype=INT)
    whole, short = torch.zeros(1, 512, dtype=INT), torch.zeros(1, 512, dtype=INT)
    vllm.cooperative_topk(logits, lens, whole, torch.empty(9, dtype=torch.uint8), 512, 1)
    vllm.persistent_topk(logits, lens, short, torch.empty(9, dtype=torch.uint8), 512, 1025)
    assert torch.equal(whole, top_columns(logits, None, lens, 512))
    assert torch.equal(short, top_columns(logits, None, torch.tensor([2048], dtype=INT), 512))


def test_a_workspace_is_used_where_it_has_room() -> None:
    """A row of 40000 logits has a list of 4096 candidates for 512 keys, how many they are, and the bar that they reached."""
    logits = torch.zeros(2, 40000)
    needed = 2 * (4096 + 2) * 8 + 255
    for size, taken in ((needed, True), (needed - 256, False)):
        workspace = torch.zeros(size, dtype=torch.uint8)
        assert (selected.room_in(workspace, logits, 512) is workspace) is taken
    assert selected.room_in(workspace, logits[:, :16384], 512) is None


@pytest.mark.parametrize("select", BY_LENGTH.values(), ids=BY_LENGTH)
@pytest.mark.parametrize(
    ("bad", "words"),
    {
        "lengths": ({"lengths": torch.full((2,), 9, dtype=INT)}, r"ends: got shape \(2,\)"),
        "output": ({"output": torch.zeros(3, 5, dtype=INT)}, r"out: got shape \(3, 5\)"),
        "k": ({"k": 0}, "k: got 0, needs 1 or more"),
        "logits": ({"logits": torch.zeros(60)}, r"logits: got shape \(60,\)"),
    }.values(),
)
def test_what_has_no_length_is_refused_by_name(select: Callable[..., Any], bad: dict[str, Any], words: str) -> None:
    good = {"logits": torch.zeros(3, 20), "lengths": torch.full((3,), 9, dtype=INT), "output": torch.zeros(3, 4, dtype=INT)}
    good |= {"workspace": torch.zeros(8, dtype=torch.uint8), "k": 4, "max_seq_len": 9}
    select(**good)
    with pytest.raises(ValueError, match=f"^{words}"):
        select(**good | bad)


GOOD: dict[str, Any] = {"logits": torch.zeros(3, 20), "next_n": 1, "lens": torch.full((3,), 9, dtype=INT), "rows": 3, "k": 4}
GOOD |= {"indices": torch.zeros(3, 4, dtype=INT), "stride0": 20}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "rows": ({"rows": 4}, "numRows: got 4 rows with strides"),
    "stride": ({"stride0": 31}, "numRows: got 3 rows with strides"),
    "flat": ({"logits": torch.zeros(60)}, r"logits: got shape \(60,\), needs two dimensions"),
    "narrow": ({"k": 5}, r"indices: got shape \(3, 4\), needs \[3, 5\] or more"),
    "short": ({"lens": torch.full((2,), 9, dtype=INT)}, r"ends: got shape \(2,\)"),
    "next": ({"next_n": 0}, "next_n: got 0, needs 1 or more"),
}


@pytest.mark.parametrize("decode", [vllm.top_k_per_row_decode, aiter.top_k_per_row_decode], ids=["vllm", "aiter"])
@pytest.mark.parametrize(("bad", "words"), BAD.values(), ids=BAD)
def test_what_is_not_there_is_refused_by_name(decode: Callable[..., Any], bad: dict[str, Any], words: str) -> None:
    def run(logits: Any, next_n: int, lens: Any, rows: int, k: int, indices: Any, stride0: int) -> None:
        decode(logits, next_n, lens, indices, rows, stride0, 1, k)

    run(**GOOD)
    with pytest.raises(ValueError, match=f"^{words}"):
        run(**GOOD | bad)
