"""Deconvolution: what expectation-maximisation promises, and what it gets out of blurred and noisy images."""

import numpy as np
import pytest

from smlmcore import renderer
from smlmcore.deconvolution import deconvolve

Y, X = np.mgrid[:24, :27]
KERNEL = np.exp(-0.5 * ((np.mgrid[:9, :8][0] - 4) ** 2 + (np.mgrid[:9, :8][1] - 4) ** 2) / 1.5**2)
KERNEL /= KERNEL.sum()


@pytest.fixture
def bars():
    truth = np.zeros((24, 27))
    truth[6:18, 8] = truth[6:18, 12] = truth[7, 15:22] = 400.0
    return truth


def blurred(sharp):
    return np.maximum(renderer.convolve(sharp, KERNEL, "periodic"), 0)


@pytest.mark.parametrize("mode", ["periodic", "same", "valid"])
def test_each_step_raises_the_likelihood_and_keeps_the_photons(mode, bars, rng):
    sharp = np.pad(bars, ((4, 4), (4, 3))) if mode == "valid" else bars
    data = rng.poisson(renderer.convolve(sharp, KERNEL, mode) + 2.0).astype(float)
    found = deconvolve(data, KERNEL, 60, mode=mode, background=2.0)
    assert found.object.shape == sharp.shape
    assert (found.object >= 0).all()
    assert (np.diff(found.loss) <= 1e-12 * np.abs(found.loss[0])).all()
    if mode == "periodic":  # with no background a step makes the sum of the prediction that of the data
        plain = deconvolve(data, KERNEL, 3)
        np.testing.assert_allclose(plain.prediction.sum(), data.sum(), rtol=1e-10)
    inside = renderer.convolve(found.object, KERNEL, mode) + 2.0
    np.testing.assert_allclose(found.prediction, inside, rtol=1e-9)


def test_one_step_is_the_formula(bars, rng):
    data = rng.poisson(blurred(bars) + 1.0) + rng.normal(0, 2, bars.shape)
    start, v, b = rng.uniform(1, 2, bars.shape), 4.0, 1.0
    mean = renderer.convolve(start, KERNEL, "periodic") + b + v
    ratio = np.maximum(data + v, 0) / mean
    # the adjoint of a convolution: with the kernel turned about its centre, which is off by one where its size is even
    turned = np.pad(KERNEL, ((0, 0), (0, 1)))[::-1, ::-1]
    expected = start * renderer.convolve(ratio, turned, "periodic")
    found = deconvolve(data, KERNEL, 1, background=b, variance=v, start=start)
    np.testing.assert_allclose(found.object, expected, rtol=1e-10)


def test_it_sharpens_and_the_refined_kernel_comes_nearer_to_the_true_one(bars, rng):
    bars *= 50
    data = rng.poisson(blurred(bars))
    wrong = KERNEL**0.6  # 1.3 times as wide
    error = {}
    for name, refine in (("kept", None), ("refined", 50)):
        found = deconvolve(data, wrong, 400, refine=refine)
        error[name] = np.sqrt(((found.object - bars) ** 2).mean())
        assert abs(found.kernel.sum() - 1) < 1e-12
        assert (found.kernel >= 0).all()
    assert error["refined"] < 0.8 * error["kept"] < 0.8 * np.sqrt(((data - bars) ** 2).mean())
    distance = np.abs(found.kernel - KERNEL).sum() / np.abs(wrong / wrong.sum() - KERNEL).sum()
    assert distance < 0.7


def test_masked_and_saturated_pixels_and_every_dtype(bars, rng):
    data = rng.poisson(blurred(bars)).astype(float)
    holes = data.copy()
    holes[3, 4] = np.nan
    holes[12, 12] = np.inf
    found = deconvolve(holes, KERNEL, 30)
    assert np.isfinite(found.object).all()
    assert abs(found.prediction[12, 12] - data[12, 12]) < 10 * np.sqrt(data[12, 12])
    assert deconvolve(data.astype(np.uint16), KERNEL, 3).object.dtype == np.float32
    assert (deconvolve(np.zeros_like(data), KERNEL, 3).object < 1e-6).all()
    assert np.isfinite(deconvolve(np.full_like(data, np.nan), KERNEL, 3).object).all()


def test_volumes(rng):
    truth = np.zeros((7, 9, 8))
    truth[3, 4, 2:6] = 500
    kernel = np.einsum("i,j,k->ijk", *[[1.0, 2.0, 1.0]] * 3)
    data = renderer.convolve(truth, kernel / kernel.sum(), "periodic")
    found = deconvolve(data, kernel, 300).object
    assert np.abs(found - truth).max() < 0.1 * 500


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kernel": np.ones((3, 3, 3))}, r"a kernel of shape \(3, 3, 3\)"),
        ({"kernel": np.ones((30, 3))}, "larger than the image"),
        ({"kernel": np.zeros((3, 3))}, "sum 0.0"),
        ({"kernel": -KERNEL}, ">= 0"),
        ({"mode": "reflect"}, "mode 'reflect'"),
        ({"iterations": -1}, "iterations=-1"),
        ({"variance": -1.0}, "variance of shape"),
        ({"start": np.ones((2, 2))}, r"start of shape \(2, 2\)"),
    ],
)
def test_errors(change, words, bars):
    with pytest.raises(ValueError, match=words):
        deconvolve(**{"image": bars, "kernel": KERNEL, "iterations": 1, **change})


def test_a_symmetric_kernel_stays_so_and_helps_where_its_start_is_a_guess(bars, rng):
    bars *= 50
    data = rng.poisson(blurred(bars))
    guess = np.zeros((9, 8))
    guess[3:6, 3:6] = [[1, 4, 2], [4, 9, 3], [1, 3, 1]]
    free, tied = (deconvolve(data, guess, 300, refine=20, symmetric=s) for s in (False, True))
    k = tied.kernel
    np.testing.assert_allclose(k, k[::-1], atol=1e-12)
    np.testing.assert_allclose(k[:, 1:], k[:, :0:-1], atol=1e-12)
    assert (np.diff(tied.loss) <= 1e-9 * np.abs(tied.loss[0])).all()
    assert np.abs(k - KERNEL).sum() < np.abs(free.kernel - KERNEL).sum()
    square = deconvolve(data, np.ones((3, 3)) + np.eye(3, k=1), 30, refine=5, every=1, symmetric=True).kernel
    np.testing.assert_allclose(square, square.T, atol=1e-12)


def test_it_ends_where_the_residual_is_noise_alone(bars, rng):
    bars = bars + 40
    data = rng.poisson(blurred(bars)).astype(float)
    data[3, 4] = np.nan
    found = deconvolve(data, KERNEL, 2000, deviance=1.0)
    seen, mean = np.isfinite(data), found.prediction
    ratio = np.where(seen & (data > 0), data, 1) / np.where(data > 0, mean, 1)
    deviance = 2 * np.where(seen, mean - data + data * np.log(ratio), 0)[seen].mean()
    assert 0.97 < deviance <= 1
    assert len(found.loss) < 200
    error, later = (np.sqrt(((f.object - bars) ** 2).mean()) for f in (found, deconvolve(data, KERNEL, 2000)))
    assert error < later
