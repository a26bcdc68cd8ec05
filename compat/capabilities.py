"""The one table of capabilities, and what a target makes of it.

A capability is of the *build* (a probe of the installed Triton), of the *target* (an architecture), or of *both* (it needs
other capabilities, all of them, or a compiler's word on the target). Every verdict carries a reason that joins what was needed
and what was found.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from . import compilers, probes
from .probes import GL, GLUON, Finding, Probe
from .targets import Target


class CapabilityError(RuntimeError):
    """Something was required that this Triton on this target cannot do; the message is the reason."""


class Verdict(NamedTuple):
    """Whether a capability holds, and why or why not. True in a boolean context when it holds."""

    available: bool
    reason: str

    def __bool__(self) -> bool:
        return self.available


class Capability(NamedTuple):
    """One row of the table.

    kind : "build", "target" or "both"
    meaning : what a kernel author gets, for people
    needs : what follows "needs" in a reason
    probe : answers for the build (kind "build")
    package : holds where this package is installed and imports (kind "build")
    archs : target names for which it holds, with or without suffix, "*" for every GPU (kind "target")
    all_of : other capabilities that it needs (kind "both")
    asks : answers for the build and the target (kind "both")
    """

    name: str
    kind: str
    meaning: str
    needs: str
    probe: Probe | None = None
    package: str = ""
    archs: tuple[str, ...] = ()
    all_of: tuple[str, ...] = ()
    asks: Callable[[Target], Finding] | None = None


def _build(name: str, meaning: str, needs: str, probe: Probe) -> Capability:
    return Capability(name, "build", meaning, needs, probe=probe)


def _installed(package: str, meaning: str) -> Capability:
    return Capability(package, "build", meaning, package, package=package)


def _target(name: str, meaning: str, *archs: str) -> Capability:
    return Capability(name, "target", meaning, "a GPU" if archs == ("*",) else " or ".join(archs), archs=archs)


def _both(name: str, meaning: str, *all_of: str) -> Capability:
    return Capability(name, "both", meaning, ", ".join(all_of), all_of=all_of)


_CDNA4, _HOPPER, _AMD, _NV = (
    f"{GL}.amd.cdna4",
    f"{GL}.nvidia.hopper",
    "triton.backends.amd.compiler",
    "triton.backends.nvidia.compiler",
)

# fmt: off
TABLE: Mapping[str, Capability] = {row.name: row for row in (
    # Of the build: packages, and Triton as a whole.
    _installed("torch", "torch is installed and imports"),
    _installed("triton_kernels", "triton_kernels is installed and imports; its version is its own"),
    _build("triton", "Triton imports and can compile", "Triton", probes.triton),
    _build("triton_ge_36", "the release is 3.6 or newer", "Triton 3.6 or newer", probes.triton_ge_36),
    _build("carried_loop_bounds", "a value that a for loop carries on only to bound inner for loops keeps changing",
           "loops that carry the bounds of inner loops on", probes.carried_loop_bounds),
    _build("interpreter", "kernels run on the CPU in Triton's interpreter", "TRITON_INTERPRET=1", probes.interpreter),
    _build("interpreter_fp8_fnuz", "the interpreter reads e4m3fnuz", "Triton 3.8's interpreter", probes.release(3, 8)),
    _build("interpreter_dot_scaled", "the interpreter runs tl.dot_scaled", "an interpreter with dot_scaled",
           probes.has("triton.runtime.interpreter:InterpreterBuilder.create_dot_scaled")),
    _build("interpreter_numpy_24", "the interpreter loops to a tensor bound under numpy 2.4", "Triton 3.7's interpreter",
           probes.release(3, 7)),

    # Of the build: the classic language.
    _build("block_pointers", "tl.make_block_ptr and tl.advance", "block pointers", probes.block_pointers),
    _build("positional_load_modifiers", "tl.load's modifiers may be positional", "tl.load with boundary_check",
           probes.takes("triton.language:load", "boundary_check")),
    _build("dot_infers_out_dtype", "tl.dot takes its result's type from the operands", "tl.dot without a default out_dtype",
           probes.dot_infers_out_dtype),
    _build("aggregate_replace", "tl.aggregate_replace", "tl.aggregate_replace",
           probes.has("triton.language:aggregate_replace")),
    _build("constexpr_tuple_permute", "permute and reshape take a tuple of constexprs",
           "a permute that unwraps constexpr tuples", probes.constexpr_tuple_permute),
    _build("maximum_ignores_nan", "tl.maximum(nan, 0) is 0 unless told otherwise", "Triton 3.8", probes.release(3, 8)),
    _build("fp_fusion_default", "multiply and add are fused unless told otherwise", "Triton before 3.10", probes.before(3, 10)),
    _build("default_backend_variable", "TRITON_DEFAULT_BACKEND chooses a backend without a GPU", "Triton 3.7.1",
           probes.release(3, 7, 1)),

    # Of the build: launch options and their meaning.
    _build("llvm_fn_attrs", "AMD launch option llvm_fn_attrs", "the launch option llvm_fn_attrs",
           probes.option(f"{_AMD}:HIPOptions", "llvm_fn_attrs")),
    _build("cluster_dims", "launch option cluster_dims", "the launch option cluster_dims",
           probes.option(f"{_NV}:CUDAOptions", "cluster_dims")),
    _build("schedule_hint", "AMD's schedule_hint has an effect", "Triton before 3.8", probes.before(3, 8)),
    _build("waves_per_eu_exact", "waves_per_eu=N means exactly N waves, not at least N", "Triton 3.6", probes.release(3, 6)),
    _build("amd_buffer_ops_default", "AMD buffer instructions unless told otherwise", "Triton 3.6", probes.release(3, 6)),
    _build("amd_async_copy_default", "asynchronous copies on gfx950 unless told otherwise", "Triton 3.8", probes.release(3, 8)),
    _build("agpr_split", "the AMD back end splits VGPRs and AGPRs unless told otherwise", "Triton 3.8", probes.release(3, 8)),
    _build("knows_gfx1250", "compiles for gfx1250 (3.5.1 does not know it, 3.6.0 hangs on it)", "Triton 3.7",
           probes.knows_gfx1250),

    # Of the build: Gluon for every target.
    _build("gluon", "Gluon with the API of Triton 3.6", "the Gluon API of Triton 3.6", probes.gluon),
    _build("gluon_shared_linear_layout", "gl.SharedLinearLayout", "gl.SharedLinearLayout",
           probes.has(f"{GL}:SharedLinearLayout")),
    _build("gluon_bank_conflicts", "gl.bank_conflicts and gl.to_linear_layout", "gl.bank_conflicts",
           probes.has(f"{GL}:bank_conflicts")),
    _build("gluon_padded_layout", "PaddedSharedLayout built from offset bases", "PaddedSharedLayout with offset_bases",
           probes.takes(f"{GL}:PaddedSharedLayout", "offset_bases")),
    _build("gluon_barrier", "gl.barrier (earlier: gl.thread_barrier)", "gl.barrier", probes.has(f"{GL}:barrier")),
    _build("gluon_warp_specialize_list", "gl.warp_specialize takes [(function, arguments), ...]",
           "warp_specialize with functions_and_args", probes.takes(f"{GL}:warp_specialize", "functions_and_args")),
    _build("gluon_cache_policy", "gl.load and gl.store take cache_policy", "gl.load with cache_policy",
           probes.takes(f"{GL}:load", "cache_policy")),
    _build("gluon_reinterpret", "shared memory's public reinterpret", "shared_memory_descriptor.reinterpret",
           probes.has(f"{GL}:shared_memory_descriptor.reinterpret")),
    _build("gluon_aggregate", "gluon.aggregate", "gluon.aggregate", probes.has(f"{GLUON}:aggregate")),
    _build("gluon_ast_source", "gluon.GluonASTSource is public", "gluon.GluonASTSource", probes.has(f"{GLUON}:GluonASTSource")),

    # Of the build: Gluon for AMD.
    _build("gluon_async_groups", "cdna4.async_copy.commit_group and wait_group", "async_copy.commit_group",
           probes.has(f"{_CDNA4}:async_copy.commit_group")),
    _build("gluon_linear_async_copy", "the direct-to-LDS copy takes linear layouts",
           "an asynchronous copy that takes linear layouts", probes.gluon_linear_async_copy),
    _build("gluon_efficient_padding", "cdna4's compute_efficient_padded_shared_layout",
           "cdna4.compute_efficient_padded_shared_layout", probes.has(f"{_CDNA4}:compute_efficient_padded_shared_layout")),
    _build("gluon_mfma_scaled", "cdna4.mfma_scaled", "cdna4.mfma_scaled", probes.has(f"{_CDNA4}:mfma_scaled")),
    _build("gluon_mfma_regclass", "mfma_scaled takes cd_regclass", "mfma_scaled with cd_regclass",
           probes.takes(f"{_CDNA4}:mfma_scaled", "cd_regclass")),
    _build("gluon_warp_pipeline", "amd.warp_pipeline_stage", "amd.warp_pipeline_stage",
           probes.has(f"{GL}.amd:warp_pipeline_stage")),
    _build("gluon_gfx1250", "Gluon's gfx1250 language", "Gluon's gfx1250 module", probes.has(f"{GL}.amd.gfx1250")),
    _build("gluon_cdna5", "Gluon's cdna5 language", "Gluon's cdna5 module", probes.has(f"{GL}.amd.cdna5")),

    # Of the build: Gluon for Hopper.
    _build("gluon_wgmma", "hopper.warpgroup_mma and its wait", "hopper.warpgroup_mma",
           probes.has(f"{_HOPPER}:warpgroup_mma_wait")),
    _build("wgmma_after_zero_trip_loop", "a wgmma behind a loop of wgmmas on one operand reads it where the loop never ran",
           "ptxas 12.9", probes.ptxas(90, 12, 9)),
    _build("gluon_warp_specialize_free_registers", "gl.warp_specialize chooses registers when none are given",
           "warp_specialize with optional worker_num_regs", probes.optional(f"{GL}:warp_specialize", "worker_num_regs")),
    _build("gluon_tma_load", "tma.async_load", "tma.async_load", probes.takes(f"{_HOPPER}:tma.async_load", "tensor_desc")),
    _build("gluon_tma_copy", "tma.async_copy_global_to_shared, not its stub", "tma.async_copy_global_to_shared",
           probes.takes(f"{_HOPPER}:tma.async_copy_global_to_shared", "tensor_desc")),
    _build("gluon_tma_multicast", "tensor-map loads take multicast", "a tensor-map load with multicast", probes.tma_multicast),
    _build("gluon_device_descriptor", "tma.make_tensor_descriptor inside a kernel", "tma.make_tensor_descriptor",
           probes.has(f"{_HOPPER}:tma.make_tensor_descriptor")),
    _build("gluon_allocate_mbarrier", "mbarrier.allocate_mbarrier", "mbarrier.allocate_mbarrier",
           probes.has(f"{_HOPPER}:mbarrier.allocate_mbarrier")),

    # Of the target. What NVIDIA's have is said in the PTX ISA ("Target ISA Notes"), which calls sm110 sm101 before PTX 9.0.
    _target("gfx942", "AMD CDNA3 (MI300)", "gfx942"),
    _target("gfx950", "AMD CDNA4 (MI350, MI355)", "gfx950"),
    _target("gfx1250", "AMD CDNA5", "gfx1250"),
    _target("sm89", "NVIDIA Ada", "sm89"),
    _target("sm90", "NVIDIA Hopper", "sm90"),
    _target("sm100", "NVIDIA data-centre Blackwell", "sm100", "sm103"),
    _target("sm120", "NVIDIA consumer Blackwell", "sm120", "sm121"),
    _target("gpu", "a GPU that Triton has a back end for", "*"),
    _target("fp8_e4m3fn", "matrix instructions read OCP e4m3fn", "gfx950", "gfx1200", "gfx1201", "gfx1250", "sm89", "sm90",
           "sm100", "sm101", "sm103", "sm110", "sm120", "sm121"),
    _target("fp8_e4m3fnuz", "matrix instructions read e4m3fnuz, and e4m3fn bytes as if they were", "gfx942"),
    _target("mfma", "AMD matrix instructions", "gfx908", "gfx90a", "gfx942", "gfx950"),
    _target("scaled_mfma", "block-scaled matrix instructions (f8f6f4)", "gfx950"),
    _target("direct_to_lds_128", "128-bit copies from memory straight to LDS", "gfx950"),
    _target("tma", "tensor-map loads", "sm90", "sm100", "sm101", "sm103", "sm110", "sm120", "sm121"),
    _target("wgmma", "warpgroup matrix instructions", "sm90"),
    _target("tcgen05", "tensor-memory matrix instructions", "sm100", "sm101", "sm103", "sm110"),

    # Of both.
    Capability("known_target", "both", "this Triton's compiler for the target (ptxas, or LLVM for AMD) takes it",
               "a compiler that knows the target", asks=compilers.knows),
    _both("triton_gpu", "classic Triton kernels on this target", "triton", "gpu", "known_target"),
    _both("gluon_cdna4", "Gluon kernels for CDNA4", "triton", "gluon", "gluon_async_groups", "gluon_mfma_scaled", "gfx950",
          "scaled_mfma", "known_target"),
    _both("gluon_hopper", "Gluon kernels for Hopper", "triton", "gluon", "gluon_wgmma", "gluon_warp_specialize_list", "sm90",
          "wgmma", "tma", "known_target"),
)}
# fmt: on

_NAMES = tuple(TABLE)


def nearest(name: str, known: Iterable[str]) -> str:
    """The words that help after a misspelt name."""
    from difflib import get_close_matches

    known = sorted(known)
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"the nearest are {', '.join(close)}"
    return f"known are {', '.join(known) or 'none'}"


class Capabilities:
    """What this Triton can do on one target; a snapshot that a kernel may keep.

    ``caps.gluon_cdna4`` is a bool, ``caps.why("gluon_cdna4")`` its reason, ``caps["gluon_cdna4"]`` both as a
    :class:`Verdict`. Verdicts are found when first read. Iterating gives the names in the table's order. Reading a flag
    works inside ``torch.compile(fullgraph=True)``, where it is a constant of the compiled graph.

    target : the target asked about
    disabled : capabilities that a switch takes away, each with the words that say which switch
    """

    target: Target

    def __init__(self, target: Target, disabled: Mapping[str, str] | None = None) -> None:
        self.target = target
        self._disabled = dict(disabled or {})
        self._verdicts: dict[str, Verdict] = {}

    def __getitem__(self, name: str) -> Verdict:
        """The verdict on ``name``; KeyError lists the nearest names for one that is not in the table."""
        return _verdict(self, name)

    def __getattr__(self, name: str) -> bool:
        # Reached only until the first read: _verdict stores the flag as a plain attribute, which torch.compile can follow.
        if name.startswith("_"):
            raise AttributeError(name)
        return _flag(self, name)

    def why(self, name: str) -> str:
        """The reason behind a flag, whether it holds or not."""
        return self[name].reason

    def require(self, name: str) -> None:
        """Raise CapabilityError with the reason when ``name`` does not hold."""
        verdict = self[name]
        if not verdict:
            raise CapabilityError(f"{name}: {verdict.reason}")

    def __iter__(self) -> Iterator[str]:
        return iter(_NAMES)

    def __len__(self) -> int:
        return len(_NAMES)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *TABLE]

    def __repr__(self) -> str:
        return f"Capabilities({self.target})"

    def _judge(self, row: Capability) -> tuple[Verdict, bool]:
        """The verdict on a row, and whether it lasts: what a machine in trouble left unanswered is to be asked again."""
        if row.name in self._disabled:
            return Verdict(False, f"disabled by {self._disabled[row.name]}"), True
        if row.all_of:
            return self._judge_all(row)
        if row.probe is not None:
            finding = probes.run(row.probe)
        elif row.package:
            finding = probes.package(row.package)
        elif row.asks is not None:
            finding = probes.run(row.asks, self.target)
        else:
            holds = self.target.is_gpu if row.archs == ("*",) else _base(self.target.label) in row.archs
            finding = Finding(holds, self.target.label)
        return Verdict(finding.holds, f"{'' if finding.holds else f'needs {row.needs}: '}found {finding.found}"), finding.lasts

    def _judge_all(self, row: Capability) -> tuple[Verdict, bool]:
        verdicts = {need: self[need] for need in row.all_of if TABLE[need].kind != "both"}
        if all(verdicts.values()):  # a compiler is asked about what it may know only
            verdicts |= {need: self[need] for need in row.all_of if TABLE[need].kind == "both"}
        failing = [need for need, verdict in verdicts.items() if not verdict]
        lasts = all(need in self._verdicts for need in failing)
        said = failing or [need for need in verdicts if TABLE[need].kind != "both"]
        return Verdict(not failing, self._join({need: verdicts[need].reason for need in said})), lasts

    def joined(self, names: Iterable[str]) -> str:
        """The reasons of several capabilities in one line: the first of each kind, since the others follow from it."""
        return self._join({name: self.why(name) for name in names})

    def _join(self, reasons: Mapping[str, str]) -> str:
        first: dict[str, str] = {}
        for name in reasons:
            first.setdefault(TABLE[name].kind, name)
        return "; ".join(
            f"needs {name}: {reasons[name]}" if name in self._disabled else reasons[name] for name in first.values()
        )


def _base(label: str) -> str:
    """The architecture that a variant of it belongs to: sm90a to sm90, sm100f to sm100, gfx950:sramecc+ to gfx950."""
    return re.sub(r"^(sm\d+)[af]$|^(gfx\w+)(?:[:-].*)$", r"\1\2", label)


def _verdict(capabilities: Capabilities, name: str) -> Verdict:
    verdicts = capabilities._verdicts
    if name not in verdicts:
        if name not in TABLE:
            raise KeyError(f"no capability {name!r}; {nearest(name, TABLE)}")
        verdict, lasts = capabilities._judge(TABLE[name])
        if not lasts:
            return verdict
        verdicts[name] = verdict
        capabilities.__dict__[name] = verdict.available
    return verdicts[name]


def _flag(capabilities: Capabilities, name: str) -> bool:
    if name not in TABLE:
        raise AttributeError(f"no capability {name!r}; {nearest(name, TABLE)}")
    return _verdict(capabilities, name).available


# What torch.compiler.assume_constant_result sets, without importing torch: a verdict does not change within a snapshot.
_verdict._dynamo_marked_constant = True  # type: ignore[attr-defined]
_flag._dynamo_marked_constant = True  # type: ignore[attr-defined]
