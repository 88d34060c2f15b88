"""Images in photoelectrons for commands, and where they come from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

SETTINGS = (
    "offset", "gain", "read_noise", "pixel_size", "qe", "em_gain", "spurious_charge", "saturation", "bits"
)  # fmt: skip


def read_images(path: Path, options: dict[str, Any], usual: Any = None) -> tuple[np.ndarray, Any]:
    """All frames (n, y, x) of `path` as float32 photoelectrons, NaN where saturated; and the camera.

    Takes the camera's settings out of `options`: the camera's `file`, or numbers, which go before the file's metadata.
    Where none says anything of offset and gain, the camera is `usual`, or the images are in photoelectrons already.
    Raises `DataError` if only one of the two is known.
    """
    from .. import data
    from ..camera import Camera

    file, given = options.pop("file", None), {k: v for k in SETTINGS if (v := options.pop(k, None)) is not None}
    with data.open_movie(path) as movie:
        known = {**movie.camera, **given}
        if file is not None:
            camera = replace(Camera.load(file), **given)
        elif "offset" not in known and "gain" not in known:
            camera = replace(usual or Camera(0.0, 1.0), **known)
        elif "offset" not in known or "gain" not in known:
            name, other = ("offset", "gain") if "offset" in known else ("gain", "offset")
            raise data.DataError(f"{path}: the camera's {name} is known, but not its {other}; pass --{other}")
        else:
            camera = Camera(**known)
        counts = movie.read()
    if camera.shape not in (None, counts.shape[1:]):
        raise data.DataError(f"{path}: frames of {counts.shape[1:]}, but the camera has maps of {camera.shape}")
    images = np.asarray(camera.photoelectrons(counts), np.float32)
    top = camera.limits(counts.dtype)[1]
    if top < np.inf:
        images[counts >= top] = np.nan
    return images, camera


def write_images(path: Path, images: np.ndarray, camera: Any) -> None:
    """Images (n, y, x) in photoelectrons as a TIFF of float32, with the size of a pixel."""
    from .. import data
    from ..camera import Camera

    images = np.asarray(images, np.float32)
    data.write_tiff(path, [images], images.shape, np.float32, Camera(0.0, 1.0, pixel_size=camera.pixel_size))


def check_tiff(path: Path, overwrite: bool) -> None:
    """Raise `DataError` unless `path` may be written as TIFF."""
    from .. import data

    if path.suffix.lower() not in (".tif", ".tiff"):
        raise data.DataError(f"{path}: is written as TIFF; end its name in .tif")
    if not path.parent.is_dir():
        raise data.DataError(f"{path}: its folder {path.parent} does not exist; create it first")
    data.refuse_existing(path, overwrite=overwrite)
