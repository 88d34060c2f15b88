"""Normalisation: (x - mean) / √(variance + ε), then a scale and a shift for each channel.

`GroupNorm` takes mean and variance over the pixels and the channels of a group, for each image; `LayerNorm` over the
channels of each pixel (or feature vector); `BatchNorm` over the whole batch, for each channel, while training, and
running means of them in inference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import backend
from ..autograd import Tensor, op, ops
from ..backend import Array
from .mode import current

EPSILON = 1e-5


@op
def normalise(x: Array, *, axes: tuple[int, ...]) -> Array:
    """(x - mean) / √(variance + ε), mean and (biased) variance over `axes`.

    >>> normalise(np.array([[-2.0, 2.0]]), axes=(1,)).round(4)
    array([[-1.,  1.]])
    """
    centred = x - x.mean(axes, keepdims=True)
    inverse = 1 / backend.module(x).sqrt((centred * centred).mean(axes, keepdims=True) + x.dtype.type(EPSILON))
    centred *= inverse
    return centred, (centred, inverse, axes)


@normalise.vjp
def _(saved: tuple, g: Array) -> tuple:
    y, inverse, axes = saved
    return (inverse * (g - g.mean(axes, keepdims=True) - y * (g * y).mean(axes, keepdims=True)),)


@dataclass(frozen=True)
class _Norm:
    """What the three have in common: `scale` and `shift`, (channels,) each, 1 and 0 at the start."""

    channels: int

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f"{self} is not possible; channels is at least 1")

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> dict[str, np.ndarray]:
        """The parameters: scales of 1, shifts of 0."""
        return {"scale": np.ones(self.channels, dtype), "shift": np.zeros(self.channels, dtype)}

    def _check(self, x: Any) -> None:
        if x.ndim < 2 or x.shape[-1] != self.channels:
            raise ValueError(f"{self} got x of shape {x.shape}; expected (n, ..., {self.channels})")


@dataclass(frozen=True)
class LayerNorm(_Norm):
    """Mean and variance over the channels of each pixel (Ba et al. 2016).

    >>> layer = LayerNorm(2)
    >>> layer(layer.init(np.random.default_rng(0)), np.array([[-2.0, 2.0]])).round(4)
    array([[-1.,  1.]])
    """

    def __call__(self, p: Mapping[str, Any], x: Any) -> Any:
        """Normalise x (n, ..., channels), an array or Tensor."""
        self._check(x)
        return normalise(x, axes=(x.ndim - 1,)) * p["scale"] + p["shift"]


@dataclass(frozen=True)
class GroupNorm(_Norm):
    """Mean and variance over the pixels and the channels of one of `groups` groups, for each image (Wu & He 2018,
    ECCV).

    >>> layer = GroupNorm(4, groups=2)
    >>> layer(layer.init(np.random.default_rng(0)), np.ones((1, 3, 3, 4))).max()
    np.float64(0.0)
    """

    groups: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.groups < 1 or self.channels % self.groups:
            raise ValueError(f"{self} is not possible; the channels must fall into equal groups")

    def __call__(self, p: Mapping[str, Any], x: Any) -> Any:
        """Normalise x (n, ..., channels), an array or Tensor."""
        self._check(x)
        pixels = int(np.prod(x.shape[1:-1]))
        grouped = x.reshape((x.shape[0], pixels, self.groups, self.channels // self.groups))
        return normalise(grouped, axes=(1, 3)).reshape(x.shape) * p["scale"] + p["shift"]


@dataclass(frozen=True)
class BatchNorm(_Norm):
    """Mean and variance over the batch and all pixels for each channel (Ioffe & Szegedy 2015, ICML).

    Inside `with layers.training() as mode:` it uses those of the batch, and `mode.updated(parameters)` has the new
    running ones: m ← 0.9 m + 0.1 m_batch, with the unbiased variance.  Outside it uses the running ones, "mean" and
    "variance", which are parameters without gradient.

    >>> layer = BatchNorm(1)
    >>> layer(layer.init(np.random.default_rng(0)), np.array([[2.0], [4.0]])).round(3).tolist()
    [[2.0], [4.0]]
    """

    momentum: float = 0.1

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> dict[str, np.ndarray]:
        """The parameters: scales of 1, shifts of 0, running means of 0 and variances of 1."""
        running = {"mean": np.zeros(self.channels, dtype), "variance": np.ones(self.channels, dtype)}
        return super().init(rng, dtype) | running

    def __call__(self, p: Mapping[str, Any], x: Any) -> Any:
        """Normalise x (n, ..., channels), an array or Tensor."""
        self._check(x)
        mean, variance = (p[k].data if isinstance(p[k], Tensor) else p[k] for k in ("mean", "variance"))
        mode = current()
        if mode is None:
            return (x - mean) * (p["scale"] / ops.sqrt(variance + variance.dtype.type(EPSILON))) + p["shift"]
        axes = tuple(range(x.ndim - 1))
        data = x.data if isinstance(x, Tensor) else x
        count, m = data.size // self.channels, self.momentum
        if count < 2:
            raise ValueError(f"{self} got x of shape {x.shape}; training needs more than one value for each channel")
        mode.replace(mean, (1 - m) * mean + m * data.mean(axes))
        mode.replace(variance, (1 - m) * variance + m * count / (count - 1) * data.var(axes))
        return normalise(x, axes=axes) * p["scale"] + p["shift"]
