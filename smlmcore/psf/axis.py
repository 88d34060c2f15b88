"""One axis of a pixel-integrated Gaussian, as loops that LLVM turns into vectors.

    E(i; c, s) = Phi((i + 1/2 - c) / s) - Phi((i - 1/2 - c) / s)

Neighbouring pixels share an edge, so a table of n pixels costs n + 1 edges.  An edge costs one exponential, made of
exponent bits and a polynomial: it is the density, and times a polynomial in 2 / (1 + c |u|) - 1 the distribution.

The tables lie in flat scratch, and each is as long as whole vectors of `LANES`, so that loops over them have no tail.
`get` and `put` are w[i] and w[i] = v without numba's check for a negative index, which would stop the vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, overload
from numpy.polynomial import Chebyshev, Polynomial

LANES = 16  # float32 numbers of the widest vector
FAST = {"reassoc", "contract", "arcp", "nsz"}  # not 'nnan': NaN must come out as NaN
FAR = 9.0  # where the density is below 1e-17

compiled = numba.njit(cache=True, error_model="numpy", fastmath=FAST)
parallel = numba.njit(cache=True, error_model="numpy", fastmath=FAST, parallel=True)

EDGE = """
def edge(u):
    t = R(0.5) * u * u
    t = R(40) if t > R(40) else t
    y = t * R(-1.4426950408889634)
    i = I(y - R(0.5))
    f = y - R(i)
    g = $EXP2 * I((i + I($BIAS)) << I($SHIFT)).view(R)
    s = R(2) / (R(1) + R($SCALE) * abs(u)) - R(1)
    h = R(0.5) - g * $ERFC
    return (h if u > R(0) else -h), g
"""


def horner(x: str, c: Sequence[float]) -> str:
    """The polynomial of coefficients `c`, lowest first, as an expression in `x`; R is the type of its numbers.

    >>> horner("x", [1.0, 2.0])
    '(R(1.0) + x * R(2.0))'
    """
    return f"R({c[0]!r})" if len(c) == 1 else f"(R({c[0]!r}) + {x} * {horner(x, c[1:])})"


def polynomial(f: Callable[[Any], Any], degree: int, low: float, high: float) -> list[float]:
    """Coefficients, lowest first, of a polynomial near `f` between `low` and `high`.

    >>> [round(c, 3) for c in polynomial(np.exp, 2, -0.1, 0.1)]
    [1.0, 1.001, 0.5]
    """
    return Chebyshev.interpolate(f, degree, [low, high]).convert(kind=Polynomial).coef.tolist()


def erfcx(x: np.ndarray) -> np.ndarray:
    """exp(x²) erfc(x) for |x| < 26, as scipy.special.erfcx, which takes a tenth of a second to import.

    >>> erfcx(np.array([0.0, 6.0])).round(4)
    array([1.    , 0.0928])
    """
    return np.exp(x * x) * np.vectorize(math.erfc)(x)


def _edge(single: bool) -> Any:
    """`edge` for float32 or float64, good to 2e-7 or 4e-15."""
    scale = 0.45 if single else 0.4

    def erfc(s):
        return 0.5 * erfcx((2 / (s + 1) - 1) / scale / math.sqrt(2))

    words = {
        "$EXP2": horner("f", polynomial(np.exp2, 6 if single else 11, -0.5, 0.5)),
        "$ERFC": horner("s", polynomial(erfc, 9 if single else 18, 2 / (1 + scale * FAR) - 1, 1.0)),
        "$BIAS": "127" if single else "1023",
        "$SHIFT": "23" if single else "52",
        "$SCALE": str(scale),
    }
    text = EDGE
    for word, value in words.items():
        text = text.replace(word, value)
    scope = {"R": np.float32 if single else np.float64, "I": np.int32 if single else np.int64, "abs": abs}
    exec(text, scope)
    return numba.njit(scope["edge"], error_model="numpy", fastmath=FAST, forceinline=True)


def edge(u):
    """Phi(u) - 1/2 and exp(-u^2 / 2), within compiled code."""
    raise NotImplementedError("edge runs in compiled code only; use scipy.special.ndtr")


@overload(edge, jit_options={"error_model": "numpy", "fastmath": FAST, "forceinline": True})
def _(u):
    compiled_edge = _edge(u == types.float32)

    def run(u):
        return compiled_edge(u)

    return run


@intrinsic
def get(typing, a, i):
    """a[i] of a contiguous array, unchecked; a comes as it is, i is an int."""

    def codegen(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.load(builder.gep(array.data, [args[1]]))

    return a.dtype(a, types.int64), codegen


@intrinsic
def put(typing, a, i, value):
    """a[i] = value, unchecked."""

    def codegen(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        builder.store(args[2], builder.gep(array.data, [args[1]]))
        return context.get_dummy_value()

    return types.void(a, types.int64, a.dtype), codegen


@compiled
def whole(size):
    """`size` rounded up to whole vectors."""
    return (size + LANES - 1) // LANES * LANES


@compiled
def room(size):
    """Numbers of scratch for the edges of `size` pixels: one more than pixels, and one beyond the last vector."""
    return whole(size + 1) + LANES


@compiled
def values(w, table, edges, first, centre, sigma, size):
    """w[table:] = E of pixels first...first + size - 1, and beyond them up to whole vectors."""
    real = w.dtype.type
    q = real(1) / sigma
    shift = real(first) - real(0.5) - centre
    for j in range(whole(size + 1)):
        put(w, edges + j, edge((real(j) + shift) * q)[0])
    for j in range(whole(size)):
        put(w, table + j, get(w, edges + j + 1) - get(w, edges + j))


@compiled
def slopes(w, table, edges, first, centre, sigma, size):
    """Three tables, whole(size) apart: E, dE/dc, dE/ds; zero beyond the pixels.  Scratch: 3 room(size) at `edges`."""
    real = w.dtype.type
    q = real(1) / sigma
    density = q * real(0.3989422804014327)
    shift = real(first) - real(0.5) - centre
    length, step = whole(size), room(size)
    for j in range(whole(size + 1)):
        u = (real(j) + shift) * q
        h, g = edge(u)
        put(w, edges + j, h)
        put(w, edges + step + j, g * density)
        put(w, edges + 2 * step + j, u * g * density)
    for j in range(length):
        e = edges + j
        put(w, table + j, get(w, e + 1) - get(w, e))
        put(w, table + length + j, get(w, e + step) - get(w, e + step + 1))
        put(w, table + 2 * length + j, get(w, e + 2 * step) - get(w, e + 2 * step + 1))
    for j in range(size, length):
        for t in range(3):
            put(w, table + t * length + j, real(0))


@compiled
def spread(w, canvas, stride, rows, columns, down, across, photons):
    """Add photons * down * across to `rows` rows of `columns` (whole vectors), `stride` apart, at w[canvas:]."""
    for r in range(rows):
        f = photons * get(w, down + r)
        c = canvas + r * stride
        for j in range(columns):
            put(w, c + j, get(w, c + j) + f * get(w, across + j))


@compiled
def collect(w, sums, down, across, rows, columns, image, start, stride, end):
    """Sums over a window of image times dE/dx, dE/dy, E, dE/dsigma_x, dE/dsigma_y, with E = E_y E_x.

    `down` and `across` are tables made by `slopes` for `rows` rows and `columns` columns; image[start:end] holds the
    window, its rows `stride` apart.  Scratch: 4 whole(columns) at `sums`.
    """
    real = w.dtype.type
    zero = real(0)
    length, height = whole(columns), whole(rows)
    margin = sums + 3 * length  # the last row may end before a whole vector: continued with zeros
    for j in range(4 * length):
        put(w, sums + j, zero)
    for r in range(rows):
        b, b_c, b_s = get(w, down + r), get(w, down + height + r), get(w, down + 2 * height + r)
        row = start + r * stride
        if row + length <= end:
            _add_row(w, sums, length, image, row, b, b_c, b_s)
        else:
            for j in range(columns):
                put(w, margin + j, get(image, row + j))
            _add_row(w, sums, length, w, margin, b, b_c, b_s)
    gx = gy = g = gsx = gsy = zero
    for j in range(length):
        m, m_c, m_s = get(w, sums + j), get(w, sums + length + j), get(w, sums + 2 * length + j)
        a, a_c, a_s = get(w, across + j), get(w, across + length + j), get(w, across + 2 * length + j)
        gx += m * a_c
        gy += m_c * a
        g += m * a
        gsx += m * a_s
        gsy += m_s * a
    return gx, gy, g, gsx, gsy


@compiled
def _add_row(w, sums, length, image, start, b, b_c, b_s):
    for j in range(length):
        g = get(image, start + j)
        put(w, sums + j, get(w, sums + j) + b * g)
        put(w, sums + length + j, get(w, sums + length + j) + b_c * g)
        put(w, sums + 2 * length + j, get(w, sums + 2 * length + j) + b_s * g)
