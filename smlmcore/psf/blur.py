"""Blur along the pixels' axes as a short filter: of the pixel's area, of a bead, and of what else is Gaussian.

The intensity behind an aperture is band-limited: no spatial frequency exceeds 2 NA / wavelength.  A blur multiplies the
spectrum by B(omega), so on samples it is a filter of which only the response within the band counts:

    k_0 + 2 sum_j k_j cos(j omega) = B(omega),   |omega| <= 2 pi (2 NA / wavelength) pitch

and few taps make it, found by least squares: as exact as one likes, where sampling a kernel would not be.  Pixels too
coarse for this (a band beyond 0.8 pi) are divided into `fine` x `fine` points each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import backend
from ..autograd import ops

ACCURACY = 1e-4  # largest error of the response
MOST = 16  # taps on either side


@dataclass(frozen=True)
class Blur:
    """`taps` (2 reach + 1,) on points of 1/`fine` pixel, for both axes."""

    taps: np.ndarray
    fine: int

    @property
    def reach(self) -> int:
        return len(self.taps) // 2

    def points(self, size: int) -> int:
        """How many points along an axis `size` pixels need."""
        return self.fine * (size - 1) + 1 + 2 * self.reach

    def matrix(self, size: int) -> np.ndarray:
        """(size, points): pixels from points."""
        found = np.zeros((size, self.points(size)))
        for i in range(size):
            found[i, self.fine * i : self.fine * i + len(self.taps)] = self.taps
        return found

    def __call__(self, images: Any, shape: tuple[int, int]) -> Any:
        """Pixels (n, h, w) of `shape` from intensities at points, array or Tensor."""
        data = getattr(images, "data", images)
        xp = backend.module(data)
        rows, columns = (xp.asarray(self.matrix(s), images.dtype) for s in shape)
        return ops.matmul(ops.matmul(rows, images), columns.T)


def blur(cutoff: float, sigma: float, integrate: bool) -> Blur:
    """The filter of a Gaussian of standard deviation `sigma` pixels and, with `integrate`, of the pixel's area.

    `cutoff`: highest frequency of the intensity, radians per pixel.

    >>> blur(2.5, 0.0, True).taps.sum().round(4)
    np.float64(1.0)
    """
    fine = math.ceil(cutoff / (0.8 * math.pi))
    omega = np.linspace(0, cutoff / fine, 400)
    response = np.exp(-0.5 * (sigma * fine * omega) ** 2) * (np.sinc(fine * omega / (2 * np.pi)) if integrate else 1.0)
    for reach in range(MOST + 1):
        design = np.cos(np.outer(omega, np.arange(reach + 1))) * np.where(np.arange(reach + 1) > 0, 2, 1)
        half = np.linalg.lstsq(design, response, rcond=1e-9)[0]
        if np.abs(design @ half - response).max() < ACCURACY:
            return Blur(np.r_[half[:0:-1], half], fine)
    raise ValueError(
        f"Pupil got a blur of {sigma:.3g} pixels, too wide for {MOST} points of 1/{fine} pixel; use larger pixels"
    )
