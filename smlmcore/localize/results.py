"""What follows from the table of a run: drift, events, image, resolution, and all the files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .. import data, fit
from ..psf.base import PSF
from . import report as page
from .drift import Drift, correct, cross_correlation, drift, fiducials
from .frc import Resolution, decorrelation, frc
from .link import link, on_time
from .render import render, save_image
from .source import Source

BEAD = 3.0  # pixels around a mark that belong to it
UNSURE = 1.0  # pixels, or half the PSF's width if it is more: what is less certain is not localized
ENOUGH = 100  # localizations, from which on a resolution is worth to be told


def keep(table: np.ndarray, shape: tuple[int, int, int], width: float = 1.0) -> tuple[np.ndarray, dict[str, int]]:
    """The rows that are localizations, and how many are not, by reason; `width`: of the PSF, pixels."""
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
    anywhere = ~failed & ~unsure & ~outside & (np.maximum(table["lpx"], table["lpy"]) > max(UNSURE, width / 2))
    reasons = {
        "fit_failed": failed, "no_uncertainty": unsure, "outside_of_the_field": outside, "uncertain_position": anywhere,
    }  # fmt: skip
    return table[~(failed | unsure | outside | anywhere)], {name: int(mask.sum()) for name, mask in reasons.items()}


@dataclass
class Found:
    """What a run has found: the table as fitted, the drift, the table without it, events, image and resolution."""

    raw: np.ndarray
    drift: Drift | None
    table: np.ndarray
    events: np.ndarray
    image: np.ndarray
    curve: Resolution | None
    check: Drift | None


def follow(
    source: Source,
    table: np.ndarray,
    report: dict[str, Any],
    undrift: bool,
    marks: Sequence[Sequence[float]] | None,
    gap: int,
    zoom: float,
    lap: Callable[[str], None],
) -> Found:
    """Drift, events, image and resolution; their numbers go into the report, and `lap` is told of each stage."""
    frames, *shape = source.shape
    pixel = 1000 * (source.camera.pixel_size or np.nan)
    path, check = _drift(table, frames, marks) if undrift and len(table) else (None, None)
    if path is not None:
        apart = np.sqrt(np.mean((path.x - check.x) ** 2 + (path.y - check.y) ** 2) / 2)
        report["drift"] = {
            "method": "fiducials" if marks else "likelihood",
            "range_nm": [float(np.ptp(v)) * pixel for v in (path.x, path.y)],
            "error_nm": float(np.median(path.x_error)) * pixel,
            "cross_correlation_differs_by_nm": float(apart) * pixel,
        }
    elif undrift and len(table):
        report["warnings"].append(
            "the drift is not corrected: the localizations are too few, or show no structure that is seen again"
        )
    corrected = table if path is None else correct(table, path)
    lap("drift")
    events, _ = link(corrected, gap)
    on = on_time(events, frames)
    report["events"] = {"number": len(events), "on_time_frames": on.mean, "on_time_error": on.error}
    lap("link")
    image = render(corrected, shape, zoom, "own")
    lap("render")
    curve = None
    if len(table) >= ENOUGH:
        curve = frc(corrected, shape)
        alone = decorrelation(image, zoom) if min(image.shape) >= 8 else None
        report["resolution"] = {
            "frc_nm": curve.resolution * pixel,
            "frc_error_nm": curve.error * pixel,
            "decorrelation_nm": alone.resolution * pixel if alone else np.nan,
        }
    lap("resolution")
    report |= medians(table)
    return Found(table, path, corrected, events, image, curve, check)


def _drift(
    table: np.ndarray, frames: int, marks: Sequence[Sequence[float]] | None
) -> tuple[Drift, Drift] | tuple[None, None]:
    """The drift and another way to find it, or nothing where nothing tells it."""
    path = fiducials(table, np.asarray(marks), BEAD, frames) if marks else drift(table, frames)
    if not np.isfinite(path.x_error).any():
        return None, None
    return path, cross_correlation(table, frames, max(2, min(16, frames // 50)))[1]


def medians(table: np.ndarray) -> dict[str, dict[str, float]]:
    """Of the usual columns, for the report; chi square where one emitter stands alone."""
    if not len(table):
        return {}
    names = [n for n in ("photons", "background", "lpx", "sigma_x") if n in table.dtype.names]
    found = {name: float(np.median(table[name])) for name in names}
    alone = table["chi2"][table["crowded"] == 0]
    return {"median": found | ({"chi2_isolated": float(np.median(alone))} if len(alone) else {})}


def write(
    folder: Path,
    source: Source,
    found: Found,
    report: dict[str, Any],
    given: Mapping[str, Any],
    psf: PSF,
    lap: Callable[[str], None],
) -> None:
    """All files, first into a temporary folder, so that a failure leaves nothing half-written."""
    shape, size, zoom = source.shape, source.camera.pixel_size, given["zoom"]
    with data.atomic_folder(folder) as temporary:
        info = {"Localize": "smlmcore", "Movie": report["movie"]["files"][0]}
        data.write_picasso(temporary / "localizations.hdf5", found.table, shape, size, info)
        data.write_picasso(temporary / "events.hdf5", found.events, shape, size, info)
        if given["csv"]:
            data.write_thunderstorm(temporary / "localizations.csv", found.table, size)
        if found.drift is not None:
            _write_drift(temporary / "drift.csv", found.drift)
        (temporary / "settings.yaml").write_text(yaml.safe_dump(dict(given), sort_keys=False), encoding="utf-8")
        save_image(temporary / "image.tif", found.image, size / zoom)
        save_image(temporary / "image.png", found.image, size / zoom)
        samples = page.samples(source, found.raw, psf)
        text = page.html(report, found, (temporary / "image.png").read_bytes(), samples, source.camera)
        lap("write")
        (temporary / "report.html").write_text(text, encoding="utf-8")
        (temporary / "report.json").write_text(json.dumps(page.finite(report), indent=2) + "\n")


def _write_drift(path: Path, d: Drift) -> None:
    """A row for each frame."""
    columns = {"x": d.x, "y": d.y, "x_error": d.x_error, "y_error": d.y_error}
    if d.z is not None:
        columns |= {"z": d.z, "z_error": d.z_error}
    rows = np.stack([np.arange(len(d.x)), *columns.values()], 1)
    formats = ["%d"] + ["%.5f"] * len(columns)
    np.savetxt(path, rows, formats, ",", header=",".join(["frame", *columns]), comments="")
