"""Find spots by a filter matched to the PSF, in units of each pixel's own noise, at a stated rate of false positives.

With the expected image m (background, and emitters known already), its variance V = m + read noise² and the PSF k
around a pixel,

    snr = sum k (d - m) / V  /  sqrt(sum k² / V)

is the best estimate of the light there over its standard deviation: 0 ± 1 in pure noise, whatever the map of read
noise (a hot pixel of a sCMOS camera counts for next to nothing).  Peaks of it are found in each frame.

The noise of few photons is skewed, so that high values are more frequent than a normal distribution has them.  All
cumulants of the sum are known, and a saddle-point approximation (Lugannani & Rice 1980, Adv. Appl. Probab. 12, 475)
turns the value of each peak into the one that a normal distribution has as often.  How many peaks of a normal field on
a lattice lie above a value is known as well, so a rate of false positives gives the threshold.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numba
import numpy as np

from .. import backend, kernel

REACH = 3.0  # the filter's half width in units of sigma
CERTAIN = 12.0  # standard deviations above which it does not matter how the noise is distributed
STRETCH = 32  # pixels that are looked at together for any that may be a peak
NODES = 40  # of integrals
LOWEST = 1.5  # standard deviations: no threshold is below
PEAK = np.dtype([("frame", np.uint32), ("x", np.int32), ("y", np.int32), ("snr", np.float32)])


def taps(sigma: float) -> np.ndarray:
    """The Gaussian, integrated over the pixels, from the central pixel outwards (float64)."""
    edges = (np.arange(math.ceil(REACH * sigma) + 2) - 0.5) / (math.sqrt(2) * sigma)
    return np.diff([0.5 * math.erf(e) for e in edges])


def find(
    frames: Any,
    expected: Any,
    variance: Any = 0.0,
    sigma: float = 1.3,
    threshold: float | None = None,
    false_positives: float = 0.01,
) -> np.ndarray:
    """Peaks of `frames` (n, h, w) of photoelectrons above what is `expected`: a table of frame, x, y, snr.

    `expected`: photons in each pixel without the spots sought, (m, h, w); map i holds for the i-th of m equal parts of
    the frames.  `variance`: of the read noise, in photoelectrons², a number or (h, w).  `sigma`: of the PSF, pixels.
    `threshold`: least snr, in units of the noise; default the one that gives `false_positives` in each frame.
    Non-finite pixels say nothing.  NumPy or CuPy; the table, sorted by frame, y, x, is NumPy.

    >>> rng = np.random.default_rng(0)
    >>> frames = rng.poisson(10.0, (2, 32, 32)); frames[1, 9:12, 20:23] += 40
    >>> find(frames, np.full((1, 32, 32), 10.0))[["frame", "x", "y"]]
    array([(1, 21, 10)], dtype=...)
    """
    xp = backend.module(frames)
    frames = xp.ascontiguousarray(frames, np.float32)
    expected = xp.ascontiguousarray(expected, np.float32)
    if frames.ndim != 3 or expected.ndim != 3 or expected.shape[1:] != frames.shape[1:]:
        raise ValueError(
            f"find got frames {frames.shape} and expected {expected.shape}; expected (n, h, w) and (m, h, w)"
        )
    if not 0 < sigma < np.inf:
        raise ValueError(f"find got sigma {sigma}; expected a number of pixels above 0")
    n, h, w = frames.shape
    if threshold is None:
        threshold = threshold_for(false_positives, (h, w), sigma)
    if not 0 < threshold < np.inf:
        raise ValueError(f"find got threshold {threshold}; expected a number of standard deviations above 0")
    if not frames.size:
        return np.empty(0, PEAK)
    read = xp.broadcast_to(xp.asarray(variance, np.float32), (h, w))
    noise = xp.maximum(expected, np.float32(1e-3)) + read
    weights = xp.asarray(taps(sigma), np.float32)
    scale = xp.empty_like(noise)
    scale_kernel(noise, weights, out=scale)
    # what is skewed to the right needs a higher value: none below this one can do
    lowest = xp.asarray([0.8 * threshold], np.float32)
    seek = _seek if xp is np else _seek_by_kernels
    most = 256
    while True:
        count, at, height = xp.empty(n, np.int32), xp.empty((n, most), np.int32), xp.empty((n, most), np.float32)
        seek(frames, expected, noise, scale, weights, lowest, count, at, height)
        if (largest := int(count.max())) <= most:
            break
        most = largest
    count, at, height = map(backend.to_cpu, (count, at, height))
    seen = np.arange(most) < count[:, None]
    frame, pixel = np.repeat(np.arange(n), count), at[seen]
    found = np.empty(len(frame), PEAK)
    found["frame"], found["y"], found["x"], found["snr"] = frame, pixel // w, pixel % w, height[seen]
    m = len(expected)
    maps = map(backend.to_cpu, (expected, noise, scale, weights))
    _as_normal(frame * m // n, found["y"], found["x"], *maps, found["snr"])
    return found[found["snr"] > threshold]


def false_positives(threshold: float, shape: tuple[int, int], sigma: float) -> float:
    """Mean number of peaks of pure noise above `threshold` in a frame of `shape`.

    Of normal variables on a lattice, with correlation rho between neighbours in a row or a column, the share that is
    above t and above all four neighbours is close to

        integral from t of Q(z)² phi(z) dz,    Q(z) = Phi(h z) - 2 T(h z, cot alpha),
        h² = (1 - rho) / (1 + rho),    sin² alpha = (1 - rho²) / 2

    with Owen's function T (Taylor, Worsley & Gosselin 2007, Biometrika 94, 1).  At the border a neighbour is missing:
    there Q is Phi(h z).  T by its integral of exp(-(h z)² / (2 cos² u)) / (2 pi), u from 0 to pi/2 - alpha.

    >>> round(false_positives(5.0, (128, 128), 1.3), 4)
    0.0033
    """
    node, weight = _gauss()
    return float(8 * weight @ _peaks_of_noise(threshold + 8 * node, shape, sigma))


def _peaks_of_noise(z: np.ndarray, shape: tuple[int, int], sigma: float) -> np.ndarray:
    """How many peaks of pure noise there are in a frame, per unit of their height `z`."""
    weights = taps(sigma)
    line = np.concatenate([weights[:0:-1], weights])
    rho = float((line[1:] * line[:-1]).sum() / (line**2).sum())
    slope, alpha = math.sqrt((1 - rho) / (1 + rho)), math.asin(math.sqrt((1 - rho**2) / 2))
    node, weight = _gauss()
    angle = math.pi / 2 - alpha
    edge = 0.5 * np.vectorize(math.erfc)(-slope * z / math.sqrt(2))
    owen = np.exp(-0.5 * np.multiply.outer(slope * z, 1 / np.cos(angle * node)) ** 2) @ weight * angle / (2 * math.pi)
    middle = edge - 2 * owen
    rows, columns = (max(n - 2, 0) * middle + min(n, 2) * edge for n in shape)
    return rows * columns * np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)


@lru_cache(1)
def _gauss() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss's quadrature from 0 to 1; so many that no error is seen, for sigma up to 10."""
    node, weight = np.polynomial.legendre.leggauss(NODES)
    return (node + 1) / 2, weight / 2


@lru_cache
def threshold_for(rate: float, shape: tuple[int, int], sigma: float) -> float:
    """The threshold at which there are `rate` false positives in a frame of `shape`.

    >>> rate = false_positives(4.5, (128, 128), 1.3)
    >>> round(threshold_for(rate, (128, 128), 1.3), 6)
    4.5
    """
    most = false_positives(LOWEST, shape, sigma)
    if not 0 < rate < most:
        raise ValueError(f"got {rate} false positives for each frame of {shape}; expected above 0 and below {most:.3g}")
    threshold, step = math.sqrt(LOWEST**2 + 2 * math.log(most / rate)), 1.0
    while abs(step) > 1e-9:  # Newton's steps; the logarithm is concave, so that none but the first goes too far
        there = false_positives(threshold, shape, sigma)
        step = math.log(there / rate) * there / float(_peaks_of_noise(np.array(threshold), shape, sigma))
        threshold += step
    return threshold


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _as_normal(which, y, x, expected, noise, scale, weights, snr):
    """Replace the snr of peaks, where it matters, by the one that a normal distribution has as often.

    sum a (d - m), a = k scale / V, of variance 1, with Poisson photons and normal read noise, has the cumulants
    K(s) = sum m (exp(a s) - 1 - a s) + s²/2 sum a² (V - m).  With K'(s) = snr, r = sqrt(2 (s snr - K)) and
    u = s sqrt(K''), the tail is Phi(-r - log(u / r) / r).
    """
    h, w = noise.shape[1:]
    reach = len(weights) - 1
    for p in numba.prange(len(x)):
        t = float(snr[p])
        if not 1 < t < CERTAIN:
            continue
        m = which[p]
        a, b = np.empty((2 * reach + 1) ** 2), np.empty((2 * reach + 1) ** 2)
        count, rest = 0, 1.0
        for i in range(max(0, y[p] - reach), min(h, y[p] + reach + 1)):
            for j in range(max(0, x[p] - reach), min(w, x[p] + reach + 1)):
                k = float(weights[abs(i - y[p])]) * weights[abs(j - x[p])]
                a[count] = k * scale[m, y[p], x[p]] / noise[m, i, j]
                b[count] = max(float(expected[m, i, j]), 0.0)
                rest -= a[count] * a[count] * b[count]
                count += 1
        s = t
        for _ in range(30):
            value, first, second = 0.5 * rest * s * s, rest * s, rest
            for q in range(count):
                e = np.exp(a[q] * s)
                value += b[q] * (e - 1 - a[q] * s)
                first += a[q] * b[q] * (e - 1)
                second += a[q] * a[q] * b[q] * e
            step = (t - first) / second
            s = max(s + step, 0.1 * s)
            if abs(step) < 1e-6 * s:
                break
        r, u = np.sqrt(2 * (s * t - value)), s * np.sqrt(second)
        snr[p] = r + np.log(u / r) / r


# ---------------------------------------------------------------- kernels: reference


def _band(weights: np.ndarray, n: int) -> np.ndarray:
    """Matrix (n, n) of the convolution with symmetric weights, nothing beyond the border."""
    distance = abs(np.arange(n)[:, None] - np.arange(n))
    return np.where(distance < len(weights), np.append(weights, 0.0)[np.minimum(distance, len(weights))], 0.0)


def _scale(variance, weights, scale):
    rows, columns = (_band(np.asarray(weights, float) ** 2, n) for n in variance.shape[1:])
    scale[...] = 1 / np.sqrt(rows @ (1 / np.asarray(variance, float)) @ columns)


def _filter(frames, expected, variance, scale, weights, snr):
    n, m = len(frames), len(expected)
    rows, columns = (_band(np.asarray(weights, float), k) for k in frames.shape[1:])
    for i in range(n):
        part = i * m // n
        rest = (frames[i].astype(float) - expected[part]) / variance[part]
        snr[i] = rows @ np.where(np.isfinite(rest), rest, 0) @ columns * scale[part]


def _peaks(snr, threshold, count, at):
    n, h, w = snr.shape
    most = at.shape[1]
    at[...] = -1
    for i in range(n):
        padded = np.pad(snr[i], 1, constant_values=-np.inf)
        peak = snr[i] > threshold[0]
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                other = padded[1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w]
                # of equal neighbours the first counts
                peak &= (snr[i] > other) if (dy, dx) < (0, 0) else (snr[i] >= other)
        pixels = np.flatnonzero(peak)
        count[i] = len(pixels)
        at[i, : min(len(pixels), most)] = pixels[:most]


# ---------------------------------------------------------------- kernels: cpu


fast = numba.njit(cache=True, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"})


@fast
def _columns(image, weights, out):
    """Convolve down the columns; `image` has `reach` rows of zeros more at both ends."""
    h, w = out.shape
    reach = len(weights) - 1
    for i in range(h):
        middle, line, a = image[i + reach], out[i], weights[0]
        for j in range(w):
            line[j] = a * middle[j]
        for k in range(1, reach + 1):
            a, above, below = weights[k], image[i + reach - k], image[i + reach + k]
            for j in range(w):
                line[j] += a * (above[j] + below[j])


@fast
def _rows(image, weights, line, out):
    """Convolve along the rows; `line` is w + 2 reach long, with zeros at both ends."""
    h, w = image.shape
    reach = len(weights) - 1
    for i in range(h):
        middle, result, a = image[i], out[i], weights[0]
        for j in range(w):
            line[reach + j] = middle[j]
            result[j] = a * middle[j]
        for k in range(1, reach + 1):
            a, left, right = weights[k], line[reach - k : reach - k + w], line[reach + k : reach + k + w]
            for j in range(w):
                result[j] += a * (left[j] + right[j])


@fast
def _filtered(frame, expected, variance, scale, weights, rest, down, line, snr):
    """The matched filter of one frame, in units of the noise; `rest`, `down` and `line` are room to work in."""
    h, w = frame.shape
    zero, largest, reach = snr.dtype.type(0), snr.dtype.type(1e30), len(weights) - 1
    for y in range(h):
        data, m, v, out = frame[y], expected[y], variance[y], rest[y + reach]
        for x in range(w):
            r = (data[x] - m[x]) / v[x]
            out[x] = r if abs(r) < largest else zero  # neither NaN nor infinite
    _columns(rest, weights, down)
    _rows(down, weights, line, snr)
    for y in range(h):
        out, s = snr[y], scale[y]
        for x in range(w):
            out[x] *= s[x]


@fast
def _peaks_of(snr, threshold, at):
    """Fill `at` with the pixels of peaks above `threshold`, as far as there is room; returns how many there are."""
    h, w = snr.shape
    most, found = len(at), 0
    candidate = np.empty(w, np.uint8)
    for y in range(h):
        line, above, below = snr[y], snr[max(y - 1, 0)], snr[min(y + 1, h - 1)]
        for x in range(w):
            candidate[x] = (line[x] > threshold) & (line[x] >= above[x]) & (line[x] >= below[x])
        for first in range(0, w, STRETCH):
            last, some = min(first + STRETCH, w), 0
            for x in range(first, last):
                some += candidate[x]
            if some == 0:  # as nearly everywhere
                continue
            for x in range(first, last):
                if not candidate[x]:
                    continue
                value, peak = line[x], True
                for i in range(max(y - 1, 0), min(y + 2, h)):
                    for j in range(max(x - 1, 0), min(x + 2, w)):
                        other = snr[i, j]
                        # of equal neighbours the first counts
                        if other > value or (other == value and (i < y or (i == y and j < x))):
                            peak = False
                if peak:
                    if found < most:
                        at[found] = y * w + x
                    found += 1
    return found


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _scale_cpu(variance, weights, scale):
    m, h, w = variance.shape
    one, reach = variance.dtype.type(1), len(weights) - 1
    square = weights * weights
    for i in numba.prange(m):
        inverse, down, line = _room(h, w, reach, square)
        inverse[reach : reach + h] = one / variance[i]
        _columns(inverse, square, down)
        _rows(down, square, line, scale[i])
        for y in range(h):
            for x in range(w):
                scale[i, y, x] = one / np.sqrt(scale[i, y, x])


@fast
def _room(h, w, reach, like):
    """An image with `reach` rows of zeros at both ends, one without, and a row with zeros: what a filter needs."""
    image = np.empty((h + 2 * reach, w), like.dtype)
    image[:reach] = 0
    image[reach + h :] = 0
    return image, np.empty((h, w), like.dtype), np.zeros(w + 2 * reach, like.dtype)


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _filter_cpu(frames, expected, variance, scale, weights, snr):
    n, h, w = frames.shape
    m = len(expected)
    for i in numba.prange(n):
        part = i * m // n
        rest, down, line = _room(h, w, len(weights) - 1, weights)
        _filtered(frames[i], expected[part], variance[part], scale[part], weights, rest, down, line, snr[i])


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _peaks_cpu(snr, threshold, count, at):
    for i in numba.prange(len(snr)):
        at[i] = -1
        count[i] = _peaks_of(snr[i], threshold[0], at[i])


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _seek(frames, expected, variance, scale, weights, threshold, count, at, height):
    """Filter and peaks, one frame after another, while it is in the cache; `height` is the filter's value there."""
    n, h, w = frames.shape
    m = len(expected)
    for i in numba.prange(n):
        part = i * m // n
        rest, down, line = _room(h, w, len(weights) - 1, weights)
        snr = np.empty((h, w), np.float32)
        _filtered(frames[i], expected[part], variance[part], scale[part], weights, rest, down, line, snr)
        count[i] = _peaks_of(snr, threshold[0], at[i])
        for k in range(min(count[i], at.shape[1])):
            height[i, k] = snr[at[i, k] // w, at[i, k] % w]


def _seek_by_kernels(frames, expected, variance, scale, weights, threshold, count, at, height):
    """The same on a GPU."""
    snr = backend.module(frames).empty_like(frames)
    filter_kernel(frames, expected, variance, scale, weights, out=snr)
    peaks_kernel(snr, threshold, out=(count, at))
    pixels = snr.reshape(len(snr), -1)
    height[...] = backend.module(frames).take_along_axis(pixels, at.clip(0).astype(np.int64), 1)


# ---------------------------------------------------------------- registration


def _sample_scale(rng, m, h, w, k):
    return [rng.gamma(2.0, 5.0, (m, h, w)) + 0.5, taps(1.3)[:k]]


def _sample_filter(rng, n, m, h, w, k):
    variance, weights = _sample_scale(rng, m, h, w, k)
    scale = np.empty_like(variance)
    _scale(variance, weights, scale)
    expected = rng.uniform(1, 10, (m, h, w))
    frames = rng.poisson(5.0, (n, h, w)).astype(float)
    if frames.size:
        frames[-1, h // 2, w // 2] = np.nan
    return [frames, expected, variance, scale, weights]


def _sample_peaks(rng, n, h, w, most):
    return [rng.integers(0, 40, (n, h, w)).astype(float), np.array([20.0])]


def _block_per_frame(dims):
    return dims["n"] if "n" in dims else dims["m"]


_SIZES = [(0, 5, 6), (1, 1, 1), (4, 9, 13), (2, 17, 40)]
_CUDA = kernel.Cuda("spots.cu", _block_per_frame, threads=128)

scale_kernel = kernel.register(
    "spot_scale",
    "variance[m,h,w] weights[k] -> scale[m,h,w]",
    _scale,
    cpu=_scale_cpu,
    cuda=_CUDA,
    sample=_sample_scale,
    cases=tuple({"m": n, "h": h, "w": w, "k": 5} for n, h, w in _SIZES),
    bench={"m": 500, "h": 128, "w": 128, "k": 5},
)
filter_kernel = kernel.register(
    "spot_filter",
    "frames[n,h,w] expected[m,h,w] variance[m,h,w] scale[m,h,w] weights[k] -> snr[n,h,w]",
    _filter,
    cpu=_filter_cpu,
    cuda=_CUDA,
    sample=_sample_filter,
    cases=tuple({"n": n, "m": m, "h": h, "w": w, "k": 5} for n, h, w in _SIZES for m in sorted({min(n, 1), n})),
    bench={"n": 500, "m": 4, "h": 128, "w": 128, "k": 5},
)
peaks_kernel = kernel.register(
    "spot_peaks",
    "snr[n,h,w] threshold[1] -> count[n]:int32 at[n,most]:int32",
    _peaks,
    cpu=_peaks_cpu,
    cuda=_CUDA,
    sample=_sample_peaks,
    cases=tuple({"n": n, "h": h, "w": w, "most": 20} for n, h, w in _SIZES),
    bench={"n": 500, "h": 128, "w": 128, "most": 256},
)
