"""Maximum pooling and enlarging by 2, and their gradients, on the CPU, for float32 and multiples of 8 channels.

All four join a coarse image with a fine one, twice as large; so one function does a coarse line of any of them, and one
parallel loop runs it: each such loop costs numba a second or more to compile.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
from numba import prange, types

from .compiled import SINGLE, WHOLE, at, copy, frozen, link, njit, shared
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


@shared(types.void(WHOLE, WHOLE, *[SINGLE] * 5, types.CPointer(WHOLE)))
def coarse_line(which, line, a, b, g, target, rest, sizes):
    """Line number `line` of the coarse image; `a` ... `rest` as in `run`."""
    o, p, q, c, depth, f, h, w, e = (
        sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7], sizes[8]
    )  # fmt: skip
    fine, row, plane = ((line // p // o * f + line // p % o * depth) * h + line % p * 2) * w * e, w * e, h * w * e
    for i in range(q):
        one, four = (line * q * c + i * c,), corners(fine + 2 * i * e, row, e)
        behind = corners(fine + 2 * i * e + plane, row, e)
        if which == POOL:
            if depth == 1:
                _largest(a, four, a, (), a, (), target, one, c)
            else:
                _largest(a, four, a, behind, a, (), target, one, c)
        elif which == POOL_GRADIENT:
            if depth == 1:
                _gradient(a, four, b, one, g, one, target, four, c)
            else:
                _gradient(a, four + behind, b, one, g, one, target, four + behind, c)
        elif which == ENLARGE:
            _repeat(a, one, a, (), a, (), target, four, c)
            if depth == 2:
                _repeat(a, one, a, (), a, (), target, behind, c)
        elif depth == 1:
            _sum(a, four, a, (), a, (), target, one, c)
        else:
            _sum(a, four, a, behind, a, (), target, one, c)
    if which >= ENLARGE and e > c:
        for k in range(depth * 2):
            first = fine // e + k // 2 * h * w + k % 2 * w
            for pixel in range(first, first + w):
                if which == ENLARGE:
                    copy(b, pixel * (e - c), target, pixel * e + c, e - c)
                else:
                    copy(a, pixel * e + c, rest, pixel * (e - c), e - c)


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
