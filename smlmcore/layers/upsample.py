"""Enlarging: every pixel becomes a block of equal ones; with the step of a U-Net that follows, concatenation, in one
pass.

    out[n,o,p,q,:] = x[n, o // depth, p // size, q // size, :] ++ skip[n,o,p,q,:]

`skip` may have no channels.  Images are volumes of one plane, with depth 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import prange

from .. import backend, kernel
from ..autograd import op
from ..backend import Array
from . import lines
from .compiled import frozen, njit
from .conv import planes
from .direct import move, unravel


# ---------------------------------------------------------------------------------------------- reference
def _reference(x, skip, depth, size, out):
    c = x.shape[4]
    out[..., :c] = x.repeat(depth, 1).repeat(size, 2).repeat(size, 3)
    out[..., c:] = skip


def _gradient_reference(gradient, depth, size, dx, dskip):
    n, f, h, w, c = dx.shape
    dx[...] = gradient[..., :c].reshape(n, f, depth, h, size, w, size, c).sum((2, 4, 6))
    dskip[...] = gradient[..., c:]


# ---------------------------------------------------------------------------------------------- cpu
@njit(parallel=True)
def _upsample(x, skip, depth, size, out):
    n, f, h, w, c = x.shape
    _, o, p, q, e = out.shape
    d = e - c
    flat, skips, results = x.reshape(-1), skip.reshape(-1), out.reshape(-1)
    for line in prange(n * o * h):
        image, z, y = unravel(line, o, h)
        s, t = ((image * f + z // depth) * h + y) * w * c, (image * o + z) * p * q * e + y * size * q * e
        for i in range(size):
            for k in range(size):
                move(flat, s, c, results, t + (i * q + k) * e, size * e, c, w)
            if d:
                move(skips, ((image * o + z) * p + y * size + i) * q * d, d, results, t + i * q * e + c, e, d, q)


@njit(parallel=True)
def _upsample_gradient(gradient, depth, size, dx, dskip):
    n, f, h, w, c = dx.shape
    _, o, p, q, e = gradient.shape
    d = e - c
    flat, results, skips = gradient.reshape(-1), dx.reshape(-1), dskip.reshape(-1)
    for line in prange(n * f * h):
        image, z, y = unravel(line, f, h)
        t = line * w * c
        first = ((image * o + z * depth) * p + y * size) * q * e
        results[t : t + w * c] = 0
        for i in range(depth):
            for j in range(size):
                s = first + (i * p + j) * q * e
                for pixel in range(q):
                    for k in range(c):
                        results[t + pixel // size * c + k] += flat[s + pixel * e + k]
                if d:
                    move(flat, s + c, e, skips, s // e * d, d, d, q)


def _cpu(x, skip, depth, size, out):
    if lines.suit(depth, size, x.shape[4], x.dtype):
        lines.run(lines.ENLARGE, x.shape, out.shape, depth, x, skip, lines.NONE, out)
    else:
        _upsample(frozen(x), frozen(skip), depth, size, out)


def _gradient_cpu(gradient, depth, size, dx, dskip):
    if lines.suit(depth, size, dx.shape[4], dx.dtype):
        lines.run(lines.SHRINK, dx.shape, gradient.shape, depth, gradient, lines.NONE, lines.NONE, dx, dskip)
    else:
        _upsample_gradient(frozen(gradient), depth, size, dx, dskip)


def _case(n, x, c, d, depth, size):
    out = (x[0] * depth, x[1] * size, x[2] * size)
    return dict(zip("nfhwcopqde", (n, *x, c, *out, d, c + d), strict=True)) | {"depth": depth, "size": size}


_CASES = (
    _case(2, (1, 3, 4), 16, 8, 1, 2),
    _case(1, (1, 1, 1), 1, 1, 1, 1),
    _case(0, (1, 4, 4), 2, 3, 1, 2),
    _case(2, (1, 3, 5), 24, 5, 1, 2),
    _case(2, (2, 4, 3), 3, 2, 2, 2),
    _case(1, (2, 3, 4), 16, 8, 2, 2),
    _case(1, (1, 2, 3), 3, 0, 1, 3),
)

upsample_kernel = kernel.register(
    "upsample",
    "x[n,f,h,w,c] skip[n,o,p,q,d] depth:int size:int -> out[n,o,p,q,e]",
    _reference,
    cpu=_cpu,
    cuda=kernel.Cuda("upsample.cu", lambda s: -(-s["n"] * s["o"] * s["p"] * s["q"] * s["e"] // 128)),
    sample=lambda rng, n, f, h, w, c, o, p, q, d, depth, size, **_: [
        rng.normal(size=(n, f, h, w, c)), rng.normal(size=(n, o, p, q, d)), depth, size
    ],
    cases=_CASES,
    bench=_case(64, (1, 64, 64), 64, 32, 1, 2),
)  # fmt: skip
upsample_gradient_kernel = kernel.register(
    "upsample_gradient",
    "gradient[n,o,p,q,e] depth:int size:int -> dx[n,f,h,w,c] dskip[n,o,p,q,d]",
    _gradient_reference,
    cpu=_gradient_cpu,
    cuda=kernel.Cuda(
        "upsample.cu",
        lambda s: (
            -(-max(s["n"] * s["f"] * s["h"] * s["w"] * s["c"], s["n"] * s["o"] * s["p"] * s["q"] * s["d"]) // 128)
        ),
    ),
    sample=lambda rng, n, o, p, q, e, depth, size, **_: [rng.normal(size=(n, o, p, q, e)), depth, size],
    cases=_CASES,
    bench=_case(64, (1, 64, 64), 64, 32, 1, 2),
)


# ---------------------------------------------------------------------------------------------- ops and layer
def upsample(x: Any, skip: Any = None, size: int = 2) -> Any:
    """Repeat each pixel `size` times along each axis of x (n, y, x, c) or (n, z, y, x, c), and append the channels of
    `skip`, images of the enlarged size, if given.

    >>> upsample(np.array([[1.0, 2.0]]).reshape(1, 1, 2, 1))[0, :, :, 0]
    array([[1., 1., 2., 2.],
           [1., 1., 2., 2.]])
    """
    large = (x.shape[0], *(s * size for s in x.shape[1:-1]))
    if skip is None:
        skip = backend.module(x.data if hasattr(x, "node") else x).empty((*large, 0), x.dtype)
    if x.ndim not in (4, 5) or size < 1 or skip.shape[:-1] != large:
        raise ValueError(
            f"upsample got x of shape {x.shape}, size {size} and skip of shape {skip.shape}; expected "
            f"(n, y, x, channel) or (n, z, y, x, channel), and skip {(*large, 'channel')}"
        )
    return _join(x, skip, size=size)


@op
def _join(x: Array, skip: Array, *, size: int) -> Any:
    xp, depth = backend.module(x, skip, name="upsample"), size if x.ndim == 5 else 1
    out = xp.empty((*skip.shape[:-1], x.shape[-1] + skip.shape[-1]), x.dtype)
    upsample_kernel(*map(planes, (x, skip)), depth, size, out=planes(out))
    return out, (xp, x.shape, skip.shape, depth, size)


@_join.vjp
def _(saved: tuple, g: Array) -> tuple:
    xp, x, skip, depth, size = saved
    dx, dskip = xp.empty(x, g.dtype), xp.empty(skip, g.dtype)
    upsample_gradient_kernel(planes(g), depth, size, out=(planes(dx), planes(dskip)))
    return dx, dskip


@dataclass(frozen=True)
class Upsample:
    """Repeat each pixel `size` times along each axis; no parameters.

    >>> Upsample()({}, np.ones((1, 2, 3, 4))).shape
    (1, 4, 6, 4)
    """

    size: int = 2

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> dict[str, Array]:
        """No parameters."""
        return {}

    def __call__(self, p: Mapping[str, Any], x: Any) -> Any:
        """Apply to x, an array or Tensor."""
        return upsample(x, size=self.size)
