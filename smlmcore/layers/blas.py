"""Convolutions as matrix products of a BLAS, for arrays of the GPU (cuBLAS, through CuPy): one product for each tap.

The volume is copied once into one with its border; then every tap is a constant shift of the flat list of pixels, so
that its product reads one run of rows:

    sum[r] += padded[r + shift] @ weight[tap]          r counts all pixels, those of the border too

`conv_finish` then leaves the border out, adds the bias and applies the activation.  With a stride, the rows of a
tap are gathered first.  Everything here is written for either array library, so NumPy tests what CuPy runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from .. import backend, kernel
from ..backend import Array
from .activation import activate
from .activation import reference as activated
from .compiled import frozen, link, njit
from .direct import move, unravel
from .half import add_product, asked, narrow


# ---------------------------------------------------------------------------------------------- end of a convolution
def _reference(sums, bias, activation, out, slope):
    _, o, p, q, _ = out.shape
    out[...], derivative = activated(sums[:, :o, :p, :q] + bias, activation)
    if slope.size:
        slope[...] = derivative.reshape(-1)


@njit(parallel=True)
def _finish(sums, bias, activation, out, slope):
    _, f, h, w, d = sums.shape
    n, o, p, q, _ = out.shape
    flat, results = sums.reshape(-1), out.reshape(-1)
    for line in prange(n * o * p):
        image, z, y = unravel(line, o, p)
        start = line * q * d
        move(flat, ((image * f + z) * h + y) * w * d, d, results, start, d, d, q)
        for i in range(q * d):
            results[start + i] += bias[i % d]
        activate(activation, results, slope, start, q * d)


def _cpu(sums, bias, activation, out, slope):
    link()
    _finish(frozen(sums), frozen(bias), activation, out, slope)


def _case(n, f, h, w, o, p, q, d, activation, slope=True):
    dims = dict(zip("nfhwopqd", (n, f, h, w, o, p, q, d), strict=True))
    return {**dims, "activation": activation, "s": n * o * p * q * d if slope else 0}


finish_kernel = kernel.register(
    "conv_finish",
    "sums[n,f,h,w,d] bias[d] activation:int -> out[n,o,p,q,d] slope[s]",
    _reference,
    cpu=_cpu,
    cuda=kernel.Cuda("conv_finish.cu", lambda s: -(-s["n"] * s["o"] * s["p"] * s["q"] * s["d"] // 128)),
    sample=lambda rng, n, f, h, w, d, activation, **_: [
        rng.normal(size=(n, f, h, w, d)),
        rng.normal(size=d),
        activation,
    ],
    cases=(
        _case(2, 1, 7, 9, 1, 5, 7, 3, 2),
        _case(1, 1, 1, 1, 1, 1, 1, 1, 0, False),
        _case(0, 1, 4, 4, 1, 2, 2, 3, 0),
        _case(2, 3, 6, 5, 1, 4, 3, 33, 1),
    ),
    bench=_case(64, 1, 66, 66, 1, 64, 64, 32, 2),
)


# ---------------------------------------------------------------------------------------------- the three products
def _bordered(x: Array, border: tuple[int, ...], extra: tuple[int, ...] = (0, 0, 0)) -> Array:
    """x with `border` zeros on both sides of its three inner axes, and `extra` more at their ends."""
    xp = backend.module(x)
    size = [s + 2 * b + e for s, b, e in zip(x.shape[1:4], border, extra, strict=True)]
    out = xp.zeros((len(x), *size, x.shape[4]), x.dtype)
    out[:, *(slice(b, b + s) for s, b in zip(x.shape[1:4], border, strict=True))] = x
    return out


def _shift(tap: tuple[int, ...], shape: tuple[int, ...]) -> int:
    return (tap[0] * shape[2] + tap[1]) * shape[3] + tap[2]


def _border(taps: tuple[int, ...], pad: int) -> tuple[int, ...]:
    return tuple(pad if t > 1 else 0 for t in taps)


def _gathered(x: Array, tap: tuple[int, ...], stride: int, size: tuple[int, ...]) -> Array:
    """The pixels that a tap multiplies, (pixels, channels)."""
    return x[:, *_steps(tap, stride, size)].reshape(-1, x.shape[4])


def _steps(tap: tuple[int, ...], stride: int, size: tuple[int, ...]) -> tuple[slice, ...]:
    """Where a padded volume has the pixels that a tap multiplies, for a result of `size`."""
    return tuple(slice(i, i + stride * (s - 1) + 1, stride) for i, s in zip(tap, size, strict=True))


def _factors(a: Array, b: Array) -> tuple[Array, Array, Any]:
    """The factors of a product in the precision it is to have, and what to multiply it with, or None."""
    if not asked() or a.dtype != np.float32:
        return a, b, None
    (a, p), (b, q) = narrow(a), narrow(b)
    return a, b, p * q


def forward(
    x: Array, weight: Array, bias: Array, stride: int, pad: int, activation: int, out: Array, slope: Array
) -> None:
    """`conv` of the module `conv`; x, weight and out with planes."""
    taps, xp = weight.shape[:3], backend.module(x)
    padded, weight, factor = _factors(_bordered(x, _border(taps, pad)), weight)
    rows = padded[..., 0].size if stride == 1 else out[..., 0].size
    flat, sums = padded.reshape(padded[..., 0].size, -1), xp.zeros((rows, weight.shape[4]), x.dtype)
    for tap in np.ndindex(*taps):
        if stride == 1:
            shift = _shift(tap, padded.shape)
            add_product(sums[: rows - shift], flat[shift:], weight[tap])
        else:
            add_product(sums, _gathered(padded, tap, stride, out.shape[1:4]), weight[tap])
    if factor is not None:
        sums *= factor
    sums = sums.reshape(*(padded if stride == 1 else out).shape[:4], -1)
    finish_kernel(sums, bias, activation, out=(out, slope))


def input_gradient(gradient: Array, weight: Array, stride: int, pad: int, out: Array) -> None:
    """`conv_input_gradient` of the module `conv`, of a gradient already multiplied by the slope."""
    xp, taps, size = backend.module(gradient), weight.shape[:3], gradient.shape[1:4]
    border = _border(taps, pad)
    g, weight, factor = _factors(gradient.reshape(-1, gradient.shape[4]), weight)
    total = _bordered(xp.zeros_like(out), border)
    for tap in np.ndindex(*taps):
        part = xp.zeros((len(g), out.shape[4]), out.dtype)
        add_product(part, g, xp.ascontiguousarray(weight[tap].T))
        total[:, *_steps(tap, stride, size)] += part.reshape(*gradient.shape[:4], -1)
    out[...] = total[:, *(slice(b, b + s) for s, b in zip(out.shape[1:4], border, strict=True))]
    if factor is not None:
        out *= factor


def weight_gradient(x: Array, gradient: Array, stride: int, pad: int, weight: Array, bias: Array) -> None:
    """`conv_weight_gradient` of the module `conv`, of a gradient already multiplied by the slope."""
    taps, d = weight.shape[:3], gradient.shape[4]
    bias[...] = gradient.reshape(-1, d).sum(0)
    padded, g, factor = _factors(_bordered(x, _border(taps, pad)), gradient.reshape(-1, d))
    weight[...] = 0
    for tap in np.ndindex(*taps):
        add_product(weight[tap], _gathered(padded, tap, stride, gradient.shape[1:4]).T, g)
    if factor is not None:
        weight *= factor


def sloped(gradient: Array, slope: Array) -> Any:
    """The gradient times the derivative of the activation, if there is one."""
    return gradient * slope.reshape(gradient.shape) if slope.size else gradient
