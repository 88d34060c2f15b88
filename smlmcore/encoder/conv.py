"""The convolutional encoder of single spots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import backend
from ..autograd import ops
from ..backend import Array
from ..layers import Conv2d, Flatten, Gelu, Linear, chain
from ..layers.chain import part
from .prepare import SPREAD, check_kind, repaired

FLOOR = 0.1  # photoelectrons; smallest mean and quantile
TYPICAL = (1.5, 0.0, 3.0, 2.0)  # of the four statistics, for 20 photoelectrons per pixel


class Conv:
    """Four 3x3 convolutions, the third of stride 2, and two dense layers: images (n, y, x) -> (n, outputs).

    The input is √(max(a, 0) + 3/8) (Anscombe 1948, Biometrika 35: noise of one width everywhere), brought to mean 0 and
    standard deviation 1 per image.  What that takes away, log mean and log standard deviation, and the logs of the
    image's mean and of its 20 % quantile, go to the dense layers as four more features: without them the width of a
    spot comes out 25 % worse.  The last layer starts small, so that a mapper starts at its offsets.

    shape: (y, x) of the images, at least 5 x 5; outputs: numbers per image; width: channels of the first two
    convolutions, the others have twice as many; hidden: size of the dense layer between.

    >>> encoder = Conv((11, 11), 5)
    >>> encoder(encoder.init(np.random.default_rng(0)), np.ones((8, 11, 11))).shape
    (8, 5)
    """

    def __init__(self, shape: tuple[int, int], outputs: int, width: int = 16, hidden: int = 128) -> None:
        self.shape = tuple(int(s) for s in shape)
        if len(self.shape) != 2 or min(self.shape) < 5:
            raise ValueError(f"encoder.Conv got shape {shape}; expected (y, x) of images, at least 5 x 5 pixels")
        if min(outputs, width, hidden) < 1:
            raise ValueError(
                f"encoder.Conv got outputs {outputs}, width {width}, hidden {hidden}; expected at least 1 of each"
            )
        self.outputs, self.width, self.hidden = outputs, width, hidden
        self.features = chain(
            Conv2d(1, width, activation="gelu"),
            Conv2d(width, width, activation="gelu"),
            Conv2d(width, 2 * width, stride=2, activation="gelu"),
            Conv2d(2 * width, 2 * width, activation="gelu"),
            Flatten(),
        )
        h, w = ((s + 1) // 2 for s in self.shape)
        self.head = chain(Linear(2 * width * h * w + len(TYPICAL), hidden), Gelu(), Linear(hidden, outputs))

    def __repr__(self) -> str:
        return f"Conv({self.shape}, {self.outputs}, width={self.width}, hidden={self.hidden})"

    def configuration(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-ready."""
        return {"shape": list(self.shape), "outputs": self.outputs, "width": self.width, "hidden": self.hidden}

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> dict[str, np.ndarray]:
        """Draw the parameters: "features.0.weight" ... "head.2.bias"."""
        p = {f"features.{name}": value for name, value in self.features.init(rng, dtype).items()}
        p |= {f"head.{name}": value for name, value in self.head.init(rng, dtype).items()}
        p["head.2.weight"] *= p["head.2.weight"].dtype.type(0.1)
        return p

    def __call__(self, p: Mapping[str, Any], images: Array) -> Any:
        """Encode images (n, y, x) or (n, 1, y, x), photoelectrons, a plain array of any real dtype.

        Pixels that are NaN or infinite count as the image's median.
        """
        z, statistics = self._standardise(images, p["head.2.bias"].dtype)
        features = self.features(part(p, "features"), z)
        return self.head(part(p, "head"), ops.concatenate([features, statistics], axis=1))

    def _standardise(self, images: Array, dtype: Any) -> tuple[Array, Array]:
        """Images (n, y, x, 1) of mean 0 and standard deviation 1, and what that took away, (n, 4)."""
        h, w = self.shape
        check_kind(self, images)
        xp, n = backend.module(images), len(images) if images.ndim else 0
        if images.shape not in ((n, h, w), (n, 1, h, w)):
            raise ValueError(f"{self} got images of shape {images.shape}; expected (n, {h}, {w}) or (n, 1, {h}, {w})")
        a = repaired(images.reshape(n, h * w).astype(dtype))
        bright = xp.maximum(a, 0)
        root = xp.sqrt(bright + a.dtype.type(0.375))
        mean, deviation = root.mean(1, keepdims=True), xp.maximum(root.std(1, keepdims=True), a.dtype.type(SPREAD))
        rank = a.shape[1] // 5
        low = xp.partition(bright, rank, axis=1)[:, rank : rank + 1]
        floor = a.dtype.type(FLOOR)
        levels = [mean, deviation, xp.maximum(bright.mean(1, keepdims=True), floor), xp.maximum(low, floor)]
        statistics = xp.log(xp.concatenate(levels, axis=1)) - xp.asarray(TYPICAL, a.dtype)
        return ((root - mean) / deviation).reshape(n, *self.shape, 1), statistics
