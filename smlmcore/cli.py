"""The command `smlmcore`: simulate a movie, look into one, localize, learn, calibrate a PSF, view a report.

Exit status: 0 success, 2 a mistake in the input or no room for the output (one line on stderr says which), 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from . import __version__


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors take one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return the exit status.

    >>> main(["info", "surely_not_here.tif"])
    2
    """
    options = vars(parser().parse_args(argv))
    run = options.pop("run")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
        signal.signal(signal.SIGINT, _interrupt)
    before, sys.unraisablehook = sys.unraisablehook, _redeliver
    try:
        run(**options)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing half-written is left", 130)
    except MemoryError as error:
        return _fail(f"out of memory ({error}); use fewer or smaller frames" if str(error) else "out of memory", 2)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _fail(f"{name}{error.strerror or error}", 2)
    except (ValueError, TypeError, RuntimeError) as error:
        return _fail(str(error), 2)
    finally:
        if not _stopping.is_set():
            sys.unraisablehook = before
    return 0


def parser() -> argparse.ArgumentParser:
    """The parser of `smlmcore` with all its commands.

    >>> parser().parse_args(["info", "movie.tif"]).movie.name
    'movie.tif'
    """
    top = _Parser(prog="smlmcore", description="Single-molecule localization microscopy, learned without labels.")
    top.add_argument("--version", action="version", version=f"smlmcore {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    _simulate_parser(commands)
    _info_parser(commands)
    _fit_parser(commands)
    _calibrate_parser(commands)
    _localize_parser(commands)
    _view_parser(commands)
    _config_parser(commands)
    return top


def _simulate_parser(commands: Any) -> None:
    p = commands.add_parser(
        "simulate",
        help="write a movie of isolated molecules with its truth",
        description="Write a movie OUT.tif of isolated molecules, and its truth beside it as OUT.truth.hdf5 (Picasso).",
    )
    p.add_argument("out", type=Path, metavar="OUT.tif", help="movie to write, OME-TIFF")
    _number(p, "--frames", int, "number of frames", 1000)
    _number(p, "--shape", int, "size of a frame, pixels", (128, 128), metavar=("H", "W"))
    _number(p, "--spots-per-frame", int, "molecules in each frame (default: 30 per 128 x 128 pixels)")
    p.add_argument("--config", type=Path, metavar="FILE.yaml", help="structures, blinking, drift; for all below")
    p.add_argument("--structure", choices=("filaments", "uniform"), default="uniform", help="where the molecules are")
    _number(p, "--photons", float, "median photons of a molecule", 2000.0)
    _number(p, "--background", float, "photons per pixel", (5.0, 15.0), metavar=("LOW", "HIGH"))
    _number(p, "--sigma", float, "width of the PSF, pixels", (1.1, 1.5), metavar=("LOW", "HIGH"))
    _number(p, "--seed", int, "seed of all random numbers", 0)
    _camera_arguments(p, offset=100.0, gain=0.5, read_noise=1.5, pixel_size=0.1)
    _output_arguments(p)
    p.set_defaults(run=_simulate)


def _info_parser(commands: Any) -> None:
    p = commands.add_parser("info", help="say what a movie holds", description="Say what a movie holds.")
    p.add_argument("movie", type=Path, help="TIFF or Picasso .raw")
    p.set_defaults(run=_info)


def _fit_parser(commands: Any) -> None:
    p = commands.add_parser(
        "fit",
        help="turn a movie into a table of localizations",
        description="Find the spots of a movie, train a model on them without labels, and write the localizations. "
        "Camera settings come from the movie's metadata where they are not given here, and are guessed from its noise "
        "where neither says anything.",
    )
    p.add_argument("movie", type=Path, help="TIFF or Picasso .raw")
    p.add_argument("-o", "--out", type=Path, metavar="FOLDER", help="folder for the results (default: MOVIE.fit)")
    _number(p, "--box", int, "odd side of the boxes cut around spots, pixels (default: 11)")
    _number(p, "--sigma", float, "usual width of the PSF, pixels (default: 1.3)")
    _number(p, "--threshold", float, "least height of a spot, standard deviations of the noise (default: 6.0)")
    _number(p, "--epochs", int, "passes over the spots in training (default: by their number)")
    _number(p, "--seed", int, "seed of all random numbers (default: 0)")
    p.add_argument("--device", choices=("cpu", "gpu"), help="where to compute (default: cpu)")
    _camera_arguments(p)
    _output_arguments(p)
    p.set_defaults(run=_fit)


def _calibrate_parser(commands: Any) -> None:
    p = commands.add_parser(
        "calibrate",
        help="learn a PSF from z-stacks of beads",
        description="Find the beads in z-stacks and write the PSF behind them (psf.npz) with a report: a spline "
        "through their registered average, or the pupil that is likeliest to have made them.  Camera settings come "
        "from the files' metadata where they are not given here.",
    )
    p.add_argument("stacks", type=Path, nargs="+", metavar="STACK", help="z-stack of beads, TIFF or Picasso .raw")
    p.add_argument("--psf", choices=("spline", "pupil"), default="spline", help="kind of PSF (default: spline)")
    p.add_argument("--z-step", type=float, required=True, metavar="N", help="distance of the slices, µm")
    p.add_argument("-o", "--out", type=Path, metavar="FOLDER", help="folder for the results (default: STACK.psf)")
    _number(p, "--box", int, "odd side of the beads' images, pixels", 25)
    _number(p, "--sigma", float, "usual width of a bead's image, pixels", 1.5)
    _number(p, "--threshold", float, "least height of a bead in the summed stack, standard deviations of noise", 20.0)
    _number(p, "--smooth", float, "of a spline: width of the filter along z, µm", 0.1)
    pupil = p.add_argument_group("a pupil's optics")
    _number(pupil, "--na", float, "numerical aperture")
    _number(pupil, "--wavelength", float, "of the light, µm")
    _number(pupil, "--n-immersion", float, "refractive index of the immersion medium", 1.518)
    _number(pupil, "--n-medium", float, "refractive index around the beads (default: that of the immersion)")
    _number(pupil, "--zernike", int, "modes of the phase, in Noll's order", 36)
    _number(pupil, "--magnitude", int, "modes of the magnitude", 0)
    _number(pupil, "--bead", float, "diameter of the beads, µm", 0.0)
    _number(pupil, "--blur", float, "blur of the images, standard deviation in pixels", 0.0)
    pupil.add_argument("--free", nargs="+", default=(), metavar="NAME", help="optics to fit: na wavelength blur ...")
    pupil.add_argument("--scalar", action="store_true", help="scalar model (default: vectorial)")
    pupil.add_argument("--drift", action="store_true", help="each slice has its own x and y")
    _camera_arguments(p)
    _output_arguments(p)
    p.set_defaults(run=_calibrate)


def _localize_parser(commands: Any) -> None:
    p = commands.add_parser(
        "localize",
        help="from movies to a table, an image and a report",
        description="Find and fit all molecules of a movie (or of several, one after another), correct the drift, "
        "link, render, and score where NAME.truth.hdf5 lies beside the movie.  A run that was interrupted goes on when "
        "it is started again.  Camera settings come from the movie's metadata where they are not given here.",
    )
    p.add_argument("movies", type=Path, nargs="*", metavar="MOVIE", help="TIFF or Picasso .raw")
    p.add_argument("-o", "--out", type=Path, metavar="DIR", help="folder for the results (default: MOVIE.localize)")
    p.add_argument("--settings", type=Path, metavar="FILE", help="settings.yaml of an earlier run, to repeat it")
    p.add_argument(
        "--method",
        choices=("auto", "network", "fit"),
        help="auto: a fit where one molecule explains a "
        "spot, a network for the rest (default); network; fit: maximum likelihood from the filter's peaks",
    )
    p.add_argument("--model", type=Path, metavar="FILE", help="network.npz of an earlier run (default: the package's)")
    p.add_argument("--learn", action="store_const", const=True, help="teach the network this movie's conditions first")
    _number(p, "--sigma", float, "width of the PSF, pixels (default: found out from the movie)")
    _number(p, "--box", int, "odd side of the images that are fitted, pixels (default: by sigma)")
    _number(p, "--threshold", float, "least height of a spot, standard deviations of the noise")
    _number(p, "--false-positives", float, "instead: peaks of mere noise in each frame (default: 0.01)")
    _number(p, "--gap", int, "dark frames within an event (default: 1)")
    _number(p, "--zoom", float, "pixels of the image for each pixel of the camera (default: 8)")
    p.add_argument("--no-drift", dest="undrift", action="store_const", const=False, help="do not correct the drift")
    p.add_argument(
        "--mark", type=float, nargs=2, action="append", metavar=("X", "Y"), dest="marks",
        help="a bead to take the drift from, pixels; may be given several times",
    )  # fmt: skip
    p.add_argument("--csv", action="store_const", const=True, help="the table for ThunderSTORM as well")
    _number(p, "--workers", int, "processes on this machine, by Dask (default: the threads of this one)")
    p.add_argument("--scheduler", metavar="ADDRESS", help="an existing Dask cluster, such as tcp://host:8786")
    _camera_arguments(p)
    _output_arguments(p)
    p.set_defaults(run=_localize)


def _view_parser(commands: Any) -> None:
    p = commands.add_parser("view", help="open a report", description="Open the report of a run in the web browser.")
    p.add_argument("folder", type=Path, metavar="DIR", help="folder of results")
    p.set_defaults(run=_view)


def _config_parser(commands: Any) -> None:
    p = commands.add_parser(
        "config",
        help="show or set the user's settings",
        description="Show all settings, set one (which writes the file), or say where the file is.",
    )
    p.add_argument("action", choices=("show", "set", "path"), help="what to do")
    p.add_argument("setting", nargs="?", metavar="SECTION.KEY", help="with set: such as LOG_PATH.run")
    p.add_argument("value", nargs="?", help="with set: its new value")
    p.set_defaults(run=_config)


def _number(p: argparse.ArgumentParser, name: str, kind: type, text: str, default: Any = None, **options: Any) -> None:
    """A numerical option; a tuple as default makes it take as many values."""
    if isinstance(default, tuple):
        options["nargs"] = len(default)
    if default is not None:
        text += f" (default: {' '.join(map(str, default)) if isinstance(default, tuple) else default})"
    p.add_argument(name, type=kind, help=text, default=default, **{"metavar": "N", **options})


def _camera_arguments(p: argparse.ArgumentParser, **defaults: float) -> None:
    for name, text in (
        ("offset", "counts of the camera in the dark"),
        ("gain", "electrons per count"),
        ("read_noise", "standard deviation of the read noise, electrons"),
        ("pixel_size", "size of a pixel in the sample, µm"),
    ):
        _number(p, f"--{name.replace('_', '-')}", float, text, defaults.get(name))


def _output_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--overwrite", action="store_true", help="replace files that exist")
    p.add_argument("--quiet", action="store_true", help="say nothing but errors")


def _simulate(
    out: Path,
    config: Path | None,
    frames: int,
    shape: Sequence[int],
    spots_per_frame: int | None,
    structure: str,
    photons: float,
    background: Sequence[float],
    sigma: Sequence[float],
    seed: int,
    offset: float,
    gain: float,
    read_noise: float,
    pixel_size: float,
    overwrite: bool,
    quiet: bool,
) -> None:
    from . import data, simulate
    from .camera import Camera

    if out.suffix.lower() not in (".tif", ".tiff"):
        raise data.DataError(f"{out}: is written as TIFF; end its name in .tif")
    h, w = shape
    truth_path = out.with_suffix(".truth.hdf5")
    data.refuse_existing(out, truth_path, truth_path.with_suffix(".yaml"), overwrite=overwrite)
    if config is not None:
        return _simulate_config(out, config, truth_path, quiet)
    camera = Camera(offset, gain, read_noise, pixel_size)
    if seed < 0:
        raise ValueError(f"got --seed {seed}; expected 0 or more")
    rng = np.random.default_rng(seed)
    truth, chunks = simulate.blinking_movie(
        rng,
        (h, w),
        frames,
        spots_per_frame=max(1, 30 * h * w // 128**2) if spots_per_frame is None else spots_per_frame,
        photons=photons,
        background=tuple(background),
        sigma=tuple(sigma),
        camera=camera,
        sites=simulate.filaments(rng, (h, w)) if structure == "filaments" else None,
    )
    data.write_tiff(out, _shown(chunks, frames, quiet), (frames, h, w), np.uint16, camera)
    data.write_picasso(truth_path, truth, (frames, h, w), pixel_size, {"Movie": out.name, "Seed": seed})
    if not quiet:
        _show({"movie": out, "truth": truth_path, "frames": f"{frames} of {h} x {w}", "spots": len(truth)})


def _simulate_config(out: Path, config: Path, truth_path: Path, quiet: bool) -> None:
    from . import data, simulate

    if not config.is_file():
        raise data.DataError(f"{config}: no such file; check the name and the folder")
    movie, rng = simulate.from_config(data.read_yaml(config))
    shape = (movie.frames, *movie.shape)
    data.write_tiff(out, _shown(movie.chunks(rng), movie.frames, quiet), shape, np.uint16, movie.camera)
    data.write_picasso(truth_path, movie.truth, shape, movie.camera.pixel_size, {"Movie": out.name})
    if not quiet:
        size = f"{shape[0]} of {shape[1]} x {shape[2]}"
        _show({"movie": out, "truth": truth_path, "frames": size, "emitters": len(movie.truth)})


def _shown(chunks: Iterator[np.ndarray], frames: int, quiet: bool) -> Iterator[np.ndarray]:
    """The same chunks, with a bar of progress where stderr is a terminal; the first is drawn before a file is begun."""
    return _with_bar(next(chunks), chunks, frames, quiet)


def _with_bar(first: np.ndarray, chunks: Iterator[np.ndarray], frames: int, quiet: bool) -> Iterator[np.ndarray]:
    from tqdm import tqdm

    with tqdm(total=frames, unit="frame", disable=True if quiet else None, leave=False) as bar:
        for chunk in chain([first], chunks):
            yield chunk
            bar.update(len(chunk))


def _info(movie: Path) -> None:
    from . import data

    with data.open_movie(movie) as file:
        frames, h, w = file.shape
        first = file.read(0, 1)
        low, middle, high = np.nanmin(first), np.nanmedian(first), np.nanmax(first)
        rows = {
            "file": movie,
            "size": f"{movie.stat().st_size / 1e6:.4g} MB",
            "frames": f"{frames} of {h} x {w}",
            "dtype": file.dtype,
            "first frame": f"min {low:g}, median {middle:g}, max {high:g}",
        }
        for name, unit in (("offset", "counts"), ("gain", "e/count"), ("read_noise", "e"), ("pixel_size", "µm")):
            value = file.camera.get(name)
            rows[name] = "not in the file" if value is None else f"{value:g} {unit}"
        if file.warnings:
            rows["warning"] = "; ".join(file.warnings)
        _show(rows)


def _fit(movie: Path, out: Path | None, overwrite: bool, quiet: bool, **options: Any) -> None:
    from .localize import pipeline

    camera = {k: v for k in ("offset", "gain", "read_noise", "pixel_size") if (v := options.pop(k)) is not None}
    given = {k: v for k, v in options.items() if v is not None}  # the rest are the pipeline's defaults
    out = movie.with_suffix(".fit") if out is None else out
    report = pipeline.fit_movie(movie, out, camera, quiet=quiet, overwrite=overwrite, **given)
    if not quiet:
        sys.stdout.writelines(f"{line}\n" for line in _summary(report, out))


def _calibrate(
    stacks: Sequence[Path], z_step: float, out: Path | None, quiet: bool, scalar: bool, free: Sequence[str], **rest: Any
) -> None:
    from . import calibrate

    camera = {k: rest.pop(k) for k in ("offset", "gain", "read_noise", "pixel_size")}
    optics = {k: rest.pop(k) for k in ("na", "wavelength", "n_immersion", "n_medium", "bead", "blur")}
    optics["n_medium"] = optics["n_medium"] or optics["n_immersion"]
    optics |= {k: rest.pop(k) for k in ("zernike", "magnitude", "drift")} | {"optics": free, "vectorial": not scalar}
    if rest["psf"] == "pupil":
        rest["optics"] = optics
        if missing := [f"--{k}" for k in ("na", "wavelength") if optics[k] is None]:
            raise ValueError(f"a pupil needs {' and '.join(missing)}")
    out = stacks[0].with_suffix(".psf") if out is None else out
    report = calibrate.calibrate(stacks, out, z_step, camera=camera, quiet=quiet, **rest)
    if not quiet:
        error = report["rms_z_error"]
        low, high = report["z_range"]
        _show(
            {
                "psf": out / "psf.npz",
                "beads": f"{report['used']} used of {report['found']} found",
                "z": f"{low:g} to {high:g} µm",
                "z error": "no slice could be fitted" if error is None else f"{1000 * error:.1f} nm rms, of the slices",
                **{k: f"{v['value']:.4g} ± {v['error']:.2g}" for k, v in report.get("fitted_optics", {}).items()},
                **({"residual": f"{report['residual']:.4g} (noise alone: 1)"} if "residual" in report else {}),
            }
        )


def _localize(movies: list[Path], out: Path | None, settings: Path | None, quiet: bool, **options: Any) -> None:
    from . import data
    from .localize.run import read_settings, run

    camera = {k: v for k in ("offset", "gain", "read_noise", "pixel_size") if (v := options.pop(k)) is not None}
    given = {k: v for k, v in options.items() if v is not None}
    if settings is not None:
        stored = read_settings(settings)
        movies = movies or [Path(m) for m in stored["movies"]]
        camera = {**stored.pop("camera"), **camera}
        given = {**{k: v for k, v in stored.items() if k != "movies"}, **given}
    if not movies:
        raise data.DataError("no movie given; name at least one file")
    out = movies[0].with_suffix(".localize") if out is None else out
    report = run(movies, out, camera, quiet=quiet, **given)
    if not quiet:
        sys.stdout.writelines(f"{line}\n" for line in _localized(report, out))


def _localized(report: dict[str, Any], out: Path) -> Iterator[str]:
    """The report's numbers for a reader, and where the files lie."""
    frames = report["movie"]["frames"]
    yield f"{report['localizations']} localizations in {frames} frames, {report['crowded']} in a crowd"
    yield "status: " + ", ".join(f"{k.replace('_', ' ')} {n}" for k, n in report["status"].items() if n)
    if "drift" in report:
        d = report["drift"]
        yield f"drift: {d['range_nm'][0]:.0f} x {d['range_nm'][1]:.0f} nm, known to {d['error_nm']:.1f} nm per frame"
    if "resolution" in report:
        yield f"resolution (FRC): {report['resolution']['frc_nm']:.0f} nm"
    for field, scores in report.get("score", {}).items():
        for radius, s in scores.items():
            yield (
                f"score, {field.replace('_', ' ')}, {radius} nm: Jaccard {s['jaccard']:.4f}, lateral RMSE "
                f"{s['rmse_lateral']:.1f} nm, efficiency {s['efficiency']:.1f}"
            )
    yield "seconds: " + ", ".join(f"{stage} {s:.2f}" for stage, s in report["seconds"].items())
    yield from (f"warning: {text}" for text in report["warnings"])
    yield f"files in {out}: " + ", ".join(sorted(p.name for p in out.iterdir()))


def _view(folder: Path) -> None:
    import webbrowser

    from . import data

    page = folder / "report.html" if folder.is_dir() else folder
    if not page.is_file():
        raise data.DataError(f"{folder}: holds no report.html; give the folder of a smlmcore localize run")
    if not webbrowser.open(page.resolve().as_uri()):
        sys.stdout.write(f"no web browser found; open {page.resolve()}\n")


def _config(action: str, setting: str | None, value: str | None) -> None:
    from . import config

    if action == "path":
        sys.stdout.write(f"{config.path()}\n")
    elif action == "show":
        _show({f"{s}.{k}": v or "-" for s, values in config.load().items() for k, v in values.items()}, literal=True)
    else:
        section, _, key = (setting or "").partition(".")
        if not (section and key and value is not None):
            raise ValueError("config set expects SECTION.KEY and a value, such as: config set LOG_PATH.run /data/runs")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            config.put(section, key, value)
        sys.stderr.writelines(f"smlmcore: warning: {w.message}\n" for w in caught)


def _show(rows: dict[str, Any], literal: bool = False) -> None:
    """Write `rows` to stdout as two columns, the names as words unless `literal`."""
    width = max(map(len, rows), default=0)
    for name, value in rows.items():
        sys.stdout.write(f"{name if literal else name.replace('_', ' '):{width}}  {value}\n")


def _summary(report: dict[str, Any], out: Path) -> Iterator[str]:
    """The report's numbers for a reader, and where the files lie."""
    loss, status = report["loss"], {k: n for k, n in report["status"].items() if n}
    yield f"{report['localizations']} localizations of {report['spots']} spots in {report['movie']['frames']} frames"
    if report["camera_from"].startswith("guessed"):
        yield f"camera {report['camera_from']}; give --offset, --gain and --read-noise where you know them"
    yield "status: " + ", ".join(f"{k.replace('_', ' ')} {n}" for k, n in status.items())
    yield (
        f"loss on {loss['unseen_spots']} unseen spots: encoder {loss['encoder']:.4f}, refined {loss['refined']:.4f}, "
        f"noise floor {loss['noise_floor']:.4f} nats per pixel ({loss['noise_floor_from']})"
    )
    if "encoder" in report:
        names = list(report["encoder"]["rmse_over_crlb"])
        yield f"{'RMSE / CRLB, unseen spots':<26}" + "".join(f"{name:>12}" for name in names)
        for stage in ("encoder", "refined"):
            yield f"{stage:<26}" + "".join(f"{v:12.3f}" for v in report[stage]["rmse_over_crlb"].values())
    yield "seconds: " + ", ".join(f"{stage} {s:.1f}" for stage, s in report["seconds"].items())
    yield from (f"warning: {text}" for text in report["warnings"])
    yield f"files in {out}: " + ", ".join(sorted(p.name for p in out.iterdir()))


_stopping = threading.Event()  # a signal has come


def _interrupt(*_: object) -> NoReturn:
    _stopping.set()
    raise KeyboardInterrupt


def _terminate(*_: object) -> NoReturn:
    """Leave as on Ctrl-C when a scheduler ends the job, so that temporary files are removed."""
    _stopping.set()
    raise SystemExit(128 + signal.SIGTERM)


def _redeliver(lost: Any) -> None:
    """Send a signal again whose exception was lost, as it is when it comes while C code, LLVM say, calls Python.

    Objects that it left half made complain when they are deleted: once a signal has come, nobody needs to know.
    """
    if issubclass(lost.exc_type, KeyboardInterrupt | SystemExit):
        number = signal.SIGINT if issubclass(lost.exc_type, KeyboardInterrupt) else signal.SIGTERM
        threading.Timer(0.01, signal.pthread_kill, (threading.main_thread().ident, number)).start()
    elif not _stopping.is_set():
        sys.__unraisablehook__(lost)


def _fail(message: str, status: int) -> int:
    sys.stderr.write(f"smlmcore: error: {' '.join(message.split())}\n")
    return status
