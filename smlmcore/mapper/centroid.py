"""Mapper that reads photons and position of an emitter from a map, as its sum and its centre of mass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import backend
from ..autograd import ops, plain
from .direct import Parameter
from .projection import solve_linear

FEW = 1e-6  # of the sum of a map: an empty map has its centre in the middle of the image


class Centroid:
    """Each of `emitters` has a map m = softplus(channel) of the image's size: photons = photons_scale * sum m, and x, y
    are the centre of mass of m, in pixels.  `parameters` (z, sigma, ...) come from the mean of a channel of each
    emitter, those `per` "image" and "background" from one channel for the image, those not `fitted` from none.

    Channels: the maps, then those of each parameter in the order given.  Values are (n, emitters), or (n,) of the
    image: for `renderer.Emitters` or `renderer.PSF`.

    `solve`, for one emitter: parameters in which the image is linear (photons, background) come in closed form instead,
    as in `Direct`, and all values are (n,).  A spot that moves moves its centre of mass: as position need not be
    learned at each place anew, a small network and few images go a long way where spots may be anywhere.

    >>> import numpy as np
    >>> maps = np.full((1, 1, 5, 7), -30.0); maps[0, 0, 1, 4] = 10.0
    >>> values = Centroid(1, photons_scale=2.0)({}, maps)
    >>> [round(float(values[k][0, 0]), 2) for k in ("x", "y", "photons")]
    [4.0, 1.0, 20.0]
    """

    def __init__(
        self,
        emitters: int,
        parameters: Mapping[str, Parameter] | None = None,
        photons_scale: float = 1.0,
        solve: Sequence[str] = (),
    ) -> None:
        if emitters < 1 or not photons_scale > 0:
            raise ValueError(
                f"mapper.Centroid got emitters={emitters}, photons_scale={photons_scale}; expected >= 1 and > 0"
            )
        self.emitters, self.parameters, self.photons_scale = int(emitters), dict(parameters or {}), float(photons_scale)
        self.solve = tuple(solve)
        if self.solve and (self.emitters > 1 or set(self.solve) & {"x", "y", *self.parameters}):
            raise ValueError(
                f"mapper.Centroid got solve={self.solve} with emitters={emitters} and parameters "
                f"{list(self.parameters)}; expected one emitter, and names that have no channel"
            )

    @property
    def features(self) -> int:
        """How many channels it needs."""
        fitted = (name for name, to in self.parameters.items() if to.fitted)
        return self.emitters + sum(1 if self._of_image(name) else self.emitters for name in fitted)

    def _of_image(self, name: str) -> bool:
        """Whether the parameter has one value in an image."""
        return name == "background" or self.parameters[name].per == "image"

    def configuration(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "emitters": self.emitters,
            "parameters": self.parameters,
            "photons_scale": self.photons_scale,
            "solve": list(self.solve),
        }

    def init(self, rng: Any) -> dict[str, Any]:
        """The learned parameters at the start: none."""
        return {}

    def __call__(
        self,
        p: Mapping[str, Any],
        features: Any,
        images: Any = None,
        variance: Any = 0.0,
        draw: Callable[[Mapping[str, Any]], Any] | None = None,
    ) -> dict[str, Any]:
        """x, y, photons and `parameters` (n, emitters), background (n,), from `features` (n, channel, y, x); with
        `solve` all of them (n,), from the `images`, their `variance` and the renderer `draw` besides."""
        if features.ndim != 4 or features.shape[1] != self.features:
            raise ValueError(
                f"mapper.Centroid got features of shape {features.shape}; expected (n, {self.features}, y, x): "
                f"{self.emitters} maps, then the channels of {', '.join(self.parameters) or 'no parameter'}"
            )
        xp = backend.module(plain(features))
        h, w = features.shape[2:]
        maps = ops.softplus(features[:, : self.emitters]) + FEW / (h * w)
        down, across = maps.sum(axis=3), maps.sum(axis=2)
        total = down.sum(axis=2)
        values = {
            "x": (across * xp.arange(w, dtype=across.dtype)).sum(axis=2) / total,
            "y": (down * xp.arange(h, dtype=down.dtype)).sum(axis=2) / total,
            "photons": self.photons_scale * total,
        }
        first = self.emitters
        for name, to in self.parameters.items():
            alone = self._of_image(name)
            count = 1 if alone else self.emitters
            if to.fitted:
                found = to(features[:, first : first + count].mean(axis=(2, 3)))
                first += count
            else:
                found = to.constant(features, (len(features), count))
            values[name] = found[:, 0] if alone else found
        if not self.solve:
            return values
        if images is None or draw is None:
            raise ValueError("mapper.Centroid with `solve` needs the images and the renderer; pass images= and draw=")
        values = {k: v[:, 0] if v.ndim == 2 else v for k, v in values.items() if k not in self.solve}
        return values | solve_linear(draw, values, self.solve, images, variance)
