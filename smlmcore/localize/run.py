"""From movies to a table, an image and a report: `smlmcore localize`.

The chunks (`chunks`) make the table; what follows from it, and the files, are in `results`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from .. import data, fit
from ..data.remote import version, whereabouts
from ..memory import keep_freed, share_freed
from ..psf import Gaussian2D
from ..psf.base import PSF
from ..threads import short_turns
from .chunks import (
    SIGMA,
    Plan,
    begun,
    box_of,
    chunk_size,
    clear,
    compiled_before,
    compute,
    describe,
    gather,
    prepare,
    psf_of,
    teach,
)
from .finder import false_positives as rate_of
from .finder import threshold_for
from .results import finish, import_ahead, keep
from .source import Source, truth_of
from .stopwatch import Stopwatch

METHODS = ("auto", "network", "fit")
LOCALIZING = "localizing"
WIDEST = 10.0  # pixels, of the PSF
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
    clock = Stopwatch()
    paths = [movies] if isinstance(movies, str | os.PathLike) else list(movies)
    folder = Path(out)
    if folder.is_file():
        raise data.DataError(f"{folder} is a file; expected a folder for the results")
    calibration = psf if isinstance(psf, str | os.PathLike) else None
    if calibration is not None:
        from ..psf import load

        psf = load(calibration)
    known = psf is None or isinstance(psf, Gaussian2D) or learn or model is not None  # to the network
    check(psf, known, sigma, box, threshold, gap, zoom, method, model, learn, workers)
    method = method if known else "fit"
    keep_freed()
    if method == "fit":
        share_freed()
    with Source(paths, camera or {}) as source, short_turns():
        plan = Plan(
            tuple(map(whereabouts, paths)),
            tuple(map(version, paths)),
            tuple((name, (camera or {}).get(name)) for name in sorted(camera or {})),
            psf, sigma, box, threshold, false_positives, source.shape, chunk_size(source.shape), str(folder.resolve()),
            method, None if model is None else (str(Path(model).resolve()), os.stat(model).st_mtime_ns), learn,
        )  # fmt: skip
        if threshold is None:
            threshold_for(false_positives, source.shape[1:], sigma or SIGMA)  # raises for a rate that cannot be
        data.refuse_existing(folder / "localizations.hdf5", overwrite=overwrite or begun(plan))
        todo = prepare(plan)
        clock.lap("open")
        if learn:
            teach(plan, source, progress=not quiet)
            clock.lap("learn")
        psf = psf_of(plan)
        tables, width = localize(plan, source, todo, workers, scheduler, quiet)
        table, dropped = keep(tables, source.shape, width)
        clock.lap("localize")
        report = {
            **about(source, paths, tables),
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
            "dropped": dropped,
            "localizations": len(table),
            "crowded": int(table["crowded"].sum()),
        }
        given = {
            "movies": [str(p) for p in paths], "camera": dict(camera or {}), "sigma": sigma, "box": box,
            "threshold": threshold, "false_positives": false_positives, "gap": gap, "undrift": undrift,
            "marks": None if marks is None else [list(map(float, m)) for m in marks], "zoom": zoom, "csv": csv,
            "method": method, "model": None if model is None else str(model), "learn": learn,
            "psf": None if calibration is None else str(calibration),
        }  # fmt: skip
        finish(folder, source, table, truth_of(paths), psf, width, report, given, clock)
    clear(plan)
    return report


def check(
    psf: PSF | None,
    known: bool,
    sigma: float | None,
    box: int | None,
    threshold: float | None,
    gap: int,
    zoom: float,
    method: str,
    model: Any,
    learn: bool,
    workers: int | None,
) -> None:
    """Raise `ValueError` for settings that cannot be: now rather than in a worker, or at the end."""
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
    ):
        if not good:
            raise ValueError(f"localize got {name}={value!r}; expected {expected}")
    if model is not None:
        from .network import Network

        taught = Network.load(model).prior.psf  # an error as well
        if psf is not None and type(psf) is not type(taught):
            raise data.DataError(
                f"{model}: has learned {type(taught).__name__}, not {type(psf).__name__}; give no psf, or learn again"
            )


def localize(
    plan: Plan, source: Source, todo: Sequence[int], workers: int | None, scheduler: str | None, quiet: bool
) -> tuple[list[np.ndarray], float]:
    """The tables of all chunks, of which those in `todo` are still to be done, and the width of the PSF."""
    chunks = compute(plan, source, todo, workers, scheduler)
    for _ in chunks if quiet else shown(plan, todo, chunks):
        import_ahead()  # while threads are at the next chunks
    return gather(plan), float(np.load(plan.usual)[0])


def shown(plan: Plan, todo: Sequence[int], chunks: Iterable[int]) -> Iterator[int]:
    """The numbers of the `chunks` that are done, as they come, with a bar of the frames."""
    from tqdm import tqdm

    first = "compiling, once (about a minute)" if todo and not compiled_before() else LOCALIZING
    sizes = [b - a for a, b in plan.chunks]
    with tqdm(total=sum(sizes), desc=first, unit="frame", disable=None) as bar:
        bar.update(sum(sizes) - sum(sizes[n] for n in todo))
        bar.unpause()
        for number in chunks:
            bar.set_description(LOCALIZING, refresh=False)
            bar.update(sizes[number])
            yield number


def about(source: Source, paths: Sequence[str | os.PathLike[str]], tables: Sequence[np.ndarray]) -> dict[str, Any]:
    """The report's first numbers: the movie, its camera, how the fits ended."""
    frames, height, width = source.shape
    files = [Path(p).name for p in paths]
    return {
        "movie": {"files": files, "frames": frames, "height": height, "width": width},
        "camera": source.camera.describe(),
        "camera_from": source.camera_from,
        "warnings": list(source.warnings),
        "status": {s.name: sum(int((t["status"] == s).sum()) for t in tables) for s in fit.Status},
    }


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
