"""The public function: checks, allocation, and dispatch through an operator that torch.compile and CUDA graphs understand."""

from functools import partial

import torch

from capgate import compat

from ..common.checks import check_apart, check_choice, check_flag, check_integer, check_output, check_variant
from ..common.logits import FLOATS, LOGITS, empty_logits
from ..common.mx_operands import FORMAT_OF, check_dims, dim_of
from ..common.torch_ops import register
from .operands import OPERANDS, Inputs
from .operation import Problem, operation

REPEATS = compat.Repeats(operation)


def mx_mqa_logits(
    q: torch.Tensor,
    q_scale: torch.Tensor,
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
    """Score every query against every key in its window, both in MX formats: the indexer of DeepSeek-V4 and V4.1 in FP4.

    ``logits[i, j] = sum_h weights[i, h] * relu(dot(q[i, h], k[j]))``, q and k being values times their scales,

    for ``max(starts[i], 0) <= j < min(ends[i], N)``, the row's window.

    Parameters
    ----------
    q : torch.Tensor, shape (S, H, Dq), float8_e4m3fn or uint8
        Queries, in mxfp8 or mxfp4. Dq is 32, 64 or 128: in mxfp8 D, which is 32, 64 or 128; in mxfp4 D / 2, D being 64 or 128,
        for two values share a byte, the even one in the low half. H is 1 to 128.
    q_scale : torch.Tensor, shape (S, H), int32
        Four UE8M0 bytes, the first lowest: byte g is e + 127 of the scale ``2**e`` of values 32 g to 32 g + 31.
        0xFF is a NaN. Bytes that D leaves over are not looked at.
    k : torch.Tensor, shape (N, Dk), float8_e4m3fn or uint8
        Keys of the same D, in either format, as q. Dk is 32, 64 or 128.
    k_scale : torch.Tensor, shape (N,), int32
        The scales of each key, as q's.
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

    ``quantize_mx_queries`` and ``quantize_mx_keys`` make q, k and their scales. A value times its scale may be lost below
    2**-126, and is infinite above float32's range.

    All tensors are on one device and may have any strides, except that ``out`` may share memory with no other tensor, and its
    rows not with each other. NaN in q, k or a scale propagates to the logits it touches. Logits have no gradients: a tensor
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
    inputs = Inputs(q, q_scale, k, k_scale, weights, starts, ends)
    call = REPEATS.call((*inputs, out), clean_logits, max_window, logits_dtype, variant)
    if call is not None:
        done: torch.Tensor | None = REPEATS.launched(call, out, partial(_new, inputs, max_window, logits_dtype))
        if done is not None:
            return done
    OPERANDS.check(inputs, "the logits")
    check_dims(q, k)
    check_flag("clean_logits", clean_logits)
    if max_window is not None:
        max_window = check_integer("max_window", max_window, 0)
        if clean_logits:
            raise ValueError("clean_logits: got True with max_window, needs False: compressed rows are not cleaned")
    check_choice("logits_dtype", logits_dtype, LOGITS)
    check_variant("variant", variant, operation)
    if out is not None:
        check_output(out, _shape(inputs, max_window), q.device, logits_dtype, LOGITS)
    compressed = max_window is not None
    if out is None:
        logits: torch.Tensor = torch.ops.capgate.mx_mqa_logits(*inputs, clean_logits, max_window, logits_dtype, variant)
    else:
        torch.ops.capgate.mx_mqa_logits_out(*inputs, out, clean_logits, compressed, variant)
        logits = out
    if call is not None:
        problem = partial(describe, inputs, logits, clean_logits, compressed)
        REPEATS.keep(call, problem, (inputs, logits), variant, clean_logits=clean_logits, compressed=compressed)
    return logits


def copies_directly(k: torch.Tensor, k_scale: torch.Tensor) -> bool:
    """Whether 16-byte packets of keys can go straight to LDS: aligned rows of adjacent elements, less than 8 MiB apart."""
    row_step, element_step = k.stride()
    aligned = element_step == 1 and row_step % 16 == 0 and k.data_ptr() % 16 == 0
    return bool(aligned and max(row_step, 4 * k_scale.stride(0)) < 2**23)  # a tile's offsets are 32 bits wide


def describe(inputs: Inputs, out: torch.Tensor, clean_logits: bool, compressed: bool) -> Problem:
    """The class of calls that one with these operands belongs to."""
    q, _, k, k_scale, weights, _, _ = inputs
    formats = (FORMAT_OF[q.dtype], FORMAT_OF[k.dtype])
    floats = (FLOATS[weights.dtype], FLOATS[out.dtype])
    direct_keys = copies_directly(k, k_scale)
    return Problem(q.device, q.shape[1], dim_of(q), *formats, clean_logits, compressed, direct_keys, *floats)


def _launch_into(inputs: Inputs, out: torch.Tensor, clean_logits: bool, compressed: bool, variant: str | None) -> None:
    """Operator ``capgate::mx_mqa_logits_out``: as :func:`_launch`, ``out`` being the caller's."""
    check_apart("out", out, inputs)
    _launch(inputs, out, clean_logits, compressed, variant)


def _launch(inputs: Inputs, out: torch.Tensor, clean_logits: bool, compressed: bool, variant: str | None) -> None:
    """Run the chosen variant, unless there is no cell to write."""
    problem = describe(inputs, out, clean_logits, compressed)
    if out.numel() == 0:  # a variant that cannot run is an error for empty calls too, but no operand can be in its way
        operation.select(problem._replace(direct_keys=True), variant)
        return
    operation(problem, inputs, out, variant=variant, clean_logits=clean_logits, compressed=compressed)


def _launch_new(
    inputs: Inputs, clean_logits: bool, max_window: int | None, logits_dtype: torch.dtype, variant: str | None
) -> torch.Tensor:
    """Operator ``capgate::mx_mqa_logits``: the same into a new tensor."""
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
register("mx_mqa_logits", OPERANDS, _NEW, "Tensor", _launch_new, _empty)
register("mx_mqa_logits_out", OPERANDS, "Tensor(a!) out, bool clean_logits, bool compressed, str? variant", "()", _launch_into)
