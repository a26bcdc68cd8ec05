"""Questions put to the installed Triton's Gluon: does a layout build, does a copy take it."""

from importlib import import_module

from . import versions
from ._probes import Finding, by_release, finding, parameters_of, resolve

GLUON = "triton.experimental.gluon"
GL = f"{GLUON}.language"


def triton_ge_36() -> Finding:
    """The release says so; where the version is unreadable, Gluon's 3.6 interface does."""
    build = versions.find("triton")
    return by_release(build.at_least(3, 6), build) if build.release else gluon()


def gluon() -> Finding:
    """Build the layouts of the 3.6 interface: three-part MFMA shapes, and cga_layout in place of three CTA keywords."""
    if resolve(f"{GL}.amd:AMDMFMALayout") is None:
        return finding(False, ", without Gluon for AMD")
    gl, amd = import_module(GL), import_module(f"{GL}.amd")
    try:
        amd.AMDMFMALayout(version=4, instr_shape=[16, 16, 128], transposed=True, warps_per_cta=[1, 1])
    except (TypeError, AssertionError, ValueError):
        return finding(False, ", whose AMDMFMALayout takes no [M, N, K] instruction shape")
    if "cga_layout" not in parameters_of(gl.BlockedLayout):
        return finding(False, ", whose BlockedLayout takes no cga_layout")
    return finding(True)


def gluon_cdna3_mfma() -> Finding:
    """Build the layout of CDNA3's fp8 products; cdna3.mfma takes it."""
    if resolve(f"{GL}.amd.cdna3:mfma") is None:
        return finding(False, ", without cdna3.mfma")
    try:
        import_module(f"{GL}.amd").AMDMFMALayout(version=3, instr_shape=[32, 32, 16], transposed=False, warps_per_cta=[1, 1])
    except (TypeError, AssertionError, ValueError):
        return finding(False, ", whose AMDMFMALayout takes no [32, 32, 16] of version 3")
    return finding(True)


def gluon_gfx1250_wmma() -> Finding:
    """Build the layout of gfx1250's fp8 products, which deals them out to waves by bases; wmma takes it."""
    if resolve(f"{GL}.amd.gfx1250:wmma") is None and resolve(f"{GL}.amd.cdna5:wmma") is None:
        return finding(False, ", without gfx1250.wmma")
    try:
        import_module(f"{GL}.amd").AMDWMMALayout(
            version=3, transposed=False, warp_bases=[[1, 0]], reg_bases=[], instr_shape=[16, 16, 128]
        )
    except (TypeError, AssertionError, ValueError):
        return finding(False, ", whose AMDWMMALayout takes no warp_bases")
    return finding(True)


def gluon_linear_async_copy() -> Finding:
    """Offer the direct-to-LDS copy a pointer tensor in a linear layout, and see whether it gets past the layout check."""
    copy = resolve(f"{GL}.amd.cdna4.async_copy:global_load_to_shared")
    if copy is None:
        return finding(False, ", without cdna4.async_copy.global_load_to_shared")
    gl = import_module(GL)

    class AcceptedError(Exception):
        pass

    class Pointers:  # all that the copy asks of its pointers before it compares their shape with the destination's
        layout = gl.DistributedLinearLayout([[0, 1]], [[0, 1 << bit] for bit in range(1, 7)], [], [], [1, 128])
        shape = (1, 128)

        @property
        def type(self) -> "Pointers":
            return self

        def is_block(self) -> bool:
            return True

    class Destination:
        @property
        def shape(self) -> None:
            raise AcceptedError

    try:
        copy(Destination(), Pointers(), _semantic=object())
    except AcceptedError:
        return finding(True)
    except ValueError as error:
        return finding(False, f", whose copy says: {error}")
    return finding(False, ", whose copy looked at no layout")


def tma_multicast() -> Finding:
    """The tensor-map load, under the newer of its two names, takes multicast."""
    tma = f"{GL}.nvidia.hopper:tma"
    load = resolve(f"{tma}.async_load") or resolve(f"{tma}.async_copy_global_to_shared")
    holds = load is not None and "multicast" in parameters_of(load)
    return finding(holds, ", whose tensor-map load takes no multicast")
