"""Every variant that this GPU has against the formula in float64, and what it must not write."""

import logging
import random
from collections.abc import Callable

import pytest
import torch

from capgate import compat
from capgate.kernels import fp8_mqa_logits
from capgate.kernels.mqa_logits.operation import operation
from support import judge

pytestmark = pytest.mark.gpu

SMALL_GRID = [(1, 1), (1, 16), (1, 113), (17, 76), (61, 113), (61, 1024), (128, 1024), (1024, 1024), (1024, 1560)]
MODES = {"clean": (True, None), "unclean": (False, None), "compressed": (False, 100)}
modes = pytest.mark.parametrize(("clean_logits", "max_window"), MODES.values(), ids=MODES)

Check = Callable[..., torch.Tensor]


def test_a_tuned_variant_is_taken_where_matrix_instructions_read_fp8(gpu: torch.device) -> None:
    """Known bug 13: Without it every test below could pass on the reference alone."""
    caps = compat.capabilities(gpu)
    if not (caps.fp8_e4m3fn or caps.fp8_e4m3fnuz):
        pytest.skip(caps.why("fp8_e4m3fn"))
    assert operation.select(operation.example(gpu)).name != "reference", operation.explain(operation.example(gpu))


@modes
@pytest.mark.parametrize(("rows", "keys"), SMALL_GRID, ids=lambda size: str(size))
def test_small_grid(check: Check, fp8: torch.dtype, rows: int, keys: int, clean_logits: bool, max_window: int | None) -> None:
    call = judge.make_call(rows, keys, 64, 128, "packed", dtype=fp8, device="cuda")
    check(call, clean_logits=clean_logits, max_window=max_window)


@pytest.mark.parametrize(
    ("heads", "dim"),
    [(1, 32), (3, 64), (16, 128), (32, 32), (64, 64), (100, 32), (100, 128), (127, 64), (128, 128)],
    ids=lambda size: str(size),
)
def test_heads_and_dims(check: Check, fp8: torch.dtype, heads: int, dim: int) -> None:
    check(judge.make_call(61, 1024, heads, dim, "ragged", dtype=fp8, device="cuda"))


@pytest.mark.parametrize(("clean_logits", "compressed"), [(True, False), (False, True)], ids=["clean", "compressed"])
@pytest.mark.parametrize("windows", ["suffix", "context-parallel"])
@pytest.mark.parametrize("dim", [32, 64, 128])
@pytest.mark.parametrize("heads", [32, 64])
def test_upstream_grid(
    check: Check, fp8: torch.dtype, heads: int, dim: int, windows: str, clean_logits: bool, compressed: bool
) -> None:
    call = judge.make_call(2048, 8192, heads, dim, windows, dtype=fp8, device="cuda")
    max_window = int((call.ends - call.starts).max()) if compressed else None
    columns = max_window or 8192
    out = judge.sentinels(2048, columns, "cuda", gap=-columns % 256)
    check(call, clean_logits=clean_logits, max_window=max_window, out=out)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e4m3fnuz"])
def test_both_fp8_formats(check: Check, name: str) -> None:
    """Known bug 4: FN / FNUZ confusion: where a variant takes the format that is not the GPU's own, values are kept."""
    check(judge.make_call(61, 1024, 64, 128, "ragged", dtype=getattr(torch, name), device="cuda"))


def test_twenty_repeats_are_bitwise_equal(variant: str, fp8: torch.dtype) -> None:
    call = judge.make_call(515, 4100, 64, 128, "ragged", dtype=fp8, device="cuda")
    first, *others = (fp8_mqa_logits(*call, variant=variant).view(torch.int32) for _ in range(20))
    assert all(torch.equal(first, other) for other in others)


LAYOUTS = {
    "aligned-rows": {"gap": 106},
    "padded-rows": {"gap": 7, "offset": 9},
    "columns-first": {"order": (1, 0), "gap": 3, "offset": 1},
    "every-third-column": {"step": 3, "offset": 2},
}


@pytest.mark.parametrize("windows", ["full", "causal", "packed", "ragged", "extreme", "empty"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_only_cells_that_should_be_are_written(check: Check, fp8: torch.dtype, layout: dict[str, object], windows: str) -> None:
    """Every word of the output's memory starts as a different NaN."""
    call = judge.make_call(37, 406, 64, 128, windows, dtype=fp8, device="cuda")
    for clean_logits, max_window in MODES.values():
        out = judge.sentinels(37, max_window or 406, "cuda", **layout)
        check(call, clean_logits=clean_logits, max_window=max_window, out=out)


@pytest.mark.parametrize("seed", range(4))
def test_operands_of_any_strides(check: Check, fp8: torch.dtype, seed: int) -> None:
    choose = random.Random(seed)
    call = judge.make_call(37, 300, 48, 64, "ragged", dtype=fp8, device="cuda", seed=seed)
    call = call._replace(k_scale=call.k_scale[:, None])

    def laid_out(tensor: torch.Tensor) -> torch.Tensor:
        order = choose.sample(range(tensor.ndim), tensor.ndim)
        return judge.laid_out(tensor, order, choose.choice([0, 1, 7]), choose.choice([1, 2, 3]), choose.choice([0, 1, 16]))

    for clean_logits, max_window in MODES.values():
        out = judge.sentinels(
            37, max_window or 300, "cuda", order=choose.sample(range(2), 2), gap=seed, step=choose.choice([1, 2])
        )
        check(type(call)(*map(laid_out, call)), clean_logits=clean_logits, max_window=max_window, out=out)


@pytest.mark.parametrize("heads", [3, 64])
@pytest.mark.parametrize("octet", [0x7F, 0xFF], ids=["nan", "negative-nan"])
@pytest.mark.parametrize("operand", ["q", "k"])
def test_nan_reaches_the_logits_it_touches_and_no_others(
    variant: str, take: Callable[[object], None], fp8: torch.dtype, operand: str, octet: int, heads: int
) -> None:
    call = judge.make_call(37, 300, heads, 128, "full", dtype=fp8, device="cuda")
    take(call)
    octet = 0x80 if fp8 == torch.float8_e4m3fnuz else octet
    clean = fp8_mqa_logits(*call, variant=variant)
    getattr(call, operand).view(torch.uint8)[20].view(-1)[77] = octet
    touched = torch.zeros(37, 300, dtype=torch.bool, device="cuda")
    touched[(20, slice(None)) if operand == "q" else (slice(None), 20)] = True
    logits = fp8_mqa_logits(*call, variant=variant)
    assert torch.equal(logits.isnan(), touched)
    assert torch.equal(logits[~touched], clean[~touched])


def test_bug_10_the_reference_in_place_of_a_tuned_variant_says_so_once(
    gpu: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    """Known bug 10: Silent fallback. e4m3fnuz on a GPU that reads e4m3fn: right, slow, and announced with the reason."""
    caps = compat.capabilities(gpu)
    if caps.fp8_e4m3fnuz:
        pytest.skip(f"e4m3fnuz is this GPU's own format: {caps.why('fp8_e4m3fnuz')}")
    call = judge.make_call(17, 76, 64, 128, dtype=torch.float8_e4m3fnuz, device="cuda")
    with compat.override(), caplog.at_level(logging.WARNING, logger="capgate"):
        for _ in range(3):
            judge.check(call, None)
    (record,) = (record for record in caplog.records if record.name == "capgate")
    assert "fp8_mqa_logits takes reference" in record.getMessage()
    assert caps.why("fp8_e4m3fnuz") in record.getMessage()
