"""Questions put to the compiler's passes: a small module is run through some of them, which compiles no kernel and takes
milliseconds.

What they make of it is their behaviour itself, on a vendor's build too; where a build's passes take no such module, the
probe fails, and the build has no such capability.
"""

import tempfile
from typing import Any

from . import _probes
from ._probes import Finding, resolve


def parsed(text: str, context: Any) -> Any:
    """The MLIR module that ``text`` spells."""
    with tempfile.NamedTemporaryFile("w", suffix=".ttir") as file:
        file.write(text)
        file.flush()
        return resolve("triton._C.libtriton:ir").parse_mlir_module(file.name, context)


def run(manager: Any, module: Any) -> None:
    """Run a pass manager's passes on ``module``; RuntimeError where one fails."""
    try:
        manager.run(module, "capgate")
    except TypeError:  # 3.5's takes no name
        manager.run(module)


_CARRIED_BOUND = """
tt.func public @kernel(%memory: !tt.ptr<i32>, %count: i32) {
  %zero = arith.constant 0 : i32
  %one = arith.constant 1 : i32
  %last = scf.for %i = %zero to %count step %one iter_args(%bound = %one) -> (i32) : i32 {
    scf.for %j = %zero to %bound step %one : i32 {
      tt.store %memory, %j : !tt.ptr<i32>
    }
    %next = tt.load %memory : !tt.ptr<i32>
    scf.yield %next : i32
  }
  tt.return
}
"""


def carried_loop_bounds() -> Finding:
    """Simplify a loop that loads the bound of its inner loop one iteration ahead, and see whether the load is still there.

    Triton's elimination of dead loop arguments takes a value for dead that only bounds inner loops, on builds without this.
    """
    ir, passes = resolve("triton._C.libtriton:ir"), resolve("triton._C.libtriton:passes")
    if ir is None or passes is None:
        return _probes.finding(False, ", without Triton's IR")
    context = ir.context()
    ir.load_dialects(context)
    module = parsed(_CARRIED_BOUND, context)
    manager = ir.pass_manager(context)
    passes.ttgpuir.add_remove_layout_conversions(manager)  # of kernels in the classic language; Gluon's has the pattern too
    passes.common.add_canonicalizer(manager)
    run(manager, module)
    return _probes.finding("tt.load" in str(module), ", whose loops freeze them")


_COPY_AND_PRODUCT = """
#rows = #ttg.blocked<{sizePerThread = [1, 8], threadsPerWarp = [4, 8], warpsPerCTA = [4, 1], order = [1, 0]}>
#mma = #ttg.nvidia_mma<{versionMajor = 3, versionMinor = 0, warpsPerCTA = [4, 1], instrShape = [16, 64, 16]}>
#bytes = #ttg.nvmma_shared<{swizzlingByteWidth = 128, transposed = false, elementBitWidth = 16}>
#smem = #ttg.shared_memory
module attributes {"ttg.num-ctas" = 1 : i32, "ttg.num-warps" = 4 : i32, ttg.target = "cuda:90",
                   "ttg.threads-per-warp" = 32 : i32} {
  tt.func public @kernel(%keys: tensor<64x64x!tt.ptr<f16>, #rows>, %sum: tensor<64x64xf32, #mma>) {
    %tile = ttg.local_alloc : () -> !ttg.memdesc<64x64xf16, #bytes, #smem, mutable>
    %copy = ttg.async_copy_global_to_local %keys, %tile
      : tensor<64x64x!tt.ptr<f16>, #rows> -> <64x64xf16, #bytes, #smem, mutable>
    %done = ttg.async_wait %copy {num = 0 : i32}
    %product = ttng.warp_group_dot %tile, %tile, %sum
      : !ttg.memdesc<64x64xf16, #bytes, #smem, mutable> * !ttg.memdesc<64x64xf16, #bytes, #smem, mutable>
      -> tensor<64x64xf32, #mma>
    tt.return
  }
}
"""


def wgmma_after_async_copy() -> Finding:
    """Have the fences inserted between an asynchronous copy and a wgmma that reads what it copied, and see whether one is.

    A wgmma reads shared memory through the asynchronous proxy, and such a copy writes it through the generic one.
    """
    ir, passes, nvidia = (resolve(f"triton._C.libtriton:{name}") for name in ("ir", "passes", "nvidia"))
    if ir is None or passes is None or nvidia is None:
        return _probes.finding(False, ", without Triton's IR for NVIDIA")
    context = ir.context()
    ir.load_dialects(context)
    nvidia.load_dialects(context)
    module = parsed(_COPY_AND_PRODUCT, context)
    manager = ir.pass_manager(context)
    passes.ttgpuir.add_allocate_shared_memory(manager)
    nvidia.passes.ttnvgpuir.add_proxy_fence_insertion(manager, 90)
    run(manager, module)
    return _probes.finding("fence_async_shared" in str(module), ", which puts no fence there")
