"""Closed-form solution of the parameters in which an image is linear."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import backend
from ..autograd import Tensor, ops

# A photon count or background below this is no longer told from zero; it keeps the likelihood's weights finite.
SMALLEST = {"photons": 1.0, "background": 1e-2}


def solve_linear(
    draw: Callable[[Mapping[str, Any]], Any],
    values: Mapping[str, Any],
    names: Sequence[str],
    images: Any,
    variance: Any,
) -> dict[str, Any]:
    """The parameters `names` (n,) that fit `images` (n, h, w) best, given all others in `values`.

    With B_k the image for parameter k = 1 and the other linear ones 0, minimise sum_pixels w (sum_k c_k B_k - image)^2
    with w = 1 / (mu + v): (B w B^T) c = B w image.  The weights are constants, from two rounds that start with w = 1;
    at the fixed point these are the Poisson likelihood's own equations.  NaN pixels have no weight.

    `draw` maps named parameters to images.  Returns arrays, or Tensors where `values` are; bounded below by SMALLEST.
    """
    xp = backend.module(images, variance, name="solve_linear")
    n, pixels = len(images), images[0].size if len(images) else 1
    like = next(iter(values.values()))
    masked = xp.isnan(images).reshape(n, 1, pixels)
    data = xp.where(masked, 0, images.reshape(n, 1, pixels)).astype(like.dtype)
    v = xp.broadcast_to(xp.asarray(variance, like.dtype), images.shape).reshape(n, 1, pixels)

    off = {name: xp.zeros(n, like.dtype) for name in names}
    basis = [draw({**values, **off, name: xp.ones(n, like.dtype)}).reshape(n, 1, pixels) for name in names]
    basis = ops.concatenate(basis, axis=1)
    constant = basis.data if isinstance(basis, Tensor) else basis
    floor = xp.asarray([SMALLEST.get(name, 0.0) for name in names], like.dtype)

    weights = xp.where(masked, 0, xp.ones_like(data))
    for _ in range(2):
        coefficients = xp.maximum(_least_squares(constant, weights, data), floor)
        mu = (coefficients[:, None, :] @ constant) + v
        weights = xp.where(masked, 0, 1 / xp.maximum(mu, 1e-2))
    solution = ops.maximum(_least_squares(basis, weights, data), floor)
    return {name: solution[:, k] for k, name in enumerate(names)}


def _least_squares(basis: Any, weights: Any, data: Any) -> Any:
    """Weighted least squares, (n, k) from `basis` (n, k, pixels); a slight ridge keeps it solvable without a spot."""
    xp = backend.module(weights)
    weighted = basis * weights
    normal = weighted @ basis.transpose(0, 2, 1)
    size = normal.data if isinstance(normal, Tensor) else normal
    diagonal = xp.einsum("nkk->nk", size)
    eye = xp.eye(size.shape[1], dtype=size.dtype)
    ridge = (1e-6 * diagonal + 1e-12)[:, None, :] * eye
    right = (weighted * data).sum(axis=2)
    return ops.solve(normal + ridge, right)
