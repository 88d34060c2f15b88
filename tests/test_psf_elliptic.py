"""The elliptic Gaussian, along the pixels and rotated, first guesses, and the function that fitters compile."""

import numpy as np
import pytest
from scipy.integrate import dblquad
from scipy.special import erf

from smlmcore import fit, loss, psf
from smlmcore.testing import check_gradient

MODELS = {
    "isotropic": psf.Gaussian2D(),
    "fixed": psf.Gaussian2D(sigma=1.2),
    "elliptic": psf.EllipticGaussian2D(),
    "rotated": psf.EllipticGaussian2D(rotated=True),
    "ellipse": psf.EllipticGaussian2D(fixed=(1.8, 1.1, 0.5)),
    "astigmatic": psf.AstigmaticGaussian((1.2, 1.3), 0.25, (0.4, 0.45), a=0.05, b=(0.02, -0.02)),
}


def emitters(model, n, shape, seed=0, count=None):
    """Plausible parameters of `model` by name."""
    rng = np.random.default_rng(seed)
    size = n if count is None else (n, count)
    drawn = {
        "x": rng.uniform(1, shape[1] - 2, size),
        "y": rng.uniform(1, shape[0] - 2, size),
        "photons": rng.uniform(200, 3000, size),
        "background": rng.uniform(1, 20, n),
        "sigma": rng.uniform(0.9, 1.8, size),
        "sigma_x": rng.uniform(0.9, 1.8, size),
        "sigma_y": rng.uniform(0.9, 1.8, size),
        "angle": rng.uniform(-1.5, 1.5, size),
        "z": rng.uniform(-0.5, 0.5, size),
    }
    return {name: drawn[name] for name in model.names}


def table(parameters):
    return np.stack(list(parameters.values()), 1)


def density(x, y, sigma_x, sigma_y, angle):
    """The Gaussian by its inverse covariance, independent of the frame in which the library computes."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inverse = np.linalg.inv(turn @ np.diag([sigma_x**2, sigma_y**2]) @ turn.T)
    norm = np.sqrt(np.linalg.det(inverse)) / (2 * np.pi)

    def value(v, u):
        d = np.array([u - x, v - y])
        return norm * np.exp(-0.5 * d @ inverse @ d)

    return value


def independent_elliptic(x, y, photons, background, sigma_x, sigma_y, shape):
    rows = 0.5 * np.diff(erf((np.arange(shape[0] + 1) - 0.5 - y) / (np.sqrt(2) * sigma_y)))
    columns = 0.5 * np.diff(erf((np.arange(shape[1] + 1) - 0.5 - x) / (np.sqrt(2) * sigma_x)))
    return photons * np.outer(rows, columns) + background


# ---- images


def test_elliptic_is_the_separable_erf_model():
    model, shape = MODELS["elliptic"], (9, 13)
    p = emitters(model, 5, shape)
    image = model.render(p, shape)
    for i in range(5):
        np.testing.assert_allclose(image[i], independent_elliptic(*(v[i] for v in p.values()), shape), rtol=1e-12)


@pytest.mark.parametrize(
    ("sigma_x", "sigma_y", "angle"), [(0.8, 0.8, 0.0), (0.8, 1.6, 0.6), (0.8, 0.9, np.pi / 4), (1.9, 0.85, -1.1)]
)
def test_rotated_is_the_integral_over_the_pixel(sigma_x, sigma_y, angle):
    x, y = 4.3, 2.8
    p = {"x": [x], "y": [y], "photons": [1.0], "background": [0.0]}
    p |= {"sigma_x": [sigma_x], "sigma_y": [sigma_y], "angle": [angle]}
    image = MODELS["rotated"].render(p, (6, 9))[0]
    for row in range(1, 5):
        for column in range(2 + row % 2, 7, 2):
            edges = (column - 0.5, column + 0.5, row - 0.5, row + 0.5)
            integral, _ = dblquad(density(x, y, sigma_x, sigma_y, angle), *edges, epsabs=1e-9)
            assert abs(image[row, column] - integral) < 6e-5 * image.max()


def test_rotated_by_nothing_and_by_a_quarter_turn_is_the_elliptic_one():
    shape = (11, 12)
    p = emitters(MODELS["elliptic"], 6, shape, seed=4)
    exact = MODELS["elliptic"].render(p, shape)
    signal = (exact - p["background"][:, None, None]).max((1, 2), keepdims=True)
    zero = MODELS["rotated"].render({**p, "angle": np.zeros(6)}, shape)
    swapped = {**p, "sigma_x": p["sigma_y"], "sigma_y": p["sigma_x"], "angle": np.full(6, np.pi / 2)}
    assert (np.abs(zero - exact) < 6e-5 * signal).all()
    np.testing.assert_allclose(MODELS["rotated"].render(swapped, shape), zero, rtol=1e-12)


def test_the_angle_turns_from_x_to_y():
    p = {"x": [5.0], "y": [5.0], "photons": [1.0], "background": [0.0], "sigma_x": [2.0], "sigma_y": [0.8]}
    image = MODELS["rotated"].render({**p, "angle": [np.pi / 4]}, (11, 11))[0]
    assert image[7, 7] > 10 * image[7, 3]  # row and column grow together


# ---- derivatives


@pytest.mark.parametrize("name", ["elliptic", "rotated"])
@pytest.mark.parametrize("count", [None, 2])
def test_gradients_to_every_parameter(name, count):
    model = MODELS[name]
    p = emitters(model, 3, (7, 10), count=count)
    check_gradient(lambda *a: model.render(dict(zip(p, a, strict=True)), (7, 10)), *p.values())


@pytest.mark.parametrize("name", MODELS)
def test_partials_are_derivatives_of_the_image(name):
    model, shape = MODELS[name], (8, 6)
    theta = table(emitters(model, 5, shape))
    value, partials = model.partials(theta, shape)
    np.testing.assert_allclose(model.render(dict(zip(model.names, theta.T, strict=True)), shape), value, rtol=1e-12)
    for column in range(theta.shape[1]):
        step = np.zeros_like(theta)
        step[:, column] = 1e-4 * np.maximum(1, np.abs(theta[:, column]))  # error ~ step^2 f''' + eps / step
        numeric = (model.partials(theta + step, shape)[0] - model.partials(theta - step, shape)[0]) / (
            2 * step[:, column, None, None]
        )
        np.testing.assert_allclose(partials[:, column], numeric, atol=1e-6 * np.abs(numeric).max())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_function_that_fitters_compile_agrees_with_the_kernel(name, dtype):
    model, shape = MODELS[name], (7, 9)
    theta = table(emitters(model, 4, shape)).astype(dtype)
    expected = model.partials(theta, shape)
    for i in range(4):
        value, partials = np.full(shape, np.nan, dtype), np.full((len(model.names), *shape), np.nan, dtype)
        scratch = np.full(model.scratch_size(shape), np.nan, dtype)
        model.numba_partials(theta[i], model.constants.astype(dtype), value, partials, scratch)
        # the same numba code: equal but for the rounding of a fixed sigma's way
        np.testing.assert_allclose(value, expected[0][i], rtol=8 * np.finfo(dtype).eps)
        for got, want in zip(partials, expected[1][i], strict=True):
            np.testing.assert_allclose(got, want, atol=8 * np.finfo(dtype).eps * np.abs(want).max())


def test_crlb_against_an_independent_information_matrix():
    model, shape, variance = MODELS["elliptic"], (9, 12), 2.5
    theta = table(emitters(model, 4, shape, seed=3))
    for row, errors in zip(theta, model.crlb(theta, shape, variance), strict=True):
        jacobian = []
        for k in range(6):
            step = np.zeros(6)
            step[k] = 1e-4 * max(1, abs(row[k]))
            change = independent_elliptic(*(row + step), shape) - independent_elliptic(*(row - step), shape)
            jacobian.append(change.ravel() / (2 * step[k]))
        jacobian = np.array(jacobian)
        weights = 1 / (independent_elliptic(*row, shape).ravel() + variance)
        expected = np.sqrt(np.diag(np.linalg.inv((jacobian * weights) @ jacobian.T)))
        np.testing.assert_allclose(errors, expected, rtol=1e-5)


def test_crlb_turns_with_the_ellipse():
    """Seen in a box large enough, the errors along the ellipse's own axes do not depend on the direction."""
    theta = np.array([[10.0, 10.0, 2000.0, 5.0, 1.8, 1.1, 0.0], [10.0, 10.0, 2000.0, 5.0, 1.8, 1.1, np.pi / 2]])
    along, across = MODELS["rotated"].crlb(theta, (21, 21))
    np.testing.assert_allclose(along[[1, 0, 2, 3, 4, 5, 6]], across, rtol=1e-6)


# ---- first guesses


def spots(model, n, shape, rng, **parameters):
    centre = {"x": (shape[1] - 1) / 2 + rng.uniform(-1, 1, n), "y": (shape[0] - 1) / 2 + rng.uniform(-1, 1, n)}
    truth = np.stack([np.broadcast_to({**centre, **parameters}[name], n) for name in model.names], 1)
    return rng.poisson(model.partials(truth, shape)[0]).astype(np.float32), truth


@pytest.mark.parametrize("box", [7, 9, 11, 15])
def test_fits_converge_from_the_first_guess(box, rng):
    model, n = MODELS["isotropic"], 2000
    images, truth = spots(model, n, (box, box), rng, photons=2000, background=10, sigma=1.3)
    start = model.initial(images)
    assert start.dtype == np.float32
    # the guess itself is within a few standard errors
    assert (np.median(np.abs(start - truth) / model.crlb(truth, (box, box)), 0) < 2).all()
    result = fit.refine(model, images, 0.0, start, loss.PoissonGaussian())
    assert (result.status == fit.Status.converged).mean() >= 0.995
    error = (result.parameters - truth) / model.crlb(truth, (box, box))
    # RMSE of n samples has a relative standard error of 1/sqrt(2n); three of these above the bound of 1.02
    assert (np.sqrt((error**2).mean(0)) < 1.02 + 3 / np.sqrt(2 * n)).all()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("fixed", {}),
        ("elliptic", {"sigma_x": 1.1, "sigma_y": 1.9}),
        ("rotated", {"sigma_x": 2.0, "sigma_y": 1.2, "angle": 0.7}),
    ],
)
def test_every_gaussian_starts_well(name, parameters, rng):
    model, shape, n = MODELS[name], (13, 15), 1000
    images, truth = spots(model, n, shape, rng, photons=2000, background=10, **parameters)
    result = fit.refine(model, images, 0.0, model.initial(images), loss.PoissonGaussian())
    assert (result.status == fit.Status.converged).mean() >= 0.995
    error = (result.parameters - truth) / model.crlb(truth, shape)
    assert (np.sqrt((error**2).mean(0)) < 1.05 + 3 / np.sqrt(2 * n)).all()


@pytest.mark.parametrize(
    ("photons", "background", "sigma"), [(200, 0.1, 0.8), (200, 10, 1.3), (50_000, 300, 2.5), (2000, 0.1, 2.5)]
)
def test_dim_and_bright_wide_and_narrow(photons, background, sigma, rng):
    model, shape = MODELS["isotropic"], (13, 13)
    images, truth = spots(model, 500, shape, rng, photons=photons, background=background, sigma=sigma)
    start = model.initial(images)
    # in reach of the maximum: within half a width in most of the images
    assert (np.abs(start[:, :2] - truth[:, :2]).max(1) < 0.5 * sigma).mean() > 0.99
    assert (np.abs(np.log(start[:, 4] / sigma)) < 0.5).mean() > 0.99


def test_missing_and_noisy_pixels_hardly_move_the_guess(rng):
    model, shape = MODELS["isotropic"], (11, 11)
    images, truth = spots(model, 500, shape, rng, photons=2000, background=10, sigma=1.3)
    error = model.crlb(truth, shape)
    holes = images.copy()
    holes[:, 2, 7] = np.inf
    holes[:, 5, 5] = np.nan  # in the middle of the spot
    variance = np.zeros(shape)
    variance[6, 4] = 1e6
    hot = images.copy()
    hot[:, 6, 4] += rng.normal(0, 1000, 500)
    for changed, v in ((holes, 0.0), (hot, variance)):
        # close enough for the fit to need no more than an iteration on top; taken as they are, these pixels
        # move nine of ten guesses by 6 (hole) and 30 (noise) standard errors
        assert (np.quantile(np.abs(model.initial(changed, v) - truth) / error, 0.9, axis=0) < 5).all()


@pytest.mark.parametrize("name", MODELS)
def test_a_guess_is_finite_and_within_bounds_whatever_comes(name, rng):
    model = MODELS[name]
    for shape in [(7, 7), (1, 1), (5, 12)]:
        images = rng.poisson(5, (10, *shape)).astype(np.float64)
        images[0], images[1], images[2], images[3], images[4] = 0, 7, np.nan, -20, 65535
        images[5, 0, 0], images[6, -1], images[7, 0, -1] = np.inf, np.nan, 1e30
        images[8] = -np.inf
        bounds = np.array([model.bounds(shape)[k][:2] for k in model.names])
        for dtype in (np.float32, np.float64):
            start = model.initial(images.astype(dtype), 1.0)
            assert start.shape == (10, len(model.names))
            assert start.dtype == dtype
            assert np.isfinite(start).all()
            assert ((start >= bounds[:, 0].astype(dtype)) & (start <= bounds[:, 1].astype(dtype))).all()
    assert model.initial(np.zeros((0, 7, 7))).shape == (0, len(model.names))


def test_a_guess_depends_on_its_own_image_alone(rng):
    model = MODELS["isotropic"]
    images, _ = spots(model, 40, (9, 9), rng, photons=1000, background=5, sigma=1.2)
    together = model.initial(images)
    np.testing.assert_array_equal(model.initial(images[::-2]), together[::-2])
    np.testing.assert_array_equal(model.initial(images[7:8]), together[7:8])
    counts = images.astype(np.uint16)
    np.testing.assert_array_equal(model.initial(counts), together)


# ---- wrong input


def test_wrong_input_names_what_came():
    with pytest.raises(ValueError, match="columns x, y, photons, background, sigma_x, sigma_y, angle"):
        MODELS["rotated"].partials(np.zeros((2, 6)), (5, 5))
    with pytest.raises(ValueError, match="angle"):
        MODELS["rotated"].render(emitters(MODELS["elliptic"], 2, (6, 6)), (6, 6))
    with pytest.raises(ValueError, match=r"initial got spots of shape \(7, 7\)"):
        MODELS["elliptic"].initial(np.zeros((7, 7)))


def test_configuration_makes_the_same_psf():
    for model in MODELS.values():
        twin = type(model)(**model.configuration())
        assert twin.names == model.names
        np.testing.assert_array_equal(twin.constants, model.constants)
