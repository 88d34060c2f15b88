"""Mapper that takes channels of features as images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from .direct import Parameter


class Image:
    """Channel i of the features (n, channel, ...) becomes the i-th of `parameters`, an image (n, ...).

    The default is one channel named "image", kept positive by softplus: for `renderer.Convolution` and `Image`.

    >>> import numpy as np
    >>> Image()({}, np.zeros((2, 1, 4, 5)))["image"].shape
    (2, 4, 5)
    """

    def __init__(self, parameters: Mapping[str, Parameter] | None = None) -> None:
        self.parameters = {"image": Parameter("softplus")} if parameters is None else dict(parameters)

    @property
    def features(self) -> int:
        """How many channels it needs."""
        return len(self.parameters)

    def configuration(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-ready."""
        return {"parameters": {k: asdict(v) for k, v in self.parameters.items()}}

    @classmethod
    def from_configuration(cls, configuration: Mapping[str, Any]) -> Image:
        """The mapper that `configuration()` describes."""
        return cls({k: Parameter(**v) for k, v in configuration["parameters"].items()})

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
        """Images (n, ...) by name from `features` (n, channel, ...)."""
        if features.ndim < 3 or features.shape[1] != self.features:
            raise ValueError(
                f"mapper.Image got features of shape {features.shape}; expected (n, {self.features}, ...), one channel "
                f"for each of {', '.join(self.parameters)}"
            )
        return {name: to(features[:, i]) for i, (name, to) in enumerate(self.parameters.items())}
