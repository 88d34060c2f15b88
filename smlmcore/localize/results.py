"""What follows from the table of a run: drift, events, image, resolution, and all the files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import yaml

from .. import data, fit
from ..psf.base import PSF
from . import report as page
from .believe import believe
from .drift import Drift, correct, cross_correlation, drift, fiducials
from .frc import Resolution, decorrelation, frc
from .link import link, on_time
from .render import render, save_image
from .score import score
from .source import Source
from .stopwatch import Stopwatch

BEAD = 3.0  # pixels around a mark that belong to it
UNSURE = 1.0  # pixels, or half the PSF's width if it is more: what is less certain is not localized
ENOUGH = 100  # localizations, from which on a resolution is worth to be told
MARGIN = 5.0  # pixels: scores are given with and without what is so near to the border


def keep(
    tables: Sequence[np.ndarray], shape: tuple[int, int, int], width: float = 1.0
) -> tuple[np.ndarray, dict[str, int]]:
    """The rows of all `tables` that are localizations, as one table, and how many are not, by reason.

    `width`: of the PSF, pixels.
    """
    h, w = shape[1:]
    kept, dropped = [], dict.fromkeys(("fit_failed", "no_uncertainty", "outside_of_the_field", "uncertain_position"), 0)
    for table in tables:
        failed = (table["status"] == fit.Status.singular) | (table["status"] == fit.Status.invalid_input)
        unsure = ~(np.isfinite(table["lpx"]) & np.isfinite(table["lpy"]) & (table["lpx"] > 0) & (table["lpy"] > 0))
        # light of molecules beyond the border comes in; where they are is extrapolation
        outside = ~(abs(table["x"] - (w - 1) / 2) <= w / 2 + 0.5) | ~(abs(table["y"] - (h - 1) / 2) <= h / 2 + 0.5)
        anywhere = ~(np.maximum(table["lpx"], table["lpy"]) <= max(UNSURE, width / 2))
        bad = np.zeros(len(table), bool)
        for name, mask in zip(dropped, (failed, unsure, outside, anywhere), strict=True):
            dropped[name] += int((mask & ~bad).sum())
            bad |= mask
        kept.append(data.take(table, ~bad))
    return data.join(kept), dropped


class Moved(NamedTuple):
    """The drift and another way to find it, None where nothing tells it, and the table without it."""

    drift: Drift | None
    check: Drift | None
    table: np.ndarray


@dataclass
class Found:
    """What a run has found: the table as fitted, the drift and the table without it, events, image and resolution."""

    raw: np.ndarray
    moved: Moved
    events: np.ndarray
    image: np.ndarray
    curve: Resolution | None
    alone: Resolution | None


def import_ahead() -> None:
    """Import what `finish` needs: while other threads localize, this takes no time."""
    for name in ("h5py", "PIL.PngImagePlugin", "tifffile"):
        import_module(name)


def finish(
    folder: Path,
    source: Source,
    table: np.ndarray,
    truth: np.ndarray | None,
    psf: PSF,
    width: float,
    report: dict[str, Any],
    given: Mapping[str, Any],
    clock: Stopwatch,
) -> None:
    """What follows from the `table`, and all files: first in a temporary folder, so that nothing is left half-written.

    Stages run side by side, begun in the order of the lines below: what others wait for is early, and there is no line
    that would have to wait long itself.  Their numbers go into the `report`.
    """
    frames, *shape = source.shape
    size, zoom, some = source.camera.pixel_size, given["zoom"], len(table) >= ENOUGH
    with data.atomic_folder(folder) as temporary, ThreadPoolExecutor(numba.get_num_threads()) as pool:

        def stage(name: str, work: Callable[..., Any], *inputs: Any) -> Future:
            def run() -> Any:
                ready = [i.result() if isinstance(i, Future) else i for i in inputs]
                with clock.within(name):
                    return work(*ready)

            return pool.submit(run)

        def save(rows: np.ndarray, name: str) -> None:
            info = {"Localize": "smlmcore", "Movie": report["movie"]["files"][0]}
            data.write_picasso(temporary / name, rows, source.shape, size, info)

        def save_moved(moved: Moved) -> None:
            save(moved.table, "localizations.hdf5")
            if given["csv"]:
                data.write_thunderstorm(temporary / "localizations.csv", moved.table, size)
            if moved.drift is not None:
                _write_drift(temporary / "drift.csv", moved.drift)

        def save_picture(image: np.ndarray) -> bytes:
            save_image(temporary / "image.tif", image, size / zoom)
            save_image(temporary / "image.png", image, size / zoom)
            return (temporary / "image.png").read_bytes()

        moved = stage("drift", undrifted, table, frames, given["undrift"], given["marks"])
        model = stage("check", believe, source, table, psf, width)
        curve = stage("resolution", lambda m: frc(m.table, shape) if some else None, moved)
        events = stage("link", lambda m: link(m.table, given["gap"])[0], moved)
        # after the check, as whoever draws a PSF takes all of numba's threads, which are not for two at a time
        samples = stage("write", lambda _: page.samples(source, table, psf), model)
        rows = stage("write", save_moved, moved)
        charts = stage("write", page.charts, table, frames, report["settings"]["box"], size)
        median = stage("write", medians, table)
        saved = rows, stage("write", save, events, "events.hdf5")
        image = stage("render", lambda m: render(m.table, shape, zoom, "own"), moved)
        picture = stage("write", save_picture, image)
        alone = stage("resolution", lambda i: decorrelation(i, zoom) if some and min(i.shape) >= 8 else None, image)
        scores = None if truth is None else stage("score", scores_of, table, truth, size, shape)

        for future in saved:
            future.result()
        report["model"] = model.result()
        found = Found(table, *(f.result() for f in (moved, events, image, curve, alone)))
        report |= numbers(found, frames, 1000 * (size or np.nan), bool(given["marks"])) | median.result()
        report |= {} if scores is None else {"score": scores.result()}
        report["warnings"] += warnings(report, given["undrift"])
        report["seconds"] = clock.whole()
        text = page.html(report, found, charts.result(), picture.result(), samples.result(), size)
        (temporary / "settings.yaml").write_text(yaml.safe_dump(dict(given), sort_keys=False), encoding="utf-8")
        (temporary / "report.html").write_text(text, encoding="utf-8")
        (temporary / "report.json").write_text(json.dumps(page.finite(report), indent=2) + "\n")


def undrifted(table: np.ndarray, frames: int, undrift: bool, marks: Sequence[Sequence[float]] | None) -> Moved:
    """Find the drift, by the beads at `marks` if there are any, and take it out; if `undrift`."""
    if not (undrift and len(table)):
        return Moved(None, None, table)
    path = fiducials(table, np.asarray(marks), BEAD, frames) if marks else drift(table, frames)
    if not np.isfinite(path.x_error).any():
        return Moved(None, None, table)
    check = cross_correlation(table, frames, max(2, min(16, frames // 50)))[1]
    return Moved(path, check, correct(table, path))


def numbers(found: Found, frames: int, pixel: float, marked: bool) -> dict[str, dict[str, Any]]:
    """Drift, events and resolution for the report; `pixel` in nm."""
    out: dict[str, dict[str, Any]] = {}
    path, check, _ = found.moved
    if path is not None:
        apart = np.sqrt(np.mean((path.x - check.x) ** 2 + (path.y - check.y) ** 2) / 2)
        out["drift"] = {
            "method": "fiducials" if marked else "likelihood",
            "range_nm": [float(np.ptp(v)) * pixel for v in (path.x, path.y)],
            "error_nm": float(np.median(path.x_error)) * pixel,
            "cross_correlation_differs_by_nm": float(apart) * pixel,
        }
    on = on_time(found.events, frames)
    out["events"] = {"number": len(found.events), "on_time_frames": on.mean, "on_time_error": on.error}
    if found.curve is not None:
        out["resolution"] = {
            "frc_nm": found.curve.resolution * pixel,
            "frc_error_nm": found.curve.error * pixel,
            "decorrelation_nm": found.alone.resolution * pixel if found.alone else np.nan,
        }
    return out


def warnings(report: Mapping[str, Any], undrift: bool) -> list[str]:
    """What a reader of these numbers should know first."""
    out, model = [], report["model"]
    if not model.get("believable", True):
        out.append(
            f"the model does not explain the frames: chi square per pixel is {model['typical']:.2f} near a typical "
            f"molecule, and {model['single']:.2f} where one is alone; look at the residuals, try --learn, or use "
            "another PSF"
        )
    if (haze := model.get("haze", {})).get("hazy"):
        out.append(
            f"haze: wide light comes and goes, by more than {haze['photons']:.1f} photons in one of ten pixels, noise "
            f"by {haze['of_noise']:.1f}; it is taken for background, but what is dim there may be false"
        )
    if undrift and report["localizations"] and "drift" not in report:
        out.append("the drift is not corrected: the localizations are too few, or show no structure that is seen again")
    return out


def medians(table: np.ndarray) -> dict[str, dict[str, float]]:
    """Of the usual columns, for the report; chi square where one emitter stands alone."""
    if not len(table):
        return {}
    names = [n for n in ("photons", "background", "lpx", "sigma_x") if n in table.dtype.names]
    found = {name: float(np.median(table[name])) for name in names}
    alone = table["chi2"][table["crowded"] == 0]
    return {"median": found | ({"chi2_isolated": float(np.median(alone))} if len(alone) else {})}


def scores_of(table: np.ndarray, truth: np.ndarray, size: float, shape: Sequence[int]) -> dict[str, Any]:
    """Scores against the truth, in the whole field and inside."""
    return {"whole_field": score(table, truth, size), "inside": score(table, truth, size, margin=MARGIN, shape=shape)}


def _write_drift(path: Path, d: Drift) -> None:
    """A row for each frame."""
    columns = {"x": d.x, "y": d.y, "x_error": d.x_error, "y_error": d.y_error}
    if d.z is not None:
        columns |= {"z": d.z, "z_error": d.z_error}
    rows = np.stack([np.arange(len(d.x)), *columns.values()], 1)
    formats = ["%d"] + ["%.5f"] * len(columns)
    np.savetxt(path, rows, formats, ",", header=",".join(["frame", *columns]), comments="")
