"""Uniform B-splines in one, two or three dimensions: f(x) = sum over k of c[k] B(x0 - k0) B(x1 - k1) B(x2 - k2).

B is the centred B-spline of a degree from 0 to 5, c the coefficients on the pixels' grid.  `prefilter` finds the c for
which f passes through given samples, `sample` evaluates f.  Points are in pixels, in the order of the array's axes as
in scipy.ndimage: (y, x) or (z, y, x), with 0 at the centre of the first pixel.  Beyond the array, coefficients go on by

    mode        coefficients of a b c d, continued          in scipy.ndimage
    mirror      d c b | a b c d | c b a                     "mirror"
    reflect     c b a | a b c d | d c b                     "reflect" (also "grid-mirror", a name known here too)
    periodic    b c d | a b c d | a b c                     "grid-wrap", a name known here too
    zero        0 0 0 | a b c d | 0 0 0                     "grid-constant" of coefficients (prefilter=False)
    constant    f = 0 beyond the outermost pixel centres,   "constant"
                within them as for mirror

A spline with mode zero runs smoothly out to 0 within (degree + 1) / 2 pixels.  A coordinate that is not finite, or
beyond 2^30, gives NaN, and no gradient.  Degree 1 is linear interpolation, degree 0 the nearest pixel.

(Unser, Aldroubi & Eden 1993, IEEE Trans. Signal Process. 41, 821 and 834; Thévenaz, Blu & Unser 2000, IEEE Trans.
Med. Imaging 19, 739.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import backend
from ..autograd import Tensor, op, ops, plain
from . import kernels
from .modes import MODES

ALIASES = {"grid-mirror": "reflect", "grid-wrap": "periodic"}


def prefilter(a: Any, degree: int = 3, mode: str = "mirror", dims: int | None = None) -> Any:
    """Coefficients of the B-spline of `degree` that passes through the samples `a`, an array or Tensor of that shape.

    `dims`: how many axes, the last ones, are interpolated; default all, which must be three at most.  The others are
    a batch.  Integers become floats as in `backend.asarray`.  A NaN sample spoils its neighbourhood along each axis.
    The filter runs in time proportional to the array; its gradient is the adjoint filter.

    >>> prefilter(np.array([0.0, 1.0, 0.0]), degree=3, mode="periodic").round(3)
    array([-0.333,  1.667, -0.333])
    """
    a = _real(a, "prefilter")
    degree, mode = _check(degree, mode, "prefilter")
    dims = a.ndim if dims is None else dims
    if not 1 <= dims <= min(3, a.ndim):
        raise ValueError(f"prefilter got dims={dims} for an array of shape {a.shape}; expected 1, 2 or 3 axes of it")
    return _prefilter(a, degree=degree, mode=mode, dims=dims)


def sample(coefficients: Any, points: Any, degree: int = 3, mode: str = "mirror") -> Any:
    """Values of the spline with these `coefficients` at `points` (..., d) in pixels, in the order of the array's axes.

    The last d = 1, 2 or 3 axes of `coefficients` are those of the spline; what comes before them is a batch, to which
    the first axes of `points` belong, and each is evaluated at its own points: coefficients (b, h, w) with points
    (b, m, 2) give (b, m), (h, w) with (b, m, 2) also (b, m).  An axis of length 1 fits any length.
    Differentiable in both.  The gradient to the points is that of the spline, exact inside, and 0 outside for mode
    constant.  For degree 0 it is 0.

    >>> c = prefilter(np.arange(5.0) ** 2)
    >>> sample(c, [[2.0], [2.5]]).round(2)
    array([4.  , 5.91])
    """
    coefficients = _real(coefficients, "sample")
    points = _real(points, "sample", like=coefficients)
    degree, mode = _check(degree, mode, "sample")
    d = points.shape[-1] if points.ndim else 0
    if not 1 <= d <= min(3, coefficients.ndim) or 0 in coefficients.shape[-d:]:
        raise ValueError(
            f"sample got coefficients of shape {coefficients.shape} and points of shape {points.shape}; expected "
            "points (..., d) with d = 1, 2 or 3 coordinates for the last d axes of coefficients, none of them empty"
        )
    batch, grid = coefficients.shape[:-d], coefficients.shape[-d:]
    lead = points.shape[:-1]
    try:
        if len(lead) < len(batch):
            raise ValueError
        both = np.broadcast_shapes(batch, lead[: len(batch)])
    except ValueError:
        raise ValueError(
            f"sample got a batch {batch} of coefficients and points of shape {points.shape}; expected {len(batch)} "
            "leading axes of points that fit this batch"
        ) from None
    rest = lead[len(batch) :]
    if coefficients.dtype != points.dtype:
        dtype = np.result_type(coefficients.dtype, points.dtype)
        coefficients, points = ops.cast(coefficients, dtype=dtype), ops.cast(points, dtype=dtype)
    if batch != both:
        coefficients = ops.broadcast_to(coefficients, (*both, *grid))
    if lead != both + rest:
        points = ops.broadcast_to(points, (*both, *rest, d))
    count, many = math.prod(both), math.prod(rest)
    values = _sample(coefficients.reshape(count, *grid), points.reshape(count, many, d), degree=degree, mode=mode)
    return values.reshape(both + rest)


def resample(a: Any, points: Any, degree: int = 3, mode: str = "mirror") -> Any:
    """The spline through the samples `a` at `points` (..., d): `prefilter`, then `sample`; see there.

    >>> float(resample(np.eye(3), [1.0, 1.0]).round(6))
    1.0
    """
    points = _real(points, "resample")
    return sample(prefilter(a, degree, mode, points.shape[-1] if points.ndim else 0), points, degree, mode)


def shift(a: Any, shift: Any, degree: int = 3, mode: str = "mirror") -> Any:
    """Images moved by `shift` (..., d) pixels towards higher indices: out(i) = a(i - shift), as scipy.ndimage.shift.

    The last d axes of `a` move.  Axes before these are a batch: images (b, h, w) take one shift (2,) or their own
    (b, 2); one image (h, w) with shifts (b, 2) gives (b, h, w).  Differentiable in `a` and `shift`.

    >>> shift(np.array([0.0, 1.0, 5.0, 2.0]), [1.0]).round(6)
    array([1., 0., 1., 5.])
    """
    shift = _real(shift, "shift", like=a)
    d = shift.shape[-1] if shift.ndim else 0
    a = _real(a, "shift")
    _need(a, d, "shift")
    grid = _grid(a.shape[-d:], a)
    points = ops.subtract(grid, shift.reshape(*shift.shape[:-1], *(1,) * d, d))
    return _on_grid(a, points, d, degree, mode)


def zoom(
    a: Any, factor: float | Sequence[float], degree: int = 3, mode: str = "mirror", shape: Sequence[int] | None = None
) -> Any:
    """Images magnified by `factor`, a number or one for each axis, about their centre.

    out(i) = a((i - (m - 1) / 2) / factor + (n - 1) / 2) for i = 0...m - 1, m being the length of `shape`, by default
    round(n factor).  With a sequence of d factors the last d axes are magnified, with a number all axes.
    (scipy.ndimage.zoom puts the first and last pixels on the first and last, and changes the factor for it.)

    >>> zoom(np.arange(4.0), 2, degree=1)
    array([0.25, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 2.75])
    """
    a = _real(a, "zoom")
    factors, shape = check_zoom(a.ndim, a.shape, factor, shape, "zoom")
    axes = [
        (np.arange(m) - (m - 1) / 2) / f + (n - 1) / 2
        for m, f, n in zip(shape, factors, a.shape[-len(factors) :], strict=True)
    ]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    return _on_grid(a, backend.module(plain(a)).asarray(grid, a.dtype), len(factors), degree, mode)


def affine(
    a: Any,
    matrix: Any,
    offset: Any = 0.0,
    shape: Sequence[int] | None = None,
    degree: int = 3,
    mode: str = "mirror",
) -> Any:
    """Images under an affine map: out(o) = a(matrix @ o + offset), as scipy.ndimage.affine_transform.

    `matrix` (..., d, d) and `offset` (..., d) take output pixels to input pixels; `shape`: of the output, default that
    of the input.  Leading axes as for `shift`.  Differentiable in `a`, `matrix` and `offset`.

    >>> affine(np.array([[1.0, 2.0], [3.0, 4.0]]), [[0.0, 1.0], [1.0, 0.0]]).round(6)  # transposed
    array([[1., 3.],
           [2., 4.]])
    """
    a = _real(a, "affine")
    matrix, offset = _real(matrix, "affine", like=a), _real(offset, "affine", like=a)
    d = matrix.shape[-1] if matrix.ndim >= 2 else 0
    _need(a, d, "affine")
    if matrix.shape[-2] != d or (offset.ndim and offset.shape[-1] != d):
        raise ValueError(f"affine got matrix {matrix.shape} and offset {offset.shape}; expected (..., d, d), (..., d)")
    grid = _grid(a.shape[-d:] if shape is None else tuple(shape), a)
    out = grid.shape[:-1]
    flat = grid.reshape(-1, d)
    points = ops.matmul(flat, ops.moveaxis(matrix, -1, -2))
    offset = offset.reshape(*offset.shape[:-1], 1, d) if offset.ndim else offset
    points = ops.add(points, offset)
    return _on_grid(a, points.reshape(*points.shape[:-2], *out, d), d, degree, mode)


# ---------------------------------------------------------------- ops


@op
def _prefilter(a, *, degree, mode, dims):
    return _filter(a, degree, mode, dims), (degree, mode, dims)


@_prefilter.vjp
def _(saved, gradient):
    # mirror: B is not symmetric, as the ends of the array appear once in a period and all else twice; W B is, with
    # W = 1/2 at the ends.  So B^-T = W B^-1 W^-1.
    degree, mode, dims = saved
    if mode not in ("mirror", "constant") or degree < 2:
        return (_filter(gradient, degree, mode, dims),)
    gradient = _scale_ends(gradient, dims, 2.0)
    return (_scale_ends(_filter(gradient, degree, mode, dims), dims, 0.5),)


def _filter(a, degree, mode, dims):
    """Filter the last `dims` axes, one after another."""
    xp = backend.module(a)
    filtered = [axis for axis in range(a.ndim - dims, a.ndim) if a.shape[axis] > 1 or mode == "zero"]
    if degree < 2 or a.size == 0 or not filtered:
        return a.copy()
    out = xp.empty(a.shape, a.dtype)
    for axis in filtered:
        lines = math.prod(a.shape[:axis]), a.shape[axis], math.prod(a.shape[axis + 1 :])
        kernels.prefilter(a.reshape(lines), degree, MODES.index(mode), out=out.reshape(lines))
        a = out  # from the second axis on in place
    return out


def _scale_ends(a, dims, factor):
    a = a.copy()
    for axis in range(a.ndim - dims, a.ndim):
        if a.shape[axis] > 1:
            ends = backend.module(a).moveaxis(a, axis, 0)
            ends[0] *= factor
            ends[-1] *= factor
    return a


@op
def _sample(coefficients, points, *, degree, mode):
    """coefficients (b, *grid), points (b, m, d) -> (b, m)"""
    xp = backend.module(coefficients, points, name="sample")
    full = _three(coefficients)
    out = xp.empty(points.shape[:2], points.dtype)
    return kernels.sample(full, points, degree, MODES.index(mode), out=out), (coefficients, points, degree, mode)


@_sample.vjp
def _(saved, gradient):
    coefficients, points, degree, mode = saved
    xp, number = backend.module(gradient), MODES.index(mode)

    def to_coefficients():
        out = xp.empty_like(_three(coefficients))
        return kernels.scatter(gradient, points, degree, number, out=out).reshape(coefficients.shape)

    def to_points():
        out = xp.empty(points.shape[:2], points.dtype), xp.empty(points.shape, points.dtype)
        kernels.slopes(_three(coefficients), points, degree, number, out=out)
        return out[1] * gradient[..., None]

    return to_coefficients, to_points


def _three(coefficients):
    """coefficients (b, *grid) as a grid of three axes, the missing ones of length 1."""
    b, *grid = coefficients.shape
    return coefficients.reshape(b, *(1,) * (3 - len(grid)), *grid)


# ---------------------------------------------------------------- inputs


def _real(a: Any, caller: str, like: Any = None) -> Any:
    """`a` as a real array, or as it is if it is a Tensor."""
    if isinstance(a, Tensor):
        return a
    like = plain(like)
    a = backend.asarray(a, like=like if backend.is_array(like) else None)
    if a.dtype.kind != "f":
        raise TypeError(
            f"{caller} got an array of {a.dtype}; expected real numbers (real and imaginary part one by one)"
        )
    return a if like is None or not backend.is_array(like) or like.dtype.kind != "f" else a.astype(like.dtype)


def _check(degree: int, mode: str, caller: str) -> tuple[int, str]:
    if degree not in range(6):
        raise ValueError(f"{caller} got degree={degree!r}; expected 0 to 5")
    mode = ALIASES.get(mode, mode)
    if mode not in MODES:
        raise ValueError(f"{caller} got mode={mode!r}; expected one of {', '.join(MODES)}, {', '.join(ALIASES)}")
    return int(degree), mode


def _need(a: Any, d: int, caller: str) -> None:
    if not 1 <= d <= min(3, a.ndim):
        raise ValueError(
            f"{caller} got an array of shape {a.shape} and {d} coordinates; expected 1, 2 or 3, one for each of its "
            "last axes"
        )


def check_zoom(
    ndim: int, lengths: Sequence[int], factor: Any, shape: Sequence[int] | None, caller: str
) -> tuple[list[float], list[int]]:
    """One factor and one output length for each axis that is magnified, or an error."""
    factors = [float(f) for f in ([factor] * ndim if np.ndim(factor) == 0 else factor)]
    if not 1 <= len(factors) <= min(3, ndim) or not all(0 < f < np.inf for f in factors):
        raise ValueError(
            f"{caller} got factor={factor!r} for an array of shape {tuple(lengths)}; expected a positive number, or "
            "one for each of its last 1, 2 or 3 axes"
        )
    given = [max(1, round(n * f)) for n, f in zip(lengths[-len(factors) :], factors, strict=True)]
    shape = given if shape is None else [int(m) for m in shape]
    if len(shape) != len(factors) or min(shape) < 1:
        raise ValueError(f"{caller} got shape={tuple(shape)}; expected {len(factors)} lengths of 1 or more")
    return factors, shape


def _grid(shape: Sequence[int], like: Any) -> Any:
    """Indices of an array of `shape` as points (*shape, d)."""
    xp = backend.module(plain(like))
    return xp.stack(xp.meshgrid(*(xp.arange(n, dtype=like.dtype) for n in shape), indexing="ij"), -1)


def _on_grid(a: Any, points: Any, d: int, degree: int, mode: str) -> Any:
    """The spline through `a` at points (..., *out, d), where a batch of `a` meets the leading axes of the points."""
    missing = a.ndim - d - (points.ndim - 1 - d)
    if missing > 0:
        points = points.reshape(*(1,) * missing, *points.shape)
    return sample(prefilter(a, degree, mode, d), points, degree, mode)
