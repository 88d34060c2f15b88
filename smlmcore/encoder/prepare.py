"""From images as the camera gives them to the input of an encoder."""

from __future__ import annotations

from typing import Any

from .. import backend
from ..backend import Array

SPREAD = 0.05  # smallest standard deviation of the square-root image, a tenth of the shot noise


def check_kind(encoder: Any, images: Any) -> None:
    """Raise an error that names the encoder, unless `images` is an array of real numbers."""
    if not backend.is_array(images) or images.dtype.kind not in "biuf":
        kind = images.dtype if backend.is_array(images) else type(images).__name__
        raise TypeError(f"{encoder} got images of {kind}; expected a NumPy or CuPy array of real numbers")


def checked(encoder: Any, images: Array, axes: int, inputs: int) -> Array:
    """`images` as (n, inputs, ...), or an error that names the encoder; `axes` pixel axes."""
    check_kind(encoder, images)
    space = "z, y, x" if axes == 3 else "y, x"
    if images.ndim == axes + 1 and inputs == 1:
        images = images[:, None]
    if images.ndim != axes + 2 or images.shape[1] != inputs or min(images.shape[2:]) < 1:
        single = f"(n, {space}) or " if inputs == 1 else ""
        raise ValueError(f"{encoder} got images of shape {images.shape}; expected {single}(n, {inputs}, {space})")
    return images


def repaired(a: Array) -> Array:
    """a (n, pixels) with the median of its row in place of NaN and infinite pixels; 0 if there are only such."""
    xp = backend.module(a)
    bad = ~xp.isfinite(a)
    if bad.any():
        a = xp.where(bad, xp.nan, a)
        a[bad.all(1)] = 0
        a = xp.where(xp.isnan(a), xp.nanmedian(a, axis=1, keepdims=True), a)
    return a


def prepare(encoder: Any, images: Array, dtype: Any) -> Array:
    """Images as `encoder` (with `axes`, `inputs`, `root`, `centre`, `spread`) sees them: (n, y, x, inputs)."""
    images = checked(encoder, images, encoder.axes, encoder.inputs)
    xp = backend.module(images)
    flat = (
        repaired(images.astype(dtype).reshape(len(images), -1)) if len(images) else images.astype(dtype).reshape(0, 1)
    )
    if encoder.root:
        flat = xp.sqrt(xp.maximum(flat, 0) + flat.dtype.type(0.375))
    centre = flat.mean(1, keepdims=True) if encoder.centre is None else flat.dtype.type(encoder.centre)
    spread = xp.maximum(flat.std(1, keepdims=True), SPREAD) if encoder.spread is None else encoder.spread
    flat = (flat - centre) / xp.asarray(spread, flat.dtype)
    return xp.ascontiguousarray(xp.moveaxis(flat.reshape(images.shape), 1, -1))
