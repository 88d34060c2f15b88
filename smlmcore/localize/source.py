"""The frames of one or several movies as one series, with the camera that took them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from os import PathLike
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from .. import data
from ..camera import Camera, guess


class Source:
    """Movies one after another, of one size and one camera; a context manager.

    `shape` (frames, h, w); `camera` and `camera_from`, as `known_camera` has them from the first movie and the settings
    `given`; `warnings`.
    """

    def __init__(self, movies: Sequence[str | PathLike[str]], given: Mapping[str, Any]) -> None:
        if not movies:
            raise data.DataError("no movie given; name at least one file")
        self.movies, self.one_at_a_time = [], Lock()
        try:
            for path in movies:
                self.movies.append(data.open_movie(path))
            self.camera, self.camera_from = known_camera(self.movies[0], given)
            sizes = {m.shape[1:] for m in self.movies}
            if len(sizes) > 1:
                raise data.DataError(f"{movies[0]}: the movies differ in size, {sorted(sizes)}; localize them apart")
        except BaseException:
            self.close()
            raise
        self.shape = (sum(len(m) for m in self.movies), *self.movies[0].shape[1:])
        self.warnings = [w for m in self.movies for w in m.warnings]

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Frames `start` to `stop` in photoelectrons, float32, and where they are saturated (None: nowhere)."""
        parts, first = [], 0
        for movie in self.movies:
            a, b = max(start - first, 0), min(stop - first, len(movie))
            if a < b:
                with self.one_at_a_time:
                    counts = movie.read(a, b)
                parts.append((counts, self.camera.limits(movie.dtype)[1]))
            first += len(movie)
        frames = [self.camera.photoelectrons(counts) for counts, _ in parts]
        full = [counts >= top if top < np.inf and counts.max(initial=0) >= top else None for counts, top in parts]
        if len(frames) == 1:
            return np.asarray(frames[0], np.float32), full[0]
        some = any(f is not None for f in full)
        full = [np.zeros(c.shape, bool) if f is None else f for f, c in zip(full, frames, strict=True)]
        return np.concatenate(frames).astype(np.float32), np.concatenate(full) if some else None

    def close(self) -> None:
        for movie in self.movies:
            movie.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def truth_of(movies: Sequence[str | PathLike[str]]) -> np.ndarray | None:
    """The table `NAME.truth.hdf5` beside a single movie, if there is one."""
    path = Path(movies[0]).with_suffix(".truth.hdf5")
    return data.read_picasso(path)[0] if len(movies) == 1 and path.exists() else None


def known_settings(movie: data.Movie, given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a `Camera`: those `given` by name, else those of the file `given["file"]`, else the movie's metadata.

    The file is one that `Camera.save` wrote, with the maps of a sCMOS camera, say.  Raises `DataError` where it is not,
    or where its maps are not of the frames' size.
    """
    settings = {k: v for k, v in given.items() if v is not None}
    if (path := settings.pop("file", None)) is None:
        return {**movie.camera, **settings}
    camera = Camera.load(path)
    if camera.shape not in (None, movie.shape[1:]):
        raise data.DataError(
            f"{path}: its maps are of {camera.shape} pixels, the frames of {tuple(movie.shape[1:])}; cut the region "
            "out with Camera.crop"
        )
    stored = {f.name: getattr(camera, f.name) for f in fields(camera)}
    return {**movie.camera, **{k: v for k, v in stored.items() if v is not None}, **settings}


def known_camera(movie: data.Movie, given: Mapping[str, Any]) -> tuple[Camera, str]:
    """Camera from `known_settings`, else from the movie's noise; and where it is from.

    Raises `DataError` that names what is missing and why it cannot be guessed.
    """
    settings = known_settings(movie, given)
    missing = [f"--{name.replace('_', '-')}" for name in ("offset", "gain", "pixel_size") if settings.get(name) is None]
    known, reason = "the settings given and the file's metadata", ""
    if missing[:2] == ["--offset", "--gain"]:
        try:
            found = guess(movie)
            settings = {"read_noise": found.read_noise, **settings, "offset": found.offset, "gain": found.gain}
            missing, known = missing[2:], f"guessed from the noise of the movie: {found}"
        except ValueError as error:
            reason = f" ({error})"
    if missing:
        raise data.DataError(
            f"the camera is unknown: the file's metadata does not say {', '.join(missing)}{reason}; pass "
            "--offset (counts), --gain (electrons per count), --read-noise (electrons, default 0), --pixel-size (µm)"
        )
    return Camera(**settings), known
