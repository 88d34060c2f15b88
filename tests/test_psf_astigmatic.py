"""The astigmatic Gaussian: its widths, depth at the bound, and its calibration from a bead."""

import json

import numpy as np
import pytest
from scipy.special import erf

from smlmcore import fit, loss, psf
from smlmcore.testing import check_gradient

CALIBRATION = {
    "sigma0": (1.25, 1.3),
    "gamma": (0.22, -0.25),
    "depth": (0.42, 0.46),
    "a": (0.08, -0.06),
    "b": (0.05, 0.03),
    "z_range": (-0.7, 0.7),
}
SHAPE = (15, 15)


@pytest.fixture
def model():
    return psf.AstigmaticGaussian(**CALIBRATION)


def widths(z):
    """Both sigmas, written for this test alone."""
    u = [(z - g) / d for g, d in zip(CALIBRATION["gamma"], CALIBRATION["depth"], strict=True)]
    return [
        s * np.sqrt(1 + v**2 + a * v**3 + b * v**4)
        for s, v, a, b in zip(CALIBRATION["sigma0"], u, CALIBRATION["a"], CALIBRATION["b"], strict=True)
    ]


def independent_model(x, y, z, photons, background, shape=SHAPE):
    sigma_x, sigma_y = widths(z)
    rows = 0.5 * np.diff(erf((np.arange(shape[0] + 1) - 0.5 - y) / (np.sqrt(2) * sigma_y)))
    columns = 0.5 * np.diff(erf((np.arange(shape[1] + 1) - 0.5 - x) / (np.sqrt(2) * sigma_x)))
    return photons * np.outer(rows, columns) + background


def draw(n, rng, photons=2000.0, background=10.0, z=(-0.5, 0.5)):
    columns = (7 + rng.uniform(-1, 1, n), 7 + rng.uniform(-1, 1, n), rng.uniform(*z, n), photons, background)
    return np.stack([np.broadcast_to(c, n) for c in columns], 1)


def test_image_is_the_separable_erf_model(model, rng):
    theta = draw(6, rng)
    image = model.render(dict(zip(model.names, theta.T, strict=True)), SHAPE)
    for row, got in zip(theta, image, strict=True):
        np.testing.assert_allclose(got, independent_model(*row), rtol=1e-12)
    np.testing.assert_allclose(model.sigma(theta[:, 2]), np.stack(widths(theta[:, 2]), 1), rtol=1e-12)


def test_one_number_for_gamma_means_opposite_foci():
    symmetric = psf.AstigmaticGaussian(1.2, 0.3, 0.4)
    np.testing.assert_allclose(symmetric.sigma([0.3, -0.3])[[0, 1], [0, 1]], 1.2)
    np.testing.assert_allclose(symmetric.sigma([0.7, -0.7])[[0, 1], [0, 1]], 1.2 * np.sqrt(2))


@pytest.mark.parametrize("count", [None, 2])
def test_gradients_to_every_parameter(model, count, rng):
    size = 3 if count is None else (3, count)
    values = [rng.uniform(2, 6, size), rng.uniform(2, 5, size), rng.uniform(-0.5, 0.5, size)]
    values += [rng.uniform(500, 900, size), rng.uniform(1, 9, 3)]
    check_gradient(lambda *a: model.render(dict(zip(model.names, a, strict=True)), (8, 9)), *values)


def test_crlb_against_an_independent_information_matrix(model, rng):
    theta = draw(5, rng)
    for row, errors in zip(theta, model.crlb(theta, SHAPE, 2.0), strict=True):
        jacobian = []
        for k in range(5):
            step = np.zeros(5)
            step[k] = 1e-5 * max(1, abs(row[k]))
            jacobian.append(
                (independent_model(*(row + step)) - independent_model(*(row - step))).ravel() / (2 * step[k])
            )
        jacobian = np.array(jacobian)
        weights = 1 / (independent_model(*row).ravel() + 2.0)
        expected = np.sqrt(np.diag(np.linalg.inv((jacobian * weights) @ jacobian.T)))
        np.testing.assert_allclose(errors, expected, rtol=1e-5)


def test_depth_at_the_bound(model, rng):
    n = 5000
    truth = draw(n, rng)
    images = rng.poisson(model.partials(truth, SHAPE)[0]).astype(np.float32)
    result = fit.refine(model, images, 0.0, model.initial(images), loss.PoissonGaussian())
    assert (result.status == fit.Status.converged).mean() >= 0.995
    bound = model.crlb(truth, SHAPE)
    ratio = np.sqrt((((result.parameters - truth) / bound) ** 2).mean(0))
    assert (ratio[:3] < 1.05).all(), ratio
    assert (ratio > 1 - 4 / np.sqrt(2 * n)).all(), ratio
    np.testing.assert_allclose(np.median(result.errors / bound, 0), 1, atol=0.03)


def test_depth_stays_in_the_calibrated_range(model, rng):
    theta = draw(50, rng, z=(0.69, 0.7), photons=300.0)
    images = rng.poisson(model.partials(theta, SHAPE)[0])
    result = fit.refine(model, images, 0.0, model.initial(images), loss.PoissonGaussian())
    assert ((result.z >= -0.7) & (result.z <= 0.7)).all()
    held = result.status == fit.Status.at_bound
    assert held.any()
    assert (np.abs(result.z[held]) == 0.7).all()


def bead(rng, photons=100_000.0, slices=71, read_noise=0.0):
    z = np.linspace(-0.7, 0.7, slices)
    model = psf.AstigmaticGaussian(**CALIBRATION)
    theta = np.stack([np.full(slices, v) for v in (9.2, 8.7)] + [z, np.full(slices, photons), np.full(slices, 15.0)], 1)
    mu = model.partials(theta, (19, 19))[0]
    return rng.poisson(mu) + rng.normal(0, read_noise, mu.shape), z


@pytest.mark.parametrize("read_noise", [0.0, 5.0])
def test_calibration_from_a_bead(rng, read_noise):
    stack, z = bead(rng, read_noise=read_noise)
    found = psf.AstigmaticGaussian.calibrate(stack, z, variance=read_noise**2)
    np.testing.assert_allclose(found.sigma(z), np.stack(widths(z), 1), rtol=0.01)
    got = found.configuration()
    for name in ("sigma0", "gamma", "depth"):
        np.testing.assert_allclose(got[name], CALIBRATION[name], rtol=0.01, err_msg=name)
    np.testing.assert_allclose(got["z_range"], (-0.7, 0.7))
    report = found.report
    assert report.used.all()
    np.testing.assert_allclose(report.sigma - report.residual, found.sigma(z))
    # the residuals are the slices' standard errors: chi2 of 2 * 71 - 10 degrees of freedom
    chi2 = ((report.residual / report.error) ** 2).sum()
    assert abs(chi2 - 132) < 5 * np.sqrt(2 * 132)


def test_calibration_survives_bad_slices_and_any_order(rng):
    stack, z = bead(rng)
    stack = stack.astype(float)
    stack[10] = np.nan
    order = rng.permutation(len(z))
    found = psf.AstigmaticGaussian.calibrate(stack[order], z[order])
    np.testing.assert_allclose(found.sigma(z), np.stack(widths(z), 1), rtol=0.01)
    assert (~found.report.used).sum() == 1


def test_a_calibration_goes_through_json(model):
    twin = psf.AstigmaticGaussian(**json.loads(json.dumps(model.configuration())))
    np.testing.assert_array_equal(twin.constants, model.constants)
    assert twin.z_range == model.z_range


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sigma0": (1.2, -1)}, "sigma0="),
        ({"depth": 0}, "depth=0"),
        ({"gamma": (0.1, 0.2, 0.3)}, "gamma=.*pair"),
        ({"a": np.nan}, "a=nan"),
        ({"z_range": (0.5, -0.5)}, "z_range"),
        ({"b": (0.05, -0.9)}, "no real sigma_y"),
    ],
)
def test_wrong_calibrations_name_what_came(change, words):
    with pytest.raises(ValueError, match=words):
        psf.AstigmaticGaussian(**{**CALIBRATION, **change})


def test_wrong_stacks_name_what_came(rng):
    with pytest.raises(ValueError, match=r"stack of shape \(5, 9, 9\) and z of shape \(4,\)"):
        psf.AstigmaticGaussian.calibrate(np.ones((5, 9, 9)), np.zeros(4))
    with pytest.raises(ValueError, match=r"could fit .* of 10 slices"):
        psf.AstigmaticGaussian.calibrate(np.full((10, 9, 9), np.nan), np.linspace(-1, 1, 10))
