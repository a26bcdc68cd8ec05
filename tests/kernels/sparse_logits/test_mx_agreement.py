"""Each variant of the sparse logits in MX formats against the formula in float64, of every pair of formats and layout."""

import pytest
import torch

from capgate.kernels import mx_sparse_mqa_workers, sparse_mqa_schedule
from support import judge, sparse
from support.mx_logits import PAIRS

WINDOWS = [(3, 60), (-5, 300), (90, 40)]  # of 110 keys: the last is inverted


@pytest.mark.dealt("pair", "relative")
@pytest.mark.parametrize(
    ("pair", "block", "heads", "dim"),
    [(PAIRS[0], 8, 16, 128), (PAIRS[1], 16, 33, 32), (PAIRS[2], 8, 3, 64), (PAIRS[3], 64, 16, 64)],
    ids=["mxfp4", "mxfp8", "mxfp8-mxfp4", "mxfp4-mxfp8"],
)
@pytest.mark.parametrize("relative", [True, False], ids=["relative", "absolute"])
def test_packed_keys_agree(variant: str, pair: tuple[str, str], block: int, heads: int, dim: int, relative: bool) -> None:
    call = sparse.make_call(WINDOWS, 3, 110, max(1, 48 // block), block, heads, dim, relative=relative, pair=pair)
    poisoned = sparse.poisoned(call, block, relative=relative)
    assert not torch.equal(poisoned.k_scale, call.k_scale)
    sparse.check(poisoned, variant, block, relative=relative, clean_logits=relative)


@pytest.mark.dealt("layout", "pair")
@pytest.mark.parametrize(
    ("layout", "pair", "dim", "page", "block", "next_n"),
    [
        ("flat", PAIRS[0], 64, 64, 8, 1),
        ("flat", PAIRS[3], 64, 1, 16, 1),
        ("preshuffled", PAIRS[1], 32, 16, 8, 2),
        ("gluon-16", PAIRS[2], 128, 48, 32, 1),
        ("gluon-32", PAIRS[0], 128, 64, 8, 1),
    ],
    ids=lambda value: str(value),
)
def test_cached_keys_agree(
    variant: str, layout: str, pair: tuple[str, str], dim: int, page: int, block: int, next_n: int
) -> None:
    options = {"block_of_cache": page, "gap": 12, "layout": layout, "dim": dim, "pair": pair}
    call = sparse.make_paged_call([70, 0, 133], 5, block, next_n, **options)
    sparse.check(sparse.poisoned(call, block, layout=layout), variant, block, layout=layout, clean_logits=next_n == 2)


def test_rows_share_lists(variant: str) -> None:
    call = sparse.make_call([(0, 70), (9, 0), (9, 109), (9, 40)], 4, 110, 7, dim=64, pair=PAIRS[0])
    shared = call._replace(candidates=call.candidates[[0, 2]].contiguous())
    sparse.check(sparse.poisoned(shared, 8), variant)


def test_weights_and_logits_of_bfloat16_strides_and_a_schedule(variant: str) -> None:
    call = sparse.make_call([(0, 70), (5, 60)], 2, 80, 5, dim=64, pair=PAIRS[0])
    call = call._replace(
        q=judge.laid_out(call.q, (0, 2, 1), gap=3),
        q_scale=judge.laid_out(call.q_scale, (1, 0), gap=2),
        k=judge.laid_out(call.k, (1, 0), gap=1),
        k_scale=judge.laid_out(call.k_scale, step=3),
        weights=judge.laid_out(call.weights.bfloat16(), (1, 0)),
    )
    assert mx_sparse_mqa_workers(call.q, variant=variant) >= 1
    schedule = sparse_mqa_schedule(call.ends, 3, most_keys=40, starts=call.starts)
    sparse.check(call, variant, out=judge.sentinels(2, 40, dtype=torch.bfloat16), schedule=schedule)


def test_blocks_that_are_not_there_score_minus_infinity(variant: str) -> None:
    """Numbers that the window has not, and blocks that the cache lacks."""
    call = sparse.make_paged_call([70, 90], 12, dim=64, pair=PAIRS[0], block_of_cache=16)
    call.candidates[0, 1:3] = torch.tensor([-1, 9], dtype=torch.int32)
    call.block_table[1, 1:3] = torch.tensor([-1, 2**31 - 1], dtype=torch.int32)
    assert sparse.check(call, variant).isneginf().sum() >= (2 + 4) * 8
