from __future__ import annotations

import errno
import inspect
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile

import smlmcore
from smlmcore import cli, data, simulate
from smlmcore.camera import Camera

HERE = Path(smlmcore.__file__).parents[1]
COMMAND = [sys.executable, "-m", "smlmcore"]
SMALL = ["--frames", "4", "--shape", "32", "40", "--spots-per-frame", "2", "--quiet"]


def run(capsys, *argv) -> tuple[int, str, str]:
    try:
        status = cli.main([str(a) for a in argv])
    except SystemExit as stop:  # argparse leaves this way
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err


def one_line(text: str) -> bool:
    return text.count("\n") == 1 and text.endswith("\n") and "Traceback" not in text


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_simulate_writes_movie_and_truth(tmp_path, capsys):
    status, out, err = run(capsys, "simulate", tmp_path / "m.tif", *SMALL, "--pixel-size", 0.13, "--gain", 2)
    assert (status, out, err) == (0, "", "")
    assert names(tmp_path) == ["m.tif", "m.truth.hdf5", "m.truth.yaml"]
    truth, info = data.read_picasso(tmp_path / "m.truth.hdf5")
    with data.open_movie(tmp_path / "m.tif") as movie:
        assert movie.shape == (4, 32, 40)
        assert Camera(**movie.camera) == Camera(100, 2, 1.5, 0.13)
    assert len(truth) == 8
    assert {"frame", "x", "y", "photons", "background", "sigma_x", "sigma_y"} <= set(truth.dtype.names)
    assert (info["Frames"], info["Height"], info["Width"], info["Pixelsize"]) == (4, 32, 40, 130)


def test_simulate_is_reproducible(tmp_path, capsys):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(capsys, "simulate", tmp_path / f"{name}.tif", *SMALL, "--seed", seed)
    a, b, c = (data.open_movie(tmp_path / f"{name}.tif").read() for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_simulate_defaults(monkeypatch, tmp_path, capsys):
    """At least 25 000 molecules; a default number per frame that fits any shape."""
    asked = {}

    def blinking_movie(rng, shape, frames, **options):
        asked.update(shape=shape, frames=frames, **options)
        raise ValueError("far enough")

    monkeypatch.setattr(simulate, "blinking_movie", blinking_movie)
    run(capsys, "simulate", tmp_path / "m.tif")
    assert (asked["shape"], asked["frames"] * asked["spots_per_frame"] >= 25_000) == ((128, 128), True)
    assert asked["camera"] == Camera(100, 0.5, 1.5, 0.1)
    run(capsys, "simulate", tmp_path / "m.tif", "--shape", 16, 24)
    assert asked["spots_per_frame"] == 1


def test_simulate_says_what_it_wrote(tmp_path, capsys):
    status, out, _ = run(capsys, "simulate", tmp_path / "m.tif", *SMALL[:-1])
    assert status == 0
    assert "4 of 32 x 40" in out
    assert "m.truth.hdf5" in out


def test_simulate_overwrites_only_when_told(tmp_path, capsys):
    target = tmp_path / "m.tif"
    assert run(capsys, "simulate", target, *SMALL)[0] == 0
    before = target.read_bytes()
    status, _, err = run(capsys, "simulate", target, *SMALL, "--seed", 1)
    assert status == 2
    assert "exists already" in err
    assert one_line(err)
    assert target.read_bytes() == before
    assert run(capsys, "simulate", target, *SMALL, "--seed", 1, "--overwrite")[0] == 0
    assert target.read_bytes() != before


def test_info(tmp_path, capsys):
    frames = np.arange(40, dtype=np.uint16).reshape(2, 4, 5)
    data.write_tiff(tmp_path / "m.tif", [frames], frames.shape, frames.dtype, Camera(100, 0.5, 1.5, 0.1))
    status, out, err = run(capsys, "info", tmp_path / "m.tif")
    assert (status, err) == (0, "")
    for text in ("2 of 4 x 5", "uint16", "100 counts", "0.5 e/count", "1.5 e", "0.1 µm", "min 0, median 9.5, max 19"):
        assert text in out
    tifffile.imwrite(tmp_path / "bare.tif", frames)
    status, out, _ = run(capsys, "info", tmp_path / "bare.tif")
    assert status == 0
    assert out.count("not in the file") == 4


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["info", "absent.tif"], "no such file"),
        (["info", "."], "is a folder"),
        (["info", "text.tif"], "neither a TIFF nor"),
        (["info", "empty.tif"], "is empty"),
        (["info", "half.tif"], "truncated"),
        (["fit", "absent.tif"], "no such file"),
        (["simulate", "m.tif", "--frames", "0"], "frames 0"),
        (["simulate", "m.tif", "--frames", "many"], "invalid int value"),
        (["simulate", "m.tif", "--spots-per-frame", "5000"], "cannot place 5000"),
        (["simulate", "m.tif", "--gain", "0"], "gain = 0.0"),
        (["simulate", "m.tif", "--seed", "-1"], "--seed -1"),
        (["simulate", "m.tif", "--sigma", "2", "1"], "sigma from 2.0 to 1.0"),
        (["simulate", "m.tif", "--shape", "0", "9"], "shape (0, 9)"),
        (["simulate", "m.png"], "end its name in .tif"),
        (["simulate", "no/m.tif", *SMALL], "does not exist; create it"),
        (["simulate"], "OUT.tif"),
        ([], "COMMAND"),
        (["dance"], "invalid choice"),
        (["info", "text.tif", "--loud"], "--loud"),
    ],
)
def test_mistakes_take_one_line_and_status_2(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    Path("text.tif").write_text("hello, I am no picture")
    Path("empty.tif").write_bytes(b"")
    tifffile.imwrite("half.tif", np.zeros((5, 8, 8)), ome=True)
    Path("half.tif").write_bytes(Path("half.tif").read_bytes()[:2000])
    status, out, err = run(capsys, *argv)
    assert (status, out) == (2, "")
    assert message in err
    assert one_line(err)
    assert names(tmp_path) == ["empty.tif", "half.tif", "text.tif"]


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 2, "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "m.tif"), 2, "m.tif: Permission denied"),
        (MemoryError(), 2, "out of memory"),
        (MemoryError("Unable to allocate 9 TiB"), 2, "9 TiB"),
        (RuntimeError("no GPU\nhere"), 2, "no GPU here"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_failures_on_the_way_leave_nothing(tmp_path, monkeypatch, capsys, error, status, message):
    def write(self, *arguments):
        raise error

    monkeypatch.setattr(tifffile.FileHandle, "write", write)
    seen, _, err = run(capsys, "simulate", tmp_path / "m.tif", *SMALL)
    assert seen == status
    assert message in err
    assert one_line(err)
    assert names(tmp_path) == []


def test_fit_hands_its_options_to_the_pipeline(tmp_path, monkeypatch, capsys):
    pipeline = pytest.importorskip("smlmcore.localize.pipeline")
    seen = {}

    def fit_movie(movie, out, camera, **options):
        seen.update(movie=movie, out=out, camera=camera, **options)

    monkeypatch.setattr(pipeline, "fit_movie", fit_movie)
    status, out, _ = run(capsys, "fit", "m.tif", "--gain", 0.5, "--box", 9, "--device", "cpu", "--epochs", 3, "--quiet")
    assert (status, out) == (0, "")
    assert seen == {
        "movie": Path("m.tif"), "out": Path("m.fit"), "camera": {"gain": 0.5}, "box": 9, "device": "cpu", "epochs": 3,
        "quiet": True, "overwrite": False,
    }  # fmt: skip
    seen.clear()
    status, out, _ = run(capsys, "fit", "m.tif", "-o", "there", "--quiet", "--overwrite", "--sigma", 1.2, "--seed", 4)
    assert (status, out, seen["out"]) == (0, "", Path("there"))
    assert {k: seen[k] for k in ("quiet", "overwrite", "sigma", "seed")} == {
        "quiet": True, "overwrite": True, "sigma": 1.2, "seed": 4
    }  # fmt: skip


def test_fit_states_the_defaults_of_the_pipeline(capsys):
    pipeline = pytest.importorskip("smlmcore.localize.pipeline")
    defaults = {k: p.default for k, p in inspect.signature(pipeline.fit_movie).parameters.items()}
    text = " ".join(run(capsys, "fit", "--help")[1].partition("options:")[2].split())
    for name in ("box", "sigma", "threshold", "seed", "device"):
        stated = re.search(rf"--{name} [^(]*\(default: ([^)]*)\)", text)
        assert stated[1] == str(defaults[name]), name


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_nothing(tmp_path, number, status):
    command = [*COMMAND, "simulate", tmp_path / "m.tif", "--frames", "40000", "--shape", "64", "64"]
    with subprocess.Popen([*command, "--spots-per-frame", "1"], stderr=subprocess.PIPE, text=True, cwd=HERE) as process:
        while not names(tmp_path):  # the movie has begun
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        err = process.communicate()[1]
    assert process.returncode == status
    assert "Traceback" not in err
    assert names(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_comes_while_c_code_calls_python_is_not_lost(number, status):
    code = f"""if True:
        import ctypes, signal, sys, time
        from smlmcore import cli
        def work(**options):
            ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal({int(number)}))()  # drops what the call raises
            time.sleep(60)
        cli.simulate.run = work
        sys.exit(cli.main(["simulate", "m.tif"]))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=HERE, timeout=30)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr


def test_version_and_module():
    done = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, check=True, cwd=HERE)
    assert done.stdout == f"smlmcore {smlmcore.__version__}\n"


def test_help_of_every_command(capsys):
    for argv in (["--help"], ["simulate", "--help"], ["info", "--help"], ["fit", "--help"]):
        status, out, err = run(capsys, *argv)
        assert (status, err) == (0, "")
        assert "usage: smlmcore" in out
