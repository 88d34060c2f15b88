"""B-splines against scipy.ndimage and against their own definition, gradients against differences."""

import numpy as np
import pytest
from scipy import ndimage

from smlmcore import testing
from smlmcore.autograd import Tensor
from smlmcore.interpolate import affine, prefilter, resample, sample, shift, zoom
from smlmcore.interpolate.bspline import ALIASES
from smlmcore.interpolate.kernels import basis
from smlmcore.interpolate.modes import MODES

SCIPY = {"mirror": "mirror", "reflect": "reflect", "periodic": "grid-wrap", "zero": "grid-constant"}
SCIPY["constant"] = "constant"
SHAPES = [(23,), (24, 21), (20, 22, 21)]  # on axes shorter than 20, scipy's filter for "reflect" is not exact


def data(shape, points=300, dtype=np.float64):
    rng = np.random.default_rng(len(shape))
    a = rng.normal(size=shape).astype(dtype)
    n = 1.0 * np.array(shape)
    return a, rng.uniform(-n, 2 * n, (points, len(shape))).astype(dtype)


def error(got, want):
    return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize(("dtype", "limit"), [(np.float64, 1e-12), (np.float32, 2e-6)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("degree", range(6))
def test_coefficients_and_values_are_those_of_scipy(degree, mode, shape, dtype, limit):
    a, points = data(shape)
    if mode == "zero":  # scipy has no filter for it: see the test of its samples
        c = a
    else:
        c = a if degree < 2 else ndimage.spline_filter(a, degree, np.float64, SCIPY[mode])
        assert error(prefilter(a.astype(dtype), degree, mode), c) < limit
    single = points.astype(dtype)
    if dtype == np.float32:
        c = c.astype(dtype).astype(float)
    got = sample(c.astype(dtype), single, degree, mode)
    want = ndimage.map_coordinates(c, single.T.astype(float), order=degree, mode=SCIPY[mode], prefilter=False)
    assert got.dtype == dtype
    assert error(got, want) < limit


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("degree", range(6))
@pytest.mark.parametrize("length", [1, 2, 3, 7, 90])
def test_the_spline_passes_through_its_samples(degree, mode, length):
    a = np.random.default_rng(length).normal(size=length)
    np.testing.assert_allclose(resample(a, np.arange(length)[:, None], degree, mode), a, rtol=0, atol=1e-12)


@pytest.mark.parametrize("degree", range(6))
def test_basis_sums_to_one_and_slopes_are_derivatives(degree):
    t, step = np.linspace(0.01, 0.98, 7), 1e-6
    weights, slopes = basis(t, degree)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-15)
    difference = (basis(t + step, degree)[0] - basis(t - step, degree)[0]) / (2 * step)
    np.testing.assert_allclose(slopes, difference, atol=1e-9)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("degree", [1, 2, 3, 5])
def test_gradients(degree, mode):
    for shape in [(7,), (5, 6), (3, 4, 5)]:
        a, points = data(shape, points=20)
        points = np.floor(points) + 0.25 + 0.01 * (points % 1)  # far from the knots
        testing.check_gradient(lambda a, p, d=degree: resample(a, p, d, mode), a, points)


def test_prefilter_is_a_filter_and_its_gradient_the_adjoint():
    rng = np.random.default_rng(0)
    for degree in (3, 4):
        for mode in MODES:
            a, g = rng.normal(size=(2, 6, 2))
            t = Tensor(a, requires_grad=True)
            prefilter(t, degree, mode).backward(g)
            np.testing.assert_allclose((t.grad * a).sum(), (g * prefilter(a, degree, mode)).sum(), rtol=1e-12)


@pytest.mark.parametrize("degree", [1, 3])
def test_shift_zoom_and_affine_are_those_of_scipy(degree):
    a, _ = data((14, 11))
    kind = {"order": degree, "mode": "mirror"}
    np.testing.assert_allclose(shift(a, [0.3, -2.7], degree), ndimage.shift(a, (0.3, -2.7), **kind), atol=1e-12)
    matrix, offset = np.array([[0.9, 0.2], [-0.3, 1.1]]), np.array([0.4, -1.3])
    want = ndimage.affine_transform(a, matrix, offset, (8, 21), **kind)
    np.testing.assert_allclose(affine(a, matrix, offset, (8, 21), degree), want, atol=1e-12)
    centres = [
        (np.arange(m) - (m - 1) / 2) / f + (n - 1) / 2 for m, f, n in zip((28, 6), (2.0, 0.5), a.shape, strict=True)
    ]
    want = ndimage.map_coordinates(a, np.meshgrid(*centres, indexing="ij"), **kind)
    np.testing.assert_allclose(zoom(a, (2.0, 0.5), degree, shape=(28, 6)), want, atol=1e-12)
    assert zoom(a, 1.5, degree).shape == (21, 16)


def test_batches():
    rng = np.random.default_rng(1)
    a, moves = rng.normal(size=(3, 8, 9)), rng.uniform(-2, 2, (3, 2))
    one_by_one = np.stack([shift(x, s) for x, s in zip(a, moves, strict=True)])
    np.testing.assert_allclose(shift(a, moves), one_by_one, atol=1e-13)
    np.testing.assert_allclose(shift(a, moves[0])[2], shift(a[2], moves[0]), atol=1e-13)
    np.testing.assert_allclose(shift(a[0], moves)[2], shift(a[0], moves[2]), atol=1e-13)
    testing.check_gradient(shift, a, moves)
    testing.check_gradient(lambda a, m, o: affine(a, m, o, (4, 5)), a, rng.normal(size=(3, 2, 2)), moves)
    testing.check_gradient(lambda a: zoom(a, (1.5, 0.7)), a)


def test_empty_arrays_other_dtypes_and_strides():
    a, points = data((9, 12, 10))
    assert sample(a, points[:0]).shape == (0,)
    assert sample(np.empty((0, 4, 4)), np.empty((0, 5, 2))).shape == (0, 5)
    counts = np.arange(40, dtype=np.uint16).reshape(5, 8)
    assert resample(counts, [[2.0, 3.0]]).dtype == np.float32
    np.testing.assert_array_equal(sample(a[::2, ::-1], points), sample(a[::2, ::-1].copy(), points))
    np.testing.assert_array_equal(prefilter(a[::2, ::-1]), prefilter(a[::2, ::-1].copy()))


@pytest.mark.parametrize("mode", MODES)
def test_points_that_are_no_numbers_give_nan_and_no_gradient(mode):
    a = Tensor(np.arange(12.0).reshape(3, 4) + 1, requires_grad=True)
    points = np.array([[np.nan, 1.0], [1.0, np.inf], [-(2.0**31), 0.0], [1.0, 2.0]])
    values = sample(a, points, 3, mode)
    assert np.isnan(values.data).tolist() == [True, True, True, False]
    values.backward(np.ones(4))
    assert np.isfinite(a.grad).all()
    np.testing.assert_allclose(a.grad.sum(), 1)  # of the one point that is a number


def test_aliases_and_errors():
    a = np.ones((4, 5))
    for alias, name in ALIASES.items():
        np.testing.assert_array_equal(shift(a, [0.3, 0.1], 3, alias), shift(a, [0.3, 0.1], 3, name))
    for call, error_, text in [
        (lambda: prefilter(a, 6), ValueError, "degree=6; expected 0 to 5"),
        (lambda: prefilter(a, 3, "wrap"), ValueError, "mode='wrap'; expected one of mirror"),
        (lambda: prefilter(a + 1j), TypeError, "complex128; expected real"),
        (lambda: prefilter(np.ones((2, 2, 2, 2))), ValueError, "dims=4"),
        (lambda: sample(a, np.ones((7, 3))), ValueError, r"points of shape \(7, 3\)"),
        (lambda: sample(np.ones((3, 4, 5)), np.ones((4, 2))), ValueError, r"batch \(3,\)"),
        (lambda: sample(np.ones((0, 4)), np.ones((4, 2))), ValueError, "none of them empty"),
        (lambda: shift(a, 1.0), ValueError, "0 coordinates"),
        (lambda: zoom(a, 0.0), ValueError, "factor=0.0"),
        (lambda: zoom(a, 2.0, shape=(3,)), ValueError, r"shape=\(3,\); expected 2 lengths"),
        (lambda: affine(a, np.ones((3, 2))), ValueError, r"matrix \(3, 2\)"),
    ]:
        with pytest.raises(error_, match=text):
            call()
