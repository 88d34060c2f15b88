"""From movies to a table, an image and a report: `smlmcore localize`.

The chunks (`chunks`) make the table; here follow drift, events, image, scores and the files of a run.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tqdm import tqdm

from .. import data, fit
from ..layers import keep_freed
from ..psf import Gaussian2D, load
from ..psf.base import PSF
from .believe import believe
from .chunks import (
    CHUNKS,
    NETWORK,
    SIGMA,
    USUAL,
    Plan,
    box_of,
    chunk_size,
    compute,
    describe,
    gather,
    prepare,
    psf_of,
    teach,
)  # fmt: skip
from .drift import Drift, correct, cross_correlation, drift, fiducials
from .finder import false_positives as rate_of
from .finder import threshold_for
from .frc import decorrelation, frc
from .link import link, on_time
from .network import Network
from .render import render, save_image
from .score import score
from .source import Source, truth_of

METHODS = ("auto", "network", "fit")
WIDEST = 10.0  # pixels, of the PSF
MARGIN = 5.0  # pixels: scores are given with and without what is so near to the border
SETTINGS = {  # what settings.yaml holds, and of which kind
    "movies": list, "camera": dict, "sigma": Real, "box": int, "threshold": Real, "false_positives": Real, "gap": int,
    "undrift": bool, "marks": list, "psf": str, "zoom": Real, "csv": bool, "method": str, "model": str, "learn": bool,
}  # fmt: skip


def run(
    movies: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    camera: Mapping[str, Any] | None = None,
    psf: PSF | str | os.PathLike[str] | None = None,
    sigma: float | None = None,
    box: int | None = None,
    threshold: float | None = None,
    false_positives: float = 0.01,
    gap: int = 1,
    undrift: bool = True,
    marks: Sequence[Sequence[float]] | None = None,
    zoom: float = 8.0,
    csv: bool = False,
    method: str = "auto",
    model: str | os.PathLike[str] | None = None,
    learn: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
    quiet: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Localize all molecules in `movies`, one series of frames, and write table, image and report into folder `out`.

    `camera`: settings that override those in the file, see `camera.Camera`, and `file`: a camera that was saved.
    `psf`: what a molecule looks like, or a file of `smlmcore calibrate`, default a Gaussian.  `sigma`: its usual width
    in pixels, default found out from the movie; `box`: odd side of the images that are fitted, default
    2 * ceil(3 sigma) + 1.
    `false_positives`: in each frame, or `threshold` in units of the noise, see `find`.  `gap`: dark frames within an
    event.  `undrift`: correct the drift, by the beads at `marks` (x, y in pixels) if there are any.  `zoom`: pixels of
    the image per pixel of the camera.  `csv`: the table for ThunderSTORM as well.

    `method`: "fit": maximum likelihood from the filter's peaks; "network": all that a network sees, refined; "auto":
    one fit where one emitter explains a spot, the network for the rest (`learned`).  `model`: file of a network,
    default the one of the package, which knows a `Gaussian2D` only: other PSFs are always fitted.  `learn`: teach one
    for this movie first, from what a quick pass over some frames suggests (`learn.prior_of`), and write it to
    `network.npz`; with any `psf`, and where none is given with the one that isolated molecules show (`shape.psf_of`).

    `workers`: processes of this machine, or `scheduler`: the address of a
    Dask cluster that sees the files by the same names; else all threads of this process.

    A run that was interrupted goes on if it is started again in the same way.  Returns the report.
    Raises `data.DataError` if the files or what is in them do not do, or if `out` holds results and not `overwrite`.
    """
    clock = time.perf_counter()
    seconds: dict[str, float] = {}

    def lap(stage: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[stage], clock = round(now - clock, 3), now

    paths = [movies] if isinstance(movies, str | os.PathLike) else list(movies)
    folder = Path(out)
    if folder.is_file():
        raise data.DataError(f"{folder} is a file; expected a folder for the results")
    data.refuse_existing(folder / "localizations.hdf5", overwrite=overwrite)
    calibration = psf if isinstance(psf, str | os.PathLike) else None
    psf = load(psf) if calibration is not None else psf
    known = psf is None or isinstance(psf, Gaussian2D) or learn or model is not None  # to the network
    for name, value, good, expected in (
        ("gap", gap, isinstance(gap, Integral) and gap >= 0, "a number of frames, 0 or more"),
        ("box", box, box is None or (box % 2 == 1 and 5 <= box <= 31), "an odd number of pixels from 5 to 31"),
        ("sigma", sigma, sigma is None or 0 < sigma <= WIDEST, f"pixels above 0, at most {WIDEST:g}"),
        ("threshold", threshold, threshold is None or 0 < threshold < np.inf, "standard deviations above 0"),
        ("zoom", zoom, 0 < zoom < np.inf, "a number above 0"),
        ("workers", workers, workers is None or workers >= 1, "1 or more"),
        ("method", method, method in METHODS, ", ".join(METHODS)),
        ("method", method, method != "network" or known, "fit for this PSF, or learn=True"),
        ("learn", learn, not learn or (method != "fit" and model is None), "another method than fit, and no model"),
    ):  # an error now rather than in a worker, or at the end
        if not good:
            raise ValueError(f"localize got {name}={value!r}; expected {expected}")
    method = method if known else "fit"
    keep_freed()
    if model is not None:
        taught = Network.load(model).prior.psf  # an error now
        if psf is not None and type(psf) is not type(taught):
            raise data.DataError(
                f"{model}: has learned {type(taught).__name__}, not {type(psf).__name__}; give no psf, or learn again"
            )
    with Source(paths, camera or {}) as source:
        plan = Plan(
            tuple(str(Path(p).resolve()) for p in paths),
            tuple((os.stat(p).st_size, os.stat(p).st_mtime_ns) for p in paths),
            tuple((name, (camera or {}).get(name)) for name in sorted(camera or {})),
            psf, sigma, box, threshold, false_positives, source.shape, chunk_size(source.shape), str(folder.resolve()),
            method, None if model is None else (str(Path(model).resolve()), os.stat(model).st_mtime_ns), learn,
        )  # fmt: skip
        if threshold is None:
            threshold_for(false_positives, source.shape[1:], sigma or SIGMA)  # raises for a rate that cannot be
        todo = prepare(plan)
        lap("open")
        if learn:
            teach(plan, source, progress=not quiet)
            lap("learn")
        psf = psf_of(plan)
        with tqdm(total=source.shape[0], desc="localizing", unit="frame", disable=True if quiet else None) as bar:
            bar.update(source.shape[0] - sum(b - a for a, b in (plan.chunks[n] for n in todo)))
            bar.unpause()
            for number in compute(plan, source, todo, workers, scheduler):
                first, last = plan.chunks[number]
                bar.update(last - first)
        lap("localize")
        table = gather(plan)
        width = float(np.load(plan.file(0).with_name(USUAL))[0])
        counts = {s.name: int((table["status"] == s).sum()) for s in fit.Status}
        table, dropped = keep(table, source.shape)
        lap("gather")
        report = {
            "movie": {
                "files": [Path(p).name for p in paths],
                "frames": source.shape[0],
                "height": source.shape[1],
                "width": source.shape[2],
            },
            "camera": source.camera.describe(),
            "camera_from": source.camera_from,
            "settings": {
                "method": method,
                "network": "none" if method == "fit" else "learned" if learn else str(model or "of the package"),
                "psf": describe(psf),
                "sigma": round(width, 4),
                "box": box or box_of(width),
                "threshold": round(threshold or threshold_for(false_positives, source.shape[1:], width), 3),
                "false_positives_per_frame": rate_of(threshold, source.shape[1:], width)
                if threshold
                else false_positives,
                "gap": gap,
                "zoom": zoom,
            },
            "warnings": list(source.warnings),
            "localizations": len(table),
            "crowded": int(table["crowded"].sum()),
            "status": counts,
            "dropped": dropped,
        }
        report["model"] = believe(source, table, psf, width)
        if not report["model"].get("believable", True):
            report["warnings"].append(
                "the model does not explain the frames: chi square per pixel is "
                f"{report['model']['typical']:.2f} near a typical molecule, and {report['model']['single']:.2f} where "
                "one is alone; look at the residuals, try --learn, or use another PSF"
            )
        lap("check")
        result = finish(source, table, report, undrift, marks, gap, zoom, lap)
        truth = truth_of(paths)
        if truth is not None:
            size, inner = source.camera.pixel_size, {"margin": MARGIN, "shape": source.shape[1:]}
            report["score"] = {"whole_field": score(table, truth, size)}
            report["score"]["inside"] = score(table, truth, size, **inner)
            lap("score")
        report["seconds"] = seconds
        given = {
            "movies": [str(p) for p in paths], "camera": dict(camera or {}), "sigma": sigma, "box": box,
            "threshold": threshold, "false_positives": false_positives, "gap": gap, "undrift": undrift,
            "marks": None if marks is None else [list(map(float, m)) for m in marks], "zoom": zoom, "csv": csv,
            "method": method, "model": None if model is None else str(model), "learn": learn,
            "psf": None if calibration is None else str(calibration),
        }  # fmt: skip
        write(folder, source, result, report, given, psf, csv, zoom, lap)
        if learn:
            os.replace(plan.network, folder / NETWORK)
    shutil.rmtree(folder / CHUNKS, ignore_errors=True)
    return report


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Arguments of `run` from the `settings.yaml` of an earlier run, `movies` and `camera` always, None never.

    Raises `DataError` for other names, or values of another kind than there should be.
    """
    stored = {name: value for name, value in data.read_yaml(Path(path)).items() if value is not None}
    for name, value in stored.items():
        if not isinstance(value, SETTINGS.get(name, ())):
            raise data.DataError(
                f"{path}: has {name}: {value!r}; expected settings of an earlier run: {', '.join(SETTINGS)}"
            )
    return {"movies": [], "camera": {}, **stored}


def keep(table: np.ndarray, shape: tuple[int, int, int]) -> tuple[np.ndarray, dict[str, int]]:
    """The rows that are localizations, and how many are not, by reason."""
    h, w = shape[1:]
    failed = (table["status"] == fit.Status.singular) | (table["status"] == fit.Status.invalid_input)
    unsure = ~failed & ~(
        np.isfinite(table["lpx"]) & np.isfinite(table["lpy"]) & (table["lpx"] > 0) & (table["lpy"] > 0)
    )
    # light of molecules beyond the border comes in; where they are is extrapolation
    outside = (
        ~failed
        & ~unsure
        & ~((abs(table["x"] - (w - 1) / 2) <= w / 2 + 0.5) & (abs(table["y"] - (h - 1) / 2) <= h / 2 + 0.5))
    )
    reasons = {"fit_failed": failed, "no_uncertainty": unsure, "outside_of_the_field": outside}
    return table[~(failed | unsure | outside)], {name: int(mask.sum()) for name, mask in reasons.items()}


# ---------------------------------------------------------------- what follows


@dataclass
class Found:
    """What a run has found: the table as fitted, the drift, the table without it, events, image and resolution."""

    raw: np.ndarray
    drift: Drift | None
    table: np.ndarray
    events: np.ndarray
    image: np.ndarray
    curve: Any
    check: Drift | None


def finish(source, table, report, undrift, marks, gap, zoom, lap) -> Found:
    """Drift, events, image and resolution; their numbers go into the report."""
    frames, h, w = source.shape
    pixel = 1000 * (source.camera.pixel_size or np.nan)
    path = check = None
    corrected = table
    if undrift and len(table):
        path = fiducials(table, np.asarray(marks), 3.0, frames) if marks else drift(table, frames)
        if np.isfinite(path.x_error).any():
            corrected = correct(table, path)
            _, check = cross_correlation(table, frames, max(2, min(16, frames // 50)))
            apart = np.sqrt(np.mean((path.x - check.x) ** 2 + (path.y - check.y) ** 2) / 2)
            report["drift"] = {
                "method": "fiducials" if marks else "likelihood",
                "range_nm": [float(np.ptp(v)) * pixel for v in (path.x, path.y)],
                "error_nm": float(np.median(path.x_error)) * pixel,
                "cross_correlation_differs_by_nm": float(apart) * pixel,
            }
        else:
            path = None
            report["warnings"].append(
                "the drift is not corrected: the localizations are too few, or show no structure that is seen again"
            )
    lap("drift")
    events, _ = link(corrected, gap)
    on = on_time(events, frames)
    report["events"] = {"number": len(events), "on_time_frames": on.mean, "on_time_error": on.error}
    lap("link")
    image = render(corrected, (h, w), zoom, "own")
    lap("render")
    curve = None
    if len(table) >= 100:
        curve = frc(corrected, (h, w))
        alone = decorrelation(image, zoom) if min(image.shape) >= 8 else None
        report["resolution"] = {
            "frc_nm": curve.resolution * pixel,
            "frc_error_nm": curve.error * pixel,
            "decorrelation_nm": alone.resolution * pixel if alone else np.nan,
        }
    lap("resolution")
    for name in ("photons", "background", "lpx", "sigma_x"):
        if name in table.dtype.names and len(table):
            report.setdefault("median", {})[name] = float(np.median(table[name]))
    alone = table[table["crowded"] == 0]
    if len(alone):
        report["median"]["chi2_isolated"] = float(np.median(alone["chi2"]))
    return Found(table, path, corrected, events, image, curve, check)


def write(folder, source, found, report, given, psf, csv, zoom, lap) -> None:
    """All files, first into a temporary folder, so that a failure leaves nothing half-written."""
    from . import report as page

    shape, size = source.shape, source.camera.pixel_size
    with data.atomic_folder(folder) as temporary:
        info = {"Localize": "smlmcore", "Movie": report["movie"]["files"][0]}
        data.write_picasso(temporary / "localizations.hdf5", found.table, shape, size, info)
        data.write_picasso(temporary / "events.hdf5", found.events, shape, size, info)
        if csv:
            data.write_thunderstorm(temporary / "localizations.csv", found.table, size)
        if found.drift is not None:
            d = found.drift
            columns = [np.arange(len(d.x)), d.x, d.y, d.x_error, d.y_error]
            names = "frame,x,y,x_error,y_error"
            if d.z is not None:
                columns, names = [*columns, d.z, d.z_error], names + ",z,z_error"
            np.savetxt(
                temporary / "drift.csv",
                np.stack(columns, 1),
                ["%d"] + ["%.5f"] * (len(columns) - 1),
                ",",
                header=names,
                comments="",
            )
        (temporary / "settings.yaml").write_text(yaml.safe_dump(given, sort_keys=False), encoding="utf-8")
        save_image(temporary / "image.tif", found.image, size / zoom)
        save_image(temporary / "image.png", found.image, size / zoom)
        samples = page.samples(source, found.raw, psf)
        text = page.html(report, found, (temporary / "image.png").read_bytes(), samples, source.camera)
        lap("write")
        (temporary / "report.html").write_text(text, encoding="utf-8")
        (temporary / "report.json").write_text(json.dumps(page.finite(report), indent=2) + "\n")
