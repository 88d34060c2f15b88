from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from smlmcore.camera import Camera


def exact_counts(camera: Camera, mean: float, counts: np.ndarray) -> np.ndarray:
    """P(counts) of one pixel: Poisson electrons, normal read noise, rounding to whole counts."""
    k = np.arange(stats.poisson.ppf(1e-12, mean), stats.poisson.ppf(1 - 1e-12, mean) + 1)
    edges = (np.append(counts - 0.5, counts[-1] + 0.5) - camera.offset) * camera.gain
    below = (stats.poisson.pmf(k, mean) * stats.norm.cdf((edges[:, None] - k) / camera.read_noise)).sum(1)
    return np.diff(below)


@pytest.mark.parametrize("mean", [0.0, 3.0, 400.0])
def test_exposure_follows_the_exact_distribution(mean):
    camera = Camera(offset=100, gain=0.5, read_noise=1.5)
    seen = camera.expose(np.full(20_000, mean), np.random.default_rng(3))
    low, high = seen.min(), seen.max()
    counts = np.arange(low, high + 1)
    expected = exact_counts(camera, mean, counts) * len(seen)
    group = np.minimum(np.cumsum(expected) // 20, (expected.sum() - 20) // 20).astype(int)  # at least ~20 in each
    observed = np.bincount(group, np.bincount(seen - low, minlength=len(counts)))
    expected = np.bincount(group, expected)
    used = expected > 0
    statistic = ((observed[used] - expected[used]) ** 2 / expected[used]).sum()
    assert stats.chi2.sf(statistic, used.sum() - 1) > 1e-4


def test_exposure_without_read_noise_is_poisson():
    seen = Camera(0, 1).expose(np.full(10_000, 6.0), np.random.default_rng(4), np.float64)
    assert np.array_equal(seen, np.rint(seen))
    observed = np.bincount(np.minimum(seen, 15).astype(int), minlength=16)
    expected = 10_000 * np.append(stats.poisson.pmf(np.arange(15), 6.0), stats.poisson.sf(14, 6.0))
    assert stats.chisquare(observed, expected).pvalue > 1e-4


def test_photoelectrons_undo_the_exposure_in_mean_and_variance():
    camera, mean, n = Camera(offset=87.5, gain=2.2, read_noise=3.0), 250.0, 40_000
    electrons = camera.photoelectrons(camera.expose(np.full((n // 8, 8), mean), np.random.default_rng(5)))
    variance = mean + camera.variance + camera.gain**2 / 12  # the last is rounding
    assert electrons.dtype == np.float32
    assert electrons.shape == (n // 8, 8)
    assert abs(electrons.mean() - mean) < 5 * np.sqrt(variance / n)
    assert abs(electrons.var() / variance - 1) < 5 * np.sqrt(2 / n)


def test_read_noise_alone_is_normal():
    camera = Camera(offset=10, gain=0.5, read_noise=2.0)
    seen = camera.photoelectrons(camera.expose(np.zeros(5000), np.random.default_rng(6), np.float64))
    assert stats.kstest(seen, stats.norm(0, 2).cdf).pvalue > 1e-4


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.uint32, np.int64, np.uint64])
def test_counts_are_clipped_to_the_range(dtype):
    camera = Camera(offset=0, gain=1e-12, read_noise=1.0)
    counts = camera.expose(np.full(200, 1e9), np.random.default_rng(7), dtype)
    dark = camera.expose(np.zeros(200), np.random.default_rng(7), dtype)
    assert counts.dtype == dtype
    assert (counts >= 0.999 * np.iinfo(dtype).max).all()
    assert dark.min() >= np.iinfo(dtype).min


def test_same_seed_same_counts():
    once, again = (Camera(1, 2, 3).expose(np.ones((3, 5)), np.random.default_rng(1)) for _ in range(2))
    assert np.array_equal(once, again)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 5), (1, 3, 7)])
def test_any_shape(shape):
    camera = Camera(100, 0.5, 1.5)
    counts = camera.expose(np.ones(shape), np.random.default_rng(0))
    assert counts.shape == camera.photoelectrons(counts).shape == shape


def test_photoelectrons_take_non_contiguous_and_nan():
    counts = np.arange(12.0).reshape(3, 4).T[::2]
    counts[0, 0] = np.nan
    electrons = Camera(1, 2).photoelectrons(counts)
    assert np.isnan(electrons[0, 0])
    assert np.array_equal(electrons[1], (counts[1] - 1) * 2)


@pytest.mark.parametrize(
    "settings",
    [
        {"gain": 0},
        {"gain": -1},
        {"gain": np.nan},
        {"offset": np.inf},
        {"offset": "100"},
        {"offset": None},
        {"read_noise": -0.1},
        {"pixel_size": 0},
        {"gain": np.ones((2, 2))},
    ],
)
def test_bad_settings_are_named(settings):
    with pytest.raises(ValueError, match=f"Camera got {next(iter(settings))} = "):
        Camera(**{"offset": 100, "gain": 0.5, **settings})


def test_bad_arguments_are_named():
    camera = Camera(100, 0.5)
    with pytest.raises(ValueError, match="none negative"):
        camera.expose(np.array([1.0, -1.0]), np.random.default_rng(0))
    with pytest.raises(ValueError, match="finite"):
        camera.expose(np.array([np.nan]), np.random.default_rng(0))
    with pytest.raises(TypeError, match="default_rng"):
        camera.expose(np.ones(2), np.random)
    with pytest.raises(TypeError, match="dtype"):
        camera.expose(np.ones(2), np.random.default_rng(0), np.complex64)
    with pytest.raises(TypeError, match="complex"):
        camera.photoelectrons(np.ones(2, complex))
