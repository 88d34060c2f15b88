"""Movies on a server: a TIFF is read by byte ranges, so that of a long movie only what is asked for comes over the net.

fsspec speaks with the server (https, and s3, gs and others with the packages that it names).
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..files import DataError
from .movie import Movie, open_tiff

PAUSE = 0.5  # seconds before a second try, twice as many before the third and last
BLOCK = 1 << 18  # bytes that are fetched at a time where a file's structure is read


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is an address such as https://server/movie.tif.

    >>> is_remote("https://server/movie.tif"), is_remote("movie.tif")
    (True, False)
    """
    return "://" in os.fspath(path)


def whereabouts(path: str | os.PathLike[str]) -> str:
    """An address, or the absolute path of a file."""
    return os.fspath(path) if is_remote(path) else str(Path(path).resolve())


def version(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Size, and a number that changes with the content: time of change, or what a server says in its place."""
    if not is_remote(path):
        state = os.stat(path)
        return state.st_size, state.st_mtime_ns
    _, info = _find(os.fspath(path))
    told = str([info.get(name) for name in ("ETag", "Last-Modified", "LastModified", "mtime", "etag")])
    return int(info["size"]), int.from_bytes(hashlib.sha256(told.encode()).digest()[:7], "big")


def open_remote(url: str) -> Movie:
    """A TIFF movie at an address, read by byte ranges.

    Raises `DataError` if it cannot be reached, or if the server sends whole files only.
    """
    files, info = _find(url)
    size = int(info["size"])

    def fetch(first: int, end: int) -> bytes:
        end = min(end, size)
        return _again(url, lambda: files.cat_file(url, start=first, end=end), end - first)

    def contiguous(dtype: np.dtype, offset: int, shape: tuple[int, int, int]) -> Callable[[int, int], np.ndarray]:
        frame = shape[1] * shape[2] * dtype.itemsize

        def read(start: int, stop: int) -> np.ndarray:
            data = fetch(offset + start * frame, offset + stop * frame)
            return np.frombuffer(data, dtype).reshape(stop - start, *shape[1:])

        return read

    from fsspec.caching import BlockCache

    file = files.open(url, "rb", size=size)
    file.cache = BlockCache(BLOCK, fetch, size)
    return open_tiff(url, file, size, contiguous)


def _find(url: str) -> tuple[Any, dict[str, Any]]:
    """fsspec's file system for an address, and what it says of the file."""
    try:
        import fsspec

        files, name = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(f"{url}: {_line(error)}; pip install 'smlmcore[files]', or copy the file") from None
    info = _again(url, lambda: files.info(name))
    if not info.get("size") or not info.get("partial", True):
        raise DataError(f"{url}: is empty, or the server sends no byte ranges; copy the file to this machine")
    return files, info


def _again(url: str, call: Callable[[], Any], size: int | None = None) -> Any:
    """What `call` returns, which may fail at first; `size`: of the bytes that it should return."""
    for pause in (PAUSE, 2 * PAUSE, None):
        try:
            found = call()
            if size is not None and len(found) < size:
                raise OSError(f"{len(found)} bytes came in place of {size}")
        except Exception as error:  # the packages behind fsspec have exceptions of their own
            reason = error.__cause__ if isinstance(error, FileNotFoundError) else error  # it hides lost connections so
            if reason is None or getattr(reason, "status", None) == 404:
                raise DataError(f"{url}: no such file; check the address") from None
            if pause is None:
                raise DataError(
                    f"{url}: the connection failed three times ({_line(reason)}); start again when it is back"
                ) from error
            time.sleep(pause)
        else:
            break
    if size is not None and len(found) > size:
        raise DataError(f"{url}: the server sends no byte ranges; copy the file to this machine")
    return found


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
