"""From localizations to a picture, and from a movie to localizations, beside Picasso.

In process: 10⁶ localizations of 20 000 sites in 10 000 frames of 256², precision 8 nm, events of 4 frames on average, a
drift of 1 nm per frame as random walk; pixels of 100 nm.

Floors, two cores: the table's seven columns are 28 MB, 3 ms to read; drift deposits and reads 16 cells for each
localization in each of four rounds, 1.3e8 random accesses into a grid in the second cache, 0.1 s; linking
visits 4 cells of a hash for each localization, in order of frames and so on one core, 0.04 s.

Whole processes of 10 000 frames 128² with 60 molecules per frame, two chunks at a time on a core each, processor time
for a frame: background 0.015 ms, detection 0.02 ms (a filter of 9 + 9 taps), single fits 0.04 ms, those without the
light of the others and pairs 0.05 ms, joint fits of the rest 0.12 ms, of which `localize.joint` tells the floor.

What comes on top of the frames, seconds: 0.27 from the start of the process until the file is open, of which NumPy and
numba 0.2; 0.15 until the first chunk, of which numba's types 0.1; 0.1 for compiled code in the first chunks; 0.5 (0.2
with 8 molecules per frame) for all that follows, side by side: the two tables are 78 MB to write, pages never touched
before cost 3 µs each here, and five threads' worth of NumPy share the two cores.

Two Dask workers of one thread each beside one worker, 60 molecules per frame, 10 000 frames: 1.75 times as fast.
Some 5 s come on top whatever the number of workers (the first process, the workers' imports and compiled code, what
follows the chunks).  Dask starts workers with MALLOC_TRIM_THRESHOLD_=65536, with which the network's arrays cost 2.5
times the time: `cluster` gives them another.

    python -m bench.localize [postprocessing] [start] [memory] [workers] [FRAMES-PER_FRAME ...] [--movies DIR]

runs some of the rows, such as 10000-60, and puts them in their place in the results; movies are kept in DIR.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from smlmcore import data, localize, psf
from smlmcore.camera import Camera
from smlmcore.localize.chunks import localize_frames
from smlmcore.localize.network import general

from .harness import Row, compare

N, FRAMES, FIELD, SITES, ERROR, ON, STEP = 1_000_000, 10_000, 256, 20_000, 0.08, 4.0, 0.01
MOVIES = [(1000, 8), (10_000, 8), (1000, 60), (10_000, 60)]
CAMERA = Camera(offset=100.0, gain=0.5, read_noise=1.0, pixel_size=0.1)


def rows() -> Iterator[Row]:
    """The rows of the in-process comparison, then those of whole processes."""
    yield from postprocessing()
    yield start()
    yield memory()
    yield from movies()
    yield workers()
    yield from learned()


def events(seed: int = 0) -> tuple[np.ndarray, np.ndarray, int]:
    """The table, the drift (frames, 2), and how many events there are."""
    rng = np.random.default_rng(seed)
    site, many = rng.uniform(4, FIELD - 4, (SITES, 2)), int(N / ON)
    start, length, which = rng.integers(0, FRAMES, many), rng.geometric(1 / ON, many), rng.integers(0, SITES, many)
    event = np.repeat(np.arange(many), length)
    frame = start[event] + np.arange(len(event)) - np.repeat(np.cumsum(length) - length, length)
    event, frame = event[frame < FRAMES], frame[frame < FRAMES]
    order = np.argsort(frame, kind="stable")
    event, frame = event[order], frame[order]
    walk = np.cumsum(rng.normal(0, STEP, (FRAMES, 2)), 0)
    at = site[which[event]] + rng.normal(0, ERROR, (len(event), 2)) + walk[frame]
    columns = {"photons": 1000.0, "background": 10.0, "sigma_x": 1.3, "sigma_y": 1.3, "lpx": ERROR, "lpy": ERROR}
    columns = {name: np.float32(v) for name, v in columns.items()}
    table = data.table(frame=frame, x=at[:, 0].astype(np.float32), y=at[:, 1].astype(np.float32), **columns)
    # where a molecule goes on at the site at which another has just gone off, nobody can tell two from one
    end = np.minimum(start + length, FRAMES)
    go_on = np.isin(which.astype(np.int64) * FRAMES + start, which.astype(np.int64) * FRAMES + end)
    return table, walk, many - int(go_on.sum())


def nanometres(x: np.ndarray, y: np.ndarray, walk: np.ndarray) -> float:
    """Root mean square error of a drift per axis, without a constant shift."""
    error = np.stack([x, y], 1) - walk
    return 100 * float(np.sqrt(((error - error.mean(0)) ** 2).mean()))


def postprocessing() -> Iterator[Row]:
    """Drift, linking, rendering, resolution in process, warm."""
    table, walk, number = events()
    size = (FIELD, FIELD)
    found = localize.drift(table, FRAMES)
    corrected = localize.correct(table, found)
    peers, notes = picasso(table, corrected, walk, number)
    z = (np.stack([found.x, found.y], 1) - walk + walk.mean(0)) / np.stack([found.x_error, found.y_error], 1)
    mine = f"{nanometres(found.x, found.y, walk):.2f} nm RMS, error / stated error {z.std():.2f}"
    yield compare(
        f"drift, {len(table)} localizations",
        lambda: localize.drift(table, FRAMES),
        {"Picasso AIM": peers.get("aim")},
        repeat=3,
        target="<= 0.4 s, <= 1.5 nm",
        note=mine + notes.get("aim", ""),
    )
    _, check = localize.cross_correlation(table, FRAMES)
    yield compare(
        "redundant cross-correlation, 16 segments",
        lambda: localize.cross_correlation(table, FRAMES),
        {},
        repeat=3,
        note=f"{nanometres(check.x, check.y, walk):.1f} nm RMS",
    )
    linked = len(localize.link(corrected, gap=0)[0])
    yield compare(
        "link",
        lambda: localize.link(corrected, gap=0),
        {"Picasso link": peers.get("link")},
        repeat=3,
        target="<= 0.15 s, events within 0.5 %",
        note=f"{100 * (linked / number - 1):+.2f} % events" + notes.get("link", ""),
    )
    for blur, theirs in (("own", "gaussian"), (0, "histogram"), ("shifted", "smooth")):
        yield compare(
            f"render {FIELD * 8}², blur {blur}",
            lambda blur=blur: localize.render(corrected, size, 8, blur),
            {f"Picasso {theirs}": peers.get(theirs)},
            repeat=3,
            target="<= 0.3 s",
        )
    resolution = localize.frc(corrected, size)
    yield compare(
        "FRC",
        lambda: localize.frc(corrected, size),
        {"Picasso frc of a 64th of the field": peers.get("frc")},  # of all of it, minutes
        repeat=3,
        target="<= 1 s",
        note=f"{100 * resolution.resolution:.1f} ± {100 * resolution.error:.1f} nm" + notes.get("frc", ""),
    )


def picasso(table, corrected, walk, number):
    """Picasso's functions on the same tables, and what they find."""
    try:
        import pandas as pd
        from picasso import aim, postprocess, render
    except ImportError:
        return {}, {}
    names = {"background": "bg", "sigma_x": "sx", "sigma_y": "sy"}

    def frame(rows):
        return pd.DataFrame({names.get(n, n): rows[n].copy() for n in rows.dtype.names})

    raw, locs = frame(table), frame(corrected)
    info = [{"Frames": FRAMES, "Width": FIELD, "Height": FIELD, "Pixelsize": 100.0}]
    field = ((0, 0), (FIELD, FIELD))
    runs = {
        "aim": lambda: aim.aim(raw.copy(), info),
        "link": lambda: postprocess.link(locs.copy(), info, r_max=4 * 2**0.5 * ERROR, max_dark_time=1),
        "gaussian": lambda: render.render(locs, info, disp_px_size=12.5, viewport=field, blur_method="gaussian"),
        "histogram": lambda: render.render(locs, info, disp_px_size=12.5, viewport=field),
        "smooth": lambda: render.render(locs, info, disp_px_size=12.5, viewport=field, blur_method="smooth"),
        "frc": lambda: postprocess.frc(locs, info, ((0, 0), (FIELD // 8, FIELD // 8))),
    }
    kept, notes = {}, {}
    for name, run in runs.items():
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                done = run()
        except Exception as error:  # a peer that fails is named, not timed
            notes[name] = f"; Picasso failed: {type(error).__name__}: {error}"
            continue
        kept[name] = run
        if name == "aim":
            drift = done[-1]
            notes[name] = f"; Picasso {nanometres(drift['x'].to_numpy(), drift['y'].to_numpy(), walk):.2f} nm"
        elif name == "link":
            notes[name] = f"; Picasso {100 * (len(done) / number - 1):+.2f} %"
    return kept, notes


# ---------------------------------------------------------------- whole processes


def movies() -> Iterator[Row]:
    """`smlmcore localize --method fit` beside `python -m picasso localize`, whole processes, caches warm."""
    for frames, per_frame in MOVIES:
        yield whole_process(frames, per_frame)


def whole_process(frames: int, per_frame: int, movies: Path | None = None) -> Row:
    """One movie through both programs; it is kept in `movies`."""
    with tempfile.TemporaryDirectory() as name:
        folder, size = Path(name), (frames, 128, 128)
        movie, truth = write_movie(movies or folder, frames, per_frame)
        out = folder / "out"
        command = [sys.executable, "-m", "smlmcore", "localize", str(movie), "--out", str(out), "--method", "fit"]
        command.append("--quiet")
        if frames == 1000:  # fills the caches
            process([*command, "--overwrite"])
        ours = process([*command, "--overwrite"])
        mine = quality(data.read_picasso(out / "localizations.hdf5")[0], truth, size)
        theirs, note = beside(movie, truth, size, frames == 1000)
        target = ">= 6x" if frames == 1000 else ">= 10x"
        work = f"localize {frames} frames, {per_frame} per frame"
        return Row(work, ours, {"Picasso localize": theirs}, frames, target, f"{mine}{note}")


def workers(movies: Path | None = None, frames: int = 10_000, per_frame: int = 60) -> Row:
    """`--workers 2` beside `--workers 1`, whole processes, one thread each."""
    with tempfile.TemporaryDirectory() as name:
        movie, _ = write_movie(movies or Path(name), frames, per_frame)
        seconds, tables = [], []
        for number in (1, 2):
            out = Path(name) / f"workers{number}"
            command = [sys.executable, "-m", "smlmcore", "localize", str(movie), "--out", str(out), "--quiet"]
            seconds.append(process([*command, "--workers", str(number)]))
            tables.append(data.read_picasso(out / "localizations.hdf5")[0].tobytes())
        work = f"localize {frames} frames, {per_frame} per frame, 2 Dask workers"
        note = "the same table" if tables[0] == tables[1] else "other tables"
        return Row(work, seconds[1], {"1 worker": seconds[0]}, frames, ">= 1.7x", note)


def learned() -> Iterator[Row]:
    """`--method auto` and `network` in process: 512 frames, detection and refinement included, file and report not."""
    for per_frame, target in ((8, ">= 1500 frames/s"), (60, ">= 250 frames/s")):
        with tempfile.TemporaryDirectory() as name:
            movie, truth = write_movie(Path(name), 512, per_frame)
            counts = data.open_movie(movie).read(0, 512)
        frames, light = np.asarray(CAMERA.photoelectrons(counts), np.float32), (2000.0, 200.0)
        for method in ("auto", "network"):
            run = partial(
                localize_frames, frames, CAMERA.variance, sigma=1.3, network=general(),
                everywhere=method == "network", light=light,
            )  # fmt: skip
            mine = quality(run(), truth, (512, 128, 128))
            row = compare(
                f"localize --method {method}, {per_frame} per frame", run, {}, items=512, repeat=3, target=target
            )
            row.note = f"{512 / row.ours:.0f} frames/s; {mine}"
            yield row


def start() -> Row:
    """From the command line to the first frame: imports, arguments, file, camera; caches warm."""
    to_the_first_frame = (
        "import sys; from smlmcore.localize.source import Source; Source.read = lambda *a: sys.exit(); "
        "from smlmcore.cli import main; main(sys.argv[1:])"
    )
    with tempfile.TemporaryDirectory() as name:
        movie, _ = write_movie(Path(name), 1000, 8)
        ours = [sys.executable, "-c", to_the_first_frame, "localize", str(movie), "--out", f"{name}/out", "--quiet"]
        theirs = [sys.executable, "-m", "picasso", "localize", "--help"]
        peer = {"Picasso localize --help": theirs} if importlib.util.find_spec("picasso") else {}
        run = {name: partial(process, command) for name, command in peer.items()}
        return compare("localize, start until the first frame", partial(process, ours), run, repeat=3, target="<= 1 s")


def memory(movies: Path | None = None) -> Row:
    """Peak memory of whole processes: 20 000 frames, and 1000."""
    code = (
        "import sys; from pathlib import Path; from smlmcore.cli import main; main(sys.argv[1:]); "
        "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
    )
    with tempfile.TemporaryDirectory() as name:
        folder, most = Path(name), {}
        for frames in (1000, 20_000):
            movie, _ = write_movie(movies or folder, frames, 8)
            options = ["--out", str(folder / "out"), "--method", "fit", "--overwrite", "--quiet"]
            begin = time.perf_counter()
            most[frames] = int(child([sys.executable, "-c", code, "localize", str(movie), *options])) / 1024
            seconds = time.perf_counter() - begin
        text = f"{most[20_000]:.0f} MB, with 1000 frames {most[1000]:.0f} MB"
        target = "within 100 MB of 1000 frames"
        return Row("localize 20 000 frames, 8 per frame: peak memory", seconds, {}, 20_000, target, text)


def process(command: list[str]) -> float:
    """Seconds that a whole process takes."""
    begin = time.perf_counter()
    child(command)
    return time.perf_counter() - begin


def child(command: list[str]) -> str:
    """What a process says; bytecode is kept, as it is of packages that are installed."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(
        command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment
    ).stdout


def beside(movie: Path, truth: np.ndarray, size: tuple[int, int, int], warm: bool) -> tuple[float | None, str]:
    """Picasso's seconds and what it found."""
    if importlib.util.find_spec("picasso") is None:
        return None, ""
    command = [sys.executable, "-m", "picasso", "localize", str(movie), "-b", "7", "-a", "mle-spherical", "-g", "500"]
    command += ["-bl", "100", "-s", "0.5", "-ga", "1", "-qe", "1", "-px", "100"]
    try:
        if warm:
            process(command)
        seconds = process(command)
        found = data.read_picasso(movie.with_name(f"{movie.stem}_locs.hdf5"))[0]
    except (subprocess.CalledProcessError, data.DataError) as error:  # a peer that fails is named, not timed
        return None, f"; Picasso failed: {error}"
    return seconds, f"; Picasso {quality(found, truth, size)}"


def quality(table: np.ndarray, truth: np.ndarray, size: tuple[int, int, int]) -> str:
    """Jaccard and error of the first thousand frames, over the whole field and 5 pixels inside."""
    table, truth = (t[t["frame"] < 1000] for t in (table, truth))
    whole = localize.score(table, truth, 0.1, (250.0,))["250"]
    inner = localize.score(table, truth, 0.1, (250.0,), margin=5.0, shape=size[1:])["250"]
    return f"Jaccard {whole['jaccard']:.4f} / inside {inner['jaccard']:.4f}, RMSE per axis {whole['rmse']:.1f} nm"


def write_movie(folder: Path, frames: int, per_frame: int) -> tuple[Path, np.ndarray]:
    """Molecules of 2000 photons, sigma 1.3, background 10, anywhere in 128² pixels; no truth beside the movie."""
    rng, side, around = np.random.default_rng(per_frame), 128, 8
    frame = np.repeat(np.arange(frames), rng.poisson(per_frame, frames))
    x, y = rng.uniform(-0.5, side - 0.5, (2, len(frame)))
    truth, model = data.table(frame=frame, x=x, y=y), psf.Gaussian2D()

    def chunks() -> Iterator[np.ndarray]:
        for first in range(0, frames, 500):
            rows = truth[(frame >= first) & (frame < first + 500)]
            column, line = (np.rint(rows[name]).astype(int) for name in "xy")
            each = {"photons": 2000.0, "background": 0.0, "sigma": 1.3}
            each = {name: np.full(len(rows), value) for name, value in each.items()}
            at = {"x": rows["x"] - column + around, "y": rows["y"] - line + around}
            images = model.render({**at, **each}, (2 * around + 1,) * 2)
            expected = np.full((min(500, frames - first), *(side + 2 * around,) * 2), 10.0)
            for k, image in enumerate(images):
                part = slice(line[k], line[k] + 2 * around + 1), slice(column[k], column[k] + 2 * around + 1)
                expected[(rows["frame"][k] - first, *part)] += image
            yield CAMERA.expose(expected[:, around:-around, around:-around], rng)

    path = folder / f"movie{frames}_{per_frame}.tif"
    if not path.exists():
        data.write_tiff(path, chunks(), (frames, side, side), np.uint16, CAMERA)
    return path, truth


def main() -> None:
    """Some of the rows, by name."""
    single = {"start": start, "memory": lambda: memory(options.movies), "workers": lambda: workers(options.movies)}
    names = ["postprocessing", *single, *(f"{n}-{k}" for n, k in MOVIES)]
    parser = argparse.ArgumentParser(prog="python -m bench.localize")
    parser.add_argument("rows", nargs="*", default=names, help=f"some of {', '.join(names)}")
    parser.add_argument("--movies", type=Path, metavar="DIR", help="where movies lie that are used again")
    options = parser.parse_args()
    for name in options.rows:
        if name == "postprocessing":
            found = list(postprocessing())
        elif name in single:
            found = [single[name]()]
        else:
            found = [whole_process(*map(int, name.split("-")), options.movies)]
        for row in found:
            print(row.text(), flush=True)
        put_in_place([asdict(row) for row in found])


def put_in_place(found: list[dict[str, Any]]) -> None:
    """Replace rows of the same work among the results."""
    path = Path(__file__).parent / "results/localize-cpu.json"
    results = json.loads(path.read_text())
    kept = {row["work"]: row for row in results["rows"]} | {row["work"]: row for row in found}
    path.write_text(json.dumps({**results, "rows": list(kept.values())}, indent=2) + "\n")


if __name__ == "__main__":
    main()
