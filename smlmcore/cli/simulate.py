"""`smlmcore simulate`: a movie with its truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from .options import camera_arguments, number, output_arguments, show


def add(commands: Any) -> None:
    p = commands.add_parser(
        "simulate",
        help="write a movie of isolated molecules with its truth",
        description="Write a movie OUT.tif of isolated molecules, and its truth beside it as OUT.truth.hdf5 (Picasso).",
    )
    p.add_argument("out", type=Path, metavar="OUT.tif", help="movie to write, OME-TIFF")
    number(p, "--frames", int, "number of frames", 1000)
    number(p, "--shape", int, "size of a frame, pixels", (128, 128), metavar=("H", "W"))
    number(p, "--spots-per-frame", int, "molecules in each frame (default: 30 per 128 x 128 pixels)")
    p.add_argument("--config", type=Path, metavar="FILE.yaml", help="structures, blinking, drift; for all below")
    p.add_argument("--structure", choices=("filaments", "uniform"), default="uniform", help="where the molecules are")
    number(p, "--photons", float, "median photons of a molecule", 2000.0)
    number(p, "--background", float, "photons per pixel", (5.0, 15.0), metavar=("LOW", "HIGH"))
    number(p, "--sigma", float, "width of the PSF, pixels", (1.1, 1.5), metavar=("LOW", "HIGH"))
    number(p, "--seed", int, "seed of all random numbers", 0)
    camera_arguments(p, offset=100.0, gain=0.5, read_noise=1.5, pixel_size=0.1)
    output_arguments(p)
    p.set_defaults(run=run)


def run(
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
    from .. import data, simulate
    from ..camera import Camera

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
        show({"movie": out, "truth": truth_path, "frames": f"{frames} of {h} x {w}", "spots": len(truth)})


def _simulate_config(out: Path, config: Path, truth_path: Path, quiet: bool) -> None:
    from .. import data, simulate

    if not config.is_file():
        raise data.DataError(f"{config}: no such file; check the name and the folder")
    movie, rng = simulate.from_config(data.read_yaml(config))
    shape = (movie.frames, *movie.shape)
    data.write_tiff(out, _shown(movie.chunks(rng), movie.frames, quiet), shape, np.uint16, movie.camera)
    data.write_picasso(truth_path, movie.truth, shape, movie.camera.pixel_size, {"Movie": out.name})
    if not quiet:
        size = f"{shape[0]} of {shape[1]} x {shape[2]}"
        show({"movie": out, "truth": truth_path, "frames": size, "emitters": len(movie.truth)})


def _shown(chunks: Iterator[np.ndarray], frames: int, quiet: bool) -> Iterator[np.ndarray]:
    """The same chunks, with a bar of progress where stderr is a terminal; the first is drawn before a file is begun."""
    return _with_bar(next(chunks), chunks, frames, quiet)


def _with_bar(first: np.ndarray, chunks: Iterator[np.ndarray], frames: int, quiet: bool) -> Iterator[np.ndarray]:
    from tqdm import tqdm

    with tqdm(total=frames, unit="frame", disable=True if quiet else None, leave=False) as bar:
        for chunk in chain([first], chunks):
            yield chunk
            bar.update(len(chunk))
