"""Which problems a variant takes: the rules about fp8 formats, Triton's interpreter and sizes, once for all operations.

A rule returns None, or the reason why not. It asks capabilities, and needs neither torch nor Triton.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from capgate import compat

MIN_HEADS, MAX_HEADS = 1, 128
MAX_NEXT = 65535  # rows of a request in decode: a grid's second dimension, where each program scores a row or more
DIMS = (32, 64, 128)
E4M3FN, E4M3FNUZ = "float8_e4m3fn", "float8_e4m3fnuz"
LARGEST = {E4M3FN: 448, E4M3FNUZ: 240}
FLOAT32, BFLOAT16 = "float32", "bfloat16"  # of weights and logits
RELU_EXPONENT = 26  # of 2, which products that a clamp is the relu of have to stay below
BF16 = "-bf16"  # behind the name of an output mode: weights and logits are bfloat16

Output = TypeVar("Output")


def padded_heads(heads: int) -> int:
    """Heads of a row in the matrix instructions: a power of two, at least 16; the added heads have weight 0."""
    return max(16, 1 << (heads - 1).bit_length())


def key_products(device: Any, heads: int, dim: int) -> int:
    """Multiply-adds that fp8 matrix instructions make for one key of a row: gfx1250 has none of fewer than 64 dims."""
    return padded_heads(heads) * (max(dim, 64) if compat.capabilities(device).gfx1250 else dim)


def in_packets(queries: Any) -> bool:
    """Whether 16 adjacent dims of each head, of one byte each, can be loaded at a time."""
    *steps, step = queries.stride()
    return step == 1 and not any(number % 16 for number in (*steps, queries.data_ptr()))


def native_fp8(device: Any) -> str:
    """The e4m3 format that the device's matrix instructions read: "float8_e4m3fnuz" on gfx942, else "float8_e4m3fn"."""
    return E4M3FNUZ if compat.capabilities(device).fp8_e4m3fnuz else E4M3FN


def product_options(device: Any, dtype: str) -> dict[str, bool]:
    """What a classic kernel is told of the device's arithmetic.

    TO_FNUZ, whether operands of ``dtype`` are converted to the e4m3fnuz that gfx942's MFMA reads, and MAXIMUM, whether there is
    a maximum that keeps NaN.
    """
    gfx942 = compat.capabilities(device).target.label == "gfx942"
    return {"TO_FNUZ": gfx942 and dtype == E4M3FN, "MAXIMUM": not gfx942}


def mx_product_options(device: Any, dim: int) -> dict[str, bool]:
    """What a classic kernel of MX formats is told of the device's arithmetic.

    SCALED, whether tl.dot_scaled makes the products: where it becomes block-scaled matrix instructions, which are of 64 dims at
    least. Interpreters either lack it or take a NaN of a scale for an infinity. MAXIMUM, as in :func:`product_options`.
    """
    caps = compat.capabilities(device)
    scaled = bool(caps.block_scaled_dot) and not caps.interpreter and dim >= 64
    return {"SCALED": scaled, "MAXIMUM": product_options(device, E4M3FN)["MAXIMUM"]}


def packs_relu(device: Any, dtype: str, dim: int) -> bool:
    """Whether the relu of two products is one packed instruction, a clamp to [0, 1] of what is 2**26 times smaller.

    That takes a capability, and products that cannot reach 2**26: 448 * 448 * D stays below it up to 334 dims.
    """
    return LARGEST[dtype] ** 2 * dim < 2**RELU_EXPONENT and compat.capabilities(device).packed_clamp


def check_sizes(heads: int, dim: int) -> None:
    """Raise ValueError for sizes of a query that no variant takes."""
    if not MIN_HEADS <= heads <= MAX_HEADS:
        raise ValueError(f"heads: got {heads}, needs {MIN_HEADS} to {MAX_HEADS}")
    if dim not in DIMS:
        raise ValueError(f"dim: got {dim}, needs one of {', '.join(map(str, DIMS))}")


def output_of(mode: str, modes: Mapping[str, Output]) -> tuple[Output, str]:
    """What an output mode means, one of ``modes`` or one with BF16 behind it, and the dtype of its weights and logits.

    ValueError for a mode that does not exist.
    """
    name = mode.removesuffix(BF16)
    if name not in modes:
        raise ValueError(f"mode: got {mode!r}, needs one of {', '.join(modes)}, each also with {BF16} behind it")
    return modes[name], FLOAT32 if name == mode else BFLOAT16


def needs_e4m3fn(device: Any, dtype: str) -> str | None:
    """For kernels whose matrix instructions read e4m3fn alone."""
    return None if dtype == E4M3FN else compat.capabilities(device).why("fp8_e4m3fnuz")


def needs_64_dims(dim: int) -> str | None:
    """For kernels of MX formats, whose matrix instructions are block-scaled."""
    return None if dim >= 64 else f"needs 64 dims or 128, as the f8f6f4 instruction has: found {dim}"


def needs_near_blocks(direct_keys: bool, purpose: str) -> str | None:
    """For kernels that take a cache's blocks in packets of 16 bytes, as :func:`.cache.copies_directly` says of a call."""
    if direct_keys:
        return None
    return (
        "needs 16-byte aligned blocks a multiple of 16 bytes apart, those of no multiple of 64 keys within 2 GiB, "
        f"and weights and table entries near each other, {purpose}"
    )


def classic_runs(device: Any) -> str | None:
    """Whether classic Triton kernels can run: on a GPU that Triton knows, or in its interpreter."""
    caps = compat.capabilities(device)
    if caps.interpreter:
        return _interpreter_loops(caps)
    if not caps.gpu:
        return f"{caps.why('gpu')}; on the CPU {caps.why('interpreter')}"
    return None if caps.known_target else caps.why("known_target")


def classic_scores(device: Any, dtype: str) -> str | None:
    """As :func:`classic_runs`, and whether products of ``dtype`` come out right.

    gfx942 reads e4m3fn bytes as e4m3fnuz, at half the value; the kernels convert. No other architecture converts.
    """
    caps = compat.capabilities(device)
    if caps.interpreter and dtype == E4M3FNUZ and not caps.interpreter_fp8_fnuz:
        return caps.why("interpreter_fp8_fnuz")
    reason = classic_runs(device)
    if reason is not None or caps.interpreter or caps.fp8_e4m3fnuz:
        return reason
    if dtype == E4M3FN:
        return None if caps.fp8_e4m3fn else caps.why("fp8_e4m3fn")
    return caps.why("fp8_e4m3fnuz")


def interpreted_when_named(device: Any) -> str | None:
    """Of classic Triton where there is no GPU: it runs only when it is named."""
    on_gpu = compat.capabilities(device).gpu
    return None if on_gpu else "would run in Triton's interpreter, which is slow; name it to use it"


def _interpreter_loops(caps: compat.Capabilities) -> str | None:
    import numpy

    if numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0" and not caps.interpreter_numpy_24:
        return f"{caps.why('interpreter_numpy_24')} with numpy {numpy.__version__}; numpy<2.4 serves"
    return None
