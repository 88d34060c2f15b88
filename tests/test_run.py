"""`smlmcore localize`: detection at a stated rate, joint fits, the run as a whole, its interruptions and odd movies."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy import special

from smlmcore import data, fit, localize, psf
from smlmcore.camera import Camera
from smlmcore.cli import main
from smlmcore.cli.localize import _localized
from smlmcore.localize import finder
from smlmcore.localize.background import background
from smlmcore.localize.chunks import Plan, localize_frames
from smlmcore.localize.crowd import fit_peaks
from smlmcore.localize.emitters import Emitters, as_table
from smlmcore.localize.run import keep, run
from smlmcore.localize.source import Source

SHARED = Path(os.environ.get("SMLMCORE_DATA", Path(__file__).parents[1] / "../shared/data"))
CAMERA = Camera(offset=100.0, gain=0.5, read_noise=1.0, pixel_size=0.1)
MODEL = psf.Gaussian2D()


def molecules(rng, frames, per_frame, shape, **columns):
    """Molecules uniform over the field, the border included."""
    number = rng.poisson(per_frame, frames)
    frame = np.repeat(np.arange(frames), number)
    h, w = shape
    values = {"photons": 2000.0, "background": 10.0, "sigma_x": 1.3, **columns}
    return data.table(
        frame=frame, x=rng.uniform(-0.5, w - 0.5, len(frame)), y=rng.uniform(-0.5, h - 0.5, len(frame)), **values
    )


def expected(truth, frames, shape):
    """Photons per pixel for the molecules `truth`, background 10."""
    most = int(np.bincount(truth["frame"], minlength=frames).max(initial=0))
    values = {n: np.zeros((frames, max(most, 1))) for n in ("x", "y", "photons")} | {
        "sigma": np.ones((frames, max(most, 1)))
    }
    place = np.arange(len(truth)) - np.searchsorted(truth["frame"], truth["frame"])
    for name, column in {"x": "x", "y": "y", "photons": "photons", "sigma": "sigma_x"}.items():
        values[name][truth["frame"], place] = truth[column]
    return MODEL.render({**values, "background": np.full(frames, 10.0)}, shape)


def draw(rng, truth, frames, shape):
    """Counts of `CAMERA` for the molecules `truth`."""
    return CAMERA.expose(expected(truth, frames, shape), rng)


def write_movie(folder, frames=24, per_frame=4, shape=(40, 48), seed=0, name="movie.tif", truth=True):
    rng = np.random.default_rng(seed)
    table = molecules(rng, frames, per_frame, shape)
    data.write_tiff(folder / name, [draw(rng, table, frames, shape)], (frames, *shape), np.uint16, CAMERA)
    if truth:
        data.write_picasso((folder / name).with_suffix(".truth.hdf5"), table, (frames, *shape), 0.1)
    return folder / name


# ---------------------------------------------------------------- detection


@pytest.mark.parametrize("sigma", [0.6, 1.3, 4.0])
def test_the_rate_of_false_positives_is_the_integral_that_its_docstring_tells(sigma):
    weights = finder.taps(sigma)
    line = np.concatenate([weights[:0:-1], weights])
    rho = (line[1:] * line[:-1]).sum() / (line**2).sum()
    for threshold in (2.0, 5.0):
        z = np.linspace(threshold, threshold + 8, 20_001)
        slope, alpha = np.sqrt((1 - rho) / (1 + rho)), np.arcsin(np.sqrt((1 - rho**2) / 2))
        edge = special.ndtr(slope * z)
        middle = edge - 2 * special.owens_t(slope * z, 1 / np.tan(alpha))
        density = (30 * middle + 2 * edge) * (38 * middle + 2 * edge) * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
        # the trapezoid rule is off by h² / 12 times the slope of the density, about threshold times the integral
        np.testing.assert_allclose(finder.false_positives(threshold, (32, 40), sigma), np.trapezoid(density, z), 1e-6)


EMPTY = {
    "uniform": lambda rng, y, x: (np.full(x.shape, 10.0), 1.0),
    "few photons": lambda rng, y, x: (np.full(x.shape, 1.0), 0.5),
    "gradient": lambda rng, y, x: (3 + 0.2 * x, 1.0),
    "hot pixels": lambda rng, y, x: (np.full(x.shape, 5.0), np.where(rng.random(x.shape) < 0.01, 900.0, 2.0)),
}


@pytest.mark.parametrize("kind", EMPTY)
def test_false_positives_come_at_the_rate_asked_for(kind):
    rng, shape, n, rate = np.random.default_rng(7), (64, 80), 1000, 0.5
    mean, variance = EMPTY[kind](rng, *np.indices(shape))
    frames = rng.poisson(np.broadcast_to(mean, (n, *shape))) + rng.normal(0, 1, (n, *shape)) * np.sqrt(variance)
    found = finder.find(frames, background(frames, variance), variance, false_positives=rate)
    assert 0.8 * rate < len(found) / n < 1.2 * rate  # 22 false positives in 500 are a standard deviation
    table, _ = keep([localize_frames(frames, variance, false_positives=rate)], frames.shape)
    assert 0.8 * rate < len(table) / n < 1.2 * rate  # in the end, too


def test_background_behind_molecules():
    rng, shape = np.random.default_rng(0), (64, 64)
    truth = molecules(rng, 100, 14, shape)
    frames = CAMERA.photoelectrons(draw(rng, truth, 100, shape))
    found = background(frames, 1.0)
    assert found.shape == (1, *shape)
    assert abs(found.mean() - 10) < 0.15
    assert background(np.zeros((0, 8, 8))).shape == (1, 8, 8)
    assert background(np.zeros((3, 5, 4))).max() < 0.05


def test_find_any_frame():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (5, 9), (33, 17)):
        frames = rng.poisson(4.0, (3, *shape)).astype(float)
        frames[1, shape[0] // 2, shape[1] // 2] += 900
        found = finder.find(np.asfortranarray(frames), np.full((1, *shape), 4.0), threshold=5.0)
        assert found[["frame", "x", "y"]].tolist() == [(1, shape[1] // 2, shape[0] // 2)]
    frames[1, 4, 4] = np.nan
    assert len(finder.find(frames, np.full((1, *shape), 4.0), threshold=5.0)) == 1
    for options in ({"sigma": 0}, {"threshold": 0}, {"false_positives": 0}, {"false_positives": 1e9}):
        with pytest.raises(ValueError, match="got"):
            finder.find(frames, np.full((1, *shape), 4.0), **options)
    with pytest.raises(ValueError, match="frames"):
        finder.find(frames, np.zeros((1, 4, 4)))


# ---------------------------------------------------------------- fitting


def test_isolated_molecules_reach_the_bound_up_to_the_border():
    rng, shape, n = np.random.default_rng(1), (33, 36), 1500
    truth = molecules(rng, n, 0, shape)
    truth = np.zeros(n, truth.dtype)
    truth["frame"], truth["photons"], truth["background"], truth["sigma_x"] = np.arange(n), 2000, 10, 1.3
    truth["x"], truth["y"] = rng.uniform(-0.5, 35.5, n), rng.uniform(-0.5, 32.5, n)
    table = localize_frames(CAMERA.photoelectrons(draw(rng, truth, n, shape)), 1.0)
    i, j = localize.match(table, truth, 2.5)
    assert len(i) > 0.995 * n
    assert len(table) - len(i) < 0.01 * n + 15
    for name, error in (("x", "lpx"), ("y", "lpy")):
        away = truth[name][j] - (35 if name == "x" else 32) / 2
        border = abs(away) > (15.5 if name == "x" else 14.0)
        z = (table[name][i] - truth[name][j]) / table[error][i]
        assert np.sqrt(np.mean(z[~border] ** 2)) < 1.06
        assert 1.4826 * np.median(abs(z[border])) < 1.25  # half of the light is beyond the border
    inner = (abs(truth["x"][j] - 17.5) < 10) & (abs(truth["y"][j] - 16) < 10)
    theta = np.stack([np.full(1, 17.3), np.full(1, 16.1), [2000], [10], [1.3]], 1)
    bound = MODEL.crlb(theta, shape, 1.0)[0, 0]
    error = (table["x"][i] - truth["x"][j])[inner]
    assert np.sqrt(np.mean(error**2)) < (1.02 + 3 / np.sqrt(2 * inner.sum())) * bound


def test_a_crowd_is_told_apart():
    rng, shape, n = np.random.default_rng(2), (64, 64), 60
    truth = molecules(rng, n, 15, shape)
    table = localize_frames(CAMERA.photoelectrons(draw(rng, truth, n, shape)), 1.0)
    scores = localize.score(table, truth, 0.1)["250"]
    assert scores["jaccard"] > 0.97  # 0.990 in a thousand frames; 900 molecules
    assert scores["rmse_lateral"] < 12  # 8.6 nm there
    crowd = table[table["crowded"] == 1]
    assert localize.score(crowd, truth, 0.1)["250"]["precision"] > 0.99
    i, j = localize.match(crowd, truth, 2.5)
    z = (crowd["x"][i] - truth["x"][j]) / crowd["lpx"][i]
    assert 0.85 < 1.4826 * np.median(abs(z)) < 1.15


def test_two_near_molecules_have_the_errors_of_a_joint_fit():
    rng, n = np.random.default_rng(3), 800
    truth = np.zeros(2 * n, molecules(rng, 0, 0, (24, 24)).dtype)
    truth["frame"], truth["photons"], truth["background"], truth["sigma_x"] = np.repeat(np.arange(n), 2), 3000, 10, 1.3
    centre, angle = rng.uniform(11, 13, (n, 2)), rng.uniform(0, 2 * np.pi, n)
    for k, sign in enumerate((1.9, -1.9)):
        truth["x"][k::2], truth["y"][k::2] = centre[:, 0] + sign * np.cos(angle), centre[:, 1] + sign * np.sin(angle)
    table = localize_frames(CAMERA.photoelectrons(draw(rng, truth, n, (24, 24))), 1.0)
    i, j = localize.match(table, truth, 2.0)
    assert len(i) > 0.98 * 2 * n
    z = (table["x"][i] - truth["x"][j]) / table["lpx"][i]
    assert 0.9 < 1.4826 * np.median(abs(z)) < 1.15


def test_a_table_is_sorted_by_frame_y_and_x():
    rng = np.random.default_rng(6)
    for n in (0, 1, 2, 3000):
        # many of one place, and numbers that compare unlike their bits
        of = np.array([-np.inf, -2.5, -1e-40, -0.0, 0.0, 1e-40, 3.25, np.nan, -np.nan], np.float32)
        theta, columns = rng.choice(of, (n, 5)), rng.random((5, n), np.float32)
        frame = rng.integers(0, 9, n)
        table = as_table(Emitters(frame, theta, theta, *columns), psf.Gaussian2D())
        order = np.lexsort((theta[:, 0], theta[:, 1], frame))
        for name, values in (("frame", frame), ("x", theta[:, 0]), ("y", theta[:, 1]), ("snr", columns[3])):
            np.testing.assert_array_equal(table[name], values[order])


def test_any_psf_and_no_peak_at_all():
    rng = np.random.default_rng(0)
    truth = molecules(rng, 20, 3, (32, 32))
    frames = CAMERA.photoelectrons(draw(rng, truth, 20, (32, 32)))
    table = localize_frames(frames, 1.0, psf.EllipticGaussian2D())
    assert {"sigma_x", "sigma_y", "sigma_x_error"} <= set(table.dtype.names)
    assert localize.score(table, truth, 0.1)["250"]["recall"] > 0.9
    assert len(localize_frames(np.full((3, 16, 16), 2.0))) == 0
    assert len(localize_frames(np.zeros((0, 16, 16)))) == 0
    behind = background(frames, 1.0)
    peaks = finder.find(frames, behind, 1.0)
    one, two = (fit_peaks(frames, behind, peaks, MODEL, 1.0, threads=t) for t in (1, None))
    assert np.array_equal(one.theta, two.theta)


# ---------------------------------------------------------------- the run


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    movie = write_movie(folder)
    assert main(["localize", str(movie), "--out", str(folder / "out"), "--quiet", "--csv"]) == 0
    return folder


def test_a_resolution_that_nothing_tells_is_left_out(done):
    report = json.loads((done / "out/report.json").read_text())
    for resolution, told in ((31.6, "resolution (FRC): 32 nm"), (np.inf, ""), (np.nan, "")):
        lines = list(_localized({**report, "resolution": {"frc_nm": resolution}}, done / "out"))
        assert [line for line in lines if "FRC" in line] == ([told] if told else [])


def same(a, b):
    one, two = (data.read_picasso(f / "localizations.hdf5")[0] for f in (a, b))
    return one.dtype == two.dtype and one.tobytes() == two.tobytes()


def test_all_files_and_a_report_that_scores_itself(done):
    out = done / "out"
    names = "events.hdf5 events.yaml image.png image.tif localizations.csv localizations.hdf5 localizations.yaml"
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [*names.split(), "report.html", "report.json", "settings.yaml"]
    )
    report = json.loads((out / "report.json").read_text())
    table, info = data.read_picasso(out / "localizations.hdf5")
    assert len(table) == report["localizations"] > 60
    assert info["Pixelsize"] == 100
    assert report["score"]["whole_field"]["250"]["jaccard"] > 0.9
    assert {"converged"} <= set(report["status"])
    assert any("drift is not corrected" in w for w in report["warnings"])  # molecules that never come again
    page = (out / "report.html").read_text()
    assert "http:" not in page
    assert "https:" not in page
    assert "<script" not in page
    assert page.count("<svg") >= 6


def browse(page, folder):
    """What a browser without a screen shows of a page, (y, x, 3), and its console."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs Chromium")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}"]  # no network
    command += ["--window-size=1280,1600", f"--screenshot={folder / 'page.png'}", page.as_uri()]
    log = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stderr
    shown = np.asarray(Image.open(folder / "page.png").convert("RGB"))
    return shown, [line for line in log.splitlines() if "CONSOLE" in line]


def test_a_browser_shows_the_report_without_network_or_complaint(done, tmp_path):
    page = done / "out/report.html"
    shown, console = browse(page, tmp_path)
    assert console == []
    assert (shown.max(2) < 40).mean() > 0.05  # the picture is mostly black, the page white
    assert (shown.min(2) > 250).mean() > 0.3
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 200  # its colours, and those of the charts
    for extra in ('<img src="http://example.org/a.png">', "<script>1</script>"):  # the page forbids both
        (tmp_path / "bad.html").write_text(page.read_text().replace("</body>", f"{extra}</body>"))
        assert "Content Security Policy" in browse(tmp_path / "bad.html", tmp_path)[1][0]


def test_settings_repeat_the_run(done):
    settings = yaml.safe_load((done / "out" / "settings.yaml").read_text())
    assert settings["movies"] == [str(done / "movie.tif")]
    assert main(["localize", "--settings", str(done / "out/settings.yaml"), "-o", str(done / "again"), "--quiet"]) == 0
    assert same(done / "out", done / "again")


def test_results_are_not_overwritten(done, capsys):
    assert main(["localize", str(done / "movie.tif"), "--out", str(done / "out"), "--quiet"]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 8 frames, in this process and in those that it starts."""
    monkeypatch.setattr("smlmcore.localize.chunks.PIXELS", 40 * 48 * 8)


def test_chunks_are_taken_up_again(tmp_path, small_chunks, monkeypatch):
    movie = write_movie(tmp_path)
    run(movie, tmp_path / "whole", quiet=True)
    module = sys.modules["smlmcore.localize.chunks"]
    done, original = [], module.do

    def stop(plan, number, *rest):
        if number == 2:
            raise KeyboardInterrupt
        done.append(number)
        original(plan, number, *rest)

    monkeypatch.setattr(module, "do", stop)
    with pytest.raises(KeyboardInterrupt):
        run(movie, tmp_path / "parts", quiet=True)
    assert len(list((tmp_path / "parts/chunks").glob("0*.npy"))) == 2
    monkeypatch.setattr(module, "do", lambda *a: (done.append(a[1]), original(*a)))
    run(movie, tmp_path / "parts", quiet=True)
    assert done == [0, 1, 2]
    assert same(tmp_path / "whole", tmp_path / "parts")
    # other settings: what was begun does not count
    monkeypatch.setattr(module, "do", stop)
    with pytest.raises(KeyboardInterrupt):
        run(movie, tmp_path / "other", quiet=True)
    done.clear()
    monkeypatch.setattr(module, "do", lambda *a: (done.append(a[1]), original(*a)))
    run(movie, tmp_path / "other", quiet=True, box=7)
    assert done == [0, 1, 2]


def test_stopped_while_it_cleared_up(tmp_path, small_chunks, monkeypatch):
    movie = write_movie(tmp_path)
    module, out = sys.modules["smlmcore.localize.run"], tmp_path / "out"
    original = module.clear

    def stop(plan):
        plan.file(1).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "clear", stop)
    with pytest.raises(KeyboardInterrupt):
        run(movie, out, quiet=True)
    first = (out / "localizations.hdf5").read_bytes()
    (out / ".out.1234.part").mkdir()
    with pytest.raises(data.DataError, match="exists already"):  # another run, not this one
        run(movie, out, quiet=True, box=7)
    monkeypatch.setattr(module, "clear", original)
    report = run(movie, out, quiet=True)
    assert (out / "localizations.hdf5").read_bytes() == first
    assert report["localizations"] > 0
    assert not (out / "chunks").exists()
    assert not (out / ".out.1234.part").exists()
    with pytest.raises(data.DataError, match="exists already"):
        run(movie, out, quiet=True)


def test_killed_in_the_midst_and_started_again(tmp_path):
    movie = write_movie(tmp_path, frames=40)
    code = (
        "import sys; import smlmcore.localize.chunks as m; m.PIXELS = 40 * 48 * 8; "
        f"from smlmcore.localize.run import run; run({str(movie)!r}, sys.argv[1], quiet=True)"
    )
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "whole")], check=True, cwd=root)
    rng = np.random.default_rng(0)
    for attempt in range(3):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "parts")], cwd=root)
        time.sleep(0.9 + rng.uniform(0, 0.4) + 0.1 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (tmp_path / "parts/report.json").exists():
            break
    else:
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "parts")], check=True, cwd=root)
    assert same(tmp_path / "whole", tmp_path / "parts")
    assert not (tmp_path / "parts/chunks").exists()


def test_dask_workers_find_the_same(tmp_path, small_chunks):
    pytest.importorskip("distributed")
    movie = write_movie(tmp_path)
    run(movie, tmp_path / "one", quiet=True)
    report = run(movie, tmp_path / "two", quiet=True, workers=2)
    assert report["localizations"] > 60
    assert same(tmp_path / "one", tmp_path / "two")
    with pytest.raises(ValueError, match="workers=0"):
        run(movie, tmp_path / "three", quiet=True, workers=0)


def test_a_cluster_that_is_there_already_is_left_as_it_was(tmp_path, small_chunks):
    distributed = pytest.importorskip("distributed")
    movie = write_movie(tmp_path)
    run(movie, tmp_path / "one", quiet=True)
    settings = {"n_workers": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**settings) as cluster, distributed.Client(cluster) as client:
        address = cluster.scheduler_address
        assert main(["localize", str(movie), "-o", str(tmp_path / "two"), "--quiet", "--scheduler", address]) == 0
        assert client.submit(abs, -3).result() == 3
    assert same(tmp_path / "one", tmp_path / "two")


def test_a_worker_that_is_killed_changes_nothing(tmp_path, small_chunks):
    """Killed when the first chunk is written: what it was at is done again, by the process that takes its place."""
    pytest.importorskip("distributed")
    psutil = pytest.importorskip("psutil")  # comes with distributed
    movie = write_movie(tmp_path, frames=160)
    run(movie, tmp_path / "one", quiet=True)
    before, killed = set(psutil.Process().children()), []

    def kill():
        chunks = tmp_path / "two/chunks"
        while not (written := list(chunks.glob("0*.npy"))):
            time.sleep(0.001)
        workers = [p for p in psutil.Process().children() if p not in before and "spawn_main" in " ".join(p.cmdline())]
        workers[0].kill()
        killed.append((len(workers), len(written)))

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    run(movie, tmp_path / "two", quiet=True, workers=2)
    thread.join(1)
    assert killed[0][0] == 2
    assert killed[0][1] < 20 / 2  # of 20 chunks
    assert same(tmp_path / "one", tmp_path / "two")


def test_several_movies_are_one_series(tmp_path):
    first, second = (write_movie(tmp_path, 9, seed=s, name=f"{s}.tif") for s in (0, 1))
    run([first, second], tmp_path / "out", quiet=True)
    table, info = data.read_picasso(tmp_path / "out/localizations.hdf5")
    assert info["Frames"] == 18
    assert table["frame"].max() > 9
    other = write_movie(tmp_path, 3, shape=(20, 20), name="other.tif")
    with pytest.raises(data.DataError, match="differ in size"):
        run([first, other], tmp_path / "no", quiet=True)


@pytest.mark.parametrize(("frames", "shape"), [(1, (40, 48)), (2, (9, 7)), (3, (5, 64))])
def test_movies_that_trip_others(tmp_path, frames, shape):
    rng = np.random.default_rng(0)
    camera = Camera(offset=99.7, gain=0.37, read_noise=1.3, pixel_size=0.1067)
    truth = molecules(rng, frames, 2, shape)
    values = {n: np.array([[3.2]]) for n in ("x", "y")} | {"photons": np.array([[4000.0]]), "sigma": np.array([[1.3]])}
    expected = MODEL.render({**values, "background": np.array([8.0])}, shape)
    movie = tmp_path / "movie.tif"
    data.write_tiff(movie, [camera.expose(np.repeat(expected, frames, 0), rng)], (frames, *shape), np.uint16, camera)
    home = set(Path.home().iterdir())
    report = run(movie, tmp_path / "out", quiet=True)
    assert set(Path.home().iterdir()) == home
    table, info = data.read_picasso(tmp_path / "out/localizations.hdf5")
    assert info["Pixelsize"] == pytest.approx(106.7)
    assert len(table) == report["localizations"] >= frames
    assert len(truth) >= 0
    assert abs(np.median(table["x"]) - 3.2) < 0.2


def test_a_camera_with_maps_from_its_file_to_the_table(tmp_path, capsys):
    """Each pixel with its own offset, gain and noise, some of them hot: `--camera`, in this process and in a worker."""
    rng, shape, n = np.random.default_rng(11), (48, 52), 40
    hot = rng.random(shape) < 0.02
    noise = np.where(hot, 40.0, 1.4)
    camera = Camera(rng.normal(100, 4, shape), rng.uniform(0.4, 0.6, shape), noise, 0.1067)
    camera.save(tmp_path / "camera.npz")
    truth = molecules(rng, n, 5, shape)
    counts = camera.expose(expected(truth, n, shape), rng)
    data.write_tiff(tmp_path / "m.tif", [counts], counts.shape, np.uint16)
    data.write_picasso(tmp_path / "m.truth.hdf5", truth, counts.shape, 0.1067)
    command = ["localize", str(tmp_path / "m.tif"), "--camera", str(tmp_path / "camera.npz"), "--method", "fit"]
    assert main([*command, "-o", str(tmp_path / "out"), "--quiet"]) == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["camera"]["maps"] == ["offset", "gain", "read_noise"]
    assert report["score"]["whole_field"]["250"]["jaccard"] > 0.95
    assert report["score"]["whole_field"]["250"]["rmse_lateral"] < 12
    table, info = data.read_picasso(tmp_path / "out/localizations.hdf5")
    assert info["Pixelsize"] == pytest.approx(106.7)
    alone = table[table["crowded"] == 0]
    assert abs(np.median(alone["chi2"]) / (report["settings"]["box"] ** 2 - 5) - 1) < 0.1  # the noise is the stated one
    if importlib.util.find_spec("distributed"):
        assert main([*command, "-o", str(tmp_path / "two"), "--quiet", "--workers", "1"]) == 0
        assert same(tmp_path / "out", tmp_path / "two")
    # as one camera of the mean noise, hot pixels are molecules
    blind = ["--offset", "100", "--gain", "0.5", "--read-noise", "1.4", "--pixel-size", "0.1067"]
    assert main([*command[:2], "--method", "fit", *blind, "-o", str(tmp_path / "blind"), "--quiet"]) == 0
    report = json.loads((tmp_path / "blind/report.json").read_text())
    assert report["score"]["whole_field"]["250"]["jaccard"] < 0.8
    camera.crop(0, 0, 40, 52).save(tmp_path / "part.npz")
    assert main(["localize", str(tmp_path / "m.tif"), "--camera", str(tmp_path / "part.npz")]) == 2
    assert "maps are of (40, 52) pixels, the frames of (48, 52)" in capsys.readouterr().err


def test_nothing_in_the_movie_is_a_result_too(tmp_path):
    movie = tmp_path / "dark.tif"
    data.write_tiff(movie, [np.full((5, 20, 24), 105, np.uint16)], (5, 20, 24), np.uint16, CAMERA)
    report = run(movie, tmp_path / "out", quiet=True, csv=True)
    assert report["localizations"] == 0
    assert (tmp_path / "out/report.html").exists()


def test_molecules_beyond_the_border_and_saturated_pixels_are_counted(tmp_path):
    rng = np.random.default_rng(0)
    values = {"x": [[-0.4]], "y": [[12.0]], "photons": [[5000.0]], "sigma": [[1.3]]}
    expected = MODEL.render({n: np.array(v) for n, v in values.items()} | {"background": np.array([5.0])}, (24, 24))
    counts = CAMERA.expose(np.repeat(expected, 30, 0), rng)
    counts[:, 12:14, 3:5] = 65535
    data.write_tiff(tmp_path / "m.tif", [counts], counts.shape, np.uint16, CAMERA)
    report = run(tmp_path / "m.tif", tmp_path / "out", quiet=True)
    table, _ = data.read_picasso(tmp_path / "out/localizations.hdf5")
    assert len(table) + sum(report["dropped"].values()) == sum(report["status"].values())


def test_run_refuses(tmp_path):
    movie = write_movie(tmp_path, 2)
    for options, message in (
        ({"box": 8}, "box=8"), ({"gap": -1}, "gap=-1"), ({"false_positives": 0}, "got 0 false"),
        ({"sigma": 0.0}, r"sigma=0\.0"), ({"sigma": np.nan}, "sigma=nan"), ({"threshold": -1.0}, "threshold=-1"),
        ({"zoom": 0.0}, "zoom=0"), ({"marks": [[1.0, 2.0, 3.0]]}, "marks of shape"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            run(movie, tmp_path / "out", quiet=True, **options)
    with pytest.raises(data.DataError, match="no such file"):
        run(tmp_path / "no.tif", tmp_path / "out", quiet=True)
    with pytest.raises(data.DataError, match="no movie"):
        run([], tmp_path / "out", quiet=True)
    assert main(["localize"]) == 2
    assert main(["view", str(tmp_path)]) == 2


def test_the_plan_decides_the_chunks():
    plan = Plan((), (), (), None, None, None, None, 0.01, (1000, 128, 128), 512, "out")
    assert plan.chunks == [(0, 512), (512, 1000)]
    other = Plan((), (), (), None, 1.3, None, None, 0.01, (1000, 128, 128), 512, "out")
    moved = Plan((), (), (), None, None, None, None, 0.01, (1000, 128, 128), 512, "elsewhere")
    assert plan.fingerprint == moved.fingerprint != other.fingerprint


def test_picassos_movie_again():
    folder = SHARED / "movie_dna_paint"
    if not folder.is_dir():
        pytest.skip("needs movie_dna_paint of the shared data; set SMLMCORE_DATA")
    theirs, _ = data.read_picasso(folder / "testdata_locs.hdf5")
    theirs = theirs[theirs["frame"] < 100]
    with data.open_movie(folder / "testdata.raw") as movie:
        settings = {**{"offset": 0.0, "gain": 1.0, "read_noise": 0.0}, **movie.camera}
        camera = Camera(**{k: settings[k] for k in ("offset", "gain", "read_noise")})
        table = localize_frames(camera.photoelectrons(movie.read()), camera.variance, sigma=0.82)
    assert len(localize.match(table, theirs, 0.5)[0]) >= 0.97 * len(theirs)
    assert (table["status"] == fit.Status.converged).mean() > 0.9


def test_counts_of_a_12_bit_camera_saturate_at_4095(tmp_path):
    camera = Camera(100.0, 0.5, 1.5, 0.1, bits=12)
    counts = np.full((2, 6, 7), 200, np.uint16)
    counts[1, 2, 3] = 4095
    data.write_tiff(tmp_path / "m.tif", [counts], counts.shape, np.uint16, camera)
    with Source([tmp_path / "m.tif"], {}) as source:
        assert (source.read(0, 2)[1] == (counts == 4095)).all()
        assert source.read(0, 1)[1] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width: 3", "width: 3"),
        ("movies: m.tif", "movies: 'm.tif'"),
        ("box: seven", "box: 'seven'"),
        ("camera: 5", "camera: 5"),
        ("quiet: true", "quiet: True"),
        ("- 1", "holds no keys"),
        ("sigma: 1.3", "no movie given"),
    ],
)
def test_settings_that_are_none(tmp_path, capsys, text, message):
    (tmp_path / "settings.yaml").write_text(text)
    assert main(["localize", "--settings", str(tmp_path / "settings.yaml")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_folder_of_others_named_chunks_is_left_alone(tmp_path):
    movie = write_movie(tmp_path, 2)
    (tmp_path / "out/chunks").mkdir(parents=True)
    (tmp_path / "out/chunks/thesis.txt").write_text("")
    with pytest.raises(data.DataError, match=r"holds thesis\.txt"):
        run(movie, tmp_path / "out", quiet=True)
    assert (tmp_path / "out/chunks/thesis.txt").exists()
