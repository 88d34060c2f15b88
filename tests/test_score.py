"""Scores of fits: against numbers made up to be known."""

import json

import numpy as np
import pytest

from smlmcore import fit, psf


def test_errors_of_a_known_size_come_out(rng):
    model, shape, n = psf.Gaussian2D(), (9, 8), 40_000
    truth = np.tile([3.5, 4.0, 1500.0, 8.0, 1.2], (n, 1))
    truth[:, 2] = rng.uniform(500, 3000, n)
    bound = model.crlb(truth, shape, 4.0)
    found = truth + bound * (rng.normal(size=truth.shape) * [1.0, 1.5, 1.0, 2.0, 1.0] + [0.0, 0.0, 0.5, 0.0, 0.0])
    score = fit.score(model, found, truth, shape, 4.0)
    expected = np.array([1.0, 1.5, np.hypot(1.0, 0.5), 2.0, 1.0])
    np.testing.assert_allclose(score.ratio, expected, rtol=5 / np.sqrt(2 * n))
    np.testing.assert_allclose(score.crlb, np.sqrt((bound**2).mean(0)))
    np.testing.assert_allclose(score.rmse, np.sqrt(((found - truth) ** 2).mean(0)))
    np.testing.assert_allclose(score.bias, (found - truth).mean(0))
    by_name = fit.score(model, dict(zip(model.names, found.T, strict=True)), truth, shape, 4.0)
    np.testing.assert_array_equal(by_name.deviation, score.deviation)


def test_a_failed_fit_is_counted_and_no_number_shows_it():
    model, shape = psf.Gaussian2D(1.3), (9, 9)
    truth = np.array([[4.0, 4.0, 1000.0, 5.0]] * 3)
    found = truth.copy()
    found[:, 0] += [1.0, np.nan, -1.0]
    score = fit.score(model, found, truth, shape)
    assert (score.failed, score.rmse[0], score.bias[0]) == (1, 1.0, 0.0)
    assert str(score).endswith("1 failed")
    numbers = json.loads(json.dumps(score.to_dict()))
    assert (numbers["fits"], numbers["failed"], numbers["x"]["rmse"]) == (2, 1, 1.0)
    nothing = fit.score(model, truth[:0], truth[:0], shape)
    assert len(nothing.deviation) == 0
    assert np.isnan([nothing.rmse, nothing.bias, nothing.crlb, nothing.ratio]).all()


def test_a_result_is_scored_and_what_does_not_fit_is_refused(rng):
    model = psf.Gaussian2D()
    images, truth = fit.simulate_spots(model, 500, (9, 9), rng)
    score = fit.score(model, fit.mle(images, model), truth, (9, 9))
    np.testing.assert_allclose(score.ratio, 1.0, atol=5 / np.sqrt(1000))
    with pytest.raises(ValueError, match="no background, sigma"):
        fit.score(model, {"x": 0, "y": 0, "photons": 0}, truth, (9, 9))
    with pytest.raises(ValueError, match=r"\(499, 5\) found for a truth of \(500, 5\)"):
        fit.score(model, truth[1:], truth, (9, 9))
