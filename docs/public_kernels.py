"""Launches kernels of fla-core, Liger-Kernel or Triton's tutorials, for ``capgate record``: see docs/public-kernels.md.

    capgate record --no-run -o fla.json -- python docs/public_kernels.py fla
    capgate record --no-run -o liger.json -- python docs/public_kernels.py liger
    capgate record --no-run -o tutorials.json -- python docs/public_kernels.py tutorials FOLDER

Nothing is computed: tensors have shapes of small models, and what the functions return is thrown away.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

BATCH, TOKENS, HEADS, DIM, HIDDEN, VOCABULARY = 2, 256, 4, 64, 512, 4096
Calls = Iterator[tuple[str, Callable[[], Any]]]


def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16, grad: bool = True) -> torch.Tensor:
    """A tensor of ones, for gradients where its dtype has any."""
    made = torch.ones(shape, dtype=dtype)
    return made.requires_grad_() if grad and dtype.is_floating_point else made


def both_ways(function: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[[], Any]:
    """A call, and the gradients of what it returns first."""

    def call() -> None:
        out = function(*arguments, **options)
        out = out[0] if isinstance(out, tuple | list) else out
        out.float().sum().backward()

    return call


class OnTheCpu(TorchFunctionMode):
    """Tensors that are asked for on "cuda" are made on the CPU."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        told = dict(options or {})
        if str(told.get("device", "")).startswith("cuda"):
            told["device"] = "cpu"
        return function(*arguments, **told)


def fla() -> Calls:
    """Operations and modules of fla-core 0.6.0."""
    from fla import ops
    from fla.modules import l2norm, layernorm, rotary, token_shift
    from fla.ops.attn.parallel import parallel_attn
    from fla.ops.forgetting_attn.parallel import parallel_forgetting_attn
    from fla.ops.hgrn.chunk import chunk_hgrn

    def heads() -> torch.Tensor:
        return tensor(BATCH, TOKENS, HEADS, DIM)

    def gates() -> torch.Tensor:
        return tensor(BATCH, TOKENS, HEADS, DIM, dtype=torch.float32)

    def scalars(dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return tensor(BATCH, TOKENS, HEADS, dtype=dtype)

    def three() -> tuple[torch.Tensor, ...]:
        return heads(), heads(), heads()

    yield "chunk_gla", both_ways(ops.chunk_gla, *three(), gates())
    yield "fused_recurrent_gla", both_ways(ops.fused_recurrent_gla, *three(), gk=gates())
    yield "chunk_simple_gla", both_ways(ops.chunk_simple_gla, *three(), scalars())
    yield "chunk_retention", both_ways(ops.chunk_retention, *three())
    yield "chunk_linear_attn", both_ways(ops.chunk_linear_attn, *three(), normalize=False)
    yield "chunk_delta_rule", both_ways(ops.chunk_delta_rule, *three(), scalars(torch.bfloat16))
    yield "fused_recurrent_delta_rule", both_ways(ops.fused_recurrent_delta_rule, *three(), scalars(torch.bfloat16))
    yield "chunk_gated_delta_rule", both_ways(ops.chunk_gated_delta_rule, *three(), scalars(), scalars(torch.bfloat16))
    yield "chunk_kda", both_ways(ops.chunk_kda, *three(), gates(), scalars(torch.bfloat16))
    yield "chunk_gsa", both_ways(ops.chunk_gsa, *three(), heads(), heads())
    yield "chunk_rwkv6", both_ways(ops.chunk_rwkv6, *three(), gates(), tensor(HEADS, DIM))
    yield "chunk_rwkv7", both_ways(ops.chunk_rwkv7, heads(), gates(), *three(), heads())
    yield "chunk_hgrn", both_ways(chunk_hgrn, tensor(BATCH, TOKENS, HIDDEN), tensor(BATCH, TOKENS, HIDDEN))
    yield "parallel_attn", both_ways(parallel_attn, *three())
    yield "parallel_forgetting_attn", both_ways(parallel_forgetting_attn, *three(), scalars())
    rows = tensor(BATCH * TOKENS, HIDDEN)
    yield "layer_norm", both_ways(layernorm.layer_norm, rows, tensor(HIDDEN), tensor(HIDDEN))
    yield "rms_norm", both_ways(layernorm.rms_norm, rows, tensor(HIDDEN), None)
    yield "l2_norm", both_ways(l2norm.l2_norm, heads())
    angles = tensor(TOKENS, DIM // 2, grad=False)
    yield "rotary_embedding", both_ways(rotary.rotary_embedding, heads(), angles, angles)
    yield "token_shift", both_ways(token_shift.token_shift, tensor(BATCH, TOKENS, HIDDEN))


def liger() -> Calls:
    """Functions of Liger-Kernel 0.8.5."""
    from liger_kernel import ops

    def rows(columns: int = HIDDEN) -> torch.Tensor:
        return tensor(TOKENS, columns)

    def heads() -> torch.Tensor:
        return tensor(BATCH, HEADS, TOKENS, DIM)

    labels = torch.zeros(TOKENS, dtype=torch.int64)
    angles = tensor(1, TOKENS, DIM, grad=False)
    three = tensor(3, 1, TOKENS, DIM, grad=False)
    yield "rms_norm", both_ways(ops.LigerRMSNormFunction.apply, rows(), tensor(HIDDEN), 1e-6, 0.0, "llama", False)
    yield "layer_norm", both_ways(ops.LigerLayerNormFunction.apply, rows(), tensor(HIDDEN), tensor(HIDDEN), 1e-6)
    add = ops.LigerFusedAddRMSNormFunction.apply
    yield "fused_add_rms_norm", both_ways(add, rows(), rows(), tensor(HIDDEN), 1e-6, 0.0, "llama", False)
    images = tensor(BATCH, 32, TOKENS)
    yield "group_norm", both_ways(ops.LigerGroupNormFunction.apply, images, tensor(32), tensor(32), 32, 4, 1e-6)
    yield "poly_norm", both_ways(ops.LigerPolyNormFunction.apply, rows(), tensor(3), tensor(), 1e-6, False)
    yield "rope", both_ways(ops.LigerRopeFunction.apply, heads(), heads(), angles, angles)
    yield "mrope", both_ways(ops.LigerQwen2VLMRopeFunction.apply, heads(), heads(), three, three, [8, 12, 12])
    yield "silu_mul", both_ways(ops.LigerSiLUMulFunction.apply, rows(), rows())
    yield "gelu_mul", both_ways(ops.LigerGELUMulFunction.apply, rows(), rows())
    yield "relu_squared", both_ways(ops.LigerReLUSquaredFunction.apply, rows())
    yield "softmax", both_ways(ops.LigerSoftmaxFunction.apply, rows())
    yield "sparsemax", both_ways(ops.LigerSparsemaxFunction.apply, rows(), -1)
    yield "cross_entropy", both_ways(ops.LigerCrossEntropyFunction.apply, rows(VOCABULARY), labels, None)
    linear = ops.LigerFusedLinearCrossEntropyFunction.apply
    yield "fused_linear_cross_entropy", both_ways(linear, rows(), tensor(VOCABULARY, HIDDEN), labels)
    wide = (rows(VOCABULARY), tensor(TOKENS, VOCABULARY, grad=False))
    yield "kl_div", both_ways(ops.LigerKLDivLossFunction.apply, *wide)
    yield "jsd", both_ways(ops.LigerJSDFunction.apply, *wide)
    yield "tvd", both_ways(ops.LigerTVDLossFunction.apply, *wide)


def tutorials(folder: Path) -> Calls:
    """Triton's tutorials: those whose kernels sm90 can take, classic ones and Gluon's."""
    from triton._C.libtriton import nvidia

    nvidia.cublas.CublasLt = lambda workspace: None  # what 09 compares with
    torch.allclose = lambda *arguments, **options: True  # nothing was computed
    torch.testing.assert_close = lambda *arguments, **options: None
    for missing in ("pandas", "tabulate"):  # for tables of benchmarks, which are not made
        sys.modules[missing] = ModuleType(missing)
        setattr(sys.modules[missing], missing, lambda *arguments, **options: "")
    OnTheCpu().__enter__()
    sys.path[:0] = [str(folder), str(folder / "gluon")]
    half = torch.float16

    def cuda(*shape: int, dtype: torch.dtype = half, grad: bool = False) -> torch.Tensor:
        return tensor(*shape, dtype=dtype, grad=grad)

    def of(name: str, use: Callable[[ModuleType], Any]) -> tuple[str, Callable[[], Any]]:
        (file,) = folder.glob(f"{name}-*.py")
        return file.name, lambda: use(_module(file))

    long = cuda(1 << 20, dtype=torch.float32)
    square, wide = cuda(512, 512), cuda(512, 512, dtype=torch.float32)
    yield of("01", lambda it: it.add(long, long))

    def softmax(file: Path) -> None:
        with suppress(
            AttributeError
        ):  # it asks what it has compiled for its registers, and there is nothing; it is noted by then
            _module(file)

    yield "02", lambda: softmax(folder / "02-fused-softmax.py")
    yield of("03", lambda it: (it.matmul(square, square), it.matmul(square, square, activation="leaky_relu")))
    yield of("04", lambda it: (it.dropout(long, long, 0.5), it.seeded_dropout(long, 0.5, 123)))
    norm = [cuda(1151, 8192, grad=True), (8192,), cuda(8192, grad=True), cuda(8192, grad=True), 1e-5]
    yield of("05", lambda it: both_ways(it.LayerNorm.apply, *norm)())
    heads = [cuda(2, 4, 1024, 64, grad=True) for _ in range(3)]
    yield of("06", lambda it: (both_ways(it.attention, *heads, True, 0.5, False)(), it.attention(*heads, False, 0.5, True)))
    yield of("08", lambda it: (it.group_gemm_fn([square], [square]), it.group_gemm_tma_fn([square], [square])))

    def persistent(it: ModuleType) -> None:
        for function in (it.matmul, it.matmul_persistent):
            function(square, square)
        for function in (it.matmul_tma, it.matmul_tma_persistent, it.matmul_descriptor_persistent):
            function(square, square, False)

    yield of("09", persistent)
    yield of("11", lambda it: it.add(long, long, launch_pdl=True))
    yield of("gluon/01", lambda it: (it.copy_scalar(long, long), it.memcpy(long, long, 256), it.memcpy_autotune(long, long)))

    def layouts(it: ModuleType) -> None:
        one, two = it.gl.BlockedLayout([4], [32], [4], [0]), it.gl.BlockedLayout([1, 4], [1, 32], [1, 4], [1, 0])
        it.memcpy_1d_impl(long, long, 2048, one, 4)
        it.memcpy_2d_impl(square, square, 1, 512, two, 4)
        it.memcpy_2d_inout(square, square)

    yield of("gluon/02", layouts)

    def copies(it: ModuleType) -> None:
        it.memcpy_1d_cpasync(long, long)
        it.elementwise_add(wide, wide, wide)
        it.elementwise_add_cpasync(wide, wide, wide, it.gl.SwizzledSharedLayout(1, 1, 1, order=[1, 0]))
        it.elementwise_add_pipelined(wide, wide, wide)

    yield of("gluon/03", copies)
    yield of("gluon/04", lambda it: (it.memcpy_1d_tma(long, long), it.elementwise_add_tma(wide, wide, wide)))

    def wgmma(it: ModuleType) -> None:
        it.small_mma(cuda(64, 32), cuda(32, 32), cuda(64, 32, dtype=torch.float32), cuda(64, 32, dtype=torch.float32), 16)
        it.blocked_matmul(square, square, square, 128, 128, 64, False, 4)
        it.blocked_matmul_pipelined(square, square, square, 128, 128, 64, 4)

    yield of("gluon/05", wgmma)


def _module(file: Path) -> ModuleType:
    import triton

    triton.testing.perf_report = lambda benchmarks: lambda function: type("Unrun", (), {"run": lambda *a, **k: None})()
    spec = spec_from_file_location(f"tutorial_{file.stem.replace('-', '_')}", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main(name: str, *folder: str) -> int:
    """Make every call; says which could not be made, and returns 1 if any."""
    sources: dict[str, Callable[..., Calls]] = {"fla": fla, "liger": liger, "tutorials": tutorials}
    failed = 0
    for title, call in sources[name](*map(Path, folder)):
        try:
            call()
        except Exception as error:  # somebody else's, and the next call may go well
            failed += 1
            print(f"{title}: {type(error).__name__}: {str(error).splitlines()[0][:300]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
