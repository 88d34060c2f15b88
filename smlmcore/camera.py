"""From photons to the counts of a camera, and back."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from numbers import Real
from typing import Any

import numpy as np

from . import backend
from .backend import Array


@dataclass(frozen=True)
class Camera:
    """A camera with one offset, gain and read noise for all its pixels.

        counts = round((Poisson(photons) + Normal(0, read_noise²)) / gain + offset)

    Arguments: `offset` in counts; `gain` in electrons per count; `read_noise`, a standard deviation, in electrons;
    `pixel_size` in µm, in the sample, or None where unknown.  "Photons" in this library are detected ones, so the
    quantum efficiency is part of them.  Raises `ValueError` for a value that is not a finite number in its range.

    >>> Camera(offset=100, gain=0.5, read_noise=1.5).photoelectrons(np.array([100, 140], np.uint16))
    array([ 0., 20.], dtype=float32)
    """

    offset: float
    gain: float
    read_noise: float = 0.0
    pixel_size: float | None = None

    def __post_init__(self) -> None:
        limits = {"offset": "finite", "gain": "positive", "read_noise": "not negative", "pixel_size": "positive"}
        for name, limit in limits.items():
            value = getattr(self, name)
            if value is None and name == "pixel_size":
                continue
            number = isinstance(value, Real) and isfinite(value)
            if not number or (limit == "positive" and value <= 0) or (limit == "not negative" and value < 0):
                raise ValueError(f"Camera got {name} = {value!r}; expected one number, {limit}")
            object.__setattr__(self, name, float(value))

    @property
    def variance(self) -> float:
        """Variance of the read noise, electrons²."""
        return self.read_noise**2

    def photoelectrons(self, counts: Array) -> Array:
        """Photoelectrons, (counts − offset)·gain, as float32 of the same shape; NaN stays NaN.

        Raises `TypeError` for complex or non-numeric `counts`.
        """
        counts = counts if backend.is_array(counts) else np.asarray(counts)
        if counts.dtype.kind not in "buif":
            raise TypeError(f"Camera.photoelectrons got counts of {counts.dtype}; expected real numbers")
        return (counts.astype(np.float32) - np.float32(self.offset)) * np.float32(self.gain)

    def expose(self, expected: Any, rng: np.random.Generator, dtype: Any = np.uint16) -> np.ndarray:
        """One random exposure to `expected` photons per pixel (any shape), in counts.

        Integer counts are rounded and clipped to the range of `dtype`, as the converter does; rounding adds
        gain²/12 to the variance in electrons.  A float `dtype` is neither rounded nor clipped.
        Raises `ValueError` where `expected` is negative, NaN or infinite, `TypeError` for another kind of `rng`.

        >>> Camera(100, 0.5).expose(np.zeros((1, 2)), np.random.default_rng(0))
        array([[100, 100]], dtype=uint16)
        """
        expected = np.asarray(expected, np.float64)
        dtype = np.dtype(dtype)
        if not isinstance(rng, np.random.Generator):
            raise TypeError(f"Camera.expose got rng of {type(rng).__name__}; give numpy.random.default_rng(seed)")
        if dtype.kind not in "uif":
            raise TypeError(f"Camera.expose got dtype {dtype}; expected an integer or a float type")
        if expected.size and not (np.isfinite(expected).all() and expected.min() >= 0):
            raise ValueError(
                f"Camera.expose got expected photons from {expected.min()} to {expected.max()}; "
                "expected finite values, none negative"
            )
        electrons = rng.poisson(expected) + self.read_noise * rng.standard_normal(expected.shape)
        counts = electrons / self.gain + self.offset
        if dtype.kind == "f":
            return counts.astype(dtype)
        limits = np.iinfo(dtype)
        # The float next to a 64-bit limit lies beyond it: clip to the one inside.
        top = float(limits.max) if limits.bits < 64 else np.nextafter(float(limits.max), 0)
        return np.clip(np.rint(counts), limits.min, top).astype(dtype)
