"""All emitters of some frames: one fit for each peak, and for those that overlap a joint one.

A peak by itself is fitted by `fit.mle`, with any PSF.  Emitters that others shine on, that one emitter does not explain
(chi square, or a Gaussian's width), or that the border cuts, go to `joint.fit`, which fits them together and finds
those hidden beside them.  There Gaussians have the movie's usual width: it cannot be told
from their distance.  Who turns out to be alone, and of another width than usual, keeps the fit of its own.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numba
import numpy as np

from .. import data, fit
from ..psf import Gaussian2D
from ..psf.base import PSF
from ..threads import share, with_threads
from . import joint
from .emitters import Emitters

UNEXPLAINED = 2.0  # standard deviations of chi square
WIDE = 2.5  # standard errors by which a spot is wider than usual
TOUCHED = 1.0
ASTRAY = 2.0  # pixels from the peak, at which a fit has lost it


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
        own.rows_at(doubt, reset(own.rows(doubt), peaks[doubt]))
        linked = near(own, own, len(frames), joint.LINK * sigma)
        again = doubt & near(own, own, len(frames), TOUCHED * box) | cut_off(own, frames.shape, box)
        own, doubt = apart(frames, own, again & ~linked, doubt | linked, psf, variance, sigma, box, uneven)
        starts = as_starts(own.rows(doubt), psf)
        return together(
            frames, behind, own.rows(~doubt), own.rows(doubt), starts, psf, variance, sigma, box, None, uneven
        )


def alone(
    frames: np.ndarray, peaks: np.ndarray, psf: PSF, variance: Any, sigma: float, box: int, uneven: float = 0.0
) -> tuple[Emitters, np.ndarray]:
    """Each peak fitted for itself, and which of them one emitter of the usual width does not explain."""
    frame, x, y = (peaks[name].astype(np.int64) for name in ("frame", "x", "y"))
    n = len(frame)
    images, noise = (np.empty((n, box, box), np.float32) for _ in range(2))
    pixels = np.empty(n, np.int32)
    read = np.ascontiguousarray(np.broadcast_to(np.asarray(variance, np.float32), frames.shape[1:]))
    share(partial(_cut, frames, read, frame, x, y, images, noise, pixels), n)
    own, doubt = _explain(images, noise, pixels, psf, frame, x, y, peaks["snr"].astype(np.float32))
    if (column := width_of(psf)) >= 0:
        doubt |= ~(own.theta[:, column] - sigma < WIDE * np.hypot(own.errors[:, column], uneven))
    return own, doubt


def apart(frames, own, again, doubt, psf, variance, sigma, box, uneven):
    """Those of `again` fitted once more, without the light of the others, and their width held."""
    images, noise, pixels = joint.apart(frames, as_starts(own, psf), again, variance, sigma, psf, box)
    some = own.rows(again)
    x, y = np.rint(some.theta[:, :2]).astype(np.int64).T
    held = Gaussian2D(sigma) if width_of(psf) >= 0 and not uneven else psf
    new, still = _explain(images, noise, pixels, held, some.frame, x, y, some.snr)
    if held is not psf:
        new.theta = np.insert(new.theta, 4, sigma, 1)
        new.errors = np.insert(new.errors, 4, np.nan, 1)
    own.rows_at(again, new)
    doubt = doubt.copy()
    doubt[again] = still
    return own, doubt


def _explain(images, noise, pixels, psf, frame, x, y, snr):
    half = images.shape[1] // 2
    found = fit.mle(images, psf, variance=noise, progress=False)
    theta = found.parameters.copy()
    good = np.isfinite(theta).all(1)
    doubt = ~(found.chi2 <= pixels - len(psf.names) + UNEXPLAINED * np.sqrt(2.0 * pixels)) | ~good
    theta[:, 0] += x - half
    theta[:, 1] += y - half
    crowded = np.zeros(len(theta), bool)
    return Emitters(
        frame, theta, found.errors, found.status, found.log_likelihood, found.chi2, snr, crowded
    ), doubt  # fmt: skip


def together(
    frames: np.ndarray, behind: np.ndarray, certain: Emitters, doubtful: Emitters, starts: np.ndarray, psf: PSF,
    variance: Any, sigma: float, box: int, light: tuple[float, float] | None = None, uneven: float = 0.0,
) -> Emitters:  # fmt: skip
    """`certain` emitters, and those of joint fits from `starts`, in place of the `doubtful` ones."""
    n, far = len(frames), reach(sigma, box)
    found = joint.fit(frames, starts, behind, variance, sigma, psf, box, light, as_starts(certain, psf), uneven)
    found = found.rows(np.isfinite(found.theta).all(1) & np.isfinite(found.errors[:, :2]).all(1))
    found.crowded = near(found, found, n, far) | near(found, certain, n, far)
    certain.crowded = near(certain, certain, n, far) | near(certain, found, n, far)
    # alone after all, and of another width than usual: the fit of its own, in which the width is free
    if (column := width_of(psf)) >= 0:
        explained = doubtful.chi2 <= box * box + UNEXPLAINED * box * np.sqrt(2.0)  # no light of a neighbour in its box
        explained &= (doubtful.status == fit.Status.converged) & ~cut_off(doubtful, frames.shape, box)
        own = doubtful.rows(explained)
        own = own.rows(abs(own.theta[:, column] - sigma) > WIDE * own.errors[:, column])
        own = own.rows(near(own, found.rows(~found.crowded), n, 0.5))
        found = found.rows(found.crowded | ~near(found, own, n, 0.5)).join(own)
    return certain.join(found)


def near(emitters: Emitters, others: Emitters, frames: int, distance: float) -> np.ndarray:
    """Which `emitters` have one of `others`, but themselves, within `distance` pixels."""
    starts = [np.searchsorted(e.frame, np.arange(frames + 1)) for e in (emitters, others)]
    marked = np.zeros(len(emitters), bool)
    at = (np.ascontiguousarray(e.theta[:, :2], np.float32) for e in (emitters, others))
    share(partial(_near, *starts, *at, emitters is others, distance * distance, marked), frames)
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


def reset(emitters: Emitters, peaks: np.ndarray) -> Emitters:
    """Put back to their peaks those that their fit has lost."""
    theta = emitters.theta
    lost = ~(
        np.isfinite(theta).all(1)
        & (abs(theta[:, 0] - peaks["x"]) <= ASTRAY)
        & (abs(theta[:, 1] - peaks["y"]) <= ASTRAY)
    )
    usual = np.nanmedian(theta, 0) if np.isfinite(theta).any() else np.ones(theta.shape[1])
    theta[lost] = np.nan_to_num(usual, nan=1.0)
    theta[lost, 0], theta[lost, 1] = peaks["x"][lost], peaks["y"][lost]
    return emitters


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _cut(frames, read, frame, x, y, images, noise, pixels, begin, end):
    box = images.shape[1]
    h, w = frames.shape[1:]
    half = box // 2
    for p in range(begin, end):
        seen = 0
        for i in range(box):
            for j in range(box):
                r, c = y[p] - half + i, x[p] - half + j
                images[p, i, j], noise[p, i, j] = np.float32(0), joint.NOWHERE
                if 0 <= r < h and 0 <= c < w and np.isfinite(frames[frame[p], r, c]):
                    images[p, i, j] = frames[frame[p], r, c]
                    noise[p, i, j] = read[r, c]
                    seen += 1
        pixels[p] = seen


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _near(start, others_start, at, others, same, square, marked, begin, end):
    for f in range(begin, end):
        for p in range(start[f], start[f + 1]):
            for q in range(others_start[f], others_start[f + 1]):
                d = (at[p, 0] - others[q, 0]) ** 2 + (at[p, 1] - others[q, 1]) ** 2
                if d < square and not (same and p == q):
                    marked[p] = True
