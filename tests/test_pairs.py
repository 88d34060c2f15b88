"""Two emitters in each image: against scipy's maximum of the likelihood, and the Cramér–Rao bound."""

import numpy as np
import pytest
from scipy.optimize import minimize

from smlmcore import fit
from smlmcore.fit import pairs
from smlmcore.psf import Gaussian2D

SIGMA, READ = 1.3, 1.0
HELD = Gaussian2D(SIGMA)


def images(n, distance, seed=0):
    """Images (n, 9, 9) of pairs so far apart, in any direction; 0: of single emitters; and the truth (n, 7)."""
    rng = np.random.default_rng(seed)
    angle, (x, y) = rng.uniform(0, 2 * np.pi, n), rng.uniform(3.6, 4.4, (2, n))
    dx, dy = distance / 2 * np.cos(angle), distance / 2 * np.sin(angle)
    photons = rng.uniform(1500, 2500, (2, n))
    truth = np.stack([x - dx, y - dy, photons[0], x + dx, y + dy, photons[1], np.full(n, 10.0)], 1)
    mean = model(truth)
    return (rng.poisson(mean) + rng.normal(0, READ, mean.shape)).astype(np.float32), truth


def model(theta):
    one, two = theta[..., [0, 1, 2, 6]], theta[..., [3, 4, 5]]
    first = HELD.render(dict(zip(("x", "y", "photons", "background"), one.T, strict=True)), (9, 9))
    return first + HELD.render({**dict(zip(("x", "y", "photons"), two.T, strict=True)), "background": 0.0}, (9, 9))


def run(spots, variance=READ**2):
    single = fit.mle(spots, HELD, variance=READ**2, progress=False)
    return pairs.fit(spots, np.broadcast_to(np.float32(variance), spots.shape), single.parameters, SIGMA), single


def likelihood(theta, spot):
    mean, x = model(theta[None])[0] + READ**2, np.maximum(spot + READ**2, 0)
    return float((x * np.log(mean) - mean).sum())


def test_the_highest_likelihood_and_the_errors_of_the_information_there():
    spots, truth = images(40, 2.2)
    found, _ = run(spots)
    assert found.converged.all()
    for theta, errors, spot, start in zip(*found[:2], spots.astype(float), truth, strict=True):
        scale = errors.astype(float)
        best = minimize(lambda u: -likelihood(start + u * scale, spot), np.zeros(7), method="BFGS")  # noqa: B023
        # the last step is below 0.3 standard errors, and leaves a small part of that
        assert likelihood(theta.astype(float), spot) > -best.fun - 0.01
        step = 1e-4 * scale
        partials = np.stack(
            [(model((theta + s)[None]) - model((theta - s)[None]))[0].ravel() / (2 * s.sum()) for s in np.diag(step)]
        )
        information = (partials / (model(theta[None])[0].ravel() + READ**2)) @ partials.T
        bound = np.sqrt(np.diag(np.linalg.inv(information)))
        np.testing.assert_allclose(errors, bound, rtol=0.05)  # they are of the point before the last step


def test_pairs_at_the_bound():
    spots, truth = images(6000, 2.4)
    found, _ = run(spots)
    assert found.converged.mean() > 0.999
    assert (found.gain > 8).mean() > 0.999
    swapped = truth[:, [3, 4, 5, 0, 1, 2, 6]]
    straight = (abs(found.parameters - truth)[:, :2].sum(1) < abs(found.parameters - swapped)[:, :2].sum(1))[:, None]
    z = ((found.parameters - np.where(straight, truth, swapped)) / found.errors)[found.converged]
    spread = np.sqrt((z[:, :6] ** 2).mean(0))
    assert (abs(spread - 1) < 0.04).all(), spread  # 1 / sqrt(2 n) is 0.009; the likelihood is not quite quadratic
    assert abs(found.chi2.mean() - (81 - 7)) < 4 * np.sqrt(2 * 74 / 6000) + 0.5


def test_one_emitter_is_hardly_ever_two():
    spots, _ = images(4000, 0.0)
    found, _ = run(spots)
    # three more parameters, of which none is known below a photon count of 0: exp(-8) times a few
    assert (found.gain > 8).mean() < 0.003


def test_gain_and_chi_square_are_those_of_the_models():
    spots, _ = images(50, 2.0)
    found, single = run(spots)
    for i, spot in enumerate(spots.astype(float)):
        theta = found.parameters[i].astype(float)
        x, y, photons, background = single.parameters[i].astype(float)
        one = np.array([x, y, photons, x, y, 0.0, background])
        assert abs(likelihood(theta, spot) - likelihood(one, spot) - found.gain[i]) < 0.02
        mean = model(theta[None])[0]
        expected = ((spot - mean) ** 2 / (mean + READ**2)).sum()
        assert abs(found.chi2[i] - expected) < 0.1 + 0.01 * expected


def test_what_is_not_seen_says_nothing():
    spots, _ = images(20, 2.2)
    variance = np.full(spots.shape, READ**2, np.float32)
    variance[:, 0] = variance[:, :, 8] = 1e12
    dark, hidden = spots.copy(), spots.copy()
    dark[:, 0], hidden[:, 0] = 0.0, 1e5
    dark[:, :, 8], hidden[:, :, 8] = 0.0, np.nan
    single = fit.mle(spots, HELD, variance=READ**2, progress=False).parameters
    first, second = (pairs.fit(s, variance, single, SIGMA) for s in (dark, hidden))
    assert first.converged.all()
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_result_depends_on_the_others():
    spots, _ = images(100, 1.5)
    single = fit.mle(spots, HELD, variance=READ**2, progress=False).parameters
    variance = np.full(spots.shape, READ**2, np.float32)
    whole = pairs.fit(spots, variance, single, SIGMA)
    for rows in (slice(0, 0), slice(7, 8), slice(30, 77)):
        for a, b in zip(whole, pairs.fit(spots[rows], variance[rows], single[rows], SIGMA), strict=True):
            np.testing.assert_array_equal(a[rows], b)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_start_that_is_no_number_does_not_converge(bad):
    spots, _ = images(3, 2.0)
    single = fit.mle(spots, HELD, variance=READ**2, progress=False).parameters.copy()
    single[1, 0] = bad
    found = pairs.fit(spots, np.full(spots.shape, READ**2, np.float32), single, SIGMA)
    assert found.converged.tolist() == [True, False, True]
