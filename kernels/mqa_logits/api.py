"""The public function: checks, allocation, and dispatch through an operator that torch.compile and CUDA graphs understand."""

from functools import partial

import torch

from capgate import compat

from ..common.checks import check_apart, check_choice, check_flag, check_integer, check_output, check_variant
from ..common.logits import FLOATS, FP8, LOGITS, empty_logits, mappable
from ..common.torch_ops import register
from .operands import OPERANDS, Inputs
from .operation import FEW_PRODUCTS, Problem, operation

REPEATS = compat.Repeats(operation)


def fp8_mqa_logits(
    q: torch.Tensor,
    k: torch.Tensor,
    k_scale: torch.Tensor,
    weights: torch.Tensor,
    starts: torch.Tensor,
    ends: torch.Tensor,
    *,
    clean_logits: bool = True,
    max_window: int | None = None,
    logits_dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
    variant: str | None = None,
) -> torch.Tensor:
    """Score every query against every key in its window, for the sparse-attention indexer of DeepSeek-V3.2 and V4.

    ``logits[i, j] = k_scale[j] * sum_h weights[i, h] * relu(dot(q[i, h], k[j]))``

    for ``max(starts[i], 0) <= j < min(ends[i], N)``, the row's window.

    Parameters
    ----------
    q : torch.Tensor, shape (S, H, D), float8_e4m3fn or float8_e4m3fnuz
        Queries; their scale is folded into ``weights``. H is 1 to 128, D is 32, 64 or 128.
    k : torch.Tensor, shape (N, D), q's dtype
        Keys.
    k_scale : torch.Tensor, shape (N,) or (N, 1), float32
        One scale for each key.
    weights : torch.Tensor, shape (S, H), float32 or bfloat16
        Weight of each head; may be negative.
    starts, ends : torch.Tensor, shape (S,), int32
        Each row's window of keys. Empty and inverted windows, starts below 0 and ends above N are fine.
    clean_logits : bool
        True sets every cell outside the row's window to -inf. False leaves those cells as they are, which saves writing them.
    max_window : int, optional
        Compressed output of this many columns: column j of row i means key ``starts[i] + j``; keys past the last column are
        left out. Needs ``clean_logits=False``.
    logits_dtype : torch.dtype
        Of a new output: float32, or bfloat16, whose logits are the float32 ones rounded to the nearest, ties to even. With
        ``out`` its own dtype counts; float32 then goes with either, and bfloat16 with bfloat16 alone.
    out : torch.Tensor, shape (S, N) or (S, max_window), float32 or bfloat16, optional
        Where to write. A new one is allocated otherwise, with rows padded to 1024 bytes: ``stride(0)`` need not be N.
    variant : str, optional
        Take this variant ("classic", "reference", ...) or raise.

    All tensors are on one device and may have any strides, except that ``out`` may share memory with no other tensor, and its
    rows not with each other. NaN in ``q`` or ``k`` propagates to the logits it touches. Logits have no gradients: a tensor
    that requires grad is an error unless grad is off, and so is one that ``torch.func`` or forward AD differentiates by.

    Returns
    -------
    torch.Tensor
        ``out``, or the new tensor of its shape.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above; nothing has been written.
    capgate.compat.CapabilityError
        The variant that ``variant`` or CAPGATE_VARIANT names cannot run here.
    """
    inputs = Inputs(q, k, k_scale, weights, starts, ends)
    call = REPEATS.call((*inputs, out), clean_logits, max_window, logits_dtype, variant)
    if call is not None:
        done: torch.Tensor | None = REPEATS.launched(call, out, partial(_new, inputs, max_window, logits_dtype))
        if done is not None:
            return done
    OPERANDS.check(inputs, "the logits")
    check_flag("clean_logits", clean_logits)
    if max_window is not None:
        max_window = check_integer("max_window", max_window, 0)
        if clean_logits:
            raise ValueError("clean_logits: got True with max_window, needs False: compressed rows are not cleaned")
    check_choice("logits_dtype", logits_dtype, LOGITS)
    check_variant("variant", variant, operation)
    if out is not None:
        check_output(out, _shape(inputs, max_window), q.device, logits_dtype, LOGITS)
    if k_scale.ndim == 2:
        inputs = inputs._replace(k_scale=k_scale[:, 0])
    compressed = max_window is not None
    if out is None:
        logits: torch.Tensor = torch.ops.capgate.fp8_mqa_logits(*inputs, clean_logits, max_window, logits_dtype, variant)
    else:
        torch.ops.capgate.fp8_mqa_logits_out(*inputs, out, clean_logits, compressed, variant)
        logits = out
    if call is not None:
        problem = partial(describe, inputs, logits, clean_logits, compressed)
        REPEATS.keep(call, problem, (inputs, logits), variant, clean_logits=clean_logits, compressed=compressed)
    return logits


def kept(inputs: Inputs, out: torch.Tensor, clean_logits: bool, compressed: bool, variant: str | None) -> compat.Bound | None:
    """The kept launches of calls like this one, which has run; None where there are none."""
    problem = describe(inputs, out, clean_logits, compressed)
    return operation.kept(problem, inputs, out, variant=variant, clean_logits=clean_logits, compressed=compressed)


def copies_directly(k: torch.Tensor, k_scale: torch.Tensor) -> bool:
    """Whether 16-byte packets of keys can go straight to LDS: aligned rows of adjacent elements, less than 8 MiB apart."""
    row_step, element_step = k.stride()
    aligned = element_step == 1 and row_step % 16 == 0 and k.data_ptr() % 16 == 0
    return bool(aligned and max(row_step, 4 * k_scale.stride(0)) < 2**23)  # a tile's offsets are 32 bits wide


def describe(inputs: Inputs, out: torch.Tensor, clean_logits: bool, compressed: bool) -> Problem:
    """The class of calls that one with these operands belongs to."""
    q = inputs.q
    direct_keys = copies_directly(inputs.k, inputs.k_scale)
    tensor_maps = all(mappable(operand) for operand in (q, inputs.k, inputs.k_scale, inputs.weights))
    if clean_logits:
        tensor_maps = tensor_maps and out.shape[1] * out.itemsize >= 16 and mappable(out)
    floats = (FLOATS[inputs.weights.dtype], FLOATS[out.dtype])
    few = q.shape[0] * inputs.k.shape[0] <= FEW_PRODUCTS
    modes = (clean_logits, compressed, direct_keys, tensor_maps)
    return Problem(q.device, q.shape[1], q.shape[2], FP8[q.dtype], *modes, *floats, few)


def _launch_into(inputs: Inputs, out: torch.Tensor, clean_logits: bool, compressed: bool, variant: str | None) -> None:
    """Operator ``capgate::fp8_mqa_logits_out``: as :func:`_launch`, ``out`` being the caller's."""
    check_apart("out", out, inputs)
    _launch(inputs, out, clean_logits, compressed, variant)


def _launch(inputs: Inputs, out: torch.Tensor, clean_logits: bool, compressed: bool, variant: str | None) -> None:
    """Run the chosen variant, unless there is no cell to write."""
    problem = describe(inputs, out, clean_logits, compressed)
    if out.numel() == 0:  # a variant that cannot run is an error for empty calls too, but no operand can be in its way
        operation.select(problem._replace(direct_keys=True, tensor_maps=True), variant)
        return
    operation(problem, inputs, out, variant=variant, clean_logits=clean_logits, compressed=compressed)


def _launch_new(
    inputs: Inputs, clean_logits: bool, max_window: int | None, logits_dtype: torch.dtype, variant: str | None
) -> torch.Tensor:
    """Operator ``capgate::fp8_mqa_logits``: the same into a new tensor."""
    out = _new(inputs, max_window, logits_dtype)
    _launch(inputs, out, clean_logits, max_window is not None, variant)
    return out


def _empty(
    inputs: Inputs, clean_logits: bool, max_window: int | None, logits_dtype: torch.dtype, variant: str | None
) -> torch.Tensor:
    return _new(inputs, max_window, logits_dtype)


def _new(inputs: Inputs, max_window: int | None, logits_dtype: torch.dtype) -> torch.Tensor:
    return empty_logits(_shape(inputs, max_window), inputs.q.device, logits_dtype)


def _shape(inputs: Inputs, max_window: int | None) -> tuple[int, int]:
    return inputs.q.shape[0], inputs.k.shape[0] if max_window is None else max_window


_NEW = "bool clean_logits, SymInt? max_window, ScalarType logits_dtype, str? variant"
register("fp8_mqa_logits", OPERANDS, _NEW, "Tensor", _launch_new, _empty)
register("fp8_mqa_logits_out", OPERANDS, "Tensor(a!) out, bool clean_logits, bool compressed, str? variant", "()", _launch_into)
