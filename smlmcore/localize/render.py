"""Draw a table of localizations as an image."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage


def render(table: np.ndarray, shape: tuple[int, int], zoom: float = 8, blur: float | None = None) -> np.ndarray:
    """Image float32 (⌈h·zoom⌉, ⌈w·zoom⌉) of `table`, for a field of `shape` (h, w): a histogram, blurred.

    Each localization inside the field adds one to the image, spread by a Gaussian of `blur` pixels of the camera
    (default: the median of lpx and lpy, 0 where the table has none; 0 draws the plain histogram).  One blur for all
    keeps it fast and the sum exact.  Rows outside the field or with NaN are left out.
    Raises `ValueError` if `zoom` is not positive or `blur` is negative.

    >>> rows = np.array([(1.0, 0.0)], [("x", float), ("y", float)])
    >>> render(rows, (2, 3), zoom=1)
    array([[0., 1., 0.], [0., 0., 0.]], dtype=float32)
    """
    if not (0 < zoom < np.inf and len(shape) == 2 and min(shape) > 0 and (blur is None or 0 <= blur < np.inf)):
        raise ValueError(
            f"render got shape {tuple(shape)}, zoom {zoom}, blur {blur}; "
            "expected (height, width), a positive zoom and a blur of at least 0"
        )
    h, w = (math.ceil(n * zoom) for n in shape)
    y, x = ((np.asarray(table[name], float) + 0.5) * zoom for name in ("y", "x"))
    inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)  # False for NaN
    index = y[inside].astype(np.int64) * w + x[inside].astype(np.int64)
    image = np.bincount(index, minlength=h * w).reshape(h, w).astype(np.float32)
    if blur is None:
        errors = np.concatenate([table[name] for name in ("lpx", "lpy") if name in table.dtype.names] or [[]])
        errors = errors[np.isfinite(errors)]
        blur = float(np.median(errors)) if errors.size else 0.0
    # "reflect" keeps the sum: what leaves the field at the border comes back in.
    return ndimage.gaussian_filter(image, blur * zoom, mode="reflect") if blur > 0 else image
