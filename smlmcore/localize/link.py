"""Join the localizations of one molecule in successive frames to one event, and measure how long events last.

In every frame each localization goes on with the event whose last localization is nearest, in units of what both
positions are uncertain by; where two want the same event, the nearer one has it and the other looks on (Gale & Shapley
1962, Am. Math. Mon. 69, 9: the outcome does not depend on the order of rows).
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from ..data import take

REACH = 3.0  # an uncertainty counts as at most this many times the median, so that one bad fit does not gather others
ERRORS = {"x": "lpx", "y": "lpy", "z": "lpz"}  # what weighs what
GRID = 2048  # cells of the spatial hash along an axis, at most; beyond that it wraps around


def link(
    table: np.ndarray, gap: int = 1, radius: float | None = None, sigmas: float = 4.0
) -> tuple[np.ndarray, np.ndarray]:
    """Events of `table` and the row (n,) in the table of events that each localization belongs to.

    Two localizations belong together if they are at most `gap` dark frames apart and nearer to each other than
    `radius` pixels or, by default, than `sigmas` standard errors of their distance, √(σ₁² + σ₂²) in each direction,
    σ² = (lpx² + lpy²) / 2: 4 of them keep 99.97 %.

    An event has its first `frame`, the weighted mean of x, y (weights 1/lpx², 1/lpy²) and z with their errors, the sum
    of `photons`, the mean of all other columns, and besides `count`, its localizations, and `length`, its frames from
    the first to the last.  Events are sorted by frame, within it by the order of `table`.  Rows of NaN are events of
    their own.

    Raises `ValueError` if frame, x, y are missing, or no `radius` is given and lpx, lpy are missing or all zero.

    >>> rows = np.array([(0, 1.0, 5.0), (1, 1.1, 5.0), (1, 9.0, 5.0)], [("frame", int), ("x", float), ("y", float)])
    >>> events, event = link(rows, radius=0.5)
    >>> events[["frame", "count", "length"]].tolist(), event
    ([(0, 2, 2), (1, 1, 1)], array([0, 0, 1]))
    """
    names = table.dtype.names or ()
    needed = {"frame", "x", "y"} | (set() if radius else {"lpx", "lpy"})
    if missing := sorted(needed - set(names)):
        raise ValueError(f"link got a table without {', '.join(missing)}; give these columns, or a radius for lpx, lpy")
    if gap < 0 or not sigmas > 0 or not (radius is None or 0 < radius < np.inf):
        raise ValueError(
            f"link got gap {gap}, radius {radius}, sigmas {sigmas}; expected 0 or more, and pixels above 0"
        )
    frame = table["frame"].astype(np.int64)
    order = None if (np.diff(frame) >= 0).all() else np.argsort(frame, kind="stable")
    rows = table if order is None else table[order]
    frame = frame if order is None else frame[order]
    x, y = (rows[name].astype(np.float32) for name in ("x", "y"))
    if radius is None:
        square = (rows["lpx"].astype(np.float32) ** 2 + rows["lpy"].astype(np.float32) ** 2) / 2
        good = square[np.isfinite(square)]
        if good.size and not good.any():
            raise ValueError("link got a table whose lpx, lpy are all 0, errors unknown; give a radius in pixels")
        square = np.minimum(square, REACH**2 * (np.median(good) if good.size else 1)) * np.float32(sigmas**2)
    else:
        square = np.full(len(rows), radius**2 / 2, np.float32)
    square[~(np.isfinite(x) & np.isfinite(y) & np.isfinite(square))] = 0  # such rows are left alone
    farthest = float(np.sqrt(2 * square.max(initial=1e-12)))
    event = np.empty(len(rows), np.int64)
    n = _link(frame, x, y, square, np.float32(1 / (2 * max(farthest, 1e-6))), int(gap), event)
    found = _events(rows, event, n)
    if order is not None:
        back = np.empty_like(event)
        back[order] = event
        event = back
    return found, event


class OnTime(NamedTuple):
    """Mean time that a molecule stays on, in frames, and its standard error."""

    mean: float
    error: float


def on_time(events: np.ndarray, frames: int) -> OnTime:
    """Mean of the exponential on-time behind the `length` of `events` of a movie of `frames` frames.

    An event that is on in one frame goes off before the next with probability p = 1 - exp(-1 / mean).  Of all frames
    with a next one, p is estimated as the share after which an event ended; events that last to the end of the movie
    count as not ended.

    >>> events = np.array([(0, 2), (5, 1), (7, 3)], [("frame", int), ("length", int)])
    >>> round(on_time(events, 100).mean, 2)
    1.44
    """
    cut = events["frame"].astype(np.int64) + events["length"] >= frames
    trials, ended = int(events["length"].sum()) - int(cut.sum()), int((~cut).sum())
    if not 0 < ended < trials:
        return OnTime(np.nan if not trials else np.inf if not ended else 0.0, np.nan)
    p = ended / trials
    mean = -1 / np.log1p(-p)
    return OnTime(float(mean), float(mean**2 * np.sqrt(p / (trials * (1 - p)))))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _link(frame, x, y, square, scale, gap, event):
    """Fill `event`; returns their number.  Rows are sorted by frame; cells of the hash are twice the longest link."""
    n = len(frame)
    head = np.full(GRID * GRID, -1, np.int32)  # of each cell, the last row that lies in it
    before = np.full(n, -1, np.int32)  # the row in the same cell before this one
    after = np.full(n, -1, np.int32)  # the row that continues this one
    claim = np.zeros(n, np.float32)
    number = 0
    first = 0
    while first < n:
        now = frame[first]
        last = first
        while last < n and frame[last] == now:
            event[last] = -1
            last += 1
        for row in range(first, last):
            k = row
            while k >= 0 and square[k] > 0:
                u, v = x[k] * scale, y[k] * scale
                cx, cy = int(np.floor(u)), int(np.floor(v))
                sx = 1 if u - np.floor(u) >= 0.5 else -1
                sy = 1 if v - np.floor(v) >= 0.5 else -1
                best, least = -1, np.float32(1)
                for corner in range(4):
                    column, line = cx + sx * (corner & 1), cy + sy * (corner >> 1)
                    j = head[(line & (GRID - 1)) * GRID + (column & (GRID - 1))]
                    while j >= 0 and frame[j] >= now - 1 - gap:
                        dx, dy = x[k] - x[j], y[k] - y[j]
                        d = (dx * dx + dy * dy) / (square[k] + square[j])
                        free = after[j] < 0 or (frame[after[j]] == now and d < claim[j])
                        if free and d <= least and (d < least or best < 0):
                            best, least = j, d
                        j = before[j]
                if best < 0:
                    break
                other = after[best]
                after[best], claim[best], event[k] = k, least, event[best]
                if other >= 0:
                    event[other] = -1
                k = other
        for k in range(first, last):
            if event[k] < 0:
                event[k] = number
                number += 1
            if square[k] > 0:
                cell = (int(np.floor(y[k] * scale)) & (GRID - 1)) * GRID + (int(np.floor(x[k] * scale)) & (GRID - 1))
                before[k], head[cell] = head[cell], k
        first = last
    return number


def _events(rows: np.ndarray, event: np.ndarray, n: int) -> np.ndarray:
    """The table of events from rows sorted by frame; where most are of one row, they are copies of it."""
    summed = np.bincount(event, minlength=n) > 1
    for name in {*ERRORS.values()} & {*rows.dtype.names}:
        summed[event[~((rows[name] > 0) & (rows[name] < np.inf))]] = True  # see below
    many = np.count_nonzero(summed)
    if 2 * many > n:
        return _sums(rows, event, n)
    part = summed[event]
    sums = _sums(take(rows, part), (np.cumsum(summed) - 1)[event[part]], many)
    first = np.empty(n, np.int64)
    first[event[::-1]] = np.arange(len(event))[::-1]  # the last one assigned stays
    out, alone = np.empty(n, sums.dtype), take(rows, first)
    for name in out.dtype.names:
        out[name] = alone[name] if name not in ("count", "length") else 1
    out[summed] = sums
    return out


def _sums(rows: np.ndarray, event: np.ndarray, n: int) -> np.ndarray:
    """The table of events of any number of rows."""
    names = [name for name in rows.dtype.names if name not in ("frame", "count", "length")]
    kinds = [(name, rows.dtype[name] if rows.dtype[name].kind == "f" else np.float32) for name in names]
    out = np.empty(n, [("frame", rows.dtype["frame"]), *kinds, ("count", np.int32), ("length", np.int32)])
    frame, count = rows["frame"].astype(np.int64), np.bincount(event, minlength=n)
    first, last = np.empty((2, n), np.int64)
    last[event] = frame  # the last one assigned stays
    first[event[::-1]] = frame[::-1]
    out["frame"], out["count"], out["length"] = first, count, last - first + 1
    weighted = {name: error for name, error in ERRORS.items() if name in names and error in names}
    for name in [name for name in names if name not in weighted.values()]:
        column = rows[name].astype(np.float32)
        if error := weighted.get(name):
            known = rows[error].astype(np.float32)
            # an error of 0 or NaN says nothing: the row counts as one of a pixel
            weight = 1 / np.where(known > 0, np.square(known, dtype=float), 1)
            total = np.bincount(event, weight, n).astype(float)
            total[total == 0] = np.nan  # a parameter at its bound has no error
            out[name], out[error] = np.bincount(event, weight * column, n) / total, 1 / np.sqrt(total)
        else:
            out[name] = np.bincount(event, column, n) / (1 if name == "photons" else count)
    if "photons_error" in names:
        out["photons_error"] *= np.sqrt(count)
    return out
