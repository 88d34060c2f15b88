"""Squared losses and Gaussian likelihoods of camera pixels in photoelectrons.

With a prediction μ, a datum d, the read-noise variance v, and w = max(μ + v, 1e-6):

    L2               ½ (d − μ)²                              MSE              (d − μ)²
    PoissonWeighted  ½ (d − μ)² / w,   w held constant       (its slope is the score of the Poisson likelihood:
    unbiased) GaussianNLL      ½ (d − μ)² / v + ½ log 2πv              constant variance
                     ½ (d − μ)² / w + ½ log 2πw              Poisson variance

A pixel is masked, value and slope 0, where d is NaN, or v is NaN or infinite.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numba
import numpy as np

from .. import backend, kernel
from ..autograd import op
from ..backend import Array
from .poisson_gaussian import pixelwise

SQUARED, WEIGHTED, CONSTANT, POISSON = range(4)
LEAST = 1e-6  # variance
LOG_TAU = math.log(2 * math.pi)


def _reference(prediction, data, variance, kind, value, slope):
    mu, d, v = prediction, data, variance
    r = d - mu
    if kind == SQUARED:
        w, bent = np.ones_like(mu), 0.0
    elif kind == CONSTANT:
        w, bent = np.maximum(v, LEAST), 0.0
    else:
        w = np.maximum(mu + v, LEAST)
        bent = (mu + v > LEAST) * (kind == POISSON)
    with np.errstate(invalid="ignore"):
        nats = 0.5 * r**2 / w + (0.5 * (LOG_TAU + np.log(w)) if kind >= CONSTANT else 0.0)
        gradient = -r / w + 0.5 * bent * (1 - r**2 / w) / w
    masked = np.isnan(d) | ~(v < np.inf)
    value[...], slope[...] = np.where(masked, 0, nats), np.where(masked, 0, gradient)


@numba.njit(cache=True, error_model="numpy", parallel=True)
def _cpu(prediction, data, variance, kind, value, slope):
    real = value.dtype.type
    half, one, zero, least, log_tau = real(0.5), real(1), real(0), real(LEAST), real(LOG_TAU)
    for i in numba.prange(prediction.size):
        mu, d, v = prediction[i], data[i], variance[i]
        w, r = one, d - mu
        if kind == CONSTANT:
            w = max(v, least)
        elif kind != SQUARED:
            w = max(mu + v, least)
        inverse = one / w
        square = r * r * inverse
        nats, gradient = half * square, -r * inverse
        if kind >= CONSTANT:
            nats += half * (log_tau + math.log(w))
        if kind == POISSON and w > least:
            gradient += half * (one - square) * inverse
        masked = math.isnan(d) or not v < math.inf
        value[i], slope[i] = zero if masked else nats, zero if masked else gradient


def _sample(rng, n, kind):
    mu, v = 10 ** rng.uniform(-1, 5, n), rng.choice([0.0, 0.3, 4.0, 900.0], n)
    d = rng.poisson(mu) + np.sqrt(v) * rng.standard_normal(n)
    edges = np.array([(3, np.nan, 1), (3, 2, np.inf), (-1, 1, 4), (0, 3, 2), (60, -20, 9)])
    use = min(n, len(edges))
    mu[:use], d[:use], v[:use] = edges[:use].T
    return [mu, d, v, kind]


_kernel = kernel.register(
    "pixel_loss",
    "prediction[n] data[n] variance[n] kind:int -> value[n] slope[n]",
    _reference,
    cpu=_cpu,
    cuda=kernel.Cuda("pixel_loss.cu", lambda dims: -(-dims["n"] // 128)),
    sample=_sample,
    cases=tuple({"n": n, "kind": kind} for kind, n in ((0, 0), (0, 1), (1, 301), (2, 301), (3, 301))),
    bench={"n": 1_000_000, "kind": 3},
)


@op
def _pixel_loss(prediction, data, variance, *, kind, name):
    value, slope = pixelwise(_kernel, name, prediction, data, variance, kind)
    return value, (slope, prediction, data, variance, kind)


@_pixel_loss.vjp
def _(saved, g):
    slope, mu, d, v, kind = saved
    xp = backend.module(slope)

    def seen(gradient):
        return g * xp.where(xp.isnan(d) | ~(v < np.inf), 0, gradient).astype(slope.dtype)

    def to_data():
        w = 1.0 if kind == SQUARED else xp.maximum(v if kind == CONSTANT else mu + v, LEAST)
        return seen((d - mu) / w)

    def to_variance():
        w = xp.maximum(v if kind == CONSTANT else mu + v, LEAST)
        return seen(0.5 / w * (1 - (d - mu) ** 2 / w) if kind >= CONSTANT else 0.0)

    return g * slope, to_data, to_variance


@dataclass(frozen=True)
class _PixelLoss:
    """What the losses of this module share: a factor, and the number of the formula."""

    _kind = SQUARED
    _factor = 1.0

    def configuration(self) -> dict[str, Any]:
        """What makes this part again, JSON-ready."""
        return asdict(self)

    def __call__(self, prediction: Any, data: Array, variance: Any = 0.0) -> Any:
        """Loss of every pixel of `prediction` and `data` (...), read-noise `variance` that broadcasts to them."""
        value = _pixel_loss(prediction, data, variance, kind=self._kind, name=type(self).__name__)
        return value if self._factor == 1 else value * self._factor

    def value_and_slope(self, prediction: Array, data: Array, variance: Any = 0.0) -> tuple[Array, Array]:
        """Loss of every pixel and its derivative to the prediction, of plain arrays, in one pass."""
        value, slope = pixelwise(_kernel, type(self).__name__, prediction, data, variance, self._kind)
        return (value, slope) if self._factor == 1 else (value * self._factor, slope * self._factor)


class L2(_PixelLoss):
    """½ (d − μ)², photoelectrons².

    >>> L2()(np.array([4.0]), np.array([7.0]))
    array([4.5])
    """


class MSE(_PixelLoss):
    """(d − μ)²; its mean is the mean squared error.

    >>> MSE()(np.array([4.0]), np.array([7.0]))
    array([9.])
    """

    _factor = 2.0


class PoissonWeighted(_PixelLoss):
    """½ (d − μ)² / (μ + v), the weight held constant in the derivative: least squares whose best fit is unbiased.

    >>> PoissonWeighted()(np.array([4.0]), np.array([7.0]), variance=2.0)
    array([0.75])
    """

    _kind = WEIGHTED


@dataclass(frozen=True)
class GaussianNLL(_PixelLoss):
    """Gaussian negative log-likelihood with variance μ + v, or with `poisson=False` v alone, in nats.

    >>> GaussianNLL()(np.array([4.0]), np.array([7.0]), variance=2.0).round(4)
    array([2.5648])
    """

    poisson: bool = True

    @property
    def _kind(self) -> int:
        return POISSON if self.poisson else CONSTANT
