"""Logarithms, factorials and small matrices for numba, in forms that LLVM turns into vectors.

`log`, `log_factorial`: float64.  `poisson_term` is the logarithm of the Poisson probability of x photoelectrons where m
are expected, in the precision of its arguments.  The polynomials are for code that writes them out.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import overload

from ..psf.axis import compiled, polynomial


@cache
def log1p_polynomial(degree: int) -> list[float]:
    """Coefficients of log(1 + f) / f for sqrt(1/2) < 1 + f < sqrt(2)."""
    return polynomial(lambda f: np.log1p(f) / np.where(f == 0, 1, f) + (f == 0), degree, -0.293, 0.4143)


@cache
def stirling_polynomial(degree: int) -> list[float]:
    """Coefficients in w = 1/z of (log Gamma(z + 1) - (z + 1/2) log z + z - 1/2 log 2 pi) z = 1/12 - w^2/360 + ..."""
    return polynomial(_stirling, degree, 0.0, 1.0)


def _stirling(w: Any) -> Any:
    z = 1 / np.maximum(w, 1e-3)
    direct = (np.vectorize(math.lgamma)(z + 1) - (z + 0.5) * np.log(z) + z - 0.5 * math.log(2 * math.pi)) * z
    u = w * w
    series = 1 / 12 - u * (1 / 360 - u * (1 / 1260 - u * (1 / 1680 - u / 1188)))
    return np.where(w < 0.05, series, direct)


@compiled
def log(x):
    """log of a positive normal float64; good to 2e-16 + 1e-15 |log x|."""
    bits = np.float64(x).view(np.int64)
    exponent = (bits - np.int64(0x3FE6A09E667F3BCD)) >> np.int64(52)
    m = np.int64(bits - (exponent << np.int64(52))).view(np.float64)  # sqrt(1/2) ... sqrt(2)
    s = (m - 1.0) / (m + 1.0)
    q = s * s
    t = 1 / 19 + q * (1 / 21 + q / 23)
    t = 1 / 11 + q * (1 / 13 + q * (1 / 15 + q * (1 / 17 + q * t)))
    t = 1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * t)))
    return np.float64(exponent) * math.log(2) + 2.0 * s * (1.0 + q * t)


@compiled
def log_factorial(x):
    """log Gamma(x + 1) for x >= 0: Stirling's series at z = x + 8, and the product that leads there."""
    z = x + 8.0
    product = (x + 1.0) * (x + 2.0) * (x + 3.0) * (x + 4.0) * (x + 5.0) * (x + 6.0) * (x + 7.0)
    y = 1.0 / (z * z)
    series = (1 / 12 - y * (1 / 360 - y * (1 / 1260 - y * (1 / 1680 - y / 1188)))) / z
    return (z - 0.5) * log(z) - z + 0.5 * math.log(2 * math.pi) + series - log(product)


_LOG1P, _SERIES = tuple(log1p_polynomial(8)), tuple(stirling_polynomial(4))


@compiled
def log_single(x):
    """log of a positive float32: exponent bits plus polynomial."""
    R, c = np.float32, _LOG1P
    bits = np.float32(x).view(np.int32)
    e = np.int32(bits - np.int32(0x3F3504F3)) >> np.int32(23)
    f = np.int32(bits - np.int32(e << np.int32(23))).view(np.float32) - R(1)
    t = R(c[4]) + f * (R(c[5]) + f * (R(c[6]) + f * (R(c[7]) + f * R(c[8]))))
    return R(e) * R(math.log(2)) + f * (R(c[0]) + f * (R(c[1]) + f * (R(c[2]) + f * (R(c[3]) + f * t))))


@compiled
def _term_single(x, m):
    """`poisson_term` in float32, from differences that do not cancel: z = x + 1."""
    R, s = np.float32, _SERIES
    z = x + R(1)
    q = R(1) / z
    series = R(s[0]) + q * (R(s[1]) + q * (R(s[2]) + q * (R(s[3]) + q * R(s[4]))))
    return x * log_single(m * q) + (z - m) - R(0.5) * log_single(z) - R(0.9189385332046727) - q * series


def poisson_term(x, m):
    """x log m - m - log Gamma(x + 1), called from numba."""
    raise NotImplementedError


@overload(poisson_term)
def _(x, m):
    if x == types.float32:
        return lambda x, m: _term_single(x, m)
    return lambda x, m: x * log(m) - m - log_factorial(x)


@numba.njit(cache=True, error_model="numpy")
def cholesky(matrix, lower, size, damping, least):
    """Factor `matrix` + damping (unit diagonal) into `lower`; False if a pivot falls to `least`."""
    for a in range(size):
        for b in range(a + 1):
            s = matrix[a, b] + (damping if a == b else 0.0)
            for c in range(b):
                s -= lower[a, c] * lower[b, c]
            if a == b:
                if not s > least:
                    return False
                lower[a, a] = math.sqrt(s)
            else:
                lower[a, b] = s / lower[b, b]
    return True


@numba.njit(cache=True, error_model="numpy")
def solve(lower, size, x):
    """Replace x by the solution of (L L^T) y = x."""
    for a in range(size):
        for b in range(a):
            x[a] -= lower[a, b] * x[b]
        x[a] /= lower[a, a]
    for a in range(size - 1, -1, -1):
        for b in range(a + 1, size):
            x[a] -= lower[b, a] * x[b]
        x[a] /= lower[a, a]


@compiled
def dot(a, b):
    total = a.dtype.type(0)
    for i in range(a.size):
        total += a[i] * b[i]
    return np.float64(total)


@compiled
def multiply(a, b, out):
    for i in range(a.size):
        out[i] = a[i] * b[i]


def locked(a: Any, dtype: Any = None) -> np.ndarray:
    """A contiguous read-only view: numba compiles once, whether or not the user's array can be written."""
    view = np.ascontiguousarray(a, dtype).view()
    view.flags.writeable = False
    return view
