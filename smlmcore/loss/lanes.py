"""The Poisson-Gaussian likelihood of many pixels in step, as SIMD code: the fast path of `poisson_gaussian`.

A strip of LANES pixels lies in one flat array of float64, a field after another at fixed offsets, so that every loop
over the lanes becomes vector code.  The formulas are branch-free; pixels that they do not cover (dark, masked,
noise-free, far from the prediction) are left to the scalar code and marked in STATE.

The exact sum over k runs downwards from K, well above the largest term: t(k−1) = t(k) · (k/μ) · exp(−(d−k+½)/v), three
products and no division, the exponential updated by exp(−1/v).  Where it is so wide, s = √(vk/(v+k)), that it would
take more than MOST terms, it is an integral (to exp(−2π²s²)), and the trapezoidal rule with steps of 0.8 s gives it to
1e-13: NODES evaluations at any width (Trefethen and Weideman 2014, SIAM Review 56, 385).

Cost on one thread per pixel: 4 logarithms, 2 exponentials and 8 flops a term, 20 to 40 terms at a read noise of 1.5
electrons.
"""

from __future__ import annotations

import math

import numba
import numpy as np

LANES = 64
MOST = 140  # terms that are summed one by one
NODES, LEFT = 24, 10  # of the trapezoidal rule, and how many below the largest term
HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)
LN2, INVERSE_LN2 = math.log(2.0), 1 / math.log(2.0)
LN2_HIGH = 0.693147180369123816490  # 33 bits, so that products with an exponent are exact
LN2_LOW = 1.90821492927058770002e-10
ROOT = np.int64(0x3FE6A09E667F3BCD)  # bits of √½
SIGNIFICAND = np.int64((1 << 52) - 1)

FIELDS = 16
MU, D, V, K, B, RHO, T, SUM, MOMENT, NLL, SLOPE, STATE, S, MODE, PLAIN, REF = (LANES * field for field in range(FIELDS))
FAILED, SUMMED, INTEGRAL = 0.0, 1.0, 2.0  # of STATE

inline = numba.njit(cache=True, error_model="numpy", inline="always")


@inline
def log_of(x, s):
    """log(x) of a normal number x > 0 with s = x − 1, to 1 ulp: exponent bits and an odd series in f/(2 + f)."""
    shifted = np.float64(x).view(np.int64) - ROOT
    exponent = shifted >> np.int64(52)
    f = np.int64(ROOT + (shifted & SIGNIFICAND)).view(np.float64) - 1.0
    f = s if exponent == 0 else f  # which x, if it is a rounded 1 + s, has lost
    z = f / (2.0 + f)
    y = z * z
    series = y * (2 / 3 + y * (2 / 5 + y * (2 / 7 + y * (2 / 9 + y * (2 / 11 + y * (2 / 13 + y * (2 / 15 + y * (
        2 / 17 + y * (2 / 19 + y * (2 / 21))))))))))  # fmt: skip
    return exponent * LN2_HIGH + (exponent * LN2_LOW + z * series + 2.0 * z)


@inline
def log(x):
    """log(x) for a normal number x > 0."""
    return log_of(x, x - 1.0)


@inline
def log1p(s):
    """log(1 + s) for s > −1, if 1 + s is a normal number."""
    return log_of(1.0 + s, s)


@inline
def exp(x):
    """exp(x) for |x| < 700, to 1 ulp; 0 or the largest such number beyond."""
    x = min(max(x, -700.0), 700.0)
    n = np.floor(x * INVERSE_LN2 + 0.5)
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = 1.0 + r * (1.0 + r * (1 / 2 + r * (1 / 6 + r * (1 / 24 + r * (1 / 120 + r * (1 / 720 + r * (1 / 5040 + r * (
        1 / 40320 + r * (1 / 362880 + r * (1 / 3628800 + r * (1 / 39916800 + r / 479001600)))))))))))  # fmt: skip
    return p * np.int64((np.int64(n) + np.int64(1023)) << np.int64(52)).view(np.float64)


@inline
def stirling(inverse):
    """log Γ(z + 1) − (z log z − z + ½ log 2πz) for 1/z, to 3e-15 from z = 10 on."""
    y = inverse * inverse
    return inverse * (1 / 12 - y * (1 / 360 - y * (1 / 1260 - y * (1 / 1680 - y * (1 / 1188 - y * (691 / 360360))))))


@numba.njit(cache=True, error_model="numpy")
def exact(w, tiny):
    """NLL, SLOPE and STATE of MU > 0, D, V > 0 by the exact sum, without terms below `tiny` of it."""
    longest, wide, width = 0.0, False, math.sqrt(-2 * math.log(tiny)) + 0.1
    for j in range(LANES):
        mu, d, v = w[MU + j], w[D + j], w[V + j]
        k = mu * max(d + v, 0.0) / (mu + v)  # near the largest term; a step of Newton's method goes nearer
        step = ((d - k - 0.5) / v - log1p((k + 1.0 - mu) / mu)) * ((k + 1.0) * v / (k + 1.0 + v))
        k = max(k + step, 0.0)
        s = math.sqrt(v * k / (v + k))
        reach = width * s + 3.0 + 8.0 * v / (v + k + 1.0)
        top = max(np.ceil(k + reach), 12.0)
        terms = top - max(k - reach, 0.0)
        exponent = (top - d - 0.5) / v
        w[S + j], w[MODE + j], w[K + j] = s, k, top
        w[STATE + j] = INTEGRAL if terms > MOST else SUMMED if exponent < 600.0 else FAILED
        w[SUM + j] = terms if terms <= MOST else 0.0
        w[B + j], w[RHO + j] = exp(exponent) / mu, exp(-1.0 / v)
    for j in range(LANES):  # apart, as a maximum is no vector code
        longest = max(longest, w[SUM + j])
        w[REF + j] = w[K + j] if w[MODE + j] > 16.0 else 0.0  # moments about it: little is lost in μ − ⟨k⟩
        w[T + j], w[SUM + j], w[MOMENT + j] = 1.0, 1.0, w[K + j] - w[REF + j]
    down = 0.0
    while down < longest:  # four terms at a time, as loads and stores cost more than sums; the term below k = 0 is 0
        for j in range(LANES):
            k, b, rho = w[K + j] - down, w[B + j], w[RHO + j]
            t1 = w[T + j] * (k * b)
            b *= rho
            t2 = t1 * ((k - 1.0) * b)
            b *= rho
            t3 = t2 * ((k - 2.0) * b)
            b *= rho
            t4 = t3 * ((k - 3.0) * b)
            w[B + j], w[T + j] = b * rho, t4
            pair, last, k = t1 + t2, t3 + t4, k - w[REF + j]
            w[SUM + j] += pair + last
            w[MOMENT + j] += (k - 1.0) * pair - t2 + ((k - 3.0) * last - t4)
        down += 4.0
    for j in range(LANES):
        mu, d, v, top, total = w[MU + j], w[D + j], w[V + j], w[K + j], w[SUM + j]
        log_poisson = top * log1p((top - mu) / mu) - (top - mu) + stirling(1.0 / top)  # less ½ log 2π top
        scale = log(math.sqrt(top * v) / total) + 2 * HALF_LOG_TAU
        w[NLL + j] = log_poisson + scale + (d - top) * (d - top) / (2.0 * v)
        w[SLOPE + j] = ((mu - w[REF + j]) - w[MOMENT + j] / total) / mu
        cut = w[T + j] > tiny * total or total * tiny < 1.0 or not total < 1e300
        w[STATE + j] = FAILED if cut and w[STATE + j] == SUMMED else w[STATE + j]
    for j in range(LANES):
        wide = wide or w[STATE + j] == INTEGRAL
    if wide:
        integral(w, 10 * tiny)


@numba.njit(cache=True, error_model="numpy")
def integral(w, tiny):
    """NLL and SLOPE by the trapezoidal rule about MODE, in units of its term, where STATE is INTEGRAL."""
    for j in range(LANES):
        w[SUM + j], w[MOMENT + j] = 0.0, 0.0
    for node in range(-LEFT, NODES - LEFT):
        for j in range(LANES):
            mode, v, y = w[MODE + j], w[V + j], 0.8 * node * w[S + j]
            push = (w[D + j] - mode) / v - log1p((mode - w[MU + j]) / w[MU + j])
            curved = (mode + y + 0.5) * log1p(max(y / mode, -0.99)) - y + y * y / (2.0 * v)
            f = exp(push * y - curved - (stirling(1.0 / (mode + y)) - stirling(1.0 / mode)))
            w[T + j] = f if node == -LEFT else w[T + j]  # the first,
            w[B + j] = f  # and at the end the last
            w[SUM + j] += f
            w[MOMENT + j] += f * y
    for j in range(LANES):
        mu, d, v, mode = w[MU + j], w[D + j], w[V + j], w[MODE + j]
        wide = w[STATE + j] == INTEGRAL
        log_poisson = mode * log1p((mode - mu) / mu) - (mode - mu) + stirling(1.0 / mode)
        scale = log(math.sqrt(mode * v) / (0.8 * w[S + j] * w[SUM + j])) + 2 * HALF_LOG_TAU
        value = log_poisson + scale + (d - mode) * (d - mode) / (2.0 * v)
        w[NLL + j] = value if wide else w[NLL + j]
        w[SLOPE + j] = ((mu - mode) - w[MOMENT + j] / w[SUM + j]) / mu if wide else w[SLOPE + j]
        cut = max(w[T + j], w[B + j]) > tiny * w[SUM + j]
        w[STATE + j] = FAILED if wide and cut else w[STATE + j]
