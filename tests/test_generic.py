"""The compiled fitter for any PSF, against the reference that it follows and against truth."""

import math

import numba
import numpy as np
import pytest
from scipy.special import gammaln

from smlmcore import fit, kernel, psf, testing
from smlmcore.fit import generic, numbers
from smlmcore.fit.problem import limits
from smlmcore.fit.refine import lockstep

MODELS = [psf.Gaussian2D(), psf.Gaussian2D(sigma=1.3)]


def run(model, spots, initial, variance=None, weights=None, tolerance=1e-3, dtype=np.float64, bounds=None, fixed=None):
    """The result of the generic fitter, and its limits."""
    n, p = len(spots), len(model.names)
    given = limits(model, spots.shape[1:], bounds, fixed)
    out = (
        *(np.empty((n, p), dtype) for _ in range(2)),
        np.empty(n, np.int8),
        np.empty(n, np.int32),
        *(np.empty(n, dtype) for _ in range(2)),
    )
    start = np.where(given.fixed, given.value, initial)
    lsq = weights is not None
    maps = [v if v is None else np.asarray(v, dtype) for v in (variance, weights)]
    generic.fit(model, spots.astype(dtype), *maps, start, given, 30, tolerance, lsq, out)
    return fit.Result(model.names, *out), given


def images(model, n=300, shape=(9, 11), variance=0.0, seed=0, **parameters):
    rng = np.random.default_rng(seed)
    spots, truth = fit.simulate_spots(model, n, shape, rng, variance, **parameters)
    return spots, truth, truth * rng.uniform(0.9, 1.1, truth.shape)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["plain", "variance", "least squares", "weighted", "bounds", "fixed"])
@pytest.mark.parametrize("model", MODELS, ids=["sigma free", "sigma fixed"])
def test_agrees_with_the_reference(model, kind, dtype):
    rng = np.random.default_rng(3)
    variance = rng.uniform(0.5, 20, (9, 11)) if kind in ("variance", "weighted") else None
    weights = {"least squares": np.ones((9, 11)), "weighted": 1 / (20 + rng.uniform(0, 20, (300, 9, 11)))}.get(kind)
    bounds = {"photons": (1950, 2050), "x": (4.8, 5.2)} if kind == "bounds" else None
    fixed = {"background": 9.0, "y": 4.0} if kind == "fixed" else None
    spots, _, start = images(model, variance=0.0 if variance is None else variance)
    got, given = run(model, spots, start, variance, weights, dtype=dtype, bounds=bounds, fixed=fixed)
    start = np.where(given.fixed, given.value, start)
    rounded = spots.astype(float)
    want = lockstep(model, rounded, 0.0 if variance is None else variance, start, given, weights=weights)
    np.testing.assert_array_equal(got.status, want.status)
    assert (got.status == fit.Status.at_bound).any() == (kind == "bounds")
    np.testing.assert_array_equal(np.isnan(got.errors), np.isnan(want.errors))
    scale = np.where(np.isnan(want.errors), 1e-4 * np.abs(want.parameters), want.errors)  # held: rounding alone
    assert (np.abs(got.parameters - want.parameters) <= 1e-3 * scale).all()
    np.testing.assert_allclose(got.errors, want.errors, rtol=1e-3)
    # least squares ends off the likelihood's maximum, where 1e-3 standard errors may count up to 1e-3 nats
    off, rounding = 1e-3 if weights is not None else 0, 1e-6 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(got.log_likelihood, want.log_likelihood, rtol=rounding, atol=off)
    np.testing.assert_allclose(got.chi2, want.chi2, rtol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (psf.EllipticGaussian2D(), {"sigma_x": 1.1, "sigma_y": 1.5}),
        (psf.EllipticGaussian2D(rotated=True), {"sigma_x": 1.0, "sigma_y": 1.7, "angle": 0.4}),
        (psf.AstigmaticGaussian(1.2, gamma=0.25, depth=0.4), {"z": (-0.4, 0.4)}),
    ],
    ids=["elliptic", "rotated", "astigmatic"],
)
def test_knows_of_a_psf_only_its_compiled_function(model, parameters, dtype):
    n = 1000
    spots, truth, start = images(model, n=n, **parameters)
    got, given = run(model, spots, start, dtype=dtype)
    want = lockstep(model, spots.astype(float), 0.0, start, given)
    both = (got.status == fit.Status.converged) & (want.status == fit.Status.converged)
    assert both.mean() > 0.97
    away = np.abs(got.parameters - want.parameters)[both] / want.errors[both]
    # where the start lies between two maxima rounding may decide for either
    assert (away < 1e-3).all(1).mean() > 0.995
    error = (got.parameters - truth)[both] / model.crlb(truth, (9, 11))[both]
    assert np.median(np.abs(error), 0).max() < 0.6745 * (1 + 5 * 1.17 / math.sqrt(n))  # of a normal distribution


def test_log_and_log_factorial_are_exact_to_double_precision():
    x = np.concatenate([np.geomspace(1e-300, 1e300, 999), 1 + np.linspace(-0.4, 0.6, 999)])
    np.testing.assert_allclose([numbers.log(v) for v in x], np.log(x), rtol=1e-15, atol=3e-16)
    x = np.concatenate([[0.0], np.geomspace(1e-6, 1e6, 999)])
    np.testing.assert_allclose([numbers.log_factorial(v) for v in x], gammaln(x + 1), rtol=2e-14, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_do_not_depend_on_threads_order_or_neighbours(dtype):
    spots, _, start = images(psf.Gaussian2D(), n=100)
    spots[7] = 1e9
    whole = run(psf.Gaussian2D(), spots, start, dtype=dtype)[0]
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        single = run(psf.Gaussian2D(), spots, start, dtype=dtype)[0]
    finally:
        numba.set_num_threads(before)
    order = np.random.default_rng(0).permutation(100)
    shuffled = run(psf.Gaussian2D(), spots[order], start[order], dtype=dtype)[0]
    few = run(psf.Gaussian2D(), spots[40:73], start[40:73], dtype=dtype)[0]
    for name in ("parameters", "errors", "status", "iterations", "log_likelihood", "chi2"):
        a = getattr(whole, name)
        np.testing.assert_array_equal(a, getattr(single, name))
        np.testing.assert_array_equal(a[order], getattr(shuffled, name))
        np.testing.assert_array_equal(a[40:73], getattr(few, name))


def test_masked_pixels_carry_no_information():
    model = psf.Gaussian2D()
    spots, _, start = images(model, n=20)
    hole = spots.copy()
    hole[:, 2, 3] = np.nan
    got = run(model, hole, start)[0]
    assert (got.status == fit.Status.converged).all()
    infinite = np.zeros((9, 11))
    infinite[2, 3] = np.inf
    hot = spots.copy()
    hot[:, 2, 3] = 60_000
    other = run(model, hot, start, variance=infinite)[0]
    np.testing.assert_array_equal(got.parameters, other.parameters)
    assert (got.errors >= run(model, spots, start)[0].errors * 0.98).all()


def test_errors_of_least_squares_are_those_it_makes():
    model, n = psf.Gaussian2D(), 6000
    spots, truth, start = images(model, n=n)
    for weights in (np.ones((9, 11)), 1 / (10 + 50 * np.exp(-((np.arange(11) - 5.0) ** 2))) * np.ones((9, 1))):
        result = run(model, spots, start, weights=weights)[0]
        z = (result.parameters - truth) / result.errors
        assert (result.status == 0).mean() > 0.999
        # 5 standard errors of a variance over n samples
        np.testing.assert_allclose((z[result.status == 0] ** 2).mean(0), 1, atol=5 * math.sqrt(2 / n) + 0.03)


def test_a_fit_does_not_end_where_it_is_not_finite():
    model = psf.Gaussian2D()
    spots, _, start = images(model, n=6)
    spots[0] = np.nan
    spots[1, 0, 0] = np.inf
    spots[2] = 3e38
    spots[3] = -1e30
    start[4, 1] = np.nan
    result = run(model, spots, start, dtype=np.float32)[0]
    assert (result.status[[0, 1, 4]] == fit.Status.invalid_input).all()
    assert (result.status[[2, 3]] != fit.Status.converged).all()
    assert result.status[5] == fit.Status.converged
    assert np.isnan(result.parameters[[0, 1, 4]]).all()


def test_a_psf_is_compiled_once_and_told_apart_by_its_code():
    one = generic.callback(psf.Gaussian2D.numba_partials, np.dtype("f4"))
    assert generic.callback(psf.Gaussian2D(1.0).numba_partials, np.dtype("f4")) == one
    assert generic.callback(psf.Gaussian2D.numba_partials, np.dtype("f8")) != one

    def make(number):
        return numba.njit(lambda theta, constants, value, partials, scratch: value.fill(number))

    names = {generic.digest(make(number)) for number in (1.0, 1.0, 2.0)}
    assert len(names) == 2


def test_a_kernel_that_iterates_states_its_own_tolerance():
    def reference(x, y):
        y[...] = x

    def cpu(x, y):
        y[...] = x + 1e-4

    def make(limit):
        return kernel.Kernel(
            "near", "x[n] -> y[n]", reference, cpu=cpu, sample=lambda rng, n: [rng.uniform(1, 2, n)],
            cases=({"n": 5},), tolerance=lambda expected, dtype: [limit * np.ones_like(expected[0])],
        )  # fmt: skip

    testing.check_kernel(make(2e-4), "cpu", "float64")
    with pytest.raises(AssertionError, match="rounding explains 5e-05"):
        testing.check_kernel(make(5e-5), "cpu", "float64")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_parity_test_of_the_cuda_body_sees_a_small_fault(dtype, monkeypatch):
    right = kernel.source
    line = "background + photons * b.value * a.value"
    assert right("fit.cu").count(line) == 1
    monkeypatch.setattr(kernel, "source", lambda file: right(file).replace(line, f"{line} * REAL(1.001)"))
    with pytest.raises(AssertionError, match=r"fit_gaussian2d .*parameters"):
        testing.check_kernel("fit_gaussian2d", "cuda-on-host", dtype)
