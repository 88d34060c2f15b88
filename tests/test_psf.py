"""The Gaussian PSF against quadrature and an independent bound."""

import numpy as np
import pytest
from scipy.integrate import dblquad
from scipy.special import erf

from smlmcore import psf
from smlmcore.autograd import Tensor
from smlmcore.psf import moments
from smlmcore.testing import check_gradient


def independent_model(x, y, photons, background, sigma, shape):
    """Difference of scipy's erf, written for this test alone."""
    rows = 0.5 * np.diff(erf((np.arange(shape[0] + 1) - 0.5 - y) / (np.sqrt(2) * sigma)))
    columns = 0.5 * np.diff(erf((np.arange(shape[1] + 1) - 0.5 - x) / (np.sqrt(2) * sigma)))
    return photons * np.outer(rows, columns) + background


def emitters(n, shape, seed=0, count=None):
    rng = np.random.default_rng(seed)
    size = n if count is None else (n, count)
    return {
        "x": rng.uniform(0, shape[1] - 1, size),
        "y": rng.uniform(0, shape[0] - 1, size),
        "photons": rng.uniform(200, 3000, size),
        "background": rng.uniform(1, 20, n),
        "sigma": rng.uniform(0.9, 1.8, size),
    }


def test_pixel_value_is_the_integral_over_the_pixel():
    p = {"x": [4.3], "y": [2.8], "photons": [1000.0], "background": [2.0], "sigma": [1.1]}
    image = psf.Gaussian2D().render(p, (6, 9))[0]
    for row, column in [(2, 4), (3, 5), (0, 0), (5, 8)]:
        integral, error = dblquad(
            lambda v, u: np.exp(-((u - 4.3) ** 2 + (v - 2.8) ** 2) / (2 * 1.1**2)) / (2 * np.pi * 1.1**2),
            *(column - 0.5, column + 0.5, row - 0.5, row + 0.5),
            epsabs=1e-13,
        )
        assert abs(image[row, column] - (1000 * integral + 2)) < 1e-9 + 1000 * error


@pytest.mark.parametrize("shape", [(11, 11), (5, 8), (1, 7)])
def test_several_emitters_add_up_and_background_counts_once(shape):
    p = emitters(4, shape, count=3)
    image = psf.Gaussian2D().render(p, shape)
    for i in range(4):
        parts = [
            independent_model(*(p[k][i, e] for k in ("x", "y", "photons")), 0, p["sigma"][i, e], shape)
            for e in range(3)
        ]
        np.testing.assert_allclose(image[i], sum(parts) + p["background"][i], rtol=1e-12)


def test_fixed_sigma_is_the_same_image_with_one_parameter_less():
    p = emitters(3, (9, 9))
    p["sigma"] = np.full(3, 1.4)
    fixed = psf.Gaussian2D(sigma=1.4)
    without = {k: v for k, v in p.items() if k != "sigma"}
    np.testing.assert_array_equal(fixed.render(without, (9, 9)), psf.Gaussian2D().render(p, (9, 9)))
    value, partials = fixed.partials(np.stack([without[k] for k in fixed.names], 1), (9, 9))
    assert partials.shape == (3, 4, 9, 9)
    np.testing.assert_allclose(value, fixed.render(without, (9, 9)), rtol=1e-13)


def test_gradients_to_every_parameter():
    names = ("x", "y", "photons", "background", "sigma")
    for count in (None, 2):
        p = emitters(3, (7, 10), count=count)
        check_gradient(
            lambda *a: psf.Gaussian2D().render(dict(zip(names, a, strict=True)), (7, 10)), *(p[k] for k in names)
        )


def test_partials_are_derivatives_of_the_image():
    model = psf.Gaussian2D()
    theta = np.stack([emitters(5, (8, 6))[k] for k in model.names], 1)
    _, partials = model.partials(theta, (8, 6))
    for column in range(5):
        step = 1e-4 * np.maximum(1, np.abs(theta[:, column]))  # error ~ step^2 * third derivative + eps / step
        up, down = theta.copy(), theta.copy()
        up[:, column] += step
        down[:, column] -= step
        numeric = (model.partials(up, (8, 6))[0] - model.partials(down, (8, 6))[0]) / (2 * step)[:, None, None]
        scale = np.abs(numeric).max()
        np.testing.assert_allclose(partials[:, column], numeric, atol=1e-6 * scale)


def test_crlb_against_an_independent_information_matrix():
    model, shape, variance = psf.Gaussian2D(), (9, 12), 2.5
    theta = np.stack([emitters(6, shape, seed=3)[k] for k in model.names], 1)
    for row, errors in zip(theta, model.crlb(theta, shape, variance), strict=True):
        jacobian = []
        for k in range(5):
            step = np.zeros(5)
            step[k] = 1e-4 * max(1, abs(row[k]))
            jacobian.append(
                (independent_model(*(row + step), shape) - independent_model(*(row - step), shape)).ravel()
                / (2 * step[k])
            )
        jacobian = np.array(jacobian)
        weights = 1 / (independent_model(*row, shape).ravel() + variance)
        expected = np.sqrt(np.diag(np.linalg.inv((jacobian * weights) @ jacobian.T)))
        np.testing.assert_allclose(errors, expected, rtol=1e-5)


def test_crlb_of_a_dark_emitter_is_nan_not_a_number_that_lies():
    assert np.isnan(psf.Gaussian2D().crlb([[5.0, 5.0, 0.0, 10.0, 1.3]], (11, 11))).all()


def test_kinds_of_input():
    model = psf.Gaussian2D()
    p = emitters(2, (6, 6))
    reference = model.render(p, (6, 6))
    single = model.render({k: v.astype(np.float32) for k, v in p.items()}, (6, 6))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, reference, rtol=1e-4)
    strided = {k: np.repeat(v, 2)[::2] for k, v in p.items()}
    np.testing.assert_array_equal(model.render(strided, (6, 6)), reference)
    assert model.render({k: v[:0] for k, v in p.items()}, (6, 6)).shape == (0, 6, 6)
    integers = {"x": [3], "y": [3], "photons": [100], "background": [1], "sigma": 1}
    assert model.render(integers, (6, 6)).dtype == np.float64
    assert model.render({**p, "sigma": 1.0}, (6, 6)).shape == (2, 6, 6)


def test_a_tensor_among_arrays_decides_dtype_and_gets_the_gradient():
    p = emitters(2, (6, 6))
    x = Tensor(p["x"].astype(np.float32))
    image = psf.Gaussian2D().render({**p, "x": x}, (6, 6))
    image.sum().backward()
    assert image.dtype == np.float32
    assert x.grad.shape == (2,)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sigma": None}, "sigma"),
        ({"x": np.zeros(3)}, r"shapes .*\(3,\)"),
        ({"background": np.ones((2, 2))}, "counted once per image"),
        ({"z": np.zeros(2)}, "'z'"),
    ],
)
def test_wrong_parameters_name_what_came(change, words):
    p = {k: v for k, v in {**emitters(2, (6, 6)), **change}.items() if v is not None}
    with pytest.raises(ValueError, match=words):
        psf.Gaussian2D().render(p, (6, 6))


def test_wrong_sigma_and_wrong_columns():
    with pytest.raises(ValueError, match="sigma=-1"):
        psf.Gaussian2D(sigma=-1)
    with pytest.raises(ValueError, match="columns x, y, photons, background, sigma"):
        psf.Gaussian2D().partials(np.zeros((2, 4)), (5, 5))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_compiled_moments_are_those_of_the_array_operations(dtype):
    rng, shape = np.random.default_rng(0), (9, 11)
    model = psf.EllipticGaussian2D(rotated=True)
    truth = rng.uniform([3, 3, 100, 0.1, 0.8, 0.8, -3], [7, 6, 3000, 30, 2, 2, 3], (500, 7))
    images = rng.poisson(model.partials(truth, shape)[0]).astype(dtype)
    images[:2] = np.zeros(shape), -np.ones(shape)
    expected, found = np.array(moments._measure(images)), np.empty((5, 500), dtype)
    moments._measure_cpu(images, found)
    # both take the same few hundred operations for each number, of which the largest is about ten
    np.testing.assert_allclose(found, expected, rtol=0, atol=3000 * np.finfo(dtype).eps)
