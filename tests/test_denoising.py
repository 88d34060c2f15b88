"""Denoising: the halves of a split are independent, and what is learned from them beats what one would do without."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from smlmcore import denoising
from smlmcore.denoising import Denoiser, Splits, denoise, split

SMALL = {"steps": 60, "width": 8, "splits": 8, "progress": False}


def scene(shape=(6, 40, 33), seed=0):
    """Rings on a dim background, a map of read noise with bad pixels, and noisy images."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[1], : shape[2]]
    centre = rng.uniform(8, 30, (2, shape[0], 1, 1))
    distance = np.hypot(y - centre[0], x - centre[1]) - rng.uniform(5, 12, (shape[0], 1, 1))
    clean = 3 + 40 * np.exp(-0.5 * (distance / 1.3) ** 2)
    variance = rng.gamma(0.8, 8, shape[1:]) + 1
    return clean, variance, rng.poisson(clean) + rng.normal(0, 1, shape) * np.sqrt(variance)


@pytest.fixture(scope="module")
def learned():
    clean, variance, noisy = scene()
    return clean, variance, noisy, denoise(noisy, variance, **SMALL)


@pytest.mark.parametrize(("mu", "v"), [(0.3, 0.0), (5.0, 0.0), (40.0, 0.1), (5.0, 3.0), (0.5, 30.0)])
def test_the_halves_of_a_split_are_independent_with_twice_the_variance(mu, v, rng):
    n = 400_000
    y = rng.poisson(mu, n) + rng.normal(0, v**0.5, n)
    a, b = split(y, np.full(n, v), np.full(n, mu), rng)
    np.testing.assert_allclose((a + b) / 2, y, atol=1e-12)
    for half in (a, b):
        assert abs(half.mean() - mu) < 5 * (2 * (mu + v) / n) ** 0.5
    a, b = a - mu, b - mu
    # the standard error of a mean of products is the standard deviation of the product over the root of n
    for product, expected in ((a * b, 0), (a * a, 2 * (mu + v)), (a * a * b, 0)):
        scale = 0.01 * (2 * (mu + v)) ** 1.5 if product is not None and expected == 0 else 0.01 * expected
        assert abs(product.mean() - expected) < 5 * product.std() / n**0.5 + scale


def test_a_wrong_idea_of_the_mean_does_not_matter_without_read_noise(rng):
    y = rng.poisson(3.0, 200_000).astype(np.float32)
    a, b = split(y, np.zeros_like(y), np.full_like(y, 100), rng)
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / 200_000**0.5


def test_it_beats_the_best_gaussian_filter_and_keeps_the_photons(learned):
    clean, _, noisy, found = learned

    def error(images):
        return np.sqrt(np.mean((images - clean) ** 2))

    smoothed = min(error(gaussian_filter(noisy, (0, s, s))) for s in np.arange(0.5, 2.5, 0.25))
    assert error(found.images) < 0.8 * smoothed < 0.8 * error(noisy)
    assert abs(found.images.mean() / clean.mean() - 1) < 0.02  # of 8000 pixels the noise alone is 0.5 %
    assert found.images.shape == noisy.shape


def test_dead_and_saturated_pixels_are_filled_in(learned):
    _, variance, noisy, found = learned
    holes, broken = noisy.copy(), variance.copy()
    holes[0, 5, 5], holes[1, 9, 9] = np.nan, np.inf
    broken[20, 20] = np.inf
    filled = found.model.denoise(holes, broken, splits=8)
    assert np.isfinite(filled).all()
    np.testing.assert_allclose(filled[2, :8, :8], found.images[2, :8, :8], atol=0.5)
    nothing = found.model.denoise(np.full((1, 9, 9), np.nan), splits=2)
    assert np.isfinite(nothing).all()
    once = denoise(holes, broken, **{**SMALL, "steps": 3})
    assert np.isfinite(once.images).all()


def test_same_seed_same_bits_for_every_form_of_the_input(learned):
    _, variance, noisy, found = learned
    few = {**SMALL, "steps": 2}
    again = denoise(noisy, np.broadcast_to(variance, noisy.shape), **few)
    assert np.array_equal(again.images, denoise(noisy, variance, **few).images)
    assert not np.array_equal(again.images, denoise(noisy, variance, seed=1, **few).images)
    one = found.model.denoise(noisy[0], variance, splits=8)
    assert np.array_equal(one, found.images[0])
    counts = np.random.default_rng(0).poisson(20.0, (17, 21)).astype(np.uint16)
    assert np.array_equal(denoise(counts[::-1], **few).images, denoise(counts[::-1].astype(float), **few).images)
    assert denoise(np.zeros((1, 3, 2)), **few).images.shape == (1, 3, 2)


def test_tiles_make_no_seam(learned, monkeypatch):
    _, variance, noisy, found = learned
    monkeypatch.setattr(denoising, "LARGE", 16)
    monkeypatch.setattr(denoising, "TILE", 16)
    np.testing.assert_allclose(found.model.denoise(noisy[:1], variance, 8), found.images[:1], atol=1e-3)


def test_a_saved_model_denoises_the_same(learned, tmp_path):
    _, variance, noisy, found = learned
    found.model.save(tmp_path / "model.npz")
    model = Denoiser.load(tmp_path / "model.npz")
    assert np.array_equal(model.denoise(noisy[:1], variance, 8), found.images[:1])


def test_with_a_psf_the_result_is_a_blurred_object(learned):
    clean, variance, noisy, _ = learned
    line = np.exp(-0.5 * (np.arange(-4, 5) / 1.3) ** 2)
    found = denoise(noisy, variance, psf=np.outer(line, line), **SMALL).images
    assert (found > 0).all()
    power = np.abs(np.fft.rfft2(found * np.hanning(40)[:, None] * np.hanning(33))) ** 2
    assert power[:, 19:21, -4:].mean() < 1e-6 * power.max()  # beyond the band of the PSF
    assert np.mean((found - clean) ** 2) < np.mean((gaussian_filter(noisy, (0, 1, 1)) - clean) ** 2)


def test_crops_are_not_turned_with_a_psf_that_turns_into_another(rng):
    y = np.arange(20.0, dtype=np.float32).reshape(1, 4, 5)
    astigmatic = Denoiser.of(10.0, 5.0, np.ones((1, 5)))
    a, v, b = Splits(y, np.zeros_like(y), astigmatic, y).draw(rng, 4)
    assert not astigmatic.symmetric
    assert Denoiser.of(10.0, 5.0, np.ones((5, 5))).symmetric
    np.testing.assert_allclose((a + b) / 2, np.repeat(y, 4, 0))
    assert v.shape == a.shape


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": np.ones((1, 1, 4, 4))}, r"shape \(1, 1, 4, 4\)"),
        ({"images": np.ones((2, 4, 4), complex)}, "numbers"),
        ({"images": np.ones((0, 4, 4))}, "no pixel to learn from"),
        ({"images": np.full((1, 4, 4), np.nan)}, "no pixel to learn from"),
        ({"variance": np.ones(3)}, r"variance of shape \(3,\)"),
        ({"variance": -1.0}, "least -1.0"),
        ({"steps": 0}, "steps=0"),
        ({"psf": np.zeros((3, 3))}, "sum 0.0"),
    ],
)
def test_errors(change, words):
    with pytest.raises((ValueError, TypeError), match=words):
        denoise(**{"images": np.ones((2, 4, 4)), **change})
