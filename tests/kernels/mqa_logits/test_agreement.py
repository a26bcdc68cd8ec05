"""Each variant against the formula in float64, on the small grid of the upstream projects' tests."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from capgate import compat
from capgate.kernels import fp8_mqa_logits
from capgate.kernels.common import reference as tiles
from capgate.kernels.mqa_logits import reference
from capgate.kernels.mqa_logits.operands import Inputs
from support import judge

# (rows, keys) of that small grid, with every head count and dimension at least once.
SMALL_GRID = [
    (1, 1, 1, 32),
    (1, 1, 64, 64),
    (1, 16, 3, 64),
    (1, 16, 128, 32),
    (1, 113, 16, 128),
    (1, 113, 100, 128),
    (17, 76, 32, 32),
    (17, 76, 3, 128),
    (17, 76, 100, 64),
    (61, 113, 32, 64),
    (61, 113, 64, 128),
]
small_grid = pytest.mark.parametrize(("rows", "keys", "heads", "dim"), SMALL_GRID, ids=lambda size: str(size))
modes = pytest.mark.parametrize(
    ("clean_logits", "max_window"), [(True, None), (False, None), (False, 50)], ids=["clean", "unclean", "compressed"]
)


@pytest.fixture(params=["float8_e4m3fn", "float8_e4m3fnuz"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Both fp8 formats; a variant that cannot take one here must say so."""
    if request.param == "float8_e4m3fnuz" and request.getfixturevalue("variant") == "classic":
        caps = compat.capabilities("cpu")
        if not caps.interpreter_fp8_fnuz:
            pytest.skip(caps.why("interpreter_fp8_fnuz"))
    return getattr(torch, request.param)


@pytest.mark.dealt("clean_logits", "max_window")
@modes
@small_grid
def test_logits_agree_on_the_small_grid(
    variant: str, rows: int, keys: int, heads: int, dim: int, clean_logits: bool, max_window: int | None
) -> None:
    call = judge.make_call(rows, keys, heads, dim, "packed")
    judge.check(call, variant, clean_logits=clean_logits, max_window=max_window)


@modes
def test_logits_agree_in_both_fp8_formats(variant: str, dtype: torch.dtype, clean_logits: bool, max_window: int | None) -> None:
    call = judge.make_call(17, 76, 32, 64, "ragged", dtype=dtype)
    judge.check(call, variant, clean_logits=clean_logits, max_window=max_window)


@pytest.mark.any_triton
@pytest.mark.parametrize(
    ("rows", "keys", "heads", "dim"),
    [(61, 1024, 100, 64), (128, 1024, 64, 128), (1024, 1560, 3, 32)],
    ids=lambda size: str(size),
)
def test_reference_agrees_on_larger_calls(rows: int, keys: int, heads: int, dim: int) -> None:
    judge.check(judge.make_call(rows, keys, heads, dim, "causal"), "reference")


@pytest.mark.parametrize("keys", [1, 2, 20])
def test_scales_may_be_a_column(variant: str, keys: int) -> None:
    call = judge.make_call(3, keys, 16, 32, "full")
    flat = fp8_mqa_logits(*call, variant=variant)
    column = judge.check(call._replace(k_scale=call.k_scale[:, None]), variant)
    assert torch.equal(column, flat)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_sign_of_the_weights_is_the_sign_of_the_logits(variant: str, sign: float) -> None:
    call = judge.make_call(5, 20, 16, 32, "full")
    logits = judge.check(call._replace(weights=call.weights.abs() * sign), variant)
    assert (logits * sign > 0).all()


def test_repeats_are_bitwise_equal(variant: str) -> None:
    call = judge.make_call(17, 76, 64, 128, "ragged")
    first, *others = (fp8_mqa_logits(*call, variant=variant).view(torch.int32) for _ in range(4))
    assert all(torch.equal(first, other) for other in others)


@modes
def test_a_given_out_and_a_new_one_hold_the_same_bits(variant: str, clean_logits: bool, max_window: int | None) -> None:
    call = judge.make_call(17, 76, 32, 64, "ragged")
    given = judge.check(call, variant, clean_logits=clean_logits, max_window=max_window)
    new = fp8_mqa_logits(*call, clean_logits=clean_logits, max_window=max_window, variant=variant)
    written = judge.formula(call, max_window).inside | clean_logits
    assert torch.equal(new[written], given[written])


def test_the_default_on_cpu_tensors_is_the_reference() -> None:
    call = judge.make_call(17, 76, 64, 128)
    assert torch.equal(fp8_mqa_logits(*call), fp8_mqa_logits(*call, variant="reference"))


def test_classic_without_the_interpreter_or_a_gpu_is_refused_with_the_reason() -> None:
    call = judge.make_call(1, 1, 16, 32)
    with (
        compat.override(disable=["interpreter"]),
        pytest.raises(compat.CapabilityError, match=r"needs a GPU: found no GPU.*disabled by override"),
    ):
        fp8_mqa_logits(*call, variant="classic")


@pytest.mark.usefixtures("interpreter")
def test_classic_says_why_it_cannot_interpret_fnuz() -> None:
    caps = compat.capabilities("cpu")
    if caps.interpreter_fp8_fnuz:
        pytest.skip(f"this Triton's interpreter reads e4m3fnuz: {caps.why('interpreter_fp8_fnuz')}")
    call = judge.make_call(1, 1, 16, 32, dtype=torch.float8_e4m3fnuz)
    with pytest.raises(compat.CapabilityError, match=r"'classic': needs Triton 3\.8's interpreter: found 3\.\d"):
        fp8_mqa_logits(*call, variant="classic")


@pytest.mark.parametrize("operand", ["q", "k"])
def test_nan_reaches_the_logits_it_touches_and_no_others(operand: str) -> None:
    """Of the reference only: Triton's interpreter decodes fp8 NaN as 480; tests/gpu asks the same of the other variants."""
    call = judge.make_call(5, 20, 16, 32, "full")
    clean = fp8_mqa_logits(*call, variant="reference")
    getattr(call, operand).view(torch.uint8)[2].view(-1)[7] = 0x7F
    touched = torch.zeros(5, 20, dtype=torch.bool)
    touched[(2, slice(None)) if operand == "q" else (slice(None), 2)] = True
    logits = fp8_mqa_logits(*call, variant="reference")
    assert torch.equal(logits.isnan(), touched)
    assert torch.equal(logits[~touched], clean[~touched])


class LargestResult(TorchDispatchMode):
    """Notes the bytes of the largest tensor that any operator returns."""

    nbytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):  # type: ignore[no-untyped-def]
        result = function(*arguments, **keywords or {})
        if isinstance(result, torch.Tensor):
            self.nbytes = max(self.nbytes, result.untyped_storage().nbytes())
        return result


@pytest.mark.any_triton
@modes
def test_reference_bounds_its_memory_and_agrees_in_small_chunks(
    monkeypatch: pytest.MonkeyPatch, clean_logits: bool, max_window: int | None
) -> None:
    call = judge.make_call(61, 113, 16, 32, "ragged")
    monkeypatch.setattr(tiles, "SCORE_BYTES", 2**15)
    monkeypatch.setattr(tiles, "KEY_TILE", 32)
    out = judge.check(call, "reference", clean_logits=clean_logits, max_window=max_window)
    with LargestResult() as largest:
        keywords = {"clean_logits": clean_logits, "compressed": max_window is not None}
        reference.launch(Inputs(*call), torch.empty_like(out), **keywords)
    operands = max(tensor.untyped_storage().nbytes() for tensor in (*call, out))
    assert largest.nbytes <= max(operands, 2**15)


@pytest.mark.any_triton
@pytest.mark.parametrize("windows", ["packed", "ragged"])
def test_reference_in_float64_is_the_formula_rounded_once(windows: str) -> None:
    call = judge.make_call(17, 76, 64, 128, windows)
    out = torch.empty(17, 76)
    reference.launch(Inputs(*call), out, clean_logits=True, compressed=False, accumulate=torch.float64)
    answer = judge.formula(call)
    error = (out.double() - answer.logits)[answer.inside].abs()
    assert (error <= (2.0**-24 * answer.logits[answer.inside].abs() + 2.0**-40 * answer.magnitude[answer.inside])).all()
