"""A loss that limits itself: it stops paying where a model begins to learn the noise of its images.

Two small networks learn beside the model, from the images alone and without its help, what can be known of a pixel
without looking at it (a blind spot: Krull et al. 2019, CVPR; Batson and Royer 2019, ICML): the first its mean m, the
second its variance w.  Their likelihood of the pixels of an image, f nats each, is a floor that needs no noise of the
pixel itself. A model of n nats per pixel counts with a gate s in 0...1, held constant in the derivative:

    loss = s n + (1 − s) f + blind,        s = sigmoid((n − f + margin) √(2 pixels))

√(2 pixels) is the inverse standard deviation of a mean of so many nats.  A physical model knows more than the
neighbours of a pixel tell, so it may be better than the floor by `margin`; one that becomes better than that copies
noise, and its gradient goes to zero image by image.  `blind` is the networks' own likelihood, which trains them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import backend
from ..autograd import Tensor, ops
from ..backend import Array
from ..layers import Conv2d, Gelu, chain
from ..layers.chain import part
from .poisson_gaussian import PoissonGaussian

SHIFTED = PoissonGaussian(exact=False)

BLIND = np.ones((5, 5, 1, 1), np.float32)
BLIND[2, 2] = 0


@dataclass(frozen=True)
class SelfLimiting:
    """`loss` of images (n, h, w) with a limit, see the module's text; any size, batch and device.

    >>> images = np.random.default_rng(0).poisson(20.0, (3, 12, 16)).astype(np.float32)
    >>> limited = SelfLimiting()
    >>> limited(limited.init(np.random.default_rng(1)), np.full_like(images, 20.0), images).shape
    (3, 12, 16)
    """

    learned = True  # with the model: it has parameters of its own

    loss: Any = SHIFTED
    margin: float = 0.02
    width: int = 16

    def configuration(self) -> dict[str, Any]:
        """What makes this part again."""
        return {"loss": self.loss, "margin": self.margin, "width": self.width}

    def _nets(self) -> dict[str, tuple[Conv2d, chain]]:
        rest = chain(Gelu(), Conv2d(self.width, self.width, 1), Gelu(), Conv2d(self.width, 1, 1))
        return {name: (Conv2d(1, self.width, 5), rest) for name in ("mean", "variance")}

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw the parameters of both networks."""
        found = {}
        for name, layers in self._nets().items():
            for where, layer in zip(("first", "rest"), layers, strict=True):
                found |= {f"{name}.{where}.{k}": v for k, v in layer.init(rng).items()}
        return found

    def blind(self, p: Mapping[str, Any], data: Array, variance: Any = 0.0) -> tuple[Any, Any]:
        """Mean and variance (n, h, w) of every pixel as its neighbours know them, in photoelectrons."""
        xp = backend.module(data)
        known = xp.where(xp.isnan(data), 0, data).astype(np.float32)
        level = xp.maximum(known.mean((1, 2), keepdims=True), 1.0)
        scale = xp.sqrt(level)
        x = ((known - level) / scale)[..., None]
        out = {}
        for name, (first, rest) in self._nets().items():
            q = part(p, name)
            own = part(q, "first")
            own["weight"] = own["weight"] * xp.asarray(BLIND)
            out[name] = rest(part(q, "rest"), first(own, x)).reshape(known.shape)
        mean = level + scale * out["mean"]
        return mean, level * ops.softplus(out["variance"] + 0.54) + (xp.asarray(variance, np.float32) + 1e-3)

    def __call__(self, p: Mapping[str, Any], prediction: Any, data: Array, variance: Any = 0.0) -> Any:
        """Limited loss of every pixel (n, h, w), differentiable in the prediction and in the networks' parameters."""
        xp = backend.module(data)
        mean, w = self.blind(p, data, variance)
        seen = ~xp.isnan(data)
        residual = xp.where(seen, data, 0) - mean
        blind = (0.5 * (ops.square(residual) / w + ops.log(w)) + 0.5 * np.log(2 * np.pi)) * seen.astype(np.float32)
        nats = self.loss(prediction, data, variance)
        pixels = xp.maximum(seen.sum((1, 2), keepdims=True), 1)
        n, f = (_plain(v).sum((1, 2), keepdims=True) / pixels for v in (nats, blind))
        gate = 1 / (1 + xp.exp(-xp.clip((n - f + self.margin) * xp.sqrt(2 * pixels), -60, 60)))
        gate = gate.astype(np.float32)
        return nats * gate + (1 - gate) * _plain(blind) + blind


def _plain(value: Any) -> Any:
    return value.data if isinstance(value, Tensor) else value
