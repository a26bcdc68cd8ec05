"""Every capability, declared once: what it is of, what it gives, what answers for it, and where that is known from.

A capability is of the *build* (a probe of the installed Triton), of the *target* (an architecture), or of *both* (it needs
other capabilities, all of them, or a compiler's word on the target).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from . import _compilers, _layout_probes, _passes, _probes
from ._layout_probes import GL, GLUON
from ._probes import Finding, Probe
from .targets import Target


class Capability(NamedTuple):
    """One row of the table.

    kind : "build", "target" or "both"
    meaning : what a kernel author gets, for people
    needs : what follows "needs" in a reason
    source : where this is known from: pull requests of Triton, documents, what was read in releases, what was seen here
    probe : answers for the build (kind "build")
    package : holds where this package is installed and imports (kind "build")
    archs : target names for which it holds, with or without suffix, "*" for every GPU (kind "target")
    unproven : whether no hardware has shown it, so that it holds only where a switch enables it (kind "target")
    all_of : other capabilities that it needs (kind "both")
    asks : answers for the build and the target (kind "both")
    """

    name: str
    kind: str
    meaning: str
    needs: str
    source: str
    probe: Probe | None = None
    package: str = ""
    archs: tuple[str, ...] = ()
    unproven: bool = False
    all_of: tuple[str, ...] = ()
    asks: Callable[[Target], Finding] | None = None


def _build(name: str, meaning: str, needs: str, probe: Probe, source: str) -> Capability:
    return Capability(name, "build", meaning, needs, source, probe=probe)


def _installed(package: str, meaning: str) -> Capability:
    return Capability(package, "build", meaning, package, "its import, in a process of its own", package=package)


def _target(name: str, meaning: str, source: str, *archs: str) -> Capability:
    return Capability(name, "target", meaning, "a GPU" if archs == ("*",) else " or ".join(archs), source, archs=archs)


def _unproven(name: str, meaning: str, source: str, arch: str) -> Capability:
    needs = f"{arch} and CAPGATE_ENABLE={name}, since no hardware has shown it"
    return Capability(name, "target", meaning, needs, source, archs=(arch,), unproven=True)


def _both(name: str, meaning: str, *all_of: str) -> Capability:
    return Capability(name, "both", meaning, ", ".join(all_of), "follows from what it needs", all_of=all_of)


def _pull(*numbers: int) -> str:
    """Pull requests of Triton."""
    return ", ".join(f"https://github.com/triton-lang/triton/pull/{number}" for number in numbers)


def _read(file: str, before: str, after: str) -> str:
    """What was read in a file of two releases, between which it changed."""
    return f"read in triton/{file} of {before} and {after}"


_CDNA4, _HOPPER, _AMD, _NV = (
    f"{GL}.amd.cdna4",
    f"{GL}.nvidia.hopper",
    "triton.backends.amd.compiler",
    "triton.backends.nvidia.compiler",
)

_CORE, _GLUON = "language/core.py", "experimental/gluon/language"
_FIVE = "3.5.1, 3.6.0, 3.7.1, 3.8.0 and 3.9.0"
_PTX = "NVIDIA, PTX ISA, https://docs.nvidia.com/cuda/parallel-thread-execution/"
_LLVM = "LLVM, User Guide for AMDGPU Backend, Processors, https://llvm.org/docs/AMDGPUUsage.html"
_DESCRIPTOR = "LLVM, User Guide for AMDGPU Backend, compute_pgm_rsrc1, https://llvm.org/docs/AMDGPUUsage.html"
_CUDA = "NVIDIA, CUDA GPU Compute Capability, https://developer.nvidia.com/cuda-gpus"
_FP8 = (
    "AMD, HIP, Low precision floating point types, Device Compatibility, "
    "https://rocm.docs.amd.com/projects/HIP/en/latest/reference/fp8_numbers.html"
)
_XCDS = "HipKittens, arXiv 2511.08083; AMD, https://github.com/ROCm/composable_kernel/pull/3652"
_ASSEMBLED = "held against the assemblers by tests/compat/test_table.py"

# fmt: off
TABLE: Mapping[str, Capability] = {row.name: row for row in (
    # Of the build: packages, and Triton as a whole.
    _installed("torch", "torch is installed and imports"),
    _installed("triton_kernels", "triton_kernels is installed and imports; its version is its own"),
    _build("triton", "Triton imports and can compile", "Triton", _probes.triton,
           "its import; vLLM may leave a placeholder in its place, https://github.com/vllm-project/vllm/pull/53530"),
    _build("triton_ge_36", "the release is 3.6 or newer", "Triton 3.6 or newer", _layout_probes.triton_ge_36, "its version"),
    _build("carried_loop_bounds", "a value that a for loop carries on only to bound inner for loops keeps changing",
           "loops that carry the bounds of inner loops on", _passes.carried_loop_bounds,
           f"found in {_pull(9036)}, mended by {_pull(9136)}; the probe runs the pass"),
    _build("interpreter", "kernels run on the CPU in Triton's interpreter", "TRITON_INTERPRET=1", _probes.interpreter,
           "read in triton/knobs.py and triton/runtime/jit.py of 3.6.0"),
    _build("interpreter_fp8_fnuz", "the interpreter reads e4m3fnuz", "Triton 3.8's interpreter", _probes.release(3, 8),
           f"run here on {_FIVE}"),
    _build("interpreter_dot_scaled", "the interpreter runs tl.dot_scaled", "an interpreter with dot_scaled",
           _probes.has("triton.runtime.interpreter:InterpreterBuilder.create_dot_scaled"), _pull(10311)),
    _build("interpreter_numpy_24", "the interpreter loops to a tensor bound under numpy 2.4", "Triton 3.7's interpreter",
           _probes.release(3, 7), _pull(9172)),

    # Of the build: the classic language.
    _build("block_pointers", "tl.make_block_ptr and tl.advance work; stubs of both names do not", "block pointers",
           _probes.block_pointers,
           f"{_pull(10833)}; the probe calls both. A build of 3.8 with stubs: https://github.com/ROCm/ATOM/pull/2003"),
    _build("positional_load_modifiers", "tl.load's modifiers may be positional", "tl.load with boundary_check",
           _probes.takes("triton.language:load", "boundary_check"), _read(_CORE, "3.8.0", "3.9.0")),
    _build("dot_infers_out_dtype", "tl.dot takes its result's type from acc where out_dtype is not given",
           "tl.dot without a default out_dtype", _probes.dot_infers_out_dtype, _pull(10353)),
    _build("aggregate_replace", "tl.aggregate_replace", "tl.aggregate_replace",
           _probes.has("triton.language:aggregate_replace"), _read(_CORE, "3.7.1", "3.8.0")),
    _build("constexpr_tuple_permute", "permute and reshape take a tuple of constexprs",
           "a permute that unwraps constexpr tuples", _probes.constexpr_tuple_permute,
           f"{_read(_CORE, '3.7.1', '3.8.0')}; the probe calls permute"),
    _build("maximum_ignores_nan", "the interpreter's tl.maximum(nan, 0) is 0, as compiled code's is on every build",
           "Triton 3.8's interpreter", _probes.release(3, 8), _pull(10333)),
    _build("fp_fusion_default", "multiply and add are fused unless told otherwise", "Triton before 3.10", _probes.before(3, 10),
           f"triton/knobs.py of 3.9.0 warns that it will end; {_pull(11270)}"),
    _build("default_backend_variable", "TRITON_DEFAULT_BACKEND chooses a backend without a GPU", "Triton 3.7.1",
           _probes.release(3, 7, 1), _pull(9144)),

    # Of the build: launch options and their meaning.
    _build("llvm_fn_attrs", "AMD launch option llvm_fn_attrs", "the launch option llvm_fn_attrs",
           _probes.option(f"{_AMD}:HIPOptions", "llvm_fn_attrs"), _pull(10367)),
    _build("cluster_dims", "launch option cluster_dims", "the launch option cluster_dims",
           _probes.option(f"{_NV}:CUDAOptions", "cluster_dims"),
           f"{_read('backends/nvidia/compiler.py', '3.5.1', '3.6.0')}; {_pull(8645)}"),
    _build("launch_pdl", "launch option launch_pdl, and gdc_wait for what is launched so", "the launch option launch_pdl",
           _probes.option(f"{_NV}:CUDAOptions", "launch_pdl"), _pull(6394)),
    _build("schedule_hint", "AMD's schedule_hint has an effect", "Triton before 3.8", _probes.before(3, 8),
           f"{_read('backends/amd/compiler.py', '3.7.1', '3.8.0')}, which declares it and asks for it nowhere"),
    _build("waves_per_eu_exact", "waves_per_eu=N means exactly N waves, not at least N", "Triton 3.6", _probes.release(3, 6),
           _pull(8151)),
    _build("amd_buffer_ops_default", "AMD buffer instructions unless told otherwise", "Triton 3.6", _probes.release(3, 6),
           f"{_pull(5960)}, held back in 3.5 by {_pull(8013)}"),
    _build("amd_async_copy_default", "asynchronous copies on gfx950 unless told otherwise", "Triton 3.8", _probes.release(3, 8),
           f"{_pull(9087)}, held back in 3.7 by {_pull(9445)}"),
    _build("agpr_split", "the AMD back end splits VGPRs and AGPRs unless told otherwise", "Triton 3.8", _probes.release(3, 8),
           "compiled here for gfx950 by 3.7.1, 3.8.0 and 3.9.0: docs/design/gluon-drift.md"),
    _build("knows_gfx1250", "compiles for gfx1250 (3.5.1 does not know it, 3.6.0 hangs on it)", "Triton 3.7",
           _probes.knows_gfx1250, f"compiled here by {_FIVE}"),

    # Of the build: Gluon for every target.
    _build("gluon", "Gluon with the API of Triton 3.6", "the Gluon API of Triton 3.6", _layout_probes.gluon,
           f"{_pull(8213)} (MFMA shapes of [M, N, K]); {_read(f'{_GLUON}/_layouts.py', '3.5.1', '3.6.0')} (cga_layout)"),
    _build("gluon_shared_linear_layout", "gl.SharedLinearLayout", "gl.SharedLinearLayout",
           _probes.has(f"{GL}:SharedLinearLayout"), _pull(8116)),
    _build("gluon_bank_conflicts", "gl.bank_conflicts and gl.to_linear_layout", "gl.bank_conflicts",
           _probes.has(f"{GL}:bank_conflicts"), _pull(8181)),
    _build("gluon_padded_layout", "PaddedSharedLayout built from offset bases", "PaddedSharedLayout with offset_bases",
           _probes.takes(f"{GL}:PaddedSharedLayout", "offset_bases"), _pull(7929)),
    _build("gluon_barrier", "gl.barrier (earlier: gl.thread_barrier)", "gl.barrier", _probes.has(f"{GL}:barrier"),
           _read(f"{_GLUON}/_core.py", "3.6.0", "3.7.1")),
    _build("gluon_warp_specialize_list", "gl.warp_specialize takes [(function, arguments), ...]",
           "warp_specialize with functions_and_args", _probes.takes(f"{GL}:warp_specialize", "functions_and_args"),
           _pull(8527)),
    _build("gluon_cache_policy", "gl.load and gl.store take cache_policy", "gl.load with cache_policy",
           _probes.takes(f"{GL}:load", "cache_policy"), _pull(11482)),
    _build("gluon_reinterpret", "shared memory's public reinterpret", "shared_memory_descriptor.reinterpret",
           _probes.has(f"{GL}:shared_memory_descriptor.reinterpret"), _pull(11131)),
    _build("gluon_aggregate", "gluon.aggregate", "gluon.aggregate", _probes.has(f"{GLUON}:aggregate"), _pull(10095)),
    _build("gluon_ast_source", "gluon.GluonASTSource is public", "gluon.GluonASTSource", _probes.has(f"{GLUON}:GluonASTSource"),
           _read("experimental/gluon/__init__.py", "3.8.0", "3.9.0")),

    # Of the build: Gluon for AMD.
    _build("gluon_async_groups", "cdna4.async_copy.commit_group and wait_group", "async_copy.commit_group",
           _probes.has(f"{_CDNA4}:async_copy.commit_group"), _pull(8605)),
    _build("gluon_linear_async_copy", "the direct-to-LDS copy takes linear layouts",
           "an asynchronous copy that takes linear layouts", _layout_probes.gluon_linear_async_copy, _pull(9513)),
    _build("gluon_efficient_padding", "cdna4's compute_efficient_padded_shared_layout",
           "cdna4.compute_efficient_padded_shared_layout", _probes.has(f"{_CDNA4}:compute_efficient_padded_shared_layout"),
           _pull(10302)),
    _build("gluon_cdna3_mfma", "cdna3.mfma with layouts of version 3 and [M, N, K]", "cdna3.mfma of [32, 32, 16]",
           _layout_probes.gluon_cdna3_mfma, f"{_pull(8213)}; the probe builds the layout"),
    _build("gluon_mfma_scaled", "cdna4.mfma_scaled", "cdna4.mfma_scaled", _probes.has(f"{_CDNA4}:mfma_scaled"), _pull(7799)),
    _build("gluon_mfma_regclass", "mfma_scaled takes cd_regclass", "mfma_scaled with cd_regclass",
           _probes.takes(f"{_CDNA4}:mfma_scaled", "cd_regclass"), _pull(11792)),
    _build("gluon_warp_pipeline", "amd.warp_pipeline_stage", "amd.warp_pipeline_stage",
           _probes.has(f"{GL}.amd:warp_pipeline_stage"), _pull(8586, 8980)),
    _build("gluon_gfx1250_wmma", "gfx1250's wmma with layouts of version 3 and warp_bases", "gfx1250.wmma of [16, 16, 128]",
           _layout_probes.gluon_gfx1250_wmma,
           f"{_read(f'{_GLUON}/amd/_layouts.py', '3.6.0', '3.7.1')}; the probe builds the layout"),
    _build("gluon_cdna5", "Gluon's cdna5 language", "Gluon's cdna5 module", _probes.has(f"{GL}.amd.cdna5"),
           _pull(11152, 11383)),

    # Of the build: Gluon for Hopper.
    _build("gluon_wgmma", "hopper.warpgroup_mma and its wait", "hopper.warpgroup_mma",
           _probes.has(f"{_HOPPER}:warpgroup_mma_wait"), _pull(7313)),
    _build("wgmma_after_zero_trip_loop", "a wgmma behind a loop of wgmmas on one operand reads it where the loop never ran",
           "ptxas 12.9", _probes.ptxas(90, 12, 9),
           f"compiled here with ptxas 12.8 and 12.9: docs/gating.md; Triton's own is 12.9 from {_pull(8983)} on"),
    _build("wgmma_after_async_copy", "a wgmma sees what asynchronous copies left in shared memory: a fence stands between them",
           "fences between asynchronous copies and wgmma", _passes.wgmma_after_async_copy,
           "the probe runs the pass; wrong gradients on H100 and H20 from 3.4 to 3.7.0, https://github.com/fla-org/"
           "flash-linear-attention/issues/640, of a kernel in which this fence is all that 3.7.1 adds: docs/gating.md"),
    _build("gluon_warp_specialize_free_registers", "gl.warp_specialize chooses registers when none are given",
           "warp_specialize with optional worker_num_regs", _probes.optional(f"{GL}:warp_specialize", "worker_num_regs"),
           _read(f"{_GLUON}/_core.py", "3.6.0", "3.7.1")),
    _build("gluon_tma_load", "tma.async_load", "tma.async_load", _probes.takes(f"{_HOPPER}:tma.async_load", "tensor_desc"),
           _pull(10083)),
    _build("gluon_tma_copy", "tma.async_copy_global_to_shared, not its stub", "tma.async_copy_global_to_shared",
           _probes.takes(f"{_HOPPER}:tma.async_copy_global_to_shared", "tensor_desc"),
           f"{_pull(7004)}; a stub from {_pull(11112)} on"),
    _build("gluon_tma_multicast", "tensor-map loads take multicast", "a tensor-map load with multicast",
           _layout_probes.tma_multicast, _pull(9005)),
    _build("gluon_device_descriptor", "tma.make_tensor_descriptor inside a kernel", "tma.make_tensor_descriptor",
           _probes.has(f"{_HOPPER}:tma.make_tensor_descriptor"),
           f"asked for in https://github.com/triton-lang/triton/issues/8354; {_read(f'{_GLUON}/nvidia', '3.5.1', '3.6.0')}"),
    _build("gluon_allocate_mbarrier", "mbarrier.allocate_mbarrier", "mbarrier.allocate_mbarrier",
           _probes.has(f"{_HOPPER}:mbarrier.allocate_mbarrier"), _read(f"{_GLUON}/nvidia", "3.6.0", "3.7.1")),

    # Of the target. The PTX ISA says under "Target ISA Notes" what NVIDIA's have, and calls sm110 sm101 before PTX 9.0.
    _target("gfx942", "AMD CDNA3 (MI300)", _LLVM, "gfx942"),
    _target("gfx950", "AMD CDNA4 (MI350, MI355)", _LLVM, "gfx950"),
    _target("gfx1250", "AMD CDNA5", f"{_LLVM}; {_pull(11152)}", "gfx1250"),
    _target("sm89", "NVIDIA Ada", _CUDA, "sm89"),
    _target("sm90", "NVIDIA Hopper", _CUDA, "sm90"),
    _target("sm100", "NVIDIA data-centre Blackwell", _CUDA, "sm100", "sm103"),
    _target("sm120", "NVIDIA consumer Blackwell", _CUDA, "sm120", "sm121"),
    _target("gpu", "a GPU that Triton has a back end for", "read in triton/backends of 3.6.0: amd and nvidia", "*"),
    _target("fp8_e4m3fn", "matrix instructions read OCP e4m3fn", f"{_FP8}; {_PTX}, mma; {_ASSEMBLED}",
            "gfx950", "gfx1200", "gfx1201", "gfx1250", "sm89", "sm90", "sm100", "sm101", "sm103", "sm110", "sm120", "sm121"),
    _target("fp8_e4m3fnuz", "matrix instructions read e4m3fnuz, and e4m3fn bytes as if they were", _FP8, "gfx942"),
    _target("mfma", "AMD matrix instructions", _ASSEMBLED, "gfx908", "gfx90a", "gfx942", "gfx950"),
    _target("scaled_mfma", "block-scaled MFMA instructions (f8f6f4)", _ASSEMBLED, "gfx950"),
    _target("direct_to_lds_128", "128-bit copies from memory straight to LDS", _ASSEMBLED, "gfx950"),
    _target("xcds_in_turn", "workgroups go to the dies of a GPU in turn, and each die has an L2 of its own", _XCDS,
            "gfx942", "gfx950"),
    _unproven("packed_clamp", "v_pk_mul_f32 clamps both of its results, and hands a NaN on once MODE.DX10_CLAMP is clear",
              f"{_DESCRIPTOR}; LLVM, llvm/test/MC/AMDGPU/gfx90a_asm_features.s", "gfx950"),
    _target("tma", "tensor-map loads", f"{_PTX}, cp.async.bulk.tensor; {_ASSEMBLED}",
            "sm90", "sm100", "sm101", "sm103", "sm110", "sm120", "sm121"),
    _target("griddepcontrol", "a launch may start while the one before it runs, and wait for its end",
            f"{_PTX}, griddepcontrol; {_ASSEMBLED}", "sm90", "sm100", "sm101", "sm103", "sm110", "sm120", "sm121"),
    _target("wgmma", "warpgroup matrix instructions", f"{_PTX}, wgmma.mma_async; {_ASSEMBLED}", "sm90"),
    _target("tcgen05", "tensor-memory matrix instructions", f"{_PTX}, tcgen05; {_ASSEMBLED}",
            "sm100", "sm101", "sm103", "sm110"),

    # Of both.
    Capability("known_target", "both", "this Triton's compiler for the target (ptxas, or LLVM for AMD) takes it",
               "a compiler that knows the target", "the compiler's own word", asks=_compilers.knows),
    Capability("block_scaled_dot", "both", "tl.dot_scaled becomes block-scaled matrix instructions",
               "a Triton that makes block-scaled instructions for the target",
               f"compiled here by {_FIVE}: docs/design/mx_logits.md", asks=_probes.block_scaled_dot),
    _both("dependent_launch", "programmatic dependent launches", "triton", "launch_pdl", "griddepcontrol", "known_target"),
    Capability("gfx950_wide_tiles", "both", "attention tiles of 64 queries by 64 keys, 576 dims to score and 512 to sum, stay "
               "in gfx950's registers (MFMA of 32 x 32, four warps)", "Triton 3.6 for gfx950",
               f"compiled here by {_FIVE}: docs/gating.md; spills of 3.7 and slower kernels of 3.8 on MI355X are reported in "
               "https://github.com/sgl-project/sglang/pull/34741 and https://github.com/ROCm/ATOM/pull/2173",
               asks=_probes.gfx950_wide_tiles),
    _both("triton_gpu", "classic Triton kernels on this target", "triton", "gpu", "known_target"),
    _both("gluon_cdna3", "Gluon kernels for CDNA3", "triton", "gluon", "gluon_cdna3_mfma", "gfx942", "mfma", "known_target"),
    _both("gluon_cdna4", "Gluon kernels for CDNA4", "triton", "gluon", "gluon_async_groups", "gluon_mfma_scaled", "gfx950",
          "scaled_mfma", "known_target"),
    _both("gluon_gfx1250", "Gluon kernels for gfx1250", "triton", "gluon", "gluon_gfx1250_wmma", "gfx1250", "known_target"),
    _both("gluon_hopper", "Gluon kernels for Hopper", "triton", "gluon", "gluon_wgmma", "gluon_warp_specialize_list", "sm90",
          "wgmma", "tma", "known_target"),
)}
# fmt: on
