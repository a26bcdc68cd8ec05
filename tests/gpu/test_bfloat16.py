"""bfloat16 weights and logits on a GPU: float32 inside, one rounding where a logit is stored, and no cell more."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from capgate.kernels import fp8_mqa_logits, fp8_paged_mqa_logits
from capgate.kernels.mqa_logits.operation import operation
from capgate.kernels.paged_mqa_logits import api as paged_api
from capgate.kernels.paged_mqa_logits.operands import Inputs as PagedInputs
from capgate.kernels.paged_mqa_logits.operation import operation as paged_operation
from support import judge, paged
from support.taking import taken

pytestmark = pytest.mark.gpu

BF16, F32 = torch.bfloat16, torch.float32
MODES = {"clean": (True, None), "unclean": (False, None), "compressed": (False, 100)}
modes = pytest.mark.parametrize(("clean_logits", "max_window"), MODES.values(), ids=MODES)
cleaning = pytest.mark.parametrize("clean_logits", [True, False], ids=["clean", "unclean"])
LENS = [1500, 0, 64, 1, 129, 260, 7000, 0, 33]
assert set(operation.variants) >= set(paged_operation.variants)  # the fixture has those of one

Check = Callable[..., torch.Tensor]


def halved(call: Any, weights: torch.dtype = BF16) -> Any:
    return call._replace(weights=call.weights.to(weights))


def rows_apart(rows: int, columns: int, kind: str) -> torch.Tensor:
    """Sentinels of bfloat16, whose rows begin at multiples of 1024 bytes, of 16 bytes, or of 2 bytes."""
    layout = {"new": {"gap": -columns % 512}, "lines": {"gap": -columns % 8 + 8, "offset": 8}, "odd": {"gap": 7, "offset": 9}}
    return judge.sentinels(rows, columns, "cuda", BF16, **layout[kind])


kinds = pytest.mark.parametrize("kind", ["new", "lines", "odd"])


# --- fp8_mqa_logits -------------------------------------------------------------------------------------------------------


@modes
@kinds
@pytest.mark.parametrize("windows", ["causal", "ragged", "empty"])
def test_dense_logits(
    check: Check, fp8: torch.dtype, windows: str, kind: str, clean_logits: bool, max_window: int | None
) -> None:
    """406 keys, 6 past the last 16 bytes; the map of gluon_hopper's fill leaves them out."""
    call = halved(judge.make_call(37, 406, 64, 128, windows, dtype=fp8, device="cuda"))
    check(call, clean_logits=clean_logits, max_window=max_window, out=rows_apart(37, max_window or 406, kind))


@pytest.mark.parametrize(("heads", "dim"), [(3, 64), (12, 32), (16, 128), (32, 32), (100, 128), (104, 64), (128, 128)], ids=str)
def test_dense_heads_and_dims(check: Check, fp8: torch.dtype, heads: int, dim: int) -> None:
    call = halved(judge.make_call(61, 1024, heads, dim, "ragged", dtype=fp8, device="cuda"))
    check(call, out=rows_apart(61, 1024, "new"))


@pytest.mark.parametrize("keys", [8, 9, 15, 16, 127, 129, 1560])
def test_dense_rows_of_any_width(check: Check, fp8: torch.dtype, keys: int) -> None:
    call = halved(judge.make_call(300, keys, 64, 128, "packed", dtype=fp8, device="cuda"))
    check(call, out=rows_apart(300, keys, "lines"))


@pytest.mark.parametrize(("weights", "logits"), [(BF16, F32), (F32, BF16)], ids=["weights", "logits"])
def test_dense_weights_and_logits_need_not_be_alike(
    check: Check, fp8: torch.dtype, weights: torch.dtype, logits: torch.dtype
) -> None:
    call = halved(judge.make_call(515, 4100, 64, 128, "ragged", dtype=fp8, device="cuda"), weights)
    check(call, out=judge.sentinels(515, 4100, "cuda", logits, gap=12))


def test_nan_stays_nan(variant: str, take: Callable[[object], None], fp8: torch.dtype) -> None:
    call = halved(judge.make_call(37, 300, 64, 128, "full", dtype=fp8, device="cuda"))
    take(call)
    call.k.view(torch.uint8)[20, 77] = 0x80 if fp8 == torch.float8_e4m3fnuz else 0x7F
    logits = fp8_mqa_logits(*call, logits_dtype=BF16, variant=variant)
    assert torch.equal(logits.isnan(), (torch.arange(300, device="cuda") == 20).expand(37, 300))


# --- fp8_paged_mqa_logits -------------------------------------------------------------------------------------------------


def check_paged(variant: str, call: Any, columns: int, out: torch.Tensor, clean_logits: bool = True) -> None:
    """paged.check, where the variant takes such a call."""
    taken(paged_operation, paged_api.describe(PagedInputs(*call), clean_logits, out.dtype), variant)
    paged.check(call, variant, columns, clean_logits=clean_logits, out=out)


@cleaning
@kinds
@pytest.mark.parametrize(("block", "next_n"), [(64, 1), (64, 2), (32, 3), (128, 8), (1, 1), (16, 2)])
def test_paged_logits(variant: str, fp8: torch.dtype, block: int, next_n: int, kind: str, clean_logits: bool) -> None:
    call = halved(paged.without_blocks(paged.make_call(LENS, next_n, 64, 128, block, gap=16, dtype=fp8, device="cuda"), 7))
    check_paged(variant, call, 7001, rows_apart(len(LENS) * next_n, 7001, kind), clean_logits)


@pytest.mark.parametrize("next_n", [1, 2, 4])
@pytest.mark.parametrize("weights", [BF16, F32], ids=str)
@pytest.mark.parametrize("heads", [4, 16, 32, 100, 128])
def test_paged_heads(variant: str, fp8: torch.dtype, heads: int, weights: torch.dtype, next_n: int) -> None:
    """Weights of few heads and rows are less than the 128 bytes at whose multiples the copy engine writes."""
    call = halved(paged.make_call([700, 0, 129, 5, 2000, 64], next_n, heads, 64, dtype=fp8, device="cuda"), weights)
    check_paged(variant, call, 2100, rows_apart(6 * next_n, 2100, "new"))


def test_a_captured_call_and_twenty_repeats_give_the_same_bits(variant: str, fp8: torch.dtype) -> None:
    call = halved(paged.make_call(LENS, 2, 64, 128, dtype=fp8, device="cuda"))
    keywords = {"max_context_len": 7000, "clean_logits": True, "variant": variant, "logits_dtype": BF16}
    first, *others = (fp8_paged_mqa_logits(*call, **keywords) for _ in range(20))
    assert first.stride() == (7168, 1)
    assert all(torch.equal(first, other) for other in others)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = fp8_paged_mqa_logits(*call, **keywords)
    graph.replay()
    assert torch.equal(captured, first)
