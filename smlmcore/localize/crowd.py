"""All emitters of some frames: one fit for each peak, and for those that overlap a joint one.

1. `alone`: each peak by itself, by `fit.mle` with any PSF.
2. `apart`: emitters that one of usual width does not explain (chi square, or a Gaussian's width), or that the border
   cuts, once more without the light of all others, as one emitter or as two (`fit.pairs`).
3. `together`: what is left, and emitters very near to each other, by `joint.fit`, which finds those hidden beside them.

In 2 and 3 Gaussians have the movie's usual width: it cannot be told from their distance.  Who turns out to be alone,
and of another width than usual, keeps the fit of its own.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numba
import numpy as np

from .. import data, fit
from ..fit import pairs
from ..psf import Gaussian2D
from ..psf.base import PSF
from ..threads import share, with_threads
from . import joint
from .emitters import Emitters

UNEXPLAINED = 2.0  # standard deviations of chi square
LOOSE = 4.0  # the same, where a second emitter explains no more than one
WIDE = 2.5  # standard errors by which a spot is wider than usual
ASTRAY = 2.0  # pixels from the peak, at which a fit has lost it
STEPS = 5  # of the first fit: who needs more is not alone


def fit_peaks(
    frames: np.ndarray,
    behind: np.ndarray,
    peaks: np.ndarray,
    psf: PSF,
    variance: Any = 0.0,
    sigma: float = 1.3,
    box: int = 9,
    uneven: float = 0.0,
    threads: int | None = None,
) -> Emitters:
    """Fit all emitters in `frames` (n, h, w) that `peaks` (frame, x, y, snr) show, and those hidden beside them.

    `behind` (m, h, w): background of m equal parts of the frames; `sigma`: width of the PSF, at which overlapping
    Gaussians are held; `uneven`: how far (standard deviation, pixels) widths scatter.  Returns the emitters with a
    finite position.
    """
    frames = np.ascontiguousarray(frames, np.float32)
    with with_threads(threads):
        own, doubt = alone(frames, peaks, psf, variance, sigma, box, uneven)
        _reset(own, doubt, peaks)
        linked = near(own, own, len(frames), joint.LINK * sigma)
        again = (doubt | cut_off(own, frames.shape, box)) & ~linked
        left, second = apart(frames, own, again, psf, variance, sigma, box, uneven)
        doubt = linked | left
        certain, doubtful = own.rows(~doubt).join(second), own.rows(doubt)
        starts = as_starts(doubtful, psf)
        return together(frames, behind, certain, doubtful, starts, psf, variance, sigma, box, None, uneven)


def alone(
    frames: np.ndarray, peaks: np.ndarray, psf: PSF, variance: Any, sigma: float, box: int, uneven: float = 0.0
) -> tuple[Emitters, np.ndarray]:
    """Each peak fitted for itself, and which of them one emitter of the usual width does not explain."""
    frame, x, y = (peaks[name].astype(np.int64) for name in ("frame", "x", "y"))
    n, snr = len(frame), peaks["snr"].astype(np.float32)
    images, noise = (np.empty((n, box, box), np.float32) for _ in range(2))
    pixels = np.empty(n, np.int32)
    read = np.ascontiguousarray(np.broadcast_to(np.asarray(variance, np.float32), frames.shape[1:]))
    share(partial(_cut, frames, read, frame, x, y, images, noise, pixels), n)
    own, doubt = _singles(images, noise, pixels, psf, frame, x, y, snr, STEPS)
    doubt |= own.status == fit.Status.max_iterations
    if (column := width_of(psf)) >= 0:
        doubt |= ~(own.theta[:, column] - sigma < WIDE * np.hypot(own.errors[:, column], uneven))
    return own, doubt


def apart(
    frames: np.ndarray, own: Emitters, which: np.ndarray, psf: PSF, variance: Any, sigma: float, box: int,
    uneven: float = 0.0,
) -> tuple[np.ndarray, Emitters]:  # fmt: skip
    """Fit some of `own`, in place, without the light of the others: as one emitter, or as the first of two.

    Returns which of `which` neither explains, and the second ones of pairs.
    """
    number = np.flatnonzero(which)
    images, noise, pixels, at = joint.apart(frames, as_starts(own, psf), which, variance, sigma, psf, box)
    held = width_of(psf) >= 0 and not uneven > joint.EVEN * sigma
    new, doubt = _singles(
        images, noise, pixels, Gaussian2D(sigma) if held else psf, own.frame[number], *at.T, own.snr[number]
    )
    second = new.rows(np.zeros(0, np.int64))
    if held:
        new.theta, new.errors = (np.insert(v, 4, w, 1) for v, w in ((new.theta, sigma), (new.errors, np.nan)))
        corner = at - box // 2
        tried = np.flatnonzero(doubt & np.isfinite(new.theta).all(1))
        single = new.theta[tried, :4]
        single[:, :2] -= corner[tried]
        two = pairs.fit(images[tried], noise[tried], single, sigma)
        good = (
            two.converged
            & (two.gain > joint.PROOF)
            & _explained(two.chi2, pixels[tried], 7, UNEXPLAINED)
            & np.isfinite(two.errors).all(1)
            & (abs(two.parameters[:, [0, 1, 3, 4]] - box // 2) < ASTRAY + 0.5).all(1)
        )
        doubt[tried] = ~(good | (two.gain < joint.PROOF) & _explained(new.chi2[tried], pixels[tried], 4, LOOSE))
        tried, two = tried[good], pairs.Pairs(*(v[good] for v in two))
        new.chi2[tried] = two.chi2
        new.log_likelihood[tried] += two.gain
        new.status[tried] = fit.Status.converged
        second = new.rows(tried)
        for emitters, rows, first in ((new, tried, 0), (second, np.arange(len(tried)), 3)):
            columns = [first, first + 1, first + 2, 6]
            emitters.theta[rows, :4], emitters.errors[rows, :4] = two.parameters[:, columns], two.errors[:, columns]
            emitters.theta[rows, :2] += corner[tried]
            emitters.snr[rows] = emitters.theta[rows, 2] / emitters.errors[rows, 2]
    own.put(number[~doubt], new.rows(~doubt))
    left = np.zeros(len(own), bool)
    left[number] = doubt
    return left, second


def _singles(
    images: np.ndarray, noise: np.ndarray, pixels: np.ndarray, psf: PSF, frame: np.ndarray, x: np.ndarray,
    y: np.ndarray, snr: np.ndarray, steps: int = 20,
) -> tuple[Emitters, np.ndarray]:  # fmt: skip
    """One emitter in each of `images` around the pixels x, y, and which of them it does not explain."""
    found = fit.mle(images, psf, variance=noise, progress=False, max_iterations=steps)
    theta, half = found.parameters.copy(), images.shape[1] // 2
    doubt = ~(_explained(found.chi2, pixels, len(psf.names), UNEXPLAINED) & np.isfinite(theta).all(1))
    theta[:, 0] += x - half
    theta[:, 1] += y - half
    given = found.errors, found.status, found.log_likelihood, found.chi2, snr
    return Emitters(frame, theta, *given, np.zeros(len(frame), bool)), doubt


def _explained(chi2: np.ndarray, pixels: np.ndarray, parameters: int, most: float) -> np.ndarray:
    """Whether chi square is at most so many standard deviations above what it should be."""
    return chi2 <= pixels - parameters + most * np.sqrt(2.0 * pixels)


def together(
    frames: np.ndarray, behind: np.ndarray, certain: Emitters, doubtful: Emitters, starts: np.ndarray, psf: PSF,
    variance: Any, sigma: float, box: int, light: tuple[float, float] | None = None, uneven: float = 0.0,
) -> Emitters:  # fmt: skip
    """`certain` emitters, and those of joint fits from `starts`, in place of the `doubtful` ones."""
    n, far = len(frames), reach(sigma, box)
    found = joint.fit(frames, starts, behind, variance, sigma, psf, box, light, as_starts(certain, psf), uneven)
    found = found.rows(np.isfinite(found.theta).all(1) & np.isfinite(found.errors[:, :2]).all(1))
    both = certain.join(found)
    both.crowded = near(both, both, n, far)
    # alone after all, and of another width than usual: the fit of its own, in which the width is free
    if (column := width_of(psf)) >= 0:
        good = _explained(doubtful.chi2, box * box, 0, UNEXPLAINED)  # no light of a neighbour in its box
        good &= (doubtful.status == fit.Status.converged) & ~cut_off(doubtful, frames.shape, box)
        own = doubtful.rows(good)
        own = own.rows(abs(own.theta[:, column] - sigma) > WIDE * own.errors[:, column])
        own = own.rows(near(own, both.rows(~both.crowded), n, 0.5))
        both = both.rows(both.crowded | ~near(both, own, n, 0.5)).join(own)
    return both


def near(emitters: Emitters, others: Emitters, frames: int, distance: float) -> np.ndarray:
    """Which `emitters` have one of `others`, but themselves, within `distance` pixels."""
    starts = [np.searchsorted(e.frame, np.arange(frames + 1)) for e in (emitters, others)]
    marked = np.zeros(len(emitters), bool)
    at, to = np.asarray(emitters.theta[:, :2], np.float32), np.ascontiguousarray(others.theta[:, :2].T, np.float32)
    square = np.float32(distance * distance)
    share(partial(_near, *starts, at, to, int(emitters is others), square, marked), frames)
    return marked


def cut_off(emitters: Emitters, shape: tuple[int, int, int], box: int) -> np.ndarray:
    """Of which a part is beyond the border, so that their width cannot be told from their position."""
    middle = np.array([shape[2] - 1, shape[1] - 1]) / 2
    return ~(abs(emitters.theta[:, :2] - middle) < middle + 0.5 - box // 2).all(1)


def reach(sigma: float, box: int) -> float:
    """Distance within which emitters disturb each other's fit."""
    return box // 2 + 1.5 * sigma


def width_of(psf: PSF) -> int:
    """Column of the width of a Gaussian of which nothing else is known, -1 for other PSFs."""
    return psf.names.index("sigma") if type(psf) is Gaussian2D and psf.sigma is None else -1


def as_starts(emitters: Emitters, psf: PSF) -> np.ndarray:
    """Those with finite parameters as a table of frame and parameters."""
    emitters = emitters.rows(np.isfinite(emitters.theta).all(1))
    return data.table(frame=emitters.frame, **dict(zip(psf.names, emitters.theta.T, strict=True)))


def _reset(emitters: Emitters, doubt: np.ndarray, peaks: np.ndarray) -> None:
    """Put back to their peaks those in `doubt` that their fit has lost."""
    theta = emitters.theta
    lost = doubt & ~(
        np.isfinite(theta).all(1)
        & (abs(theta[:, 0] - peaks["x"]) <= ASTRAY)
        & (abs(theta[:, 1] - peaks["y"]) <= ASTRAY)
    )
    some = theta[doubt & ~lost]
    theta[lost] = np.nan_to_num(np.median(some, 0), nan=1.0) if len(some) else 1.0
    theta[lost, 0], theta[lost, 1] = peaks["x"][lost], peaks["y"][lost]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _cut(frames, read, frame, x, y, images, noise, pixels, begin, end):
    box = images.shape[1]
    h, w = frames.shape[1:]
    half = box // 2
    for p in range(begin, end):
        top, left = y[p] - half, x[p] - half
        inside = top >= 0 and left >= 0 and top + box <= h and left + box <= w
        total = np.float32(0)
        for i in range(box if inside else 0):
            for j in range(box):
                v = frames[frame[p], top + i, left + j]
                images[p, i, j] = v
                noise[p, i, j] = read[top + i, left + j]
                total += v
        pixels[p] = box * box
        if inside and np.isfinite(total):
            continue
        pixels[p] = 0
        for i in range(box):
            for j in range(box):
                r, c = top + i, left + j
                images[p, i, j], noise[p, i, j] = np.float32(0), joint.NOWHERE
                if 0 <= r < h and 0 <= c < w and np.isfinite(frames[frame[p], r, c]):
                    images[p, i, j] = frames[frame[p], r, c]
                    noise[p, i, j] = read[r, c]
                    pixels[p] += 1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _near(start, others_start, at, others, same, square, marked, begin, end):
    for f in range(begin, end):
        first, last = others_start[f], others_start[f + 1]
        for p in range(start[f], start[f + 1]):
            found, x, y = np.int32(0), at[p, 0], at[p, 1]
            for q in range(first, last):
                found += (x - others[0, q]) ** 2 + (y - others[1, q]) ** 2 < square
            marked[p] = found > same  # who is one of the others is near to itself
