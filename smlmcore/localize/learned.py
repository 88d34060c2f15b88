"""Emitters of some frames with the help of a network: one fit where one emitter explains the spot, else all together.

A spot that a Gaussian of usual width explains, with no other near it, is fitted for itself.  Squares around all others
go to the network, whose answers are the start of the joint fit, see `crowd`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..psf.base import PSF
from .crowd import alone, as_starts, cut_off, near, reach, together
from .emitters import Emitters
from .network import CELL, Network, whole
from .shape import with_shapes

NEAR = 2  # pixels around a spot in doubt that the network looks at, at least


def fit_learned(
    network: Network,
    frames: np.ndarray,
    behind: np.ndarray,
    peaks: np.ndarray | None,
    psf: PSF,
    variance: Any = 0.0,
    sigma: float = 1.3,
    box: int = 9,
    light: tuple[float, float] | None = None,
    uneven: float = 0.0,
) -> Emitters:
    """All emitters in `frames` (n, h, w) of background `behind` (m, h, w).

    `peaks` (frame, x, y, snr): what a filter has found; None asks the network about everything.  `psf`: one that the
    network knows; `sigma`: its usual width; `light`: the usual photons and how they scatter, see `joint`;
    `uneven`: how far widths scatter, see `crowd`.
    """
    n = len(frames)
    own, doubt = alone(frames, _none() if peaks is None else peaks, psf, variance, sigma, box, uneven)
    doubt |= near(own, own, n, reach(sigma, box))
    where = np.ones(_cells(frames.shape), bool) if peaks is None else _seen(own.rows(doubt), frames.shape)
    doubt |= where[own.frame, *_cell(own, frames.shape)]  # what the network looks at anyway
    doubt |= cut_off(own, frames.shape, box)
    certain, doubtful = own.rows(~doubt), own.rows(doubt)
    starts = network.find(frames, behind, variance, sigma, where=where)[["frame", "x", "y", "photons"]]
    starts = starts[~near(_points(starts), certain, n, 3.0)]
    shape = network.prior.shape
    starts = with_shapes(starts, frames, behind, psf, shape, variance, sigma)
    missed = as_starts(doubtful.rows(~near(doubtful, _points(starts), n, 4 * sigma)), psf)
    missed = with_shapes(missed[["frame", "x", "y", "photons"]], frames, behind, psf, shape, variance, sigma)
    both = np.concatenate([starts, missed.astype(starts.dtype)])
    both = both[np.argsort(both["frame"], kind="stable")]
    return together(frames, behind, certain, doubtful, both, psf, variance, sigma, box, light, uneven)


def _none() -> np.ndarray:
    return np.empty(0, [("frame", int), ("x", int), ("y", int), ("snr", np.float32)])


def _points(table: np.ndarray) -> Emitters:
    """A table's frames and positions as emitters."""
    empty = [np.empty(len(table))] * 6
    return Emitters(table["frame"].astype(np.int64), np.stack([table["x"], table["y"]], 1).astype(np.float32), *empty)


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
