"""The shifted Poisson likelihood of many pixels, as one loop that LLVM turns into vectors of the arrays' own dtype.

With m = μ + v, x = max(d + v, 0) and z = x from 10 on, z = x + n below (n = 10, or 4 in float32), where
log Γ(x+1) = log Γ(z+1) − log P, P = (x+1)...(x+n):

    nll = −x log(m/z) + ½ log(z (zⁿ/P)²) + m − z + ½ log 2π + stirling(z)          (above: n = 0, P = 1)

Both logarithms are of quotients, log(a/b) = e log 2 + 2 artanh(s) with b' = 2ᵉ b near a and s = (a − b')/(a + b'); e is
the difference of the bit patterns, rounded to a power of 2.  So s takes the place of the quotient, and one division,
1 / (z m (z + m') (a + b')), serves both of them, the slope and Stirling's series.  Where e = 0, nothing cancels:
x log(z/m) + m − z = (z − m) s + ..., and z − m = d − μ + n.  So float32 does not lose the digits of bright pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numba
import numpy as np
from numba import types
from numba.extending import overload

LOW = 10  # of x, from where on Stirling's series holds


def _body(real: type, shift: int, least: float, most: float) -> Callable[..., bool]:
    """The loop for one dtype: n = `shift`, plain numbers from `least` to `most`; float32 takes shorter series."""
    whole, fraction = (np.int32, 23) if real is np.float32 else (np.int64, 52)
    wide = real is np.float64
    half_bit, bits = whole(1 << (fraction - 1)), whole(fraction)
    zero, one, two, half, nan = real(0), real(1), real(2), real(0.5), real(math.nan)
    low_x, added, least, most = real(LOW), real(shift), real(least), real(most)
    log2, half_log_tau = real(math.log(2)), real(0.5 * math.log(2 * math.pi))
    p1, p2, p3, p4, p5 = (real(k * (shift + 1 - k)) for k in range(1, 6))
    ends = real(shift + 1)
    c1, c2, c3, c4, c5, c6 = (real(c) for c in (1 / 12, 1 / 360, 1 / 1260, 1 / 1680, 1 / 1188, 691 / 360360))
    a1, a2, a3, a4, a5, a6, a7, a8, a9 = (real(1 / (2 * k + 1)) for k in range(1, 10))  # y is below 0.03

    @numba.njit(inline="always")
    def artanh(y):
        """artanh(s)/s − 1 for y = s²."""
        if wide:
            return y * (a1 + y * (a2 + y * (a3 + y * (a4 + y * (a5 + y * (a6 + y * (a7 + y * (a8 + y * a9))))))))
        return y * (a1 + y * (a2 + y * (a3 + y * a4)))

    @numba.njit(inline="always")
    def stirling(inverse):
        y = inverse * inverse
        if wide:
            return inverse * (c1 - y * (c2 - y * (c3 - y * (c4 - y * (c5 - y * c6)))))
        return inverse * (c1 - y * (c2 - y * c3))

    @numba.njit(error_model="numpy", fastmath={"contract", "nsz"})
    def body(prediction, data, variance, nll, slope):
        odd = whole(0)
        for i in range(prediction.size):
            mu, d, v = prediction[i], data[i], variance[i]
            plain = (mu >= least) & (mu < most) & (abs(d) < most) & (v >= zero) & (v < most)
            odd = whole(odd + whole(not plain))
            mean, raw = mu + v, d + v
            x = max(raw, zero)
            low = x < low_x
            z = x + added if low else x
            # a / b = z (zⁿ/P)²
            u = x * x + x * ends
            square = z * z
            fourth = square * square
            if wide:
                p = ((u + p1) * (u + p2)) * ((u + p3) * (u + p4)) * (u + p5)
                power = fourth * fourth * square
            else:
                p = (u + p1) * (u + p2)
                power = fourth
            a = z * (power * power if low else one)
            b = p * p if low else one
            # powers of 2 that bring m near z, and b near a
            em = whole(whole(real(z).view(whole) - real(mean).view(whole) + half_bit) >> bits)
            near = whole(real(mean).view(whole) + (em << bits)).view(real)
            eb = whole(whole(real(a).view(whole) - real(b).view(whole) + half_bit) >> bits)
            b = whole(real(b).view(whole) + (eb << bits)).view(real)
            product, sum_m, sum_b = z * mean, z + near, a + b
            sums = sum_m * sum_b
            inverse = one / (product * sums)
            inverse_product, inverse = inverse * sums, inverse * product
            inverse_mean, inverse_z = inverse_product * z, inverse_product * mean
            difference = z - near
            difference = (d - mu) + (z - x) if em == whole(0) else difference
            s, t = difference * (inverse * sum_b), (a - b) * (inverse * sum_m)
            value = x * (real(em) * log2) + (mean - near) + difference * s
            value += two * s * (x * artanh(s * s) - (z - x))
            value += half * log2 * real(eb) + (t + t * artanh(t * t)) + (half_log_tau + stirling(inverse_z))
            dark = raw <= zero
            nll[i] = mean if dark else value
            slope[i] = (one if dark else (mu - d) * inverse_mean) if plain else nan
        return odd > 0

    return body


_single, _double = _body(np.float32, 4, 1e-12, 1e8), _body(np.float64, 10, 1e-30, 1e12)


def pixels(prediction, data, variance, nll, slope):
    """Write value and slope of flat arrays of one dtype; true where some pixels are left over, their slope NaN.

    Left over are predictions, data and variances that are not plain: dark, masked, negative, or huge.  Called from
    numba only, with slices: their indices cannot be negative, which would keep LLVM from making vectors.
    """
    raise NotImplementedError("pixels is called from numba functions only")


@overload(pixels)
def _pixels(prediction, data, variance, nll, slope):
    body = _single if prediction.dtype == types.float32 else _double

    def run(prediction, data, variance, nll, slope):
        return body(prediction, data, variance, nll, slope)

    return run
