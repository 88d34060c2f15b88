"""From photons to the counts of a camera, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite
from numbers import Real
from os import PathLike
from typing import Any

import numpy as np

from .. import backend
from ..backend import Array
from ..files import DataError, atomic

LIMITS = {  # which values a setting may have
    "offset": "finite",
    "gain": "positive",
    "read_noise": "not negative",
    "pixel_size": "positive",
    "qe": "positive",
    "em_gain": "positive",
    "spurious_charge": "not negative",
    "saturation": "positive",
    "bits": "positive",
}
MAPS = ("offset", "gain", "read_noise", "qe")  # settings that may differ from pixel to pixel
OPTIONAL = ("pixel_size", "em_gain", "saturation", "bits")


@dataclass(frozen=True, eq=False)
class Camera:
    """A CCD, EMCCD or sCMOS camera.

        electrons = Poisson(qe·photons + spurious_charge)
        amplified = Gamma(electrons, em_gain)        with an EM register, else electrons
        counts    = round((amplified + Normal(0, read_noise²)) / gain + offset), clipped

    Arguments, the first three and `qe` one number or one for each pixel, (h, w): `offset` in counts; `gain` in
    electrons per count (behind the EM register, if there is one); `read_noise`, a standard deviation in electrons (at
    the same place); `pixel_size` in µm, in the sample; `qe`, the quantum efficiency: 1 where "photons" are detected
    ones, as everywhere else in this library; `em_gain`, the mean amplification of an EMCCD; `spurious_charge`,
    electrons per pixel and frame; `saturation`, the largest count; `bits` of the converter.  None: unknown, or not
    there.

    Raises `ValueError` for a value that is not finite or out of range and for maps of different shapes.
    (Basden et al. 2003, MNRAS 345, 985 for the register; Huang et al. 2013, Nature Methods 10, 653 for maps.)

    >>> Camera(offset=100, gain=0.5, read_noise=1.5).photoelectrons(np.array([100, 140], np.uint16))
    array([ 0., 20.], dtype=float32)
    """

    offset: float | np.ndarray
    gain: float | np.ndarray
    read_noise: float | np.ndarray = 0.0
    pixel_size: float | None = None
    qe: float | np.ndarray = 1.0
    em_gain: float | None = None
    spurious_charge: float = 0.0
    saturation: float | None = None
    bits: int | None = None

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if value is None and name in OPTIONAL:
                continue
            object.__setattr__(self, name, _valid(name, value, limit))
        shapes = {name: getattr(self, name).shape for name in MAPS if isinstance(getattr(self, name), np.ndarray)}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"Camera got maps of different shapes, {shapes}; expected one (height, width)")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Camera):
            return NotImplemented
        return all(np.array_equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    __hash__ = None

    @property
    def shape(self) -> tuple[int, int] | None:
        """(height, width) of the maps, None where all pixels are alike."""
        return next((getattr(self, name).shape for name in MAPS if isinstance(getattr(self, name), np.ndarray)), None)

    @property
    def variance(self) -> Any:
        """Variance of the read noise in photoelectrons², a number or (h, w): what the losses and fits ask for."""
        return (self.read_noise / (self.em_gain or 1.0)) ** 2

    def crop(self, top: int, left: int, height: int, width: int) -> Camera:
        """The camera of a region: its maps cut to rows `top`... and columns `left`...

        >>> Camera(np.arange(12.0).reshape(3, 4), 1.0).crop(1, 2, 2, 2).offset
        array([[ 6.,  7.],
               [10., 11.]])
        """
        if self.shape is not None and (
            min(top, left) < 0 or top + height > self.shape[0] or left + width > self.shape[1]
        ):
            raise ValueError(
                f"Camera.crop got rows {top} to {top + height} and columns {left} to {left + width} of {self.shape}"
            )
        region = np.s_[top : top + height, left : left + width]
        settings = {f.name: getattr(self, f.name) for f in fields(self)}
        return Camera(**{k: v[region] if isinstance(v, np.ndarray) else v for k, v in settings.items()})

    def photoelectrons(self, counts: Array) -> Array:
        """Photoelectrons, (counts − offset)·gain / em_gain, as float32 of the same shape; NaN stays NaN.

        Raises `TypeError` for complex or non-numeric `counts`, `ValueError` if they do not fit the camera's maps.
        """
        counts = counts if backend.is_array(counts) else np.asarray(counts)
        if counts.dtype.kind not in "buif":
            raise TypeError(f"Camera.photoelectrons got counts of {counts.dtype}; expected real numbers")
        self._check_shape("photoelectrons", counts.shape)
        xp = backend.module(counts)
        offset, gain = (xp.asarray(v, np.float32) for v in (self.offset, self.gain / (self.em_gain or 1.0)))
        return (counts.astype(np.float32) - offset) * gain

    def limits(self, dtype: Any) -> tuple[float, float]:
        """Least and largest count in an array of `dtype`: what fits into an integer, into `bits` and `saturation`.

        A pixel of the largest count is saturated.

        >>> Camera(100, 0.5, bits=12).limits(np.uint16), Camera(100, 0.5).limits(np.float32)
        ((0.0, 4095.0), (-inf, inf))
        """
        dtype, low, high = np.dtype(dtype), -np.inf, np.inf
        if dtype.kind in "ui":
            # The float next to a 64-bit limit lies beyond it: clip to the one inside.
            limits = np.iinfo(dtype)
            low, high = float(limits.min), float(limits.max) if limits.bits < 64 else np.nextafter(float(limits.max), 0)
        if self.bits is not None:
            high = min(high, 2.0**self.bits - 1)
        if self.saturation is not None:
            high = min(high, self.saturation)
        return low, float(high)

    def expose(self, expected: Any, rng: np.random.Generator, dtype: Any = np.uint16) -> Array:
        """One random exposure to `expected` photons per pixel, in counts; any shape, (..., h, w) for a camera with
        maps.

        Integer counts are rounded and clipped to `saturation`, to `bits` and to the range of `dtype`, as the converter
        does; rounding adds gain²/12 to the variance in electrons.  A float `dtype` is not rounded, and clipped only
        where `saturation` or `bits` say so.  Two numbers of `rng` seed the draws of all pixels, so the result depends
        on neither threads nor device; CuPy in, CuPy out.
        Raises `ValueError` where `expected` is negative, NaN or infinite, `TypeError` for another kind of `rng`.

        >>> Camera(100, 0.5).expose(np.zeros((1, 2)), np.random.default_rng(0))
        array([[100, 100]], dtype=uint16)
        """
        from .sample import draw

        if not isinstance(rng, np.random.Generator):
            raise TypeError(f"Camera.expose got rng of {type(rng).__name__}; give numpy.random.default_rng(seed)")
        dtype = np.dtype(dtype)
        if dtype.kind not in "uif":
            raise TypeError(f"Camera.expose got dtype {dtype}; expected an integer or a float type")
        xp = backend.module(expected, name="Camera.expose")
        real = np.float32 if dtype.itemsize <= 2 or dtype == np.float32 else np.float64
        photons = xp.asarray(expected, real)
        self._check_shape("expose", photons.shape)
        if photons.size and not (bool(xp.isfinite(photons.max())) and float(photons.min()) >= 0):
            raise ValueError(
                f"Camera.expose got expected photons from {photons.min()} to {photons.max()}; "
                "expected finite values, none negative"
            )
        low, high = self.limits(dtype)
        counts = draw(self, photons, rng, low, high, dtype.kind in "ui")
        return counts.astype(dtype, copy=False)

    def save(self, path: str | PathLike[str]) -> None:
        """Write all settings and maps to `path` (.npz, no pickle)."""
        settings = {f.name: getattr(self, f.name) for f in fields(self)}
        with atomic(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **{name: value for name, value in settings.items() if value is not None})

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Camera:
        """The camera that `save` wrote; raises `DataError` for any other file.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Camera(100, 0.5, bits=12).save(f"{folder}/camera.npz")
        ...     Camera.load(f"{folder}/camera.npz").bits
        12
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                settings = {name: file[name] if file[name].ndim else file[name].item() for name in file.files}
            return cls(**settings)
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; check the name and the folder") from None
        except (ValueError, TypeError, KeyError, EOFError, AttributeError) as error:
            raise DataError(f"{path}: is no camera of this library ({error}); write one with Camera.save") from None

    def describe(self) -> dict[str, Any]:
        """All settings as JSON-ready numbers, medians for maps; `maps` names these.

        >>> Camera(np.full((2, 2), 99.0), 0.5).describe()["maps"]
        ['offset']
        """
        settings: Mapping[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        found = {k: float(np.median(v)) if isinstance(v, np.ndarray) else v for k, v in settings.items()}
        return {**found, "maps": [k for k, v in settings.items() if isinstance(v, np.ndarray)]}

    def _check_shape(self, caller: str, shape: tuple[int, ...]) -> None:
        if self.shape is not None and tuple(shape[-2:]) != self.shape:
            raise ValueError(
                f"Camera.{caller} got an image of shape {tuple(shape)}; the camera's maps are {self.shape}: "
                "give (..., height, width) of that size, or a part of the camera with crop(...)"
            )


def allowed(name: str, value: float) -> bool:
    """Whether a number may be the setting `name`, or the least of its map."""
    limit = LIMITS[name]
    in_range = limit == "finite" or value > 0 or (limit == "not negative" and value == 0)
    return bool(in_range and (name != "bits" or value == int(value)))


def _valid(name: str, value: Any, limit: str) -> Any:
    """`value` as float (int for bits) or float64 (h, w); `ValueError` if it is out of its range."""
    numeric = isinstance(value, Real) and not isinstance(value, bool)
    if name in MAPS and isinstance(value, np.ndarray) and value.ndim == 2 and value.size and value.dtype.kind in "uif":
        array = np.array(value, np.float64)
        array.flags.writeable = False
    elif numeric and isfinite(value):
        array = np.array(float(value))
    else:
        map_ = " or a map (height, width)" if name in MAPS else ""
        raise ValueError(f"Camera got {name} = {value!r}; expected one number{map_}, {limit}")
    least = array.min()
    if not np.isfinite(array).all() or not allowed(name, least):
        got = f"{name} = {value!r}" if array.ndim == 0 else f"{name} = a map from {least} to {array.max()}"
        raise ValueError(f"Camera got {got}; expected {'whole numbers, ' if name == 'bits' else ''}{limit}")
    if name == "bits":
        return int(value)
    return array if array.ndim else float(array)
