"""The convolutional encoder: what it sees, what it forgives, and that it can learn."""

import numpy as np
import pytest

from smlmcore.autograd import Tensor, check_gradient
from smlmcore.encoder import Conv


def spots(n, shape, seed=0, dtype=np.float32):
    """Gaussian spots on a background of 10, and their positions relative to the centre."""
    rng = np.random.default_rng(seed)
    xy = rng.uniform(-1, 1, (n, 2))
    y, x = (np.arange(s) - (s - 1) / 2 for s in shape)
    gx = np.exp(-((x - xy[:, :1]) ** 2) / (2 * 1.3**2))
    gy = np.exp(-((y - xy[:, 1:]) ** 2) / (2 * 1.3**2))
    mean = 10 + 2000 / (2 * np.pi * 1.3**2) * gy[:, :, None] * gx[:, None, :]
    return rng.poisson(mean).astype(dtype), xy


@pytest.mark.parametrize("shape", [(5, 5), (7, 7), (11, 11), (6, 9), (13, 8)])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_any_shape_and_batch(shape, n):
    encoder = Conv(shape, 4, width=4, hidden=8)
    p = encoder.init(np.random.default_rng(0))
    images, _ = spots(n, shape)
    out = encoder(p, images)
    assert out.shape == (n, 4)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(encoder(p, images[:, None]), out)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float64, ">f4"])
def test_any_real_dtype(dtype):
    encoder = Conv((7, 7), 3, width=4, hidden=8)
    p = encoder.init(np.random.default_rng(0))
    images = np.random.default_rng(1).integers(0, 200, (4, 7, 7))
    np.testing.assert_array_equal(encoder(p, images.astype(dtype)), encoder(p, images.astype(np.float32)))


def test_strided_images():
    encoder = Conv((7, 6), 3, width=4, hidden=8)
    p = encoder.init(np.random.default_rng(0))
    large, _ = spots(4, (14, 12))
    before = large.copy()
    np.testing.assert_array_equal(encoder(p, large[:, ::2, ::2]), encoder(p, large[:, ::2, ::2].copy()))
    np.testing.assert_array_equal(large, before)


def test_bad_pixels_count_as_the_median():
    encoder = Conv((5, 5), 3, width=4, hidden=8)
    p = encoder.init(np.random.default_rng(0))
    images, _ = spots(4, (5, 5))
    images[0, 1, 2], images[1, 0, :2], images[2] = np.nan, np.inf, np.nan
    given = images.copy()
    repaired = images.copy()
    repaired[0, 1, 2] = np.nanmedian(images[0])
    repaired[1, 0, :2] = np.median(images[1][np.isfinite(images[1])])
    repaired[2] = 0
    np.testing.assert_array_equal(encoder(p, images), encoder(p, repaired))
    np.testing.assert_array_equal(images, given)
    assert np.isfinite(encoder(p, images)).all()


@pytest.mark.parametrize("value", [0.0, -3.0, 5.0, 60000.0])
def test_flat_images_are_finite(value):
    encoder = Conv((6, 6), 2, width=4, hidden=8)
    out = encoder(encoder.init(np.random.default_rng(0)), np.full((2, 6, 6), value))
    assert np.isfinite(out).all()


def test_input_and_statistics():
    """On images of known mean, width and quantile."""
    encoder = Conv((10, 10), 2)
    images, _ = spots(5, (10, 10))
    z, statistics = encoder._standardise(images, np.dtype(np.float64))
    np.testing.assert_allclose(z.mean((1, 2, 3)), 0, atol=1e-12)
    np.testing.assert_allclose(z.std((1, 2, 3)), 1, rtol=1e-12)
    flat = images.reshape(5, 100).astype(float)
    root = np.sqrt(flat + 0.375)
    quantile = np.sort(flat, axis=1)[:, 20]
    want = np.log([root.mean(1), root.std(1), flat.mean(1), quantile]).T - (1.5, 0, 3, 2)
    np.testing.assert_allclose(statistics, want, rtol=1e-12)
    assert np.abs(statistics).max() < 3


def test_starts_at_the_offsets():
    """Outputs of O(0.1) before training, and not constant."""
    encoder = Conv((11, 11), 5)
    out = encoder(encoder.init(np.random.default_rng(0)), spots(64, (11, 11))[0])
    assert np.abs(out).max() < 1
    assert (out.std(0) > 0).all()


def test_gradient():
    encoder = Conv((5, 6), 2, width=2, hidden=3)
    p = encoder.init(np.random.default_rng(0), np.float64)
    images, _ = spots(2, (5, 6), dtype=np.float64)
    check_gradient(lambda *values: encoder(dict(zip(p, values, strict=True)), images), *p.values())


def test_learns_positions():
    """Gradient descent on known positions: the error falls far below their spread."""
    encoder = Conv((7, 7), 2, width=4, hidden=16)
    p = encoder.init(np.random.default_rng(0))
    images, xy = spots(64, (7, 7))
    velocity = {name: np.zeros_like(v) for name, v in p.items()}
    for _ in range(150):
        t = {name: Tensor(v) for name, v in p.items()}
        error = encoder(t, images) - xy.astype(np.float32)
        (error * error).mean().backward()
        for name in p:
            velocity[name] = 0.9 * velocity[name] - 0.02 * t[name].grad
            p[name] = (p[name] + velocity[name]).astype(np.float32)
    assert np.sqrt(((encoder(p, images) - xy) ** 2).mean()) < 0.1 * xy.std()


@pytest.mark.parametrize("images", [np.ones((2, 6, 5)), np.ones((5, 5)), np.ones((2, 3, 5, 5)), np.ones(())])
def test_wrong_image_shape(images):
    encoder = Conv((5, 5), 2)
    with pytest.raises(ValueError, match=r"expected \(n, 5, 5\) or \(n, 1, 5, 5\)"):
        encoder(encoder.init(np.random.default_rng(0)), images)


@pytest.mark.parametrize("images", [[[1.0]], np.ones((1, 5, 5), complex), np.full((1, 5, 5), "a")])
def test_wrong_image_kind(images):
    encoder = Conv((5, 5), 2)
    with pytest.raises(TypeError, match="real numbers"):
        encoder(encoder.init(np.random.default_rng(0)), images)


@pytest.mark.parametrize("arguments", [((4, 5), 2), ((5,), 2), ((5, 5), 0), ((5, 5), 2, 0), ((5, 5), 2, 4, 0)])
def test_impossible_encoders(arguments):
    with pytest.raises(ValueError, match="expected"):
        Conv(*arguments)
