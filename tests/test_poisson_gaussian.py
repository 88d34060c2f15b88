"""The Poisson-Gaussian likelihood against sums in 50 digits, scipy.stats, and the identities a likelihood obeys."""

import sys
from decimal import Decimal, localcontext
from math import factorial

import numpy as np
import pytest
from scipy import special, stats

from smlmcore import loss
from smlmcore.autograd import Tensor, check_gradient

EPS = np.finfo(float).eps
module = sys.modules["smlmcore.loss.poisson_gaussian"]  # the name in the package is the function


def log_factorial(k):
    if k < 1000:
        return Decimal(factorial(k)).ln()
    k = Decimal(k)  # Stirling; the next term is below 1e-24
    tau = Decimal(2) * Decimal("3.14159265358979323846264338327950288419716939937510")
    return k * k.ln() - k + (tau * k).ln() / 2 + 1 / (12 * k) - 1 / (360 * k**3) + 1 / (1260 * k**5)


def exact(mu, d, v):
    """nll and slope by the definition, summed in 50 digits with exponents without bounds."""
    with localcontext() as context:
        context.prec, context.Emin, context.Emax = 50, -(10**9), 10**9
        pi = Decimal("3.14159265358979323846264338327950288419716939937510")
        mu, d, v = Decimal(mu), Decimal(d), Decimal(v)
        norm = (2 * pi * v).ln() / 2
        if mu == 0:
            return float(norm + d * d / (2 * v)), float(1 - ((d - Decimal("0.5")) / v).exp())
        start = int(mu * max(d + v, Decimal(0)) / (mu + v))
        log_start = start * mu.ln() - mu - log_factorial(start) - (d - start) ** 2 / (2 * v)
        total, moment, small = Decimal(1), Decimal(start), Decimal("1e-40")
        factor = (-1 / v).exp()
        term, k, step = Decimal(1), start, ((2 * (d - start) - 1) / (2 * v)).exp()
        while True:
            ratio = mu / (k + 1) * step
            k, term, step = k + 1, term * ratio, step * factor
            total, moment = total + term, moment + k * term
            if ratio < Decimal("0.999") and term < small * total:
                break
        term, k, step = Decimal(1), start, (-(2 * (d - start) + 1) / (2 * v)).exp()
        while k > 0:
            ratio = k / mu * step
            k, term, step = k - 1, term * ratio, step * factor
            total, moment = total + term, moment + k * term
            if ratio < Decimal("0.999") and term < small * total:
                break
        return float(norm - log_start - total.ln()), float(1 - moment / total / mu)


def grid():
    for mu in (0.0, 1e-3, 0.5, 3.25, 40.0, 1e3, 1e6):
        for v in (0.01, 0.25, 1.0, 9.0, 2500.0):
            for z in (-4, -0.3, 4):
                yield mu, mu + z * np.sqrt(mu + v), v
    # bright or wide: the series and its borders, λ + v = 16 and v = 1.8
    wide = ((64.0, 2500.0), (80.0, 400.0), (150.0, 100.0), (700.0, 64.0), (2e4, 900.0), (1e5, 25.0))
    for mu, v in (*wide, (13.0, 4.0), (3.0, 14.0), (14.5, 1.8), (60.0, 1.85), (1e4, 2.0), (0.01, 17.0)):
        for z in (-6, 0.5, 5, 30):
            yield mu, mu + z * np.sqrt(mu + v), v
    yield from [(1e6, -10.5, 1.0), (1e6, -500.0, 2500.0), (30.0, 300.0, 4.0), (300.0, 0.0, 0.01), (1e-9, 6.2, 0.5)]


@pytest.fixture(scope="module")
def truth():
    pixels = np.array(list(grid()))
    return (*pixels.T, *np.array([exact(*p) for p in pixels]).T)


def conditioning(f, mu, d, v):
    """Change of f per relative change of its inputs: no float64 code can do better than EPS times it."""
    h = 1e-6
    return sum(abs(f(*(a * (1 + h * (i == j)) for j, a in enumerate((mu, d, v)))) - f(mu, d, v)) / h for i in range(3))


@pytest.mark.parametrize(("f", "column"), [(loss.poisson_gaussian, 3), (loss.slope, 4)])
def test_value_and_gradient_in_float64(truth, f, column):
    """To 1e-10, and to what the rounding of the inputs allows, where a value or a slope goes through zero."""
    mu, d, v = truth[:3]
    expected = truth[column]
    room = 1e-10 * np.abs(expected) + 16 * EPS * conditioning(f, mu, d, v)
    np.testing.assert_array_less(np.abs(f(mu, d, v) - expected), room)


def test_lanes_agree_with_the_scalar_code(rng):
    """Pixels of all kinds side by side: each is the same as alone, by the sum of plain terms."""
    n = 3000
    mu, v = 10 ** rng.uniform(-3, 6, n), 10 ** rng.uniform(-2, 3.4, n)
    d = rng.poisson(mu) + np.sqrt(v) * rng.standard_normal(n)
    for exact in (True, False):
        together = loss.PoissonGaussian(exact).value_and_slope(mu, d, v)
        alone = np.array([module._pixel(*p, exact, False) for p in zip(mu, d, v, strict=True)]).T
        for got, one in zip(together, alone, strict=True):
            np.testing.assert_allclose(got, one, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("f", [loss.poisson_gaussian, loss.slope])
def test_float32(truth, f):
    mu, d, v = (a.astype(np.float32) for a in truth[:3])
    expected = f(*(a.astype(float) for a in (mu, d, v)))
    got = f(mu, d, v)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)  # float64 inside, rounded once; the sum stops at 1e-9


def test_scipy_stats():
    """Sum of pmf times pdf as written in the definition."""
    for mu, d, v in [(0.2, -1.3, 2.0), (5.0, 3.7, 0.5), (80.0, 99.5, 16.0), (800.0, 700.2, 900.0)]:
        k = np.arange(2000)
        likelihood = [(stats.poisson.pmf(k, mu) * stats.norm.pdf(x - k, scale=v**0.5)).sum() for x in (d, d - 1)]
        room = 1e-12 * 2000  # gammaln of numbers up to 2000 rounds at 1e-12 in the exponent
        np.testing.assert_allclose(loss.poisson_gaussian(mu, d, v), -np.log(likelihood[0]), atol=room)
        np.testing.assert_allclose(loss.slope(mu, d, v), 1 - likelihood[1] / likelihood[0], atol=room)


@pytest.mark.parametrize(("mu", "v"), [(0.0, 1.0), (0.3, 0.5), (7.0, 2.0), (50.0, 100.0)])
def test_probability_is_one_and_the_mean_score_zero(mu, v):
    width = np.sqrt(v + mu)
    d = np.arange(-12 * width - 5, mu + 12 * width + 20, np.sqrt(v) / 4)  # trapezoids converge exponentially
    p = np.exp(-loss.poisson_gaussian(np.full(d.shape, mu), d, v)) * np.sqrt(v) / 4
    score = loss.slope(np.full(d.shape, mu), d, v)
    np.testing.assert_allclose(p.sum(), 1, atol=1e-12)
    np.testing.assert_allclose((p * score).sum(), 0, atol=1e-11)
    if mu:  # information: less than of Poisson noise alone, more than of a Gaussian of the same variance
        assert 1 / (mu + v) < (p * score**2).sum() < 1 / mu


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_without_read_noise_it_is_poisson(dtype, rng):
    mu = rng.uniform(0.1, 300, 200).astype(dtype)
    d = rng.poisson(mu)
    room = 4 * EPS * (special.xlogy(d, mu) + mu + special.gammaln(d + 1)).max()  # rounding of scipy's three terms
    for exact in (True, False):
        nll, expected = loss.poisson_gaussian(mu, d, exact=exact), -stats.poisson.logpmf(d, mu.astype(float))
        np.testing.assert_allclose(nll, expected, rtol=np.finfo(dtype).eps, atol=room)
        np.testing.assert_allclose(loss.slope(mu, d, exact=exact), 1 - d / mu.astype(float), rtol=1e-5, atol=1e-7)
    # and the limit of little read noise, up to the density of the normal peak on an integer
    np.testing.assert_allclose(
        loss.poisson_gaussian(mu.astype(float), d, 1e-6),
        -stats.poisson.logpmf(d, mu.astype(float)) + 0.5 * np.log(2 * np.pi * 1e-6),
        atol=room,
    )


def test_shifted_form(rng):
    mu, v = rng.uniform(0.1, 1e4, 300), rng.uniform(0, 50, 300)
    d = rng.poisson(mu) + np.sqrt(v) * rng.standard_normal(300)
    x = np.maximum(d + v, 0)
    expected = mu + v - special.xlogy(x, mu + v) + special.gammaln(x + 1)
    room = EPS * (mu + v) * np.log(mu + v + 3)  # of the three large terms of the oracle
    np.testing.assert_array_less(np.abs(loss.poisson_gaussian(mu, d, v, exact=False) - expected), 8 * room + 1e-14)
    np.testing.assert_allclose(loss.slope(mu, d, v, exact=False), 1 - x / (mu + v), atol=4 * EPS * 2)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("v", [0.0, 0.3, 4.0, 900.0])
def test_gradient(exact, v, rng):
    mu = rng.uniform(0.5, 60, (2, 3, 4))
    d = rng.poisson(mu) + np.sqrt(v) * rng.standard_normal(mu.shape)
    d[0, 1, 2] = np.nan
    check_gradient(lambda m: loss.poisson_gaussian(m, d.tolist(), v, exact=exact), mu)


def test_masked_pixels_have_no_gradient():
    mu, d = Tensor(np.array([3.0, 5.0])), Tensor(np.array([1.0, np.nan]))
    value = loss.poisson_gaussian(mu, d, 2.0)
    value.sum().backward()
    assert d.grad[1] == 0
    np.testing.assert_array_equal(mu.grad, loss.slope(mu.data, d.data, 2.0))
    assert mu.grad[1] == 0
    assert value.data[1] == 0


def test_deviance(rng):
    mu, v = np.full(200_000, 100.0), 9.0
    d = rng.poisson(mu) + 3 * rng.standard_normal(mu.size)
    deviance = loss.deviance(mu, d, v)
    assert (deviance >= 0).all()
    # twice the log-likelihood ratio of the shifted form, whose best prediction is d itself
    ratio = loss.poisson_gaussian(mu, d, v, exact=False) - loss.poisson_gaussian(d, d, v, exact=False)
    np.testing.assert_allclose(deviance, 2 * ratio, atol=1e-11)
    # χ² with one degree of freedom: mean 1 up to O(1/μ), standard error of the mean √(2/n)
    assert abs(deviance.mean() - 1) < 1 / 100 + 5 * np.sqrt(2 / mu.size)
    np.testing.assert_array_equal(loss.deviance([4.0, -1.0, 2.0], [np.nan, 2.0, -30.0], 1.0), [0, np.inf, 6])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("v", [0.0, 1.0])
def test_edges(dtype, exact, v):
    mu = np.array([5, 5, 0, 0, -2, np.nan, 1e-30], dtype)
    d = np.array([np.nan, 3, 0, 80, 3, 3, 200], dtype)
    variance = np.full(7, v, dtype)
    variance[1] = np.inf
    nll, slope = loss.poisson_gaussian(mu, d, variance, exact), loss.slope(mu, d, variance, exact)
    assert nll.dtype == slope.dtype == dtype
    np.testing.assert_array_equal(nll[:2], 0)
    np.testing.assert_array_equal(slope[:2], 0)
    assert np.isfinite(slope[[2, 3, 4, 6]]).all()
    assert (slope[[3, 4, 6]] < 0).all()
    assert nll[4] == np.inf
    assert np.isnan([nll[5], slope[5]]).all()
    assert np.isfinite(nll[3]) or v == 0


def test_the_slope_without_light_is_that_of_the_formula():
    np.testing.assert_allclose(loss.slope(np.zeros(2), np.array([0.5, 3.0]), 2.0), [0, 1 - np.exp(1.25)], rtol=4 * EPS)


def test_shapes_and_dtypes(rng):
    d = rng.poisson(9.0, (3, 4, 5)).astype(np.uint16)
    mu, v = np.full((3, 4, 5), 9.0, np.float32), rng.uniform(0.5, 2, (4, 5))
    whole = loss.poisson_gaussian(mu, d, v)
    assert whole.shape == (3, 4, 5)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(loss.poisson_gaussian(mu, d, np.broadcast_to(v, mu.shape)), whole)
    np.testing.assert_array_equal(loss.poisson_gaussian(mu[1], d[1], v), whole[1])
    np.testing.assert_array_equal(
        loss.poisson_gaussian(mu[:, ::2].T, d[:, ::2].T, v[::2].T[..., None]), whole[:, ::2].T
    )
    assert loss.poisson_gaussian(mu[:0], d[:0], v).shape == (0, 4, 5)
    assert loss.poisson_gaussian(np.arange(1, 4), [1, 2, 3]).dtype == np.float64
    value, slope = loss.PoissonGaussian(exact=False).value_and_slope(mu, d, v)
    np.testing.assert_array_equal(value, loss.PoissonGaussian(exact=False)(mu, d, v))
    np.testing.assert_array_equal(slope, loss.slope(mu, d, v, exact=False))
    assert loss.PoissonGaussian(**loss.PoissonGaussian(False).configuration()) == loss.PoissonGaussian(exact=False)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((np.ones((2, 3)), np.ones((3, 2))), r"a prediction of shape \(2, 3\) and data of shape \(3, 2\)"),
        ((np.ones((2, 3)), np.ones((2, 3)), np.ones(2)), r"a variance of shape \(2,\) for images of shape \(2, 3\)"),
        ((np.ones(2), np.ones(2), [0.5, -1]), "a variance down to -1"),
    ],
)
@pytest.mark.parametrize("f", [loss.poisson_gaussian, loss.slope, loss.deviance])
def test_errors(f, arguments, text):
    with pytest.raises(ValueError, match=text):
        f(*arguments)


def test_the_reference_itself(truth):
    mu, d, v, nll, slope = truth
    got = np.array([module._reference_pixel(*p, True) for p in zip(mu, d, v, strict=True)]).T
    # its exponents are of the size of the nll before the sum, and rounded so
    np.testing.assert_allclose(got[0], nll, rtol=1e-12)
    np.testing.assert_array_less(np.abs(got[1] - slope), 1e-12 * (1 + np.abs(slope)) * (1 + np.abs(nll)))
