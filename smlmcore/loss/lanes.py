"""The Poisson-Gaussian sum of many pixels in step, as SIMD code, for those that the series in `saddle` is not for.

A strip of LANES pixels lies in one flat array of float64, a field after another at fixed offsets, so that every loop
over the lanes becomes vector code.  The formulas are branch-free; pixels that they do not cover (far from the
prediction) are left to the scalar code and marked in STATE.

Dark pixels: the sum over k runs upwards from t(0) = 1, t(k) = t(k−1) · μ/k · exp((d−k+½)/v), the exponential updated by
exp(−1/v); k is that of all lanes, so a term is five products and sums.  Others: it runs downwards from K, well above
the largest term, t(k−1) = t(k) · (k/μ) · exp(−(d−k+½)/v).  Neither divides.

Cost on one thread per pixel: dark, a logarithm and 2 exponentials, others 4 and 2; and 5 to 8 flops a term, of which
20 to 40 are summed at a read noise of 1.5 electrons.
"""

from __future__ import annotations

import math

import numba
import numpy as np

LANES = 64
MOST = 140  # terms that are summed one by one
HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)
LN2, INVERSE_LN2 = math.log(2.0), 1 / math.log(2.0)
LN2_HIGH = 0.693147180369123816490  # 33 bits, so that products with an exponent are exact
LN2_LOW = 1.90821492927058770002e-10
ROOT = np.int64(0x3FE6A09E667F3BCD)  # bits of √½
SIGNIFICAND = np.int64((1 << 52) - 1)

FIELDS = 15
MU, D, V, K, B, RHO, T, SUM, MOMENT, NLL, SLOPE, STATE, MODE, REF, TERMS = (LANES * field for field in range(FIELDS))
FAILED, SUMMED = 0.0, 1.0  # of STATE

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


@inline
def is_dark(mu, d, v):
    """Whether `dark` is for a pixel: few terms from k = 0 on, and none of them huge."""
    return max(mu, d) < 60.0 and mu * max(d + v, 0.0) < 18.0 * (mu + v) and d * d < 500.0 * v


@numba.njit(cache=True, error_model="numpy")
def dark(w, tiny):
    """NLL, SLOPE and STATE of MU > 0, D, V > 0 by the sum from k = 0, without terms below `tiny` of it."""
    for j in range(LANES):
        mu, d, v = w[MU + j], w[D + j], w[V + j]
        w[B + j], w[RHO + j] = mu * exp((d - 0.5) / v), exp(-1.0 / v)
        w[T + j], w[SUM + j], w[MOMENT + j] = 1.0, 1.0, 0.0
    k, going = 1.0, LANES
    while going > 0 and k < MOST:
        k1, k2, k3 = k + 1.0, k + 2.0, k + 3.0
        over, over1, over2, over3 = 1.0 / k, 1.0 / k1, 1.0 / k2, 1.0 / k3
        going = 0
        for j in range(LANES):
            b, rho = w[B + j], w[RHO + j]
            t = w[T + j] * (b * over)
            b *= rho
            t1 = t * (b * over1)
            b *= rho
            t2 = t1 * (b * over2)
            b *= rho
            t3 = t2 * (b * over3)
            b *= rho
            total = w[SUM + j] + ((t + t1) + (t2 + t3))
            w[B + j], w[T + j], w[SUM + j] = b, t3, total
            w[MOMENT + j] += (k * t + k1 * t1) + (k2 * t2 + k3 * t3)
            going += (t3 > tiny * total) | (b > 0.5 * k3)
        k += 4.0
    for j in range(LANES):
        mu, d, v, total = w[MU + j], w[D + j], w[V + j], w[SUM + j]
        w[NLL + j] = mu + d * d / (2.0 * v) + log(math.sqrt(v) / total) + HALF_LOG_TAU
        w[SLOPE + j] = (mu - w[MOMENT + j] / total) / mu
        cut = (w[T + j] > tiny * total) | (w[B + j] > 0.5 * k) | (not total < 1e300)
        w[STATE + j] = FAILED if cut else SUMMED


@numba.njit(cache=True, error_model="numpy")
def exact(w, tiny):
    """NLL, SLOPE and STATE of MU > 0, D, V > 0 by the exact sum, without terms below `tiny` of it."""
    width = math.sqrt(-2 * math.log(tiny)) + 0.1
    for j in range(LANES):
        mu, d, v = w[MU + j], w[D + j], w[V + j]
        k = mu * max(d + v, 0.0) / (mu + v)  # near the largest term; a step of Newton's method goes nearer
        step = ((d - k - 0.5) / v - log1p((k + 1.0 - mu) / mu)) * ((k + 1.0) * v / (k + 1.0 + v))
        w[MODE + j] = max(k + step, 0.0)
    for j in range(LANES):  # short loops, as in a long one each step waits for the last
        mu, d, v, k = w[MU + j], w[D + j], w[V + j], w[MODE + j]
        s = math.sqrt(v * k / (v + k))
        reach = width * s + 3.0 + 8.0 * v / (v + k + 1.0)
        top = max(np.ceil(k + reach), 12.0)
        terms = top - max(k - reach, 0.0)
        exponent = (top - d - 0.5) / v
        w[K + j] = top
        w[STATE + j] = SUMMED if (terms <= MOST) & (exponent < 600.0) else FAILED
        w[TERMS + j] = terms if terms <= MOST else 0.0
        w[B + j], w[RHO + j] = exp(exponent) / mu, exp(-1.0 / v)
    for j in range(LANES):
        w[REF + j] = w[K + j] if w[MODE + j] > 16.0 else 0.0  # moments about it: little is lost in μ − ⟨k⟩
        w[T + j], w[SUM + j], w[MOMENT + j] = 1.0, 1.0, w[K + j] - w[REF + j]
    down, going = 0.0, LANES
    while going > 0:  # four terms at a time, as loads and stores cost more than sums; the term below k = 0 is 0
        going = 0
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
            going += w[TERMS + j] > down + 4.0
        down += 4.0
    for j in range(LANES):
        mu, d, v, top, total = w[MU + j], w[D + j], w[V + j], w[K + j], w[SUM + j]
        w[NLL + j] = top * log1p((top - mu) / mu) - (top - mu) + stirling(1.0 / top)  # less ½ log 2π top
        w[NLL + j] += (d - top) * (d - top) / (2.0 * v)
    for j in range(LANES):
        mu, v, top, total = w[MU + j], w[V + j], w[K + j], w[SUM + j]
        scale = log(math.sqrt(top * v) / total) + 2 * HALF_LOG_TAU
        w[NLL + j] += scale
        w[SLOPE + j] = ((mu - w[REF + j]) - w[MOMENT + j] / total) / mu
        cut = (w[T + j] > tiny * total) | (total * tiny < 1.0) | (not total < 1e300)
        w[STATE + j] = FAILED if cut else w[STATE + j]
