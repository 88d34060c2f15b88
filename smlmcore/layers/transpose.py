"""Transposed convolution: the adjoint of `conv`, which enlarges images by its stride."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from .. import backend
from ..autograd import op
from ..backend import Array
from .activation import activation as activate
from .activation import code
from .conv import check_shapes, input_gradient, planes, weight_gradient
from .conv import conv as convolve


@op
def _transposed(x: Array, weight: Array, *, stride: int, pad: int) -> Any:
    check_shapes("conv_transpose", x, weight, "outputs", "channel")
    size = [(s - 1) * stride + t - 2 * pad for s, t in zip(x.shape[1:-1], weight.shape[:-2], strict=True)]
    if stride < 1 or not 0 <= pad < min(weight.shape[:-2]) or min(size) < 1:
        raise ValueError(
            f"conv_transpose got images {x.shape[1:-1]}, filters {weight.shape[:-2]}, pad {pad} and stride {stride}; "
            "expected 0 <= pad < filter, stride >= 1 and at least one pixel left"
        )
    xp = backend.module(x, weight, name="conv_transpose")
    out = xp.empty((len(x), *size, weight.shape[-2]), x.dtype)
    none = xp.empty(0, x.dtype)
    input_gradient(planes(x), none, planes(weight, 0), stride, pad, 1, planes(out))
    return out, (x, weight, stride, pad)


@_transposed.vjp
def _(saved: tuple, g: Array) -> tuple:
    x, weight, stride, pad = saved
    xp = backend.module(x)

    def filters() -> Array:
        out, spare = xp.empty(weight.shape, x.dtype), xp.empty(x.shape[-1], x.dtype)
        none = xp.empty(0, x.dtype)
        weight_gradient(planes(g), planes(x), none, stride, pad, 1, planes(out, 0), spare)
        return out

    return lambda: convolve(g, weight, xp.zeros(x.shape[-1], x.dtype), stride=stride, pad=pad), filters


def conv_transpose(x: Any, weight: Any, bias: Any, *, stride: int = 1, pad: int = 0) -> Any:
    """bias[c] + Σ over output pixels of `conv` that see the pixel: x (n, y, x, d), weight (k, l, c, d), bias (c,).

    Returns (n, (y - 1)·stride + k - 2·pad, (x - 1)·stride + l - 2·pad, c); volumes with z before y.

    >>> x = np.array([[1.0, 2.0]]).reshape(1, 1, 2, 1)
    >>> conv_transpose(x, np.ones((2, 2, 1, 1)), np.zeros(1), stride=2)[0, 0, :, 0]
    array([1., 1., 2., 2.])
    """
    return _transposed(x, weight, stride=stride, pad=pad) + bias


@dataclass(frozen=True)
class ConvTranspose:
    """Transposed convolution that enlarges images `stride` times: (n, y, x, inputs) -> (n, stride·y, stride·x,
    outputs).

    `size`: pixels of the filter along each of `axes` (2 or 3) axes, at least `stride` and as odd or even.  Parameters
    `weight` (size, size, outputs, inputs), drawn normal with variance 2 stride^axes / (size^axes inputs), as each
    output pixel sees so many inputs, and `bias`.

    >>> layer = ConvTranspose(3, 2)
    >>> layer(layer.init(np.random.default_rng(0)), np.ones((1, 4, 5, 3), np.float32)).shape
    (1, 8, 10, 2)
    """

    inputs: int
    outputs: int
    size: int = 2
    _: KW_ONLY
    stride: int = 2
    axes: int = 2
    activation: str | None = None

    def __post_init__(self) -> None:
        if min(self.inputs, self.outputs, self.stride) < 1 or self.size < self.stride or self.axes not in (2, 3):
            raise ValueError(f"{self} is not possible; inputs, outputs and stride are at least 1, size at least stride")
        if (self.size - self.stride) % 2:
            raise ValueError(f"{self} is not possible; size and stride are both odd or both even")
        code(self.activation)

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> dict[str, np.ndarray]:
        """Draw the parameters."""
        scale = (2 * (self.stride / self.size) ** self.axes / self.inputs) ** 0.5
        weight = rng.normal(0, scale, (*[self.size] * self.axes, self.outputs, self.inputs)).astype(dtype)
        return {"weight": weight, "bias": np.zeros(self.outputs, dtype)}

    def __call__(self, p: Mapping[str, Any], x: Any) -> Any:
        """Apply to x (n, y, x, inputs), an array or Tensor."""
        pad = (self.size - self.stride) // 2
        out = conv_transpose(x, p["weight"], p["bias"], stride=self.stride, pad=pad)
        return out if self.activation is None else activate(out, self.activation)
