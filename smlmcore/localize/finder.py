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
from functools import lru_cache, partial
from typing import Any

import numba
import numpy as np

from .. import backend, kernel
from ..threads import share

REACH = 3.0  # the filter's half width in units of sigma
CERTAIN = 12.0  # standard deviations above which it does not matter how the noise is distributed
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
    # what is skewed to the right needs a higher value (if above one standard deviation): none below this one can do
    lowest = xp.asarray([0.99 * threshold], np.float32)
    seek = _seek_on_cpu if xp is np else _seek_by_kernels
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
    given = (frame * m // n, found["y"], found["x"], *maps, found["snr"])
    share(partial(_as_normal, *given), len(found))
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


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _as_normal(which, y, x, expected, noise, scale, weights, snr, begin, end):
    """Replace the snr of peaks, where it matters, by the one that a normal distribution has as often.

    sum a (d - m), a = k scale / V, of variance 1, with Poisson photons and normal read noise, has the cumulants
    K(s) = sum m (exp(a s) - 1 - a s) + s²/2 sum a² (V - m).  With K'(s) = snr, r = sqrt(2 (s snr - K)) and
    u = s sqrt(K''), the tail is Phi(-r - log(u / r) / r).
    """
    h, w = noise.shape[1:]
    reach = len(weights) - 1
    for p in range(begin, end):
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
free = numba.njit(cache=True, nogil=True, error_model="numpy")  # of the GIL: one part of the images, on one thread


@fast
def _along(image, first, step, weights, out):
    """out[p] = sum of weights[|k|] image[first + p + k step]; the weights from the middle outwards are 5, 7, 9, ..."""
    n = len(out)
    a, b, c, d, e = weights[0], weights[1], weights[2], weights[3], weights[4]
    middle, left, right = image[first:], image[first - step :], image[first + step :]
    left2, right2 = image[first - 2 * step :], image[first + 2 * step :]
    left3, right3 = image[first - 3 * step :], image[first + 3 * step :]
    left4, right4 = image[first - 4 * step :], image[first + 4 * step :]
    for p in range(n):
        near = a * middle[p] + b * (left[p] + right[p]) + c * (left2[p] + right2[p])
        out[p] = near + d * (left3[p] + right3[p]) + e * (left4[p] + right4[p])
    for k in range(5, len(weights), 2):
        a, left, right = weights[k], image[first - k * step :], image[first + k * step :]
        b, left2, right2 = weights[k + 1], image[first - (k + 1) * step :], image[first + (k + 1) * step :]
        for p in range(n):
            out[p] += a * (left[p] + right[p]) + b * (left2[p] + right2[p])


@fast
def _room(h, w, weights):
    """What a filter needs: weights as `_along` wants them, and flat images whose rows end in `reach` zeros, with
    `reach` rows of zeros at both ends, with `reach` zeros, and with none.
    """
    reach = max(4, len(weights) // 2 * 2)
    more = np.zeros(reach + 1, weights.dtype)
    more[: len(weights)] = weights
    pixels = h * (w + reach)
    image = np.zeros(pixels + 2 * reach * (w + reach), weights.dtype)
    return more, image, np.zeros(pixels + 2 * reach, weights.dtype), np.empty(pixels, weights.dtype)


@fast
def _spread(image, down, out, weights, pitch):
    """Convolve the columns and the rows of `image`; the three are from `_room`."""
    reach, pixels = len(weights) - 1, len(out)
    _along(image, reach * pitch, pitch, weights, down[reach : reach + pixels])
    _along(down, reach, 1, weights, out)


@fast
def _filtered(frame, expected, inverse, scale, room, snr):
    """The matched filter of one frame, in units of the noise, into `snr` within its border; `inverse`: of variance."""
    weights, image, down, out = room
    h, w = frame.shape
    zero, largest, reach = snr.dtype.type(0), snr.dtype.type(1e30), len(weights) - 1
    pitch = w + reach
    for y in range(h):
        data, m, v, rest = frame[y], expected[y], inverse[y], image[(y + reach) * pitch :]
        for x in range(w):
            r = (data[x] - m[x]) * v[x]
            rest[x] = r if abs(r) < largest else zero  # neither NaN nor infinite
    _spread(image, down, out, weights, pitch)
    for y in range(h):
        line, s, result = out[y * pitch :], scale[y], snr[y + 1, 1:]
        for x in range(w):
            result[x] = line[x] * s[x]


@fast
def _bordered(h, w, dtype):
    """Room for an image with a border that is lower than all, and for marks of its pixels, whole words of them."""
    image = np.empty((h + 2, w + 2), dtype)
    image[:] = -np.inf
    return image, np.zeros((h * (w + 2) + 7) // 8 * 8, np.uint8)


@fast
def _peaks_of(snr, peak, threshold, at):
    """Fill `at` with the pixels of peaks above `threshold`, as far as there is room; returns how many there are.

    `snr` has a border, see `_bordered`.
    """
    h, w = snr.shape[0] - 2, snr.shape[1] - 2
    flat, pitch, n, most, found = snr.reshape(-1), w + 2, h * (w + 2) - 2, len(at), 0
    middle, left, right = flat[pitch + 1 :], flat[pitch:], flat[pitch + 2 :]
    above, above_left, above_right = flat[1:], flat, flat[2:]
    below, below_left, below_right = flat[2 * pitch + 1 :], flat[2 * pitch :], flat[2 * pitch + 2 :]
    for p in range(n):
        value = middle[p]
        # of equal neighbours the first counts
        first = (value > above_left[p]) & (value > above[p]) & (value > above_right[p]) & (value > left[p])
        last = (value >= right[p]) & (value >= below_left[p]) & (value >= below[p]) & (value >= below_right[p])
        peak[p] = (value > threshold) & first & last
    eight = peak.view(np.uint64)
    for some in range(len(eight)):
        if eight[some] == 0:  # as nearly everywhere
            continue
        for p in range(8 * some, 8 * some + 8):
            if peak[p]:
                if found < most:
                    at[found] = p // pitch * w + p % pitch
                found += 1
    return found


def _scale_cpu(variance, weights, scale):
    share(partial(_scales, variance, weights, scale), len(variance))


@free
def _scales(variance, weights, scale, begin, end):
    h, w = variance.shape[1:]
    one = variance.dtype.type(1)
    squares, image, down, out = _room(h, w, weights * weights)
    pitch = w + len(squares) - 1
    for i in range(begin, end):
        for y in range(h):
            first = (y + len(squares) - 1) * pitch
            for x in range(w):
                image[first + x] = one / variance[i, y, x]
        _spread(image, down, out, squares, pitch)
        for y in range(h):
            for x in range(w):
                scale[i, y, x] = one / np.sqrt(out[y * pitch + x])


def _filter_cpu(*arguments):
    share(partial(_filters, *arguments), len(arguments[0]))


@free
def _filters(frames, expected, variance, scale, weights, snr, begin, end):
    n, h, w = frames.shape
    m, one = len(expected), variance.dtype.type(1)
    room, (found, _) = _room(h, w, weights), _bordered(h, w, weights.dtype)
    for i in range(begin, end):
        part = i * m // n
        if i == begin or part != (i - 1) * m // n:
            inverse = one / variance[part]
        _filtered(frames[i], expected[part], inverse, scale[part], room, found)
        snr[i] = found[1 : h + 1, 1 : w + 1]


def _peaks_cpu(snr, threshold, count, at):
    share(partial(_some_peaks, snr, threshold, count, at), len(snr))


@free
def _some_peaks(snr, threshold, count, at, begin, end):
    h, w = snr.shape[1:]
    image, peak = _bordered(h, w, snr.dtype)
    for i in range(begin, end):
        image[1 : h + 1, 1 : w + 1] = snr[i]
        at[i] = -1
        count[i] = _peaks_of(image, peak, threshold[0], at[i])


def _seek_on_cpu(*arguments):
    share(partial(_seek, *arguments), len(arguments[0]))


@free
def _seek(frames, expected, variance, scale, weights, threshold, count, at, height, begin, end):
    """Filter and peaks, one frame after another, while it is in the cache; `height` is the filter's value there."""
    n, h, w = frames.shape
    m, one = len(expected), variance.dtype.type(1)
    room, (snr, peak) = _room(h, w, weights), _bordered(h, w, weights.dtype)
    for i in range(begin, end):
        part = i * m // n
        if i == begin or part != (i - 1) * m // n:
            inverse = one / variance[part]
        _filtered(frames[i], expected[part], inverse, scale[part], room, snr)
        count[i] = _peaks_of(snr, peak, threshold[0], at[i])
        for k in range(min(count[i], at.shape[1])):
            height[i, k] = snr[1 + at[i, k] // w, 1 + at[i, k] % w]


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
