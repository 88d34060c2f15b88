"""From images of beads to a PSF: the job behind `smlmcore calibrate`.

    beads = find_beads(stack, camera, box=25)           # (beads, z, y, x) in photoelectrons
    report = calibrate(["beads.tif"], "out", dz=0.05)   # psf.npz, report.json, report.png

Finding, cutting and checking are the same for every kind of PSF; `MODELS` says how each kind is learned from beads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from . import data, fit, plot
from .camera import Camera
from .localize.cut import cut
from .localize.detect import detect, isolated
from .localize.source import known_settings
from .psf import PSF, beads, retrieve

OUTPUTS = ("psf.npz", "report.json", "report.png")
CHECKED = 21  # side of the images with which the PSF is checked, pixels, at most


@dataclass(frozen=True)
class Beads:
    """Bead stacks (beads, z, y, x) in photoelectrons, with the file and the place (x, y) of the middle of each."""

    stacks: np.ndarray
    places: np.ndarray
    files: tuple[str, ...]


def find_beads(
    stack: Any, box: int = 25, sigma: float = 1.5, threshold: float = 20.0, variance: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Bead stacks (beads, z, box, box) cut from `stack` (z, y, x) in photoelectrons, and places (beads, 2) = x, y.

    Beads are peaks of the sum over all slices, above `threshold` times its noise, that have no neighbour within their
    box and all of it inside the image.  `sigma`: usual width, pixels; `variance` of the read noise.

    >>> rng = np.random.default_rng(0)
    >>> stack = rng.poisson(5.0, (6, 40, 40)).astype(float)
    >>> stack[:, 18:21, 21:24] += 100
    >>> find_beads(stack, box=11)[1]
    array([[22, 19]])
    """
    stack = np.asarray(stack, np.float32)
    if stack.ndim != 3 or len(stack) < 4:
        raise ValueError(f"find_beads got a stack of shape {stack.shape}; expected (z, y, x) with 4 slices or more")
    if not (isinstance(box, int | np.integer) and box >= 7 and box % 2):
        raise ValueError(f"find_beads got box = {box!r}; expected an odd number of pixels, at least 7")
    total = np.nansum(stack, 0)
    seen = detect(total, len(stack) * variance, sigma, threshold, radius=box // 4)
    alone = seen[isolated(seen, box / np.sqrt(2))]
    if not len(alone):
        return np.empty((0, len(stack), box, box), np.float32), np.empty((0, 2), int)
    peaks = np.repeat(alone, len(stack))
    peaks["frame"] = np.tile(np.arange(len(stack)), len(alone))
    images, kept = cut(stack, peaks, int(box))
    stacks = images.reshape(-1, len(stack), box, box)
    places = np.stack([kept["x"], kept["y"]], 1)[:: len(stack)].astype(int)
    whole = np.isfinite(stacks).all((1, 2, 3))
    return stacks[whole], places[whole]


def read_beads(
    paths: Sequence[str | PathLike[str]],
    camera: Mapping[str, float | None] | None = None,
    box: int = 25,
    sigma: float = 1.5,
    threshold: float = 20.0,
    quiet: bool = True,
) -> tuple[Beads, Camera]:
    """The beads of one or more z-stacks in files; saturated beads are left out.  `DataError` if there are none."""
    stacks, places, files, settings = [], [], [], None
    for path in tqdm(paths, desc="finding beads", unit="stack", disable=True if quiet else None, leave=False):
        with data.open_movie(path) as source:
            settings = _camera(path, source, camera or {})
            counts = source.read(0, source.shape[0])
        photoelectrons = settings.photoelectrons(counts)
        photoelectrons[counts >= settings.limits(counts.dtype)[1]] = np.nan
        found, where = find_beads(photoelectrons, box, sigma, threshold, settings.variance)
        if stacks and found.shape[1] != stacks[0].shape[1]:
            raise data.DataError(
                f"{path}: has {found.shape[1]} slices, {paths[0]} {stacks[0].shape[1]}; give equal stacks"
            )
        stacks.append(found)
        places.append(where)
        files += [Path(path).name] * len(found)
    if not files or settings is None:
        raise data.DataError(
            f"no beads: no peak of the summed stack is {threshold} times above the noise, alone within {box} pixels "
            "and inside the image; lower --threshold or --box, and check --offset and --gain"
        )
    return Beads(np.concatenate(stacks), np.concatenate(places), tuple(files)), settings


def _camera(path: Any, source: Any, given: Mapping[str, float | None]) -> Camera:
    settings = known_settings(source, given)
    missing = [name for name in ("offset", "gain") if settings.get(name) is None]
    if missing:
        raise data.DataError(
            f"{path}: its metadata does not tell the camera's {' and '.join(missing)}; pass --offset (counts) and "
            "--gain (electrons per count)"
        )
    return Camera(**settings)


# ---------------------------------------------------------------- how each kind of PSF is learned


@dataclass(frozen=True)
class Learned:
    """A PSF from beads, the z (beads, slices) in um at which each slice shows it, and what else to report."""

    psf: Any
    z: np.ndarray
    used: np.ndarray
    numbers: dict[str, Any]
    figure: Callable[[], Any] | None = None


def _spline(found: Beads, dz: float, smooth: float) -> Learned:
    psf, registered = beads.spline(found.stacks, dz, smooth)
    slices = np.arange(found.stacks.shape[1]) - (found.stacks.shape[1] - 1) / 2
    z = (slices[None] - registered.place[:, :1]) * dz
    numbers = {
        "beads": [
            {
                "file": file,
                "x": round(float(place[0] + shift[2]), 3),
                "y": round(float(place[1] + shift[1]), 3),
                "z": round(float(-shift[0] * dz), 4),
                "photons": round(float(photons), 1),
                "correlation": round(float(correlation), 4),
                "used": bool(used),
            }
            for file, place, shift, photons, correlation, used in zip(
                found.files,
                found.places,
                registered.place,
                registered.photons,
                registered.correlation,
                registered.used,
                strict=True,
            )
        ]
    }
    return Learned(psf, z, registered.used, numbers)


def _pupil(found: Beads, dz: float, **settings: Any) -> Learned:
    psf = retrieve(found.stacks, dz, **settings)
    report = psf.report
    numbers = report.summary()
    half = found.stacks.shape[-1] // 2
    for bead, file, (x, y) in zip(numbers["beads"], found.files, found.places.tolist(), strict=True):
        bead |= {"file": file, "x": bead["x"] + x - half, "y": bead["y"] + y - half, "used": True}
    z = report.z_planes + report.z[:, None]
    return Learned(psf, z, np.ones(len(found.stacks), bool), numbers, report.figure)


MODELS: dict[str, Callable[..., Learned]] = {"spline": _spline, "pupil": _pupil}

# ---------------------------------------------------------------- the job


def calibrate(
    paths: Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    dz: float,
    psf: str = "spline",
    camera: Mapping[str, float | None] | None = None,
    box: int = 25,
    sigma: float = 1.5,
    threshold: float = 20.0,
    smooth: float = 0.1,
    quiet: bool = True,
    overwrite: bool = False,
    optics: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Learn a PSF from z-stacks of beads, write OUTPUTS into the folder `out`, return the report.

    `dz`: distance of the slices, um; `psf`: one of MODELS; `camera`: settings that override those in the files;
    `box`: odd side of the beads' images, pixels; `smooth`: um along z, of a spline; `optics`: arguments of
    `psf.retrieve`, for a pupil.  The report tells how precisely the PSF finds
    the z of its own beads' slices, and the Cramér-Rao bound at 1000 photons over the depth.
    """
    if psf not in MODELS:
        raise ValueError(f"calibrate got psf={psf!r}; expected one of {', '.join(MODELS)}")
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise data.DataError(f"{folder} is a file; expected a folder for the results")
    data.refuse_existing(*(folder / name for name in OUTPUTS), overwrite=overwrite)
    found, settings = read_beads(paths, camera, box, sigma, threshold, quiet)
    own = {"smooth": smooth}
    if psf == "pupil":
        camera_ = {"pixel_size": settings.pixel_size, "variance": float(np.mean(settings.variance))}
        own = {**camera_, "progress": not quiet, **(optics or {})}
    learned = MODELS[psf](found, dz, **own)
    check = _check(found, learned, settings.variance)
    depth = np.linspace(*learned.psf.z_range, 41)
    bound = _bound(learned.psf, depth)
    report = {
        "psf": psf,
        "files": sorted(set(found.files)),
        "slices": found.stacks.shape[1],
        "settings": {"dz": dz, "box": box, "sigma": sigma, "threshold": threshold, "smooth": smooth},
        "camera": {"offset": settings.offset, "gain": settings.gain, "read_noise": settings.read_noise},
        "found": len(found.stacks),
        "used": int(learned.used.sum()),
        "z_range": [round(v, 4) for v in learned.psf.z_range],
        "slices_fitted": check["fitted"],
        "rms_z_error": check["rms"],
        "crlb_z_1000_photons": {"z": depth.round(4).tolist(), "error": [_number(v) for v in bound[:, 2]]},
        **learned.numbers,
    }
    figure = (learned.figure or (lambda: plot.calibration(learned.psf, depth, bound, check["z"], check["error"])))()
    with data.atomic_folder(folder) as temporary:
        learned.psf.save(temporary / "psf.npz")
        figure.savefig(temporary / "report.png", dpi=110)
        (temporary / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def _check(found: Beads, learned: Learned, variance: float) -> dict[str, Any]:
    """Every slice of the beads that were used, fitted with the PSF: its z beside that of the stage."""
    stacks = found.stacks[learned.used]
    cut_off = max(0, (stacks.shape[2] - CHECKED) // 2)
    inner = slice(cut_off, stacks.shape[2] - cut_off)
    images = np.ascontiguousarray(stacks[:, :, inner, inner].reshape(-1, *stacks[0, 0, inner, inner].shape))
    result = fit.mle(images, learned.psf, variance=variance, progress=False)
    z = learned.z[learned.used].ravel()
    low, high = learned.psf.z_range
    margin = 0.1 * (high - low)  # at the ends a fit cannot go further
    good = (result.status == fit.Status.converged) & (z > low + margin) & (z < high - margin)
    error = result.z[good] - z[good]
    rms = _number(np.sqrt(np.mean(error**2))) if good.any() else None
    return {"fitted": int(good.sum()), "rms": rms, "z": z[good], "error": error}


def _bound(psf: PSF, depth: np.ndarray) -> np.ndarray:
    theta = np.zeros((len(depth), 5))
    theta[:, :2], theta[:, 2], theta[:, 3:] = (CHECKED - 1) / 2, depth, (1000.0, 5.0)
    return psf.crlb(theta, (CHECKED, CHECKED))


def _number(v: Any) -> float | None:
    return round(float(v), 5) if np.isfinite(v) else None
