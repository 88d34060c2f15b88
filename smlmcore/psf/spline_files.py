"""Spline PSFs in files: the library's own `.npz`, SMAP's `.mat`, storm-analysis' `.spline`.

Own format, an `.npz` that NumPy opens without pickles:

    format        "smlmcore spline PSF"
    version       1
    coefficients  (z, y, x) float64, of the cubic B-spline of one photon's image (psf/spline.py)
    dz            um between the planes
    centre        (3,) the emitter's place z, y, x in the coefficients; z = 0 is there

Published calibrations hold 64 polynomial coefficients for each voxel.  Their values at the voxels' corners are
the samples of the spline, whose B-spline coefficients the prefilter finds.  (Li et al. 2018, Nature Methods 15, 367;
Babcock & Zhuang 2017, Scientific Reports 7, 552.)
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..data import DataError, atomic
from .spline import Spline

FORMAT, VERSION = "smlmcore spline PSF", 1


def load(path: str | os.PathLike, **options: Any) -> Spline:
    """The spline PSF in a file, by its suffix; raises `DataError` that names the file and the remedy."""
    path = Path(path)
    readers: dict[str, Callable[..., Spline]] = {".npz": _npz, ".mat": _mat, ".spline": _storm_analysis}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: is no spline PSF that is known here; expected one of {', '.join(readers)}")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    return readers[path.suffix.lower()](path, **options)


def save(psf: Spline, path: str | os.PathLike) -> None:
    """Write `psf` in the library's own format; `path` ends in `.npz`."""
    path = Path(path)
    if path.suffix != ".npz":
        raise DataError(f"{path}: a spline PSF is written as .npz; end its name so")
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file, format=FORMAT, version=VERSION, coefficients=psf.coefficients, dz=psf.dz, centre=psf.centre
        )


def _npz(path: Path) -> Spline:
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read ({error}); save the PSF again with Spline.save") from None
    if str(found.get("format")) != FORMAT:
        raise DataError(f"{path}: holds no spline PSF but {', '.join(found) or 'nothing'}; expected one of Spline.save")
    if int(found["version"]) > VERSION:
        raise DataError(f"{path}: is of version {int(found['version'])}, this is for {VERSION}; update smlmcore")
    return Spline(found["coefficients"], float(found["dz"]), found["centre"].tolist())


# ---------------------------------------------------------------- polynomials for each voxel


def samples_of(coefficients: np.ndarray) -> np.ndarray:
    """Values (n0 + 1, n1 + 1, n2 + 1) at the corners of voxels with polynomials `coefficients` (n0, n1, n2, 64).

    The 64 are a 4 x 4 x 4 table of powers.  Whether the first or the last axis has its power running fastest, the
    polynomials themselves tell: neighbours must agree on the face that they share.  Raises `DataError` if they do not.

    >>> flat = np.zeros((2, 2, 2, 64)); flat[..., 0] = 3.0
    >>> samples_of(flat).shape
    (3, 3, 3)
    """
    c = np.asarray(coefficients, float)
    if c.ndim != 4 or c.shape[3] != 64 or min(c.shape[:3]) < 1:
        raise DataError(f"polynomial coefficients of shape {c.shape} are no spline; expected (n, n, n, 64)")
    powers = c.reshape(*c.shape[:3], 4, 4, 4)
    scale = np.abs(c[..., 0]).max() + 1e-30
    for table in (powers, powers.transpose(0, 1, 2, 5, 4, 3)):
        faces = [table.sum(3 + axis)[..., 0, 0] for axis in range(3)]  # each polynomial at the far end of an axis
        gaps = [
            np.abs(np.take(face, range(n - 1), axis) - np.take(table[..., 0, 0, 0], range(1, n), axis)).max(initial=0)
            for axis, (face, n) in enumerate(zip(faces, c.shape[:3], strict=True))
        ]
        if max(gaps) < 1e-3 * scale:
            break
    else:
        raise DataError(
            f"polynomials of neighbouring voxels differ by {max(gaps) / scale:.2g} of the peak where they meet; "
            "expected a continuous spline of 64 coefficients a voxel"
        )
    samples = np.empty([n + 1 for n in c.shape[:3]])
    for corner in np.ndindex(2, 2, 2):
        value = table
        for axis in reversed(range(3)):  # the last axes first: the others keep their numbers
            value = value.sum(3 + axis) if corner[axis] else np.take(value, 0, 3 + axis)
        samples[tuple(slice(1, None) if far else slice(-1) for far in corner)] = value
    return samples


def _mat(path: Path, dz: float | None = None) -> Spline:
    """SMAP and fit3Dcspline: `SXY(1).cspline` or `cspline` with coeff, dz (nm) and z0 (slice); axes y, x, z."""
    spline = _find(path, _read_mat(path))
    if "coeff" not in spline:
        raise DataError(f"{path}: its cspline has {', '.join(spline)} but no coeff; export it again from SMAP")
    coefficients = spline["coeff"]
    if isinstance(coefficients, list):
        if len(coefficients) != 1:
            raise DataError(f"{path}: holds {len(coefficients)} channels; save the PSF of one of them alone")
        coefficients = coefficients[0]
    a = samples_of(np.asarray(coefficients, float)).transpose(2, 0, 1)
    given = spline.get("dz") if dz is None else 1000 * dz
    if given is None:
        raise DataError(f"{path}: does not tell the distance of its planes; give it as load(path, dz=...) in um")
    z0 = float(np.ravel(spline.get("z0", (len(a) + 1) / 2))[0]) - 1  # MATLAB counts from 1
    middle = [(n - 1) / 2 for n in a.shape[1:]]
    return Spline.from_array(a, float(np.ravel(given)[0]) / 1000, [np.clip(z0, 0, len(a) - 1), *middle])


def _read_mat(path: Path) -> dict[str, Any]:
    """A MATLAB file of any version as nested dicts, lists and arrays with MATLAB's order of axes."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        return {k: _plain(v) for k, v in loadmat(path, simplify_cells=True).items() if not k.startswith("__")}
    except NotImplementedError:  # version 7.3 is HDF5
        import h5py

        with h5py.File(path, "r") as file:
            return {k: _hdf5(file, file[k]) for k in file if not k.startswith("#")}
    except (MatReadError, ValueError, OSError, TypeError) as error:
        raise DataError(f"{path}: is no MATLAB file ({error}); save it again with save(..., '-v7')") from None


def _plain(value: Any) -> Any:
    """A cell array as a list."""
    return list(value.ravel()) if isinstance(value, np.ndarray) and value.dtype == object else value


def _hdf5(file: Any, item: Any) -> Any:
    import h5py

    if isinstance(item, h5py.Group):
        return {k: _hdf5(file, item[k]) for k in item}
    if item.dtype == h5py.ref_dtype:
        return [_hdf5(file, file[reference]) for reference in np.ravel(item[()])]
    return np.transpose(item[()])  # MATLAB writes its columns first


def _find(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """The struct cspline, alone or the first in SXY."""
    where: Any = found.get("SXY", found)
    while isinstance(where, list) and where:
        where = where[0]
    spline = where.get("cspline", found.get("cspline")) if isinstance(where, dict) else None
    if isinstance(spline, list) and spline:
        spline = spline[0]
    if not isinstance(spline, dict):
        raise DataError(f"{path}: has {', '.join(found) or 'nothing'} but no cspline; expected a calibration of SMAP")
    return {k: _plain(v) for k, v in spline.items()}


# ---------------------------------------------------------------- storm-analysis


class _ArraysOnly(pickle.Unpickler):
    """Reads pickles of plain containers and NumPy arrays; anything else, which could run code, is refused."""

    ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
            *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _storm_analysis(path: Path) -> Spline:
    """A 3-D spline of storm-analysis: `spline` (z, y, x) are its samples, z runs from zmin to zmax in nm."""
    try:
        with path.open("rb") as file:
            found = _ArraysOnly(file, encoding="latin1").load()
    except Exception as error:  # a broken pickle may raise anything
        raise DataError(
            f"{path}: cannot be read safely ({error}); in the Python that wrote it, save the array of its entry "
            "'spline' with numpy.save and use Spline.from_array"
        ) from None
    a = found.get("spline") if isinstance(found, dict) else None
    if not isinstance(a, np.ndarray) or a.ndim != 3:
        raise DataError(f"{path}: holds no 3-D spline; expected an entry 'spline' (z, y, x)")
    if float(found.get("version", 0)) < 2:
        raise DataError(f"{path}: is of storm-analysis before version 2, whose axes are transposed; measure it again")
    low, high = float(found["zmin"]), float(found["zmax"])
    dz = (high - low) / len(a) / 1000  # its getScaledZ: size (z - zmin) / (zmax - zmin)
    centre = [np.clip(-low / 1000 / dz, 0, len(a) - 1), *((n - 1) / 2 for n in a.shape[1:])]
    return Spline.from_array(a, dz, centre)
