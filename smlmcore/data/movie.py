"""Movies on disk: read in chunks, never as a whole; written by chunks, whole or not at all."""

from __future__ import annotations

import logging
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import yaml

from ..camera import Camera
from ..camera.model import LIMITS, allowed
from ..files import DataError, atomic
from .pages import even

USUAL = {"qe": 1.0, "spurious_charge": 0.0}
NAMESPACE = "smlmcore/camera"  # marks our annotation in OME-XML
# A chain of pages that leads out of the file, and a description (tag 270: axes and camera) beyond its end.
BROKEN_SIGNS = ("TiffPages @", "TiffTag 270 @")
CHUNK_BYTES = 16 * 2**20
MICROMETRES = {
    "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "\\u00b5m": 1.0,
    "nm": 1e-3, "nanometer": 1e-3, "pm": 1e-6, "å": 1e-4, "mm": 1e3, "millimeter": 1e3, "cm": 1e4, "m": 1e6,
    "inch": 25400.0,
}  # fmt: skip


class Movie:
    """A movie (frame, y, x) in a file, read piece by piece.  Made by `open_movie`; also a context manager.

    `path`; `shape` (frames, height, width); `dtype` of the counts; `camera`, the settings found in the file's metadata
    (a dict with some of the settings of `camera.Camera`); `warnings`, a tuple of
    sentences about what is odd in the file.
    """

    def __init__(
        self,
        path: Path | str,
        shape: tuple[int, int, int],
        dtype: np.dtype,
        read: Callable[[int, int], np.ndarray],
        camera: dict[str, float],
        warnings: tuple[str, ...] = (),
        close: Callable[[], None] | None = None,
    ) -> None:
        self.path, self.shape, self.dtype = path, shape, dtype.newbyteorder("=")
        self.camera, self.warnings = camera, warnings
        self._read, self._close = read, close

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Frames `start` to `stop` (excluded; default: to the end) as a new array (frame, y, x) of native byte order.

        Raises `ValueError` for a range outside the movie, `DataError` for frames that cannot be decoded.
        """
        stop = self.shape[0] if stop is None else stop
        if not 0 <= start <= stop <= self.shape[0]:
            raise ValueError(f"{self.path}: got frames {start} to {stop}; expected a range within 0 to {self.shape[0]}")
        if start == stop:
            return np.empty((0, *self.shape[1:]), self.dtype)
        frames = self._read(start, stop)
        return np.ascontiguousarray(frames.astype(self.dtype, copy=not frames.flags.writeable))  # a map is not

    def chunks(self, size: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (number of the first frame, frames) over the whole movie, `size` frames at a time (default: 16 MB)."""
        frame_bytes = max(1, self.shape[1] * self.shape[2] * self.dtype.itemsize)
        size = max(1, CHUNK_BYTES // frame_bytes) if size is None else size
        if size < 1:
            raise ValueError(f"chunks got size {size}; expected at least one frame")
        for start in range(0, self.shape[0], size):
            yield start, self.read(start, min(start + size, self.shape[0]))

    def close(self) -> None:
        """Close the file; reading afterwards is an error."""
        if self._close is not None:
            self._close()

    def __enter__(self) -> Movie:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_movie(path: str | os.PathLike) -> Movie:
    """Open a movie; nothing is loaded yet: frames are read, or mapped, when they are asked for.

    TIFF (plain, BigTIFF, OME, ImageJ, Micro-Manager), Picasso `.raw` with its `.yaml`, `.npy`, `.npz`, a zip of images,
    HDF5, Zarr and OME-Zarr, NDTiff folders, and `.dax` with its `.inf`; a TIFF also at an address such as
    https://server/movie.tif, by byte ranges (see docs/files.md).

    A single image is a movie of one frame.  A third axis of a TIFF counts as frames whatever it is called, unless it
    is a colour or a channel.  Raises `DataError`, in one line with the remedy, for a file that is missing, empty,
    truncated, of another format, of complex or colour pixels, or of more than three axes.
    """
    from .formats import opener
    from .remote import is_remote, open_remote

    if is_remote(path):
        return open_remote(os.fspath(path))
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file; check the name and the folder")
    if opens := opener(path):
        return opens(path)
    if path.is_dir():
        raise DataError(f"{path}: is a folder, neither NDTiff nor Zarr; give one TIFF or Picasso .raw file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; copy or export it again")
    if path.suffix.lower() == ".raw":
        return _open_raw(path)
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic[:2] + magic[2:].strip(b"\0") not in (b"II*", b"MM*", b"II+", b"MM+"):
        raise DataError(f"{path}: is neither a TIFF nor a Picasso .raw movie; export it as TIFF")
    return open_tiff(path, path, path.stat().st_size, partial(contiguous, path))


def write_tiff(
    path: str | os.PathLike,
    chunks: Iterable[np.ndarray],
    shape: tuple[int, int, int],
    dtype: Any,
    camera: Camera | None = None,
) -> None:
    """Write a movie of `shape` (frames, height, width) as OME-TIFF (BigTIFF from 4 GB) from an iterable of chunks.

    Every chunk is (frames, height, width) of `dtype`.  The pixel size goes to PhysicalSizeX and PhysicalSizeY, the
    numbers of `camera` (not its maps) to a MapAnnotation, from where `open_movie` reads it.  The file appears
    only when it is complete.
    Raises `ValueError` if the chunks do not add up to `shape`, `OSError` if the disk is full.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_tiff(f"{folder}/m.tif", [np.ones((2, 3, 4), "uint16")], (2, 3, 4), "uint16", Camera(100, 0.5))
    ...     with open_movie(f"{folder}/m.tif") as movie: print(movie.shape, movie.camera)
    (2, 3, 4) {'offset': 100.0, 'gain': 0.5, 'read_noise': 0.0}
    """
    dtype = np.dtype(dtype)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"write_tiff got shape {tuple(shape)}; expected (frames, height, width), none of them zero")
    if dtype.kind not in "uif":
        raise ValueError(f"write_tiff got dtype {dtype}; expected an integer or a float type")
    metadata: dict[str, Any] = {"axes": "TYX"}
    if camera is not None:
        settings = {name: repr(value) for name, value in asdict(camera).items() if _worth_writing(name, value)}
        metadata["MapAnnotation"] = {"Namespace": NAMESPACE, "Value": settings}
        if camera.pixel_size is not None:
            metadata |= {f"PhysicalSize{a}{k}": v for a in "XY" for k, v in (("", camera.pixel_size), ("Unit", "µm"))}

    def frames() -> Iterator[np.ndarray]:
        count = 0
        for chunk in chunks:
            if chunk.shape[1:] != tuple(shape[1:]) or chunk.dtype != dtype:
                raise ValueError(
                    f"write_tiff got a chunk of shape {chunk.shape}, {chunk.dtype}; "
                    f"expected (frames, {shape[1]}, {shape[2]}), {dtype}"
                )
            count += len(chunk)
            if count > shape[0]:
                break
            yield from np.ascontiguousarray(chunk)
        if count != shape[0]:
            more = "more" if count > shape[0] else f"{count}"
            raise ValueError(f"write_tiff got {more} frames in all; expected {shape[0]}")

    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    with atomic(path) as temporary:
        tifffile.imwrite(
            temporary,
            frames(),
            shape=tuple(shape),
            dtype=dtype,
            bigtiff=size + 1000 * shape[0] > 2**32 - 2**25,  # each frame's header takes a few hundred bytes more
            ome=True,
            photometric="minisblack",
            metadata=metadata,
        )


@contextmanager
def _tifffile_log() -> Iterator[list[str]]:
    """Collect what tifffile logs: it reports BROKEN_SIGNS only there, and reads on with fewer frames or no metadata."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("tifffile")
    before = logger.propagate, logger.level
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = before[0]
        logger.setLevel(before[1])


def open_tiff(path: Path | str, file: Any, size: int, lying: Callable[..., Callable]) -> Movie:
    """The TIFF movie in `file`, a path or an open file, of `size` bytes; `lying` reads frames that lie in one."""
    broken = f"{path}: the TIFF file is truncated or damaged; copy or export it again"
    with ExitStack() as stack:
        try:
            with _tifffile_log() as messages:
                tif = stack.enter_context(tifffile.TiffFile(file))
                camera, count = _tiff_camera(tif), 1
                if found := even(tif):
                    (sizes, axes, offset), kind = found, tif.pages[0].dtype
                else:
                    first, count = tif.series[0], len(tif.series)
                    sizes, axes, offset, kind = first.shape, first.axes, first.dataoffset, first.dtype
            if any(sign in m for m in messages for sign in BROKEN_SIGNS):
                raise DataError(broken)
            shape = _movie_shape(path, sizes, axes)
            if kind is None or kind.kind not in "buif":
                raise DataError(f"{path}: has pixels of {kind}; expected integers or real numbers")
            dtype = kind.newbyteorder(tif.byteorder)
            pixels = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            if offset is not None and offset + pixels > size:
                raise DataError(broken)
        except (DataError, OSError, MemoryError):
            raise
        except Exception as error:  # tifffile raises struct.error, IndexError, KeyError and more on damaged files
            raise DataError(f"{broken} ({type(error).__name__}: {' '.join(str(error).split())})") from error
        several = f"{path}: holds {count} series of images; only the first is read"
        warnings = (several,) if count > 1 else ()
        if offset is not None:
            return Movie(path, shape, dtype, lying(dtype, offset, shape), camera, warnings)
        stack.pop_all()  # pages are decoded one by one from the open file

    def read(start: int, stop: int) -> np.ndarray:
        try:
            with _tifffile_log():
                return tif.asarray(key=slice(start, stop), series=0, maxworkers=1).reshape(stop - start, *shape[1:])
        except (DataError, OSError, MemoryError):
            raise
        except Exception as error:
            text = " ".join(str(error).split())
            raise DataError(
                f"{path}: frames {start} to {stop - 1} cannot be decoded ({text}); copy or export the file again, "
                "uncompressed if need be"
            ) from error

    return Movie(path, shape, dtype, read, camera, warnings, tif.close)


def contiguous(
    path: Path, dtype: np.dtype, offset: int, shape: tuple[int, int, int]
) -> Callable[[int, int], np.ndarray]:
    """Read frames that lie one after the other in a file; what was read takes no memory, as that of a map would."""
    pixels = shape[1] * shape[2]

    def read(start: int, stop: int) -> np.ndarray:
        at, count = offset + start * pixels * dtype.itemsize, (stop - start) * pixels
        frames = np.fromfile(path, dtype, count, offset=at)
        if frames.size != count:
            raise DataError(f"{path}: ends within frames {start} to {stop - 1}; copy or export it again")
        return frames.reshape(stop - start, *shape[1:])

    return read


def _movie_shape(path: Path, sizes: tuple[int, ...], axes: str) -> tuple[int, int, int]:
    """(frames, height, width) of a TIFF series, or `DataError`; axes of length one do not count."""
    named = [(a, n) for a, n in zip(axes, sizes, strict=True) if n != 1 or a in "YX"]
    text = f"{path}: has axes {axes} of sizes {tuple(sizes)}"
    if any(a in "SC" for a, _ in named):
        raise DataError(f"{text}, with several colours or channels; save one channel as (frame, y, x)")
    if len(named) > 3:
        raise DataError(f"{text}; expected one axis of frames, save one z plane or position as (frame, y, x)")
    if [a for a, _ in named[-2:]] != ["Y", "X"]:
        raise DataError(f"{text}; expected (frame, y, x)")
    return (named[0][1] if len(named) == 3 else 1, named[-2][1], named[-1][1])


def _tiff_camera(tif: tifffile.TiffFile) -> dict[str, float]:
    """The settings of `Camera` in the metadata of OME, Micro-Manager or ImageJ; what is absent or odd is left out."""
    found: dict[str, Any] = {}
    tags = tif.pages[0].tags
    if tif.is_imagej and tif.imagej_metadata and "XResolution" in tags:
        pixels, units = tags["XResolution"].value
        scale = MICROMETRES.get(str(tif.imagej_metadata.get("unit", "")).lower())
        if scale and pixels:
            found["pixel_size"] = scale * units / pixels
    if 51123 in tags and isinstance(tags[51123].value, dict):  # Micro-Manager; zero where it was not calibrated
        found["pixel_size"] = tags[51123].value.get("PixelSizeUm") or found.get("pixel_size")
    if tif.is_ome and tif.ome_metadata:
        try:
            root = ElementTree.fromstring(tif.ome_metadata)
        except ElementTree.ParseError:
            return _settings(found)
        pixels = root.find("./{*}Image/{*}Pixels")
        if pixels is not None and (size := _number(pixels.get("PhysicalSizeX"))):
            scale = MICROMETRES.get(pixels.get("PhysicalSizeXUnit", "µm").lower())
            found["pixel_size"] = size * scale if scale else None
        for entry in root.iterfind(f".//{{*}}MapAnnotation[@Namespace='{NAMESPACE}']/{{*}}Value/{{*}}M"):
            found[entry.get("K", "")] = entry.text
    return _settings(found)


def _open_raw(path: Path) -> Movie:
    sidecar = path.with_suffix(".yaml")
    if not sidecar.exists():
        raise DataError(f"{path}: needs {sidecar.name} beside it, with Data Type, Byte Order, Frames, Height and Width")
    info = read_yaml(sidecar)
    try:
        dtype = np.dtype(str(info["Data Type"])).newbyteorder(str(info.get("Byte Order", "<")))
        frames, height, width = (int(info[key]) for key in ("Frames", "Height", "Width"))
    except KeyError as error:
        raise DataError(f"{sidecar}: lacks the key {error}; add it") from None
    except (TypeError, ValueError) as error:
        raise DataError(f"{sidecar}: {error}; correct Data Type, Byte Order, Frames, Height and Width") from None
    if min(frames, height, width) < 1 or dtype.kind not in "buif":
        raise DataError(
            f"{sidecar}: describes {frames} frames of {height} x {width} pixels of {dtype}; "
            "expected positive sizes and real numbers"
        )
    size, frame = path.stat().st_size, height * width * dtype.itemsize
    warnings = ()
    if size != frames * frame:
        if size < frames * frame and size % frame:
            raise DataError(
                f"{path}: ends within frame {size // frame} of {frames}; copy it again, or correct {sidecar.name}"
            )
        held = size / frame
        warnings = (f"{path}: holds {held:g} frames where {sidecar.name} says {frames}; {min(frames, int(held))} used",)
        frames = min(frames, size // frame)
    shape = (frames, height, width)
    return Movie(path, shape, dtype, contiguous(path, dtype, 0, shape), _picasso_camera(info), warnings)


def _picasso_camera(info: dict[str, Any]) -> dict[str, float]:
    """Picasso's Baseline, Sensitivity (electrons per count), Gain (of EM) and Pixelsize (nm) as `Camera` settings."""
    found: dict[str, Any] = {"offset": info.get("Baseline")}
    sensitivity, em_gain = _number(info.get("Sensitivity")), _number(info.get("Gain", 1))
    if sensitivity and em_gain:
        found["gain"] = sensitivity / em_gain
    size = _number(info.get("Pixelsize", info.get("Camera.Pixelsize")))
    found["pixel_size"] = size / 1000 if size else None
    return _settings(found)


def _settings(found: dict[str, Any]) -> dict[str, float]:
    """Only the settings that `Camera` knows, as numbers that it accepts."""
    numbers = {name: _number(found.get(name)) for name in LIMITS}
    return {name: v for name, v in numbers.items() if v is not None and allowed(name, v)}


def _worth_writing(name: str, value: Any) -> bool:
    """Whether a setting goes into a file: maps have a file of their own, see `Camera.save`."""
    return value is not None and not isinstance(value, np.ndarray) and value != USUAL.get(name)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if isfinite(number) else None


class _Loader(yaml.SafeLoader):
    """YAML without code: Python objects, which Picasso may write into its files, are read as None."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)


def read_yaml(path: Path) -> dict[str, Any]:
    """All documents of a `.yaml`, Picasso writes several, in one dict, later ones first, or `DataError`."""
    try:
        with open(path, encoding="utf-8") as file:
            documents = list(yaml.load_all(file, _Loader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is no valid YAML ({' '.join(str(error).split())}); correct it") from None
    merged: dict[str, Any] = {}
    for document in documents:
        if isinstance(document, dict):
            merged |= document
    if not merged:
        raise DataError(f"{path}: holds no keys; expected lines of a name, a colon and a value")
    return merged
