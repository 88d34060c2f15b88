from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from smlmcore import simulate
from smlmcore.camera import Camera, calibrate, guess
from smlmcore.camera.calibrate import _Stack
from smlmcore.data import DataError, write_tiff


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
        {"gain": np.ones(3)},
        {"gain": np.zeros((2, 2))},
        {"read_noise": np.full((2, 2), np.nan)},
        {"bits": 12.5},
        {"em_gain": 0},
        {"pixel_size": np.ones((2, 2))},
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


# ---------------------------------------------------------------- maps, registers, converters

MAPPED = Camera(
    offset=np.random.default_rng(1).normal(100, 2, (6, 7)),
    gain=np.random.default_rng(2).uniform(0.4, 0.6, (6, 7)),
    read_noise=np.random.default_rng(3).gamma(4, 0.35, (6, 7)),
    qe=np.random.default_rng(4).uniform(0.7, 0.9, (6, 7)),
    pixel_size=0.1,
)
EMCCD = Camera(offset=200, gain=12.0, read_noise=50.0, em_gain=300.0, spurious_charge=0.02)


@pytest.mark.parametrize(
    ("camera", "mean"),
    [
        (Camera(100, 0.5, 1.5), 0.7), (Camera(100, 0.5, 1.5), 9.9), (Camera(100, 0.5, 1.5), 10.1),
        (Camera(100, 0.5, 1.5), 35.0), (Camera(100, 0.5, 1.5), 5e3), (EMCCD, 0.4), (EMCCD, 30.0), (MAPPED, 20.0),
    ],
)  # fmt: skip
def test_mean_and_variance_of_a_million_draws(camera, mean):
    """Within four standard errors, that of the variance from the fourth cumulant of the model."""
    n = 1_000_020 // 42 * 42
    counts = camera.expose(np.full((n // 42, 6, 7), mean), np.random.default_rng(11), np.float64)
    electrons = (counts - camera.offset) * camera.gain / (camera.em_gain or 1)
    mu = camera.qe * mean + camera.spurious_charge
    variance = mu * (2 if camera.em_gain else 1) + camera.variance
    kappa4 = mu * (24 if camera.em_gain else 1)
    z = (electrons - mu) / np.sqrt(variance)
    assert abs(z.mean()) < 4 / np.sqrt(n)
    excess = np.mean(kappa4 / variance**2)
    assert abs((z**2).mean() - 1) < 4 * np.sqrt((2 + excess) / n)


@pytest.mark.parametrize("mean", [0.3, 4.0, 10.5, 60.0, 2000.0])
def test_a_million_photon_numbers_against_scipy(mean):
    n = 1_000_000
    seen = Camera(0, 1).expose(np.full(n, mean, np.float32), np.random.default_rng(12), np.int32)
    mean = float(np.float32(mean))
    edges = np.unique(stats.poisson.ppf(np.linspace(0.0005, 0.9995, 60), mean))
    expected = n * np.diff(np.concatenate([[0], stats.poisson.cdf(edges, mean), [1]]))
    observed = np.bincount(np.searchsorted(edges, seen), minlength=len(expected))
    used = expected > 10
    statistic = ((observed - expected)[used] ** 2 / expected[used]).sum()
    assert stats.chi2.sf(statistic, used.sum() - 1) > 1e-4


def test_a_million_read_noises_and_amplified_photons_against_scipy():
    dark = Camera(0, 1, 2.0).expose(np.zeros(1_000_000), np.random.default_rng(13), np.float64)
    assert stats.kstest(dark, stats.norm(0, 2).cdf).pvalue > 1e-4
    register = Camera(0, 1, em_gain=200.0)
    seen = register.expose(np.full(1_000_000, 3.0), np.random.default_rng(14), np.float64)
    none = np.exp(-3)
    assert abs((seen == 0).mean() - none) < 5 * np.sqrt(none * (1 - none) / seen.size)
    k = np.arange(1, 40)

    def below(x):
        return (stats.poisson.pmf(k, 3) * stats.gamma.cdf(x[:, None], k, scale=200)).sum(1) / (1 - none)

    assert stats.kstest(seen[seen > 0], below).pvalue > 1e-4


def test_draws_do_not_depend_on_chunks_of_threads():
    import numba

    light = np.random.default_rng(0).uniform(0, 60, (7, 33, 41)).astype(np.float32)
    many = Camera(100, 0.5, 1.5).expose(light, np.random.default_rng(1))
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        one = Camera(100, 0.5, 1.5).expose(light, np.random.default_rng(1))
    finally:
        numba.set_num_threads(threads)
    assert np.array_equal(many, one)
    assert not np.array_equal(many[0], many[1])


def test_converter_and_full_well():
    light = np.full((50, 50), 1e4)
    assert Camera(100, 0.5, bits=12).expose(light, np.random.default_rng(0)).max() == 4095
    assert Camera(100, 0.5, saturation=3000).expose(light, np.random.default_rng(0)).max() == 3000
    assert Camera(100, 0.5, bits=8).expose(light, np.random.default_rng(0), np.float32).max() == 255


def test_maps_are_cut_saved_and_described(tmp_path):
    part = MAPPED.crop(1, 2, 3, 4)
    assert part.shape == (3, 4)
    assert np.array_equal(part.variance, MAPPED.read_noise[1:4, 2:6] ** 2)
    with pytest.raises(ValueError, match="rows 5 to 8"):
        MAPPED.crop(5, 0, 3, 3)
    with pytest.raises(ValueError, match="maps are"):
        MAPPED.photoelectrons(np.zeros((7, 6)))
    with pytest.raises(ValueError, match="different shapes"):
        Camera(np.ones((2, 3)), np.ones((3, 2)))
    MAPPED.save(tmp_path / "camera.npz")
    assert Camera.load(tmp_path / "camera.npz") == MAPPED
    assert part != MAPPED
    (tmp_path / "other.npz").write_text("no")
    for name in ("other.npz", "absent.npz"):
        with pytest.raises(DataError, match=name):
            Camera.load(tmp_path / name)
    assert MAPPED.describe()["maps"] == ["offset", "gain", "read_noise", "qe"]
    assert EMCCD.variance == (50 / 300) ** 2


# ---------------------------------------------------------------- calibration


@pytest.fixture(scope="module")
def calibrated():
    """200 dark frames and 10 levels of 100, of a field of 48 x 56 pixels that is not evenly lit."""
    rng = np.random.default_rng(5)
    shape = (48, 56)
    truth = Camera(
        offset=rng.normal(100, 2, shape), gain=0.47 * np.exp(0.03 * rng.standard_normal(shape)),
        read_noise=1.2 * np.exp(0.3 * rng.standard_normal(shape)),
    )  # fmt: skip
    field = np.linspace(0.7, 1.3, 56) * np.ones(shape)
    dark = truth.expose(np.zeros((200, *shape)), rng)
    dark[17, 20:23, 30:34] += 5000  # a cosmic ray
    bright = [
        truth.expose(level * field * rng.normal(1, 0.02, (100, 1, 1)), rng)  # a lamp that flickers
        for level in np.linspace(50, 1500, 10)
    ]
    return truth, dark, bright, calibrate(dark, bright)


def test_calibration_finds_the_maps(calibrated):
    truth, _, _, found = calibrated
    gain, noise = found.camera.gain / truth.gain, found.camera.read_noise / truth.read_noise
    assert abs(np.median(gain) - 1) < 0.01
    assert abs(np.median(noise) - 1) < 0.02
    assert abs(np.median(found.camera.offset - truth.offset)) < 0.05
    assert not found.bad.any()
    # errors are what is said, and the gains drawn to the median are nearer than any pixel could know alone
    z = (found.camera.read_noise - truth.read_noise) / found.read_noise_error
    assert 0.8 < 1.4826 * np.median(np.abs(z)) < 1.2
    assert np.std(gain) < np.median(found.gain_error / truth.gain)


def test_calibration_of_movies_is_that_of_arrays(calibrated, tmp_path):
    _, dark, bright, _ = calibrated
    paths = []
    for name, stack in (("dark", dark), ("a", bright[2]), ("b", bright[7])):
        paths.append(tmp_path / f"{name}.tif")
        write_tiff(paths[-1], [stack], stack.shape, stack.dtype)
    assert calibrate(paths[0], paths[1:]).camera == calibrate(dark, [bright[2], bright[7]]).camera


def test_calibration_needs_six_frames_of_memory(calibrated):
    _, dark, bright, _ = calibrated
    frames = np.tile(dark[:12], (1, 8, 6)), np.tile(bright[4][:12], (1, 8, 6))
    size = frames[0][0].size * 8
    tracemalloc.start()
    _Stack(frames[0], "dark", lambda n: None).statistics()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * size  # 4: two more, of float32 each, hold what earlier stacks gave


def test_a_dead_and_a_hot_pixel_are_called_bad(calibrated):
    _, dark, bright, _ = calibrated
    dark, bright = dark.copy(), [b.copy() for b in bright]
    for stack in (dark, *bright):
        stack[:, 3, 4] = 100
        stack[:, 10, 11] = np.random.default_rng(0).normal(3000, 400, len(stack)).astype(np.uint16)
    bad = calibrate(dark, bright).bad
    assert bad[3, 4]
    assert bad[10, 11]
    assert bad.sum() == 2


def test_calibration_of_an_emccd():
    rng, light = np.random.default_rng(0), np.ones((200, 20, 20))
    found = calibrate(EMCCD.expose(0 * light, rng), [EMCCD.expose(k * light, rng) for k in (20, 60, 150)], em_gain=300)
    electrons = found.camera.photoelectrons(EMCCD.expose(100 * light, rng))
    assert abs(electrons.mean() - 100) < 2


def test_calibration_refuses():
    dark = Camera(100, 0.5, 2).expose(np.zeros((20, 8, 9)), np.random.default_rng(0))
    for arguments, text in (
        ((dark, []), "no bright stack"),
        ((dark[:5], [dark]), "at least 10 frames"),
        ((dark, [dark[:, :5] + 50]), r"stacks of \(8, 9\) \(dark\) and \(5, 9\)"),
        ((dark, [dark]), "expected both positive"),
        ((dark[0], [dark]), "frames, height, width"),
    ):
        with pytest.raises(ValueError, match=text):
            calibrate(*arguments)


# ---------------------------------------------------------------- guesses

KINDS = {
    "CCD": Camera(100, 0.5, 1.5),
    "sCMOS": Camera(
        np.random.default_rng(1).normal(100, 2, (96, 96)),
        0.47 * np.exp(0.02 * np.random.default_rng(2).normal(size=(96, 96))),
        np.random.default_rng(3).gamma(4, 0.35, (96, 96)),
    ),
    "coarse": Camera(400, 2.2, 3.0),
    "fine": Camera(90, 0.2, 1.0),
    "EMCCD": Camera(200, 12.0, 50.0, em_gain=300.0),
    "EMCCD of low gain": Camera(200, 12.0, 10.0, em_gain=60.0),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_camera_guessed_from_a_movie(kind):
    camera = KINDS[kind]
    _, chunks = simulate.blinking_movie(
        np.random.default_rng(0), (96, 96), 700, spots_per_frame=9, camera=camera, background=(4, 20)
    )
    movie = np.concatenate(list(chunks))
    if kind == "EMCCD":  # 0.04 electrons per count: 700 frames tell the offset to some 2.2 counts
        with pytest.raises(ValueError, match=r"an offset of 199\.\d ± 2\.\d counts, too uncertain"):
            guess(movie)
        return
    found = guess(movie)
    gain = np.median(camera.gain) / (camera.em_gain or 1)
    assert found.em == (kind == "EMCCD of low gain")
    assert abs(found.gain / gain - 1) < 0.1
    assert abs(found.offset - np.median(camera.offset)) < 2
    assert abs(found.offset - np.median(camera.offset)) < 5 * found.offset_error
    assert abs(found.gain - gain) < 5 * found.gain_error
    assert "electrons per count" in str(found)


def test_a_guess_is_refused_where_the_movie_does_not_tell():
    steady = Camera(100, 0.5, 1.5).expose(np.full((40, 64, 64), 10.0), np.random.default_rng(0))
    light = np.linspace(5, 60, 64)[:, None] * np.ones((40, 64, 64))
    smoothed = np.round(100 + 2 * light + np.random.default_rng(0).normal(0, 4, light.shape)).astype(np.uint16)
    for movie, text in (
        (steady, "hardly varies"),
        (smoothed, "electrons per count, too uncertain|does not grow|hardly varies"),
        (steady[:9], "at least 20 frames"),
        (steady[:, :9], "of 9 x 64"),
        (steady[0], r"expected counts"),
        (np.zeros((30, 32, 32), np.uint16), "too few quiet|does not grow|hardly varies"),
    ):
        with pytest.raises(ValueError, match=text):
            guess(movie)
