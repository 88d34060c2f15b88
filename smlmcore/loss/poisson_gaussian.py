"""Negative log-likelihood of camera pixels: Poisson photoelectrons plus Gaussian read noise.

For a prediction μ (photoelectrons), a datum d (photoelectrons, any real number) and a read-noise variance v:

    exact:    L(d) = Σ_k Pois(k; μ) N(d − k; 0, v),     nll = −log L(d),    ∂nll/∂μ = 1 − L(d − 1) / L(d)
    shifted:  nll = (μ+v) − x log(μ+v) + log Γ(x+1),    x = max(d+v, 0),    ∂nll/∂μ = 1 − x / (μ+v)

The shifted form (Huang et al. 2013, Nat. Methods 10, 653) treats d + v as a Poisson number of mean μ + v.  Without read
noise, v = 0, both are the Poisson likelihood continued to real data, negative data counting as zero.

Exact: bright pixels and those of much read noise by the saddle point and its series (`saddle`), others by the sum
(`lanes`).  What both leave over is summed outwards from the largest term.  The ratio of neighbouring terms is itself
updated by a factor 1 − (1 + δ(k+1)) / (k+2), δ = 1 − exp(−1/v), so that no term costs an exponential and large k lose
no digits.

At the edges: where d is NaN, or v is NaN or infinite, the pixel is masked and nll and slope are 0.  For μ < 0 nll is
infinite and the slope that of μ = 0, pointing back.  Slopes are finite: they stop at the largest number of the dtype.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import scipy

from .. import backend, kernel
from ..autograd import op
from ..backend import Array
from . import lanes, saddle, shifted

LANES = lanes.LANES
CHUNK = 64 * LANES  # pixels of one thread at a time
LARGEST = {4: 3.4e38, 8: 1.7e308}  # steepest slope, by bytes of the dtype


def _threads(function):
    """Compile for many threads; the name tells numba's disk cache of changes in the modules it calls, unseen by it."""
    text = "".join(Path(module.__file__).read_text() for module in (lanes, saddle, shifted))
    function.__qualname__ += "_" + hashlib.sha256(text.encode()).hexdigest()[:8]
    return numba.njit(cache=True, error_model="numpy", parallel=True)(function)


def _reference(prediction, data, variance, exact, nll, slope):
    for i, pixel in enumerate(zip(prediction, data, variance, strict=True)):
        nll[i], slope[i] = _reference_pixel(*pixel, exact)


def _reference_pixel(mu, d, v, exact):
    if np.isnan(d) or not v < np.inf:
        return 0.0, 0.0
    if mu < 0:
        return np.inf, _reference_pixel(0.0, d, v, exact)[1]
    if v == 0 or not exact:
        x, mean = max(d + v, 0.0), mu + v
        slope = 1.0 if x == 0 else 1 - x / mean if mean > 0 else -np.inf
        return -float(_log_poisson(np.array(x), mean)), max(slope, -LARGEST[8])
    # the largest term lies between μ and d, and is no wider than Poisson noise
    room = 12 * math.sqrt(max(mu, d, 1.0)) + 40
    k = np.arange(max(0.0, math.floor(min(mu, d) - room)), max(mu, d) + room)
    prior = _log_poisson(k, mu)
    total = scipy.special.logsumexp(prior - (d - k) ** 2 / (2 * v))
    shifted = scipy.special.logsumexp(prior - (d - 1 - k) ** 2 / (2 * v))
    ratio = math.exp(min(shifted - total, math.log(LARGEST[8])))
    return 0.5 * math.log(2 * math.pi * v) - total, 1 - ratio


def _log_poisson(x, mu):
    """log(μˣ e^−μ / Γ(x+1)); for large x by Stirling's series, as the three terms would cancel."""
    if mu == 0:
        return np.where(x == 0, 0.0, -np.inf)
    y = np.maximum(x, 16.0)
    u = (mu - y) / y
    series = (1 / 12 - (1 / 360 - (1 / 1260 - (1 / 1680 - 1 / 1188 / y**2) / y**2) / y**2) / y**2) / y
    large = -0.5 * np.log(2 * np.pi * y) - series - y * (u - np.log1p(u))
    return np.where(x < 16, x * np.log(mu) - mu - scipy.special.gammaln(x + 1), large)


def _cpu(prediction, data, variance, exact, nll, slope):
    (_exact if exact else _shifted)(prediction, data, variance, nll, slope)


@_threads
def _shifted(prediction, data, variance, nll, slope):
    single = prediction.itemsize == 4
    size = prediction.size
    for chunk in numba.prange(-(-size // CHUNK)):
        first, last = chunk * CHUNK, min((chunk + 1) * CHUNK, size)
        mu, d, v, value, gradient = (
            prediction[first:last],
            data[first:last],
            variance[first:last],
            nll[first:last],
            slope[first:last],
        )
        if shifted.pixels(mu, d, v, value, gradient):
            for i in range(last - first):
                if math.isnan(gradient[i]):
                    value[i], gradient[i] = _bounded(mu[i], d[i], v[i], False, single)


@_threads
def _exact(prediction, data, variance, nll, slope):
    single = prediction.itemsize == 4
    size = prediction.size
    for chunk in numba.prange(-(-size // CHUNK)):
        first, last = chunk * CHUNK, min((chunk + 1) * CHUNK, size)
        mu, d, v, value, gradient = (
            prediction[first:last],
            data[first:last],
            variance[first:last],
            nll[first:last],
            slope[first:last],
        )
        if saddle.pixels(mu, d, v, value, gradient):
            _sums(mu, d, v, value, gradient, single)


@numba.njit(cache=True, error_model="numpy")
def _sums(mu, d, v, value, gradient, single):
    """Value and gradient where the gradient is NaN so far, in float64 whatever the dtype: strips of dark pixels, then
    strips of others, then one by one."""
    tiny = 1e-9 if single else 1e-14  # only the stored precision is summed for
    w = np.empty(lanes.FIELDS * lanes.LANES)
    dark, other = np.empty(mu.size, np.int32), np.empty(mu.size, np.int32)
    darks = others = 0
    for i in range(mu.size):
        dark[darks] = i
        darks += math.isnan(gradient[i])
    left = darks
    darks = 0
    for n in range(left):  # in place: dark[n] is read before its place is written
        i = dark[n]
        m, x, s = np.float64(mu[i]), np.float64(d[i]), np.float64(v[i])
        plain = m > 1e-30 and m < 1e12 and abs(x) < 1e12 and s < 1e12 and s >= 5e-3
        few = plain and lanes.is_dark(m, x, s)
        if plain:
            dark[darks] = other[others] = i
            darks += few
            others += not few
        else:
            value[i], gradient[i] = _bounded(mu[i], d[i], v[i], True, single)
    for start in range(0, darks, LANES):
        some = dark[start : min(start + LANES, darks)]
        _gather(w, some, mu, d, v)
        lanes.dark(w, tiny)
        for j in range(some.size):
            i = some[j]
            if w[lanes.STATE + j] == lanes.FAILED:
                other[others] = i
                others += 1
            else:
                value[i], gradient[i] = w[lanes.NLL + j], w[lanes.SLOPE + j]
    for start in range(0, others, LANES):
        some = other[start : min(start + LANES, others)]
        _gather(w, some, mu, d, v)
        lanes.exact(w, tiny)
        for j in range(some.size):
            i = some[j]
            if w[lanes.STATE + j] == lanes.FAILED:
                value[i], gradient[i] = _bounded(mu[i], d[i], v[i], True, single)
            else:
                value[i], gradient[i] = w[lanes.NLL + j], max(w[lanes.SLOPE + j], -3.4e38 if single else -1.7e308)


@numba.njit(cache=True, error_model="numpy")
def _gather(w, some, mu, d, v):
    """Pixels `some` into the lanes; the last of them into those that are left."""
    for j in range(LANES):
        i = some[min(j, some.size - 1)]
        w[lanes.MU + j], w[lanes.D + j], w[lanes.V + j] = mu[i], d[i], v[i]


@numba.njit(cache=True, error_model="numpy")
def _bounded(mu, d, v, exact, single):
    """Any pixel in float64, its slope no steeper than the dtype holds."""
    value, gradient = _pixel(np.float64(mu), np.float64(d), np.float64(v), exact, single)
    return value, max(gradient, -3.4e38 if single else -1.7e308) if gradient < 1 else gradient


@numba.njit(cache=True, error_model="numpy")
def _pixel(mu, d, v, exact, single):
    """Any pixel: those that the lanes leave over."""
    if math.isnan(d) or not v < math.inf:
        return 0.0, 0.0
    valid = mu if not mu < 0 else 0.0
    if exact and v > 0:
        value, gradient = _marginal(valid, d, v, 1e-9 if single else 1e-18)
    else:
        value, gradient = _continuous(valid + v, max(d + v, 0.0))
    return math.inf if mu < 0 else value, gradient


@numba.njit(cache=True, error_model="numpy")
def _continuous(mu, x):
    if x == 0:
        return mu, 1.0
    return -_cpu_log_poisson(x, mu), 1 - x / mu


@numba.njit(cache=True, error_model="numpy")
def _marginal(mu, d, v, tiny):
    m = _mode(mu, d, v)
    delta = -math.expm1(-1 / v)
    # sums over the terms above the mode, in units of the first of them, t(m+1) = first t(m)
    log_odds = (d - m - 0.5) / v
    first = math.exp(_log_ratio(mu, m + 1) + log_odds)
    t, ratio, j = 1.0, first, 1.0
    up = up_moment = 0.0
    while t > tiny:
        up += t
        up_moment += j * t
        ratio -= ratio * ((1 + delta * (m + j)) / (m + j + 1))  # to 0 exactly where delta is 1
        t *= ratio
        j += 1
    # and below, in units of t(m)
    down = down_moment = 0.0
    if m > 0:
        t = ratio = math.exp(-_log_ratio(mu, m) - (d - m + 0.5) / v)
        j = 1.0
        while t > tiny:
            down += t
            down_moment += j * t
            ratio -= ratio * ((1 + delta * (m - j)) / (m - j + 1))
            t *= ratio
            j += 1
    total = 1 + first * up + down
    nll = 0.5 * math.log(2 * math.pi * v) + (d - m) ** 2 / (2 * v) - math.log(total)
    nll -= _cpu_log_poisson(m, mu)
    if m > 0:
        return nll, ((mu - m) - (first * up_moment - down_moment) / total) / mu
    return nll, 1 - math.exp(log_odds) * up_moment / total  # t(1) / μ, finite at μ = 0


@numba.njit(cache=True, error_model="numpy")
def _mode(mu, d, v):
    """The k of the largest term, by Newton's method: term k+1 equals term k where log(μ/(k+1)) + (d−k−½)/v = 0."""
    k = mu * max(d + v, 0.0) / (mu + v)
    for _ in range(30):
        step = (math.log(mu / (k + 1)) + (d - k - 0.5) / v) * (k + 1) * v / (k + 1 + v)
        new = max(k + step, 0.0)
        near = abs(new - k) < 0.5
        k = new
        if near:
            break
    return np.ceil(k)


@numba.njit(cache=True, error_model="numpy")
def _log_ratio(mu, k):
    """log(μ/k), to the last digit where μ and k are close."""
    return math.log1p((mu - k) / k) if 0.5 * k < mu < 2 * k else math.log(mu / k)


@numba.njit(cache=True, error_model="numpy")
def _cpu_log_poisson(x, mu):
    if x < 16:
        return (x * math.log(mu) if x > 0 else 0.0) - mu - math.lgamma(x + 1)
    y = 1 / (x * x)
    series = (1 / 12 - (1 / 360 - (1 / 1260 - (1 / 1680 - y / 1188) * y) * y) * y) / x
    return -0.5 * math.log(2 * math.pi * x) - series - _deviance(x, mu)


@numba.njit(cache=True, error_model="numpy")
def _deviance(x, mu):
    """x log(x/μ) + μ − x, by a series in u = (x−μ)/(x+μ) where the terms cancel (Loader 2000)."""
    u = (x - mu) / (x + mu)
    if abs(u) > 0.1:
        return x * math.log(x / mu) + mu - x
    s = 0.0
    for j in range(8, 0, -1):
        s = u * u * (s + 1 / (2 * j + 1))
    return u * (x - mu + 2 * x * s)


def _sample(rng, n, exact):
    """Data drawn from the model over all magnitudes, and the edges: dark, masked, negative, noise-free."""
    mu = 10 ** rng.uniform(-2, 6, n)
    v = rng.choice([0.0, 0.01, 1.0, 2.5, 30.0, 2500.0], n)
    d = rng.poisson(mu) + np.sqrt(v) * rng.standard_normal(n)
    edges = np.array(
        [(0, 0.3, 1), (0, -3, 2), (0, 0, 0), (3, np.nan, 1), (3, 2, np.inf), (-1, 1, 4), (60, -20, 9), (1, 20, 25)]
    )
    use = min(n, len(edges))
    mu[:use], d[:use], v[:use] = edges[:use].T
    return [mu, d, v, exact]


_kernel = kernel.register(
    "poisson_gaussian",
    "prediction[n] data[n] variance[n] exact:int -> nll[n] slope[n]",
    _reference,
    cpu=_cpu,
    cuda=kernel.Cuda("poisson_gaussian.cu", lambda dims: -(-dims["n"] // 128)),
    sample=_sample,
    cases=tuple({"n": n, "exact": exact} for exact in (1, 0) for n in (0, 1, 301)),
    bench={"n": 1_000_000, "exact": 0},
)


@op
def _poisson_gaussian(prediction, data, variance, *, exact):
    nll, slope = _value_and_slope(prediction, data, variance, exact)
    return nll, (slope, prediction, data, variance, exact)


@_poisson_gaussian.vjp
def _(saved, g):
    slope, *inputs, exact = saved
    return (
        g * slope,
        lambda: g * _to_data(slope, *inputs, exact)[0],
        lambda: g * _to_data(slope, *inputs, exact)[1],
    )


def _to_data(slope: Array, prediction: Array, data: Array, variance: Any, exact: bool) -> tuple[Array, Array]:
    """Derivatives of the nll to data and variance, for those who train gain and offset.

    Exact: with the posterior mean ⟨k⟩ = μ (1 − slope), ∂/∂d = (d − ⟨k⟩)/v and ∂/∂v = 1/(2v) − ⟨(d−k)²⟩/(2v²), where
    ⟨k(k−1)⟩ = ⟨k⟩ at d times ⟨k⟩ at d − 1.  The difference of squares costs digits: its error is some ε μ²/v.
    """
    mu, d, v = (a.astype(np.float64) for a in arguments("poisson_gaussian", prediction, data, variance))
    xp = backend.module(mu)
    digamma = backend.scipy_module(xp, "special").digamma
    x, mean = xp.maximum(d + v, 0), xp.maximum(mu + v, np.finfo(np.float64).tiny)
    to_data = xp.where(d + v > 0, digamma(x + 1) - xp.log(mean), 0)
    to_variance = 1 - x / mean + to_data
    if exact:
        noisy = (v > 0) & (v < np.inf)
        safe = xp.where(noisy, v, 1)
        first = mu * (1 - slope)
        before = mu * (1 - _value_and_slope(mu, d - 1, variance, True)[1])
        spread = d * d - 2 * d * first + first * (1 + before)
        to_data = xp.where(noisy, (d - first) / safe, to_data)
        to_variance = xp.where(noisy, 0.5 / safe - spread / (2 * safe**2), to_variance)
    masked = xp.isnan(d) | ~(v < np.inf)
    return tuple(xp.where(masked, 0, to).astype(slope.dtype) for to in (to_data, to_variance))


def poisson_gaussian(prediction: Any, data: Array, variance: Any = 0.0, exact: bool = True) -> Any:
    """Negative log-likelihood of every pixel, in nats: the formulas at the head of this module.

    `prediction` (...) expected photoelectrons, array or Tensor; `data` (...) measured photoelectrons, same shape; NaN
    masks a pixel; `variance` read-noise variance in electrons², broadcast to `data`: scalar, (h, w) map, (n, h, w).
    `exact=False` takes the shifted Poisson form.  Differentiable in all three; for gain and offset see `loss.Counts`.

    Raises `ValueError` for shapes that do not fit and for a negative variance, `TypeError` for mixed backends.

    >>> poisson_gaussian(np.array([4.0]), np.array([3.2]), variance=1.5).round(4)
    array([1.78])
    """
    return _poisson_gaussian(prediction, data, variance, exact=exact)


def slope(prediction: Array, data: Array, variance: Any = 0.0, exact: bool = True) -> Array:
    """∂nll/∂prediction of every pixel, on plain arrays; arguments as for `poisson_gaussian`.

    >>> slope(np.array([4.0]), np.array([4.0]))
    array([0.])
    """
    return _value_and_slope(prediction, data, variance, exact)[1]


def deviance(prediction: Array, data: Array, variance: Any = 0.0) -> Array:
    """Deviance of every pixel, 2 [x log(x/(μ+v)) − (d − μ)] with x = max(d+v, 0): about χ² with one degree of freedom.

    In the shifted Poisson form, which has a finite best likelihood; arguments as for `poisson_gaussian`.  Where d + v
    is negative, x stands for d + v in both terms, so the deviance is never negative.  NaN pixels give 0.

    >>> deviance(np.array([4.0, 4.0]), np.array([4.0, 8.0])).round(3)
    array([0.   , 3.09])
    """
    mu, d, v = arguments("poisson_gaussian", prediction, data, variance)
    xp = backend.module(mu)
    x, mean = xp.maximum(d + v, 0), mu + v
    with np.errstate(divide="ignore", invalid="ignore"):
        log = xp.where(x > 0, x * xp.log(xp.where(x > 0, x, 1) / mean), 0)
    value = xp.where(mu < 0, np.inf, 2 * (log - (x - mean)))
    return xp.where(xp.isnan(d) | ~(v < np.inf), 0, value).astype(mu.dtype)


@dataclass(frozen=True)
class PoissonGaussian:
    """`poisson_gaussian` as the loss part of a model: `loss(prediction, data, variance)`.

    >>> PoissonGaussian()(np.array([4.0]), np.array([4.0])).round(4)
    array([1.6329])
    """

    exact: bool = True

    def configuration(self) -> dict[str, Any]:
        """What makes this part again, JSON-ready."""
        return asdict(self)

    def __call__(self, prediction: Any, data: Array, variance: Any = 0.0) -> Any:
        """Negative log-likelihood of every pixel."""
        return poisson_gaussian(prediction, data, variance, self.exact)

    def value_and_slope(self, prediction: Array, data: Array, variance: Any = 0.0) -> tuple[Array, Array]:
        """Negative log-likelihood of every pixel and its derivative, of plain arrays, in one pass."""
        return _value_and_slope(prediction, data, variance, self.exact)


def _value_and_slope(prediction: Array, data: Array, variance: Any, exact: bool) -> tuple[Array, Array]:
    return pixelwise(_kernel, "poisson_gaussian", prediction, data, variance, int(exact))


def pixelwise(
    run: kernel.Kernel, name: str, prediction: Array, data: Array, variance: Any, *settings: int
) -> tuple[Array, Array]:
    """Value and slope of every pixel by the kernel `run` of a loss, or an error of the function `name`."""
    mu, d, v = arguments(name, prediction, data, variance)
    xp = backend.module(mu)
    out = xp.empty(mu.size, mu.dtype), xp.empty(mu.size, mu.dtype)
    run(mu.ravel(), d.ravel(), v.ravel(), *settings, out=out)
    return out[0].reshape(mu.shape), out[1].reshape(mu.shape)


def arguments(name: str, prediction: Array, data: Array, variance: Any) -> tuple[Array, Array, Array]:
    """The three as arrays of one shape and of the prediction's dtype, or an error of the function `name`."""
    xp = backend.module(prediction, data, variance, name=name)
    mu = backend.asarray(prediction)
    d, v = xp.asarray(data, mu.dtype), xp.asarray(variance, mu.dtype)
    if d.shape != mu.shape:
        raise ValueError(f"{name} got a prediction of shape {mu.shape} and data of shape {d.shape}; they must be equal")
    if bool((v < 0).any()):
        raise ValueError(f"{name} got a variance down to {float(v.min()):g}; it is read_noise², 0 or more")
    try:
        return mu, d, xp.broadcast_to(v, mu.shape)
    except ValueError:
        raise ValueError(
            f"{name} got a variance of shape {v.shape} for images of shape {mu.shape}; expected a scalar, a "
            "map (h, w) or one value for each pixel"
        ) from None
