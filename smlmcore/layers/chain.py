"""Layers one after the other, and the step from images to features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..autograd import ops


@dataclass(frozen=True)
class Flatten:
    """All axes but the first become one: (n, y, x, channel) -> (n, y·x·channel).

    >>> Flatten()({}, np.ones((2, 3, 3, 4))).shape
    (2, 36)
    """

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> dict[str, np.ndarray]:
        """No parameters."""
        return {}

    def __call__(self, p: Mapping[str, Any], x: Any) -> Any:
        """Flatten x, an array or Tensor."""
        return x.reshape(x.shape[0], int(np.prod(x.shape[1:])))


@dataclass(frozen=True, init=False)
class chain:
    """Apply `layers` one after the other.  The parameters of layer i are named "i.NAME".

    A chain is a layer itself, so chains nest.

    >>> from smlmcore.layers import Linear
    >>> net = chain(Linear(3, 8), Linear(8, 2))
    >>> list(net.init(np.random.default_rng(0)))
    ['0.weight', '0.bias', '1.weight', '1.bias']
    """

    layers: tuple[Any, ...]

    def __init__(self, *layers: Any) -> None:
        object.__setattr__(self, "layers", layers)

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> dict[str, np.ndarray]:
        """Draw the parameters of all layers, in order."""
        return {
            f"{i}.{name}": value
            for i, layer in enumerate(self.layers)
            for name, value in layer.init(rng, dtype).items()
        }

    def __call__(self, p: Mapping[str, Any], x: Any) -> Any:
        """Apply to x, an array or Tensor, with the parameters `p`."""
        for i, layer in enumerate(self.layers):
            x = layer(part(p, str(i)), x)
        return x


def part(p: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The parameters named "name.…", without that prefix.

    >>> part({"0.bias": 1, "1.bias": 2}, "1")
    {'bias': 2}
    """
    prefix = f"{name}."
    return {key[len(prefix) :]: value for key, value in p.items() if key.startswith(prefix)}


@dataclass(frozen=True)
class residual:
    """x + layer(x); the parameters are those of the layer.

    >>> residual(Flatten())({}, np.ones((1, 2)))
    array([[2., 2.]])
    """

    layer: Any

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> dict[str, np.ndarray]:
        """Draw the parameters of the layer."""
        return self.layer.init(rng, dtype)

    def __call__(self, p: Mapping[str, Any], x: Any) -> Any:
        """Apply to x, an array or Tensor, with the parameters `p`."""
        return x + self.layer(p, x)


@dataclass(frozen=True, init=False)
class concatenate:
    """The channels of all layers' results for one input, side by side.  The parameters of layer i are named "i.NAME".

    >>> concatenate(Flatten(), Flatten())({}, np.ones((1, 2)))
    array([[1., 1., 1., 1.]])
    """

    layers: tuple[Any, ...]

    __init__ = chain.__init__
    init = chain.init

    def __call__(self, p: Mapping[str, Any], x: Any) -> Any:
        """Apply to x, an array or Tensor, with the parameters `p`."""
        return ops.concatenate([layer(part(p, str(i)), x) for i, layer in enumerate(self.layers)], axis=-1)
