"""Linking, drift, resolution, rendering and scores: against brute force, known answers and simulated truth."""

import itertools

import numpy as np
import pytest
import tifffile

from smlmcore import data, localize
from smlmcore.fit import Status
from smlmcore.localize.drift import Drift
from smlmcore.localize.render import scale_bar
from smlmcore.localize.results import keep

SITES, FIELD, ERROR = 400, 48.0, 0.08


def blinking(seed=0, frames=2000, per_frame=20, on=4.0, path=None, sites=SITES, **columns):
    """Molecules at sites that blink again and again, moved along `path` (frames, 2); the table and its events."""
    rng = np.random.default_rng(seed)
    site = rng.uniform(3, FIELD - 3, (sites, 2))
    events = int(frames * per_frame / on)
    length, start = rng.geometric(1 / on, events), rng.integers(0, frames, events)
    event = np.repeat(np.arange(events), length)
    frame = start[event] + np.arange(len(event)) - np.repeat(np.cumsum(length) - length, length)
    event, frame = event[frame < frames], frame[frame < frames]
    order = np.argsort(frame, kind="stable")
    event, frame = event[order], frame[order]
    at = site[rng.integers(0, sites, events)[event]] + rng.normal(0, ERROR, (len(frame), 2))
    at += 0 if path is None else path[frame]
    table = data.table(frame=frame, x=at[:, 0], y=at[:, 1], photons=100.0, lpx=ERROR, lpy=ERROR, **columns)
    return table, event


def rms(found, path):
    return np.sqrt(np.mean((np.stack([found.x, found.y], 1) - (path - path.mean(0))) ** 2))


# ---------------------------------------------------------------- what is a localization


def test_rows_that_are_no_localizations_are_counted_by_reason():
    ok, wide = {"x": 5.0, "y": 5.0, "lpx": 0.1, "lpy": 0.1, "status": Status.converged}, {"lpx": 1.4}
    rows = [
        ok, {**ok, "status": Status.max_iterations}, {**ok, **wide}, {**ok, "lpy": 9.0, "x": 90.0},
        {**ok, "lpy": 1.01}, {**ok, "lpx": np.nan}, {**ok, "lpy": 0.0}, {**ok, "x": np.nan}, {**ok, "y": -1.1},
        {**ok, "status": Status.singular, "lpx": 2.0}, {**ok, "lpx": 1.0, "y": -0.9},
    ]  # fmt: skip
    table = data.table(frame=np.arange(len(rows)), **{name: np.array([r[name] for r in rows]) for name in ok})
    kept, dropped = keep([table], (20, 16, 24))
    assert kept["frame"].tolist() == [0, 1, 10]
    assert dropped == {"fit_failed": 1, "no_uncertainty": 2, "outside_of_the_field": 3, "uncertain_position": 2}
    assert len(kept) + sum(dropped.values()) == len(table)
    assert keep([table], (20, 16, 24), 3.0)[0]["frame"].tolist() == [
        0,
        1,
        2,
        4,
        10,
    ]  # where a pixel is a third of the PSF
    assert keep([table[:0]], (20, 16, 24))[1] == dict.fromkeys(dropped, 0)


# ---------------------------------------------------------------- link


def test_link_finds_the_events():
    table, event = blinking(sites=20_000)  # so many that hardly ever one goes on where another has just gone off
    events, found = localize.link(table, gap=0)
    assert len(events) == pytest.approx(len(np.unique(event)), rel=0.005)
    assert events["count"].sum() == len(table)
    assert np.array_equal(np.bincount(found), events["count"])
    on = localize.on_time(events, 2000)
    assert abs(on.mean - -1 / np.log1p(-1 / 4.0)) < 5 * on.error + 0.05


def test_events_are_weighted_means_by_hand():
    rng = np.random.default_rng(1)
    table, _ = blinking(frames=300, z=0.1, lpz=0.05)
    table["lpx"], table["lpy"] = rng.uniform(0.05, 0.1, (2, len(table)))
    table["z"] += rng.normal(0, 0.05, len(table))
    shuffled = table[rng.permutation(len(table))]
    events, event = localize.link(shuffled)
    for k in rng.choice(len(events), 50):
        rows = shuffled[event == k]
        w = rows["lpx"] ** -2.0
        assert events["x"][k] == pytest.approx((w * rows["x"]).sum() / w.sum(), rel=1e-5)
        assert events["lpx"][k] == pytest.approx(w.sum() ** -0.5, rel=1e-5)
        assert events["z"][k] == pytest.approx(rows["z"].mean(), rel=1e-4, abs=1e-5)
        assert events["photons"][k] == pytest.approx(100 * len(rows))
        assert (events["frame"][k], events["length"][k]) == (rows["frame"].min(), np.ptp(rows["frame"]) + 1)
    assert (np.diff(events["frame"].astype(int)) >= 0).all()


def greedy(table, radius, gap):
    """The rule of `link` by brute force: in each frame the nearest free pair first."""
    event, last = np.full(len(table), -1), {}
    count = 0
    for now in np.unique(table["frame"]):
        rows = np.flatnonzero(table["frame"] == now)
        near = []
        for row, (e, other) in itertools.product(rows, last.items()):
            d = np.hypot(table["x"][row] - table["x"][other], table["y"][row] - table["y"][other])
            if d <= radius and now - table["frame"][other] <= gap + 1:
                near.append((d, row, e))
        for _, row, e in sorted(near):
            if event[row] < 0 and e not in event[rows]:
                event[row] = e
        for row in rows:
            if event[row] < 0:
                event[row], count = count, count + 1
            last[event[row]] = row
    return event


@pytest.mark.parametrize("gap", [0, 2])
def test_link_in_a_crowd_against_brute_force(gap):
    rng = np.random.default_rng(gap)
    n = 300
    table = data.table(frame=np.sort(rng.integers(0, 25, n)), x=rng.uniform(-3, 6, n), y=rng.uniform(-3, 6, n))
    assert np.array_equal(localize.link(table, gap, radius=0.8)[1], greedy(table, 0.8, gap))


def test_link_edges():
    empty = data.table(frame=np.zeros(0), x=np.zeros(0), y=np.zeros(0))
    assert [len(v) for v in localize.link(empty, radius=1)] == [0, 0]
    rows = data.table(frame=[5, 6, 7], x=[1, np.nan, 1.0], y=[1.0, 1, 1])
    assert localize.link(rows, 1, radius=0.5)[1].tolist() == [0, 1, 0]
    assert localize.link(rows, 0, radius=0.5)[1].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="without lpx, lpy"):
        localize.link(rows)
    with pytest.raises(ValueError, match="gap -1"):
        localize.link(rows, -1, radius=1)
    with pytest.raises(ValueError, match="all 0"):
        localize.link(data.table(frame=[0, 1], x=[1.0, 1.0], y=[1.0, 1.0], lpx=0.0, lpy=0.0))


# ---------------------------------------------------------------- drift


def random_walk(frames, step, seed=5):
    return np.cumsum(np.random.default_rng(seed).normal(0, step, (frames, 2)), 0)


@pytest.mark.parametrize("kind", ["walk", "ramp", "jump", "none"])
def test_drift_is_found_and_its_error_is_honest(kind):
    frames, t = 2000, np.arange(2000)[:, None] / 2000
    path = {
        "walk": random_walk(frames, 0.01),
        "ramp": t * (25.0, -8.0),  # further than the spacing of the sites
        "jump": np.where(t > 0.55, 1.0, 0.0) * (3.0, 1.0),
        "none": t * (0.0, 0.0),
    }[kind]
    table, _ = blinking(path=path)
    found = localize.drift(table, frames)
    rest = slice(None)
    if kind == "jump":  # the segment in which it happens is lost, by design: no prior of a drift foresees jumps
        rest = abs(np.arange(frames) - 1100) > 100
    error = rms(Drift(0, found.x[rest], found.y[rest], None, None), path[rest])
    assert error < {"walk": 0.02, "ramp": 0.03, "jump": 0.05, "none": 0.01}[kind]
    if kind == "walk":
        z = (found.x - path[:, 0] + path[:, 0].mean()) / found.x_error
        assert 0.7 < z.std() < 1.4
    corrected = localize.correct(table, found)
    assert np.allclose(corrected["x"], table["x"] - found.x[table["frame"]])
    assert np.array_equal(corrected["photons"], table["photons"])


def test_drift_does_not_depend_on_threads_or_on_the_order_of_calls():
    import numba

    table, _ = blinking(frames=500, path=random_walk(500, 0.01))
    before = localize.drift(table)
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        again = localize.drift(table)
    finally:
        numba.set_num_threads(threads)
    assert np.array_equal(before.x, again.x)
    assert np.array_equal(before.y_error, again.y_error)


def test_drift_in_depth():
    rng = np.random.default_rng(0)
    path = np.cumsum(rng.normal(0, 0.002, 2000))
    table, _ = blinking(z=0.0, lpz=0.03)
    table["z"] = np.sin(table["x"]) * 0.2 + path[table["frame"]] + rng.normal(0, 0.03, len(table))
    found = localize.drift(table, 2000)
    assert np.std(found.z - path) < 0.015
    assert np.std(localize.correct(table, found)["z"] - np.sin(table["x"]) * 0.2) < 0.04


def test_cross_correlation_agrees_with_drift():
    t = np.arange(2000)[:, None] / 2000
    path = t**2 * (3.0, -2.0)
    table, _ = blinking(path=path)
    knots, found = localize.cross_correlation(table, 2000)
    assert rms(found, path) < 0.1
    assert len(knots) == 16


def test_fiducials():
    rng = np.random.default_rng(0)
    path = random_walk(300, 0.05)
    frame = np.tile(np.arange(300), 2)
    bead = np.repeat([[10.0, 10], [30, 20]], 300, 0)
    at = bead + path[frame] + rng.normal(0, 0.01, bead.shape)
    table = data.table(frame=frame, x=at[:, 0], y=at[:, 1], lpx=0.01, lpy=0.01)
    table = table[(table["frame"] != 7) & ((table["frame"] < 100) | (table["x"] > 20))]  # one bead goes dark
    found = localize.fiducials(table, [[10, 10], [30, 20]], 5.0, 300)
    seen = np.arange(300) != 7
    assert np.isinf(found.x_error[7])
    assert rms(Drift(0, found.x[seen], found.y[seen], None, None), path[seen]) < 0.02
    with pytest.raises(ValueError, match="1 marks with no localization"):
        localize.fiducials(table, [[99, 99]], 1.0)


def test_tables_that_begin_late_and_left_of_the_field():
    """The first molecule in frame 1500, coordinates below zero: nothing is dropped, and the drift is the same."""
    path = random_walk(3500, 0.01)
    table, _ = blinking(path=path[1500:])
    late = table.copy()
    late["frame"] += 1500
    found = localize.drift(late, 3500)
    seen = np.stack([found.x, found.y], 1)[1500:] - path[1500:]
    assert np.sqrt(np.mean((seen - seen.mean(0)) ** 2)) < 0.02
    assert np.isfinite(found.x).all()
    assert len(localize.link(late)[0]) == len(localize.link(table)[0])
    late["x"] -= 20
    moved = localize.drift(late, 3500)
    np.testing.assert_allclose(moved.x, found.x, atol=2e-3)  # float32 coordinates, another grid
    assert len(localize.correct(late, moved)) == len(late)


def test_drift_of_little_or_nothing():
    empty = data.table(frame=np.zeros(0), x=np.zeros(0), y=np.zeros(0), lpx=np.zeros(0), lpy=np.zeros(0))
    for rows, frames in ((empty, 10), (empty, 0), (blinking()[0][:99], 50)):
        found = localize.drift(rows, frames)
        assert not found.x.any()
        assert np.isinf(found.x_error).all()
        assert len(localize.correct(rows, found)) == len(rows)
    table, _ = blinking(frames=7, per_frame=50)
    table["x"][3] = np.nan
    assert np.isfinite(localize.drift(table, 9).x).all()
    with pytest.raises(ValueError, match="without lpx"):
        localize.drift(data.table(frame=[0], x=[1.0], y=[1.0]))


# ---------------------------------------------------------------- resolution


def test_frc_against_theory():
    """Uniformly random points of Gaussian error: FRC = exp(-4π²q²s²) Q / (1 + exp(-4π²q²s²) Q), Q repeats of a half."""
    rng = np.random.default_rng(0)
    repeats, sites, error = 10, 4000, 0.1
    at = np.repeat(rng.uniform(2, 62, (sites, 2)), repeats, 0) + rng.normal(0, error, (sites * repeats, 2))
    table = data.table(frame=rng.permutation(len(at)), x=at[:, 0], y=at[:, 1], lpx=error)
    found = localize.frc(table, (64, 64), zoom=16)
    q = np.linspace(0, 8, 10_000)
    signal = repeats / 2 * np.exp(-4 * np.pi**2 * q**2 * error**2)
    expected = 1 / q[np.argmax(signal / (1 + signal) < 1 / 7)]
    assert found.resolution == pytest.approx(expected, rel=0.05)
    assert abs(found.resolution - expected) < 5 * found.error + 0.02 * expected


def test_resolution_of_noise_and_of_a_band_limited_image():
    rng = np.random.default_rng(0)
    noise = data.table(frame=np.arange(3000), x=rng.uniform(0, 32, 3000), y=rng.uniform(0, 20, 3000))
    assert localize.frc(noise, (20, 32), zoom=5).resolution > 1
    size, cut = 256, 40
    spectrum = np.fft.fft2(rng.normal(size=(size, size)))
    radius = np.hypot(*np.meshgrid(*[np.fft.fftfreq(size) * size] * 2))
    image = np.fft.ifft2(spectrum * (radius < cut)).real + 0.001 * rng.normal(size=(size, size))
    assert localize.decorrelation(image).resolution == pytest.approx(size / cut, rel=0.1)
    with pytest.raises(ValueError, match="at least 8"):
        localize.decorrelation(np.zeros((4, 9)))


# ---------------------------------------------------------------- render


def test_render_by_own_uncertainty_against_the_sum_of_gaussians():
    rng = np.random.default_rng(0)
    table = data.table(
        frame=0, x=rng.uniform(-1, 9, 80), y=rng.uniform(-1, 6, 80), lpx=rng.uniform(0.1, 0.6, 80), lpy=0.3
    )
    zoom, (h, w) = 5, (6, 9)
    image = localize.render(table, (h, w), zoom, "own")
    expected = np.zeros((h * zoom, w * zoom))
    for row in table:
        if -0.5 <= row["x"] < w - 0.5 and -0.5 <= row["y"] < h - 0.5:
            gx, gy = (
                np.exp(-0.5 * (((np.arange(n * zoom) + 0.5) / zoom - 0.5 - c) / s) ** 2)
                / (np.sqrt(2 * np.pi) * s * zoom)
                for n, c, s in ((w, row["x"], row["lpx"]), (h, row["y"], row["lpy"]))
            )
            expected += np.outer(gy, gx)
    np.testing.assert_allclose(image, expected, atol=3e-3 * expected.max())


@pytest.mark.parametrize("blur", ["own", "shifted"])
def test_spread_rendering_keeps_the_sum_and_any_region(blur):
    rng = np.random.default_rng(0)
    table = data.table(
        frame=0, x=rng.uniform(3, 45, 2000), y=rng.uniform(3, 30, 2000), lpx=0.1, lpy=rng.uniform(0.05, 0.2, 2000)
    )
    image = localize.render(table, (33, 48), 6, blur)
    assert image.sum() == pytest.approx(2000, rel=1e-4)
    part = localize.render(table, (33, 48), 6, blur, region=(9.5, 4.5, 29.5, 24.5))
    assert part.shape == (120, 120)
    np.testing.assert_allclose(part[12:-12, 12:-12], image[42:138, 72:168], atol=1e-4)
    twice = localize.render(table, (33, 48), 6, blur, weights=np.full(2000, 2.0))
    np.testing.assert_allclose(twice, 2 * image, rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (20, 9), (33, 4)])
def test_small_images_lose_no_light(shape):
    rng = np.random.default_rng(0)
    x, y = (rng.uniform(-0.5, n - 0.5, 500) for n in (shape[1], shape[0]))
    table = data.table(frame=np.zeros(500), x=x, y=y)
    assert localize.render(table, shape, 1, "shifted").sum() == pytest.approx(500, rel=1e-5)


def test_a_shifted_histogram_is_the_mean_of_shifted_histograms():
    rng = np.random.default_rng(0)
    table = data.table(frame=0, x=rng.uniform(4, 12, 500), y=rng.uniform(4, 12, 500))
    shifts = (np.arange(20) + 0.5) / 20 - 0.5
    mean = np.mean(
        [
            localize.render(table, (16, 16), 2, 0, region=(-0.5 + a / 2, -0.5 + b / 2, 15.5 + a / 2, 15.5 + b / 2))
            for a in shifts
            for b in shifts
        ],
        axis=0,
    )
    np.testing.assert_allclose(localize.render(table, (16, 16), 2, "shifted"), mean, atol=0.2)


def test_render_edges():
    table = data.table(frame=[0, 1], x=[1.0, np.nan], y=[1.0, 2], lpx=[np.nan, 0.1], lpy=[0.1, np.inf])
    for blur in ("own", "shifted"):
        assert localize.render(table[:0], (5, 7), 3, blur).sum() == 0
        assert localize.render(table, (5, 7), 3, blur).sum() == pytest.approx(1, rel=1e-3)
    with pytest.raises(ValueError, match="without lpx"):
        localize.render(data.table(frame=[0], x=[1.0], y=[1.0]), (5, 5), 2, "own")
    for options in ({"blur": "nice"}, {"region": (3, 0, 1, 5)}):
        with pytest.raises(ValueError, match="render got"):
            localize.render(table, (5, 5), 2, **options)


def test_colours_and_files(tmp_path):
    table = data.table(frame=[0, 9], x=[2.0, 12.0], y=[4.0, 4.0], z=[-0.3, 0.3])
    for by in ("z", "frame"):
        image = localize.colour(table, (9, 16), 4, by, blur=0)
        (blue, red) = (image[18, 10].astype(int), image[18, 50].astype(int))
        assert image.dtype == np.uint8
        assert blue[2] > blue[0]
        assert red[0] > red[2]
    with pytest.raises(ValueError, match="by='sigma'"):
        localize.colour(table, (9, 16), by="sigma")
    density = localize.render(table, (100, 200), 4, 0.5)
    localize.save_image(tmp_path / "a.tif", density, 0.025)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        np.testing.assert_array_equal(file.asarray(), density)
        assert file.pages[0].tags["XResolution"].value[0] / file.pages[0].tags["XResolution"].value[1] == 4e5
    localize.save_image(tmp_path / "a.png", density, 0.025)
    localize.save_image(tmp_path / "plain.png", density, 0.025, bar=False)
    from matplotlib.image import imread

    shown, plain = imread(tmp_path / "a.png"), imread(tmp_path / "plain.png")
    bar = (shown != plain).any(-1)
    assert bar.any(0).sum() == scale_bar(20.0) / 0.025 == 200  # pixels of 25 nm, 20 µm wide
    with pytest.raises(ValueError, match=r"png or \.tif"):
        localize.save_image(tmp_path / "a.jpg", density)
    assert localize.composite([density, density, density]).shape == (*density.shape, 3)
    with pytest.raises(ValueError, match="4 images and 3 colours"):
        localize.composite([density] * 4)


# ---------------------------------------------------------------- score


def test_score_by_hand():
    truth = data.table(frame=[0, 0, 1, 1], x=[5.0, 20, 5, 0.2], y=[5.0, 5, 5, 9], z=[0.0, 0, 0, 0])
    found = data.table(frame=[0, 1, 1, 2], x=[5.3, 5, 0.2, 5], y=[5.4, 5, 9, 5], z=[0.1, 0.6, 0, 0])
    result = localize.score(found, truth, 0.1)
    a = result["250"]
    assert (a["pairs"], a["false_positives"], a["missed"]) == (2, 2, 2)  # one pair lies 600 nm apart in depth
    assert a["jaccard"] == pytest.approx(1 / 3)
    assert a["rmse_lateral"] == pytest.approx(np.sqrt(50.0**2 / 2))
    assert a["rmse_axial"] == pytest.approx(np.sqrt(100.0**2 / 2))
    assert a["efficiency"] == pytest.approx(100 - np.hypot(200 / 3, np.sqrt(1250)))
    assert a["efficiency_axial"] == pytest.approx(100 - np.hypot(200 / 3, np.sqrt(5000) / 2))
    inner = localize.score(found, truth, 0.1, margin=1.0, shape=(32, 32))["250"]
    assert (inner["pairs"], inner["false_positives"], inner["missed"]) == (1, 2, 2)
    assert localize.score(found[:0], truth[:0], 0.1)["500"]["jaccard"] == 0
    with pytest.raises(ValueError, match="margin without the shape"):
        localize.score(found, truth, 0.1, margin=1)
