"""What movies may look like, and frames drawn from it by the library's own renderer: the lessons of a network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..mapper.mixture import PHOTONS
from ..psf import Gaussian2D
from ..psf.base import PSF
from ..simulate.movie import light as light_of

ROUND = 4.0  # pixels beyond the border where emitters still shine in
PATCH = 4.0  # widths around an emitter in which a PSF is drawn that is drawn in squares
FAR = (2.5, 6.0)  # widths, relative to the usual one, of emitters far out of focus


class Lesson(NamedTuple):
    """Frames as a camera gives them, what is known of them, and the emitters that are in them."""

    frames: np.ndarray  # (n, h, w) photoelectrons
    background: np.ndarray  # (n, h, w), as it would be estimated
    variance: np.ndarray  # (n, 1, 1) of the read noise
    sigma: np.ndarray  # (n,) pixels, as it would be estimated
    emitters: np.ndarray  # (e, 3) x, y, log(photons / PHOTONS)
    image: np.ndarray  # (e,) frame of each


@dataclass(frozen=True)
class Prior:
    """Ranges (low, high) from which each frame's conditions are drawn: its own for every frame.

    `photons`: median in the frame, `spread`: standard deviation of the logarithm within it; `background`: photons per
    pixel; `sigma`: width of the PSF in pixels; `density`: emitters per pixel; `read_noise`: photoelectrons.  Photons
    and background are drawn evenly in their logarithm.  The background is flat in half of the frames and rises to a
    side in the others.  Emitters beyond the border shine into half of the frames.  Emitters differ in width by up to
    `uneven` (standard deviation, relative).

    `psf`: any, and what it has beside x, y, photons and background in `shape`, a range for each parameter, from which
    every emitter draws; a `Gaussian2D` has the frame's `sigma` instead, which for others is what the width would be
    estimated to be.  `haze`: emitters per pixel that are far out of focus, in half of the frames; nobody looks for
    them.

    >>> lesson = Prior(density=(0.01, 0.01)).draw(np.random.default_rng(0), 3, (24, 24))
    >>> lesson.frames.shape, lesson.emitters.shape[1], bool(lesson.image.max() < 3)
    ((3, 24, 24), 3, True)
    """

    photons: tuple[float, float] = (300.0, 10_000.0)
    spread: tuple[float, float] = (0.0, 0.6)
    background: tuple[float, float] = (0.5, 100.0)
    sigma: tuple[float, float] = (0.9, 2.0)
    density: tuple[float, float] = (0.0005, 0.015)
    read_noise: tuple[float, float] = (0.0, 2.0)
    uneven: float = 0.06
    psf: PSF = field(default_factory=Gaussian2D)
    shape: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    haze: tuple[float, float] = (0.0, 0.0)

    def draw(self, rng: np.random.Generator, n: int, shape: tuple[int, int]) -> Lesson:
        """`n` frames of `shape`."""
        h, w = shape
        photons, level = (np.exp(rng.uniform(*np.log(v), n)) for v in (self.photons, self.background))
        spread, sigma, density, noise = (
            rng.uniform(*v, n) for v in (self.spread, self.sigma, self.density, self.read_noise)
        )
        noise *= rng.random(n) < 0.5
        around = np.where(rng.random(n) < 0.5, ROUND, 0.0)
        image = np.repeat(np.arange(n), rng.poisson(density * (h + 2 * around) * (w + 2 * around)))
        e, near = len(image), around[image]
        x, y = (rng.uniform(-0.5 - near, side - 0.5 + near) for side in (w, h))
        light = photons[image] * np.exp(spread[image] * rng.normal(size=e))
        values = {"x": x, "y": y, "photons": light}
        if isinstance(self.psf, Gaussian2D):
            width = sigma[image] * np.exp(rng.uniform(0, self.uneven, n)[image] * rng.normal(size=e))
            values["sigma"], psf = width, Gaussian2D()
        else:
            values |= {name: rng.uniform(*v, e) for name, v in self.shape.items()}
            psf = self.psf
        tilt = rng.uniform(-0.5, 0.5, (2, n, 1, 1)) * (rng.random((n, 1, 1)) < 0.5)
        slope = tilt[0] * np.linspace(-1, 1, w) + tilt[1] * np.linspace(-1, 1, h)[:, None]
        behind = level[:, None, None] * (1 + 0.99 * slope)
        mean = light_of(psf, values, image, (n, h, w), 2 * math.ceil(PATCH * self.sigma[1]) + 1)
        if self.haze[1] > 0:
            behind = behind + self._far(rng, photons, sigma, shape)
        # what is estimated is off by some per cent, and takes a little of the emitters' light for background
        known = behind * np.exp(0.04 * rng.normal(size=(n, 1, 1)))
        known += rng.uniform(0, 0.15, (n, 1, 1)) * mean.mean((1, 2), keepdims=True)
        frames = rng.poisson(mean + behind) + noise[:, None, None] * rng.normal(size=(n, h, w))
        inside = (abs(x - (w - 1) / 2) <= w / 2) & (abs(y - (h - 1) / 2) <= h / 2)
        return Lesson(
            frames.astype(np.float32),
            known.astype(np.float32),
            (noise**2).astype(np.float32)[:, None, None],
            (sigma * np.exp(0.02 * rng.normal(size=n))).astype(np.float32),
            np.stack([x, y, np.log(light / PHOTONS)], 1).astype(np.float32)[inside],
            image[inside],
        )

    def _far(self, rng: np.random.Generator, photons: np.ndarray, sigma: np.ndarray, shape: tuple[int, int]) -> Any:
        """Light (n, h, w) of emitters far out of focus."""
        n, (h, w) = len(photons), shape
        many = rng.uniform(*self.haze, n) * (rng.random(n) < 0.5) * (h + 8 * ROUND) * (w + 8 * ROUND)
        image = np.repeat(np.arange(n), rng.poisson(many))
        x, y = (rng.uniform(-4 * ROUND, side + 4 * ROUND, len(image)) for side in (w, h))
        width = sigma[image] * rng.uniform(*FAR, len(image))
        values = {"x": x, "y": y, "photons": photons[image] * rng.uniform(0.5, 1.5, len(image)), "sigma": width}
        return light_of(Gaussian2D(), values, image, (n, h, w))
