"""Emitters of some frames with the help of a network: one fit where one emitter explains the spot, else all together.

A spot that a Gaussian of usual width explains, with no other near it, is fitted for itself.  Squares around all others
go to the network, whose answers are the start of the joint fit, see `crowd`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np

from ..psf.base import PSF
from ..simulate.movie import light as light_of
from .crowd import alone, as_starts, cut_off, near, reach, together
from .emitters import Emitters
from .network import CELL, Network, whole
from .shape import with_shapes

HAZE = 3.0  # widths of the PSF
MIST = 3.0  # mean square of haze relative to that of the noise, from which on it counts
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
    found = together(frames, behind, certain, doubtful, both, psf, variance, sigma, box, light, uneven)
    if network.prior.haze[1] > 0 and hazy(frames, behind, [as_starts(found, psf)], psf, variance, sigma) is not behind:
        lit = [as_starts(certain, psf), starts]  # peaks that the network does not see are haze
        for _ in range(2):
            rest = hazy(frames, behind, lit, psf, variance, sigma)
            found = together(frames, rest, certain, doubtful, starts, psf, variance, sigma, box, light, uneven)
            lit = [as_starts(found, psf)]
    return found


def hazy(
    frames: np.ndarray,
    behind: np.ndarray,
    lit: Sequence[np.ndarray],
    psf: PSF,
    variance: Any = 0.0,
    sigma: float = 1.3,
) -> np.ndarray:
    """The background `behind` (m, h, w) of each of the `frames` (n, h, w), if haze drifts over them.

    Haze is what `frames` have beside the background and the light of the emitters in the tables `lit`, smoothed over
    HAZE widths of the PSF, more than it is on average in all frames.  If its mean square is no more than MIST times
    that of the noise, `behind` comes back as it is.
    """
    from scipy.ndimage import gaussian_filter

    part = np.arange(len(frames)) * len(behind) // max(len(frames), 1)
    mean = behind[part]
    for table in lit:
        known = {"sigma": np.full(len(table), sigma, np.float32)}  # where the table does not tell
        known |= {name: table[name] for name in table.dtype.names}
        values = {name: known[name] for name in psf.names if name != "background"}
        mean = mean + light_of(psf, values, table["frame"].astype(np.int64), frames.shape, 2 * ceil(4 * sigma) + 1)
    rest = np.nan_to_num(frames - mean)
    haze = gaussian_filter(rest, (0, HAZE * sigma, HAZE * sigma), mode="nearest")
    haze -= haze.mean(0) if len(haze) else 0
    noise = float((mean + variance).mean()) / (4 * np.pi * (HAZE * sigma) ** 2)
    if not len(frames) or (haze**2).mean() <= MIST * noise:
        return behind
    return np.maximum(behind[part] + haze, np.float32(0.01))


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
