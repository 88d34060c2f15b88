"""The kernels of B-spline interpolation: `bspline.py` has the formula and says what the modes mean."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import kernel
from . import cpu
from .modes import CONSTANT, LIMIT, PERIODIC, REFLECT, ZERO

# ---------------------------------------------------------------- reference: the definition


def basis(t: Any, degree: int) -> tuple[Any, Any]:
    """Weights and slopes (..., degree + 1) of the B-splines that are not 0 at t in [0, 1] beyond a knot.

    De Boor's recursion for uniform knots: B_j,r(t) = ((t + j - r) B_j-1,r-1(t) + (r + 1 - t) B_j-1,r(t)) / j, and the
    slope is the difference of two neighbours of one degree less.
    """
    t = np.asarray(t, float)
    weights, slopes = [np.ones_like(t)], [np.zeros_like(t)]
    for j in range(1, degree + 1):
        padded = [np.zeros_like(t), *weights, np.zeros_like(t)]
        slopes = [padded[r] - padded[r + 1] for r in range(j + 1)]
        weights = [((t + j - r) * padded[r] + (r + 1 - t) * padded[r + 1]) / j for r in range(j + 1)]
    return np.stack(weights, -1), np.stack(slopes, -1)


def fold(index: np.ndarray, n: int, mode: int) -> np.ndarray:
    """The index in 0...n - 1 that a coefficient anywhere is equal to; -1 for one that is 0."""
    if mode == ZERO:
        return np.where((index >= 0) & (index < n), index, -1)
    if mode == PERIODIC or n == 1:
        return index % n
    period = 2 * n if mode == REFLECT else 2 * n - 2
    index = index % period
    return np.where(index < n, index, 2 * n - 1 - index if mode == REFLECT else period - index)


def taps(x: Any, n: int, degree: int, mode: int) -> tuple[Any, Any, Any]:
    """For coordinates x (...) along an axis of n: index, weight and slope (..., degree + 1) of the coefficients."""
    x = np.asarray(x, float)
    known = np.abs(x) < LIMIT  # False for NaN
    half = 0.5 * (degree % 2 == 0)  # knots lie on the pixels' centres for an odd degree, between them for an even one
    first = np.floor(np.where(known, x, 0) + half)
    weight, slope = basis(np.where(known, x, 0) + half - first, degree)
    index = fold(first.astype(np.int64)[..., None] - degree // 2 + np.arange(degree + 1), n, mode)
    there = index >= 0
    if mode == CONSTANT:
        there = there & ((x >= 0) & (x <= n - 1))[..., None]
    nothing = np.where(known, 0.0, np.nan)[..., None]
    return np.maximum(index, 0), np.where(there, weight, 0) + nothing, np.where(there, slope, 0) + nothing


def _axes(grid, points, degree, mode):
    """The taps of each axis (b, m, k), a single one of weight 1 for the axes that the points do not have."""
    b, m, d = points.shape
    single = np.zeros((b, m, 1), int), np.ones((b, m, 1)), np.zeros((b, m, 1))
    missing = 3 - d
    return [single] * missing + [taps(points[..., i], grid[missing + i], degree, mode) for i in range(d)]


def _neighbours(coefficients, axes):
    """Coefficients (b, m, k, k, k) around each point."""
    (i, _, _), (j, _, _), (k, _, _) = axes
    b = np.arange(len(coefficients))[:, None, None, None, None]
    return coefficients[b, i[:, :, :, None, None], j[:, :, None, :, None], k[:, :, None, None, :]]


def _sample(coefficients, points, degree, mode, value):
    axes = _axes(coefficients.shape[1:], points, degree, mode)
    value[...] = np.einsum("bmijk,bmi,bmj,bmk->bm", _neighbours(coefficients, axes), *(w for _, w, _ in axes))


def _slopes(coefficients, points, degree, mode, value, slope):
    d = points.shape[2]
    axes = _axes(coefficients.shape[1:], points, degree, mode)
    near, weights = _neighbours(coefficients, axes), [w for _, w, _ in axes]
    value[...] = np.einsum("bmijk,bmi,bmj,bmk->bm", near, *weights)
    for i in range(d):
        at = 3 - d + i
        slope[..., i] = np.einsum("bmijk,bmi,bmj,bmk->bm", near, *weights[:at], axes[at][2], *weights[at + 1 :])


def _scatter(gradient, points, degree, mode, out):
    known = (np.abs(points) < LIMIT).all(-1)  # a point that is no number tells nothing of the coefficients
    axes = _axes(out.shape[1:], np.where(known[..., None], points, 0), degree, mode)
    (i, u, _), (j, v, _), (k, w, _) = axes
    b = np.arange(len(out))[:, None, None, None, None]
    index = b, i[:, :, :, None, None], j[:, :, None, :, None], k[:, :, None, None, :]
    out[...] = 0
    np.add.at(out, index, np.einsum("bm,bmi,bmj,bmk->bmijk", np.where(known, gradient, 0), u, v, w))


def matrix(n: int, degree: int, mode: int) -> np.ndarray:
    """The matrix (n, n) that makes samples on the pixels of coefficients."""
    index, weight, _ = taps(np.arange(n), n, degree, mode)
    found = np.zeros((n, n))
    np.add.at(found, (np.arange(n)[:, None], index), weight)
    return found


def _prefilter(a, degree, mode, c):
    c[...] = np.linalg.solve(matrix(a.shape[1], degree, mode), a)


# ---------------------------------------------------------------- registration


def _points(rng, b, p, q, r, m, axes):
    """Points within and beyond the grid; some on its border, some no numbers."""
    n = np.array([p, q, r])[3 - axes :]
    points = rng.uniform(-0.5 * n - 1, 1.5 * n + 1, (b, m, axes))
    points[:, ::5] = np.clip(points[:, ::5], 0, n - 1)
    points[:, 7::20, 0] = np.nan
    points[:, 13::20, axes - 1] = -(2.0**31)
    return points


def _sample_inputs(rng, degree, mode, **sizes):
    b, p, q, r = (sizes[k] for k in "bpqr")
    return [rng.normal(size=(b, p, q, r)), _points(rng, **sizes), degree, mode]


def _scatter_inputs(rng, degree, mode, **sizes):
    return [rng.normal(size=(sizes["b"], sizes["m"])), _points(rng, **sizes), degree, mode]


def _prefilter_inputs(rng, o, n, i, degree, mode):
    return [rng.normal(size=(o, n, i)), degree, mode]


_SIZES = ("b", "p", "q", "r", "m", "axes", "degree", "mode")
_CASES = tuple(
    dict(zip(_SIZES, case, strict=True))
    for case in [
        (0, 1, 4, 5, 3, 2, 3, 0),
        (2, 1, 1, 9, 33, 1, 0, 1),
        (1, 1, 1, 1, 5, 1, 5, 3),
        (1, 1, 1, 23, 33, 1, 5, 4),
        (3, 1, 7, 12, 65, 2, 2, 2),
        (2, 1, 9, 8, 65, 2, 3, 4),
        (1, 1, 1, 3, 20, 2, 3, 3),
        (1, 11, 6, 9, 129, 3, 1, 1),
        (1, 17, 9, 10, 300, 3, 3, 0),
        (2, 5, 7, 6, 100, 3, 3, 3),
        (1, 5, 7, 6, 33, 3, 4, 2),
    ]
)
_BENCH = {"b": 1, "p": 128, "q": 128, "r": 128, "m": 1_000_000, "axes": 3, "degree": 3, "mode": 0}
_FILTERS = tuple(
    dict(zip(("o", "n", "i", "degree", "mode"), case, strict=True))
    for case in [
        (0, 5, 1, 3, 0),
        (1, 1, 1, 3, 3),
        (3, 1, 7, 5, 0),
        (1, 2, 33, 3, 0),
        (35, 7, 1, 3, 1),
        (2, 9, 17, 4, 2),
        (3, 40, 3, 5, 0),
        (1, 33, 40, 2, 3),
        (2, 45, 5, 5, 3),
        (1, 50, 3, 5, 1),
        (1, 60, 2, 3, 2),
        (1, 5, 3, 1, 4),
        (1, 70, 35, 3, 4),
    ]
)


def _block_per_point(dims):
    return -(-dims["b"] * dims["m"] // 128)


def _block_per_slab(dims):
    return dims["b"] * dims["rqp"[dims["axes"] - 1]]  # of the first axis that the points have


def _cuda(blocks):
    return kernel.Cuda("bspline.cu", blocks, threads=128, constants=("axes", "degree"))


# in place as well: all bodies read a line before they write it
prefilter = kernel.register(
    "bspline_prefilter",
    "a[o,n,i] degree:int mode:int -> c[o,n,i]",
    _prefilter,
    cpu=cpu._prefilter,
    cuda=kernel.Cuda("bspline_prefilter.cu", lambda dims: -(-dims["o"] * dims["i"] // 64), 64, ("degree",)),
    sample=_prefilter_inputs,
    cases=_FILTERS,
    bench={"o": 128, "n": 128, "i": 128, "degree": 3, "mode": 0},
)
sample = kernel.register(
    "bspline_sample",
    "coefficients[b,p,q,r] points[b,m,axes] degree:int mode:int -> value[b,m]",
    _sample,
    cpu=cpu._sample,
    cuda=_cuda(_block_per_point),
    sample=_sample_inputs,
    cases=_CASES,
    bench=_BENCH,
)
slopes = kernel.register(
    "bspline_slopes",
    "coefficients[b,p,q,r] points[b,m,axes] degree:int mode:int -> value[b,m] slope[b,m,axes]",
    _slopes,
    cpu=cpu._slopes,
    cuda=_cuda(_block_per_point),
    sample=_sample_inputs,
    cases=_CASES,
    bench=_BENCH,
)
scatter = kernel.register(
    "bspline_scatter",
    "gradient[b,m] points[b,m,axes] degree:int mode:int -> coefficients[b,p,q,r]",
    _scatter,
    cpu=cpu._scatter,
    cuda=_cuda(_block_per_slab),
    sample=_scatter_inputs,
    cases=_CASES,
    bench=_BENCH,
)
