"""Negative log-likelihood of EMCCD pixels: Poisson photoelectrons, an EM register, Gaussian read noise.

In units of photoelectrons (counts over gain and amplification) a register turns k electrons into a gamma number of
shape k, so for a prediction μ, a datum d and a read-noise variance v

    L(d) = e^−μ N(d; 0, v) + ∫ p(y) N(d − y; 0, v) dy,     p(y) = e^−(y+μ) √(μ/y) I₁(2√(μy))
    ∂nll/∂μ = 1 − ∫ q(y) N(d − y; 0, v) dy / L(d),         q(y) = e^−(y+μ) I₀(2√(μy))

p and q are analytic, and the integrand has one peak: Gauss and Legendre's rule over the part of it above e^−36 of the
peak gives it to 1e-12.  Without read noise, v = 0, L is p for d > 0 and the chance of no electron, e^−μ, otherwise.
(Basden et al. 2003, MNRAS 345, 985; Hirsch et al. 2013, PLoS ONE 8, e53671.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import scipy

from .. import kernel
from ..autograd import op
from ..backend import Array
from .poisson_gaussian import pixelwise

NODES, WEIGHTS = np.polynomial.legendre.leggauss(40)
LOG_TAU = math.log(2 * math.pi)


def _reference(prediction, data, variance, nll, slope):
    for i, (mu, d, v) in enumerate(zip(prediction, data, variance, strict=True)):
        nll[i], slope[i] = _reference_pixel(mu, d, v)


@lru_cache
def _many():
    return np.polynomial.legendre.leggauss(400)


def _reference_pixel(mu, d, v):
    if np.isnan(d) or not v < np.inf:
        return 0.0, 0.0
    if mu < 0:
        return np.inf, _reference_pixel(0.0, d, v)[1]
    nodes, weights = _many()

    def density(y):
        z, common = 2 * np.sqrt(mu * y), -((np.sqrt(y) - np.sqrt(mu)) ** 2)
        p = common + np.log(np.maximum(scipy.special.i1e(z), 1e-300)) + 0.5 * np.log(np.maximum(mu, 1e-300) / y)
        return np.where(z < 1e-8, common + np.log(max(mu, 1e-300)), p), common + np.log(scipy.special.i0e(z))

    if v == 0:
        if d <= 0:
            return mu, 1.0
        p, q = density(np.array(d))
        return -float(p), 1 - math.exp(min(float(q - p), 700.0))
    reach = 14 * math.sqrt(v)
    low, high = max(d - reach, 0.0), max(d, 0.0) + reach
    y, w = low + (high - low) / 2 * (nodes + 1), weights * (high - low) / 2
    p, q = density(y)
    normal = -((d - y) ** 2) / (2 * v)
    total = np.logaddexp(-mu - d * d / (2 * v), scipy.special.logsumexp(p + normal, b=w))
    score = scipy.special.logsumexp(q + normal, b=w)
    return 0.5 * (LOG_TAU + math.log(v)) - total, 1 - math.exp(min(score - total, 700.0))


@numba.njit(cache=True, error_model="numpy")
def _bessel(t):
    """e^−z I₀(z) and 2 e^−z I₁(z) / z for z = 2√t: the series in t, or that in 1/z."""
    z = 2 * math.sqrt(t)
    if z < 24:
        term, zeroth, first, j = 1.0, 1.0, 1.0, 0.0
        while term > 1e-17 * zeroth:
            j += 1
            term *= t / (j * j)
            zeroth += term
            first += term / (j + 1)
        scale = math.exp(-z)
        return scale * zeroth, scale * first
    term0 = term1 = zeroth = first = 1.0
    for k in range(1, 30):
        odd = (2 * k - 1) ** 2 / (8 * k * z)
        term0 *= odd
        term1 *= odd - 1 / (2 * k * z)
        zeroth += term0
        first += term1
    scale = 1 / math.sqrt(2 * math.pi * z)
    return scale * zeroth, 2 * scale * first / z


@numba.njit(cache=True, error_model="numpy")
def _height(y, root, d, v):
    """Logarithm of the integrand, but for powers of y and μ."""
    return -((math.sqrt(y) - root) ** 2) - (d - y) ** 2 / (2 * v)


@numba.njit(cache=True, error_model="numpy")
def _edge(peak, step, root, d, v):
    """Where the integrand falls to e^−36 of its peak, walking in growing steps; not below 0."""
    top, y = _height(peak, root, d, v), peak
    while y > 0 or step > 0:
        y = max(peak + step, 0.0)
        if _height(y, root, d, v) < top - 36:
            break
        step *= 1.25
    return y


@numba.njit(cache=True, error_model="numpy")
def _pixel(mu, d, v):
    root = math.sqrt(mu)
    if v == 0:
        if d <= 0:
            return mu, 1.0
        zeroth, first = _bessel(mu * d)
        return (math.sqrt(d) - root) ** 2 - math.log(mu * first), 1 - zeroth / (mu * first)
    low, high = 0.0, max(d, 0.0) + mu + 1
    for _ in range(60):  # the derivative of the logarithm falls from infinity
        middle = 0.5 * (low + high)
        if root / math.sqrt(middle) - 1 - (middle - d) / v > 0:
            low = middle
        else:
            high = middle
    peak = 0.5 * (low + high)
    width = 1 / math.sqrt(1 / v + 0.5 * root / peak**1.5)
    low, high = _edge(peak, -2 * width, root, d, v), _edge(peak, 2 * width, root, d, v)
    top = max(_height(peak, root, d, v), -mu - d * d / (2 * v))
    p = q = 0.0
    half = 0.5 * (high - low)
    for k in range(len(NODES)):
        y = low + half * (NODES[k] + 1)
        zeroth, first = _bessel(mu * y)
        weight = half * WEIGHTS[k] * math.exp(_height(y, root, d, v) - top)
        p += weight * mu * first
        q += weight * zeroth
    total = p + math.exp(-mu - d * d / (2 * v) - top)
    return 0.5 * (LOG_TAU + math.log(v)) - top - math.log(total), 1 - q / total


@numba.njit(cache=True, error_model="numpy", parallel=True)
def _cpu(prediction, data, variance, nll, slope):
    for i in numba.prange(prediction.size):
        mu, d, v = np.float64(prediction[i]), np.float64(data[i]), np.float64(variance[i])
        if math.isnan(d) or not v < math.inf:
            nll[i] = slope[i] = 0
            continue
        value, gradient = _pixel(mu if mu > 0 else 0.0, d, v)
        nll[i], slope[i] = math.inf if mu < 0 else value, gradient


def _sample(rng, n):
    mu, v = 10 ** rng.uniform(-2, 3.5, n), rng.choice([0.0, 0.005, 0.03, 0.3, 4.0], n)
    d = rng.gamma(np.maximum(rng.poisson(mu), 1e-3)) + np.sqrt(v) * rng.standard_normal(n)
    edges = np.array([(0, 0.3, 1), (0, -1, 2), (3, np.nan, 1), (3, 2, np.inf), (-1, 1, 4), (5, -0.5, 0.04), (2, -1, 0)])
    use = min(n, len(edges))
    mu[:use], d[:use], v[:use] = edges[:use].T
    return [mu, d, v]


_kernel = kernel.register(
    "emccd",
    "prediction[n] data[n] variance[n] -> nll[n] slope[n]",
    _reference,
    cpu=_cpu,
    cuda=kernel.Cuda("emccd.cu", lambda dims: -(-dims["n"] // 128)),
    sample=_sample,
    cases=({"n": 0}, {"n": 1}, {"n": 131}),
    bench={"n": 100_000},
)


@op
def _emccd(prediction, data, variance):
    return _value_and_slope(prediction, data, variance)


@_emccd.vjp
def _(slope, g):
    return (g * slope,)


def _value_and_slope(prediction: Array, data: Array, variance: Any) -> tuple[Array, Array]:
    return pixelwise(_kernel, "EMCCD", prediction, data, variance)


@dataclass(frozen=True)
class EMCCD:
    """Likelihood of EMCCD pixels as the loss part of a model, in nats per pixel; `variance` is `Camera.variance`.

    >>> EMCCD()(np.array([4.0]), np.array([3.2]), variance=0.03).round(4)
    array([1.8939])
    """

    def configuration(self) -> dict[str, Any]:
        """Nothing to set."""
        return {}

    def __call__(self, prediction: Any, data: Array, variance: Any = 0.0) -> Any:
        """Negative log-likelihood of every pixel, differentiable in the prediction."""
        return _emccd(prediction, data, variance)

    def value_and_slope(self, prediction: Array, data: Array, variance: Any = 0.0) -> tuple[Array, Array]:
        """Negative log-likelihood of every pixel and its derivative, of plain arrays, in one pass."""
        return _value_and_slope(prediction, data, variance)
