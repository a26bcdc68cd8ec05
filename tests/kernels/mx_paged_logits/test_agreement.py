"""Each variant of mx_paged_mqa_logits against the formula in float64, in every layout of the cache."""

import pytest
import torch

from capgate.kernels import (
    mx_mqa_logits,
    mx_paged_mqa_logits,
    mx_paged_mqa_workers,
    paged_mqa_schedule,
    quantize_keys_to_cache,
    quantize_mx_keys,
    quantize_mx_queries,
)
from support import judge, mx_paged, paged
from support.mx_logits import PAIRS
from support.mx_paged import make_call

# Layout, formats of queries and keys, dims, keys of a block, next_n, heads; blocks that hold a tile of keys, and that do not.
KINDS = [
    ("flat", PAIRS[0], 128, 64, 1, 64),
    ("flat", PAIRS[0], 64, 16, 2, 20),
    ("flat", PAIRS[1], 32, 1, 1, 16),
    ("flat", PAIRS[2], 64, 128, 3, 16),
    ("flat", PAIRS[3], 128, 48, 1, 3),
    ("preshuffled", PAIRS[0], 64, 64, 1, 16),
    ("preshuffled", PAIRS[1], 64, 80, 2, 16),
    ("gluon-16", PAIRS[0], 128, 48, 1, 16),
    ("gluon-32", PAIRS[0], 128, 64, 1, 32),
    ("gluon-32", PAIRS[2], 128, 96, 2, 32),
]
each_kind = pytest.mark.parametrize(("layout", "pair", "dim", "block", "next_n", "heads"), KINDS, ids=lambda value: str(value))


@pytest.mark.dealt("layout", "pair")
@each_kind
@pytest.mark.parametrize("clean_logits", [False, True], ids=["unclean", "clean"])
def test_logits_agree(
    variant: str, layout: str, pair: tuple[str, str], dim: int, block: int, next_n: int, heads: int, clean_logits: bool
) -> None:
    rows = next_n > 1 and clean_logits
    call = make_call([70, 0, 33], next_n, heads, dim, block, pair, layout=layout, gap=12, rows=rows)
    mx_paged.check(call, variant, 75, layout, clean_logits=clean_logits)


@pytest.mark.dealt
@pytest.mark.parametrize(("pair", "next_n", "heads", "clean_logits"), [(PAIRS[0], 2, 20, True), (PAIRS[2], 1, 64, False)])
def test_scales_that_lie_apart(variant: str, pair: tuple[str, str], next_n: int, heads: int, clean_logits: bool) -> None:
    """FlyDSL's caches, of which one is a tensor of values and one of scales, where they lie; a block is lacking."""
    call = make_call([70, 0, 133], next_n, heads, 128, 64, pair, layout="flydsl")
    call.block_table[2, 1] = 1000
    mx_paged.check(call, variant, 140, "flydsl", clean_logits=clean_logits)


@pytest.mark.parametrize("layout", ["flat", "gluon-32"])
def test_blocks_that_the_cache_lacks_score_minus_infinity(variant: str, layout: str) -> None:
    call = make_call([130, 70], 1, 16, 128, 32, layout=layout)
    lost = paged.without_blocks(paged.PagedCall(call.q, *call[2:]))
    mx_paged.check(call._replace(block_table=lost.block_table), variant, 140, layout)


def test_weights_and_logits_of_bfloat16(variant: str) -> None:
    call = make_call([70, 5], 2, 16)
    call = call._replace(weights=call.weights.bfloat16())
    mx_paged.check(call, variant, 70, out=judge.sentinels(4, 70, dtype=torch.bfloat16))


@pytest.mark.parametrize("chunk_keys", [128, 256])
def test_a_schedule_changes_no_logit(variant: str, chunk_keys: int) -> None:
    call = make_call([300, 1, 140], 1, 16)
    assert mx_paged_mqa_workers(call.q, call.kv_cache, variant=variant) >= 1
    schedule = paged_mqa_schedule(call.context_lens, 64, 3, chunk_keys=chunk_keys)
    with_it = mx_paged.check(call, variant, 300, schedule=schedule, schedule_chunk_keys=chunk_keys)
    without = mx_paged.check(call, variant, 300)
    assert torch.equal(with_it.view(torch.int32), without.view(torch.int32))


@pytest.mark.parametrize(("key_format", "layout"), [("mxfp4", "flat"), ("mxfp8", "preshuffled"), ("mxfp4", "gluon-32")])
def test_what_the_writer_wrote_scores_as_the_same_keys_side_by_side(variant: str, key_format: str, layout: str) -> None:
    random = torch.Generator().manual_seed(1)
    q, k, weights = (torch.randn(shape, generator=random) for shape in ((1, 1, 16, 128), (70, 128), (1, 1, 16)))
    cache = torch.zeros(3, 64, 1, (128 if key_format == "mxfp8" else 64) + 4, dtype=torch.uint8)
    table = torch.tensor([[2, 0]], dtype=torch.int32)
    slots = torch.cat([torch.arange(128, 192), torch.arange(6)])
    quantize_keys_to_cache(k, cache, slots, key_format=key_format, layout=layout, rule="vllm")
    queries, q_scale, weights = quantize_mx_queries(q, weights, key_format, rule="vllm")
    lens = torch.tensor([70], dtype=torch.int32)
    options = {"max_context_len": 70, "layout": layout, "variant": variant}
    logits = mx_paged_mqa_logits(queries, q_scale, cache, weights[0], lens, table, **options)
    dense = (queries[0], q_scale[0], *quantize_mx_keys(k, key_format, rule="vllm"), weights[0], lens * 0, lens)
    assert judge.calc_diff(logits, mx_mqa_logits(*dense, variant="reference")) < 1e-12
