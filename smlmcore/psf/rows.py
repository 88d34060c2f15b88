"""The image of a spline PSF and its derivatives, a row of pixels in a vector: the inner loops of `spline.py`.

The shift between pixels and coefficients is the same for all pixels of an image.  So the three sums of four weights
are done one after another: over z, 4 planes become one (and one with the slopes), then over x, then over y.  That is
16 multiplications a pixel for value and derivatives, where 64 polynomial coefficients a voxel take 256.

Written as vector IR, because numba's own loops check every index, and because nothing then leaves the registers but
the result: 16 columns of coefficients, shifted by up to 3 lanes, make `WHOLE` = 13 pixels of a row, and the last four
rows are kept for the sum over y.  In memory rows are `stride` apart.  What stands in lanes beyond the image's width is
finite and means nothing.
"""

from __future__ import annotations

import math

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..interpolate.cpu import cubic, cubic_slopes
from ..interpolate.simd import Rows, combine

LANES = 16
WHOLE = LANES - 3  # pixels that a vector of coefficients is enough for
PAD = 8  # zeros around the coefficients of each plane, so that an image rarely reaches beyond
_INT = ir.IntType(64)


@numba.njit(cache=True, error_model="numpy")
def blocks_of(w):
    """Vectors of a row for images of width w."""
    return (w + WHOLE - 1) // WHOLE


@numba.njit(cache=True, error_model="numpy")
def stride_of(w):
    """Numbers from a row to the next in scratch memory."""
    return blocks_of(w) * LANES + LANES


@numba.njit(cache=True, error_model="numpy")
def scratch_size(h, w):
    """Numbers of scratch memory that `evaluate` needs, zeros at first: four images, four planes of coefficients."""
    return (4 * h + 4 * (h + 3)) * stride_of(w)


def _passes(slopes: bool):
    """The intrinsic that fills scratch from the coefficients c[o:], planes `sz` and rows `sy` apart."""

    def codegen(context, b, signature, args):
        c, o, sz, sy, h, blocks, wz, wy, wx, dz, dy, dx, scratch = args
        number = lambda v: ir.Constant(_INT, v)  # noqa: E731
        source = Rows(context, b, signature.args[0], c, o, LANES)
        target = Rows(context, b, signature.args[12], scratch, number(0), LANES)
        stride = b.add(b.mul(blocks, number(LANES)), number(LANES))
        image = b.mul(h, stride)
        # the last three rows of f, df/dx and df/dz, before the sum over y
        before = [[cgutils.alloca_once(b, source.vector) for _ in range(3)] for _ in range(3 if slopes else 1)]

        def shifted(v):
            lanes = ir.VectorType(ir.IntType(32), LANES)
            return [b.shuffle_vector(v, source.zero, ir.Constant(lanes, [*range(k, k + LANES)])) for k in range(4)]

        def advance(row, column):
            """Take in a row of coefficients: four rows of f, df/dx and df/dz, this one last."""
            first = b.add(b.mul(row, sy), column)
            planes = [source.load((sz, i), (first, 1)) for i in range(4)]
            flat, *slope = combine(source, planes, *((wz, dz) if slopes else (wz,)))
            new = combine(source, shifted(flat), *((wx, dx) if slopes else (wx,)))
            for v in slope:
                new += combine(source, shifted(v), wx)
            four = [[*map(b.load, places), v] for places, v in zip(before, new, strict=True)]
            for places, values in zip(before, four, strict=True):
                for place, v in zip(places, values[1:], strict=True):
                    b.store(v, place)
            return four

        with cgutils.for_range(b, blocks) as block:
            column = b.mul(block.index, number(WHOLE))
            for i in range(3):
                advance(number(i), column)
            with cgutils.for_range(b, h) as row:
                four, *others = advance(b.add(row.index, number(3)), column)
                value, *found = combine(target, four, *((wy, dy) if slopes else (wy,)))
                found = [combine(target, other, wy)[0] for other in others[:1]] + found
                found += [combine(target, other, wy)[0] for other in others[1:]]
                positive = b.fcmp_ordered(">", value, target.zero)
                here = b.add(b.mul(row.index, stride), column)
                for i, v in enumerate((value, *found)):
                    v = b.select(positive, v, target.zero)
                    b.store(v, target.pointer((image, i), (here, 1)), align=target.size)
        return context.get_dummy_value()

    @intrinsic
    def passes(typing, c, o, sz, sy, h, blocks, wz, wy, wx, dz, dy, dx, scratch):
        integer, four = types.int64, types.UniTuple(c.dtype, 4)
        return types.void(c, *[integer] * 5, *[four] * 6, scratch), codegen

    return passes


_with_slopes, _value_only = _passes(True), _passes(False)


@numba.njit(cache=True, error_model="numpy")
def _whole(u):
    """Whole part and fraction."""
    below = math.floor(u)
    return int(below), u - type(u)(below)


@numba.njit(cache=True, error_model="numpy")
def _times(w, factor):
    return w[0] * factor, w[1] * factor, w[2] * factor, w[3] * factor


@numba.njit(cache=True, error_model="numpy")
def evaluate(x, y, z, table, size, geometry, h, w, slopes, scratch):
    """Fill scratch with f and, if `slopes`, its derivatives to x, y, z: images (h, stride), one after another.

    `table`: coefficients of `size` (p, q, r), flat, one plane mirrored at either end and PAD zeros around;
    `geometry`: z, y, x of the centre in it and 1 / (distance of its planes).
    """
    real = table.dtype.type
    p, q, r = size
    u = z * geometry[3] + geometry[0]
    within = u > real(1) and u < real(p - 2)
    u = min(max(u, real(1)), real(p - 2))  # NaN becomes 1
    kz, tz = _whole(u)
    if kz > p - 3:
        kz, tz = p - 3, real(1)
    big = real(1e6)  # a block so far away holds only zeros
    ky, ty = _whole(min(max(geometry[1] - y, -big), big))
    kx, tx = _whole(min(max(geometry[2] - x, -big), big))
    # the block of coefficients that the image needs
    stride, blocks = stride_of(w), blocks_of(w)
    j, k = ky - 1, kx - 1
    c, o, sz, sy = table, ((kz - 1) * q + j) * r + k, q * r, r
    fits = j >= 0 and k >= 0 and j + h + 3 <= q and k + w + 3 <= r
    if not fits or o + 3 * sz + (h + 2) * sy + blocks * LANES > table.size:
        c, sz, sy = scratch, (h + 3) * stride, stride
        o = 4 * h * stride
        for plane in range(4):
            for row in range(h + 3):
                to, start = o + plane * sz + row * sy, ((kz - 1 + plane) * q + j + row) * r + k
                for i in range(w + 3):
                    inside = 0 <= j + row < q and 0 <= k + i < r
                    scratch[to + i] = table[start + i] if inside else real(0)
    wz, wy, wx = cubic(tz), cubic(ty), cubic(tx)
    if slopes:
        dz = _times(cubic_slopes(tz), geometry[3] if within else real(0))
        dy, dx = _times(cubic_slopes(ty), real(-1)), _times(cubic_slopes(tx), real(-1))
        _with_slopes(c, o, sz, sy, h, blocks, wz, wy, wx, dz, dy, dx, scratch)
    else:
        _value_only(c, o, sz, sy, h, blocks, wz, wy, wx, wz, wy, wx, scratch)
