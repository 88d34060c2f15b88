from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.special import erf

from smlmcore import simulate
from smlmcore.camera import Camera

QUIET = Camera(offset=100, gain=0.5, pixel_size=0.1)  # no read noise


def simulated(seed=0, **options):
    truth, chunks = simulate.blinking_movie(np.random.default_rng(seed), **options)
    return truth, np.concatenate(list(chunks))


def expected_photons(truth, shape, frames):
    """The mean of the movie from its truth, with scipy's erf."""
    out = np.zeros((frames, *shape))
    for row in truth:
        y, x = (
            np.diff(erf((np.arange(n + 1) - 0.5 - row[k]) / (np.sqrt(2) * row["sigma_x"]))) / 2
            for k, n in zip("yx", shape, strict=True)
        )
        out[row["frame"]] += row["photons"] * np.outer(y, x)
    for frame in range(frames):
        out[frame] += truth["background"][truth["frame"] == frame][0]
    return out


def test_counts_follow_the_truth():
    options = {"shape": (33, 40), "frames": 30, "spots_per_frame": 4, "camera": QUIET}
    truth, counts = simulated(**options)
    expected = expected_photons(truth, (33, 40), 30)
    z = (QUIET.photoelectrons(counts) - expected) / np.sqrt(expected)
    # Poisson residuals: mean 0, variance 1, of n pixels; the kurtosis of z is at most 3 + 1/5 at background 5.
    assert counts.shape == (30, 33, 40)
    assert counts.dtype == np.uint16
    assert abs(z.mean()) < 5 / np.sqrt(z.size)
    assert abs(z.var() - 1) < 5 * np.sqrt(2.2 / z.size)
    by_brightness = np.argsort(expected.ravel())[-500:]  # the spots' cores alone
    assert abs(z.ravel()[by_brightness].mean()) < 5 / np.sqrt(500)


def test_truth_follows_the_laws_asked_for():
    truth, _ = simulate.blinking_movie(np.random.default_rng(1), (100, 60), 300, spots_per_frame=5, min_distance=9)
    assert np.array_equal(truth["frame"], np.repeat(np.arange(300), 5))
    assert stats.kstest(truth["photons"], stats.lognorm(0.3, scale=2000).cdf).pvalue > 1e-4
    assert stats.kstest(truth["sigma_x"], stats.uniform(1.1, 0.4).cdf).pvalue > 1e-4
    assert stats.kstest(truth["background"][::5], stats.uniform(5, 10).cdf).pvalue > 1e-4
    assert np.array_equal(truth["sigma_x"], truth["sigma_y"])
    assert all(len(set(b)) == 1 for b in truth["background"].reshape(300, 5))
    first = truth[::5]  # the first of each frame is free of its neighbours: uniform, border included
    assert stats.kstest(first["x"], stats.uniform(-0.5, 60).cdf).pvalue > 1e-4
    assert stats.kstest(first["y"], stats.uniform(-0.5, 100).cdf).pvalue > 1e-4


def test_molecules_stand_alone():
    truth, _ = simulate.blinking_movie(np.random.default_rng(2), frames=50)
    xy = np.stack([truth["x"], truth["y"]], 1).reshape(50, 30, 2)
    distance = np.linalg.norm(xy[:, :, None] - xy[:, None], axis=-1)
    assert distance[:, ~np.eye(30, dtype=bool)].min() >= 14


def test_seed_decides_all():
    options = {"shape": (20, 31), "frames": 3, "spots_per_frame": 1}
    (truth, counts), (truth_again, counts_again), (_, other) = (simulated(s, **options) for s in (5, 5, 6))
    assert np.array_equal(truth, truth_again)
    assert np.array_equal(counts, counts_again)
    assert not np.array_equal(counts, other)


def test_chunks_are_small_and_truth_needs_none_of_them(monkeypatch):
    monkeypatch.setattr(simulate.isolated, "CHUNK_BYTES", 8 * 20 * 30 * 4)
    truth, chunks = simulate.blinking_movie(np.random.default_rng(0), (20, 30), 10, spots_per_frame=1)
    assert len(truth) == 10
    assert [len(c) for c in chunks] == [4, 4, 2]


def test_empty_frames():
    truth, counts = simulated(shape=(5, 7), frames=200, spots_per_frame=0, background=(9, 9), camera=QUIET)
    assert len(truth) == 0
    electrons = QUIET.photoelectrons(counts)
    assert abs(electrons.mean() - 9) < 5 * np.sqrt(9 / counts.size)


def test_float_counts_and_one_pixel():
    truth, counts = simulated(shape=(1, 1), frames=1, spots_per_frame=1, dtype=np.float32)
    assert counts.shape == (1, 1, 1)
    assert counts.dtype == np.float32
    assert np.abs([truth["x"], truth["y"]]).max() <= 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (30, 30), "spots_per_frame": 20}, r"cannot place 20 .* fit: lower"),
        ({"shape": (30,)}, "expected .height, width."),
        ({"shape": (0, 30)}, "at least 1"),
        ({"frames": 0}, "at least 1"),
        ({"spots_per_frame": -1}, "no negative"),
        ({"photons": 0}, "positive median"),
        ({"photons_spread": -1}, "spread of at least 0"),
        ({"background": (-1, 3)}, "background from -1 to 3"),
        ({"background": (3, 1)}, "background from 3 to 1"),
        ({"sigma": (0, 1)}, "sigma from 0 to 1"),
        ({"sigma": (1, np.inf)}, "sigma from 1 to inf"),
        ({"min_distance": np.nan}, "min_distance nan"),
    ],
)
def test_impossible_wishes(options, message):
    with pytest.raises(ValueError, match=message):
        simulate.blinking_movie(np.random.default_rng(0), **{"frames": 3, **options})


def test_randomness_is_explicit():
    with pytest.raises(TypeError, match="default_rng"):
        simulate.blinking_movie(0)


def test_molecules_lie_on_the_sites_of_a_structure():
    sites = simulate.filaments(np.random.default_rng(2), (40, 60), count=6)
    assert ((sites > -0.5) & (sites < (59.5, 39.5))).all()
    truth, _ = simulate.blinking_movie(np.random.default_rng(3), (40, 60), 20, spots_per_frame=2, sites=sites)
    known = {tuple(site) for site in sites}
    assert all((x, y) in known for x, y in zip(truth["x"], truth["y"], strict=True))


def test_a_filament_is_a_line_of_its_width():
    site = simulate.filaments(np.random.default_rng(0), (64, 64), count=1, width=0.2, bending=0.0)
    centred = site - site.mean(0)
    across = centred @ np.linalg.svd(centred, full_matrices=False)[2][1]  # the direction of least spread
    # n samples know a standard deviation to 1/sqrt(2n); truncation at the border of the field is far below that
    assert abs(across.std() / 0.2 - 1) < 5 / np.sqrt(2 * len(site))
