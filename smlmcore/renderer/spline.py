"""Renderer of a point spread function that is a learned B-spline, in two or three dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import backend, interpolate
from ..autograd import no_grad, ops, plain
from ..pictures import sections
from .convolution import _per_image
from .template import product


class Spline:
    """Images of `shape` (h, w) = photons * f(i - y, j - x) + background, f = max(s, 0), s a learned cubic B-spline.

    `grid` (y, x) or (z, y, x): knots of s, a pixel apart laterally, and `z_step` um apart; the middle of the grid is
    the emitter's position at z = `z_middle`.  Laterally s is 0 outside, and its outermost coefficients are 0: a
    constant level belongs to the background.  In z it ends at the last planes.  f is divided by the sum of its samples
    a pixel apart, in a plane of the mean brightness: photons are those of the whole PSF.

    Parameters: x, y (pixels), photons, background (per pixel) and, if 3-D, z (um), (n,) each.  `fit_image` makes the
    coefficients from an image or stack to start with; `render` draws f itself, magnified.

    >>> y, x = np.mgrid[-5:6, -5:6]
    >>> draw = Spline((11, 11), (7, 7))
    >>> p = draw.fit_image(np.exp(-(x**2 + y**2) / 3.0))
    >>> values = {"x": np.array([3.0]), "y": np.array([3.0]), "photons": np.array([100.0]), "background": np.zeros(1)}
    >>> draw(p, values)[0, 3, 2:5].round(2), draw.render(p, 3).shape
    (array([ 7.6 , 10.61,  7.6 ]), (33, 33))
    """

    def __init__(self, grid: Sequence[int], shape: tuple[int, int], z_step: float = 1.0, z_middle: float = 0.0) -> None:
        self.grid, self.shape = tuple(int(g) for g in grid), (int(shape[0]), int(shape[1]))
        if len(self.grid) not in (2, 3) or min(self.grid[-2:]) < 3 or min(self.grid) < 1 or not z_step > 0:
            raise ValueError(
                f"renderer.Spline got grid {grid}, z_step {z_step}; expected (y, x) or (z, y, x), 3 or more knots "
                "in y and x, and a step > 0 um"
            )
        self.z_step, self.z_middle = float(z_step), float(z_middle)
        self.names = ("x", "y", "photons", "background") + (("z",) if len(self.grid) == 3 else ())

    def configuration(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-ready."""
        return {"grid": list(self.grid), "shape": list(self.shape), "z_step": self.z_step, "z_middle": self.z_middle}

    def init(self, rng: np.random.Generator) -> dict[str, Any]:
        """The learned parameter at the start: `coefficients` of a round Gaussian spot, a tenth of the grid wide."""
        lines = [np.arange(g) - (g - 1) / 2 for g in self.grid[-2:]]
        y, x = (np.exp(-0.5 * (v / max(0.1 * len(v), 1.0)) ** 2) for v in lines)
        return {"coefficients": np.broadcast_to(np.outer(y, x), self.grid).astype(np.float32)}

    def fit_image(self, image: Any) -> dict[str, Any]:
        """The learned parameter for which f passes through `image`, of the shape of the grid, less a constant level.

        The level is the median of the outermost pixels of all planes, so that f falls to 0 at the border.
        """
        image = backend.asarray(image)
        if image.shape != self.grid or not bool(backend.module(image).isfinite(image).all()):
            raise ValueError(
                f"renderer.Spline.fit_image got an image of shape {image.shape}; expected finite values of the grid's "
                f"shape {self.grid}: crop it or pad it"
            )
        xp = backend.module(image)
        border = [image[..., 0, :], image[..., -1, :], image[..., :, 0], image[..., :, -1]]
        level = xp.median(xp.concatenate([b.ravel() for b in border]))
        clean = image - level
        if not float(clean.sum()) > 0:
            raise ValueError("renderer.Spline.fit_image got an image that is not brighter inside than at its border")
        return {"coefficients": interpolate.prefilter(clean / clean.max()).astype(np.float32)}

    def at(self, p: Mapping[str, Any], points: Sequence[Any]) -> Any:
        """f on grids of the coordinates points[i] (n, m_i), in knots from the grid's middle."""
        planes = self.grid[0] if len(self.grid) == 3 else 1
        c = self._framed(p)
        return self._positive(c, points) * (planes / self._positive(c, self._lines(c)).sum())

    def _lines(self, c: Any, scale: int = 1) -> list[Any]:
        """Coordinates (1, scale * g) along each axis of the grid, `scale` in a knot, for `at`."""
        xp = backend.module(plain(c))
        return [xp.asarray(((np.arange(scale * g) + 0.5) / scale - g / 2)[None], c.dtype) for g in self.grid]

    def _positive(self, c: Any, points: Sequence[Any]) -> Any:
        """max(s, 0) at `points` as for `at`, s being the spline of the framed coefficients `c`."""
        middle = [(g - 1) / 2 for g in self.grid]
        inside = [q + m for q, m in zip(points, middle, strict=True)]
        if len(self.grid) == 3:
            inside[0] = ops.clip(inside[0], 0.0, float(self.grid[0] - 1))
        return ops.maximum(interpolate.sample(c, product([q + 2.0 for q in inside]), mode="zero"), 0.0)

    def _framed(self, p: Mapping[str, Any]) -> Any:
        """Coefficients, 0 at the border, with two more knots on either side: zeros laterally, mirrored in z."""
        c = p["coefficients"]
        xp = backend.module(plain(c))
        inside = np.zeros(self.grid, np.float32)
        inside[..., 1:-1, 1:-1] = 1
        c = ops.pad(c * xp.asarray(inside, c.dtype), [(0, 0)] * (len(self.grid) - 2) + [(2, 2), (2, 2)])
        if len(self.grid) == 2:
            return c
        n = self.grid[0]
        planes = np.abs((np.arange(-2, n + 2) + (n - 1)) % max(2 * n - 2, 1) - (n - 1))
        return c[xp.asarray(planes)]

    def render(self, p: Mapping[str, Any], scale: int = 1) -> Any:
        """f itself, photons per pixel, with `scale` samples per pixel and per plane: (..., scale * y, scale * x)."""
        with no_grad():
            found = self.at(p, self._lines(p["coefficients"], scale))[0]
        return plain(found)

    def pictures(self, p: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The spline, magnified."""
        return sections("spline", self.render(p, 4 if len(self.grid) == 2 else 2))

    def __call__(self, p: Mapping[str, Any], parameters: Mapping[str, Any]) -> Any:
        """Images (n, h, w) of `parameters`."""
        missing = [name for name in self.names if name not in parameters]
        if missing:
            raise ValueError(
                f"renderer.Spline got parameters {sorted(parameters)} without {', '.join(missing)}; expected "
                f"{', '.join(self.names)}"
            )
        c = p["coefficients"]
        xp = backend.module(plain(c))
        lines = [
            xp.arange(n, dtype=c.dtype) - parameters[name].reshape(-1, 1)
            for n, name in zip(self.shape, ("y", "x"), strict=True)
        ]
        if len(self.grid) == 3:
            lines.insert(0, (parameters["z"].reshape(-1, 1) - self.z_middle) / self.z_step)
        image = self.at(p, lines)
        if len(self.grid) == 3:
            image = image[:, 0]
        return image * _per_image(parameters["photons"], 3) + _per_image(parameters["background"], 3)
