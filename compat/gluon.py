"""One Gluon surface over Triton 3.6 to 3.9: what kernels import in place of triton.experimental.gluon.

    from capgate.compat.gluon import gl, gluon, cdna4, async_copy

Names that every supported build offers alike are handed on as they are. What was renamed or moved has one name here, which
means the newest of the build's own names; no version number is asked, so that a vendor build that has a feature early gets it.
These are found once, when this module is imported: a loaded Triton keeps its names, and no switch could lend it others.
``VGPRS_ONLY`` is a choice and no name: it asks its capability at each use, so that :func:`capgate.compat.override` reaches the
next launch.

Importing this module where Gluon lacks the interface of Triton 3.6 raises CapabilityError with the reason; import it from
modules that only a variant behind ``gluon_cdna3``, ``gluon_cdna4``, ``gluon_gfx1250`` or ``gluon_hopper`` loads.

What no name here can hide, because it is silent and depends on a kernel's shape: do not write, in a kernel that is to run on
builds without the capability,

* ``carried_loop_bounds``: a ``for`` that carries a value to its next iteration for nothing but the bounds or the step of
  ``for`` loops inside it (such as the next item's first and last tile, loaded an iteration ahead). Every iteration then
  sees the first value. It holds for the classic language too. Make one of the two loops a ``while``, use the value for
  something that has an effect, or load it in the iteration that needs it.
* ``wgmma_after_zero_trip_loop``: inside a loop over items, a loop of wgmmas and behind it another wgmma on the same operand
  (a peeled last tile). Where the inner loop runs zero times, all but the first of the wgmma's steps read what an earlier
  item left in the registers of the operand's descriptor. Issue all wgmmas of an operand in one place.

And on every build, because what it breaks depends on what else the GPU runs:

* An ``mbarrier`` whose last use is over gives its shared memory to the next allocation, still initialised, and what lies
  there may then change by itself. Initialise none that is not used, and ``mbarrier.invalidate`` one that is not used by
  specialised warps up to the kernel's end.
"""

# ruff: noqa: RET505 - a branch on a constant of a kernel needs its else

from collections.abc import Iterator, Mapping
from typing import Any

from . import _layout_probes, _probes
from ._lookup import capabilities
from .targets import CPU

__all__ = [
    "KEEP_NAN",
    "VGPRS_ONLY",
    "GluonASTSource",
    "TensorDescriptor",
    "aggregate",
    "async_copy",
    "barrier",
    "cdna3",
    "cdna4",
    "constexpr_function",
    "gfx1250",
    "gl",
    "gluon",
    "hopper",
    "mbarrier",
    "reinterpret",
    "tma_load",
    "tma_store",
    "tma_store_wait",
]

capabilities(CPU).require("gluon")  # of the build: the same for every target

from triton.experimental import gluon  # noqa: E402
from triton.experimental.gluon import language as gl  # noqa: E402
from triton.language import core as _core  # noqa: E402

# --- every target ---------------------------------------------------------------------------------------------------------

constexpr_function = gluon.constexpr_function
aggregate = _probes.first(f"{_layout_probes.GLUON}:aggregate", "triton.language.core:_aggregate")
barrier = _probes.first(
    f"{_layout_probes.GL}:barrier", f"{_layout_probes.GL}:thread_barrier"
)  # of the threads of a workgroup or warp partition
GluonASTSource = _probes.first(f"{_layout_probes.GLUON}:GluonASTSource", f"{_layout_probes.GLUON}._runtime:GluonASTSource")

KEEP_NAN = gl.constexpr(_core.PropagateNan.ALL)  # gl.maximum's default drops a NaN operand, from 3.8 in the interpreter too

_PUBLIC_REINTERPRET = gl.constexpr(hasattr(gl.shared_memory_descriptor, "reinterpret"))


@gluon.jit
def reinterpret(memory, dtype: gl.constexpr, shape: gl.constexpr, layout: gl.constexpr):
    """A shared-memory descriptor's bytes under another dtype, shape or layout; nothing is moved."""
    if _PUBLIC_REINTERPRET:
        return memory.reinterpret(dtype, shape, layout)
    else:
        return memory._reinterpret(dtype, shape, layout)


# --- AMD CDNA3, CDNA4 and gfx1250 (CDNA5) ---------------------------------------------------------------------------------

cdna3 = _probes.resolve(f"{_layout_probes.GL}.amd.cdna3")
cdna4 = _probes.resolve(f"{_layout_probes.GL}.amd.cdna4")
async_copy = _probes.resolve(f"{_layout_probes.GL}.amd.cdna4:async_copy")
gfx1250 = _probes.first(f"{_layout_probes.GL}.amd.cdna5", f"{_layout_probes.GL}.amd.gfx1250")


class _OptionsBehind(Mapping[str, Any]):
    """Launch options for as long as a capability of the build holds, and none otherwise."""

    def __init__(self, capability: str, **options: Any) -> None:
        self._capability, self._options = capability, options

    def _in_force(self) -> dict[str, Any]:
        return self._options if capabilities(CPU)[self._capability] else {}

    def __getitem__(self, name: str) -> Any:
        return self._in_force()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._in_force())

    def __len__(self) -> int:
        return len(self._in_force())


# Launch options that keep MFMA accumulators in VGPRs: builds that split the register file move values between its halves
# inside the loop (20 to 30 moves per 32 keys of the MQA logits on 3.8.0 and 3.9.0).
VGPRS_ONLY: Mapping[str, Any] = _OptionsBehind("llvm_fn_attrs", llvm_fn_attrs="amdgpu-agpr-alloc=0")

# --- NVIDIA Hopper --------------------------------------------------------------------------------------------------------

hopper = _probes.resolve(f"{_layout_probes.GL}.nvidia.hopper")
mbarrier = _probes.resolve(f"{_layout_probes.GL}.nvidia.hopper:mbarrier")
TensorDescriptor = _probes.resolve(f"{_layout_probes.GLUON}.nvidia.hopper:TensorDescriptor")  # of the host: a kernel's argument
_tma = f"{_layout_probes.GL}.nvidia.hopper:tma"
tma_load = _probes.first(f"{_tma}.async_load", f"{_tma}.async_copy_global_to_shared")
tma_store = _probes.first(f"{_tma}.async_store", f"{_tma}.async_copy_shared_to_global")
tma_store_wait = _probes.resolve(f"{_tma}.store_wait")
