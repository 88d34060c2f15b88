"""Files that are either whole or absent, and the one error for files that do not fit."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DataError(ValueError):
    """A file is missing, broken, or not what was asked for; the message names the file and the remedy."""


@contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on any failure or Ctrl-C.

    Readers never see half a file, and an earlier file stays as it was until the new one is complete.
    Raises `DataError` if the folder does not exist or `path` is a folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, atomic(Path(folder) / "note.txt") as temporary:
    ...     _ = temporary.write_text("hello")
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise DataError(f"{path}: its folder {path.parent} does not exist; create it first")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with _named(path, temporary):
            yield temporary
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder for several files; move them into folder `path` on success, remove it otherwise.

    A new folder appears whole, its parents are created; into one that exists, the files are moved one by one, over
    those of the same name, and others stay.  Raises `DataError` if `path` or a folder above it is a file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_folder(Path(folder) / "results") as temporary:
    ...         _ = (temporary / "note.txt").write_text("hello")
    ...     [p.name for p in Path(folder, "results").iterdir()]
    ['note.txt']
    """
    path = Path(path)
    nearest = next(p for p in (path, *path.parents) if p.exists())
    if not nearest.is_dir():
        raise DataError(f"{nearest}: is a file; give the name of a folder")
    temporary = nearest / f".{path.name}.{secrets.token_hex(4)}.part"
    with _named(path, temporary):
        temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            for file in sorted(temporary.iterdir()):
                os.replace(file, path / file.name)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _named(path: Path, temporary: Path) -> Iterator[None]:
    """In errors about `temporary`, name `path`, which is what the user knows."""
    try:
        yield
    except OSError as error:
        if error.filename == os.fspath(temporary):
            error.filename = os.fspath(path)
        raise


def refuse_existing(*paths: str | os.PathLike, overwrite: bool = False) -> None:
    """Raise `DataError` naming the first of `paths` that exists already, unless `overwrite`.

    >>> refuse_existing("surely_not_here.tif")
    """
    for path in map(Path, paths):
        if path.exists() and not overwrite:
            raise DataError(f"{path}: exists already; choose another name, or allow to overwrite it (--overwrite)")
