"""`smlmcore fit`: from a movie to localizations, by a model that learns from it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .options import camera_arguments, camera_file, number, output_arguments


def add(commands: Any) -> None:
    p = commands.add_parser(
        "fit",
        help="turn a movie into a table of localizations",
        description="Find the spots of a movie, train a model on them without labels, and write the localizations. "
        "Camera settings come from the movie's metadata where they are not given here, and are guessed from its noise "
        "where neither says anything.",
    )
    p.add_argument("movie", type=Path, help="TIFF or Picasso .raw")
    p.add_argument("-o", "--out", type=Path, metavar="FOLDER", help="folder for the results (default: MOVIE.fit)")
    number(p, "--box", int, "odd side of the boxes cut around spots, pixels (default: 11)")
    number(p, "--sigma", float, "usual width of the PSF, pixels (default: 1.3)")
    number(p, "--threshold", float, "least height of a spot, standard deviations of the noise (default: 6.0)")
    number(p, "--epochs", int, "passes over the spots in training (default: by their number)")
    number(p, "--seed", int, "seed of all random numbers (default: 0)")
    p.add_argument("--device", choices=("cpu", "gpu"), help="where to compute (default: cpu)")
    camera_file(p)
    camera_arguments(p)
    output_arguments(p)
    p.set_defaults(run=run)


def run(movie: Path, out: Path | None, overwrite: bool, quiet: bool, **options: Any) -> None:
    from ..localize import pipeline

    camera = {k: v for k in ("file", "offset", "gain", "read_noise", "pixel_size") if (v := options.pop(k)) is not None}
    given = {k: v for k, v in options.items() if v is not None}  # the rest are the pipeline's defaults
    out = movie.with_suffix(".fit") if out is None else out
    report = pipeline.fit_movie(movie, out, camera, quiet=quiet, overwrite=overwrite, **given)
    if not quiet:
        sys.stdout.writelines(f"{line}\n" for line in _summary(report, out))


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
