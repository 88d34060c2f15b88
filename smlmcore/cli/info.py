"""`smlmcore info`: what a movie holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .options import file_or_address, show


def add(commands: Any) -> None:
    p = commands.add_parser("info", help="say what a movie holds", description="Say what a movie holds.")
    p.add_argument("movie", type=file_or_address, help="TIFF, Picasso .raw, … or https://…/movie.tif")
    p.set_defaults(run=run)


def run(movie: Path | str) -> None:
    from .. import data
    from ..data.remote import version

    with data.open_movie(movie) as file:
        frames, h, w = file.shape
        first = file.read(0, 1)
        low, middle, high = np.nanmin(first), np.nanmedian(first), np.nanmax(first)
        rows = {
            "file": movie,
            "size": f"{version(movie)[0] / 1e6:.4g} MB",
            "frames": f"{frames} of {h} x {w}",
            "dtype": file.dtype,
            "first frame": f"min {low:g}, median {middle:g}, max {high:g}",
        }
        for name, unit in (("offset", "counts"), ("gain", "e/count"), ("read_noise", "e"), ("pixel_size", "µm")):
            value = file.camera.get(name)
            rows[name] = "not in the file" if value is None else f"{value:g} {unit}"
        if file.warnings:
            rows["warning"] = "; ".join(file.warnings)
        show(rows)
