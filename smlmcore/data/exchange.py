"""Tables of other programs: SMLM-challenge CSV, SMAP-style CSV and storm-analysis HDF5.

| format | frames from | x, y | centre of the top-left pixel | z |
|---|---|---|---|---|
| SMLM challenge (Sage et al. 2019, Nature Methods 16, 387) | 1 | nm | (½, ½) pixel size: from the image's corner | nm |
| SMAP (Ries 2020, Nature Methods 17, 870) | 1 | nm | (1, 1) pixel size: MATLAB counts pixels from 1 | nm |
| storm-analysis (Zhuang lab), a group for each frame | 0 | pixels | (0, 0) | µm |
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..files import DataError, atomic
from .tables import check_fields, nanometres, read_csv, table

CHALLENGE = {"frame": "frame", "x": "xnano", "y": "ynano", "z": "znano", "photons": "intensity"}
SMAP = {
    "frame": "frame", "x": "xnm", "y": "ynm", "z": "znm", "photons": "phot", "background": "bg", "lpx": "xnmerr",
    "lpy": "ynmerr", "lpz": "locprecznm", "sigma_x": "PSFxnm", "sigma_y": "PSFynm",
}  # fmt: skip
STORM_ANALYSIS = {
    "x": "x", "y": "y", "z": "z", "photons": "sum", "background": "background", "sigma_x": "xsigma",
    "sigma_y": "ysigma",
}  # fmt: skip
IN_PIXELS = ("x", "y", "sigma_x", "sigma_y", "lpx", "lpy")  # and z, lpz in µm


def write_challenge(path: str | os.PathLike, rows: np.ndarray, pixel_size: float) -> None:
    """Write the columns that the SMLM challenge knows: Ground-truth (a number), frame, xnano, ynano, znano, intensity.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_challenge(f"{folder}/a.csv", table(frame=[0], x=[0.0], y=[1.0], photons=90.0), pixel_size=0.1)
    ...     print(Path(f"{folder}/a.csv").read_text())
    Ground-truth,frame,xnano,ynano,znano,intensity
    1,1,50,150,0,90
    """
    columns = _ours_to_nm("write_challenge", rows, pixel_size, CHALLENGE, 0.5)
    zeros = np.zeros(len(rows))
    columns = {"Ground-truth": np.arange(1, len(rows) + 1), **{k: columns.get(k, zeros) for k in CHALLENGE.values()}}
    _write_csv(path, columns)


def read_challenge(path: str | os.PathLike, pixel_size: float) -> np.ndarray:
    """The table of an SMLM-challenge CSV file; `pixel_size` in µm.  Raises `DataError` for another file."""
    return _nm_to_ours("read_challenge", path, pixel_size, CHALLENGE, 0.5)


def write_smap(path: str | os.PathLike, rows: np.ndarray, pixel_size: float) -> None:
    """Write a CSV file with SMAP's names: frame, xnm, ynm, znm, phot, bg, xnmerr, ynmerr, locprecznm, PSFxnm, PSFynm.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_smap(f"{folder}/a.csv", table(frame=[0], x=[0.0], y=[1.0]), pixel_size=0.1)
    ...     print(Path(f"{folder}/a.csv").read_text())
    frame,xnm,ynm
    1,100,200
    """
    _write_csv(path, _ours_to_nm("write_smap", rows, pixel_size, SMAP, 1.0))


def read_smap(path: str | os.PathLike, pixel_size: float) -> np.ndarray:
    """The table of a CSV file with SMAP's names; `locprecnm` stands for both errors where there are no others.

    `pixel_size` in µm.  Raises `DataError` for another file.
    """
    return _nm_to_ours("read_smap", path, pixel_size, SMAP, 1.0)


def write_storm_analysis(
    path: str | os.PathLike, rows: np.ndarray, shape: tuple[int, int, int], pixel_size: float | None = None
) -> None:
    """Write `rows` as storm-analysis HDF5: a group `fr_N` with one dataset for each column, for every frame.

    `shape` is that of the movie, (frames, height, width).  Columns without a name there keep ours.
    """
    names = check_fields("write_storm_analysis", rows)
    frames, height, width = map(int, shape)
    rows = rows[np.argsort(rows["frame"], kind="stable")]
    edges = np.searchsorted(rows["frame"], np.arange(frames + 1))
    if edges[-1] < len(rows):
        raise ValueError(f"write_storm_analysis got frame {rows['frame'][-1]} in a movie of {frames} frames")
    with atomic(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update(version=0.1, sa_type="analysis", movie_hash_value="")
        file.attrs.update(movie_l=frames, movie_x=width, movie_y=height)
        if pixel_size is not None:
            file.attrs["pixel_size"] = nanometres("write_storm_analysis", pixel_size)
        for frame, (first, last) in enumerate(pairwise(edges)):
            group = file.create_group(f"fr_{frame}")
            group.attrs["n_locs"] = int(last - first)
            for name in names if last > first else ():
                if name != "frame":
                    group.create_dataset(STORM_ANALYSIS.get(name, name), data=rows[name][first:last])


def read_storm_analysis(path: str | os.PathLike) -> tuple[np.ndarray, dict[str, Any]]:
    """The table of a storm-analysis HDF5 file, and {"shape": ..., "pixel_size": µm} as far as they are known.

    Raises `DataError` for another file.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the name and the folder")
    ours = {theirs: name for name, theirs in STORM_ANALYSIS.items()}
    found: dict[str, list] = {}
    try:
        with h5py.File(path) as file:
            if "sa_type" not in file.attrs:
                raise KeyError("sa_type")
            attributes = dict(file.attrs)
            groups = sorted((int(k[3:]), k) for k in file if k.startswith("fr_"))
            for frame, key in groups:
                columns = {ours.get(k, k): v[()] for k, v in file[key].items() if isinstance(v, h5py.Dataset)}
                if columns:
                    columns["frame"] = np.full(len(columns["x"]), frame, np.uint32)
                    for name, values in columns.items():
                        found.setdefault(name, []).append(values)
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: is no storm-analysis HDF5 file ({error})") from None
    count = max(map(len, found.values()), default=0)
    order = ["frame", *(k for k in found if k != "frame")]
    columns = {k: np.concatenate(found[k]) for k in order if k in found and len(found[k]) == count}
    info: dict[str, Any] = {}
    if {"movie_l", "movie_x", "movie_y"} <= set(attributes):
        info["shape"] = tuple(int(attributes[f"movie_{k}"]) for k in "lyx")
    if attributes.get("pixel_size"):
        info["pixel_size"] = float(attributes["pixel_size"]) / 1000
    return table(**columns) if columns else table(frame=[], x=[], y=[]), info


def _ours_to_nm(
    caller: str, rows: np.ndarray, pixel_size: float, names: Mapping[str, str], origin: float
) -> dict[str, np.ndarray]:
    fields, nm = check_fields(caller, rows), nanometres(caller, pixel_size)
    out = {}
    for ours, theirs in names.items():
        if ours in fields:
            values = rows[ours].astype(np.float64)
            if ours in ("x", "y"):
                values = (values + origin) * nm
            elif ours in IN_PIXELS:
                values = values * nm
            elif ours in ("z", "lpz"):
                values = values * 1000.0
            out[theirs] = rows[ours].astype(np.int64) + 1 if ours == "frame" else values
    return out


def _nm_to_ours(
    caller: str, path: str | os.PathLike, pixel_size: float, names: Mapping[str, str], origin: float
) -> np.ndarray:
    nm = nanometres(caller, pixel_size)
    theirs = read_csv(path, [names[k] for k in ("frame", "x", "y")])
    if "locprecnm" in theirs:
        theirs = {names.get("lpx", ""): theirs["locprecnm"], names.get("lpy", ""): theirs["locprecnm"], **theirs}
    columns: dict[str, Any] = {}
    for ours, name in names.items():
        if name in theirs:
            values = theirs[name]
            if ours == "frame":
                if values.size and not values.min() >= 1:
                    raise DataError(f"{path}: has frame {values.min():g}; this format counts frames from 1")
                columns[ours] = values - 1
            elif ours in ("x", "y"):
                columns[ours] = values / nm - origin
            else:
                columns[ours] = values / (nm if ours in IN_PIXELS else 1000.0 if ours in ("z", "lpz") else 1.0)
    return table(**columns)


def _write_csv(path: str | os.PathLike, columns: Mapping[str, np.ndarray]) -> None:
    formats = ["%d" if c.dtype.kind in "iu" else "%.12g" for c in columns.values()]
    values = np.stack([np.asarray(c, np.float64) for c in columns.values()], 1)
    with atomic(path) as temporary:
        np.savetxt(temporary, values, formats, ",", header=",".join(columns), comments="", encoding="utf-8")
