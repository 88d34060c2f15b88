"""The main job: a movie of blinking molecules in; a table of positions with uncertainties, a model and a report out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import backend, data, fit, plot
from ..camera import Camera
from ..psf import Gaussian2D
from ..training import Trainer
from .background import background
from .cut import cut
from .detect import detect, isolated
from .evaluate import evaluate
from .finder import find
from .render import render
from .source import known_camera, truth_of
from .stopwatch import Stopwatch

OUTPUTS = ("localizations.hdf5", "localizations.yaml", "localizations.csv", "model.npz", "report.json", "report.png")
TRAINING_STEPS = 1400  # enough for the encoder to reach the bound on a movie of any length
MOST_EPOCHS = 200  # a short movie has no more to teach
BATCH = 256


@dataclass(frozen=True)
class Spots:
    """Spots cut from a movie: `images` (n, box, box) in photoelectrons, saturated pixels NaN, and their `peaks`.

    `variance` of the read noise, a number or one for each pixel of the images.
    """

    images: np.ndarray
    peaks: np.ndarray
    found: int
    variance: Any = 0.0

    @property
    def corner(self) -> np.ndarray:
        """Movie coordinates (n, 2) as x, y of each image's top-left pixel."""
        return np.stack([self.peaks["x"], self.peaks["y"]], 1).astype(float) - self.images.shape[1] // 2


def fit_movie(
    movie: str | PathLike[str],
    out: str | PathLike[str],
    camera: Mapping[str, Any] | None = None,
    box: int = 11,
    sigma: float = 1.3,
    threshold: float = 6.0,
    epochs: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    quiet: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Find the spots of `movie`, learn a Gaussian model from them, refine, write OUTPUTS; returns the report.

    `camera`: settings that override those in the file: offset (counts), gain (electrons per count), read_noise
    (electrons), pixel_size (µm), and file, one that `Camera.save` wrote, with maps of all pixels; where neither offset
    nor gain is known they are guessed from the movie's noise (see `camera.guess`), and the report says so.  `box`: odd
    side of a spot image, pixels.  `sigma`: usual width of the PSF, pixels.  `threshold`: in units of noise.  `epochs`:
    passes over the spots, default as many as TRAINING_STEPS steps need.  `device`: "cpu" or "gpu".  Raises
    `data.DataError` if the file or what is in it does not do.

    Where a table `NAME.truth.hdf5` lies beside the movie, the report compares with it.
    """
    if device not in ("cpu", "gpu"):
        raise ValueError(f"fit_movie got device={device!r}; expected 'cpu' or 'gpu'")
    folder = check_folder(out, overwrite)
    clock = Stopwatch()
    with data.open_movie(movie) as source:
        settings, camera_from = known_camera(source, camera or {})
        spots = find_spots(source, settings, box, sigma, threshold, quiet)
        shape, warnings = source.shape, list(source.warnings)
    clock.lap("find")

    images = backend.to_gpu(spots.images) if device == "gpu" else spots.images
    variance = backend.to_gpu(spots.variance) if device == "gpu" and np.ndim(spots.variance) else spots.variance
    model = fit.gaussian2d((box, box), sigma=sigma).init(np.random.default_rng(seed))
    if device == "gpu":
        model.to_gpu()
    steps = -(-len(images) * 4 // 5 // BATCH) or 1
    trainer = Trainer(
        model,
        images,
        variance,
        epochs=min(MOST_EPOCHS, max(1, round(TRAINING_STEPS / steps))) if epochs is None else epochs,
        batch=BATCH,
        seed=seed,
        progress=not quiet,
    )
    history = trainer.run()
    clock.lap("train")

    predicted = {name: backend.to_cpu(v) for name, v in model.predict(images, variance).items()}
    with tqdm(total=len(images), desc="refining", unit="spot", disable=True if quiet else None) as bar:
        result = model.refine(images, variance, progress=bar.update).to_cpu()
    clock.lap("refine")

    table = localizations(spots, result)
    numbers, errors = evaluate(spots, predicted, result, trainer.held_out, truth_of([movie]))
    report = {
        "movie": {"file": Path(movie).name, "frames": shape[0], "height": shape[1], "width": shape[2]},
        "camera": settings.describe(),
        "camera_from": camera_from,
        "settings": {"box": box, "sigma": sigma, "threshold": threshold, "epochs": trainer.epochs, "seed": seed},
        "warnings": warnings,
        "found": spots.found,
        "spots": len(spots.images),
        "localizations": len(table),
        "status": {s.name: int((result.status == s).sum()) for s in fit.Status},
        **numbers,
    }
    report["loss"] |= {"train": history["train"][-1], "validation": min(history["validation"])}
    report["seconds"] = clock.record
    clock.lap("evaluate")
    figure = draw(report, table, shape, spots, predicted, trainer.held_out, history, errors)
    write(folder, table, settings, shape, model, report, figure)
    clock.lap("write")
    return report


def check_folder(out: str | PathLike[str], overwrite: bool) -> Path:
    """The output folder; an error before any work if it holds results already."""
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise data.DataError(f"{folder} is a file; expected a folder for the results")
    there = [name for name in OUTPUTS if (folder / name).exists()]
    if there and not overwrite:
        raise data.DataError(f"{folder} holds {there[0]} already; choose another folder or pass --overwrite")
    return folder


def find_spots(movie: data.Movie, camera: Camera, box: int, sigma: float, threshold: float, quiet: bool) -> Spots:
    """Detect and cut the isolated spots of a movie, chunk by chunk; `DataError` if there are none."""
    saturated = camera.limits(movie.dtype)[1]
    images, peaks, found = [], [], 0
    with tqdm(total=movie.shape[0], desc="finding spots", unit="frame", disable=True if quiet else None) as bar:
        for start, counts in movie.chunks():
            frames = camera.photoelectrons(counts)
            if camera.shape is None:
                seen = detect(frames, camera.variance, sigma, threshold)
            else:  # which knows what each pixel's noise is
                seen = find(frames, background(frames, camera.variance, sigma), camera.variance, sigma, threshold)
            frames[counts >= saturated] = np.nan  # bright enough to be seen, but no measure of brightness
            found += len(seen)
            spots, alone = cut(frames, seen[isolated(seen, box / 2)], box)
            alone["frame"] += start
            images.append(spots)
            peaks.append(alone)
            bar.update(len(counts))
    if sum(map(len, images)) == 0:
        raise data.DataError(
            f"no spots: {found} peaks above {threshold} times the noise, none isolated and {box // 2} pixels inside "
            "the frame; lower --threshold or --box, and check --offset and --gain"
        )
    peaks, variance = np.concatenate(peaks), camera.variance
    if np.ndim(variance):
        here = peaks.copy()
        here["frame"] = 0
        variance = cut(variance[None], here, box)[0]
    return Spots(np.concatenate(images), peaks, found, variance)


def localizations(spots: Spots, result: fit.Result) -> np.ndarray:
    """Table in movie coordinates of all fits that found a position with an uncertainty."""
    error = dict(zip(result.names, result.errors.T, strict=True))
    good = np.isfinite(error["x"]) & np.isfinite(error["y"])
    corner = spots.corner
    columns = {
        "frame": spots.peaks["frame"].astype(np.uint32),
        "x": result.x + corner[:, 0],
        "y": result.y + corner[:, 1],
        "photons": result.photons,
        "background": result.background,
        "sigma_x": result.sigma,
        "sigma_y": result.sigma,
        "lpx": error["x"],
        "lpy": error["y"],
        "photons_error": error["photons"],
        "background_error": error["background"],
        "sigma_error": error["sigma"],
        "log_likelihood": result.log_likelihood,
        "chi2": result.chi2,
        "snr": spots.peaks["snr"],
        "status": result.status,
    }
    kinds = {"frame": np.uint32, "status": np.int8}
    table = np.empty(len(good), [(name, kinds.get(name, np.float32)) for name in columns])
    for name, values in columns.items():
        table[name] = values
    return np.sort(table[good], order=["frame", "y", "x"])


def draw(report, table, shape, spots, predicted, held_out, history, errors) -> Any:
    """The report's figure, with up to eight unseen spots, from the brightest to the faintest."""
    rows = held_out if len(held_out) else np.arange(len(spots.images))
    rows = rows[np.argsort(-predicted["photons"][rows])]
    rows = rows[np.linspace(0, len(rows) - 1, min(8, len(rows))).astype(int)]
    images = spots.images[rows]
    prediction = Gaussian2D().render({name: v[rows] for name, v in predicted.items()}, images.shape[1:])
    return plot.report(report, render(table, shape[1:]), images, prediction, history, errors)


def write(
    folder: Path, table: np.ndarray, camera: Camera, shape: tuple[int, ...], model: Any, report: Any, figure: Any
) -> None:
    """All files of OUTPUTS, first into a temporary folder, so that a failure leaves nothing half-written."""
    with data.atomic_folder(folder) as temporary:
        data.write_picasso(temporary / "localizations.hdf5", table, shape, camera.pixel_size)
        data.write_thunderstorm(temporary / "localizations.csv", table, camera.pixel_size)
        model.save(temporary / "model.npz")
        figure.savefig(temporary / "report.png", dpi=110)
        (temporary / "report.json").write_text(json.dumps(report, indent=2) + "\n")
