"""Cut square boxes around peaks."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import backend


def cut(frames: Any, peaks: np.ndarray, box: int) -> tuple[Any, np.ndarray]:
    """Boxes (n, `box`, `box`) of `frames` (frame, y, x) centred on `peaks`, and the peaks (n,) that they belong to.

    Peaks are a table with integer `frame`, counted from the first of `frames`, `x` and `y`.  A box that crosses the
    border is dropped with its peak, never shifted or filled.  The top-left pixel of a box is
    (x - box // 2, y - box // 2).  Boxes are of the library and dtype of `frames`.
    Raises `ValueError` for a box that is even or below 5, and for peaks outside the frames.

    >>> peaks = np.array([(0, 4, 3), (0, 0, 3)], [("frame", int), ("x", int), ("y", int)])
    >>> spots, kept = cut(np.zeros((1, 7, 9)), peaks, box=5)
    >>> spots.shape, kept["x"]
    ((1, 5, 5), array([4]))
    """
    if not (isinstance(box, int | np.integer) and box >= 5 and box % 2 == 1):
        raise ValueError(f"cut got box = {box!r}; expected an odd number of pixels, at least 5")
    if not backend.is_array(frames) or frames.ndim != 3:
        raise ValueError(f"cut got frames of shape {np.shape(frames)}; expected an array (frame, y, x)")
    count, h, w = frames.shape
    frame, y, x = (peaks[name].astype(np.int64) for name in ("frame", "y", "x"))
    inside = (frame >= 0) & (frame < count) & (y >= 0) & (y < h) & (x >= 0) & (x < w)
    if not inside.all():
        first = peaks[~inside][0]
        raise ValueError(
            f"cut got a peak at frame {first['frame']}, x {first['x']}, y {first['y']} outside frames of shape "
            f"{frames.shape}; number the peaks' frames from the first frame given"
        )
    half = int(box) // 2
    kept = (y >= half) & (y < h - half) & (x >= half) & (x < w - half)
    xp = backend.module(frames)
    offset = xp.arange(-half, half + 1)
    frame, y, x = (xp.asarray(v[kept])[:, None, None] for v in (frame, y, x))
    return frames[frame, y + offset[:, None], x + offset], peaks[kept]
