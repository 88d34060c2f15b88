"""`smlmcore localize`: from movies to a table, an image and a report."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

from .options import camera_arguments, camera_file, file_or_address, loading, number, output_arguments


def add(commands: Any) -> None:
    p = commands.add_parser(
        "localize",
        help="from movies to a table, an image and a report",
        description="Find and fit all molecules of a movie (or of several, one after another), correct the drift, "
        "link, render, and score where NAME.truth.hdf5 lies beside the movie.  A run that was interrupted goes on when "
        "it is started again.  Camera settings come from the movie's metadata where they are not given here.",
    )
    p.add_argument(
        "movies", type=file_or_address, nargs="*", metavar="MOVIE", help="TIFF, Picasso .raw, … or https://…/movie.tif"
    )
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
    p.add_argument(
        "--psf",
        type=Path,
        metavar="FILE",
        help="psf.npz of `smlmcore calibrate` (default: a Gaussian, or what --learn finds)",
    )
    number(p, "--sigma", float, "width of the PSF, pixels (default: found out from the movie)")
    number(p, "--box", int, "odd side of the images that are fitted, pixels (default: by sigma)")
    number(p, "--threshold", float, "least height of a spot, standard deviations of the noise")
    number(p, "--false-positives", float, "instead: peaks of mere noise in each frame (default: 0.01)")
    number(p, "--gap", int, "dark frames within an event (default: 1)")
    number(p, "--zoom", float, "pixels of the image for each pixel of the camera (default: 8)")
    p.add_argument("--no-drift", dest="undrift", action="store_const", const=False, help="do not correct the drift")
    p.add_argument(
        "--mark", type=float, nargs=2, action="append", metavar=("X", "Y"), dest="marks",
        help="a bead to take the drift from, pixels; may be given several times",
    )  # fmt: skip
    p.add_argument("--csv", action="store_const", const=True, help="the table for ThunderSTORM as well")
    number(p, "--workers", int, "processes on this machine, by Dask (default: the threads of this one)")
    p.add_argument("--scheduler", metavar="ADDRESS", help="an existing Dask cluster, such as tcp://host:8786")
    camera_file(p)
    camera_arguments(p)
    output_arguments(p)
    p.set_defaults(run=run)


def run(movies: list[Path | str], out: Path | None, settings: Path | None, quiet: bool, **options: Any) -> None:
    with loading():
        from .. import data
        from ..localize.run import read_settings, run

    camera = {k: v for k in ("file", "offset", "gain", "read_noise", "pixel_size") if (v := options.pop(k)) is not None}
    given = {k: v for k, v in options.items() if v is not None}
    if settings is not None:
        stored = read_settings(settings)
        movies = movies or [file_or_address(m) for m in stored["movies"]]
        camera = {**stored.pop("camera"), **camera}
        given = {**{k: v for k, v in stored.items() if k != "movies"}, **given}
    if not movies:
        raise data.DataError("no movie given; name at least one file")
    if out is None:  # beside the movie; of one on a server, here
        first = movies[0]
        out = (first if isinstance(first, Path) else Path(first.rpartition("/")[2])).with_suffix(".localize")
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
    if "resolution" in report and isfinite(report["resolution"]["frc_nm"]):
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
