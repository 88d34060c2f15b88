"""How fine a detail the picture shows: Fourier ring correlation, and decorrelation of a single image."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numba
import numpy as np

from ..threads import share

THRESHOLD = 1 / 7  # fixed, as in Nieuwenhuizen et al. 2013
BLOCK = 32  # columns that are transformed together
LARGEST = 1 << 25  # pixels of the images that are transformed, at most
TILES = 64


class Resolution(NamedTuple):
    """`resolution` and its standard error, in pixels of the camera, with the curve: `frequency` per pixel, `curve`.

    The resolution is infinite where the curve never is above its threshold, and NaN where it never falls below.
    """

    resolution: float
    error: float
    frequency: np.ndarray
    curve: np.ndarray


def frc(
    table: np.ndarray, shape: tuple[int, int], zoom: float | None = None, blocks: int = 20, seed: int = 0
) -> Resolution:
    """Fourier ring correlation of two halves of `table` (frame, x, y), in a field of `shape` (h, w) pixels.

        FRC(q) = Re sum_ring F1 F2* / sqrt(sum_ring |F1|² sum_ring |F2|²)

    The halves are `blocks` stretches of the movie, half of them drawn by `seed`, because the same molecule in
    successive frames would correlate with itself (Nieuwenhuizen et al. 2013, Nat. Methods 10, 557).  The resolution is
    1/q where the curve, smoothed over a twentieth of its length, first falls below 1/7.  `zoom`: pixels of the images
    per pixel of the camera, default so that two standard errors (lpx) are one, or where the curve does not fall until
    there, that one is; 5 and 10 where the table has none.

    >>> rng = np.random.default_rng(0)
    >>> place = rng.uniform(8, 24, (2, 200))[:, rng.integers(0, 200, 20_000)] + rng.normal(0, 0.1, (2, 20_000))
    >>> from smlmcore.data import table
    >>> found = frc(table(frame=np.arange(20_000), x=place[0], y=place[1], lpx=0.1), (32, 32))
    >>> bool(0.2 < found.resolution < 0.6)
    True
    """
    if zoom is None:
        error = np.asarray(table["lpx"]) if "lpx" in table.dtype.names else np.empty(0)
        error = error[np.isfinite(error) & (error > 0)]
        finest = 1 / float(np.median(error)) if error.size else 10.0
        coarse = frc(table, shape, finest / 2, blocks, seed)
        return coarse if not np.isnan(coarse.resolution) else frc(table, shape, finest, blocks, seed)
    zoom = float(min(zoom, np.sqrt(LARGEST / (shape[0] * shape[1]))))
    frame = table["frame"].astype(np.int64)
    first, last = int(frame.min(initial=0)), int(frame.max(initial=0))
    blocks = max(2, min(blocks, last - first + 1))
    half = np.random.default_rng(seed).permutation(blocks) % 2
    # one complex transform holds both images, as both are real
    size = [math.ceil(n * zoom) for n in shape]
    side = [_round(n) for n in size]
    image = np.zeros((*side, 2), np.float32)
    x, y = (np.asarray(table[name], np.float32) for name in "xy")
    _halves(x, y, half[(frame - first) * blocks // (last - first + 1)], zoom, *size, image)
    pair = _transform(image.view(np.complex64)[..., 0])
    rings = min(side) // 2
    cross, first_power, second_power, count = _by_tiles(partial(_rings, pair), 4, rings)
    power = np.sqrt(first_power * second_power)
    curve = np.divide(cross, power, out=np.zeros(rings), where=power > 0)
    frequency = np.arange(rings) * zoom / min(side)
    return Resolution(*_crossing(frequency, curve, count), frequency, curve)


def _transform(image: np.ndarray) -> np.ndarray:
    """The Fourier transform of `image` (h, w), transposed; columns by blocks, of which each pixel is in the cache."""
    half, out = np.fft.fft(image, axis=1), np.empty(image.shape[::-1], image.dtype)
    for first in range(0, len(out), BLOCK):
        columns = slice(first, first + BLOCK)
        out[columns] = np.fft.fft(np.ascontiguousarray(half[:, columns].T), axis=1)
    return out


def _round(n: int) -> int:
    """The next number from n on of which Fourier transforms are fast: a product of 2, 3, 5, 7 and 11.

    >>> _round(1021), _round(1024)
    (1024, 1024)
    """
    while n > 1:
        rest = n
        for factor in (2, 3, 5, 7, 11):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            break
        n += 1
    return n


def decorrelation(image: np.ndarray, zoom: float = 1.0, filters: int = 10) -> Resolution:
    """Resolution of one `image` (h, w) of `zoom` pixels per pixel of the camera, without a second one.

    The correlation d(r) of the image's spectrum with its phase alone, within radius r, has its maximum at the highest
    frequency that is not noise; high-pass filters (`filters` of them) take the maximum there.  The resolution is 1/q of
    the highest such q.  (Descloux, Grußmayer & Radenovic 2019, Nat. Methods 16, 918; the filters being isotropic,
    sums over rings of |F| and |F|² are all that d(r) needs.)  The curve is d(r) before filters; the error is half a
    ring.
    """
    image = np.asarray(image, np.float32)
    if image.ndim != 2 or min(image.shape) < 8:
        raise ValueError(f"decorrelation got an image of shape {image.shape}; expected (h, w) of at least 8 pixels")
    h, w = image.shape
    window = np.outer(*(np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 0.5 for n in (h, w))).astype(np.float32)
    spectrum = np.fft.rfft2((image - image.mean()) * window)
    rings = min(h, w) // 2
    amplitude, power, count = _by_tiles(partial(_spectrum, spectrum, w), 3, rings)[:, 1:]
    q = np.arange(1, rings)
    best, found = 0.0, None
    for width in [None, *np.geomspace(1, rings / 4, filters)]:
        gain = 1.0 if width is None else 1 - np.exp(-2 * (q * width / rings) ** 2)
        d = np.cumsum(gain * amplitude) / np.sqrt((gain**2 * power).sum() * np.cumsum(count) + 1e-30)
        found = d if found is None else found
        peak = int(d.argmax())
        # a maximum counts where the curve falls behind it by more than noise; at the end there is none
        if peak < len(d) - 1 and d[peak] - d[peak:].min() > 1e-3:
            best = max(best, float(q[peak]))
    frequency = q * zoom / min(h, w)
    if not best:
        return Resolution(np.inf, np.nan, frequency, found)
    resolution = min(h, w) / (best * zoom)
    return Resolution(resolution, resolution * 0.5 / best, frequency, found)


def _crossing(frequency: np.ndarray, curve: np.ndarray, count: np.ndarray) -> tuple[float, float]:
    """1/q at the first fall below THRESHOLD, and its standard error by that of the curve there over its slope."""
    n = len(curve)
    if n < 4:
        return np.nan, np.nan
    half = max(1, n // 40)
    weights = np.sqrt(np.maximum(count, 1))
    kernel = np.ones(2 * half + 1)
    smooth = np.convolve(curve * weights, kernel, "same") / np.convolve(weights, kernel, "same")
    below = np.flatnonzero(smooth[1:] < THRESHOLD) + 1
    if not below.size:
        return np.nan, np.nan
    if below[0] == 1:
        return np.inf, np.nan
    b = int(below[0])
    a = b - 1
    part = (smooth[a] - THRESHOLD) / (smooth[a] - smooth[b])
    q = frequency[a] + part * (frequency[b] - frequency[a])
    low, high = max(a - half, 1), min(b + half, n - 1)
    slope = abs(smooth[high] - smooth[low]) / (frequency[high] - frequency[low])
    noise = (1 - THRESHOLD**2) / np.sqrt(count[low : high + 1].sum() / 2)  # half of a real image's ring is a copy
    return float(1 / q), float(noise / max(slope, 1e-12) / q**2)


def _by_tiles(add: Callable[..., None], kinds: int, rings: int) -> np.ndarray:
    """Sums (kinds, rings) that `add` makes of TILES parts, each for itself, so that threads do not matter."""
    sums = np.zeros((TILES, kinds, rings))
    share(partial(add, sums), TILES)
    return sums.sum(0)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _halves(x, y, half, zoom, h, w, image):
    """Histograms of both halves, side by side."""
    for k in range(len(x)):
        u, v = (x[k] + 0.5) * zoom, (y[k] + 0.5) * zoom
        if 0 <= u < w and 0 <= v < h:  # not for NaN
            image[int(v), int(u), half[k]] += 1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _spectrum(half, w, sums, begin, end):
    """Sums over rings of |F|, |F|² and their number, from the transform of a real image `w` wide."""
    h, rings = len(half), sums.shape[2]
    side = min(h, w)
    for tile in range(begin, end):
        for i in range(h * tile // TILES, h * (tile + 1) // TILES):
            fy = (i if 2 * i <= h else i - h) * side / h
            for j in range(half.shape[1]):
                fx = j * side / w
                ring = int(np.sqrt(fx * fx + fy * fy) + 0.5)
                if ring < rings:
                    power = half[i, j].real ** 2 + half[i, j].imag ** 2
                    twice = 1.0 if j == 0 or 2 * j == w else 2.0
                    sums[tile, 0, ring] += twice * np.sqrt(power)
                    sums[tile, 1, ring] += twice * power
                    sums[tile, 2, ring] += twice


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _rings(pair, sums, begin, end):
    """Sums over rings of F1 F2*, |F1|², |F2|² and their number, from the transform of the image 1 + i (image 2)."""
    h, w = pair.shape
    rings, side = sums.shape[2], min(h, w)
    for tile in range(begin, end):
        for i in range(h * tile // TILES, h * (tile + 1) // TILES):
            fy = (i if 2 * i <= h else i - h) * side / h
            for j in range(w // 2 + 1):
                fx = j * side / w
                ring = int(np.sqrt(fx * fx + fy * fy) + 0.5)
                if ring < rings:
                    p, m = pair[i, j], pair[(h - i) % h, (w - j) % w]
                    ar, ai = p.real + m.real, p.imag - m.imag  # 2 F1
                    br, bi = p.imag + m.imag, m.real - p.real  # 2 F2
                    twice = 1.0 if j == 0 or 2 * j == w else 2.0
                    sums[tile, 0, ring] += twice * (ar * br + ai * bi)
                    sums[tile, 1, ring] += twice * (ar * ar + ai * ai)
                    sums[tile, 2, ring] += twice * (br * br + bi * bi)
                    sums[tile, 3, ring] += twice
