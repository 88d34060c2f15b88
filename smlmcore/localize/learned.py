"""Emitters of some frames with the help of a network: one fit where one emitter explains the spot, else all together.

A spot that a Gaussian of usual width explains, with no other near it, is fitted for itself.  Squares around all others
go to the network, whose answers are the start of `refine`.  Who turns out to be alone there, and of another width than
usual, keeps the fit of its own, in which the width is free.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from .. import data, fit
from ..psf import Gaussian2D
from .emitters import Emitters
from .network import CELL, Network, whole
from .refine import OUT, clovers, refine

UNEXPLAINED = 3.0  # standard deviations of chi square
WIDE = 2.5  # standard errors by which a spot is wider than usual
LEAF = 3.0  # standard deviations of the clover leaf that two emitters leave, see `refine`
NEAR = 2  # pixels around a spot in doubt that the network looks at, at least


def fit_learned(
    network: Network,
    frames: np.ndarray,
    behind: np.ndarray,
    peaks: np.ndarray | None,
    psf: Gaussian2D,
    variance: Any = 0.0,
    sigma: float = 1.3,
    box: int = 9,
    light: tuple[float, float] | None = None,
) -> Emitters:
    """All emitters in `frames` (n, h, w) of background `behind` (m, h, w).

    `peaks` (frame, x, y, snr): what a filter has found; None asks the network about everything.  `psf`: a `Gaussian2D`;
    `sigma`: its usual width; `light`: the usual photons and how they scatter, see `refine`.
    """
    reach = box // 2 + 1.5 * sigma
    alone, doubt = _alone(frames, _none() if peaks is None else peaks, psf, variance, sigma, box)
    doubt |= _crowded(alone, alone, len(frames), reach)
    where = np.ones(_cells(frames.shape), bool) if peaks is None else _seen(alone.rows(doubt), frames.shape)
    doubt |= where[alone.frame, *_cell(alone, frames.shape)]  # what the network looks at anyway
    # where a part of the spot is beyond the border, its width cannot be told from its position
    cut = ~((abs(alone.theta[:, :2] - _middle(frames.shape)) < _middle(frames.shape) + 0.5 - box // 2).all(1))
    certain, doubtful, whole_spot = alone.rows(~doubt & ~cut), alone.rows(doubt | cut), ~cut[doubt | cut]
    starts = network.find(frames, behind, variance, sigma, where=where)[["frame", "x", "y", "photons"]]
    starts = starts[~_crowded(_points(starts), certain, len(frames), 3.0)]
    missed = doubtful.rows(~_crowded(doubtful, _points(starts), len(frames), 4 * sigma))
    starts = np.concatenate([starts, _starts(missed, starts.dtype)])
    starts = starts[np.argsort(starts["frame"], kind="stable")]
    if not len(starts):
        return certain
    frame, rows = refine(frames, starts, behind, variance, sigma, light, _shining(certain, psf, sigma))
    together = _located(frame, rows, psf, sigma)
    # alone after all, and of another width than usual: the fit of its own, in which the width is free
    single = ~_crowded(together, together, len(frames), reach) & ~_crowded(together, certain, len(frames), reach)
    together.crowded = ~single
    own = _crowded(doubtful, together.rows(single), len(frames), 0.5) & (doubtful.status == fit.Status.converged)
    own &= whole_spot & _unusual(doubtful, psf, sigma)
    replaced = single & _crowded(together, doubtful.rows(own), len(frames), 0.5)
    return certain.join(together.rows(~replaced)).join(doubtful.rows(own))


def _none() -> np.ndarray:
    return np.empty(0, [("frame", int), ("x", int), ("y", int), ("snr", np.float32)])


def _points(table: np.ndarray) -> Emitters:
    """A table's frames and positions as emitters."""
    empty = [np.empty(len(table))] * 6
    return Emitters(table["frame"].astype(np.int64), np.stack([table["x"], table["y"]], 1).astype(np.float32), *empty)


def _starts(emitters: Emitters, kind: np.dtype) -> np.ndarray:
    table = np.zeros(len(emitters), kind)
    table["frame"], table["x"], table["y"], table["photons"] = emitters.frame, *emitters.theta[:, :3].T
    return table[np.isfinite(emitters.theta).all(1)]


def _alone(
    frames: np.ndarray, peaks: np.ndarray, psf: Gaussian2D, variance: Any, sigma: float, box: int
) -> tuple[Emitters, np.ndarray]:
    """Each peak fitted for itself, and what one emitter of the usual width does not explain.

    Pixels beyond the border are NaN and do not count.
    """
    half, n = box // 2, box * box
    frame, x, y = (peaks[name].astype(np.int64) for name in ("frame", "x", "y"))
    read = np.pad(np.broadcast_to(np.asarray(variance, np.float32), frames.shape[1:]), half)
    images, noise = (np.empty((len(peaks), box, box), np.float32) for _ in range(2))
    _cut(frames, read, frame, x, y, images, noise)
    found = fit.mle(images, psf, variance=noise, progress=False)
    theta, good = found.parameters.copy(), np.isfinite(found.parameters).all(1)
    doubt = ~(found.chi2 <= n - len(psf.names) + UNEXPLAINED * np.sqrt(2.0 * n)) | ~good
    if "sigma" in psf.names:
        width = psf.names.index("sigma")
        doubt |= ~(theta[:, width] - sigma < WIDE * found.errors[:, width])
    values = dict(zip(psf.names, np.where(good[:, None], theta, np.float32(1)).T.copy(), strict=True))
    leaf = np.zeros(len(peaks))
    clovers(images, noise, psf.render(values, (box, box)), np.nan_to_num(theta[:, :3]), sigma, half, leaf)
    doubt |= leaf > LEAF
    theta[:, 0] += x - half
    theta[:, 1] += y - half
    nothing = np.zeros(len(peaks), bool)
    snr = peaks["snr"].astype(np.float32)
    own = Emitters(frame, theta, found.errors, found.status, found.log_likelihood, found.chi2, snr, nothing)
    return own, doubt


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _cut(frames, read, frame, x, y, images, noise):
    n, box = images.shape[:2]
    h, w = frames.shape[1:]
    for p in numba.prange(n):
        for i in range(box):
            for j in range(box):
                r, c = y[p] - box // 2 + i, x[p] - box // 2 + j
                inside = 0 <= r < h and 0 <= c < w
                images[p, i, j] = frames[frame[p], r, c] if inside else np.float32(np.nan)
                noise[p, i, j] = read[y[p] + i, x[p] + j]


def _unusual(emitters: Emitters, psf: Gaussian2D, sigma: float) -> np.ndarray:
    """Which have another width than the usual one."""
    if "sigma" not in psf.names:
        return np.zeros(len(emitters), bool)
    column = psf.names.index("sigma")
    return abs(emitters.theta[:, column] - sigma) > WIDE * emitters.errors[:, column]


def _crowded(emitters: Emitters, others: Emitters, frames: int, reach: float) -> np.ndarray:
    """Which `emitters` have one of `others`, but themselves, within `reach` pixels."""
    starts = [np.searchsorted(e.frame, np.arange(frames + 1)) for e in (emitters, others)]
    near = np.zeros(len(emitters), bool)
    _near(*starts, emitters.theta[:, :2], others.theta[:, :2], emitters is others, reach * reach, near)
    return near


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _near(start, others_start, at, others, same, square, near):
    for f in numba.prange(len(start) - 1):
        for p in range(start[f], start[f + 1]):
            for q in range(others_start[f], others_start[f + 1]):
                d = (at[p, 0] - others[q, 0]) ** 2 + (at[p, 1] - others[q, 1]) ** 2
                if d < square and not (same and p == q):
                    near[p] = True


def _middle(shape: tuple[int, int, int]) -> np.ndarray:
    return np.array([shape[2] - 1, shape[1] - 1]) / 2


def _cells(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    return shape[0], -(-shape[1] // CELL), -(-shape[2] // CELL)


def _cell(emitters: Emitters, shape: tuple[int, int, int], dy: int = 0, dx: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the squares that emitters, shifted by some pixels, lie in."""
    at = np.nan_to_num(emitters.theta[:, 1::-1]) + np.array([dy, dx])
    return tuple(np.clip(v, 0, m - 1).astype(int) // CELL for v, m in zip(at.T, shape[1:], strict=True))


def _seen(emitters: Emitters, shape: tuple[int, int, int]) -> np.ndarray:
    """The squares that the network looks at for the sake of `emitters` and NEAR pixels around them."""
    where = np.zeros(_cells(shape), bool)
    for dy in (-NEAR, NEAR):
        for dx in (-NEAR, NEAR):
            where[emitters.frame, *_cell(emitters, shape, dy, dx)] = True
    return whole(where)


def _shining(emitters: Emitters, psf: Gaussian2D, sigma: float) -> np.ndarray:
    """Emitters as a table of frame, x, y, photons, sigma."""
    names = [name for name in psf.names if name != "background"]
    columns = {"sigma": np.full(len(emitters), sigma)}
    columns |= {name: emitters.theta[:, psf.names.index(name)] for name in names}
    return data.table(frame=emitters.frame, **columns)


def _located(frame: np.ndarray, rows: np.ndarray, psf: Gaussian2D, sigma: float) -> Emitters:
    """What `refine` says, as emitters; the width is the usual one and has no error."""
    column = {name: rows[:, i].astype(np.float32) for i, name in enumerate(OUT)}
    column |= {"sigma": np.full(len(rows), sigma, np.float32), "sigma_error": np.full(len(rows), np.nan, np.float32)}
    theta, errors = (np.stack([column[f"{n}{end}"] for n in psf.names], 1) for end in ("", "_error"))
    status = np.full(len(rows), fit.Status.converged, np.int8)
    snr = column["photons"] / column["photons_error"]
    return Emitters(
        frame, theta, errors, status, column["log_likelihood"], column["chi2"], snr, np.ones(len(rows), bool)
    )
