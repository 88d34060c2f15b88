"""Mapper that takes channels of features as images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .direct import Parameter


class Image:
    """Channel i of the features (n, channel, ...) becomes the i-th of the fitted `parameters`, an image (n, ...).

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
        return sum(to.fitted for to in self.parameters.values())

    def configuration(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"parameters": self.parameters}

    def init(self, rng: Any) -> dict[str, Any]:
        """The learned parameters at the start: none."""
        return {}

    def __call__(self, p: Mapping[str, Any], features: Any, *_: Any) -> dict[str, Any]:
        """Images (n, ...) by name from `features` (n, channel, ...)."""
        if features.ndim < 3 or features.shape[1] != self.features:
            raise ValueError(
                f"mapper.Image got features of shape {features.shape}; expected (n, {self.features}, ...), one channel "
                f"for each of {', '.join(name for name, to in self.parameters.items() if to.fitted)}"
            )
        channels, shape = iter(range(self.features)), (features.shape[0], *features.shape[2:])
        return {
            name: to(features[:, next(channels)]) if to.fitted else to.constant(features, shape)
            for name, to in self.parameters.items()
        }
