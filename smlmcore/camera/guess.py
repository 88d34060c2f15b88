"""Gain, offset and read noise from a movie alone, where nothing is known about the camera.

Photoelectrons are Poisson numbers and read noise is normal.  In counts, a pixel that expects m has the cumulants

    κ2 = (m − offset) / gain + read_noise² / gain² + 1/12,        κ3 = (m − offset) / gain²

(1/12: rounding).  So the slope of the variance over the mean is 1 / gain, the third cumulant, of which read noise has
none, tells where there is no light, and the rest of the variance is read noise.  In the register of an EMCCD the
electrons multiply at random: κ2 doubles and κ3 is sixfold, so κ3 rises with m 3/2 times as steeply as (κ2's slope)².

Both cumulants come from r = frame − (frame before + frame after)/2, from which the still parts of a movie and slow
changes cancel, less its mean over a tile; pixels near anything that blinks are left out.  Errors are those of a
jackknife over twenty parts of the movie.  Molecules too dim to be seen skew the noise and pull the offset down.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

TILE = 16  # pixels
PIXELS = 30_000_000  # at most so many, of all frames together, are looked at
PARTS = 20  # of the jackknife
LEAST_PIXELS = 40  # of a tile
SEEN = 4.0  # standard deviations above which a smoothed pixel counts as blinking
NEAR = 11  # pixels around it that are left out
DARK = "a background that hardly varies, from which no gain can be told"
DOUBT = 0.08  # largest relative error of a gain that is not refused


class Guess(NamedTuple):
    """What `guess` found: settings in the units of `Camera`, their standard errors, and whether there is an EM
    register.

    `gain` is in photoelectrons per count, also for an EMCCD, where it includes the amplification.
    """

    offset: float
    gain: float
    read_noise: float
    offset_error: float
    gain_error: float
    read_noise_error: float
    em: bool

    def __str__(self) -> str:
        kind = "EMCCD, " if self.em else ""
        return (
            f"{kind}offset {self.offset:.2f} ± {self.offset_error:.2f} counts, gain {self.gain:.3g} ± "
            f"{self.gain_error:.1g} electrons per count, read noise {self.read_noise:.2f} ± "
            f"{self.read_noise_error:.2f} electrons"
        )


def guess(movie: Any) -> Guess:
    """Offset, gain and read noise with errors from `movie`, counts (n, h, w) as array or `data.Movie`.

    Raises `ValueError`, saying why, where the movie does not tell: fewer than 20 frames, light that is the same
    everywhere and always, noise that does not grow with the light, a gain known to no better
    than 8 %, an offset to no better than 2 counts (as of an EMCCD of high gain, in a short movie).

    >>> from smlmcore.camera import Camera
    >>> light = np.linspace(5, 60, 96)[None, :, None] * np.ones((60, 96, 64))
    >>> counts = Camera(offset=100, gain=0.5, read_noise=1.0).expose(light, np.random.default_rng(1))
    >>> found = guess(counts)
    >>> abs(found.gain / 0.5 - 1) < 0.05, abs(found.offset - 100) < 2
    (True, True)
    """
    shape = movie.shape
    if len(shape) != 3:
        raise ValueError(f"guess got a movie of shape {tuple(shape)}; expected counts (frame, y, x)")
    if shape[0] < PARTS or min(shape[1:]) < TILE:
        raise ValueError(
            f"guess got {shape[0]} frames of {shape[1]} x {shape[2]}; it needs at least {PARTS} frames of "
            f"{TILE} x {TILE} pixels"
        )
    rows = np.concatenate(list(_tiles(movie)))
    rows = rows[np.isfinite(rows).all(1)]
    if len(rows) < 10 * PARTS:
        raise ValueError("guess found too few quiet pixels: nearly all blink; give the camera's settings")
    rows = rows[_usual(rows)]
    light, sampling = rows[:, 2], np.sqrt(0.75 * rows[:, 3] / rows[:, 1])  # of the mean of a tile
    if 1.4826 * np.median(np.abs(light - np.median(light))) < 4 * np.median(sampling):
        raise ValueError(f"guess found {DARK}; give the camera's settings")
    parts = (rows[:, 0] * PARTS / (rows[:, 0].max() + 1)).astype(int)
    all_rows = _solve(rows, None)
    em = bool(all_rows[4] > 1.25)
    whole = np.array(_solve(rows, em)[:4])
    without = np.array([_solve(rows[parts != k], em)[:4] for k in np.unique(parts)])
    count = len(without)
    error = np.sqrt((count - 1) / count * ((without - without.mean(0)) ** 2).sum(0))
    ratio = np.array([_solve(rows[parts != k], None)[4] for k in np.unique(parts)])
    ratio_error = np.sqrt((count - 1) * ratio.var())
    slope, offset, variance, gain = whole
    if not slope > 0 or not np.isfinite(whole).all():
        raise ValueError("guess found noise that does not grow with the light; give the camera's settings")
    if not error[3] < DOUBT * gain:
        raise ValueError(
            f"guess found a gain of {gain:.3g} ± {error[3]:.2g} electrons per count, too uncertain to be "
            f"used: {DARK}; give the camera's settings"
        )
    if error[1] > 2:
        raise ValueError(
            f"guess found an offset of {offset:.1f} ± {error[1]:.1f} counts, too uncertain to be used: the movie is "
            "too short or has too few quiet pixels; give the camera's settings"
        )
    if not (0.6 < all_rows[4] < 2.0) and abs(all_rows[4] - 1) > 4 * ratio_error:
        raise ValueError(
            f"guess found noise whose skewness is {all_rows[4]:.2g} times that of photons on a CCD or sCMOS, and "
            f"{all_rows[4] / 1.5:.2g} times that on an EMCCD (filtered or compressed data?); give the camera's settings"
        )
    noise = np.sqrt(max(variance, 0.0))
    noise_error = error[2] / (2 * max(noise, np.sqrt(error[2]), 1e-3))
    return Guess(*map(float, (offset, gain, noise, error[1], error[3], noise_error)), em)


def _tiles(movie: Any):
    """Rows of (frame, number of pixels, M2, κ2, M3, κ3) for every tile of the frames looked at."""
    from scipy import ndimage

    n, size = movie.shape[0], movie.shape[1] * movie.shape[2]
    most = max(PARTS, PIXELS // size)
    used = np.unique(np.linspace(0, n - 3, min(n - 2, most)).astype(int))
    h, w = (s - s % TILE for s in movie.shape[1:])

    def tiled(image):
        blocks = image[..., :h, :w].reshape(*image.shape[:-2], h // TILE, TILE, w // TILE, TILE)
        return np.moveaxis(blocks, -3, -2).reshape(*image.shape[:-2], -1, TILE * TILE)

    for start in used:
        frames = (movie[start : start + 3] if isinstance(movie, np.ndarray) else movie.read(start, start + 3)).astype(
            float
        )
        before, frame, after = frames
        r = frame - (before + after) / 2
        r -= np.median(r)
        smooth = ndimage.gaussian_filter(r, 1.3)
        scale = 1.4826 * np.median(np.abs(smooth - np.median(smooth)))
        blinks = ndimage.maximum_filter(np.abs(smooth) > SEEN * scale, NEAR)
        seen = tiled((~blinks).astype(float))
        count = seen.sum(-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = (tiled(frames) * seen).sum(-1) / count
            residual = (tiled(r) - ((tiled(r) * seen).sum(-1) / count)[:, None]) * seen
            second = (residual**2).sum(-1) / (count - 1)
            third = (residual**3).sum(-1) * count / ((count - 1) * (count - 2))
        around = mean[0] + mean[2]
        row = np.stack(
            [np.full(len(count), start), count, mean[1] + around / 4, second, mean[1] - around / 8, third], 1
        )
        yield row[count >= LEAST_PIXELS]


def _usual(rows: np.ndarray) -> np.ndarray:
    """Tiles whose variance is not far above what their light explains: blinking that was too dim to be seen is."""
    count, light, variance = rows[:, 1], rows[:, 2], rows[:, 3]
    keep = np.ones(len(rows), bool)
    for _ in range(3):
        slope, constant = np.polyfit(light[keep], variance[keep], 1, w=np.sqrt(count[keep]) / variance[keep].mean())
        expected = np.maximum(slope * light + constant, 0.1 * np.median(variance))
        keep = np.abs(variance / expected - 1) < 4 * np.sqrt(2.5 / count)
    return keep


def _solve(rows: np.ndarray, em: bool | None) -> tuple[float, float, float, float, float]:
    """Slope of κ2, offset, read-noise variance (electrons²), gain, and κ3's slope over (κ2's slope)²."""
    _, count, light, variance, light3, third = rows.T
    expected = variance.mean()
    for _ in range(3):  # weights from the fit, not from the data: these would be smallest where the variance is
        weight = count / expected**2
        total = weight.sum()
        centred = light - (weight * light).sum() / total
        slope = (weight * centred * variance).sum() / (weight * centred**2).sum()
        constant = (weight * variance).sum() / total - slope * (weight * light).sum() / total
        expected = np.maximum(slope * light + constant, 0.2 * np.abs(variance.mean()))
    weight = count / expected**3
    total = weight.sum()
    mean3, mean_light = (weight * third).sum() / total, (weight * light3).sum() / total
    centred = light3 - mean_light
    skew = (weight * centred * third).sum() / (weight * centred**2).sum() / slope**2
    factor = 1.0 if em is None or not em else 1.5
    # κ3 of r: factor slope² (M3 − 3/4 offset); κ2 of r: slope (M2 − 3/2 offset) + 3/2 (read noise + 1/12)
    offset = (mean_light - mean3 / (factor * slope**2)) / 0.75
    excess = 2.0 if em else 1.0
    gain = excess / slope
    noise = (constant / 1.5 + slope * offset - 1 / 12) * gain**2
    return slope, offset, noise, gain, skew
