"""Mapper that reads photons and position of an emitter from a map, as its sum and its centre of mass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from .. import backend
from ..autograd import ops, plain
from .direct import Parameter

FEW = 1e-6  # of the sum of a map: an empty map has its centre in the middle of the image


class Centroid:
    """Each of `emitters` has a map m = softplus(channel) of the image's size: photons = photons_scale * sum m, and x, y
    are the centre of mass of m, in pixels.  `parameters` (z, sigma, ...) come from the mean of a channel of each
    emitter; "background" among them from one channel for the image.

    Channels: the maps, then for each parameter one channel per emitter (background: one), in the order given.  Values
    are (n, emitters), background (n,): for `renderer.Emitters` or `renderer.PSF`.

    >>> import numpy as np
    >>> maps = np.full((1, 1, 5, 7), -30.0); maps[0, 0, 1, 4] = 10.0
    >>> values = Centroid(1, photons_scale=2.0)({}, maps)
    >>> [round(float(values[k][0, 0]), 2) for k in ("x", "y", "photons")]
    [4.0, 1.0, 20.0]
    """

    def __init__(
        self, emitters: int, parameters: Mapping[str, Parameter] | None = None, photons_scale: float = 1.0
    ) -> None:
        if emitters < 1 or not photons_scale > 0:
            raise ValueError(
                f"mapper.Centroid got emitters={emitters}, photons_scale={photons_scale}; expected >= 1 and > 0"
            )
        self.emitters, self.parameters, self.photons_scale = int(emitters), dict(parameters or {}), float(photons_scale)

    @property
    def features(self) -> int:
        """How many channels it needs."""
        return self.emitters + sum(1 if name == "background" else self.emitters for name in self.parameters)

    def configuration(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-ready."""
        parameters = {k: asdict(v) for k, v in self.parameters.items()}
        return {"emitters": self.emitters, "parameters": parameters, "photons_scale": self.photons_scale}

    @classmethod
    def from_configuration(cls, configuration: Mapping[str, Any]) -> Centroid:
        """The mapper that `configuration()` describes."""
        parameters = {k: Parameter(**v) for k, v in configuration["parameters"].items()}
        return cls(configuration["emitters"], parameters, configuration["photons_scale"])

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
        """x, y, photons and `parameters` (n, emitters), background (n,), from `features` (n, channel, y, x)."""
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
            last = first + (1 if name == "background" else self.emitters)
            mean = features[:, first:last].mean(axis=(2, 3))
            values[name] = to(mean[:, 0] if name == "background" else mean)
            first = last
        return values
