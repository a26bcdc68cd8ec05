"""The variants of fp8_mqa_logits, in the order in which they are tried, and the problems each of them takes."""

from typing import Any, NamedTuple

from capgate import compat

from ..launch import ExampleCall

MIN_HEADS, MAX_HEADS = 1, 128
DIMS = (32, 64, 128)
MODES = {"unclean": (False, False), "clean": (True, False), "compressed": (False, True)}  # clean_logits, compressed


class Problem(NamedTuple):
    """One class of calls.

    device : a ``torch.device``, or a target to ask about (``"hip:gfx950"``)
    dtype : of query and key, "float8_e4m3fn" or "float8_e4m3fnuz"
    compressed : whether column j means key ``starts[i] + j``
    direct_keys : whether keys can be copied straight to LDS: see :func:`.function.copies_directly`
    tensor_maps : whether a tensor map can describe each of q, k, k_scale and weights, and with clean_logits the output
    """

    device: Any
    heads: int
    dim: int
    dtype: str
    clean_logits: bool
    compressed: bool
    direct_keys: bool = True
    tensor_maps: bool = True


def padded_heads(heads: int) -> int:
    """Heads of a row in the matrix instructions: a power of two, at least 16; the added heads have weight 0."""
    return max(16, 1 << (heads - 1).bit_length())


def example(device: Any) -> Problem:
    """A DeepSeek-V4 prefill call (64 heads of 128 dims) with the fp8 format that the device's matrix instructions read."""
    native_fnuz = compat.capabilities(device).fp8_e4m3fnuz
    return Problem(device, 64, 128, "float8_e4m3fnuz" if native_fnuz else "float8_e4m3fn", False, False)


def example_problem(device: Any, heads: int, dim: int, mode: str, dtype: str | None = None) -> Problem:
    """As :func:`example` with these sizes, output mode (a key of MODES) and dtype; ValueError for what does not exist."""
    if not MIN_HEADS <= heads <= MAX_HEADS:
        raise ValueError(f"heads: got {heads}, needs {MIN_HEADS} to {MAX_HEADS}")
    if dim not in DIMS:
        raise ValueError(f"dim: got {dim}, needs one of {', '.join(map(str, DIMS))}")
    if mode not in MODES:
        raise ValueError(f"mode: got {mode!r}, needs one of {', '.join(MODES)}")
    clean_logits, compressed = MODES[mode]
    native = example(device)
    return Problem(device, heads, dim, dtype or native.dtype, clean_logits, compressed)


def example_call(problem: Problem) -> ExampleCall:
    """A call with 4096 rows and as many keys, for an offline compile."""
    import torch

    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    size, fp8 = 4096, getattr(torch, problem.dtype)
    window = meta(size, dtype=torch.int32)
    operands = (meta(size, problem.heads, problem.dim, dtype=fp8), meta(size, problem.dim, dtype=fp8), meta(size))
    return ExampleCall(
        (*operands, meta(size, problem.heads), window, window, meta(size, size)),
        {
            "clean_logits": problem.clean_logits,
            "compressed": problem.compressed,
            "target": compat.capabilities(problem.device).target,
        },
        padded_heads(problem.heads) * problem.dim,
    )


def _gluon_cdna4_accepts(problem: Problem) -> str | None:
    if problem.dtype != "float8_e4m3fn":
        return compat.capabilities(problem.device).why("fp8_e4m3fnuz")
    if not problem.direct_keys:
        return "needs k in 16-byte aligned rows of adjacent elements, less than 8 MiB apart, to copy it straight to LDS"
    return None


def _gluon_hopper_accepts(problem: Problem) -> str | None:
    if problem.dtype != "float8_e4m3fn":
        return compat.capabilities(problem.device).why("fp8_e4m3fnuz")
    if problem.heads % 4:
        return f"needs a multiple of 4 heads: found {problem.heads}"
    if not problem.tensor_maps:
        return "needs operands that tensor maps describe: 16-byte aligned lines of adjacent elements, one key at least"
    return None


def classic_accepts(problem: Problem) -> str | None:
    caps = compat.capabilities(problem.device)
    if caps.interpreter:
        return _interpreter_accepts(problem, caps)
    if not caps.gpu:
        return f"{caps.why('gpu')}; on the CPU {caps.why('interpreter')}"
    if caps.gfx1250 and not caps.knows_gfx1250:
        return caps.why("knows_gfx1250")
    # gfx942 reads e4m3fn bytes as e4m3fnuz, at half the value; the kernel converts. No other architecture converts.
    native = caps.fp8_e4m3fnuz or (problem.dtype == "float8_e4m3fn" and caps.fp8_e4m3fn)
    return None if native else caps.why("fp8_e4m3fn" if problem.dtype == "float8_e4m3fn" else "fp8_e4m3fnuz")


def _interpreter_accepts(problem: Problem, caps: compat.Capabilities) -> str | None:
    if problem.dtype == "float8_e4m3fnuz" and not caps.interpreter_fp8_fnuz:
        return caps.why("interpreter_fp8_fnuz")
    return interpreter_accepts(caps)


def interpreter_accepts(caps: compat.Capabilities) -> str | None:
    """None, or why Triton's interpreter cannot run a kernel with loops."""
    import numpy

    if numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0" and not caps.interpreter_numpy_24:
        return f"{caps.why('interpreter_numpy_24')} with numpy {numpy.__version__}; numpy<2.4 serves"
    return None


def classic_unless_named(problem: Problem) -> str | None:
    on_gpu = compat.capabilities(problem.device).gpu
    return None if on_gpu else "would run in Triton's interpreter, which is slow; name it to use it"


operation = compat.Operation("fp8_mqa_logits", example=example)
operation.add(
    compat.Variant(
        "gluon_cdna4",
        f"{__package__}.gluon_cdna4:launch",
        requires=("gluon_cdna4", "torch"),
        accepts=_gluon_cdna4_accepts,
    )
)
operation.add(
    compat.Variant(
        "gluon_hopper",
        f"{__package__}.gluon_hopper:launch",
        requires=("gluon_hopper", "torch"),
        accepts=_gluon_hopper_accepts,
    )
)
operation.add(
    compat.Variant(
        "classic",
        f"{__package__}.classic:launch",
        requires=("triton", "torch"),
        accepts=classic_accepts,
        unless_named=classic_unless_named,
    )
)
operation.add(compat.Variant("reference", f"{__package__}.reference:launch", requires=("torch",), last_resort=True))
