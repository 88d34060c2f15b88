"""Find spots: peaks of a filtered, variance-stabilised frame, in units of the noise; and tell which stand alone."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import scipy

from .. import backend

OUTER = 2.0  # sigma of the subtracted Gaussian over that of the spot
PEAK = np.dtype([("frame", np.uint32), ("x", np.int32), ("y", np.int32), ("snr", np.float32)])


def detect(
    frames: Any,
    variance: float = 0.0,
    sigma: float = 1.3,
    threshold: float = 6.0,
    radius: int | None = None,
) -> np.ndarray:
    """Peaks in `frames` (frame, y, x), or one (y, x), of photoelectrons: a table of frame, x, y (pixels) and snr.

        s = 2 sqrt(max(a + 3/8 + v, 0)),   snr = (G(sigma) - G(2 sigma)) s / (its standard deviation in pure noise)

    The generalised Anscombe transform makes the noise of photons and camera (`variance` v in photoelectrons²) one
    everywhere, so the filter's response to noise is known exactly, borders included, and `threshold` is in units of
    it.  One v for all pixels: a map of variances would turn into structure of the transformed image.  A peak is the
    largest value within `radius` pixels (default: 2 `sigma`, rounded) in its own frame; among equal neighbours the
    first counts.  NaN and infinite pixels take the median of their frame.
    Frames may be NumPy or CuPy arrays; the table, sorted by frame, y, x, is NumPy.
    (Mäkitalo & Foi 2013, IEEE Trans. Image Process. 22, 91, for the transform.)

    Raises `ValueError` for frames of another shape, for `sigma` or `threshold` that are not positive, and for a
    `variance` that is not one number.

    >>> frame = np.full((9, 12), 4.0); frame[3, 7] = 400
    >>> detect(frame)[["frame", "x", "y"]]
    array([(0, 7, 3)], dtype=...)
    """
    xp = backend.module(frames)
    a = backend.asarray(frames).astype(np.float32)  # a copy
    a = a[None] if a.ndim == 2 else a
    if a.ndim != 3:
        raise ValueError(f"detect got frames of shape {a.shape}; expected (frame, y, x) or (y, x)")
    radius = max(1, round(2 * sigma)) if radius is None and sigma > 0 else radius
    if not (0 < sigma < np.inf and 0 < threshold < np.inf and radius >= 1):
        raise ValueError(f"detect got sigma {sigma}, threshold {threshold}, radius {radius}; expected positive numbers")
    if np.ndim(variance) or not 0 <= variance < np.inf:
        raise ValueError(f"detect got variance {variance!r}; expected one number, 0 or more")
    if a.size == 0:
        return np.empty(0, PEAK)
    for i in backend.to_cpu(xp.flatnonzero(~xp.isfinite(a).all((1, 2)))).tolist():
        finite = xp.isfinite(a[i])
        a[i][~finite] = xp.median(a[i][finite]) if finite.any() else 0
    stable = 2 * xp.sqrt(xp.maximum(a + (0.375 + float(variance)), 0))
    image, outer = backend.scipy_module(xp, "ndimage"), OUTER * sigma
    snr = image.gaussian_filter(stable, (0, sigma, sigma)) - image.gaussian_filter(stable, (0, outer, outer))
    snr /= xp.asarray(_noise(*a.shape[1:], float(sigma)))
    window = 2 * radius + 1
    peak = (snr > threshold) & (snr == image.maximum_filter(snr, (1, window, window)))
    frame, y, x = (backend.to_cpu(i) for i in xp.nonzero(peak))
    table = np.empty(len(frame), PEAK)
    table["frame"], table["x"], table["y"], table["snr"] = frame, x, y, backend.to_cpu(snr[peak])
    return table[_first_of_ties(frame, y, x, radius)]


def isolated(peaks: np.ndarray, distance: float) -> np.ndarray:
    """Mask of the rows of `peaks` (fields frame, x, y) with no other row of their frame within `distance` pixels.

    >>> rows = np.array([(0, 1, 1), (0, 4, 1), (1, 4, 1)], [("frame", int), ("x", int), ("y", int)])
    >>> isolated(rows, 5)
    array([False, False,  True])
    """
    if not 0 <= distance < np.inf:
        raise ValueError(f"isolated got distance {distance}; expected a number of pixels, 0 or more")
    if len(peaks) < 2:
        return np.ones(len(peaks), bool)
    # the frames one below the other; of rows sorted by y, those k apart are compared until all are too far
    y = peaks["frame"] * (np.ptp(peaks["y"]) + distance + 1.0) + peaks["y"]
    order = np.argsort(y, kind="stable")
    x, y = peaks["x"][order].astype(float), y[order]
    alone = np.ones(len(peaks), bool)
    for k in range(1, len(peaks)):
        near = np.flatnonzero(y[k:] - y[:-k] <= distance)
        if not len(near):
            break
        near = near[np.hypot(x[near + k] - x[near], y[near + k] - y[near]) <= distance]
        alone[order[near]] = alone[order[near + k]] = False
    return alone


def spread(table: np.ndarray, distance: float) -> np.ndarray:
    """Points (n, 3) of `table` in which rows of different frames are further apart than `distance`."""
    return np.stack([table["frame"] * (2.0 * distance + 1.0), table["y"], table["x"]], 1)


@lru_cache(4)  # one frame size at a time is usual
def _noise(h: int, w: int, sigma: float) -> np.ndarray:
    """Standard deviation (h, w) of the filtered image where the input is independent noise of variance one.

    The filter is a difference of separable ones, A ⊗ A' - B ⊗ B', so its sum of squares is separable term by term.
    """
    rows, columns = ([scipy.ndimage.gaussian_filter1d(np.eye(n), s, 0) for s in (sigma, OUTER * sigma)] for n in (h, w))
    squares = sum(
        weight * np.outer((rows[i] * rows[j]).sum(1), (columns[i] * columns[j]).sum(1))
        for i, j, weight in ((0, 0, 1), (0, 1, -2), (1, 1, 1))
    )
    # In a frame of a few pixels both Gaussians are flat and their difference is rounding error only.
    return np.sqrt(np.maximum(squares, 1e-6)).astype(np.float32)


def _first_of_ties(frame: np.ndarray, y: np.ndarray, x: np.ndarray, radius: int) -> np.ndarray:
    """Mask that keeps the first of peaks that share a window; as each is the largest there, they are equal."""
    keep = np.ones(len(x), bool)
    if len(x) > 1:
        points = np.stack([frame * (radius + 1.0), y, x], 1)
        for i, j in np.sort(scipy.spatial.cKDTree(points).query_pairs(radius, p=np.inf, output_type="ndarray"), axis=0):
            if keep[i]:
                keep[j] = False
    return keep
