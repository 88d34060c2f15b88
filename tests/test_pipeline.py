"""`smlmcore fit` from movie to files: numbers, odd movies, failures, reproducibility."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile

from smlmcore import data, fit, localize, loss, psf, simulate
from smlmcore.camera import Camera
from smlmcore.cli import main
from smlmcore.localize import pipeline

CAMERA = Camera(offset=100.0, gain=0.5, read_noise=1.5, pixel_size=0.1)
QUICK = ["--epochs", "2", "--quiet"]
GIVEN = ["--offset", "100", "--gain", "0.5", "--read-noise", "1.5", "--pixel-size", "0.1"]


def write_movie(folder, frames=12, shape=(64, 64), dtype=np.uint16, camera=CAMERA, truth=True, spots=6, **settings):
    table, chunks = simulate.blinking_movie(
        np.random.default_rng(3), shape, frames, spots_per_frame=spots, camera=camera, dtype=dtype, **settings
    )
    path = folder / "movie.tif"
    data.write_tiff(path, chunks, (frames, *shape), dtype, camera)
    if truth:
        data.write_picasso(folder / "movie.truth.hdf5", table, (frames, *shape), camera.pixel_size)
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A movie with truth, fitted once."""
    folder = tmp_path_factory.mktemp("done")
    movie = write_movie(folder, frames=60)
    assert main(["fit", str(movie), "--out", str(folder / "out"), "--quiet", "--epochs", "20"]) == 0
    return folder


def test_all_files_are_written_and_agree(done):
    out = done / "out"
    assert sorted(p.name for p in out.iterdir()) == sorted(pipeline.OUTPUTS)
    assert not [p for p in done.iterdir() if p.name.startswith(".")]
    table, info = data.read_picasso(out / "localizations.hdf5")
    csv = data.read_thunderstorm(out / "localizations.csv", CAMERA.pixel_size)
    report = json.loads((out / "report.json").read_text())
    assert len(table) == len(csv) == report["localizations"] > 200
    np.testing.assert_allclose(csv["x"], table["x"], atol=1e-4)  # written to 0.01 nm
    assert (info["Frames"], info["Height"], info["Width"]) == (60, 64, 64)
    assert fit.FitModel.load(out / "model.npz").predict(np.ones((1, 11, 11)))["x"].shape == (1,)


def test_report_names_everything_a_user_was_promised(done):
    report = json.loads((done / "out" / "report.json").read_text())
    assert {"find", "train", "refine", "evaluate"} <= set(report["seconds"])
    assert {"train", "noise_floor"} <= set(report["loss"])
    for stage in ("encoder", "refined"):
        assert set(report[stage]["rmse_over_crlb"]) == {"x", "y", "photons", "background", "sigma"}
        assert set(report[stage]["bias_over_crlb"]) == {"x", "y", "photons", "background", "sigma"}
    assert report["refined"]["converged_fraction"] > 0.99


def test_refined_positions_reach_the_bound(done):
    table, _ = data.read_picasso(done / "out" / "localizations.hdf5")
    truth, _ = data.read_picasso(done / "movie.truth.hdf5")
    found, true = localize.match(table, truth, 1.0)
    errors = [(table[c][found] - truth[c][true]) / table[f"lp{c}"][found] for c in ("x", "y")]
    ratio = np.sqrt(np.mean(np.square(errors)))
    assert abs(ratio - 1) < 4 / np.sqrt(2 * 2 * len(found))  # standard error of an RMSE of 2 n numbers
    assert abs(np.mean(errors)) < 4 / np.sqrt(2 * len(found))
    assert len(found) == len(table)


def test_same_seed_same_tables(tmp_path):
    movie = write_movie(tmp_path)
    for name in ("a", "b"):
        assert main(["fit", str(movie), "--out", str(tmp_path / name), "--seed", "5", *QUICK]) == 0
    assert (tmp_path / "a/localizations.csv").read_bytes() == (tmp_path / "b/localizations.csv").read_bytes()
    a, b = (data.read_picasso(tmp_path / n / "localizations.hdf5")[0] for n in "ab")
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("odd and non-square", {"shape": (37, 61)}),
        ("8 bit", {"dtype": np.uint8, "camera": Camera(2.0, 8.0, 1.5, 0.1)}),
        ("float", {"dtype": np.float32}),
        ("one frame", {"frames": 1}),
    ],
)
def test_other_movies(tmp_path, name, settings):
    movie = write_movie(tmp_path, truth=name == "one frame", **settings)
    assert main(["fit", str(movie), "--out", str(tmp_path / "out"), *QUICK]) == 0, name
    table, _ = data.read_picasso(tmp_path / "out" / "localizations.hdf5")
    assert len(table) > 0
    assert np.isfinite(table["lpx"]).all()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert ("encoder" in report) == (name == "one frame")


def test_box_and_given_camera_and_the_numbers_on_the_terminal(tmp_path, capsys):
    movie = tmp_path / "plain.tif"
    counts = next(simulate.blinking_movie(np.random.default_rng(1), (48, 48), 8, spots_per_frame=4, camera=CAMERA)[1])
    tifffile.imwrite(movie, counts)
    assert main(["fit", str(movie), "--out", str(tmp_path / "o"), "--box", "9", *GIVEN, "--epochs", "2"]) == 0
    text = capsys.readouterr().out
    assert all(
        word in text
        for word in ("localizations of", "converged", "noise floor", "seconds", "report.json", str(tmp_path / "o"))
    )
    assert json.loads((tmp_path / "o" / "report.json").read_text())["settings"]["box"] == 9


def test_an_unknown_camera_is_guessed_and_that_is_said(tmp_path, capsys):
    counts = next(
        simulate.blinking_movie(
            np.random.default_rng(1), (64, 64), 200, spots_per_frame=3, camera=CAMERA, background=(3, 25)
        )[1]
    )
    tifffile.imwrite(tmp_path / "plain.tif", counts)
    arguments = [str(tmp_path / "plain.tif"), "--out", str(tmp_path / "o"), "--pixel-size", "0.1", "--epochs", "2"]
    assert main(["fit", *arguments]) == 0
    assert "camera guessed from the noise of the movie" in capsys.readouterr().out
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    assert "guessed" in report["camera_from"]
    assert abs(report["camera"]["gain"] / CAMERA.gain - 1) < 0.1
    assert abs(report["camera"]["offset"] - CAMERA.offset) < 2


def test_maps_of_a_camera_that_was_saved(tmp_path, capsys):
    """Hot pixels and uneven gains: known pixel by pixel, they cost no more accuracy than the bound says."""
    rng, shape = np.random.default_rng(5), (64, 64)
    noise = np.where(rng.random(shape) < 0.03, 30.0, 1.5)
    camera = Camera(rng.normal(100, 3, shape), rng.uniform(0.4, 0.6, shape), noise, 0.1)
    camera.save(tmp_path / "camera.npz")
    movie = write_movie(tmp_path, frames=60, camera=camera)
    out = tmp_path / "o"
    assert main(["fit", str(movie), "-o", str(out), "--camera", str(tmp_path / "camera.npz"), *QUICK]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["camera"]["maps"] == ["offset", "gain", "read_noise"]
    assert report["localizations"] > 150
    x, y = (report["refined"]["rmse_over_crlb"][k] for k in "xy")
    assert np.sqrt((x**2 + y**2) / 2) < 1 + 4 / np.sqrt(4 * report["loss"]["unseen_spots"])  # standard error 1/√(2·2n)
    camera.crop(0, 0, 32, 64).save(tmp_path / "half.npz")
    assert main(["fit", str(movie), "-o", str(tmp_path / "p"), "--camera", str(tmp_path / "half.npz"), *QUICK]) == 2
    assert "maps are of (32, 64) pixels, the frames of (64, 64)" in one_line(capsys)


def one_line(capsys):
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda p: p / "none.tif", "none.tif"),
        (lambda p: truncated(p), "movie.tif"),
        (lambda p: five_dimensional(p), "stack"),
        (lambda p: unknown_camera(p), "--offset, --gain"),
        (lambda p: write_movie(p, spots=0, frames=2), "no spots"),
    ],
)
def test_mistakes_end_with_status_2_one_line_and_nothing_written(tmp_path, capsys, prepare, words):
    movie = prepare(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main(["fit", str(movie), "--out", str(tmp_path / "out"), *QUICK]) == 2
    assert words in one_line(capsys)
    assert sorted(tmp_path.iterdir()) == before


def truncated(folder):
    movie = write_movie(folder, truth=False)
    os.truncate(movie, movie.stat().st_size // 2)
    return movie


def five_dimensional(folder):
    movie = folder / "stack.tif"
    tifffile.imwrite(movie, np.zeros((2, 3, 2, 16, 16), np.uint16), imagej=True, metadata={"axes": "TZCYX"})
    return movie


def unknown_camera(folder):
    movie = folder / "plain.tif"
    tifffile.imwrite(movie, np.zeros((2, 16, 16), np.uint16))
    return movie


def test_existing_results_are_kept_unless_told_otherwise(done, capsys):
    report = (done / "out" / "report.json").read_bytes()
    assert main(["fit", str(done / "movie.tif"), "--out", str(done / "out"), *QUICK]) == 2
    assert "--overwrite" in one_line(capsys)
    assert (done / "out" / "report.json").read_bytes() == report


@pytest.mark.parametrize(
    ("failure", "status"), [(OSError(28, "No space left on device"), 2), (KeyboardInterrupt(), 130)]
)
def test_failure_while_writing_leaves_nothing_half_written(tmp_path, monkeypatch, capsys, failure, status):
    movie = write_movie(tmp_path)
    before = sorted(tmp_path.iterdir())

    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(data, "write_thunderstorm", fail)  # after the first file is there
    assert main(["fit", str(movie), "--out", str(tmp_path / "out"), *QUICK]) == status
    one_line(capsys)
    assert sorted(tmp_path.iterdir()) == before


def test_saturated_pixels_are_masked_not_fitted(tmp_path):
    bright = Camera(offset=100.0, gain=0.02, read_noise=1.5, pixel_size=0.1)  # 65 535 counts are 1309 electrons
    movie = write_movie(tmp_path, camera=bright, photons=20_000.0, frames=6)
    with data.open_movie(movie) as source:
        spots = pipeline.find_spots(source, bright, 11, 1.3, 6.0, quiet=True)
    assert np.isnan(spots.images).any()
    assert main(["fit", str(movie), "--out", str(tmp_path / "out"), *QUICK]) == 0
    truth, _ = data.read_picasso(tmp_path / "movie.truth.hdf5")
    table, _ = data.read_picasso(tmp_path / "out" / "localizations.hdf5")
    found, true = localize.match(table, truth, 1.0)
    error = (table["photons"][found] - truth["photons"][true]) / table["photons_error"][found]
    assert abs(np.median(error)) < 5 * 1.25 / np.sqrt(len(found))  # fitted unmasked it would be off by many errors


@pytest.mark.parametrize(("option", "value"), [("--box", "8"), ("--box", "3"), ("--sigma", "-1"), ("--threshold", "0")])
def test_impossible_settings(tmp_path, capsys, option, value):
    movie = write_movie(tmp_path, frames=2, truth=False)
    assert main(["fit", str(movie), "--out", str(tmp_path / "out"), option, value, *QUICK]) == 2
    assert value in one_line(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(
    not Path(os.environ.get("SMLMCORE_DATA", "../shared/data")).is_dir(),
    reason="the shared inputs are absent; set SMLMCORE_DATA to their folder",
)
def test_picasso_movie_gives_picassos_localizations(tmp_path):
    folder = Path(os.environ.get("SMLMCORE_DATA", "../shared/data")) / "movie_dna_paint"
    given = ["--offset", "0", "--gain", "1", "--box", "7", "--sigma", "0.9"]
    movie = str(folder / "testdata.raw")
    assert main(["fit", movie, "--out", str(tmp_path / "out"), *given, "--quiet", "--epochs", "100"]) == 0
    ours, _ = data.read_picasso(tmp_path / "out" / "localizations.hdf5")
    theirs, _ = data.read_picasso(folder / "testdata_locs.hdf5")
    theirs = theirs[theirs["frame"] < 100]  # their table is of the whole movie, the file here holds 100 frames
    i, j = localize.match(ours, theirs, 0.5)
    assert len(j) >= 0.95 * len(theirs)
    distance = np.hypot(ours["x"][i] - theirs["x"][j], ours["y"][i] - theirs["y"][j])
    # two estimators of the same data differ by less than either errs, and ours is the likelier each time
    assert np.median(distance) < 0.5 * np.median(ours["lpx"])
    assert (nats(folder, ours[i], theirs[j]) <= nats(folder, theirs[j], theirs[j])).all()


def nats(folder, rows, where):
    """Poisson negative log-likelihood of `rows` in the 7 x 7 pixels about the positions `where`."""
    model, total = psf.Gaussian2D(), []
    with data.open_movie(folder / "testdata.raw") as movie:
        for row, at in zip(rows, where, strict=True):
            left, top = round(float(at["x"])) - 3, round(float(at["y"])) - 3
            frame = movie.read(int(row["frame"]), int(row["frame"]) + 1).astype(float)
            theta = [[row["x"] - left, row["y"] - top, row["photons"], row["background"], row["sigma_x"]]]
            mu = model.partials(np.array(theta, float), (7, 7))[0]
            total.append(loss.poisson_gaussian(mu, frame[:, top : top + 7, left : left + 7], 0.0).sum())
    return np.array(total)
