"""Offset, gain and read noise of every pixel from dark and evenly lit stacks: the mean-variance method.

In a pixel that sees a mean of B counts above its offset, photon noise has the variance B / gain, so over the levels i

    1 / gain = Σ w_i B_i (V_i − V_dark) / Σ w_i B_i²,        w_i = 1 / V_i²  (the level's, not the pixel's own)

and read_noise = gain √(V_dark − 1/12), 1/12 being what rounding adds.  Flicker of the lamp, common to a frame, is
removed by regression of each pixel on the frame's mean.  Values further than 6 standard deviations from their pixel's
mean (cosmic rays) are replaced by it.  The gains of single pixels are drawn towards their median as far as their own
statistical error explains their spread.  (Huang et al. 2013, Nature Methods 10, 653.)

A stack is read twice, frame by frame; at most six frames of float64 are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import Any, NamedTuple

import numba
import numpy as np

from .model import Camera

OUTLIER = 6.0  # standard deviations
LEAST_FRAMES = 10


class Calibration(NamedTuple):
    """What `calibrate` found: `camera` with maps, the standard errors of gain and read noise (h, w), and `bad` pixels.

    `gain_error` is that of the pixel alone, before its gain was drawn towards the median.
    """

    camera: Camera
    gain_error: np.ndarray
    read_noise_error: np.ndarray
    bad: np.ndarray


def calibrate(
    dark: Any,
    bright: Sequence[Any],
    pixel_size: float | None = None,
    em_gain: float | None = None,
    progress: Callable[[int], Any] = lambda frames: None,
) -> Calibration:
    """The camera with maps of offset, gain and read noise, from a `dark` stack and stacks of several `bright` levels.

    A stack is an array (n, h, w), a `data.Movie` or a path, of at least 10 frames of constant, not saturated light; the
    light may vary over the field.  With an `em_gain` (known, or 300 as printed on the camera) the excess noise of the
    register, a factor of two, is taken into account.  `progress` is called with the number of frames done.

    A pixel is bad where its gain or read noise is not positive, or far from those of the others (robust z above 10); it
    gets the median gain, and its own read noise.

    Raises `ValueError` for stacks of different shapes, too few frames, or bright ones not brighter than the dark one.

    >>> truth, rng = Camera(offset=100, gain=0.5, read_noise=2.0), np.random.default_rng(0)
    >>> dark, *bright = (truth.expose(np.full((90, 24, 24), level), rng) for level in (0.0, 100.0, 400.0, 900.0))
    >>> found = calibrate(dark, bright).camera
    >>> bool(abs(np.median(found.gain) / truth.gain - 1) < 0.02)
    True
    """
    bright = list(bright)
    if not bright:
        raise ValueError("calibrate got no bright stack; expected stacks of at least one, better five to ten, levels")
    with _Stack(dark, "dark", progress) as stack:
        shape, frames = stack.shape, stack.frames
        offset, dark_variance = stack.statistics()
    slope, weight = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    spread = 0.0  # variance of a pixel's slope, from that of a sample variance
    gain = None
    for number, level in enumerate(bright):
        with _Stack(level, f"bright[{number}]", progress) as stack:
            if stack.shape != shape:
                raise ValueError(f"calibrate got stacks of {shape} (dark) and {stack.shape} (bright[{number}])")
            mean, variance = stack.statistics()
            mean -= offset
            variance -= dark_variance
            typical, noise = float(np.median(mean)), float(np.median(variance))
            if not (typical > 0 and noise > 0):
                raise ValueError(
                    f"calibrate got bright[{number}] with a median of {typical:.4g} counts above the dark stack and a "
                    f"variance {noise:.4g} above it; expected both positive: a lit, not saturated stack"
                )
            gain = typical / noise if gain is None else gain
            level_variance = typical / gain + float(np.median(dark_variance))
            w = 1 / level_variance**2
            _add(mean, variance, w, slope, weight)
            spread += (w * typical * level_variance) ** 2 * 2 / (stack.frames - 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        gains = weight / slope
        typical = float(np.median(gains[gains > 0]))
        relative = (
            np.sqrt(spread) / float(np.median(weight)) * typical
        )  # standard error of a pixel's gain over the gain
        noise = np.sqrt(np.maximum(dark_variance - 1 / 12, 0))
        bad = ~(np.isfinite(gains) & (gains > 0) & (noise > 0)) | _far(gains) | _far(dark_variance)
    own = np.var(1 / gains[~bad] * typical) if (~bad).sum() > 1 else 0.0
    keep = max(own - relative**2, 0) / own if own > 0 else 0.0  # the part of the spread that is the pixels' own
    gains = np.where(bad, typical, typical / (1 + keep * (typical / np.where(bad, typical, gains) - 1)))
    if em_gain is not None:  # the register doubles the variance: a count is worth twice the photoelectrons
        gains = 2 * gains * em_gain
    read_noise = (gains * np.maximum(noise, 1e-6)).astype(np.float64)
    camera = Camera(offset.astype(np.float64), gains.astype(np.float64), read_noise, pixel_size, em_gain=em_gain)
    return Calibration(camera, gains * relative, read_noise / np.sqrt(2 * (frames - 2)), bad)


def _far(values: np.ndarray) -> np.ndarray:
    """Where the logarithm of `values` is more than 10 robust standard deviations, and a factor of 3, from the
    median."""
    log = np.log(np.maximum(np.nan_to_num(values), 1e-30))
    middle = np.median(log)
    scale = 1.4826 * np.median(np.abs(log - middle))
    return np.abs(log - middle) > max(10 * scale, np.log(3.0))


class _Stack:
    """A stack of frames, read one after another, as often as needed."""

    def __init__(self, source: Any, name: str, progress: Callable[[int], Any]) -> None:
        from .. import data

        self.progress, self.opened = progress, None
        if isinstance(source, str | PathLike):
            source = self.opened = data.open_movie(source)
        self.source = source if isinstance(source, data.Movie) else np.asanyarray(source)
        shape = self.source.shape
        if len(shape) != 3 or shape[0] < LEAST_FRAMES:
            raise ValueError(
                f"calibrate got {name} of shape {tuple(shape)}; expected (frames, height, width), at least "
                f"{LEAST_FRAMES} frames of constant light"
            )
        self.frames, self.shape = shape[0], tuple(shape[1:])

    def __enter__(self) -> _Stack:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.opened is not None:
            self.opened.close()

    def __iter__(self) -> Iterator[np.ndarray]:
        for i in range(self.frames):
            yield self.source[i] if isinstance(self.source, np.ndarray) else self.source.read(i, i + 1)[0]
            self.progress(1)

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of every pixel, float32 (h, w)."""
        mean = variance = None
        total, square, cross = sums = np.empty((3, *self.shape))
        for _ in range(2):  # the second time without outliers
            sums.fill(0)
            lamp = np.zeros(3)  # number of frames, sums of the frames' means and of their squares
            for frame in self:
                if mean is None:
                    mean, variance = np.zeros(self.shape, np.float32), np.full(self.shape, np.inf, np.float32)
                level = float(frame.mean(dtype=np.float64))
                if lamp[0] == 0:
                    reference = level
                _accumulate(np.ascontiguousarray(frame), mean, variance, level - reference, total, square, cross)
                lamp += 1, level - reference, (level - reference) ** 2
            _finish(total, square, cross, lamp, mean, variance)
        return mean, variance


@numba.njit(cache=True)
def _accumulate(frame, mean, variance, level, total, square, cross):
    """Add a frame to the sums; `level` is its mean above that of the first frame."""
    for r in range(frame.shape[0]):
        for c in range(frame.shape[1]):
            x = np.float64(frame[r, c])
            away = x - mean[r, c]
            if not away * away <= OUTLIER * OUTLIER * variance[r, c]:
                x = np.float64(mean[r, c])
            total[r, c] += x
            square[r, c] += x * x
            cross[r, c] += x * level


@numba.njit(cache=True, error_model="numpy")
def _finish(total, square, cross, lamp, mean, variance):
    n, level, level_square = lamp
    flicker = level_square - level * level / n
    for r in range(total.shape[0]):
        for c in range(total.shape[1]):
            m = total[r, c] / n
            around = square[r, c] - n * m * m
            along = cross[r, c] - m * level
            mean[r, c] = m
            variance[r, c] = max(around - (along * along / flicker if flicker > 0 else 0.0), 0.0) / (n - 2)


@numba.njit(cache=True)
def _add(mean, variance, w, slope, weight):
    for r in range(mean.shape[0]):
        for c in range(mean.shape[1]):
            slope[r, c] += w * mean[r, c] * variance[r, c]
            weight[r, c] += w * mean[r, c] * mean[r, c]
