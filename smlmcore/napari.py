"""Reader plugin of napari for the results of `smlmcore localize`: install smlmcore[napari], then drop the folder.

napari asks `get_reader` whether it knows a path, and calls what it returns.  A layer is a tuple (data, settings, kind).
Nothing of napari is imported: the manifest `napari.yaml` names this module.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import data

Layer = tuple[Any, dict[str, Any], str]


def get_reader(path: str | Sequence[str]) -> Callable[[str], list[Layer]] | None:
    """`read`, if `path` is a folder of results or the table in it; else None.

    >>> get_reader("photo.png") is None
    True
    """
    return read if isinstance(path, str | os.PathLike) and (_folder(path) / "localizations.hdf5").is_file() else None


def read(path: str | os.PathLike[str]) -> list[Layer]:
    """The layers of a result: the movie, if it lies where it was, the image, and the localizations with features.

    All are in pixels of the camera: points (frame, y, x), the image over the same field.  The movie is read frame by
    frame as it is looked at.  Raises `data.DataError` for a folder that is not whole.
    """
    import tifffile

    folder = _folder(path)
    settings = data.read_yaml(folder / "settings.yaml")
    table = data.read_picasso(folder / "localizations.hdf5")[0]
    try:
        image = tifffile.imread(folder / "image.tif")
    except (OSError, tifffile.TiffFileError) as error:
        raise data.DataError(f"{folder}: holds no image.tif that can be read ({error}); localize again") from None
    pixel = 1 / float(settings.get("zoom") or 8)
    layers: list[Layer] = []
    movies = [Path(m) for m in settings.get("movies") or []]
    if movies and all(m.exists() for m in movies):
        layers.append((Frames(movies), {"name": movies[0].stem, "colormap": "gray"}, "image"))
    place = {"scale": (pixel, pixel), "translate": ((pixel - 1) / 2,) * 2}
    layers.append((image, {"name": "reconstruction", "colormap": "inferno", "visible": False, **place}, "image"))
    points = np.stack([table[name].astype(float) for name in ("frame", "y", "x")], 1)
    features = {name: table[name] for name in table.dtype.names if name not in ("frame", "x", "y")}
    looks = {"size": 3, "face_color": "transparent", "border_color": "yellow"}
    layers.append((points, {"name": "localizations", "features": features, **looks}, "points"))
    return layers


class Frames:
    """Movies one after another as an array (frame, y, x) that is read where it is indexed."""

    def __init__(self, movies: Sequence[Path]) -> None:
        self.movies = [data.open_movie(m) for m in movies]
        self.shape = (sum(len(m) for m in self.movies), *self.movies[0].shape[1:])
        self.dtype, self.ndim = self.movies[0].dtype, 3

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        first, *rest = index if isinstance(index, tuple) else (index,)
        frames = np.arange(len(self))[first]
        out = np.stack([self._frame(int(f)) for f in np.atleast_1d(frames)]) if np.size(frames) else self._none()
        return out[(0 if np.ndim(frames) == 0 else slice(None), *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def _none(self) -> np.ndarray:
        return np.empty((0, *self.shape[1:]), self.dtype)

    def _frame(self, number: int) -> np.ndarray:
        for movie in self.movies:
            if number < len(movie):
                return movie.read(number, number + 1)[0]
            number -= len(movie)
        raise IndexError(number)


def _folder(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path.parent if path.name == "localizations.hdf5" else path
