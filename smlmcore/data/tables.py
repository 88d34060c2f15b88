"""Tables of localizations, one row each: NumPy structured arrays, Picasso HDF5 and ThunderSTORM CSV.

Our fields are `frame` (from 0), `x`, `y` (pixels; the centre of the top-left pixel is (0, 0)), `z` (µm), `photons`,
`background` (photons per pixel), `sigma_x`, `sigma_y` (pixels), `lpx`, `lpy` (standard errors of x, y, pixels),
`lpz` (µm) and any other numeric column.

Picasso uses the same pixel coordinates, calls background `bg`, sigma `sx`, `sy`, and gives z in nm.  ThunderSTORM
counts frames from 1 and measures x, y in nm from the outer corner of the top-left pixel: x_nm = (x + 1/2) pixel size
(Ovesný et al. 2014, Bioinformatics 30, 2389; its fitter adds 0.5 to the pixel index).
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..files import DataError, atomic
from .movie import read_yaml

PICASSO = {"background": "bg", "sigma_x": "sx", "sigma_y": "sy"}  # our name: theirs, where they differ
NANOMETRES = {"z": 1000.0, "lpz": 1000.0}  # ours are in µm, theirs in nm
THUNDERSTORM = {  # their column: our field, where one follows from the other by a unit
    "sigma1 [nm]": "sigma_x",
    "sigma2 [nm]": "sigma_y",
    "z [nm]": "z",
    "intensity [photon]": "photons",
    "offset [photon]": "background",
    "uncertainty_z [nm]": "lpz",
}
UNCERTAINTY = ("uncertainty_xy [nm]", "uncertainty [nm]")  # newer and older ThunderSTORM


def table(**columns: Any) -> np.ndarray:
    """A structured array of the given columns, each (n,) or a scalar; `frame` becomes uint32, all else keeps its type.

    Raises `ValueError` if the columns differ in length or are not one-dimensional.

    >>> table(frame=[0, 1], x=np.float32([2.5, 3]), photons=100.0)[1]
    np.void((1, 3.0, 100.0), dtype=[('frame', '<u4'), ('x', '<f4'), ('photons', '<f8')])
    """
    arrays = {name: np.asarray(v, np.uint32 if name == "frame" else None) for name, v in columns.items()}
    shapes = {name: a.shape for name, a in arrays.items()}
    lengths = {shape for shape in shapes.values() if shape}
    if len(lengths) > 1 or any(len(shape) != 1 for shape in lengths):
        raise ValueError(f"table got columns of shapes {shapes}; expected one length (n,), or scalars")
    n = lengths.pop()[0] if lengths else 1
    out = np.empty(n, [(name, a.dtype) for name, a in arrays.items()])
    for name, a in arrays.items():
        out[name] = a
    return out


def take(rows: np.ndarray, index: Any) -> np.ndarray:
    """`rows[index]` as a copy, whole rows at a time: NumPy by itself copies field by field, for five times as long.

    >>> take(table(frame=[0, 1, 2], x=[2.5, 3.0, 4.5]), [2, 0])["x"]
    array([4.5, 2.5])
    """
    return _whole(rows)[index].view(rows.dtype)


def join(tables: Sequence[np.ndarray]) -> np.ndarray:
    """Tables with the same columns one after the other, as quickly as `take`.

    >>> join([table(frame=[0], x=[2.5]), table(frame=[1], x=[3.0])])["x"]
    array([2.5, 3. ])
    """
    return np.concatenate([_whole(t) for t in tables]).view(tables[0].dtype)


def _whole(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows).view(f"V{rows.dtype.itemsize}")


def write_picasso(
    path: str | os.PathLike,
    rows: np.ndarray,
    shape: tuple[int, int, int],
    pixel_size: float | None = None,
    info: Mapping[str, Any] | None = None,
) -> None:
    """Write `rows` as Picasso HDF5 (dataset `locs`, real columns float32) with its `.yaml` beside it.

    `shape` is that of the movie, (frames, height, width); `pixel_size` in µm; `info` goes into the `.yaml` as well.
    Missing `lpx`, `lpy` are written as 0, because Picasso's Render asks for them.  When it opens a file, Picasso drops
    rows with a NaN or with negative x or y; `read_picasso` keeps them.  Raises `ValueError` if frame, x or y is absent.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_picasso(f"{folder}/a.hdf5", table(frame=[3], x=[1.5], y=[2.0]), (9, 32, 32), pixel_size=0.1)
    ...     read_picasso(f"{folder}/a.hdf5")[1]["Pixelsize"]
    100.0
    """
    import h5py

    path, names = Path(path), check_fields("write_picasso", rows)
    columns = {n: rows[n] for n in names} | {n: np.zeros(len(rows)) for n in ("lpx", "lpy") if n not in names}
    kinds = {n: np.float32 if c.dtype.kind == "f" else c.dtype for n, c in columns.items()} | {"frame": np.uint32}
    if rows.dtype == np.dtype([*kinds.items()]) and not NANOMETRES.keys() & kinds.keys():  # only names differ
        stored = np.ascontiguousarray(rows).view([(PICASSO.get(n, n), kind) for n, kind in kinds.items()])
    else:
        stored = table(
            **{
                PICASSO.get(n, n): (c * NANOMETRES.get(n, 1)).astype(np.float32) if c.dtype.kind == "f" else c
                for n, c in columns.items()
            }
        )
    frames, height, width = map(int, shape)
    text: dict[str, Any] = {"Generated by": "smlmcore", "Frames": frames, "Height": height, "Width": width}
    if pixel_size is not None:
        text["Pixelsize"] = float(pixel_size) * 1000
    with atomic(path) as data, atomic(path.with_suffix(".yaml")) as sidecar:
        with h5py.File(data, "w") as file:
            file.create_dataset("locs", data=stored)
        sidecar.write_text(yaml.safe_dump({**text, **(info or {})}, sort_keys=False), encoding="utf-8")


def read_picasso(path: str | os.PathLike) -> tuple[np.ndarray, dict[str, Any]]:
    """The table of a Picasso HDF5 file, with our names and units, and its `.yaml` as one dict ({} where absent).

    Raises `DataError` for a file that is missing, no HDF5, or without `locs` of at least frame, x, y.
    """
    import h5py

    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the name and the folder")
    try:
        with h5py.File(path) as file:
            stored = file["locs"][()]
    except (OSError, KeyError) as error:
        raise DataError(f"{path}: is no Picasso HDF5 file with a dataset locs ({error})") from None
    ours = {theirs: name for name, theirs in PICASSO.items()}
    if stored.dtype.names is None or not {"frame", "x", "y"} <= set(stored.dtype.names):
        raise DataError(f"{path}: locs has fields {stored.dtype.names}; expected at least frame, x, y")
    columns = {ours.get(n, n): stored[n] for n in stored.dtype.names}
    columns |= {n: columns[n] / columns[n].dtype.type(f) for n, f in NANOMETRES.items() if n in columns}
    rows = table(**columns)
    sidecar = path.with_suffix(".yaml")
    return rows, read_yaml(sidecar) if sidecar.exists() else {}


def write_thunderstorm(path: str | os.PathLike, rows: np.ndarray, pixel_size: float) -> None:
    """Write `rows` as ThunderSTORM CSV; `pixel_size` in µm (frames from 1, x and y from the pixel's outer corner).

    One column `sigma [nm]` where sigma_x = sigma_y, else `sigma1 [nm]` and `sigma2 [nm]`; `bkgstd [photon]` is
    √background; `uncertainty_xy [nm]` is the root mean square of lpx and lpy.  Values keep five digits after the point.
    Raises `ValueError` if `rows` lacks frame, x, y or `pixel_size` is not positive.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_thunderstorm(f"{folder}/a.csv", table(frame=[0], x=[0.0], y=[1.0]), pixel_size=0.1)
    ...     print(Path(f"{folder}/a.csv").read_text())
    "id","frame","x [nm]","y [nm]"
    1,1,50.00000,150.00000
    """
    names, nm = check_fields("write_thunderstorm", rows), nanometres("write_thunderstorm", pixel_size)
    columns: dict[str, np.ndarray] = {"id": np.arange(1, len(rows) + 1), "frame": rows["frame"].astype(np.int64) + 1}
    columns |= {f"{n} [nm]": (rows[n].astype(float) + 0.5) * nm for n in ("x", "y")}
    if "z" in names:
        columns["z [nm]"] = rows["z"] * 1000.0
    if "sigma_x" in names and ("sigma_y" not in names or np.array_equal(rows["sigma_x"], rows["sigma_y"], True)):
        columns["sigma [nm]"] = rows["sigma_x"] * nm
    elif "sigma_x" in names:
        columns |= {"sigma1 [nm]": rows["sigma_x"] * nm, "sigma2 [nm]": rows["sigma_y"] * nm}
    if "photons" in names:
        columns["intensity [photon]"] = rows["photons"]
    if "background" in names:
        columns["offset [photon]"] = rows["background"]
        columns["bkgstd [photon]"] = np.sqrt(np.maximum(rows["background"], 0))
    if {"lpx", "lpy"} <= set(names):
        columns[UNCERTAINTY[0]] = np.hypot(rows["lpx"], rows["lpy"]) / np.sqrt(2) * nm
    if "lpz" in names:
        columns["uncertainty_z [nm]"] = rows["lpz"] * 1000.0
    header = ",".join(f'"{name}"' for name in columns)
    formats = ["%d" if c.dtype.kind in "iu" else "%.5f" for c in columns.values()]
    values = np.stack([np.asarray(c, np.float64) for c in columns.values()], 1)
    with atomic(path) as temporary:
        np.savetxt(temporary, values, formats, ",", header=header, comments="", encoding="utf-8")


def read_thunderstorm(path: str | os.PathLike, pixel_size: float) -> np.ndarray:
    """The table of a ThunderSTORM CSV file in our names and units (see the module's text); `pixel_size` in µm.

    Columns unknown to us are left out.  Raises `DataError` for a file that is missing or no such table.
    """
    nm = nanometres("read_thunderstorm", pixel_size)
    theirs = read_csv(path, ("frame", "x [nm]", "y [nm]"))
    if theirs["frame"].size and not theirs["frame"].min() >= 1:
        raise DataError(f"{path}: has frame {theirs['frame'].min():g}; ThunderSTORM counts frames from 1")
    columns: dict[str, Any] = {"frame": theirs["frame"] - 1}
    columns |= {n: theirs[f"{n} [nm]"] / nm - 0.5 for n in ("x", "y")}
    if "sigma [nm]" in theirs:
        columns |= dict.fromkeys(("sigma_x", "sigma_y"), theirs["sigma [nm]"] / nm)
    for name, ours in THUNDERSTORM.items():
        if name in theirs:
            unit = NANOMETRES.get(ours, nm if "[nm]" in name else 1.0)
            columns[ours] = theirs[name] / unit
    for name in UNCERTAINTY:
        if name in theirs:
            columns |= dict.fromkeys(("lpx", "lpy"), theirs[name] / nm)
    return table(**columns)


def read_csv(path: str | os.PathLike, needed: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The columns of a CSV file of numbers by the names in its first line; `DataError` if one `needed` is not there."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"{path}: no such file; check the name and the folder") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is no text file; expected CSV") from None
    first, _, body = text.partition("\n")
    header = [name.strip() for name in next(csv.reader([first]), [])]
    if not set(needed) <= set(header):
        raise DataError(f"{path}: has columns {header}; expected at least {', '.join(needed)}")
    try:
        values = np.loadtxt(io.StringIO(body), delimiter=",", ndmin=2) if body.strip() else np.empty((0, len(header)))
        if values.shape[1] != len(header):
            raise ValueError(f"{values.shape[1]} values in a row under {len(header)} columns")
    except ValueError as error:
        raise DataError(f"{path}: is no table of numbers ({error}); export it again") from None
    return dict(zip(header, values.T, strict=True))


def check_fields(caller: str, rows: np.ndarray) -> tuple[str, ...]:
    """The column names of `rows`, or a `ValueError` of the function `caller`."""
    names = getattr(getattr(rows, "dtype", None), "names", None) or ()
    if not {"frame", "x", "y"} <= set(names) or rows.ndim != 1:
        got = f"fields {names}" if names else type(rows).__name__
        raise ValueError(f"{caller} got {got}; expected a table (n,) with at least frame, x, y, see data.table(...)")
    return names


def nanometres(caller: str, pixel_size: float) -> float:
    """A pixel size in µm as nm, or a `ValueError` of the function `caller`."""
    if not (np.isscalar(pixel_size) and np.isfinite(pixel_size) and pixel_size > 0):
        raise ValueError(f"{caller} got pixel_size = {pixel_size!r}; expected the size of a pixel in µm, above 0")
    return 1000.0 * pixel_size
