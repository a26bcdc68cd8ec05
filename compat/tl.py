"""The classic language over Triton 3.5.1 to 3.9.0: one name for what moved, and block pointers where a release has none.

    from capgate.compat.tl import KEEP_NAN, advance, load_block, make_block_ptr, store_block

Names that every supported build offers alike are not here: they are Triton's own. What moved is found once, when this module is
imported, by behaviour and not by a version number. Importing it without a Triton that imports raises CapabilityError with the
reason. What no name can hide: pass every modifier of ``tl.load`` and ``tl.store`` by keyword, and say ``out_dtype`` of
``tl.dot`` and the launch option ``enable_fp_fusion`` where they matter, for their defaults differ between releases.

Block pointers are Triton's own in name and arguments, of one axis or two, and written in pointers and masks, so that they mean
the same on every build: Triton itself makes loads with masks of its block pointers. (3.9 keeps the names and raises.) A kernel
that has them changes its imports, and where it loads or stores a block, :func:`load_block` and :func:`store_block`.
"""

# ruff: noqa: RET505 - a branch on a constant of a kernel needs its else

from . import _probes
from ._lookup import capabilities
from .targets import CPU

__all__ = [
    "KEEP_NAN",
    "CompilationError",
    "OutOfResources",
    "TensorDescriptor",
    "advance",
    "aggregate",
    "constexpr_function",
    "libdevice",
    "load_block",
    "make_block_ptr",
    "store_block",
]

capabilities(CPU).require("triton")  # of the build: the same for every target

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

KEEP_NAN = tl.constexpr(tl.PropagateNan.ALL)  # tl.maximum's and tl.minimum's default drops a NaN operand in compiled code
aggregate = _probes.first("triton:aggregate", "triton.language.core:_aggregate")
constexpr_function = triton.constexpr_function
libdevice = _probes.resolve("triton.language.extra.libdevice")
TensorDescriptor = _probes.resolve("triton.tools.tensor_descriptor:TensorDescriptor")  # of the host: a kernel's argument
CompilationError = _probes.first("triton:CompilationError", "triton.compiler.errors:CompilationError")
OutOfResources = _probes.first("triton:OutOfResources", "triton.runtime.errors:OutOfResources")


@constexpr_function
def _has(axes, axis):
    return axis in axes


@constexpr_function
def _padding(option):
    """What a load gives outside: with no option Triton promises nothing, and zero is as good as anything."""
    if option not in (None, "", "zero", "nan"):
        raise ValueError(f"padding_option: got {option!r}, needs 'zero', 'nan' or None")
    return float("nan") if option == "nan" else 0


@triton.jit
def make_block_ptr(base, shape, strides, offsets, block_shape: tl.constexpr, order: tl.constexpr):
    """As ``tl.make_block_ptr``: a block of a tensor of one axis or two.

    base : pointer to the tensor's first element
    shape, strides, offsets : tuples, of elements: of the tensor, and where the block begins
    block_shape : of powers of two
    order : taken and not needed: what lies side by side follows from the strides
    """
    tl.static_assert(len(block_shape) <= 2, "make_block_ptr: needs one axis or two")
    if len(block_shape) == 1:
        return base, shape, strides, (offsets[0] + tl.arange(0, block_shape[0]),)
    else:
        return base, shape, strides, (offsets[0] + tl.arange(0, block_shape[0]), offsets[1] + tl.arange(0, block_shape[1]))


@triton.jit
def advance(pointer, offsets):
    """As ``tl.advance``: the block so many elements further on."""
    base, shape, strides, places = pointer
    if len(places) == 1:
        return base, shape, strides, (places[0] + offsets[0],)
    else:
        return base, shape, strides, (places[0] + offsets[0], places[1] + offsets[1])


@triton.jit
def _cells(pointer, boundary_check: tl.constexpr):
    """(pointers, mask) of a block's elements; the mask is None where nothing is checked."""
    base, shape, strides, places = pointer
    mask = None
    if len(places) == 1:
        cells = base + places[0].to(tl.int64) * strides[0]
        if _has(boundary_check, 0):
            mask = (places[0] >= 0) & (places[0] < shape[0])
    else:
        rows = places[0][:, None]
        columns = places[1][None, :]
        cells = base + (rows.to(tl.int64) * strides[0] + columns.to(tl.int64) * strides[1])
        if _has(boundary_check, 0):
            mask = (rows >= 0) & (rows < shape[0])
            if _has(boundary_check, 1):
                mask = mask & ((columns >= 0) & (columns < shape[1]))
        elif _has(boundary_check, 1):
            mask = (columns >= 0) & (columns < shape[1])
    return cells, mask


@triton.jit
def load_block(
    pointer,
    boundary_check: tl.constexpr = (),
    padding_option: tl.constexpr = None,
    cache_modifier: tl.constexpr = None,
    eviction_policy: tl.constexpr = None,
    volatile: tl.constexpr = False,
):
    """As ``tl.load`` of a block pointer: the block's elements.

    boundary_check : axes along which the block may reach over the tensor's borders
    padding_option : what it is there: "zero" or "nan"; None or "" for anything
    """
    cells, mask = _cells(pointer, boundary_check)
    other: tl.constexpr = None if len(boundary_check) == 0 else _padding(padding_option)
    return tl.load(
        cells, mask=mask, other=other, cache_modifier=cache_modifier, eviction_policy=eviction_policy, volatile=volatile
    )


@triton.jit
def store_block(
    pointer, value, boundary_check: tl.constexpr = (), cache_modifier: tl.constexpr = None, eviction_policy: tl.constexpr = None
):
    """As ``tl.store`` to a block pointer: along the axes of ``boundary_check`` only what lies in the tensor is written."""
    cells, mask = _cells(pointer, boundary_check)
    tl.store(cells, value, mask=mask, cache_modifier=cache_modifier, eviction_policy=eviction_policy)
