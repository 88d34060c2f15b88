"""Many emitters in large images: the same image as drawn in full, gradients, what is outside, and memory."""

import tracemalloc

import numpy as np
import pytest

from smlmcore import psf, renderer
from smlmcore.autograd import Tensor
from smlmcore.testing import check_gradient

SHAPE = (69, 23)  # two bands, the second of 5 rows; no whole number of vectors


def emitters(n, images=2, seed=0):
    rng = np.random.default_rng(seed)
    values = {
        "x": rng.uniform(-4, SHAPE[1] + 3, n),
        "y": rng.uniform(-4, SHAPE[0] + 3, n),
        "photons": rng.uniform(100, 900, n),
        "sigma": rng.uniform(0.8, 3.0, n),
        "background": rng.uniform(1, 5, images),
    }
    return values, rng.integers(0, images, n)


def in_full(model, values, image):
    """Each image by itself, with all pixels of all of its emitters."""
    own = [
        {k: v[None, image == i] if k != "background" else v[i : i + 1] for k, v in values.items()}
        for i in range(len(values["background"]))
    ]
    return np.concatenate([model.render(v, SHAPE) for v in own])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_it_is_the_image_that_is_drawn_in_full(dtype):
    values, image = emitters(60)
    values = {k: v.astype(dtype) for k, v in values.items()}
    drawn, expected = psf.Gaussian2D().render(values, SHAPE, image=image), in_full(psf.Gaussian2D(), values, image)
    assert drawn.dtype == dtype
    # what lies beyond the reach: the tail of the normal distribution, for each of the emitters at its brightest row
    tail = 1e-16 if dtype == np.float64 else 6e-8
    sum_of_peaks = (values["photons"] * 0.4 / values["sigma"]).sum()
    assert abs(drawn - expected).max() < tail * sum_of_peaks + 8 * np.finfo(dtype).eps * expected.max()


def test_gradients_to_every_parameter():
    values, image = emitters(12)
    check_gradient(
        lambda *v: psf.Gaussian2D().render(dict(zip(values, v, strict=True)), SHAPE, image=image), *values.values()
    )


def test_the_other_separable_gaussians_draw_it_too():
    values, image = emitters(9)
    sigma = values.pop("sigma")
    elliptic = {**values, "sigma_x": sigma, "sigma_y": sigma[::-1]}
    model = psf.EllipticGaussian2D()
    np.testing.assert_allclose(model.render(elliptic, SHAPE, image=image), in_full(model, elliptic, image), rtol=1e-12)
    astigmatic = {**values, "z": np.linspace(-0.3, 0.3, 9)}
    model = psf.AstigmaticGaussian(sigma0=1.3, gamma=0.2, depth=0.4)
    np.testing.assert_allclose(
        model.render(astigmatic, SHAPE, image=image), in_full(model, astigmatic, image), rtol=1e-12
    )
    with pytest.raises(ValueError, match="row of \\(n, emitters\\)"):
        psf.EllipticGaussian2D(rotated=True).render({**elliptic, "angle": 0.1}, SHAPE, image=image)


def test_both_layouts_of_the_renderer_agree_and_let_gradients_pass():
    draw = renderer.Emitters(psf.Gaussian2D(sigma=1.2), SHAPE)
    rng = np.random.default_rng(1)
    x, y, photons = rng.uniform(2, 20, (3, 4)), rng.uniform(2, 60, (3, 4)), Tensor(rng.uniform(100, 200, (3, 1)))
    table = draw({}, {"x": x, "y": y, "photons": photons, "background": 2.0})
    flat = {"x": x.ravel(), "y": y.ravel(), "photons": np.repeat(photons.data, 4), "background": np.full(3, 2.0)}
    np.testing.assert_array_equal(table.data, draw({}, {**flat, "image": np.repeat(np.arange(3), 4)}))
    table.sum().backward()
    assert photons.grad.shape == (3, 1)
    np.testing.assert_allclose(photons.grad[:, 0], (table.data.sum((1, 2)) - 2 * 69 * 23) / photons.data[:, 0])


@pytest.mark.filterwarnings("ignore:invalid value")
def test_emitters_that_are_nowhere_and_images_without_any():
    model = psf.Gaussian2D(sigma=1.0)
    none = {"x": np.empty(0), "y": np.empty(0), "photons": np.empty(0), "background": np.array([3.0, 4.0])}
    np.testing.assert_array_equal(
        model.render(none, (5, 7), image=np.empty(0, int)), np.full((2, 5, 7), [[[3]], [[4]]])
    )
    assert model.render({**none, "background": np.empty(0)}, (5, 7), image=np.empty(0, int)).shape == (0, 5, 7)
    far = {"x": [1e30, -50.0, np.nan], "y": [2.0, 1e8, 2.0], "photons": 10.0, "background": [3.0, 4.0, 5.0]}
    drawn = model.render(far, (5, 7), image=[0, 1, 2])
    assert (drawn[0] == 3).all()
    assert (drawn[1] == 4).all()
    assert np.isnan(drawn[2]).all()  # a lost emitter shows, in its own image


def test_memory_does_not_follow_the_number_of_emitters():
    model, peaks = psf.Gaussian2D(sigma=1.3), []
    for n in (2_000, 8_000):
        rng = np.random.default_rng(0)
        values = {k: rng.uniform(0, 100, n).astype(np.float32) for k in ("x", "y", "photons")}
        values["background"] = np.ones(1, np.float32)
        image = np.zeros(n, int)
        model.render(values, (128, 128), image=image)
        tracemalloc.start()
        model.render(values, (128, 128), image=image)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 6_000 < 40  # bytes per emitter: its sigma, index, and place in the lists


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        ([0, 2], ValueError, "from 0 to 2 and background of 2 images"),
        ([0, -1], ValueError, "from -1 to 0"),
        ([0], ValueError, r"image of shape \(1,\); expected \(2,\)"),
        ([0.0, 1.0], TypeError, "image of float64"),
    ],
)
def test_wrong_indices(image, error, words):
    values = {"x": [1.0, 2.0], "y": [1.0, 2.0], "photons": [1.0, 1.0], "background": [0.0, 0.0]}
    with pytest.raises(error, match=words):
        psf.Gaussian2D(sigma=1.0).render(values, (5, 5), image=image)


def test_wrong_shapes():
    values = {"x": [1.0, 2.0], "y": [1.0, 2.0, 3.0], "photons": 1.0, "background": [0.0, 0.0]}
    with pytest.raises(ValueError, match=r"\(emitters,\) for x, y, photons"):
        psf.Gaussian2D(sigma=1.0).render(values, (5, 5), image=[0, 1])
    with pytest.raises(TypeError, match="render takes no image"):
        renderer.Emitters(psf.Spline(np.ones((4, 4, 4)), 0.1), (5, 5))
    with pytest.raises(ValueError, match="the index of each emitter's image"):
        renderer.Emitters(psf.Gaussian2D(sigma=1.0), (5, 5))({}, values)
