"""`fit.mle` and `fit.lsq`: what goes in, what comes out, and that nothing breaks them."""

import importlib.util
import itertools
import os
import pickle
import subprocess
import sys
import tracemalloc

import numba
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import erf, gammaln

from smlmcore import fit, psf
from smlmcore.fit import direct, problem


@pytest.fixture
def one_blas_thread():
    """scipy's BLAS threads would spin for its 5 x 5 matrices, ten times as long as the work takes."""
    limits = importlib.util.find_spec("threadpoolctl") and importlib.import_module("threadpoolctl").threadpool_limits(1)
    yield
    if limits:
        limits.restore_original_limits()


class General(psf.Gaussian2D):
    """A Gaussian that is not recognised as one, and so takes the body for any PSF."""


MODEL = General()
FIELDS = ("parameters", "errors", "status", "iterations", "log_likelihood", "chi2")


def spots(n=50, shape=(9, 9), seed=0, **parameters):
    return fit.simulate_spots(MODEL, n, shape, np.random.default_rng(seed), **parameters)


def same(a, b):
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


# ---------------------------------------------------------------- what comes out


@pytest.mark.parametrize(
    ("estimator", "model"),
    [
        (fit.mle, MODEL),
        (fit.lsq, MODEL),
        (fit.mle, General(1.3)),
        (fit.lsq, General(1.3)),
        (fit.mle, psf.Gaussian2D()),
        (fit.mle, psf.Gaussian2D(1.3)),
    ],
)
@pytest.mark.parametrize("n", [0, 1, 33])
def test_result(estimator, model, n):
    images, truth = fit.simulate_spots(model, n, (9, 9), np.random.default_rng(1))
    result = estimator(images, model)
    p = len(model.names)
    assert result.names == model.names
    assert result.parameters.shape == result.errors.shape == truth.shape == (n, p)
    assert (result.parameters.dtype, result.status.dtype) == (np.float32, np.int8)
    assert (result.status == fit.Status.converged).all()
    assert (np.abs(result.parameters - truth) < 6 * result.errors).all()
    table = result.table()
    assert table.dtype.names[:p] == model.names
    np.testing.assert_array_equal(table["photons_error"], result.errors[:, 2])
    np.testing.assert_array_equal(table["chi2"], result.chi2)


@pytest.mark.parametrize("shape", [(7, 7), (11, 8)])
def test_reaches_the_bound_with_honest_errors(shape):
    n = 20_000
    variance = np.random.default_rng(5).uniform(0, 10, shape)
    images, truth = fit.simulate_spots(MODEL, n, shape, np.random.default_rng(2), variance)
    result = fit.mle(images, MODEL, variance)
    good = result.status == fit.Status.converged
    assert good.mean() > 0.998
    bound = MODEL.crlb(truth, shape, variance)
    ratio = np.sqrt((((result.parameters - truth) / bound)[good] ** 2).mean(0))
    # three standard errors of an RMSE over n samples above the 1.02
    assert (ratio < 1.02 + 3 / np.sqrt(2 * n)).all(), ratio
    z = ((result.parameters - truth) / result.errors)[good]
    np.testing.assert_allclose(z.var(0), 1, atol=0.05)


@pytest.mark.parametrize(
    ("photons", "background", "sigma", "size", "noise"),
    [
        (300, 1.0, 0.8, 7, 0),
        (50_000, 0.1, 0.8, 9, 0),
        (1000, 10.0, 1.3, 9, 0),
        (5000, 300.0, 1.3, 11, 0),
        (5000, 10.0, 1.3, 9, 500),
        (50_000, 100.0, 1.3, 9, 500),
    ],
)
def test_place_is_at_the_bound_all_over_the_grid(photons, background, sigma, size, noise):
    """A few cells of `python -m bench accuracy`: spots up to 1.5 pixels off the centre, read noise up to `noise`."""
    n, shape, model, rng = 10_000, (size, size), psf.Gaussian2D(), np.random.default_rng(3)
    place = (size / 2 - 2, size / 2 + 1)
    variance = rng.uniform(0, noise, shape) if noise else None
    given = {"photons": photons, "background": background, "sigma": sigma, "x": place, "y": place}
    images, truth = fit.simulate_spots(model, n, shape, rng, 0.0 if variance is None else variance, **given)
    result = fit.mle(images, model, variance)
    good = result.status == fit.Status.converged
    error = (result.parameters - truth)[good, :2]
    bound = model.crlb(truth, shape, 0.0 if variance is None else variance)[good, :2]
    # of n normal numbers the RMSE has a relative standard error of 1/sqrt(2n), the variance one of sqrt(2/n)
    ratio = np.sqrt(((error / bound) ** 2).mean(0))
    assert (ratio < 1.05 + 3 / np.sqrt(2 * n)).all(), ratio
    scores = (error / result.errors[good, :2]).var(0)
    assert (np.abs(scores - 1) < 0.05 + 3 * np.sqrt(2 / n)).all(), scores
    # below a background of about one, a normal spot may end with none
    assert good.mean() > (0.98 if background >= 1 else 0.3)


def poisson(theta, image):
    """Log likelihood without factorials of the integrated Gaussian, and its gradient, written anew."""
    x, y, photons, background, sigma = np.asarray(theta, float)

    def axis(centre, size):
        u = (np.arange(size + 1) - 0.5 - centre) / sigma
        f = np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi)
        return np.diff(erf(u / np.sqrt(2))) / 2, -np.diff(f) / sigma, -np.diff(u * f) / sigma

    (a, a_x, a_s), (b, b_y, b_s) = axis(x, image.shape[1]), axis(y, image.shape[0])
    spot = np.outer(b, a)
    mu = photons * spot + background
    r = image / mu - 1

    def along(rows, columns):  # no matrix product: BLAS would start threads for it
        return (r * rows[:, None] * columns).sum()

    gradient = [photons * along(b, a_x), photons * along(b_y, a), along(b, a), r.sum()]
    gradient.append(photons * (along(b_s, a) + along(b, a_s)))
    return (image * np.log(mu) - mu).sum(), np.array(gradient)


@pytest.mark.parametrize("model", [MODEL, psf.Gaussian2D()], ids=["generic", "lanes"])
def test_likelihood_is_that_of_the_best_of_ten_scipy_starts(model, one_blas_thread):
    rng, n, shape = np.random.default_rng(7), 200, (9, 9)
    truth = np.stack(
        [
            4 + rng.uniform(-1.5, 1.5, n),
            4 + rng.uniform(-1.5, 1.5, n),
            10 ** rng.uniform(2.3, 4.5, n),
            10 ** rng.uniform(-0.5, 2, n),
            rng.uniform(0.9, 1.8, n),
        ],
        1,
    )
    images = rng.poisson(MODEL.partials(truth, shape)[0]).astype(np.float32)
    bad = truth * rng.uniform(0.5, 2.0, truth.shape)
    bad[:, :2] = truth[:, :2] + rng.uniform(-2, 2, (n, 2))
    own, started = (fit.mle(images, model, initial=start) for start in (None, bad))
    images = images.astype(float)
    ends = [MODEL.bounds(shape)[name][:2] for name in MODEL.names]
    missed = {"own": 0, "bad": 0}
    for i, image in enumerate(images):
        scale = np.array([1, 1, truth[i, 2], truth[i, 3], 1])
        best = -np.inf

        def worse(t, image=image, scale=scale):
            value, gradient = poisson(t * scale, image)
            return -value / 100, -gradient * scale / 100

        for k in range(10):
            start = truth[i] * (1 if k == 0 else rng.uniform(0.7, 1.4, 5))
            limits = [(low / s, high / s) for (low, high), s in zip(ends, scale, strict=True)]
            options = {"ftol": 1e-13, "gtol": 1e-8}
            found = minimize(worse, start / scale, jac=True, method="L-BFGS-B", bounds=limits, options=options)
            best = max(best, -100 * found.fun)
        for name, result in (("own", own), ("bad", started)):
            short = best - poisson(result.parameters[i], image)[0] >= 1e-4
            missed[name] += short
            assert not short or result.status[i] != fit.Status.converged, (name, i, truth[i])
    assert missed["own"] <= 1, missed  # 99.5 % of 200
    assert missed["bad"] <= 1, missed


# ---------------------------------------------------------------- what goes in


def hostile():
    """Images that are no images of one molecule, by name."""
    images, _ = spots(8, seed=4)
    images[0, 3, 4] = np.nan
    images[1, 3, 4] = np.inf
    images[2, 3, 4] = -np.inf
    images[3] = np.minimum(images[3], 40)
    images[4] -= 30
    images[5] = 0
    images[6] = 10
    images[7, 1, 1] = 5000
    two = fit.simulate_spots(MODEL, 1, (9, 9), np.random.default_rng(0), x=1.5)[0]
    two += fit.simulate_spots(MODEL, 1, (9, 9), np.random.default_rng(1), x=6.5)[0]
    others = [two[0], np.full((9, 9), np.nan), np.full((9, 9), 1e30), np.full((9, 9), -5.0)]
    names = ["NaN", "inf", "-inf", "saturated", "negative", "zero", "constant", "hot pixel"]
    return [*names, "two emitters", "all NaN", "huge", "all negative"], np.concatenate([images, others])


@pytest.mark.parametrize(
    ("estimator", "model", "dtype"),
    [
        *itertools.product([fit.mle, fit.lsq], [MODEL], [np.float32, np.float64]),
        (fit.mle, psf.Gaussian2D(), np.float32),
    ],
)
def test_hostile_images_end_in_a_status_and_spare_their_neighbours(estimator, model, dtype):
    names, bad = hostile()
    clean = spots(64)[0].astype(dtype)
    before = estimator(clean, model)
    mixed = clean.copy()
    places = np.arange(1, 1 + 5 * len(names), 5)
    mixed[places] = bad
    result = estimator(mixed, model)
    rest = np.setdiff1d(np.arange(64), places)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(result, name)[rest], getattr(before, name)[rest])
    status = {name: fit.Status(s) for name, s in zip(names, result.status[places], strict=True)}
    assert status["inf"] == status["-inf"] == status["all NaN"] == fit.Status.invalid_input
    assert status["NaN"] == fit.Status.converged
    assert status["zero"] != fit.Status.converged
    done = result.status == fit.Status.converged
    assert np.isfinite(result.parameters[done]).all()
    assert np.isfinite(result.errors[done]).all()
    assert np.isfinite(result.log_likelihood[done]).all()


def test_a_pixel_of_huge_variance_hardly_counts():
    images, _ = spots(200, (11, 11))
    variance = np.full((11, 11), 1.0)
    variance[5, 7] = 1e4
    before = fit.mle(images, MODEL, variance, tolerance=1e-3)
    images[:, 5, 7] += 60
    after = fit.mle(images, MODEL, variance, tolerance=1e-3)
    assert (np.abs(after.parameters - before.parameters) < 0.1 * before.errors).mean() > 0.99


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, np.float16, bool])
def test_other_dtypes_are_converted(dtype):
    images = spots(5, photons=400.0, background=2.0)[0].astype(dtype)
    wide = np.float64 if dtype is np.int64 else np.float32
    result = fit.mle(images, MODEL)
    assert result.parameters.dtype == wide
    same(result, fit.mle(images.astype(wide), MODEL))


def test_order_strides_lists_and_variance_of_any_shape():
    images, _ = spots(6)
    images = np.round(images)
    expected = fit.mle(images, MODEL, 2.0)
    same(expected, fit.mle(np.repeat(images, 2, 2)[:, :, ::2], MODEL, np.full((9, 9), 2.0)))
    same(expected, fit.mle(images.astype(np.uint16), MODEL, np.full((6, 9, 9), 2)))
    backwards = fit.mle(images[::-1], MODEL, np.full((6, 9, 9), np.float16(2)), threads=1)
    same(expected, fit.Result(MODEL.names, *(getattr(backwards, name)[::-1] for name in FIELDS)))
    assert len(fit.mle(images.tolist(), MODEL)) == 6


def test_bounds_fixed_and_initial():
    images, truth = spots(40)
    result = fit.mle(images, MODEL, bounds={"sigma": (1.4, 2.0)}, fixed={"background": 10})
    assert (result.background == 10).all()
    assert np.isnan(result.errors[:, 3]).all()
    assert result.sigma.min() >= np.float32(1.4)
    assert (result.status == fit.Status.at_bound).any()
    known = fit.mle(images, MODEL, fixed={"sigma": 1.3}, tolerance=1e-3)
    other = fit.mle(images, General(1.3), tolerance=1e-3)
    np.testing.assert_allclose(known.parameters[:, :4], other.parameters, rtol=1e-4)
    np.testing.assert_allclose(known.errors[:, :4], other.errors, rtol=1e-3)
    a, b = (fit.mle(images, MODEL, initial=truth * s, tolerance=1e-3) for s in (0.95, 1.05))
    assert (np.abs(a.parameters - b.parameters) < 5e-3 * a.errors).all()
    truth[3] = np.nan
    assert fit.mle(images, MODEL, initial=truth).status[3] == fit.Status.invalid_input


@pytest.mark.parametrize("sigma", [None, 1.3])
def test_with_nothing_to_fit_the_likelihood_remains(sigma):
    images, truth = spots(3)
    model = psf.Gaussian2D(sigma)
    values = dict(zip(model.names, truth[0], strict=False))
    result, other = fit.mle(images, model, fixed=values), fit.mle(images, General(sigma), fixed=values)
    same(result, other)
    assert (result.status == fit.Status.converged).all()
    assert np.isnan(result.errors).all()
    image = poisson([*values.values(), *[1.3] * (sigma is not None)], images[0])[0]
    assert abs(result.log_likelihood[0] - image + gammaln(images[0] + 1).sum()) < 0.01


def test_likelihood_and_chi2_come_when_asked_for(monkeypatch):
    images, _ = spots(40)
    images[3, 2, 2] = np.nan
    calls, measure = [], direct.lanes.measure
    monkeypatch.setattr(direct.lanes, "measure", lambda *a: (calls.append(1), measure(*a)))
    for model in (psf.Gaussian2D(), psf.Gaussian2D(1.3)):
        calls.clear()
        result = fit.mle(images, model)
        assert not calls
        other = fit.mle(images, General(model.sigma))
        np.testing.assert_allclose(result.log_likelihood, other.log_likelihood, rtol=1e-4)
        np.testing.assert_allclose(result.chi2, other.chi2, rtol=0.01)
        assert len(calls) == 1
    copied = pickle.loads(pickle.dumps(fit.mle(images, model)))
    np.testing.assert_array_equal(copied.chi2, result.chi2)
    assert not any(isinstance(v, np.ndarray) and v.ndim == 3 for v in vars(copied).values())
    # with a given start chi2 tells who has gone astray, and is there at once
    calls.clear()
    fit.mle(images, model, initial=result.parameters)
    assert calls


def test_weights_of_least_squares():
    images, truth = spots(4000, background=3.0)
    best = 1 / MODEL.partials(truth, (9, 9))[0]
    plain, weighted = fit.lsq(images, MODEL), fit.lsq(images, MODEL, weights=best)
    a, b = ((r.parameters - truth).std(0) for r in (plain, weighted))
    assert (b[[0, 1, 4]] < 0.95 * a[[0, 1, 4]]).all()
    # with the best weights least squares reaches the bound; 5 standard errors
    ratio = b / MODEL.crlb(truth, (9, 9)).mean(0)
    assert (ratio < 1.02 + 5 / np.sqrt(2 * 4000)).all()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"spots": np.zeros((5, 9))}, ValueError, r"spots of shape \(5, 9\)"),
        ({"spots": np.zeros((5, 4, 9))}, ValueError, "from 5 to 32"),
        ({"spots": np.zeros((5, 9, 33))}, ValueError, "from 5 to 32"),
        ({"spots": np.zeros((5, 9, 9), complex)}, TypeError, "spots of complex128"),
        ({"psf": "gaussian"}, TypeError, "a PSF of str"),
        ({"variance": np.zeros((3, 9, 9))}, ValueError, r"variance of shape \(3, 9, 9\)"),
        ({"variance": -1.0}, ValueError, "variance below 0 or NaN"),
        ({"variance": np.full((5, 9, 9), np.nan)}, ValueError, "variance below 0 or NaN"),
        ({"initial": np.zeros((5, 4))}, ValueError, r"initial of shape \(5, 4\)"),
        ({"bounds": {"width": (1, 2)}}, ValueError, "bounds for 'width'; General has the parameters x, y"),
        ({"bounds": {"sigma": (2, 1)}}, ValueError, r"bounds \(2, 1\) for sigma; expected low < high"),
        ({"bounds": {"sigma": 1}}, ValueError, r"bounds 1 for sigma; expected a pair"),
        ({"fixed": {"z": 1}}, ValueError, "fixed for 'z'"),
        ({"fixed": {"sigma": np.nan}}, ValueError, "nan as the fixed value of sigma"),
        ({"fixed": ["sigma"]}, TypeError, "fixed of list; expected a mapping"),
        ({"max_iterations": 0}, ValueError, "max_iterations=0"),
        ({"max_iterations": None}, ValueError, "max_iterations=None"),
        ({"tolerance": 0}, ValueError, "tolerance=0"),
        ({"tolerance": "low"}, ValueError, "tolerance='low'"),
        ({"threads": 0}, ValueError, "threads=0; expected 1 to"),
        ({"emitters": 6}, ValueError, "emitters=6; expected a number from 1 to 5"),
    ],
)
def test_wrong_input_is_named(change, error, words):
    arguments = {"spots": np.ones((5, 9, 9)), "psf": MODEL} | change
    with pytest.raises(error, match=words):
        fit.mle(**arguments)


def test_input_of_simulate_spots_is_checked():
    with pytest.raises(ValueError, match="'width'; General has"):
        spots(2, width=3)
    with pytest.raises(ValueError, match=r"photons of shape \(3,\)"):
        spots(2, photons=np.ones(3))
    with pytest.raises(ValueError, match="variance of shape"):
        spots(2, variance=-1.0)


@pytest.mark.parametrize("maps", [None, (9, 9), (20, 9, 9)])
@pytest.mark.parametrize(
    "model",
    [psf.Gaussian2D(), psf.Gaussian2D(1.3), psf.EllipticGaussian2D(), psf.AstigmaticGaussian(1.2, 0.25, 0.4)],
    ids=["sigma free", "sigma fixed", "elliptic", "astigmatic"],
)
@pytest.mark.parametrize("body", [direct._on_gpu, direct._in_step])
def test_bodies_of_the_gpu_do_the_same(body, model, maps):
    """On NumPy arrays: the kernel's CPU body behind the call for the GPU, and the array operations."""
    images, truth = fit.simulate_spots(model, 20, (9, 9), np.random.default_rng(0))
    images[3, 2, 2] = np.nan
    variance = None if maps is None else np.random.default_rng(1).uniform(0, 5, maps)
    fixed = {"background": 9.0}
    own = problem.check(images, model, variance, None, truth, {"photons": (1e3, 2100)}, fixed, 20, 1e-3, False)
    outs = [own.outputs(20), own.outputs(20)]
    for work, out in zip((body, direct._one_by_one), outs, strict=True):
        work(own, next(own.chunks()), out)
    a, b = (fit.Result(model.names, *out) for out in outs)
    np.testing.assert_array_equal(a.status, b.status)
    assert (a.status == fit.Status.at_bound).any()
    scale = np.where(np.isnan(b.errors), np.abs(b.parameters), b.errors)  # both stop within 1e-3 standard errors
    assert (np.abs(a.parameters - b.parameters) < 1e-3 * scale)[b.status < 3].all()
    np.testing.assert_allclose(a.errors, b.errors, rtol=1e-3)
    np.testing.assert_allclose(a.log_likelihood, b.log_likelihood, rtol=1e-5)


def test_least_squares_in_step():
    images, truth = spots(20)
    weights = np.random.default_rng(1).uniform(0.5, 1, (9, 9))
    for given in (None, weights):
        own = problem.check(images, MODEL, 2.0, given, truth, None, None, 20, 1e-3, True)
        a, b = own.result(), fit.lsq(images, MODEL, given, 2.0, truth, tolerance=1e-3)
        direct._in_step(own, next(own.chunks()), tuple(getattr(a, name) for name in FIELDS))
        np.testing.assert_allclose(a.parameters, b.parameters, rtol=1e-4)
        np.testing.assert_allclose(a.errors, b.errors, rtol=1e-3)


# ---------------------------------------------------------------- long calls


def test_streams_from_disk_with_constant_memory(tmp_path):
    n, shape = 80_000, (16, 16)
    pattern = spots(1000, shape)[0].astype(np.uint16)
    file = np.lib.format.open_memmap(tmp_path / "spots.npy", "w+", np.uint16, (n, *shape))
    for first in range(0, n, 1000):
        file[first : first + 1000] = pattern
    file.flush()
    stored, used, done = np.load(tmp_path / "spots.npy", mmap_mode="r"), {}, []
    start = np.broadcast_to(np.array([7.5, 7.5, 2000.0, 10.0, 1.3], np.float32), (n, 5))
    for count in (20_000, 80_000):
        done.clear()
        tracemalloc.start()
        result = fit.mle(stored[:count], MODEL, initial=start[:count], max_iterations=2, progress=done.append)
        used[count] = tracemalloc.get_traced_memory()[1] - sum(getattr(result, name).nbytes for name in FIELDS)
        tracemalloc.stop()
        assert sum(done) == count
    assert len(done) > 4
    assert used[80_000] < 1.05 * used[20_000]
    np.testing.assert_array_equal(result.parameters[:1000], result.parameters[-1000:])


def test_threads_are_respected_and_given_back(monkeypatch):
    images, _ = spots(40)
    before, seen = numba.get_num_threads(), []
    one = fit.mle(images, MODEL, threads=1, progress=lambda done: seen.append(numba.get_num_threads()))
    assert seen == [1]
    assert numba.get_num_threads() == before
    same(one, fit.mle(images, MODEL))
    with pytest.raises(ZeroDivisionError):
        fit.mle(images, MODEL, threads=1, progress=lambda done: 1 / 0)
    assert numba.get_num_threads() == before


def test_the_bar_shows_only_if_asked_for_where_there_is_no_terminal(capsys):
    images, _ = spots(4)
    for progress, shown in ((None, False), (False, False)):
        fit.mle(images, MODEL, progress=progress)
        assert bool(capsys.readouterr().err) == shown


def test_the_bar_says_that_it_compiles(tmp_path):
    code = (
        "import numpy as np; from smlmcore import fit, psf;"
        "fit.mle(np.random.default_rng(0).poisson(5.0, (40, 5, 5)), psf.Gaussian2D(1.0), progress=True)"
    )
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    shown = [subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stderr for _ in "ab"]
    assert [direct.COMPILING in text for text in shown] == [True, False]
    assert all(direct.FITTING in text for text in shown), shown


def test_results_do_not_depend_on_the_chunks(monkeypatch):
    images, _ = spots(2500)
    whole = fit.mle(images, MODEL)
    monkeypatch.setattr(problem, "CHUNK", 1)
    done = []
    same(whole, fit.mle(images, MODEL, progress=done.append))
    assert done == [1024, 1024, 452]
    whole = fit.mle(images, psf.Gaussian2D(), variance=np.ones(images.shape))
    monkeypatch.setattr(problem, "RAW", 1500)
    done.clear()
    same(whole, fit.mle(images, psf.Gaussian2D(), variance=np.ones(images.shape), progress=done.append))
    assert done == [1500, 1000]
    with pytest.raises(ValueError, match="variance below 0 or NaN"):
        fit.mle(images, psf.Gaussian2D(), variance=np.full(images.shape, np.nan))


def test_all_estimators_agree_on_a_bright_spot():
    images, truth = spots(20, photons=1e5, background=1.0)
    results = [fit.mle(images, MODEL), fit.lsq(images, MODEL), fit.refine(MODEL, images, 0.0, truth)]
    for a, b in itertools.combinations(results, 2):
        assert (np.abs(a.parameters - b.parameters)[:, :2] < 5 * a.errors[:, :2]).all()
