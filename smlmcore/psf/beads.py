"""A PSF from images of beads: registered to one another, averaged, and put through a spline.

Every bead k shows the same PSF at its own place: data = photons f(z + z_k, y - y_k, x - x_k) + background for each of
its slices.  In turn, the places are fitted by least squares, all slices of a bead together, and f is averaged over the
beads, each moved back by a cubic spline and weighted with its photons.  A few rounds suffice: the average of beads
that are a little off is a little wide, but in the right place.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy

from ..interpolate import kernels, prefilter, shift
from ..interpolate.modes import MODES
from .spline import Spline

ROUNDS = 4


class Registration(NamedTuple):
    """Where beads are: `place` (beads, 3) = z in slices, y, x in pixels from the middle of their stack; `photons`
    (beads,) in the brightest slice; `background` (beads, slices); `correlation` (beads,) with the average; `used`.
    """

    place: np.ndarray
    photons: np.ndarray
    background: np.ndarray
    correlation: np.ndarray
    used: np.ndarray


def average(stacks: Any, least: float = 0.9) -> tuple[np.ndarray, Registration]:
    """The mean (z, y, x) of beads `stacks` (beads, z, y, x) in photoelectrons, registered, without background.

    Beads whose correlation with the mean of the others' is below `least` times the median correlation are left out.
    Its sum is that of one photon in the brightest slice.  Slices and pixels beyond a bead's own stack repeat its edge.

    >>> beads = np.random.default_rng(0).poisson(100.0, (2, 5, 9, 9)) * 1.0
    >>> beads[:, :, 4, 4] += 500.0
    >>> mean, found = average(beads)
    >>> mean.shape, found.used.all()
    ((5, 9, 9), np.True_)
    """
    stacks = np.asarray(stacks, float)
    if stacks.ndim != 4 or not len(stacks) or stacks.shape[1] < 4 or min(stacks.shape[2:]) < 5:
        raise ValueError(
            f"average got stacks of shape {stacks.shape}; expected (beads, z, y, x) with one bead, 4 slices and 5 x 5 "
            "pixels or more"
        )
    if not np.isfinite(stacks).all():
        raise ValueError("average got stacks with pixels that are not finite; leave out these beads")
    border = np.concatenate([stacks[:, :, [0, -1]].reshape(*stacks.shape[:2], -1),
                             stacks[:, :, :, [0, -1]].reshape(*stacks.shape[:2], -1)], 2)  # fmt: skip
    background = np.median(border, 2)
    light = stacks - background[:, :, None, None]
    place = _centres(light)
    photons = np.maximum(light.sum((2, 3)).max(1), 1e-9)
    used = np.ones(len(stacks), bool)
    correlation = np.ones(len(stacks))
    for _ in range(ROUNDS):
        mean = _mean(stacks - background[:, :, None, None], place, photons, used)
        model = _Model(mean)
        for k in range(len(stacks)):
            place[k], photons[k], background[k], correlation[k] = model.fit(stacks[k], place[k])
        used = correlation >= least * np.median(correlation)
        place -= place[used].mean(0)  # the middle of the stack is that of the average
    mean = _mean(stacks - background[:, :, None, None], place, photons, used)
    return mean / mean.sum((1, 2)).max(), Registration(place, photons, background, correlation, used)


def _centres(light: np.ndarray) -> np.ndarray:
    """Centres of mass of the beads' projections, from the middle of the stack; no shift in z."""
    projection = np.maximum(scipy.ndimage.gaussian_filter(light.mean(1), (0, 1, 1)), 0) ** 2
    total = projection.sum((1, 2)) + 1e-30
    h, w = projection.shape[1:]
    y = (projection * np.arange(h)[:, None]).sum((1, 2)) / total - (h - 1) / 2
    x = (projection * np.arange(w)).sum((1, 2)) / total - (w - 1) / 2
    return np.stack([np.zeros(len(light)), y, x], 1)


def _mean(light: np.ndarray, place: np.ndarray, photons: np.ndarray, used: np.ndarray) -> np.ndarray:
    """The mean of the beads moved back to the middle: the sum over beads by the sum of their photons."""
    return shift(light[used], -place[used], mode="reflect").sum(0) / photons[used].sum()


class _Model:
    """Least-squares fits of a bead: place, photons, and a background for each slice."""

    def __init__(self, mean: np.ndarray) -> None:
        self.total = mean.sum((1, 2)).max()
        self.coefficients = prefilter(mean, 3, "reflect")[None]
        self.grid = np.stack(np.meshgrid(*map(np.arange, mean.shape), indexing="ij"), -1).astype(float)

    def image(self, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The mean moved to `place`, and its derivatives (z, y, x, 3) to it."""
        points = (self.grid - place).reshape(1, -1, 3)
        value, slope = np.empty(points.shape[:2]), np.empty(points.shape)
        kernels.slopes(self.coefficients, points, 3, MODES.index("reflect"), out=(value, slope))
        return value.reshape(self.grid.shape[:3]), -slope.reshape(self.grid.shape)

    def fit(self, stack: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, float, np.ndarray, float]:
        data, limit = _centred(stack), np.array(stack.shape) / 4
        for _ in range(5):
            model, slopes = self.image(place)
            # the backgrounds are linear: the mean of each slice is taken off from all
            columns = np.stack([_centred(a).ravel() for a in (model, *np.moveaxis(slopes, -1, 0))])
            solution = np.linalg.solve(columns @ columns.T + 1e-30 * np.eye(4), columns @ data.ravel())
            if not solution[0] > 0:
                break
            move = np.clip(solution[1:] / solution[0], -0.5, 0.5)
            place = np.clip(place + move, -limit, limit)
            if np.abs(move).max() < 1e-3:
                break
        model = self.image(place)[0]
        a = _centred(model)
        photons = (a * data).sum() / (a * a).sum()
        background = stack.mean((1, 2)) - photons * model.mean((1, 2))
        correlation = (a * data).sum() / np.sqrt((a * a).sum() * (data * data).sum() + 1e-30)
        return place, max(float(photons * self.total), 1e-9), background, float(correlation)


def _centred(a: np.ndarray) -> np.ndarray:
    return a - a.mean((1, 2), keepdims=True)


def spline(stacks: Any, dz: float, smooth: float | tuple[float, float] = 0.1) -> tuple[Spline, Registration]:
    """The spline PSF of registered and averaged beads, and where they are; see `Spline.from_beads`."""
    widths = (smooth, 0.0) if np.ndim(smooth) == 0 else tuple(smooth)
    if len(widths) != 2 or not all(0 <= s < np.inf for s in widths):
        raise ValueError(f"Spline.from_beads got smooth={smooth!r}; expected um along z, or a pair: um along z, pixels")
    if not 0 < dz < np.inf:
        raise ValueError(f"Spline.from_beads got dz={dz}; expected the distance of the slices in um, > 0")
    mean, found = average(stacks)
    sigma = (widths[0] / dz, widths[1], widths[1])
    smoothed = scipy.ndimage.gaussian_filter(mean, sigma, mode="nearest")
    # what the filter took away is filtered and put back: curvature stays as it is, only the fourth derivative suffers
    mean = smoothed + scipy.ndimage.gaussian_filter(mean - smoothed, sigma, mode="nearest")
    return Spline.from_array(mean, dz), found
