"""Pooling: the maximum or mean over windows that do not overlap, or the mean over everything.

    max: out[n,o,p,q,c] = max over i < depth, j, k < size of x[n, o·depth + i, p·size + j, q·size + k, c]

Rows and columns that fill no whole window are left out.  The gradient goes to the first maximum of a window, in the
order of memory.  Images are volumes of one plane, with depth 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import prange

from .. import backend, kernel
from ..autograd import op, ops
from ..backend import Array
from . import lines
from .compiled import frozen, njit
from .conv import planes
from .direct import unravel


# ---------------------------------------------------------------------------------------------- reference
def _windows(x, depth, size, shape):
    """x as (n, o, p, q, c, depth · size · size)."""
    n, o, p, q, c = shape
    x = x[:, : o * depth, : p * size, : q * size].reshape(n, o, depth, p, size, q, size, c)
    return x.transpose(0, 1, 3, 5, 7, 2, 4, 6).reshape(n, o, p, q, c, depth * size * size)


def _reference(x, depth, size, out):
    out[...] = _windows(x, depth, size, out.shape).max(-1)


def _gradient_reference(x, out, gradient, depth, size, dx):
    n, o, p, q, c = out.shape
    first = _windows(x, depth, size, out.shape).argmax(-1)
    hit = np.arange(depth * size * size) == first[..., None]
    spread = (hit * gradient[..., None]).reshape(n, o, p, q, c, depth, size, size)
    dx[...] = 0
    dx[:, : o * depth, : p * size, : q * size] = spread.transpose(0, 1, 5, 2, 6, 3, 7, 4).reshape(
        n, o * depth, p * size, q * size, c
    )


# ---------------------------------------------------------------------------------------------- cpu
@njit(parallel=True)
def _max_pool(x, depth, size, out):
    _, f, h, w, c = x.shape
    n, o, p, q, _ = out.shape
    flat, results = x.reshape(-1), out.reshape(-1)
    for line in prange(n * o * p):
        image, z, y = unravel(line, o, p)
        t = line * q * c
        s = ((image * f + z * depth) * h + y * size) * w * c
        for pixel in range(q * c):
            at = s + pixel // c * size * c + pixel % c
            value = flat[at]
            for window in range(depth * size * size):
                i, j, k = window // size // size, window // size % size, window % size
                other = flat[at + ((i * h + j) * w + k) * c]
                if not other <= value:
                    value = other
            results[t + pixel] = value


@njit(parallel=True)
def _max_pool_gradient(x, out, gradient, depth, size, dx):
    _, f, h, w, c = x.shape
    n, o, p, q, _ = out.shape
    flat, largest, g, results = x.reshape(-1), out.reshape(-1), gradient.reshape(-1), dx.reshape(-1)
    for line in prange(n * o * p):
        image, z, y = unravel(line, o, p)
        t = line * q * c
        s = ((image * f + z * depth) * h + y * size) * w * c
        for pixel in range(q * c):
            at = s + pixel // c * size * c + pixel % c
            for window in range(depth * size * size):
                i, j, k = window // size // size, window // size % size, window % size
                source = at + ((i * h + j) * w + k) * c
                if flat[source] == largest[t + pixel]:
                    results[source] = g[t + pixel]
                    break


def _cpu(x, depth, size, out):
    if lines.suit(depth, size, x.shape[4], x.dtype):
        lines.run(lines.POOL, out.shape, x.shape, depth, x, lines.NONE, lines.NONE, out)
    else:
        _max_pool(frozen(x), depth, size, out)


def _gradient_cpu(x, out, gradient, depth, size, dx):
    fast = lines.suit(depth, size, x.shape[4], x.dtype)
    if not fast or x.shape[1:4] != tuple(s * t for s, t in zip(out.shape[1:4], (depth, size, size), strict=True)):
        dx[...] = 0
    if fast:
        lines.run(lines.POOL_GRADIENT, out.shape, x.shape, depth, x, out, gradient, dx)
    else:
        _max_pool_gradient(frozen(x), frozen(out), frozen(gradient), depth, size, dx)


def _case(n, x, c, depth, size):
    out = (x[0] // depth, x[1] // size, x[2] // size)
    return dict(zip("nfhwcopq", (n, *x, c, *out), strict=True)) | {"depth": depth, "size": size}


_CASES = (
    _case(2, (1, 6, 8), 16, 1, 2),
    _case(1, (1, 1, 1), 1, 1, 1),
    _case(0, (1, 4, 4), 2, 1, 2),
    _case(2, (1, 7, 9), 24, 1, 2),
    _case(2, (5, 4, 7), 3, 2, 2),
    _case(1, (5, 6, 4), 16, 2, 2),
    _case(1, (1, 9, 10), 3, 1, 3),
)


def _sample_gradient(rng, n, f, h, w, c, o, p, q, depth, size):
    """x without equal numbers: the first maximum of a window is found from its value, rounded or not."""
    x = rng.permutation(n * f * h * w * c).reshape(n, f, h, w, c) / 128.0
    return [x, _windows(x, depth, size, (n, o, p, q, c)).max(-1), rng.normal(size=(n, o, p, q, c)), depth, size]


max_pool_kernel = kernel.register(
    "max_pool",
    "x[n,f,h,w,c] depth:int size:int -> out[n,o,p,q,c]",
    _reference,
    cpu=_cpu,
    cuda=kernel.Cuda("pool.cu", lambda s: -(-s["n"] * s["o"] * s["p"] * s["q"] * s["c"] // 128)),
    sample=lambda rng, n, f, h, w, c, depth, size, **_: [rng.normal(size=(n, f, h, w, c)), depth, size],
    cases=_CASES,
    bench=_case(64, (1, 128, 128), 32, 1, 2),
)
max_pool_gradient_kernel = kernel.register(
    "max_pool_gradient",
    "x[n,f,h,w,c] out[n,o,p,q,c] gradient[n,o,p,q,c] depth:int size:int -> dx[n,f,h,w,c]",
    _gradient_reference,
    cpu=_gradient_cpu,
    cuda=kernel.Cuda("pool.cu", lambda s: -(-s["n"] * s["f"] * s["h"] * s["w"] * s["c"] // 128)),
    sample=_sample_gradient,
    cases=_CASES,
    bench=_case(64, (1, 128, 128), 32, 1, 2),
)


# ---------------------------------------------------------------------------------------------- ops and layers
@op
def max_pool(x: Array, *, size: int = 2) -> Array:
    """Maximum over windows of `size` pixels along each axis of x (n, y, x, channel) or (n, z, y, x, channel).

    >>> max_pool(np.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0]
    array([[ 5.,  7.],
           [13., 15.]])
    """
    _check("max_pool", x, size)
    xp = backend.module(x)
    out = xp.empty((len(x), *(s // size for s in x.shape[1:-1]), x.shape[-1]), x.dtype)
    five, depth = (planes(x), planes(out)), size if x.ndim == 5 else 1
    max_pool_kernel(five[0], depth, size, out=five[1])
    return out, (*five, depth, size)


@max_pool.vjp
def _(saved: tuple, g: Array) -> tuple:
    x, out, depth, size = saved
    dx = backend.module(x).empty(x.shape, x.dtype)
    max_pool_gradient_kernel(x, out, g.reshape(out.shape), depth, size, out=dx)
    return (dx[:, 0] if g.ndim == 4 else dx,)


def average_pool(x: Any, size: int = 2) -> Any:
    """Mean over windows of `size` pixels along each axis of x (n, y, x, channel) or (n, z, y, x, channel).

    >>> average_pool(np.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0]
    array([[ 2.5,  4.5],
           [10.5, 12.5]])
    """
    _check("average_pool", x, size)
    space = [s // size for s in x.shape[1:-1]]
    x = x[(slice(None), *(slice(0, s * size) for s in space))]
    windows = [s for pair in space for s in (pair, size)]
    return ops.mean(x.reshape((x.shape[0], *windows, x.shape[-1])), axis=tuple(range(2, 2 * len(space) + 1, 2)))


def global_pool(x: Any) -> Any:
    """Mean over all pixels: (n, ..., channel) -> (n, channel).

    >>> global_pool(np.ones((2, 3, 4, 5))).shape
    (2, 5)
    """
    return ops.mean(x, axis=tuple(range(1, x.ndim - 1)))


def _check(name: str, x: Any, size: int) -> None:
    if x.ndim not in (4, 5) or size < 1 or min(x.shape[1:-1]) < size:
        raise ValueError(
            f"{name} got x of shape {x.shape} and size {size}; expected (n, y, x, channel) or (n, z, y, x, channel) of "
            "at least `size` pixels along each axis"
        )


@dataclass(frozen=True)
class Pool:
    """Pooling as a layer without parameters; `kind` "max", "average" or "global" (which has no `size`).

    >>> Pool("max")({}, np.ones((1, 4, 6, 3))).shape
    (1, 2, 3, 3)
    """

    kind: str = "max"
    size: int = 2

    def __post_init__(self) -> None:
        if self.kind not in ("max", "average", "global") or self.size < 1:
            raise ValueError(f"{self} is not possible; kind is 'max', 'average' or 'global', size at least 1")

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> dict[str, Array]:
        """No parameters."""
        return {}

    def __call__(self, p: Mapping[str, Any], x: Any) -> Any:
        """Apply to x, an array or Tensor."""
        if self.kind == "global":
            return global_pool(x)
        return max_pool(x, size=self.size) if self.kind == "max" else average_pool(x, self.size)


def MaxPool(size: int = 2) -> Pool:
    """The maximum over windows of `size` pixels, as a layer."""
    return Pool("max", size)


def AvgPool(size: int = 2) -> Pool:
    """The mean over windows of `size` pixels, as a layer."""
    return Pool("average", size)


def GlobalPool() -> Pool:
    """The mean over all pixels, as a layer."""
    return Pool("global")
