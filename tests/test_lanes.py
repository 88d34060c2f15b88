"""The Gaussian in SIMD lanes, against the reference fit, scipy and the bound."""

import os
import subprocess
import sys

import numba
import numpy as np
import pytest
from scipy.special import erf
from scipy.stats import poisson

from smlmcore import fit, psf
from smlmcore.fit import lanes
from smlmcore.fit.result import Status

MODEL = psf.Gaussian2D()
FREE = [False] * 5


def spots(n, shape=(7, 7), photons=2000.0, background=10.0, sigma=1.3, off=0.5, seed=0, variance=None):
    h, w = shape
    rng = np.random.default_rng(seed)
    truth = np.empty((n, 5))
    truth[:, 0] = (w - 1) / 2 + rng.uniform(-off, off, n)
    truth[:, 1] = (h - 1) / 2 + rng.uniform(-off, off, n)
    truth[:, 2:] = photons, background, sigma
    images = rng.poisson(MODEL.partials(truth, shape)[0]).astype(float)
    if variance is not None:
        images += rng.normal(0, 1, images.shape) * np.sqrt(variance)
    return images, truth


def bounds(shape, **changed):
    own = {name: b[:2] for name, b in MODEL.bounds(shape).items()} | changed
    return np.array([own[name] for name in MODEL.names]).T


def run(
    images, variance=None, initial=None, sigma=None, fixed=FREE, limits=None, iterations=50, tolerance=0.01,
    least_squares=False,
):  # fmt: skip
    n, real = len(images), images.dtype
    limits = bounds(images.shape[1:]) if limits is None else limits
    out = [np.empty((n, 5), real), np.empty((n, 5), real), np.empty(n, np.int8), np.empty(n, np.int32)]
    arguments = (images, variance, initial, sigma, fixed, *limits, iterations, tolerance, least_squares)
    lanes.fit(*arguments, out)
    judged = np.empty((2, n), real)
    lanes.measure(images, variance, out[0], *judged)
    return fit.Result(MODEL.names, *out, *judged)


def same(a, b, rows=slice(None)):
    for name in ("parameters", "errors", "status", "iterations", "log_likelihood", "chi2"):
        np.testing.assert_array_equal(getattr(a, name)[rows], getattr(b, name)[rows])


# ---------------------------------------------------------------- the estimator


@pytest.mark.parametrize("real", [np.float32, np.float64])
@pytest.mark.parametrize("size", [7, 11])
def test_reaches_the_bound(size, real):
    n = 100_000
    images, truth = spots(n, (size, size))
    result = run(images.astype(real))
    bound = MODEL.crlb(truth, (size, size))
    z = (result.parameters - truth) / bound
    assert (result.status == Status.converged).mean() > 0.9999
    # the RMSE of n samples has a relative standard error of 1/sqrt(2n) = 0.22 %
    ratio = np.sqrt((z**2).mean(0))
    assert (ratio < 1.02 + 2 / np.sqrt(2 * n)).all(), ratio
    assert (np.abs(z.mean(0)) < 0.05 + 3 / np.sqrt(n)).all()
    # the errors it states are those it makes
    scatter = ((result.parameters - truth) / result.errors).var(0)
    assert (np.abs(scatter - 1) < 0.05).all(), scatter


def test_faint_spots_are_found_in_large_boxes():
    shape = (21, 21)
    images, truth = spots(4000, shape, photons=100, background=10, sigma=0.8, off=1.5)
    result = run(images.astype(np.float32))
    error = np.abs((result.parameters - truth) / MODEL.crlb(truth, shape))[:, :2].max(1)
    # sums of whole rows and columns would take one in 300 to noise
    assert (error[result.status == Status.converged] > 10).mean() < 1e-3


@pytest.mark.parametrize("shape", [(7, 7), (6, 9)])
def test_agrees_with_the_reference(shape):
    images, truth = spots(3000, shape, photons=1000, background=4)
    reference = fit.refine(MODEL, images, 0.0, truth, max_iterations=100, tolerance=1e-5)
    for tolerance, allowed in ((1e-4, 1e-3), (0.01, 0.03)):
        result = run(images, tolerance=tolerance)
        good = (result.status == 0) & (reference.status == 0)
        assert good.mean() > 0.99
        np.testing.assert_array_equal(result.status == Status.at_bound, reference.status == Status.at_bound)
        away = (np.abs(result.parameters - reference.parameters) / reference.errors)[good].max(1)
        assert away.max() < allowed
        np.testing.assert_allclose(result.errors[good], reference.errors[good], rtol=0.03 if tolerance > 1e-3 else 2e-3)
    tight = run(images, tolerance=1e-6)
    np.testing.assert_allclose(tight.log_likelihood[good], reference.log_likelihood[good], rtol=1e-9)
    np.testing.assert_allclose(tight.chi2[good], reference.chi2[good], rtol=1e-5)


def test_edge_function_is_accurate_to_1e_12():
    module = lanes.module(7, 7, np.dtype(float), (0, 1, 2, 3, 4), False, False)
    for u in np.concatenate([np.linspace(-12, 12, 2001), [1e-9, -1e-9, 40.0]]):
        value, density = module.edge(np.float64(u))
        assert abs(value - 0.5 * erf(u / np.sqrt(2))) < 1e-12
        assert abs(density - np.exp(-0.5 * u * u)) < 1e-12


@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_likelihood_and_chi2_are_those_of_scipy(real):
    images = np.concatenate(
        [spots(200, photons=p, background=b)[0] for p, b in ((50, 0.05), (2000, 10), (50_000, 300))]
    )
    result = run(images.astype(real))
    good = result.status != Status.singular
    assert good.mean() > 0.9
    x, y, photons, _, sigma = theta = result.parameters.astype(float).T

    def axis(centre):
        return np.diff(erf((np.arange(8) - 0.5 - centre[:, None]) / (sigma[:, None] * np.sqrt(2)))) / 2

    mu = MODEL.partials(theta.T, (7, 7))[0]
    terms = poisson.logpmf(images, mu)
    # a table's entry is the difference of two numbers of up to 1/2, so it is off by epsilon, and mu by
    # N epsilon (a + A): far more than epsilon mu for a bright spot.  float64: the erf is good to 1e-12
    epsilon = 2.0**-23 if real == np.float32 else 1e-12
    doubt = epsilon * (photons[:, None, None] * (axis(y)[:, :, None] + axis(x)[:, None, :]) + mu)
    slope = np.abs(images / mu - 1)
    limit = (slope * doubt + epsilon * np.abs(terms)).sum((1, 2))
    assert (np.abs(result.log_likelihood - terms.sum((1, 2))) <= limit)[good].all()
    chi2 = (images - mu) ** 2 / mu
    limit = ((2 * slope + slope**2) * doubt + epsilon * chi2).sum((1, 2))
    assert (np.abs(result.chi2 - chi2.sum((1, 2))) <= limit)[good].all()


def test_read_noise():
    rng = np.random.default_rng(1)
    n, shape = 4000, (6, 9)
    variance = rng.gamma(1.0, 20.0, shape)
    images, truth = spots(n, shape, variance=variance)
    result = run(images, variance)
    each = run(images, np.ascontiguousarray(np.broadcast_to(variance, images.shape)))
    same(result, each)
    z = (result.parameters - truth) / MODEL.crlb(truth, shape, variance)
    assert (np.sqrt((z**2).mean(0)) < 1.05 + 2 / np.sqrt(2 * n)).all()
    reference = fit.refine(MODEL, images, variance, truth, max_iterations=100, tolerance=1e-5)
    tight = run(images, variance, tolerance=1e-5)
    good = (tight.status == 0) & (reference.status == 0)
    assert good.mean() > 0.99
    assert (np.abs(tight.parameters - reference.parameters)[good] < 1e-3 * reference.errors[good]).all()
    np.testing.assert_allclose(tight.log_likelihood[good], reference.log_likelihood[good], rtol=1e-8)


def test_a_pixel_of_much_noise_hardly_counts():
    shape = (6, 9)
    images, _ = spots(200, shape)
    variance = np.ones(shape)
    variance[2, 4] = 1e4
    moved = images.copy()
    moved[:, 2, 4] += 100  # its standard deviation
    a, b = run(images, variance), run(moved, variance)
    assert (np.abs(a.parameters - b.parameters) < 0.1 * a.errors).all()
    variance[2, 4] = np.inf
    a, b = run(images, variance, tolerance=1e-4), run(moved, variance, tolerance=1e-4)
    assert (np.abs(a.parameters - b.parameters) < 1e-3 * a.errors).all()
    reference = fit.refine(MODEL, images, variance, a.parameters, tolerance=1e-4)
    np.testing.assert_allclose(a.log_likelihood, reference.log_likelihood, rtol=1e-7)


def test_least_squares():
    n, shape = 4000, (6, 7)
    images, truth = spots(n, shape)
    result = run(images, least_squares=True, tolerance=1e-3)
    reference = fit.refine(MODEL, images, 0.0, truth, weights=1.0, max_iterations=100, tolerance=1e-4)
    good = (result.status == 0) & (reference.status == 0)
    assert good.mean() > 0.99
    assert (np.abs(result.parameters - reference.parameters)[good] < 3e-3 * reference.errors[good]).all()
    np.testing.assert_allclose(result.errors[good], reference.errors[good], rtol=1e-2)
    scatter = ((result.parameters - truth) / result.errors)[good].var(0)
    assert (np.abs(scatter - 1) < 0.1).all()


# ---------------------------------------------------------------- what is fitted


def test_fixed_parameters_and_known_sigma():
    images, truth = spots(500)
    known = run(images, sigma=1.3, tolerance=1e-4)
    other = run(images, initial=truth, fixed=[False] * 4 + [True], tolerance=1e-4)
    reference = fit.refine(psf.Gaussian2D(1.3), images, 0.0, truth[:, :4], tolerance=1e-5)
    for result in (known, other):
        assert (result.parameters[:, 4] == 1.3).all()
        assert np.isnan(result.errors[:, 4]).all()
        assert (np.abs(result.parameters[:, :4] - reference.parameters) < 1e-3 * reference.errors).all()
        np.testing.assert_allclose(result.errors[:, :4], reference.errors, rtol=1e-3)
    with pytest.raises(ValueError, match="without initial"):
        run(images, fixed=[True, False, False, False, False])
    with pytest.raises(ValueError, match="five fixed"):
        run(images, initial=truth, fixed=[True] * 5)


def test_bounds():
    images, truth = spots(500)
    narrow = bounds((7, 7), sigma=(1.4, 2.0))
    result = run(images, limits=narrow, tolerance=1e-4)
    reference = fit.refine(MODEL, images, 0.0, truth, bounds={"sigma": (1.4, 2.0)}, tolerance=1e-5)
    held = result.status == Status.at_bound
    assert held.mean() > 0.9
    np.testing.assert_array_equal(result.status, reference.status)
    assert (result.parameters[held, 4] == 1.4).all()
    assert np.isnan(result.errors[held, 4]).all()
    np.testing.assert_allclose(result.errors[held, :4], reference.errors[held, :4], rtol=1e-3)
    assert (np.abs(result.parameters - reference.parameters)[:, :4] < 1e-3 * reference.errors[:, :4]).all()


def test_bad_starts_find_the_same_maximum():
    images, truth = spots(1000)
    rng = np.random.default_rng(5)
    bad = truth * np.exp(rng.normal(0, [0.15, 0.15, 1.0, 1.0, 0.3], truth.shape))
    a, b = run(images, tolerance=1e-3), run(images, initial=bad, tolerance=1e-3)
    assert (b.status == 0).mean() > 0.98
    good = b.status == 0
    assert (np.abs(a.log_likelihood - b.log_likelihood)[good] < 1e-4 * np.abs(a.log_likelihood[good])).mean() > 0.98


def test_faint_spots_end_where_scipy_ends():
    images, truth = spots(300, photons=150, background=0.2, sigma=1.0)
    result = run(images, tolerance=1e-3)
    reference = fit.refine(MODEL, images, 0.0, truth, max_iterations=200, tolerance=1e-4)
    assert (result.log_likelihood > reference.log_likelihood - 1e-3).mean() > 0.98
    assert np.isin(result.status, (Status.converged, Status.at_bound)).mean() > 0.97


# ---------------------------------------------------------------- hostile input, and independence


def hostile(images):
    images = images.copy()
    images[3, 2, 2] = np.nan
    images[5, 0, 0] = np.inf
    images[6, 1, 1] = -np.inf
    images[10] = 0
    images[11] = 7
    images[12] = -5
    images[13] = 65535
    images[14] = 1e30
    images[15, 3, 4] = 60_000
    images[16] = np.nan
    return images, [3, 5, 6, *range(10, 17)]


@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_hostile_images_end_in_a_named_status_and_spare_their_neighbours(real):
    clean = spots(100)[0].astype(real)
    bad, rows = hostile(clean)
    a, b = run(clean), run(bad)
    same(a, b, np.setdiff1d(np.arange(100), rows))
    invalid = [3, 5, 6, 16]
    assert (b.status[invalid] == Status.invalid_input).all()
    assert np.isnan(b.parameters[invalid]).all()
    assert (b.iterations[invalid] == 0).all()
    assert np.isin(b.status, [int(s) for s in Status]).all()
    assert (b.status[[10, 12]] != Status.converged).all()
    done = b.status == Status.converged
    for values in (b.parameters, b.errors, b.log_likelihood, b.chi2):
        assert np.isfinite(values[done]).all()
    start = np.where(np.isnan(b.parameters), 1.0, b.parameters).astype(real)
    start[20, 0] = np.nan
    assert run(clean, initial=start).status[20] == Status.invalid_input


@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_no_bit_depends_on_threads_order_count_or_neighbours(real):
    # easy and hard ones, so that many go through the second stage
    images = np.concatenate([spots(2500)[0], spots(2500, photons=80, background=1)[0]]).astype(real)
    order = np.random.default_rng(0).permutation(len(images))
    images = images[order]
    whole = run(images)
    assert whole.iterations.max() > 4
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        same(whole, run(images))
    finally:
        numba.set_num_threads(before)
    shuffled = run(np.ascontiguousarray(images[::-1]))
    for name in ("parameters", "errors", "status", "iterations", "log_likelihood", "chi2"):
        np.testing.assert_array_equal(getattr(shuffled, name)[::-1], getattr(whole, name))
    for n in (0, 1, 33):
        few = run(images[:n])
        np.testing.assert_array_equal(few.parameters, whole.parameters[:n])
        np.testing.assert_array_equal(few.errors, whole.errors[:n])


def test_one_iteration_is_not_called_converged():
    images, _ = spots(40, photons=300)
    for most in (1, 3):
        result = run(images, iterations=most, tolerance=1e-4)
        assert (result.status == Status.max_iterations).mean() > 0.9
        assert (result.iterations <= most).all()
        assert np.isfinite(result.errors).all()
    # what it returns is not worse than where it began
    more = run(images, iterations=50, tolerance=1e-4)
    assert (more.log_likelihood >= result.log_likelihood - 1e-9 * np.abs(result.log_likelihood)).all()


def test_compiled_code_lives_in_the_cache_directory(tmp_path):
    code = (
        "import numpy as np; from smlmcore.fit import lanes;"
        "print(lanes.module(5, 5, np.dtype('f4'), (0, 1), False, False).__file__)"
    )
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(tmp_path))
    assert [f.suffix for f in (tmp_path / "smlmcore" / "lanes").glob("*.*")] == [".py"]
