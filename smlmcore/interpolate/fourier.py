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

import math
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .. import backend, kernel
from ..autograd import Tensor, op, ops, plain
from .bspline import check_zoom
from .cpu import FAST
from .simd import Rows

ROWS = 32  # lines that a thread takes at a time
LANES = 16


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
    grid, batch = a.shape[-d:], shift.shape[:-1]
    try:
        both = np.broadcast_shapes(a.shape[:-d], batch)
    except ValueError:
        raise ValueError(
            f"fourier.shift got images of shape {a.shape} and shifts of shape {shift.shape}; expected leading axes "
            "that fit one another"
        ) from None
    if a.shape[:-d] != both:
        a = ops.broadcast_to(a, (*both, *grid))
    # shifts of the images in the order of the batch; where they are shared, one serves all that follow
    count = math.prod(both)
    shift = shift.reshape(1, d) if math.prod(batch) == 1 else ops.broadcast_to(shift, (*both, d)).reshape(count, d)
    moved = _shift(a.reshape(count, *grid), ops.cast(shift, dtype=_real(a)))
    return moved.reshape(*both, *grid)


@op
def _shift(a, shift):
    """a (n, *grid), real or complex; shift (n or 1, d).  As D is symmetric, D(i - j - s) = D(s - (i - j))."""
    kernels_ = [_dirichlet(shift[:, i], n, False) for i, n in enumerate(a.shape[1:])]
    return _circulate_all(a, kernels_), (a, shift, kernels_)


@_shift.vjp
def _(saved, gradient):
    a, shift, kernels_ = saved
    xp = backend.module(a)

    def to_image():  # D is symmetric: the adjoint is the shift back
        return _circulate_all(gradient, [_reversed(k) for k in kernels_])

    def to_shift():
        found = []
        for i, n in enumerate(a.shape[1:]):
            slopes = [*kernels_]
            slopes[i] = _dirichlet(shift[:, i], n, True)
            product = gradient.conj() * _circulate_all(a, slopes)
            found.append(product.real.reshape(len(a), math.prod(a.shape[1:])).sum(1))
        both = xp.stack(found, 1)
        return both if len(shift) == len(a) else both.sum(0, keepdims=True)

    return to_image, to_shift


def _reversed(k):
    """k(-j), periodically."""
    return backend.module(k).roll(k[:, ::-1], 1, 1)


def _circulate_all(a, kernels_):
    """Circular convolution of a (n, *grid) with a real kernel (n or 1, length) along each axis of the grid."""
    if a.dtype.kind == "c":
        return _circulate_all(a.real, kernels_) + 1j * _circulate_all(a.imag, kernels_)
    xp, shape = backend.module(a), a.shape
    for axis, k in enumerate(kernels_, 1):
        if shape[axis] > 1 and a.size:
            lines = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
            a = circulate(xp.ascontiguousarray(a).reshape(lines), k, out=xp.empty(lines, a.dtype)).reshape(shape)
    return a


# The matrix of D(x - j) depends on x - j alone, so that a shift is a circular convolution, one axis after another.


def _circulate(a, k, out):
    n = a.shape[1]
    rows = np.arange(n)[:, None] - np.arange(n)  # i - j
    k = np.repeat(k, len(a) // len(k) if len(k) else 1, 0)
    out[...] = np.einsum("oij,ojx->oix", k[:, rows % n], a)


@intrinsic
def _line(typing, scalars, s, s_step, vectors, v, v_step, count, out, o):
    """out[o + i] = sum over j < count of scalars[s + j s_step] vectors[v + j v_step + i] for i < LANES."""

    def codegen(context, b, signature, args):
        scalars, s, s_step, vectors, v, v_step, count, out, o = args
        one = Rows(context, b, signature.args[0], scalars, s, LANES)
        many = Rows(context, b, signature.args[3], vectors, v, LANES)
        target = Rows(context, b, signature.args[7], out, o, LANES)
        total = cgutils.alloca_once_value(b, many.zero)
        with cgutils.for_range(b, count) as j:
            value = many.spread(b.load(b.gep(one.start, [b.mul(j.index, s_step)])))
            row = many.load((b.mul(j.index, v_step), 1))
            b.store(many.fma(value, row, b.load(total)), total)
        b.store(b.load(total), target.pointer(), align=target.size)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(scalars, integer, integer, vectors, *[integer] * 3, out, integer), codegen


@numba.njit(cache=True, parallel=True, error_model="numpy", fastmath=FAST)
def _circulate_cpu(a, k, out):
    o, n, inner = a.shape
    b = k.shape[0]
    each = o // b  # lines of a with the same kernel
    parts = (each + ROWS - 1) // ROWS
    source, target = a.reshape(-1), out.reshape(-1)
    width = n if inner == 1 else inner  # of the rows that are made in vectors
    for part in numba.prange(b * parts):
        image, first = part // parts, part % parts * ROWS
        twice = np.empty(2 * n, a.dtype)
        for j in range(n):
            twice[j] = twice[n + j] = k[image, j]
        for line in range(image * each + first, image * each + min(first + ROWS, each)):
            start = line * n * inner
            for i in range(1 if inner == 1 else n):
                row = start + i * inner
                at = 0
                while at < width and width >= LANES:
                    at = min(at, width - LANES)  # the last vector overlaps the one before
                    if inner == 1:
                        _line(source, start, 1, twice, n + at, -1, n, target, row + at)
                    else:
                        _line(twice, n + i, -1, source, start + at, inner, n, target, row + at)
                    at += LANES
                while at < width:
                    total = target.dtype.type(0)
                    for j in range(n):
                        if inner == 1:
                            total += source[start + j] * twice[n + at - j]
                        else:
                            total += twice[n + i - j] * source[start + j * inner + at]
                    target[row + at] = total
                    at += 1


def _sample_circulate(rng, o, n, i, b):
    return [rng.normal(size=(o, n, i)), rng.normal(size=(b, n))]


circulate = kernel.register(
    "fourier_circulate",
    "a[o,n,i] k[b,n] -> out[o,n,i]",
    _circulate,
    cpu=_circulate_cpu,
    cuda=kernel.Cuda("circulate.cu", lambda dims: -(-dims["o"] * dims["n"] * dims["i"] // 128), threads=128),
    sample=_sample_circulate,
    cases=tuple(
        dict(zip("onib", case, strict=True))
        for case in [(0, 3, 1, 1), (1, 1, 1, 1), (6, 7, 1, 3), (80, 8, 1, 1), (4, 5, 9, 4), (6, 12, 33, 2)]
    ),
    bench={"o": 32_000, "n": 32, "i": 1, "b": 1000},
)


def zoom(a: Any, factor: float | Sequence[float], shape: Sequence[int] | None = None, centre: Any = None) -> Any:
    """Periodic images magnified by `factor`, a number or one for each axis, about `centre` (..., d).

    out(i) = a((i - (m - 1) / 2) / factor + centre) for i = 0...m - 1, m being the length of `shape`, by default
    round(n factor), and the centre by default the middle (n - 1) / 2.  So `shape` and `centre` cut a region of interest
    out of the magnified image, and only that is computed.  With d factors the last d axes of `a`, real or complex, are
    magnified.  Differentiable in `a` and `centre`; leading axes of `centre` are a batch as those of `shift`.

    >>> wave = np.cos(2 * np.pi * np.arange(8) / 8)
    >>> zoom(wave, 4, shape=[3], centre=[1.5]).round(3)  # 1.25 to 1.75 in steps of 1/4
    array([0.556, 0.383, 0.195])
    """
    a = _array(a)
    factors, shape = check_zoom(a.ndim, a.shape, factor, shape, "fourier.zoom")
    d = len(factors)
    if centre is None:
        centre = backend.module(plain(a)).asarray([(n - 1) / 2 for n in a.shape[-d:]], _real(a))
    centre = _array(centre)
    if centre.ndim == 0 or centre.shape[-1] != d:
        raise ValueError(f"fourier.zoom got a centre of shape {centre.shape}; expected (..., {d})")
    real = _real(a)
    points = [
        ops.add(
            backend.module(plain(a)).asarray((np.arange(m) - (m - 1) / 2) / f, real),
            ops.cast(centre[..., i : i + 1], dtype=real),
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
        matrix = dirichlet(x, n=a.shape[axis])  # (..., m, n)
        matrix = matrix.reshape(*matrix.shape[:-2], *(1,) * (d - 2), *matrix.shape[-2:])
        if axis == -2:
            a = _left(matrix, a)
        elif axis == -1 and matrix.ndim == 2:  # the same for all rows: one large product
            lead = a.shape[:-1]
            rows = a.reshape(math.prod(lead), a.shape[-1])
            a = ops.matmul(rows, ops.moveaxis(matrix, -1, -2)).reshape(*lead, matrix.shape[-2])
        else:
            rows = ops.moveaxis(a, axis, -1) if d > 1 else a.reshape(*a.shape[:-1], 1, a.shape[-1])
            rows = ops.matmul(rows, ops.moveaxis(matrix, -1, -2))
            a = ops.moveaxis(rows, -1, axis) if d > 1 else rows.reshape(*rows.shape[:-2], rows.shape[-1])
    return a


@op
def _left(matrix, a):
    """matrix @ a for a real matrix and an a that may be complex, whose two parts are twice as many columns then."""
    return _as(matrix @ _columns(a), a), (matrix, a)


@_left.vjp
def _(saved, gradient):
    matrix, a = saved
    g = _columns(gradient)
    return lambda: g @ _columns(a).swapaxes(-1, -2), lambda: _as(matrix.swapaxes(-1, -2) @ g, a)


def _columns(a):
    return backend.module(a).ascontiguousarray(a).view(_real(a))


def _as(columns, like):
    """The columns as numbers of the kind of `like`, in their own precision."""
    if like.dtype.kind != "c":
        return columns
    return backend.module(columns).ascontiguousarray(columns).view(np.result_type(columns.dtype, np.complex64))


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
    """D(x - j), or its derivative to x.  With x = r + f, r whole, sin(pi (x - j)) is +-sin(pi f): no cancellation."""
    xp = backend.module(x)
    if slope:  # as the sum of cosines that D is: exact also where the fraction is 0 / 0
        u = (x[..., None] - xp.arange(n, dtype=x.dtype)) * (2 * np.pi / n)
        total = xp.zeros_like(u)
        for k in range(1, n // 2 + 1):
            total -= (1.0 if 2 * k == n else 2.0) * k * (2 * np.pi / n) * xp.sin(k * u)
        return total / n
    whole = xp.rint(x)
    fraction = (x - whole)[..., None]
    m = whole[..., None] - xp.arange(n, dtype=x.dtype)
    m -= n * xp.rint(m * (1 / n))
    angle = (m + fraction) * (np.pi / n)
    below = n * (xp.sin(angle) if n % 2 else xp.tan(angle))
    at_sample = angle == 0
    above = xp.sin(np.pi * fraction) * (1 - 2 * xp.abs(m % 2))
    return xp.where(at_sample, 1, above / xp.where(at_sample, 1, below))


def _array(a: Any) -> Any:
    return a if isinstance(a, Tensor) else backend.asarray(a)


def _real(a: Any) -> np.dtype:
    """The real dtype of the same precision."""
    return np.dtype(a.dtype.char.lower()) if a.dtype.kind == "c" else a.dtype


def _need(a: Any, d: int, caller: str) -> None:
    if not 1 <= d <= min(3, a.ndim) or 0 in a.shape[-d:]:
        raise ValueError(
            f"fourier.{caller} got an array of shape {a.shape} and {d} coordinates; expected 1, 2 or 3, one for each "
            "of its last axes, none of them empty"
        )
