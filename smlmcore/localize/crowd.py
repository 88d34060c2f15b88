"""All emitters of some frames: one fit for each peak, and for those that overlap a joint one.

A peak by itself is fitted by `fit.mle`, with any PSF.  Emitters that others shine on, or that one emitter does not
explain (chi square, or a Gaussian's width), go to `joint.fit`, which fits them together and finds those hidden
beside them.  Where several overlap, Gaussians have the movie's usual width: it cannot be told from their distance.

At the border, pixels beyond have no weight: emitters there are fitted with the part that is seen.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np

from .. import fit
from ..fit.direct import with_threads
from ..fit.generic import callback
from ..fit.numbers import locked
from ..psf import Gaussian2D, axis
from ..psf.base import PSF
from . import joint
from .emitters import Emitters
from .finder import taps

NOWHERE = np.float32(1e12)  # variance of a pixel that says nothing
UNEXPLAINED = 2.0  # standard deviations of chi square
UNUSUAL = 3.0  # standard errors by which a Gaussian is wider than usual
ASTRAY = 2.0  # pixels from the peak, at which a fit has lost it


def fit_peaks(
    frames: np.ndarray,
    peaks: np.ndarray,
    psf: PSF,
    variance: Any = 0.0,
    sigma: float = 1.3,
    box: int = 9,
    threads: int | None = None,
) -> Emitters:
    """Fit all emitters in `frames` (n, h, w) that `peaks` (frame, x, y, snr) show, and those hidden beside them.

    `sigma`: width of the PSF, at which overlapping Gaussians are held.  Returns the emitters with a finite position.
    """
    frames = np.ascontiguousarray(frames, np.float32)
    read = np.ascontiguousarray(np.broadcast_to(np.asarray(variance, np.float32), frames.shape[1:]))
    with with_threads(threads):
        emitters, pixels = _alone(frames, read, peaks, psf, box)
        work = _in_a_crowd(frames, emitters, pixels, psf, sigma, box)
        if work.any():
            _reset(emitters, peaks, work, psf)
            emitters = _together(frames, read, emitters, work, psf, sigma, box)
    return emitters.rows(np.isfinite(emitters.theta).all(1) & np.isfinite(emitters.errors[:, :2]).all(1))


def _alone(frames, read, peaks, psf, box) -> tuple[Emitters, np.ndarray]:
    """Each peak for itself; and how many pixels it had."""
    frame, x, y = (peaks[name].astype(np.int64) for name in ("frame", "x", "y"))
    n, half = len(frame), box // 2
    images, noise = (np.empty((n, box, box), np.float32) for _ in range(2))
    pixels = np.empty(n, np.int32)
    _cut(frames, read, frame, x, y, images, noise, pixels)
    found = fit.mle(images, psf, variance=noise, progress=False)
    theta = found.parameters.copy()
    theta[:, 0] += x - half
    theta[:, 1] += y - half
    snr, crowded = peaks["snr"].astype(np.float32), np.zeros(n, bool)
    return Emitters(
        frame, theta, found.errors, found.status, found.log_likelihood, found.chi2, snr, crowded
    ), pixels  # fmt: skip


def _in_a_crowd(frames, emitters, pixels, psf, sigma, box) -> np.ndarray:
    """Emitters that others shine on, or that one emitter does not explain."""
    p = emitters.theta.shape[1]
    with np.errstate(invalid="ignore"):
        out = ~(emitters.chi2 <= pixels - p + UNEXPLAINED * np.sqrt(2.0 * pixels)) | ~np.isfinite(emitters.theta).all(1)
        if _width(psf) >= 0:
            width, error = emitters.theta[:, _width(psf)], emitters.errors[:, _width(psf)]
            out |= width > sigma + np.maximum(UNUSUAL * error, 0.05 * sigma)
    starts = np.searchsorted(emitters.frame, np.arange(len(frames) + 1))
    _near(starts, emitters.theta[:, 0], emitters.theta[:, 1], np.float32(_reach(sigma, box) + sigma), out)
    return out


def _reset(emitters, peaks, work, psf) -> None:
    """Put back to their peaks those of `work` that their first fit has lost."""
    theta = emitters.theta
    lost = work & ~(
        np.isfinite(theta).all(1)
        & (abs(theta[:, 0] - peaks["x"]) <= ASTRAY)
        & (abs(theta[:, 1] - peaks["y"]) <= ASTRAY)
    )
    usual = np.nanmedian(theta, 0) if np.isfinite(theta).any() else np.ones(theta.shape[1])
    theta[lost] = np.nan_to_num(usual, nan=1.0)
    theta[lost, 0], theta[lost, 1] = peaks["x"][lost], peaks["y"][lost]


def _together(frames, read, emitters, work, psf, sigma, box) -> Emitters:
    """`emitters` with those marked `work`, and others found beside them, from joint fits."""
    starts = np.searchsorted(emitters.frame, np.arange(len(frames) + 1))
    p, real = emitters.theta.shape[1], np.dtype(np.float32)
    background, width = psf.names.index("background"), _width(psf)
    bounds = psf.bounds((box, box))
    limits = np.array([bounds[name] for name in psf.names], float).T.copy()
    limits[:2, 0], limits[:2, 1] = (-1.5, frames.shape[2] + 0.5), (-1.5, frames.shape[1] + 0.5)
    alone, several = np.zeros((2, p), np.int64)
    alone[background] = several[background] = 2
    if width >= 0:
        several[width] = 1
    scratch = 6 * axis.whole(box) + 3 * axis.room(box) + p + (p + 1) * box * box + psf.scratch_size((box, box))
    room = np.concatenate([[0], np.cumsum(2 * np.diff(starts) + 4)])
    m = int(room[-1])
    origin, found, errors, measure = np.full(m, -1), np.empty((m, p)), np.empty((m, p)), np.empty((m, 3))
    status, crowded, count = np.zeros(m, np.int8), np.zeros(m, bool), np.zeros(len(frames), np.int64)
    given = (
        callback(psf.numba_partials, real), locked(psf.constants, real), width >= 0, background, box, limits, frames,
        read, starts, emitters.theta.astype(float), work, float(sigma), width, _reach(sigma, box),
        taps(sigma).astype(np.float32), alone, several, room, scratch, origin, found, errors, measure, status, crowded,
        count,
    )  # fmt: skip
    blocks = range(0, len(frames), joint.BLOCK)
    with ThreadPoolExecutor(numba.get_num_threads()) as pool:  # plain threads, which compile it once
        list(pool.map(lambda first: joint.fit(first, min(first + joint.BLOCK, len(frames)), *given), blocks))
    frame = np.repeat(np.arange(len(frames)), count)
    row = room[frame] + np.arange(len(frame)) - np.repeat(np.cumsum(count) - count, count)
    origin, crowded = origin[row], crowded[row]
    new = Emitters(
        frame, found[row].astype(np.float32), errors[row].astype(np.float32), status[row],
        *measure[row, :2].T.astype(np.float32),
        np.where(origin >= 0, emitters.snr[origin], np.float32(joint.GAIN**0.5)), crowded,
    )  # fmt: skip
    # one that is alone after all stays as it was fitted
    work[origin[~crowded & (origin >= 0)]] = False
    new = new.rows(crowded | (origin < 0))
    return emitters.rows(~work).join(new)


def _width(psf: PSF) -> int:
    """Column of the width of a Gaussian of which nothing else is known, -1 for other PSFs."""
    return psf.names.index("sigma") if type(psf) is Gaussian2D and psf.sigma is None else -1


def _reach(sigma: float, box: int) -> float:
    """Distance in x or y within which emitters disturb each other's fit."""
    return box // 2 + 1.5 * sigma


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _cut(frames, read, frame, x, y, images, noise, pixels):
    n, box = images.shape[:2]
    h, w = frames.shape[1:]
    half = box // 2
    for p in numba.prange(n):
        seen = 0
        for i in range(box):
            for j in range(box):
                r, c = y[p] - half + i, x[p] - half + j
                images[p, i, j], noise[p, i, j] = np.float32(0), NOWHERE
                if 0 <= r < h and 0 <= c < w and np.isfinite(frames[frame[p], r, c]):
                    images[p, i, j] = frames[frame[p], r, c]
                    noise[p, i, j] = read[r, c]
                    seen += 1
        pixels[p] = seen


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _near(starts, x, y, reach, near):
    """Mark all that lie within `reach` of another of their frame, in x and y."""
    for f in numba.prange(len(starts) - 1):
        for p in range(starts[f], starts[f + 1]):
            for q in range(starts[f], p):
                if abs(x[p] - x[q]) < reach and abs(y[p] - y[q]) < reach:
                    near[p] = near[q] = True
