"""A Gaussian component for each pixel: whether an emitter is near, where, how bright, and how sure that is.

A network's seven features f of pixel (i, j) mean

    p = sigmoid(f0 - 4)                 probability that the pixel holds an emitter of its own
    x = j + 1.2 tanh(f1 / 2)            its position, pixels
    y = i + 1.2 tanh(f2 / 2)
    log(photons / PHOTONS) = f3
    standard deviations of these three = softplus(f4, f5, f6) + 0.01

`loss.Mixture` teaches them.  An emitter's probability may be spread over touching pixels, so `peaks` takes the local
maxima of p (over 3 x 3) of which the 3 x 3 sum is large, unless p itself is far too small to be one.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from .. import backend, kernel
from ..backend import Array

CHANNELS = 7
SHIFT, REACH, LEAST = 4.0, 1.2, 0.01
PHOTONS = 2000.0  # unit of photons
COLUMNS = ("x", "y", "photons", "lpx", "lpy", "photons_error", "p")


def components(features: Array) -> tuple[Array, Array, Array]:
    """p (..., h, w), means (..., 3, h, w) of x, y, log photons, and standard deviations (..., 3, h, w).

    >>> p, mean, spread = components(np.zeros((5, 6, 7)))
    >>> p.shape, mean[:, 2, 3].tolist(), round(float(spread[0, 0, 0]), 4)
    ((5, 6), [3.0, 2.0, 0.0], 0.7031)
    """
    xp = backend.module(features)
    f = xp.moveaxis(features, -1, -3)
    h, w = f.shape[-2:]
    mean = f[..., 1:4, :, :].copy()
    mean[..., :2, :, :] = REACH * xp.tanh(0.5 * mean[..., :2, :, :])
    mean[..., 0, :, :] += xp.arange(w)
    mean[..., 1, :, :] += xp.arange(h)[:, None]
    return 1 / (1 + xp.exp(SHIFT - f[..., 0, :, :])), mean, xp.logaddexp(0, f[..., 4:, :, :]) + LEAST


# ---------------------------------------------------------------- peaks: reference


def _peaks(features, threshold, count, rows):
    n, h, w = features.shape[:3]
    most = rows.shape[1]
    rows[...] = 0
    for i in range(n):
        p, mean, spread = components(np.asarray(features[i], float))
        around = np.pad(p, 1)
        others = np.array([[around[1 + a : 1 + a + h, 1 + b : 1 + b + w] for b in (-1, 0, 1)] for a in (-1, 0, 1)])
        box = others.sum((0, 1))
        before = others.reshape(9, h, w)[:4].max(0)  # of equal neighbours the first counts
        peak = (p >= others.max((0, 1))) & (p > before) & (box > threshold[0]) & (p > 0.5 * threshold[0])
        at_y, at_x = np.nonzero(peak)
        count[i] = len(at_y)
        at_y, at_x = at_y[:most], at_x[:most]
        x, y, light = mean[:, at_y, at_x]
        photons = PHOTONS * np.exp(light)
        sx, sy, sl = spread[:, at_y, at_x]
        found = x, y, photons, sx, sy, photons * sl, np.minimum(box[at_y, at_x], 1)
        rows[i, : len(at_y)] = np.stack(found, 1)


# ---------------------------------------------------------------- peaks: cpu


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _peaks_cpu(features, threshold, count, rows):
    n, h, w = features.shape[:3]
    most, real = rows.shape[1], features.dtype.type
    zero, half, one, shift, reach, least = real(0), real(0.5), real(1), real(SHIFT), real(REACH), real(LEAST)
    for i in numba.prange(n):
        p = np.zeros((h + 2, w + 2), real)
        for y in range(h):
            for x in range(w):
                p[1 + y, 1 + x] = one / (one + math.exp(shift - features[i, y, x, 0]))
        found = 0
        for y in range(h):
            for x in range(w):
                own = p[1 + y, 1 + x]
                if not own > half * threshold[0]:
                    continue
                box, peak = zero, True
                for a in range(3):
                    for b in range(3):
                        other = p[y + a, x + b]
                        box += other
                        if other > own or (other == own and 3 * a + b < 4):
                            peak = False
                if not (peak and box > threshold[0]):
                    continue
                if found < most:
                    f, row = features[i, y, x], rows[i, found]
                    row[0] = real(x) + reach * math.tanh(half * f[1])
                    row[1] = real(y) + reach * math.tanh(half * f[2])
                    row[2] = real(PHOTONS) * math.exp(f[3])
                    for c in range(3):
                        row[3 + c] = max(f[4 + c], zero) + math.log1p(math.exp(-abs(f[4 + c]))) + least
                    row[5] *= row[2]
                    row[6] = min(box, one)
                found += 1
        count[i] = found
        for k in range(min(found, most), most):
            for c in range(CHANNELS):
                rows[i, k, c] = zero


# ---------------------------------------------------------------- peaks: registration


def _sample(rng, n, h, w, most):
    features = rng.normal(size=(n, h, w, CHANNELS))
    features[..., 0] += 3 * rng.integers(0, 3, (n, h, w))
    return [features, np.array([0.3])]


peaks_kernel = kernel.register(
    "mixture_peaks",
    f"features[n,h,w,{CHANNELS}] threshold[1] -> count[n]:int32 rows[n,most,{CHANNELS}]",
    _peaks,
    cpu=_peaks_cpu,
    cuda=kernel.Cuda("mixture.cu", lambda dims: dims["n"], threads=128),
    sample=_sample,
    cases=tuple({"n": n, "h": h, "w": w, "most": 40} for n, h, w in [(0, 5, 6), (1, 1, 1), (2, 9, 13), (3, 17, 4)]),
    bench={"n": 20, "h": 128, "w": 128, "most": 256},
)


def peaks(features: Array, threshold: float = 0.3) -> tuple[Array, Array]:
    """Emitters in features (n, h, w, 7): which image (e,) each is in, and its COLUMNS (e, 7); see the module.

    `threshold`: least sum of p over 3 x 3 pixels.  `lpx`, `lpy` and `photons_error` are what the network thinks its
    standard errors to be, in pixels and photons; p, at most 1, is the sum.

    >>> features = np.zeros((2, 6, 7, 7))
    >>> features[1, 3, 4, 0] = 8
    >>> image, rows = peaks(features)
    >>> image.tolist(), rows[:, :3].tolist()
    ([1], [[4.0, 3.0, 2000.0]])
    """
    xp, n = backend.module(features), len(features)
    level = xp.full(1, threshold, features.dtype)
    most = 16 + features.shape[1] * features.shape[2] // 50
    while True:
        count, rows = xp.empty(n, np.int32), xp.empty((n, most, CHANNELS), features.dtype)
        peaks_kernel(features, level, out=(count, rows))
        largest = int(count.max()) if n else 0
        if largest <= most:
            break
        most = largest
    there = xp.arange(most) < count[:, None]
    return xp.nonzero(there)[0], rows[there]
