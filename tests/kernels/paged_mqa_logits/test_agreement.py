"""Each variant of the paged logits against the formula in float64, and what it must not write."""

import pytest
import torch

from capgate import compat
from capgate.kernels import fp8_paged_mqa_logits, paged_mqa_schedule
from capgate.kernels.common import reference as tiles
from capgate.kernels.paged_mqa_logits import reference
from capgate.kernels.paged_mqa_logits.operands import Inputs
from support import paged

LENS = [150, 0, 64, 1, 129, 260]  # of requests; the longest spans three chunks of a schedule
cleaning = pytest.mark.parametrize("clean_logits", [True, False], ids=["clean", "unclean"])


@pytest.mark.dealt("clean_logits")
@cleaning
@pytest.mark.parametrize("block", [1, 16, 32, 64, 128, 256])
def test_every_block_size(variant: str, block: int, clean_logits: bool) -> None:
    paged.check(paged.make_call(LENS, block=block), variant, 300, clean_logits=clean_logits)


@pytest.mark.dealt
@pytest.mark.parametrize("block", [48, 96, 112, 192, 208])
def test_block_sizes_that_are_no_powers_of_two(variant: str, block: int) -> None:
    """Tiles of 64 keys begin anywhere in such a block and reach into the next one."""
    paged.check(paged.make_call([150, 0, 260], block=block), variant, 300)
    paged.check(paged.without_blocks(paged.make_call([450], block=block)), variant, 440)


@pytest.mark.dealt("clean_logits")
@cleaning
@pytest.mark.parametrize(("block", "dim", "gap"), [(16, 32, 4), (48, 64, 0), (64, 128, 48), (128, 32, 0), (256, 64, 16)])
def test_preshuffled_caches(variant: str, block: int, dim: int, gap: int, clean_logits: bool) -> None:
    call = paged.make_call([150, 0, 33, 300], 2, 3, dim, block, gap=gap, layout="preshuffled")
    out = paged.check(call, variant, 310, clean_logits=clean_logits, layout="preshuffled")
    flat = paged.make_call([150, 0, 33, 300], 2, 3, dim, block, gap=gap)
    assert torch.equal(paged.check(flat, variant, 310, clean_logits=clean_logits).view(torch.int32), out.view(torch.int32))
    paged.check(paged.without_blocks(call), variant, 310, clean_logits=clean_logits, layout="preshuffled")


@pytest.mark.dealt
@pytest.mark.parametrize("next_n", [*range(1, 10), 16, 33])
def test_every_next_n(variant: str, next_n: int) -> None:
    """Draft rows see one key less each, so that the first rows of a short request are empty; rows fill several programs."""
    lens = [70, 3, next_n, 0, next_n - 1]
    paged.check(paged.make_call(lens, next_n, heads=3), variant, 75, clean_logits=next_n % 2 == 0)


@pytest.mark.dealt("clean_logits")
@cleaning
@pytest.mark.parametrize("next_n", [1, 3, 4])
def test_lengths_of_each_row(variant: str, next_n: int, clean_logits: bool) -> None:
    """In any order: a first row may see more than the last, and nothing says that they differ by one."""
    lens = [[150 - 7 * t, 3, 0, 64][:next_n] for t in range(3)] + [[0, 129, -5, 1][:next_n]]
    paged.check(paged.make_call(lens, next_n, heads=3, block=16), variant, 160, clean_logits=clean_logits)


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("heads", "dim", "next_n"),
    [(1, 32, 1), (3, 128, 2), (16, 64, 8), (32, 128, 2), (64, 128, 1), (64, 64, 3), (100, 32, 2), (128, 128, 1)],
    ids=lambda size: str(size),
)
def test_heads_and_dims(variant: str, heads: int, dim: int, next_n: int) -> None:
    paged.check(paged.make_call([70, 130, 5], next_n, heads, dim), variant, 130)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e4m3fnuz"])
def test_both_fp8_formats(variant: str, name: str) -> None:
    caps = compat.capabilities("cpu")
    if name == "float8_e4m3fnuz" and variant == "classic" and not caps.interpreter_fp8_fnuz:
        pytest.skip(caps.why("interpreter_fp8_fnuz"))
    paged.check(paged.make_call([70, 0, 130], 2, 32, 64, dtype=getattr(torch, name)), variant, 140)


@pytest.mark.dealt
@pytest.mark.parametrize("gap", [4, 48, 1000])
@pytest.mark.parametrize("block", [1, 64])
def test_blocks_may_lie_further_apart_than_they_are_long(variant: str, block: int, gap: int) -> None:
    paged.check(paged.make_call([150, 7, 64], block=block, gap=gap), variant, 160)


@pytest.mark.dealt("clean_logits")
@pytest.mark.parametrize("workers", [1, 3, 30])
@cleaning
def test_any_number_of_workers_gives_the_same_bits(variant: str, workers: int, clean_logits: bool) -> None:
    call = paged.make_call(LENS, 2)
    schedule = paged_mqa_schedule(call.context_lens, 64, workers)
    out = paged.check(call, variant, 270, clean_logits=clean_logits, schedule=schedule)
    own = paged.check(call, variant, 270, clean_logits=clean_logits)
    assert torch.equal(out.view(torch.int32), own.view(torch.int32))


@pytest.mark.dealt("clean_logits", "layout")
@cleaning
@pytest.mark.parametrize(
    "layout",
    [{"gap": 7, "offset": 9}, {"order": (1, 0), "gap": 3, "offset": 1}, {"step": 3, "offset": 2}],
    ids=["padded-rows", "columns-first", "every-third-column"],
)
def test_outputs_of_any_strides(variant: str, layout: dict[str, object], clean_logits: bool) -> None:
    out = paged.judge.sentinels(6, 150, **layout)
    paged.check(paged.make_call([70, 0, 149], 2), variant, 150, clean_logits=clean_logits, out=out)


def test_operands_of_any_strides(variant: str) -> None:
    laid_out = paged.judge.laid_out
    call = paged.make_call([70, 0, 149], 2, block=16)
    call = call._replace(
        q=laid_out(call.q, (2, 0, 3, 1), 5, 2, 3),
        weights=laid_out(call.weights, (1, 0), 3, 2),
        context_lens=laid_out(call.context_lens, step=3),
        block_table=laid_out(call.block_table, (1, 0), 1, 2, 5),
    )
    paged.check(call, variant, 150)


@pytest.mark.dealt("clean_logits")
@cleaning
@pytest.mark.parametrize("block", [1, 16, 32, 64, 128])
def test_keys_that_the_cache_lacks_score_as_minus_infinity(variant: str, block: int, clean_logits: bool) -> None:
    """Blocks below 0 or past the last are not read, wherever they stand in a request."""
    call = paged.make_call([150, 0, 64, 1], 2, block=block)
    paged.check(paged.without_blocks(call), variant, 160, clean_logits=clean_logits)
    nowhere = paged.without_blocks(call, 1)
    out = paged.check(nowhere, variant, 160, clean_logits=clean_logits)
    assert (out.isneginf() == (paged.formula(call, 160).inside | clean_logits)).all()


@cleaning
def test_missing_keys_whatever_the_others_hold(variant: str, clean_logits: bool) -> None:
    """What may be read in place of missing keys is NaN, and so are weights: neither reaches a logit of theirs."""
    call = paged.without_blocks(paged.make_call([150, 70], block=16))
    call.kv_cache.fill_(0xFF)
    call.weights.fill_(float("nan"))
    out = torch.zeros(2, 150)
    fp8_paged_mqa_logits(*call, max_context_len=150, clean_logits=clean_logits, out=out, variant=variant)
    answer = paged.formula(call, 150)
    absent = answer.inside & answer.logits.isneginf()
    assert absent.any()
    assert out[absent].isneginf().all()
    assert out[answer.inside & ~absent].isnan().all()


@cleaning
def test_a_cache_without_blocks_lacks_every_key(variant: str, clean_logits: bool) -> None:
    call = paged.make_call([70, 0, 5], 2)
    empty = call._replace(kv_cache=call.kv_cache[:0])
    paged.check(empty, variant, 100, clean_logits=clean_logits)


@cleaning
def test_nothing_to_score(variant: str, clean_logits: bool) -> None:
    for lens in ([0, 0, 0], [0, -1, -(2**31)]):
        paged.check(paged.make_call(lens, 3), variant, 50, clean_logits=clean_logits)
    no_table = paged.make_call([0, 0], spare_entries=0)
    assert no_table.block_table.shape == (2, 0)
    paged.check(no_table, variant, 50, clean_logits=clean_logits)
    no_blocks = no_table._replace(kv_cache=no_table.kv_cache[:0])
    paged.check(no_blocks, variant, 50, clean_logits=clean_logits)


@pytest.mark.parametrize("columns", [0, 5])
@pytest.mark.parametrize("lens", [[], [0, 0]], ids=["no-request", "no-keys"])
def test_no_cells(variant: str, lens: list[int], columns: int) -> None:
    call = paged.make_call(lens, 2)
    logits = fp8_paged_mqa_logits(*call, max_context_len=columns, variant=variant)
    assert logits.shape == (2 * len(lens), columns)


def test_a_given_out_and_a_new_one_hold_the_same_bits(variant: str) -> None:
    call = paged.make_call(LENS, 2)
    given = paged.check(call, variant, 300, clean_logits=True)
    new = fp8_paged_mqa_logits(*call, max_context_len=300, clean_logits=True, variant=variant)
    assert torch.equal(new, given)
    assert new.stride() == (512, 1)


def test_the_default_on_cpu_tensors_is_the_reference() -> None:
    call, keywords = paged.make_call([70, 9], 2), {"max_context_len": 80, "clean_logits": True}
    expected = fp8_paged_mqa_logits(*call, **keywords, variant="reference")
    assert torch.equal(fp8_paged_mqa_logits(*call, **keywords), expected)


@pytest.mark.any_triton
@cleaning
def test_reference_agrees_in_small_parts(monkeypatch: pytest.MonkeyPatch, clean_logits: bool) -> None:
    monkeypatch.setattr(tiles, "SCORE_BYTES", 2**15)
    monkeypatch.setattr(tiles, "KEY_TILE", 48)
    paged.check(paged.make_call(LENS, 3), "reference", 300, clean_logits=clean_logits)


@pytest.mark.any_triton
def test_reference_in_float64_is_the_formula_rounded_once() -> None:
    call, out = paged.make_call(LENS, 2, 64, 128), torch.empty(12, 260)
    reference.launch(Inputs(*call), out, clean_logits=False, accumulate=torch.float64)
    logits, inside, magnitude = paged.formula(call, 260)
    error = (out.double() - logits)[inside].abs()
    assert (error <= 2.0**-24 * logits[inside].abs() + 2.0**-40 * magnitude[inside]).all()
