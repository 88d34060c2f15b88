"""Movies in other files than TIFF and Picasso raw: NumPy, zip archives, HDF5, Zarr, NDTiff and .dax.

Every opener returns a `Movie` that reads frames when asked for them, and raises `DataError` for what it cannot be.
"""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from ..files import DataError
from .movie import MICROMETRES, Movie, contiguous


def open_npy(path: Path) -> Movie:
    """A NumPy array file, memory-mapped."""
    try:
        data = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: is no complete NumPy array file ({_line(error)}); save it again") from None
    return _array(path, data)


def open_npz(path: Path) -> Movie:
    """The largest array of a NumPy archive, streamed out of it."""
    try:
        archive = zipfile.ZipFile(path)
        member = max(archive.infolist(), key=lambda entry: entry.file_size)
        stream = archive.open(member)
        version = np.lib.format.read_magic(stream)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        sizes, fortran, dtype = header(stream)
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError) as error:
        raise DataError(f"{path}: is no complete NumPy archive ({_line(error)}); save it again") from None
    if fortran and len(sizes) > 1:
        raise DataError(f"{path}: {member.filename} is in Fortran order; save it with np.ascontiguousarray(...)")
    shape, start = _shape(path, sizes, dtype), stream.tell()
    frame = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize

    def read(first: int, last: int) -> np.ndarray:
        try:
            stream.seek(start + first * frame)
            content = stream.read((last - first) * frame)
            return np.frombuffer(content, dtype).reshape(last - first, *shape[1:])
        except (zipfile.BadZipFile, ValueError, EOFError) as error:
            raise DataError(
                f"{path}: frames {first} to {last - 1} cannot be read ({_line(error)}); save it again"
            ) from None

    return Movie(path, shape, dtype, read, {}, (), archive.close)


def open_zip(path: Path) -> Movie:
    """A zip archive of single images (TIFF, PNG, ...) of one size, in the natural order of their names."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: is no complete zip archive ({error}); copy it again") from None
    names = [n for n in archive.namelist() if not n.endswith("/") and not Path(n).name.startswith((".", "__"))]
    names = sorted((n for n in names if "__MACOSX" not in n), key=natural)
    if not names:
        raise DataError(f"{path}: holds no images")

    def image(name: str) -> np.ndarray:
        try:
            with archive.open(name) as member:
                if name.lower().endswith((".tif", ".tiff")):
                    return tifffile.imread(member)
                from PIL import Image

                return np.asarray(Image.open(member))
        except (OSError, ValueError, zipfile.BadZipFile, tifffile.TiffFileError) as error:
            raise DataError(
                f"{path}: {name} is no readable image ({_line(error)}); expected one image a file"
            ) from None

    first = image(names[0])
    if first.ndim != 2:
        raise DataError(f"{path}: {names[0]} has shape {first.shape}; expected images (y, x) without colours")

    def read(start: int, stop: int) -> np.ndarray:
        frames = [image(name) for name in names[start:stop]]
        for name, frame in zip(names[start:stop], frames, strict=True):
            if frame.shape != first.shape or frame.dtype != first.dtype:
                raise DataError(
                    f"{path}: {name} is {frame.shape}, {frame.dtype} and {names[0]} {first.shape}, {first.dtype}; "
                    "expected images of one size and kind"
                )
        return np.stack(frames)

    shape = _shape(path, (len(names), *first.shape), first.dtype)
    return Movie(path, shape, first.dtype, read, {}, (), archive.close)


def open_hdf5(path: Path) -> Movie:
    """The largest data set of two or three axes in an HDF5 file."""
    import h5py

    try:
        file = h5py.File(path)
        found: list[h5py.Dataset] = []
        file.visititems(lambda name, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path}: is no complete HDF5 file ({_line(error)}); copy it again") from None
    return _array(path, _largest(path, [d for d in found if d.dtype.kind in "buif"]), file.close)


def open_zarr(path: Path) -> Movie:
    """A Zarr array, or the largest array in a Zarr group such as an OME-Zarr image; needs the package zarr."""
    try:
        import zarr
    except ImportError:
        raise DataError(f"{path}: is a Zarr store; pip install 'smlmcore[files]' to read it") from None
    try:
        store = zarr.open(path, mode="r")
        whole = isinstance(store, zarr.Array)
        found = {store.path: store} if whole else dict(store.members(max_depth=None))
        arrays = {name: a for name, a in found.items() if isinstance(a, zarr.Array)}
        data = _largest(path, list(arrays.values()))
        name = next(n for n, a in arrays.items() if a is data)
        groups = {"": store, **found}
        return _array(path, data, None, {} if whole else _ome_scale(groups[name.rpartition("/")[0]].attrs))
    except DataError:
        raise
    except Exception as error:  # zarr raises many kinds for stores that are broken
        raise DataError(f"{path}: is no readable Zarr store ({_line(error)})") from None


def _ome_scale(attributes: Mapping[str, Any]) -> dict[str, float]:
    """The pixel size that OME-Zarr's metadata (0.4 or 0.5) states of the image in full size, if they do, in µm."""
    try:
        image = attributes.get("ome", attributes)["multiscales"][0]
        axis = [a["name"] for a in image["axes"]].index("x")
        unit = MICROMETRES[image["axes"][axis]["unit"].lower()]
        changes = [*image["datasets"][0]["coordinateTransformations"], *image.get("coordinateTransformations", [])]
        scale = math.prod(float(c["scale"][axis]) for c in changes if c["type"] == "scale")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return {}
    return {"pixel_size": unit * scale} if 0 < scale < math.inf else {}


def open_ndtiff(path: Path) -> Movie:
    """A folder that Micro-Manager wrote as NDTiff: the images of one channel, z and position, along time."""
    index = path / "NDTiff.index"
    try:
        entries = [(dict(e[0]), *e[1:]) for e in tifffile.read_ndtiff_index(index)]
    except Exception as error:
        raise DataError(f"{index}: is no readable index ({_line(error)}); copy the folder again") from None
    if not entries:
        raise DataError(f"{index}: names no images")
    varying = {k for e in entries for k in e[0] if len({str(o[0].get(k)) for o in entries}) > 1}
    if not varying <= {"time"}:
        raise DataError(f"{path}: varies in {', '.join(sorted(varying))}; expected time alone, export one as TIFF")
    entries.sort(key=lambda e: e[0].get("time", 0))
    _, _, _, width, height, kind, compression, *_ = entries[0]
    if compression:
        raise DataError(f"{path}: is compressed; export it as plain TIFF")
    dtype = np.dtype({0: "u1", 1: "u2", 3: "u2", 4: "u2", 5: "u2", 6: "u2"}.get(kind, "V"))
    shape = _shape(path, (len(entries), height, width), dtype)

    def read(start: int, stop: int) -> np.ndarray:
        out = np.empty((stop - start, height, width), dtype)
        for i, (_, name, offset, *_) in enumerate(entries[start:stop]):
            file = path / name
            if not file.is_file() or file.stat().st_size < offset + out[i].nbytes:
                raise DataError(f"{file}: is missing or truncated; copy the folder again")
            out[i] = np.fromfile(file, dtype, height * width, offset=offset).reshape(height, width)
        return out

    return Movie(path, shape, dtype, read, {})


def open_dax(path: Path) -> Movie:
    """A .dax movie of 16-bit counts with its .inf, which tells size, number of frames and byte order."""
    sidecar = path.with_suffix(".inf")
    if not sidecar.exists():
        raise DataError(f"{path}: needs {sidecar.name} beside it, with frame dimensions and number of frames")
    text = sidecar.read_text(encoding="latin-1")
    size = re.search(r"frame dimensions\s*=\s*(\d+)\s*x\s*(\d+)", text)
    frames = re.search(r"number of frames\s*=\s*(\d+)", text)
    if not size or not frames:
        raise DataError(f"{sidecar}: lacks 'frame dimensions = W x H' or 'number of frames = N'; add it")
    little = "little endian" in text.lower()
    width, height, stated = int(size[1]), int(size[2]), int(frames[1])
    dtype = np.dtype("<u2" if little else ">u2")
    if min(width, height, stated) < 1:
        raise DataError(f"{sidecar}: describes {stated} frames of {height} x {width}; expected positive sizes")
    held, rest = divmod(path.stat().st_size, 2 * width * height)
    if held < stated and (rest or held == 0):
        raise DataError(f"{path}: ends within frame {held} of {stated}; copy it again, or correct {sidecar.name}")
    used = min(held, stated)
    odd = f"{path}: holds {held} frames where {sidecar.name} says {stated}; {used} used"
    warnings = () if held == stated else (odd,)
    shape = (used, height, width)
    return Movie(path, shape, dtype, contiguous(path, dtype, 0, shape), {}, warnings)


OPENERS: dict[str, Callable[[Path], Movie]] = {
    ".npy": open_npy, ".npz": open_npz, ".zip": open_zip, ".h5": open_hdf5, ".hdf5": open_hdf5, ".hdf": open_hdf5,
    ".ims": open_hdf5, ".zarr": open_zarr, ".dax": open_dax,
}  # fmt: skip


def natural(name: str) -> list[Any]:
    """Key that sorts numbers in names by value: image2 before image10.

    >>> sorted(["image10.tif", "image2.tif"], key=natural)
    ['image2.tif', 'image10.tif']
    """
    return [int(part) if part.isdigit() else part.lower() for part in re.split(r"(\d+)", name)]


def _largest(path: Path, arrays: list[Any]) -> Any:
    flat = [a for a in arrays if sum(n != 1 for n in a.shape) in (2, 3) and a.ndim >= 2]
    if not flat:
        found = ", ".join(str(tuple(a.shape)) for a in arrays) or "no arrays"
        raise DataError(f"{path}: holds {found}; expected one array (frame, y, x)")
    return max(flat, key=lambda a: int(np.prod(a.shape, dtype=np.int64)))


def _array(
    path: Path, data: Any, close: Callable[[], None] | None = None, camera: dict[str, float] | None = None
) -> Movie:
    """A movie over what slices like an array (frame, y, x), also with axes of length one between, or is one image."""
    shape, camera = _shape(path, data.shape, data.dtype), camera or {}
    lead: list[Any] = [0] * (data.ndim - 2)
    if not lead:
        return Movie(path, shape, data.dtype, lambda start, stop: np.asarray(data[...])[None], camera, (), close)
    along = next((i for i, n in enumerate(data.shape[:-2]) if n != 1), len(lead) - 1)

    def read(start: int, stop: int) -> np.ndarray:
        return np.asarray(data[*lead[:along], start:stop, *lead[along + 1 :]])

    return Movie(path, shape, data.dtype, read, camera, (), close)


def _shape(path: Path, sizes: tuple[int, ...], dtype: np.dtype) -> tuple[int, int, int]:
    if np.dtype(dtype).kind not in "buif":
        raise DataError(f"{path}: has pixels of {dtype}; expected integers or real numbers")
    if len(sizes) < 2 or min(sizes) < 1 or sum(n != 1 for n in sizes[:-2]) > 1:
        raise DataError(f"{path}: has shape {tuple(sizes)}; expected (frame, y, x), none of them zero")
    if len(sizes) >= 3 and sizes[-1] in (3, 4) and sizes[-2] > 8:
        raise DataError(f"{path}: has shape {tuple(sizes)}, like colours; save one channel as (frame, y, x)")
    return math.prod(map(int, sizes[:-2])), int(sizes[-2]), int(sizes[-1])


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def opener(path: str | os.PathLike) -> Callable[[Path], Movie] | None:
    """The function that opens `path`, by what it is named; None for TIFF and Picasso raw."""
    path = Path(path)
    if path.is_dir() and (path / "NDTiff.index").exists():
        return open_ndtiff
    if path.is_dir() and any((path / name).exists() for name in ("zarr.json", ".zarray", ".zgroup")):
        return open_zarr
    return None if path.is_dir() else OPENERS.get(path.suffix.lower())
