"""A Gluon kernel of the device functions that classic Triton has, too."""

from capgate.compat.gluon import gl, gluon
from capgate.kernels.common.device import cdna4


@gluon.jit
def fills(
    out, base, width, strip, first, last, num_keys, num_rows, stride, begins, ends,
    ROWS: gl.constexpr, STRIP: gl.constexpr, KIND: gl.constexpr,
):  # fmt: skip
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 4], [1, 64], [gl.num_warps(), 1], [1, 0])
    row = gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT))
    offset = row.to(gl.int32) * stride
    wanted = row < num_rows
    if KIND == "fill":
        cdna4.fill(out, base, width, offset, wanted, 1, STRIP, gl.int32, LAYOUT)
    elif KIND == "fill_strip":
        cdna4.fill_strip(out, strip, first, last, offset, wanted, 1, STRIP, gl.int32, LAYOUT)
    else:
        begin, end = gl.load(begins + row), gl.load(ends + row)
        cdna4.fill_edge(out, base, begin, end, num_keys, offset, wanted, 1, STRIP, gl.int32, LAYOUT)
