"""Maximum pooling and enlarging by 2, and their gradients, on the CPU, for float32 and multiples of 8 channels.

All four join a coarse image with a fine one, twice as large; so one function does a coarse line of any of them, and one
parallel loop runs it: each such loop costs numba a second or more to compile.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
from numba import prange, types

from .compiled import SINGLE, WHOLE, at, copy, frozen, link, njit, shared
from .direct import unravel
from .vectors import Vector, corners, elementwise

POOL, POOL_GRADIENT, ENLARGE, SHRINK = range(4)
NONE = np.empty(0, np.float32)


def _first_maximum(*values):
    """The gradient, the last argument, for the first of the others that equals the largest, the last but one."""
    *xs, largest, left = values
    parts = []
    for x in xs:
        parts.append(left.where_equal(x, largest))
        left = left - parts[-1]
    return parts


_largest = elementwise(lambda *values: (reduce(Vector.max, values),))
_gradient = elementwise(_first_maximum)
_repeat = elementwise(lambda value: (value,) * 4)
_sum = elementwise(lambda *values: (reduce(Vector.__add__, values),))


# Each of the following does `count` coarse pixels, of `c` channels, `t` the first of them; `s` the first of the fine
# ones, of `e` channels, of which the first `c` count; `row` and `plane`: distances in the fine image.
@njit()
def _pool(x, s, e, row, plane, depth, out, t, c, count):
    for i in range(count):
        one, four = (t + i * c,), corners(s + 2 * i * e, row, e)
        if depth == 1:
            _largest(x, four, x, (), x, (), out, one, c)
        else:
            _largest(x, four, x, corners(s + 2 * i * e + plane, row, e), x, (), out, one, c)


@njit()
def _pool_gradient(x, out, g, s, e, row, plane, depth, dx, t, c, count):
    for i in range(count):
        one, four = (t + i * c,), corners(s + 2 * i * e, row, e)
        if depth == 1:
            _gradient(x, four, out, one, g, one, dx, four, c)
        else:
            eight = four + corners(s + 2 * i * e + plane, row, e)
            _gradient(x, eight, out, one, g, one, dx, eight, c)


@njit()
def _enlarge(x, t, c, out, s, e, row, count):
    for i in range(count):
        _repeat(x, (t + i * c,), x, (), x, (), out, corners(s + 2 * i * e, row, e), c)


@njit()
def _shrink(g, s, e, row, plane, depth, dx, t, c, count):
    for i in range(count):
        one, four = (t + i * c,), corners(s + 2 * i * e, row, e)
        if depth == 1:
            _sum(g, four, g, (), g, (), dx, one, c)
        else:
            _sum(g, four, g, corners(s + 2 * i * e + plane, row, e), g, (), dx, one, c)


@njit()
def _runs(source, s, source_step, target, t, target_step, floats, count):
    for i in range(count):
        copy(source, s + i * source_step, target, t + i * target_step, floats)


@shared(types.void(WHOLE, WHOLE, *[SINGLE] * 5, types.CPointer(WHOLE)))
def coarse_line(which, line, a, b, g, target, rest, sizes):
    """Line number `line` of the coarse image; `a` ... `rest` as in `run`."""
    o, p, q, c, depth, f = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]
    h, w, e = sizes[6], sizes[7], sizes[8]
    image, z, y = unravel(line, o, p)
    t, s, row, plane = line * q * c, ((image * f + z * depth) * h + y * 2) * w * e, w * e, h * w * e
    if which == POOL:
        _pool(a, s, e, row, plane, depth, target, t, c, q)
    elif which == POOL_GRADIENT:
        _pool_gradient(a, b, g, s, e, row, plane, depth, target, t, c, q)
    elif which == SHRINK:
        _shrink(a, s, e, row, plane, depth, target, t, c, q)
    d = e - c
    for i in range(depth):
        if which == ENLARGE:
            _enlarge(a, t, c, target, s + i * plane, e, row, q)
        for j in range(2):
            first = s + i * plane + j * row
            if which == ENLARGE and d > 0:
                _runs(b, first // e * d, d, target, first + c, e, d, w)
            elif which == SHRINK and d > 0:
                _runs(a, first + c, e, rest, first // e * d, d, d, w)


@njit(parallel=True)
def _lines(which, count, a, b, g, target, rest, sizes):
    for line in prange(count):
        coarse_line(which, line, at(a, 0), at(b, 0), at(g, 0), at(target, 0), at(rest, 0), at(sizes, 0))


def suit(depth: int, size: int, channels: int, dtype: np.dtype) -> bool:
    """Whether this module does windows of `depth` planes of `size` x `size` pixels."""
    return depth in (1, 2) and size == 2 and channels % 8 == 0 and dtype == np.float32


def run(
    which: int, coarse: tuple[int, ...], fine: tuple[int, ...], depth: int,
    a: np.ndarray, b: np.ndarray, g: np.ndarray, target: np.ndarray, rest: np.ndarray = NONE,
) -> None:  # fmt: skip
    """Write `target`, for images of the shapes `coarse` and `fine` (n, planes, rows, columns, channels).

    | which | a | b | g | target | rest |
    |---|---|---|---|---|---|
    | POOL | x, fine | | | its maxima, coarse | |
    | POOL_GRADIENT | x | its maxima | their gradient | that of x | |
    | ENLARGE | x, coarse | skip, fine | | x enlarged ++ skip, fine | |
    | SHRINK | gradient of that | | | gradient of x | of skip |
    """
    link()
    n, o, p = coarse[:3]
    sizes = np.array([*coarse[1:], depth, *fine[1:]], np.int64)
    a, b, g = (frozen(v).reshape(-1) for v in (a, b, g))
    _lines(which, n * o * p, a, b, g, target.reshape(-1), rest.reshape(-1), sizes)
