"""Convolution against its definition, in every mode, by each of its ways; the renderer's kernel and errors."""

import itertools

import numpy as np
import pytest

from smlmcore import renderer
from smlmcore.autograd import Tensor
from smlmcore.renderer import conv
from smlmcore.renderer.conv import MODES, convolve, separate
from smlmcore.testing import check_gradient

SIZES = [((7,), (4,)), ((6, 9), (4, 3)), ((5, 4), (9, 6)), ((5, 6, 7), (2, 3, 4)), ((1, 3), (1, 1)), ((5,), (12,))]
CASES = [
    (image, kernel, mode)
    for (image, kernel), mode in itertools.product(SIZES, MODES)
    if mode != "valid" or all(k <= n for k, n in zip(kernel, image, strict=True))
]


def by_definition(image, kernel, mode):
    n, k = image.shape, kernel.shape
    full = np.zeros([a + b - 1 for a, b in zip(n, k, strict=True)])
    for j in itertools.product(*map(range, k)):
        full[tuple(slice(i, i + a) for i, a in zip(j, n, strict=True))] += kernel[j] * image
    if mode == "valid":
        return full[tuple(slice(b - 1, a) for a, b in zip(n, k, strict=True))]
    if mode == "same":
        return full[tuple(slice(b // 2, b // 2 + a) for a, b in zip(n, k, strict=True))]
    out = np.zeros(n)
    for i in itertools.product(*map(range, full.shape)):
        out[tuple((p - b // 2) % a for p, a, b in zip(i, n, k, strict=True))] += full[i]
    return out


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize(("shape", "size", "mode"), CASES)
def test_it_is_the_sum_it_is_defined_as_and_so_is_its_gradient(shape, size, mode, small, rng, monkeypatch):
    monkeypatch.setattr(conv, "is_small", lambda *_: small)
    image, kernel = rng.normal(size=(2, *shape)), rng.normal(size=size)
    expected = np.stack([by_definition(i, kernel, mode) for i in image])
    rounding = 64 * np.finfo(float).eps * np.abs(kernel).sum() * np.abs(image).max()
    np.testing.assert_allclose(convolve(image, kernel, mode), expected, rtol=0, atol=rounding)
    check_gradient(lambda a, b: convolve(a, b, mode), image, kernel)


def test_kinds_of_input(rng):
    image, kernel = rng.normal(size=(3, 8, 9)), np.outer([1, 2, 1], [1, 2, 1])
    expected = convolve(image, kernel.astype(float))
    np.testing.assert_array_equal(convolve(np.repeat(image, 2, 2)[..., ::2], kernel), expected)
    assert convolve(image[:0], kernel).shape == (0, 8, 9)
    assert convolve(image[0], kernel).shape == (8, 9)
    single = convolve(image.astype(np.float32), kernel.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, atol=1e-5)
    zero_sum = convolve(np.ones((9, 9)), np.outer([-1, 0, 1], [1, 2, 1]), "periodic")
    np.testing.assert_allclose(zero_sum, 0, atol=1e-14)


def test_a_nan_pixel_spoils_what_the_kernel_reaches():
    image = np.ones((9, 9))
    image[4, 4] = np.nan
    spoilt = np.isnan(convolve(image, np.ones((3, 3))))
    assert spoilt[3:6, 3:6].all()
    assert spoilt.sum() == 9


@pytest.mark.parametrize(
    ("image", "kernel", "mode", "error", "words"),
    [
        (np.ones((4, 4)), np.ones((5, 3)), "valid", ValueError, r"\(5, 3\), larger than the image"),
        (np.ones((4, 4)), np.ones((3, 3)), "full", ValueError, "mode 'full'"),
        (np.ones(4), np.ones((3, 3)), "same", ValueError, r"\(4,\) and a kernel of shape \(3, 3\)"),
        (np.ones((4, 0)), np.ones((3, 3)), "same", ValueError, "at least one pixel"),
        (np.ones((4, 4)), 1j * np.ones((3, 3)), "same", TypeError, "real numbers"),
    ],
)
def test_errors(image, kernel, mode, error, words):
    with pytest.raises(error, match=words):
        convolve(image, kernel, mode)


def test_products_of_lines_are_found_and_nothing_else(rng):
    lines = [rng.uniform(0.5, 1, n) for n in (3, 4, 5)]
    kernel = np.einsum("i,j,k->ijk", *lines)
    product = np.ones(())
    for part in separate(kernel):
        product = product * part
    np.testing.assert_allclose(product, kernel, rtol=1e-14)
    kernel[0, 0, 0] *= 1 + 1e-9
    assert separate(kernel) is None
    assert separate(lines[0]) is None


# ---- the renderer


def gaussian(size, sigma):
    return np.exp(-0.5 * ((np.arange(size) - size // 2) / sigma) ** 2)


@pytest.mark.parametrize("mode", MODES)
def test_a_separable_kernel_gives_what_the_whole_one_gives(mode, rng):
    kernel = np.outer(gaussian(15, 2.0), gaussian(12, 3.0))
    draw, image = renderer.Convolution(kernel, (20, 23), mode), rng.uniform(0, 1, (2, 20, 23))
    assert draw.parts is not None
    np.testing.assert_allclose(draw({}, {"image": image}), convolve(image, draw.kernel, mode), atol=1e-14)


def test_the_learned_kernel_starts_where_it_is_told_and_cannot_leave_the_simplex(rng):
    kernel = np.outer(gaussian(5, 1.0), gaussian(4, 0.8))
    draw = renderer.Convolution(kernel, (8, 7), "periodic", learned=True, stride=(1, 2), background=2.0)
    p = draw.init(rng)
    np.testing.assert_allclose(draw.kernel_of(p), kernel / kernel.sum(), rtol=1e-5, atol=1e-7)
    p["logits"] = rng.normal(0, 20, p["logits"].shape).astype(np.float32)
    assert (draw.kernel_of(p) >= 0).all()
    assert abs(draw.kernel_of(p).sum() - 1) < 1e-6
    image = rng.uniform(1, 2, (3, 8, 7))
    assert draw(p, {"image": image}).shape == (3, *draw.shape) == (3, 8, 4)
    check_gradient(
        lambda logits, log_b, image, b: draw(
            {"logits": logits, "log_background": log_b}, {"image": image, "background": b}
        ),
        rng.normal(size=p["logits"].shape),
        np.array([0.7]),
        image,
        rng.uniform(1, 2, 3),
    )


def test_photons_are_kept_and_background_counts_once(rng):
    draw = renderer.Convolution(rng.uniform(0, 5, (4, 5, 3)), (6, 7, 8), "periodic")
    image = rng.uniform(0, 1, (2, 6, 7, 8))
    out = draw({}, {"image": image, "background": np.array([0.0, 2.0])})
    np.testing.assert_allclose(out.sum((1, 2, 3)), image.sum((1, 2, 3)) + np.array([0, 2 * 6 * 7 * 8]))


def test_it_is_made_again_from_its_configuration(rng):
    draw = renderer.Convolution(rng.uniform(0, 1, (3, 4)), (9, 8), "valid", learned=True, stride=2, background=1.0)
    again = renderer.Convolution(**draw.configuration())
    p, image = draw.init(rng), Tensor(rng.uniform(0, 1, (2, 9, 8)))
    np.testing.assert_array_equal(draw(p, {"image": image}).data, again(p, {"image": image}).data)
    assert draw.shape == again.shape == (4, 3)


@pytest.mark.parametrize(
    ("kernel", "settings", "words"),
    [
        (np.array([[1.0, -1.0]]), {}, "values from -1.0 to 1.0 and sum 0.0"),
        (np.zeros((3, 3)), {}, "a sum > 0"),
        (np.full((3, 3), np.nan), {}, "finite values"),
        (np.ones(3), {}, "2 or 3 axes"),
        (np.ones((3, 3, 3)), {}, "as many axes"),
        (np.ones((3, 3)), {"stride": 0}, "strides >= 1"),
        (np.ones((3, 3)), {"mode": "reflect"}, "mode 'reflect'"),
        (np.ones((9, 3)), {"mode": "valid"}, "nothing is left"),
        (np.ones((3, 3)), {"background": -1.0}, "background=-1"),
    ],
)
def test_kernels_and_settings_that_make_no_sense(kernel, settings, words):
    with pytest.raises(ValueError, match=words):
        renderer.Convolution(kernel, (6, 7), **settings)


def test_images_of_another_shape():
    with pytest.raises(ValueError, match=r"\(n, 6, 7\), the object"):
        renderer.Convolution(np.ones((3, 3)), (6, 7))({}, {"image": np.ones((2, 6, 6))})
    with pytest.raises(ValueError, match=r"expected \(n, 6, 7\)"):
        renderer.Image((6, 7))({}, {"image": np.ones((2, 6, 6))})
