"""The image of a spline PSF and its derivatives, a row of pixels in a vector: the inner loops of `spline.py`.

The shift between pixels and coefficients is the same for all pixels of an image.  So the three sums of four weights
are done one after another: over z, 4 planes become one (and one with the slopes), then over x, then over y.  That is
16 multiplications a pixel for value and derivatives, where 64 polynomial coefficients a voxel take 256.

Written as vector IR, because numba's own loops check every index, and because the vectors of a row stay in registers.
A row takes `blocks` vectors of 16, with room for the three neighbours beyond its end; in memory rows are `stride`
apart.  What stands in lanes beyond the image's width is finite and means nothing.
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
PAD = 8  # zeros around the coefficients of each plane, so that an image rarely reaches beyond
_INT = ir.IntType(64)


@numba.njit(cache=True, error_model="numpy")
def blocks_of(w):
    """Vectors of a row for images of width w."""
    return (w + 3 + LANES - 1) // LANES


@numba.njit(cache=True, error_model="numpy")
def stride_of(w):
    """Numbers from a row to the next in scratch memory."""
    return blocks_of(w) * LANES + LANES


def scratch_size(h: int, w: int) -> int:
    """Numbers of scratch memory that `evaluate` needs, zeros at first."""
    return (9 * (h + 3) + 4 * h) * stride_of(w)


@numba.njit(cache=True, error_model="numpy")
def output_at(h, w):
    """Where in scratch the images begin: f, df/dx, df/dy, df/dz, (h, stride) each."""
    return 5 * (h + 3) * stride_of(w)


def _passes(slopes: bool):
    """The intrinsic that fills scratch from the coefficients c[o:], planes `sz` and rows `sy` apart."""

    def codegen(context, b, signature, args):
        c, o, sz, sy, h, blocks, wz, wy, wx, dz, dy, dx, scratch = args
        number = lambda v: ir.Constant(_INT, v)  # noqa: E731
        source = Rows(context, b, signature.args[0], c, o, LANES)
        target = Rows(context, b, signature.args[12], scratch, number(0), LANES)
        rows = b.add(h, number(3))
        lanes = b.mul(blocks, number(LANES))
        stride = b.add(lanes, number(LANES))
        section = b.mul(rows, stride)
        output = b.mul(section, number(5))
        image = b.mul(h, stride)

        def place(base, *terms):  # pointer to a vector of scratch
            p = b.gep(target.start, [base])
            for term in terms:
                p = b.gep(p, [term])
            return b.bitcast(p, target.vector.as_pointer())

        def load(*terms):
            return b.load(place(*terms), align=target.size)

        def store(value, *terms):
            b.store(value, place(*terms), align=target.size)

        def loops(count):
            """The places of all vectors of `count` rows, relative to the first of a section."""
            with cgutils.for_range(b, count) as row, cgutils.for_range(b, blocks) as block:
                column = b.mul(block.index, number(LANES))
                yield row.index, column, b.add(b.mul(row.index, stride), column)

        def at(index):
            return b.mul(section, number(index))

        for row, column, here in loops(rows):
            first = b.add(b.mul(row, sy), column)
            planes = [source.load((sz, i), (first, 1)) for i in range(4)]
            for i, plane in enumerate(combine(source, planes, *((wz, dz) if slopes else (wz,)))):
                store(plane, at(i), here)
        for _, _, here in loops(rows):
            near = [load(here, number(k)) for k in range(4)]
            for i, row in enumerate(combine(target, near, *((wx, dx) if slopes else (wx,))), 2):
                store(row, at(i), here)
            if slopes:
                near = [load(at(1), here, number(k)) for k in range(4)]
                store(combine(target, near, wx)[0], at(4), here)
        for _, _, here in loops(h):
            near = [load(at(2), here, b.mul(stride, number(k))) for k in range(4)]
            found = combine(target, near, *((wy, dy) if slopes else (wy,)))
            positive = b.fcmp_ordered(">", found[0], target.zero)
            found[0] = b.select(positive, found[0], target.zero)
            if slopes:
                for index in (3, 4):
                    near = [load(at(index), here, b.mul(stride, number(k))) for k in range(4)]
                    found += combine(target, near, wy)
                value, d_y, d_x, d_z = found
                found = [value, *(b.select(positive, v, target.zero) for v in (d_x, d_y, d_z))]
            for i, v in enumerate(found):
                store(v, b.add(output, b.mul(image, number(i))), here)
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
    """Fill scratch with f and, if `slopes`, its derivatives to x, y, z for an image (h, w); see `output_at`.

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
        o = output_at(h, w) + 4 * h * stride
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
