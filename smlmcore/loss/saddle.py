"""The exact Poisson-Gaussian likelihood of bright or wide pixels, without a sum: the saddle point and its corrections.

The sum over k, Σ Pois(k; μ) N(d − k; v), tilted to its saddle point λ, λ + v log(λ/μ) = d, is

    L(d; μ, v) = exp(−λθ + λ − μ − ½ v θ²) · L(λ; λ, v),        θ = log(λ/μ)                       (exactly)
    L(λ; λ, v) = exp c(w, q) / √(2π (λ+v)),                     q = 1 / (λ+v),  w = λ q

where the exponent is −μ's Poisson deviance of λ and the normal one of d − λ, so nothing cancels, and c is the series
of the cumulants, all of which from the third on are λ (Daniels 1954, Ann. Math. Stat. 25, 631):

    c = Σ qʲ Pⱼ(w),    ∂nll/∂μ = (μ − λ + w (1−w) (½ − Σ qʲ Rⱼ(w))) / μ,    Rⱼ = (1−w) Pⱼ′ − j Pⱼ

P₁(1), P₂(1), ... are the coefficients of Stirling's series.  The error is that of the first term left out, and what
the sum, taken at whole k, differs from the integral: some exp(−2π² v w).  So the series is for large λ + v and v that
is not small (see LEAST_V and MOST_Q); `lanes` has the other pixels.

λ = λ₀ exp(ε): Halley's step from μ gives λ₀; the logarithm of λ₀ then serves two more steps, by series in ε.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import overload

# coefficients of w, w², ... w²ʲ in Pⱼ(w): exp(Σₙ≥₃ λ (iω)ⁿ / n!) under a normal ω of variance q, its logarithm by order
P = (
    (1 / 8, -5 / 24),
    (-1 / 48, 11 / 48, -25 / 48, 5 / 16),
    (1 / 384, -223 / 1920, 515 / 576, -1373 / 576, 985 / 384, -1105 / 1152),
    (-1 / 3840, 27 / 640, -9583 / 11520, 2089 / 384, -12227 / 768, 26581 / 1152, -12455 / 768, 565 / 128),
    (1 / 46080, -803 / 64512, 2597 / 4608, -1573507 / 207360, 519883 / 11520, -121207 / 864, 10154003 / 41472,
     -371195 / 1536, 387005 / 3072, -82825 / 3072),
    (-1 / 645120, 127 / 40320, -1804231 / 5806080, 821299 / 103680, -35233903 / 414720, 2460473 / 5184,
     -127635041 / 82944, 63308627 / 20736, -623942855 / 165888, 202105 / 72, -7141075 / 6144, 19675 / 96),
)  # fmt: skip
LEAST_V = {4: 0.9, 8: 1.8}  # by bytes of the dtype
MOST_Q = {4: 1 / 8, 8: 1 / 16}
FARTHEST = {4: 0.2, 8: 0.1}  # |ε|
TRIES = 8  # logarithms, where it is farther

STRIP = 256  # pixels in step; their fields lie in one flat array, so that no two of them can overlap
FIELDS = 9
START, CHANGE, OVER_MU, THETA, VALUE, Q, BRIGHT, MOVED, TOTAL = (STRIP * field for field in range(FIELDS))


def horner(x: Any, c: tuple[float, ...]) -> Any:
    """c[0] + c[1] x + c[2] x² + ..., for numba."""
    raise NotImplementedError("horner is called from numba functions only")


@overload(horner)
def _horner(x, c):
    if len(c) == 1:
        return lambda x, c: c[0]
    return lambda x, c: c[0] + x * horner(x, c[1:])


def _body(real: type) -> Callable[..., bool]:
    """The code for one dtype, in short loops over a strip of pixels: in one long loop, each step waits for the last."""
    size = np.dtype(real).itemsize
    whole, fraction = (np.int32, 23) if size == 4 else (np.int64, 52)
    half_bit, bits = whole(1 << (fraction - 1)), whole(fraction)
    root, significand = np.array([math.sqrt(0.5)], real).view(whole)[0], whole((1 << fraction) - 1)
    least, most = (real(1e-12), real(1e8)) if size == 4 else (real(1e-30), real(1e12))
    least_v, most_q, about = real(LEAST_V[size]), real(MOST_Q[size]), real(0.5 / MOST_Q[size])
    farthest = real(FARTHEST[size])
    one, two, half, nan, tame = real(1), real(2), real(0.5), real(math.nan), real(0.3)
    log2, half_log_tau = real(math.log(2)), real(0.5 * math.log(2 * math.pi))
    # ε = x + a2 x² + a3 x³ + a4 x⁴, each a polynomial in w
    a2, a3, a4 = (tuple(map(real, c)) for c in ((0, -1 / 2), (0, -1 / 6, 1 / 2), (0, -1 / 24, 5 / 12, -5 / 8)))
    atanh = tuple(real(1 / (2 * k + 3)) for k in range(4 if size == 4 else 9))  # (artanh(s)/s − 1) / s²
    order = range(5 if size == 4 else 8)
    raised = tuple(real(1 / math.factorial(k + 2)) for k in order)  # (exp(ε) − 1 − ε) / ε²
    deviant = tuple(real((k + 1) / math.factorial(k + 2)) for k in order)  # (ε exp(ε) − exp(ε) + 1) / ε²
    p = [(0.0, *c, 0.0) for c in P]
    r = [[(a + 1) * c[a + 1] - (a + j) * c[a] for a in range(len(c) - 1)] for j, c in enumerate(p, 1)]
    p1, p2, p3, p4, p5, p6 = (tuple(map(real, c[1:-1])) for c in p)
    r1, r2, r3, r4, r5, r6 = (tuple(map(real, c)) for c in r)
    double = size == 8  # float32 takes four orders
    math_of_real = {"error_model": "numpy", "fastmath": {"contract", "nsz"}}

    @numba.njit(**math_of_real)
    def guess(w, mu, d, v):
        """START and CHANGE by Halley's step from μ, NaN for pixels that are not plain; the number of those that are."""
        count = whole(0)
        for i in range(mu.size):
            plain = (mu[i] >= least) & (mu[i] < most) & (abs(d[i]) < most) & (v[i] >= least_v) & (v[i] < most)
            difference, total = d[i] - mu[i], mu[i] + v[i]
            square = total * total
            bent = max(square - half * difference * v[i], tame * square)
            inverse = one / (bent * mu[i])
            change = max(difference * total * mu[i] * (inverse * mu[i]), (tame * tame - one) * mu[i])
            plain &= mu[i] + change + v[i] > about
            w[START + i], w[CHANGE + i] = (mu[i] + change if plain else nan), change
            w[OVER_MU + i] = inverse * bent
            count = whole(count + whole(plain))
        return count

    @numba.njit(**math_of_real)
    def logarithm(w, mu, v):
        """THETA = log(START/μ) = e log 2 + 2 artanh(s), and the exponent VALUE that belongs to it."""
        for i in range(mu.size):
            start, change = w[START + i], w[CHANGE + i]
            e = whole(whole(real(start).view(whole) - real(mu[i]).view(whole) + half_bit) >> bits)
            near = whole(real(mu[i]).view(whole) + (e << bits)).view(real)
            apart = change if e == whole(0) else start - near
            sums, total = start + near, start + v[i]
            inverse = one / (sums * total)
            s = apart * (inverse * total)
            y = s * s
            series = s * (y * horner(y, atanh))
            turns = real(e) * log2
            theta = turns + two * (s + series)
            value = start * turns + (mu[i] - near) + s * apart + two * start * series
            w[THETA + i], w[Q + i] = theta, inverse * sums
            w[VALUE + i] = value + half * v[i] * theta * theta

    @numba.njit(**math_of_real)
    def settle(w, mu, d, v):
        """BRIGHT = λ = START exp(ε), with CHANGE and VALUE; the number of pixels where ε is too large, moved nearer."""
        far = whole(0)
        for i in range(mu.size):
            start, change, theta = w[START + i], w[CHANGE + i], w[THETA + i]
            missing = change + v[i] * theta - (d[i] - mu[i])
            x = -missing * w[Q + i]
            share = start * w[Q + i]
            eps = x * (one + x * (horner(share, a2) + x * (horner(share, a3) + x * horner(share, a4))))
            growth = eps + eps * eps * horner(eps, raised)
            second = -(missing + start * growth + v[i] * eps) / (start + start * growth + v[i])
            eps += second
            growth += (one + growth) * (second + half * second * second)
            value = w[VALUE + i] + eps * eps * (half * v[i] + start * horner(eps, deviant)) - theta * missing
            near = abs(x) < farthest
            # Newton's method in λ from the left of the root and in log λ from its right runs towards it
            moved = start + start * x if x > 0 else start / (one - x)
            far = whole(far + whole(abs(x) >= farthest))
            w[BRIGHT + i] = start + start * growth if near else nan
            w[MOVED + i], w[START + i] = change + start * growth, start if near else moved
            w[CHANGE + i] = change if near else moved - mu[i]
            w[TOTAL + i] = value
        return far

    @numba.njit(**math_of_real)
    def width(w, v):
        """VALUE + ½ log 2π(λ+v), and Q = 1/(λ+v)."""
        for i in range(v.size):
            total = w[BRIGHT + i] + v[i]
            shifted = whole(real(total).view(whole) - root)
            e = whole(shifted >> bits)
            f = whole(root + (shifted & significand)).view(real) - one
            sums = two + f
            inverse = one / (sums * total)
            s = f * (inverse * total)
            y = s * s
            log = half * (real(e) * log2) + (s + s * (y * horner(y, atanh)))
            w[VALUE + i], w[Q + i] = w[TOTAL + i] + log + half_log_tau, inverse * sums

    @numba.njit(**math_of_real)
    def correct(w, v, nll, slope):
        """The series of c and of its derivative; the number of pixels left over."""
        odd = whole(0)
        for i in range(v.size):
            q = w[Q + i]
            share = w[BRIGHT + i] * q
            c, k = horner(share, p4), horner(share, r4)
            if double:
                c += q * (horner(share, p5) + q * horner(share, p6))
                k += q * (horner(share, r5) + q * horner(share, r6))
            c = share * (q * (horner(share, p1) + q * (horner(share, p2) + q * (horner(share, p3) + q * c))))
            k = q * (horner(share, r1) + q * (horner(share, r2) + q * (horner(share, r3) + q * k)))
            good = q < most_q
            nll[i] = w[VALUE + i] - c
            slope[i] = (share * (v[i] * q) * (half - k) - w[MOVED + i]) * w[OVER_MU + i] if good else nan
            odd = whole(odd + whole(not good))
        return odd

    @numba.njit(error_model="numpy")
    def body(prediction, data, variance, nll, slope):
        w = np.empty(FIELDS * STRIP, nll.dtype)
        odd = 0
        for first in range(0, prediction.size, STRIP):
            last = min(first + STRIP, prediction.size)
            mu, d, v = prediction[first:last], data[first:last], variance[first:last]
            if guess(w, mu, d, v) == 0:
                slope[first:last] = nan
                odd += 1
                continue
            for _ in range(TRIES):
                logarithm(w, mu, v)
                if settle(w, mu, d, v) == 0:
                    break
            width(w, v)
            odd += correct(w, v, nll[first:last], slope[first:last])
        return odd > 0

    return body


def pixels(prediction, data, variance, nll, slope):
    """Write value and slope of flat arrays of one dtype; true where some pixels are left over, their slope NaN."""
    raise NotImplementedError("pixels is called from numba functions only")


@overload(pixels)
def _pixels(prediction, data, variance, nll, slope):
    body = _body(np.float32 if prediction.dtype == types.float32 else np.float64)

    def run(prediction, data, variance, nll, slope):
        return body(prediction, data, variance, nll, slope)

    return run
