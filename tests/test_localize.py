from __future__ import annotations

import os
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from scipy import signal, stats

from smlmcore import data, localize, simulate
from smlmcore.camera import Camera
from smlmcore.localize.detect import _noise

SHARED = Path(os.environ.get("SMLMCORE_DATA", Path(__file__).parents[1] / "../shared/data"))
CAMERA = Camera(offset=100, gain=0.5, read_noise=1.5)


def movie(seed=0, **options):
    truth, chunks = simulate.blinking_movie(np.random.default_rng(seed), camera=CAMERA, **options)
    return truth, CAMERA.photoelectrons(np.concatenate(list(chunks)))


def points(*rows) -> np.ndarray:
    """A table of (frame, x, y)."""
    return np.array(list(rows), [("frame", int), ("x", float), ("y", float)])


# ---------------------------------------------------------------- detect


@pytest.mark.parametrize("sigma", [0.8, 1.3, 2.5])
def test_noise_of_the_filter_against_its_impulse_response(sigma):
    """Inside a large frame the response to one bright pixel is the filter itself; its energy is the noise variance."""
    n = 101
    x = np.arange(n) - n // 2
    inner, outer = (np.exp(-0.5 * (x / s) ** 2) for s in (sigma, 2 * sigma))
    response = np.outer(inner, inner) / inner.sum() ** 2 - np.outer(outer, outer) / outer.sum() ** 2
    # scipy's Gaussians end at 4 sigma, where 6e-5 of the weight is missing
    assert _noise(n, n, sigma)[n // 2, n // 2] == pytest.approx(np.sqrt((response**2).sum()), rel=1e-3)


def test_snr_is_in_units_of_the_noise_up_to_the_corner():
    """Direct simulation with signal.convolve on frames reflected by hand, pixel by pixel."""
    sigma, n, h, w = 1.3, 4000, 9, 14
    noise = np.random.default_rng(0).standard_normal((n, h, w))
    padded = np.pad(noise, ((0, 0), (11, 11), (11, 11)), "symmetric")
    x = np.arange(-11, 12)
    inner, outer = (np.where(abs(x) <= int(4 * s + 0.5), np.exp(-0.5 * (x / s) ** 2), 0) for s in (sigma, 2 * sigma))
    kernel = np.outer(inner, inner) / inner.sum() ** 2 - np.outer(outer, outer) / outer.sum() ** 2
    padded = padded[:, : h + 22, : w + 22]
    seen = signal.convolve(padded, kernel[None], "valid").std(0)
    np.testing.assert_allclose(seen, _noise(h, w, sigma), rtol=5 / np.sqrt(2 * n))


@pytest.mark.parametrize("threshold", [3.5, 4.0])
def test_false_positives_follow_the_threshold(threshold):
    """Peaks of pure noise: no more than pixels above the threshold, no fewer than those over the size of a peak."""
    n, h, w = 60, 96, 128
    frames = np.random.default_rng(1).poisson(200, (n, h, w)) + np.random.default_rng(2).normal(0, 3, (n, h, w))
    peaks = localize.detect(frames, 9.0, threshold=threshold)
    pixels = n * h * w * stats.norm.sf(threshold)
    assert len(peaks) < pixels + 5 * np.sqrt(pixels)
    assert len(peaks) > pixels / 8  # at most 8 pixels of one peak, 2 pi sigma^2 / 1.3, are above such a threshold
    assert (peaks["snr"] > threshold).all()
    border = (peaks["x"] < 3) | (peaks["x"] >= w - 3) | (peaks["y"] < 3) | (peaks["y"] >= h - 3)
    share = 1 - (w - 6) * (h - 6) / (w * h)
    assert border.sum() < 2 * share * len(peaks) + 5 * np.sqrt(share * len(peaks))  # borders are not favoured


def test_default_threshold_has_no_false_positives_and_finds_every_molecule():
    truth, frames = movie(frames=40)
    peaks = localize.detect(frames, CAMERA.variance)
    inside = (truth["x"] > 1) & (truth["x"] < 126) & (truth["y"] > 1) & (truth["y"] < 126)
    found, true = localize.match(peaks, truth, 2.0)
    assert inside[true].sum() == inside.sum()
    assert len(found) == len(peaks)
    assert np.array_equal(np.sort(peaks, order=["frame", "y", "x"]), peaks)


def test_read_noise_counts_as_noise():
    rng = np.random.default_rng(3)
    frames = rng.poisson(50, (30, 40, 50)) + rng.normal(0, 20, (30, 40, 50))
    assert len(localize.detect(frames, 400.0, threshold=5.0)) == 0
    assert len(localize.detect(frames, 0.0, threshold=5.0)) > 100


@pytest.mark.parametrize("shape", [(0, 8, 8), (3, 0, 4), (1, 1, 1), (2, 1, 9), (1, 5, 5), (3, 17, 6)])
@pytest.mark.parametrize("value", [0.0, -3.0, 1e5])
def test_flat_frames_have_no_peaks(shape, value):
    peaks = localize.detect(np.full(shape, value))
    assert len(peaks) == 0
    assert peaks.dtype.names == ("frame", "x", "y", "snr")


@pytest.mark.parametrize("shape", [(5, 5), (5, 9), (17, 6), (31, 64)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, np.float32, np.float64])
def test_one_spot_in_any_frame(shape, dtype):
    h, w = shape
    y, x = np.indices(shape)
    frame = 5 + 240 * np.exp(-((x - w // 2) ** 2 + (y - h // 2) ** 2) / (2 * 1.2**2))
    frames = np.stack([np.full(shape, 5), frame]).astype(dtype)
    (peak,) = localize.detect(frames, sigma=1.2)
    assert (peak["frame"], peak["x"], peak["y"]) == (1, w // 2, h // 2)
    assert len(localize.detect(np.asfortranarray(frames)[:, ::-1], sigma=1.2)) == 1
    assert localize.detect(frames[1], sigma=1.2)["frame"].tolist() == [0]


def test_broken_pixels_neither_spread_nor_count():
    truth, frames = movie(frames=2, shape=(64, 64), spots_per_frame=6)
    clean = localize.detect(frames, CAMERA.variance)
    far = np.ones((64, 64), bool)
    for row in truth[truth["frame"] == 0]:
        far &= np.hypot(*(np.indices((64, 64)) - np.array([row["y"], row["x"]])[:, None, None])) > 9
    frames[0][far & (np.random.default_rng(0).random((64, 64)) < 0.05)] = np.nan
    frames[0, *np.argwhere(far)[5]] = np.inf
    given = frames.copy()
    broken = localize.detect(frames, CAMERA.variance)
    assert np.array_equal(broken[["frame", "x", "y"]], clean[["frame", "x", "y"]])
    assert np.array_equal(frames, given, equal_nan=True)  # the input is left alone
    assert len(localize.detect(np.full((2, 8, 8), np.nan))) == 0


def test_equal_neighbours_are_one_peak():
    frame = np.zeros((21, 24))
    frame[10, 10:12] = 500  # symmetric: both pixels are equal after filtering
    assert len(localize.detect(frame)) == 1
    frame[...] = 0
    frame[8:12, 8:12] = 65535  # a saturated patch
    assert len(localize.detect(frame)) == 1


def test_no_filtering_across_frames():
    frames = np.full((3, 15, 15), 10.0)
    frames[1, 7, 7] = 1000
    assert localize.detect(frames)["frame"].tolist() == [1]


def test_finds_what_picasso_found():
    folder = SHARED / "movie_dna_paint"
    if not folder.is_dir():
        pytest.skip("needs movie_dna_paint of the shared data; set SMLMCORE_DATA")
    theirs, _ = data.read_picasso(folder / "testdata_locs.hdf5")
    theirs = theirs[theirs["frame"] < 100]  # the file holds the locs of a longer movie
    with data.open_movie(folder / "testdata.raw") as counts:
        ours = localize.detect(counts.read(), sigma=0.82)
    assert len(theirs) == 30
    assert len(localize.match(ours, theirs, 1.5)[0]) == 30  # 1.5: Picasso's fits lie up to a pixel off the peak


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        (np.zeros(5), {}, r"shape \(5,\)"),
        (np.zeros((2, 1, 5, 5)), {}, "expected .frame, y, x."),
        (np.zeros((5, 5)), {"sigma": 0}, "sigma 0"),
        (np.zeros((5, 5)), {"sigma": np.nan}, "sigma nan"),
        (np.zeros((5, 5)), {"threshold": -1}, "threshold -1"),
        (np.zeros((5, 5)), {"radius": 0}, "radius 0"),
        (np.zeros((5, 5)), {"variance": -1}, "variance -1"),
        (np.zeros((5, 5)), {"variance": np.zeros((5, 5))}, "expected one number"),
    ],
)
def test_detect_refuses(frames, options, message):
    with pytest.raises(ValueError, match=message):
        localize.detect(frames, **options)


# ---------------------------------------------------------------- cut, isolated


@pytest.mark.parametrize("box", [5, 7])
@pytest.mark.parametrize("dtype", [np.uint16, np.float64])
def test_cut_against_slices(box, dtype):
    frames = np.random.default_rng(0).integers(0, 999, (3, 12, 15)).astype(dtype)[:, ::-1]
    every = np.argwhere(np.ones(frames.shape, bool))
    peaks = data.table(frame=every[:, 0], x=every[:, 2], y=every[:, 1])
    spots, kept = localize.cut(frames, peaks, box)
    r = box // 2
    assert spots.shape == (3 * (13 - box) * (16 - box), box, box)  # every box that fits, no other
    assert spots.dtype == dtype
    for spot, peak in zip(spots, kept, strict=True):
        x, y = peak["x"], peak["y"]
        assert np.array_equal(spot, frames[peak["frame"], y - r : y + r + 1, x - r : x + r + 1])


def test_cut_of_nothing():
    none = data.table(frame=np.zeros(0), x=np.zeros(0, int), y=np.zeros(0, int))
    spots, kept = localize.cut(np.zeros((2, 9, 9), np.float32), none, 5)
    assert (spots.shape, len(kept)) == ((0, 5, 5), 0)
    spots, kept = localize.cut(np.zeros((2, 4, 4)), data.table(frame=[1], x=[2], y=[2]), 5)  # the box does not fit
    assert (spots.shape, len(kept)) == ((0, 5, 5), 0)


def test_cut_refuses():
    peaks = data.table(frame=[0], x=[4], y=[4])
    for box in (4, 3, 0, 5.0, -5):
        with pytest.raises(ValueError, match="odd number of pixels, at least 5"):
            localize.cut(np.zeros((1, 9, 9)), peaks, box)
    with pytest.raises(ValueError, match=r"shape \(9, 9\)"):
        localize.cut(np.zeros((9, 9)), peaks, 5)
    for bad in ({"frame": [1]}, {"x": [9]}, {"y": [-1]}):
        columns = {"frame": [0], "x": [4], "y": [4], **bad}
        with pytest.raises(ValueError, match="outside frames"):
            localize.cut(np.zeros((1, 9, 9)), data.table(**columns), 5)


def test_isolated_against_all_pairs():
    rng = np.random.default_rng(1)
    table = data.table(frame=rng.integers(0, 4, 200), x=rng.uniform(0, 60, 200), y=rng.uniform(0, 60, 200))
    xy = np.stack([table["x"], table["y"]], 1)
    distance = np.linalg.norm(xy[:, None] - xy, axis=-1)
    distance[table["frame"][:, None] != table["frame"]] = np.inf
    np.fill_diagonal(distance, np.inf)
    for limit in (0, 3.0, 7.5):
        assert np.array_equal(localize.isolated(table, limit), distance.min(1) > limit)


def test_isolated_edges():
    assert localize.isolated(points(), 3).tolist() == []
    assert localize.isolated(points((0, 1, 1)), 3).tolist() == [True]
    assert localize.isolated(points((0, 1, 1), (0, 1, 1)), 0).tolist() == [False, False]
    assert localize.isolated(points((0, 1, 1), (1, 1, 1)), 0).tolist() == [True, True]
    assert localize.isolated(points((0, 1, 1), (0, 4, 1)), 3).tolist() == [False, False]
    with pytest.raises(ValueError, match="distance -1"):
        localize.isolated(points(), -1)


# ---------------------------------------------------------------- match


def best_pairs(found, truth, radius):
    """All assignments of up to six rows a side, tried one by one: most pairs, then least squared distance."""
    squared = (found["x"][:, None] - truth["x"]) ** 2 + (found["y"][:, None] - truth["y"]) ** 2
    squared[(found["frame"][:, None] != truth["frame"]) | (squared > radius**2)] = np.inf
    if len(found) > len(truth):
        squared = squared.T
    rows = np.arange(len(squared))
    costs = [squared[rows, list(p)] for p in permutations(range(squared.shape[1]), len(squared))]
    return min((-np.isfinite(c).sum(), c[np.isfinite(c)].sum()) for c in costs)


@pytest.mark.parametrize("seed", range(12))
def test_match_is_optimal(seed):
    rng = np.random.default_rng(seed)
    n, m = rng.integers(1, 7, 2)
    found, truth = (
        data.table(frame=rng.integers(0, 2, k), x=rng.uniform(0, 5, k), y=rng.uniform(0, 5, k)) for k in (n, m)
    )
    i, j = localize.match(found, truth, 2.0)
    squared = (found["x"][i] - truth["x"][j]) ** 2 + (found["y"][i] - truth["y"][j]) ** 2
    assert len(set(i)) == len(set(j)) == len(i)
    assert np.array_equal(found["frame"][i], truth["frame"][j])
    assert (squared <= 4).all()
    pairs, cost = best_pairs(found, truth, 2.0)
    assert len(i) == -pairs
    assert squared.sum() == pytest.approx(cost)


def test_match_prefers_more_pairs_to_a_closer_one():
    found, truth = points((0, 1.0, 0), (0, 2.9, 0)), points((0, 1.9, 0), (0, -0.9, 0))
    i, j = localize.match(found, truth, 2.0)
    assert list(zip(i, j, strict=True)) == [(0, 1), (1, 0)]


def test_match_of_a_whole_movie():
    truth, _ = simulate.blinking_movie(np.random.default_rng(0))
    shuffled = np.random.default_rng(1).permutation(len(truth))
    found = truth[shuffled].copy()
    found["x"] += np.random.default_rng(2).normal(0, 0.1, len(found))
    i, j = localize.match(found, truth, 1.0)
    assert np.array_equal(i, np.arange(len(found)))
    assert np.array_equal(j, shuffled)


def test_match_edges():
    one = points((0, 1.0, 1.0))
    for found, truth in ((points(), one), (one, points()), (points(), points()), (one, points((1, 1.0, 1.0)))):
        i, j = localize.match(found, truth, 1.0)
        assert (len(i), len(j)) == (0, 0)
    i, j = localize.match(points((0, np.nan, 1), (0, 1, 1)), points((0, 1, 1), (0, 1, np.nan)), 1.0)
    assert (i.tolist(), j.tolist()) == ([1], [0])
    with pytest.raises(ValueError, match="radius 0"):
        localize.match(one, one, 0)


# ---------------------------------------------------------------- render


def test_render_puts_a_pixel_where_it_is():
    image = localize.render(points((0, 0, 0), (0, 3.49, 1.49), (0, -0.5, -0.5), (3, 1, 0)), (2, 4), zoom=2)
    assert image.shape == (4, 8)
    assert {tuple(p) for p in np.argwhere(image)} == {(1, 1), (3, 7), (0, 0), (1, 3)}


@pytest.mark.parametrize("zoom", [1, 3, 8, 2.5])
@pytest.mark.parametrize("blur", [0, 0.2, None])
def test_render_keeps_the_sum(zoom, blur):
    rng = np.random.default_rng(0)
    table = data.table(
        frame=0, x=rng.uniform(-0.5, 12.5, 300), y=rng.uniform(-0.5, 6.5, 300), lpx=0.1, lpy=rng.uniform(0, 0.2, 300)
    )
    image = localize.render(table, (7, 13), zoom, blur)
    assert image.shape == (np.ceil(7 * zoom), np.ceil(13 * zoom))
    assert image.sum() == pytest.approx(300, rel=1e-4)


def test_render_blurs_by_the_uncertainty():
    table = data.table(frame=[0], x=[10.0], y=[10.0], lpx=[0.5], lpy=[0.5])
    image = localize.render(table, (21, 21), zoom=8)
    x = np.arange(21 * 8)
    profile = image.sum(0) / image.sum()
    spread = np.sqrt((profile * x**2).sum() - (profile * x).sum() ** 2)
    assert spread == pytest.approx(0.5 * 8, rel=0.01)  # cut at 4 sigma


def test_render_leaves_out_what_is_outside():
    rows = points((0, np.nan, 1), (0, 1, np.inf), (0, -0.51, 0), (0, 4.5, 0), (0, 1, 1))
    assert localize.render(rows, (3, 4), 4).sum() == 1
    assert localize.render(points(), (3, 4), 4).sum() == 0
    for arguments in (((3, 4), 0), ((3, 4), 2, -1), ((0, 4), 2), ((3,), 2)):
        with pytest.raises(ValueError, match="render got"):
            localize.render(rows, *arguments)
