"""Options that commands share, and how they show numbers."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def number(p: argparse.ArgumentParser, name: str, kind: type, text: str, default: Any = None, **options: Any) -> None:
    """A numerical option; a tuple as default makes it take as many values."""
    if isinstance(default, tuple):
        options["nargs"] = len(default)
    if default is not None:
        text += f" (default: {' '.join(map(str, default)) if isinstance(default, tuple) else default})"
    p.add_argument(name, type=kind, help=text, default=default, **{"metavar": "N", **options})


def file_or_address(text: str) -> Path | str:
    """A path, but https://server/movie.tif as it is: a path would take a slash out of it."""
    return text if "://" in text else Path(text)


def camera_arguments(p: argparse.ArgumentParser, **defaults: float) -> None:
    """What a camera needs to turn counts into photoelectrons."""
    for name, text in (
        ("offset", "counts of the camera in the dark"),
        ("gain", "electrons per count"),
        ("read_noise", "standard deviation of the read noise, electrons"),
        ("pixel_size", "size of a pixel in the sample, µm"),
    ):
        number(p, f"--{name.replace('_', '-')}", float, text, defaults.get(name))


def image_arguments(p: argparse.ArgumentParser) -> None:
    """A camera by numbers or by file; for commands that take images in photoelectrons as well."""
    group = p.add_argument_group("camera", "Without any, the images' metadata; without these, they are photoelectrons.")
    camera_file(group)
    camera_arguments(group)


def camera_file(p: argparse.ArgumentParser) -> None:
    """A camera with maps, as `Camera.save` writes it; single settings given beside it come before."""
    p.add_argument("--camera", dest="file", metavar="FILE.npz", help="a camera and its maps, as Camera.save writes it")


def output_arguments(p: argparse.ArgumentParser) -> None:
    """Whether to overwrite, and whether to speak."""
    p.add_argument("--overwrite", action="store_true", help="replace files that exist")
    p.add_argument("--quiet", action="store_true", help="say nothing but errors")


@contextmanager
def loading() -> Iterator[None]:
    """Within, modules are imported: the garbage collector would look through all that they make, again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def show(rows: dict[str, Any], literal: bool = False) -> None:
    """Write `rows` to stdout as two columns, the names as words unless `literal`."""
    width = max(map(len, rows), default=0)
    for name, value in rows.items():
        sys.stdout.write(f"{name if literal else name.replace('_', ' '):{width}}  {value}\n")
