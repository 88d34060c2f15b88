"""Trigonometric interpolation: the band-limited periodic function through the samples, anywhere (the Fourier shift).

    f(x) = sum over j of a[j] D(x - j),   D(x) = sin(pi x) / (n sin(pi x / n))   for odd n
                                          D(x) = sin(pi x) / (n tan(pi x / n))   for even n

along each axis of n samples.  This is the inverse of the discrete Fourier transform, evaluated off the grid (what the
chirp-z transform does on a regular one), with both transforms in one small matrix.  For even n, half of the Nyquist
term belongs to either sign of the frequency, so that a shift by s multiplies it with cos(pi s): the only choice that
keeps a real image real and its shift symmetric.  A complex ramp there is 1e-2 off.  The matrix is real, so that real
and imaginary part of a complex array go their own ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import backend
from ..autograd import Tensor, op, ops
from .bspline import cast, check_zoom


def shift(a: Any, shift: Any) -> Any:
    """Periodic images moved by `shift` (..., d) pixels towards higher indices: out(i) = a(i - shift).

    The last d = 1, 2 or 3 axes of `a`, real or complex, move, and shifts are in the order of these axes.  Axes before
    are a batch: images (b, h, w) take one shift (2,) or their own (b, 2); one image (h, w) with shifts (b, 2) gives
    (b, h, w).  Differentiable in both.

    >>> shift(np.array([0.0, 1.0, 0.0, 0.0]), [1.0]).round(6)
    array([0., 0., 1., 0.])
    """
    a, shift = _array(a), _array(shift)
    d = shift.shape[-1] if shift.ndim else 0
    _need(a, d, "shift")
    real = _real(a)
    points = [
        ops.subtract(backend.module(_data(a)).arange(n, dtype=real), cast(shift[..., i : i + 1], dtype=real))
        for i, n in enumerate(a.shape[-d:])
    ]
    return at(a, points)


def zoom(a: Any, factor: float | Sequence[float], shape: Sequence[int] | None = None, centre: Any = None) -> Any:
    """Periodic images magnified by `factor`, a number or one for each axis, about `centre` (..., d).

    out(i) = a((i - (m - 1) / 2) / factor + centre) for i = 0...m - 1, m being the length of `shape`, by default
    round(n factor), and the centre by default the middle (n - 1) / 2.  So `shape` and `centre` cut a region of interest
    out of the magnified image, and only that is computed.  With d factors the last d axes of `a`, real or complex, are
    magnified.  Differentiable in `a` and `centre`; leading axes of `centre` are a batch as those of `shift`.

    >>> wave = np.cos(2 * np.pi * np.arange(8) / 8)
    >>> zoom(wave, 4, shape=[5], centre=[2.0]).round(3)  # 1.5 to 2.5 in steps of 1/4
    array([ 0.383,  0.195, -0.   , -0.195, -0.383])
    """
    a = _array(a)
    factors, shape = check_zoom(a.ndim, a.shape, factor, shape, "fourier.zoom")
    d = len(factors)
    if centre is None:
        centre = backend.module(_data(a)).asarray([(n - 1) / 2 for n in a.shape[-d:]], _real(a))
    centre = _array(centre)
    if centre.ndim == 0 or centre.shape[-1] != d:
        raise ValueError(f"fourier.zoom got a centre of shape {centre.shape}; expected (..., {d})")
    real = _real(a)
    points = [
        ops.add(
            backend.module(_data(a)).asarray((np.arange(m) - (m - 1) / 2) / f, real),
            cast(centre[..., i : i + 1], dtype=real),
        )
        for i, (m, f) in enumerate(zip(shape, factors, strict=True))
    ]
    return at(a, points)


def at(a: Any, points: Sequence[Any]) -> Any:
    """Periodic images on a grid that is a product of axes: the coordinates `points[i]` (..., m_i) of the last axes.

    Leading axes of the points and of `a` broadcast.  Differentiable in all.

    >>> at(np.array([1.0, 0.0, 0.0]), [[0.0, 3.0]]).round(6)  # periodic
    array([1., 1.])
    """
    a = _array(a)
    d = len(points)
    _need(a, d, "at")
    for axis, x in zip(range(-d, 0), map(_array, points), strict=True):
        matrix = ops.moveaxis(dirichlet(x, n=a.shape[axis]), -1, -2)  # (..., n, m)
        matrix = matrix.reshape(*matrix.shape[:-2], *(1,) * (d - 2), *matrix.shape[-2:])
        rows = ops.moveaxis(a, axis, -1) if d > 1 else a.reshape(*a.shape[:-1], 1, a.shape[-1])
        rows = ops.matmul(rows, matrix)
        a = ops.moveaxis(rows, -1, axis) if d > 1 else rows.reshape(*rows.shape[:-2], rows.shape[-1])
    return a


@op
def dirichlet(x, *, n):
    """The weights D(x - j) (..., n) of the samples j = 0...n - 1 at coordinates x (...); see the module's text.

    >>> dirichlet(np.array([0.5]), n=2).round(6)
    array([[0.5, 0.5]])
    """
    return _dirichlet(x, n, False), (x, n)


@dirichlet.vjp
def _(saved, gradient):
    x, n = saved
    return ((gradient * _dirichlet(x, n, True)).sum(-1),)


def _dirichlet(x, n, slope):
    """D or its derivative, as the sum of cosines that it is: exact also where sin(pi x / n) vanishes."""
    xp = backend.module(x)
    u = (x[..., None] - xp.arange(n, dtype=x.dtype)) * (2 * np.pi / n)
    total = xp.zeros_like(u) if slope else xp.ones_like(u)
    for k in range(1, n // 2 + 1):
        twice = 1.0 if 2 * k == n else 2.0
        total += -twice * k * (2 * np.pi / n) * xp.sin(k * u) if slope else twice * xp.cos(k * u)
    return total / n


def _array(a: Any) -> Any:
    return a if isinstance(a, Tensor) else backend.asarray(a)


def _data(a: Any) -> Any:
    return a.data if isinstance(a, Tensor) else a


def _real(a: Any) -> np.dtype:
    """The real dtype of the same precision."""
    return np.dtype(a.dtype.char.lower()) if a.dtype.kind == "c" else a.dtype


def _need(a: Any, d: int, caller: str) -> None:
    if not 1 <= d <= min(3, a.ndim) or 0 in a.shape[-d:]:
        raise ValueError(
            f"fourier.{caller} got an array of shape {a.shape} and {d} coordinates; expected 1, 2 or 3, one for each "
            "of its last axes, none of them empty"
        )
