"""Refinement to the bound, the model that links the parts, and its files."""

import numpy as np
import pytest

from smlmcore import data, fit, loss, psf

NAMES = ("x", "y", "photons", "background", "sigma")


def spots(n, shape=(11, 11), read_noise=0.0, seed=0, photons=2000.0, background=10.0):
    rng = np.random.default_rng(seed)
    truth = np.stack(
        [
            (shape[1] - 1) / 2 + rng.uniform(-1, 1, n),
            (shape[0] - 1) / 2 + rng.uniform(-1, 1, n),
            np.full(n, photons),
            np.full(n, background),
            np.full(n, 1.3),
        ],
        1,
    )
    mu = psf.Gaussian2D().partials(truth, shape)[0]
    return rng.poisson(mu) + rng.normal(0, read_noise, mu.shape), truth


def start(truth, seed=0):
    rng = np.random.default_rng(seed)
    return truth * (1 + 0.1 * rng.normal(size=truth.shape))


@pytest.mark.parametrize(("shape", "read_noise"), [((11, 11), 0.0), ((9, 13), 1.5)])
def test_refinement_reaches_the_bound(shape, read_noise):
    n = 20_000
    images, truth = spots(n, shape, read_noise)
    result = fit.refine(psf.Gaussian2D(), images, read_noise**2, start(truth), loss.PoissonGaussian())
    bound = psf.Gaussian2D().crlb(truth, shape, read_noise**2)
    ratio = np.sqrt(np.mean(((result.parameters - truth) / bound) ** 2, axis=0))
    assert (result.status == fit.Status.converged).mean() > 0.999
    # RMSE of n samples has a relative standard error of 1/sqrt(2n) = 0.5 %; three of these above the 1.02
    assert (ratio < 1.02 + 3 / np.sqrt(2 * n)).all(), dict(zip(NAMES, ratio, strict=True))
    assert (ratio > 1 - 4 / np.sqrt(2 * n)).all()
    # the errors it states are the errors it makes
    np.testing.assert_allclose(np.median(result.errors / bound, axis=0), 1, atol=0.03)
    # chi2 has the mean of a chi-square with pixels - parameters degrees of freedom, to its standard error
    pixels = shape[0] * shape[1]
    assert abs(result.chi2.mean() - (pixels - 5)) < 5 * np.sqrt(2 * pixels / n) + 0.01 * pixels


def test_exact_likelihood_refines_too():
    images, truth = spots(300, read_noise=2.0, photons=500, background=2)
    exact = fit.refine(psf.Gaussian2D(), images, 4.0, start(truth), loss.PoissonGaussian(exact=True))
    bound = psf.Gaussian2D().crlb(truth, (11, 11), 4.0)
    good = exact.status == fit.Status.converged
    assert good.mean() > 0.98
    ratio = np.sqrt(np.mean(((exact.parameters - truth) / bound)[good] ** 2, axis=0))
    assert (ratio < 1.05 + 4 / np.sqrt(600)).all()


def test_the_solution_does_not_depend_on_the_start():
    images, truth = spots(200)
    a, b = (fit.refine(psf.Gaussian2D(), images, 0.0, start(truth, s), loss.PoissonGaussian()) for s in (1, 2))
    good = (a.status == 0) & (b.status == 0)
    assert good.mean() > 0.99
    # each stops within 1e-3 standard errors of the maximum
    assert (np.abs(a.parameters - b.parameters)[good] <= 2e-3 * a.errors[good]).all()


def test_bad_images_end_in_a_named_status_and_spare_their_neighbours():
    images, truth = spots(6)
    clean = fit.refine(psf.Gaussian2D(), images, 0.0, truth, loss.PoissonGaussian())
    images = images.astype(float)
    images[1] = np.nan
    images[2, 3, 4] = np.nan  # one masked pixel
    images[3] = 0
    initial = truth.copy()
    initial[4, 0] = np.nan
    result = fit.refine(psf.Gaussian2D(), images, 0.0, initial, loss.PoissonGaussian())
    assert result.status[1] == result.status[4] == fit.Status.invalid_input
    assert np.isnan(result.parameters[[1, 4]]).all()
    assert result.status[2] == fit.Status.converged
    assert result.status[3] not in (fit.Status.converged, fit.Status.invalid_input)
    np.testing.assert_array_equal(result.parameters[[0, 5]], clean.parameters[[0, 5]])
    finite = np.isfinite(result.parameters).all(1) & np.isfinite(result.errors).all(1)
    assert finite[result.status == fit.Status.converged].all()


def test_no_background_is_held_at_its_bound_without_an_error():
    images, truth = spots(50, background=0.0)
    result = fit.refine(psf.Gaussian2D(), images, 0.0, truth, loss.PoissonGaussian())
    held = result.status == fit.Status.at_bound
    assert held.any()
    assert np.isnan(result.errors[held, 3]).all()
    assert np.isfinite(result.errors[held][:, :2]).all()


def test_refine_of_nothing():
    result = fit.refine(psf.Gaussian2D(), np.zeros((0, 7, 7)), 0.0, np.zeros((0, 5)), loss.PoissonGaussian())
    assert len(result) == 0
    assert result.errors.shape == (0, 5)


def test_result_names_its_parameters():
    images, truth = spots(3)
    result = fit.refine(psf.Gaussian2D(), images, 0.0, truth, loss.PoissonGaussian())
    np.testing.assert_array_equal(result.photons, result.parameters[:, 2])
    with pytest.raises(AttributeError, match="its parameters are x, y"):
        _ = result.z


def model(shape=(9, 11)):
    return fit.gaussian2d(shape, width=8, hidden=16).init(np.random.default_rng(0))


def test_prediction_is_independent_of_the_batch_and_survives_all_inputs():
    m = model()
    images = np.random.default_rng(1).poisson(12.0, (5, 9, 11))
    all_at_once = m.predict(images)
    for name, values in m.predict(images, batch=2).items():
        np.testing.assert_allclose(values, all_at_once[name], rtol=1e-4)
    assert m.predict(images[:0])["x"].shape == (0,)
    assert m.predict(images[:1, None])["x"].shape == (1,)
    holes = images.astype(float)
    holes[0, 2, 2] = np.nan
    assert all(np.isfinite(v).all() for v in m.predict(holes).values())
    assert all(np.isfinite(v).all() for v in m.predict(images, np.full((9, 11), 2.0)).values())


def test_photons_and_background_are_the_weighted_least_squares_solution():
    m = model((11, 11))
    _, truth = spots(4)
    truth = {name: truth[:, i].astype(np.float32) for i, name in enumerate(NAMES)}
    draw = lambda values: m.renderer({}, values)  # noqa: E731
    from smlmcore.mapper.projection import solve_linear

    shape_only = {k: truth[k] for k in ("x", "y", "sigma")}
    noiseless = m.renderer({}, truth)
    solved = solve_linear(draw, shape_only, ("photons", "background"), noiseless, 0.0)
    np.testing.assert_allclose(solved["photons"], truth["photons"], rtol=1e-3)
    np.testing.assert_allclose(solved["background"], truth["background"], rtol=1e-3)


def test_saved_model_predicts_the_same(tmp_path):
    m = model()
    images = np.random.default_rng(1).poisson(12.0, (3, 9, 11))
    m.save(tmp_path / "model.npz")
    again = fit.FitModel.load(tmp_path / "model.npz")
    for name, values in m.predict(images).items():
        np.testing.assert_array_equal(values, again.predict(images)[name])
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "model.npz").write_bytes(b"no model")
    with pytest.raises(data.DataError, match="no model of this library"):
        fit.FitModel.load(tmp_path / "model.npz")


@pytest.mark.parametrize(
    ("images", "variance", "words"),
    [
        (np.zeros((2, 11, 9)), 0.0, r"\(2, 11, 9\)"),
        (np.zeros((9, 11)), 0.0, r"\(9, 11\)"),
        (np.zeros((2, 9, 11)), -1.0, "variance"),
        (np.zeros((2, 9, 11)), np.zeros(3), "variance of shape"),
    ],
)
def test_wrong_images_and_variances(images, variance, words):
    with pytest.raises(ValueError, match=words):
        model().predict(images, variance)


def test_model_without_parameters_says_what_to_do():
    with pytest.raises(ValueError, match="init"):
        fit.gaussian2d((9, 9)).predict(np.zeros((1, 9, 9)))
