"""Renderer that passes images on: for denoising, and for objects that are images already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .convolution import _per_image


class Image:
    """The parameter "image" (n, *shape) as it is, plus the parameter "background" (n,) if there is one.

    >>> Image((4, 5))({}, {"image": np.ones((2, 4, 5)), "background": np.array([0.0, 3.0])}).max((1, 2))
    array([1., 4.])
    """

    symmetric = True  # flipped images are images of flipped parameters

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(int(s) for s in shape)

    def configuration(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-ready."""
        return {"shape": list(self.shape)}

    def init(self, rng: np.random.Generator) -> dict[str, Any]:
        """The learned parameters at the start: none."""
        return {}

    def __call__(self, p: Mapping[str, Any], parameters: Mapping[str, Any]) -> Any:
        """Images (n, *shape) of `parameters`."""
        image = parameters["image"]
        if tuple(image.shape[1:]) != self.shape:
            raise ValueError(
                f"renderer.Image got an image of shape {image.shape}; expected (n, {', '.join(map(str, self.shape))})"
            )
        return image + _per_image(parameters["background"], image.ndim) if "background" in parameters else image
