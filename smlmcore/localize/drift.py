"""Estimate the drift of the sample from the localizations themselves, and take it out.

The drift that makes the picture sharpest is the one of lowest entropy, that is of highest likelihood

    sum over localizations i of log rho(x_i - d(frame_i)),

rho the density of all localizations after correction (Cnossen, Cui, Joo & Smith 2021, Opt. Express 29, 27961).  Here:

*Start.* Segments of the movie are correlated, one after another, with the sum of those before (as in Ma, Chen, Jaradat
et al. 2024, Sci. Adv. 10, eadm7765), in an image that is folded onto a torus of 256² cells, so that its size does not
depend on the field's.

*Then*, coarse to fine: rho is deposited on a grid by cubic B-splines and read by the same splines, whose derivatives
give each localization's score, s = grad log rho, and curvature.  (Its own share is taken off.)  The sum of scores in a
frame is a measurement of what its drift lacks, with a known variance; a Kalman smoother (Rauch, Tung & Striebel 1965,
AIAA J. 3, 1445) with the drift as random walk, whose step is estimated from the same measurements, turns them into the
drift of every frame and its standard error.  So a frame of few localizations leans on its neighbours, and there are no
segments to choose.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numba
import numpy as np

from ..threads import share

TORUS = 256
SEGMENTS = 24  # of the start, at most
FINE = (3.0, 1.5, 1.2, 1.2)  # cell sizes of the refinement in units of the localizations' standard error
CELLS = 1 << 25  # of the grid, at most
BANDS = 32  # of rows of the grid, for threads
BLOCK = 4096  # localizations that a thread takes at a time
CONTRAST = 0.1  # of the density, below which there is nothing that was seen again; see _refine
FLOOR = 0.05  # density, in units of a localization per cell, below which there is nothing to compare with


compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


class Drift(NamedTuple):
    """Drift of each frame: `x`, `y` in pixels, of mean zero, their standard errors `x_error`, `y_error`; z in µm.

    `x[k]` belongs to frame `first + k`.  `z` and `z_error` are None in a movie without z.
    """

    first: int
    x: np.ndarray
    y: np.ndarray
    x_error: np.ndarray
    y_error: np.ndarray
    z: np.ndarray | None = None
    z_error: np.ndarray | None = None


def drift(table: np.ndarray, frames: int | None = None) -> Drift:
    """Drift of each frame of `table` (frame, x, y, lpx, lpy and perhaps z, lpz), from the localizations themselves.

    `frames`: number of frames from 0, default up to the last row's.  Rows with a NaN, or a frame outside, are left
    out.  Needs structure that is seen again and again; the standard errors say how well it was.  Where there is none,
    or with fewer than 100 localizations, the drift is zero and its error infinite.

    >>> rng = np.random.default_rng(0)
    >>> frame = np.repeat(np.arange(500), 20); site = rng.uniform(3, 29, (2, 200))[:, rng.integers(0, 200, 10_000)]
    >>> x, y = site + rng.normal(0, 0.1, site.shape) + 0.002 * frame
    >>> from smlmcore.data import table
    >>> found = drift(table(frame=frame, x=x, y=y, lpx=0.1, lpy=0.1))
    >>> bool(abs(found.x - 0.002 * (np.arange(500) - 249.5)).max() < 0.1)
    True
    """
    for name in ("frame", "x", "y", "lpx", "lpy"):
        if name not in (table.dtype.names or ()):
            raise ValueError(f"drift got a table without {name}; expected frame, x, y and the errors lpx, lpy")
    frame = table["frame"].astype(np.int64)
    frames = int(frame.max(initial=-1)) + 1 if frames is None else int(frames)
    x, y, error = (np.asarray(table[name], np.float32) for name in ("x", "y", "lpx"))
    good = np.isfinite(x) & np.isfinite(y) & (error > 0) & (frame >= 0) & (frame < frames)
    nothing = Drift(0, *np.zeros((2, frames)), *np.full((2, frames), np.inf))
    if good.sum() < 100:
        return nothing
    if not good.all():
        frame, x, y, error = frame[good], x[good], y[good], error[good]
    width = float(np.median(np.sqrt((error**2 + np.asarray(table["lpy"], np.float32)[good] ** 2) / 2)))
    low = np.array([x.min(), y.min()])
    x, y = x - np.float32(low[0]), y - np.float32(low[1])
    knots, start = _start(frame, x, y, frames, width)
    path = np.stack([np.interp(np.arange(frames), knots, s) for s in start])
    steps = np.diff(start, axis=1) ** 2 / np.maximum(np.diff(knots), 1)
    step = np.full(2, max(steps.mean(), (0.01 * width) ** 2)) if steps.size else np.full(2, (0.1 * width) ** 2)
    count = np.bincount(frame, minlength=frames).astype(float)
    limit = np.sqrt(float(x.max() + 1) * float(y.max() + 1) / CELLS)
    order = _by_row(y - path[1][frame].astype(np.float32))
    frame, x, y = frame[order].astype(np.int32), x[order], y[order]
    for k, factor in enumerate(FINE):
        cell = max(factor * width, limit)
        path, variance, step, contrast = _refine(frame, x, y, path, count, cell, step)
        if k == 0 and contrast < CONTRAST:
            return nothing
    path -= path.mean(1, keepdims=True)
    errors = np.sqrt(variance)
    z, z_error = (None, None)
    if "z" in table.dtype.names:
        height = np.asarray(table["z"], np.float64)[good][order]
        z, z_error = _height(frame, x, y, path, height, 2 * width)
    return Drift(0, path[0], path[1], errors[0], errors[1], z, z_error)


def correct(table: np.ndarray, found: Drift) -> np.ndarray:
    """A copy of `table` with the drift taken out of x, y and z.  Frames outside the drift take that of its end.

    >>> rows = np.array([(1, 5.0, 2.0)], [("frame", int), ("x", float), ("y", float)])
    >>> correct(rows, Drift(0, np.array([0.0, 0.5]), np.zeros(2), np.zeros(2), np.zeros(2)))["x"]
    array([4.5])
    """
    out = table.copy()
    at = np.clip(table["frame"].astype(np.int64) - found.first, 0, len(found.x) - 1)
    for name in ("x", "y", "z"):
        path = getattr(found, name)
        if path is not None and name in table.dtype.names and len(path):
            out[name] -= path[at].astype(out[name].dtype)
    return out


def fiducials(table: np.ndarray, marks: np.ndarray, radius: float, frames: int | None = None) -> Drift:
    """Drift from beads at `marks` (m, 2), x and y in pixels: weighted mean of the rows within `radius` of a mark.

    Each bead counts from its own weighted mean, so that a bead that is dark for a while does not make a jump.  Frames
    without any are interpolated.  Raises `ValueError` for marks of another shape, and if no row is near a mark.
    """
    marks = np.atleast_2d(np.asarray(marks, float))
    if marks.ndim != 2 or marks.shape[1] != 2:
        raise ValueError(f"fiducials got marks of shape {marks.shape}; expected (m, 2), x and y of each")
    frames = int(table["frame"].max(initial=0)) + 1 if frames is None else int(frames)
    frame = table["frame"].astype(np.int64)
    total, weight = np.zeros((2, frames)), np.zeros((2, frames))
    bead = np.full(len(table), -1)
    for k, (x, y) in enumerate(marks):
        bead[(table["x"] - x) ** 2 + (table["y"] - y) ** 2 <= radius**2] = k
    if not (bead >= 0).any():
        raise ValueError(f"fiducials got {len(marks)} marks with no localization within {radius} pixels of any")
    near, frame, bead = table[bead >= 0], frame[bead >= 0], bead[bead >= 0]
    for axis, name in enumerate("xy"):
        w = 1 / np.asarray(near[f"lp{name}"], float) ** 2 if f"lp{name}" in table.dtype.names else np.ones(len(near))
        position, path = np.asarray(near[name], float), np.zeros(frames)
        for _ in range(20):  # drift and places of the beads in turn: linear, each step a weighted mean
            rest = position - path[frame]
            place = np.bincount(bead, w * rest, len(marks)) / np.maximum(np.bincount(bead, w, len(marks)), 1e-30)
            total[axis] = np.bincount(frame, w * (position - place[bead]), frames)
            weight[axis] = np.bincount(frame, w, frames)
            path = total[axis] / np.maximum(weight[axis], 1e-30)
    seen = weight[0] > 0
    at, every = np.flatnonzero(seen), np.arange(frames)
    path = np.stack([np.interp(every, at, (total[a] / np.maximum(weight[a], 1e-30))[seen]) for a in (0, 1)])
    path -= path.mean(1, keepdims=True)
    errors = [np.where(seen, 1 / np.sqrt(np.maximum(weight[a], 1e-30)), np.inf) for a in (0, 1)]
    return Drift(0, path[0], path[1], errors[0], errors[1])


def cross_correlation(table: np.ndarray, frames: int | None = None, segments: int = 16) -> tuple[np.ndarray, Drift]:
    """Redundant cross-correlation, as an independent check: centres of segments, and the drift interpolated from them.

    All pairs of `segments` are correlated; the drift of the segments is the least-squares solution of all pairs
    (Wang, Schnitzbauer, Hu et al. 2014, Opt. Express 22, 15982).  The error is that of the pairs' residuals.
    """
    frame = table["frame"].astype(np.int64)
    frames = int(frame.max(initial=0)) + 1 if frames is None else int(frames)
    good = np.isfinite(table["x"]) & np.isfinite(table["y"])
    x, y, frame = (np.asarray(v)[good] for v in (table["x"], table["y"], frame))
    segments = max(1, min(segments, frames, len(x) // 50))
    error = table["lpx"][good] if "lpx" in table.dtype.names else np.full(len(x), 0.1)
    cell = 1.5 * float(np.median(error)) if len(x) else 1.0
    spectra, knots = _spectra(frame, x - x.min(initial=0), y - y.min(initial=0), frames, cell, segments)
    pairs = [(i, j) for i in range(segments) for j in range(i)]
    shifts = np.array([_shift(spectra[i] * spectra[j].conj()) for i, j in pairs]).reshape(-1, 2) * cell
    design = np.zeros((len(pairs) + 1, segments))
    for row, (i, j) in enumerate(pairs):
        design[row, i], design[row, j] = 1, -1
    design[-1] = 1
    right = np.concatenate([shifts, np.zeros((1, 2))])
    keep = np.ones(len(right), bool)
    for _ in range(3):  # a pair that found a wrong peak is left out
        found = np.linalg.lstsq(design[keep], right[keep], rcond=None)[0]
        off = np.hypot(*(right - design @ found).T)
        keep = off <= max(4 * np.median(off[:-1]) if len(pairs) else 1, cell)
    residual = off[keep].std() / np.sqrt(2) if len(pairs) else np.inf
    every = np.arange(frames)
    path = np.stack([np.interp(every, knots, s) for s in found.T])
    path -= path.mean(1, keepdims=True)
    errors = np.full(frames, residual / np.sqrt(max(segments, 1)))
    return knots, Drift(0, path[0], path[1], errors, errors.copy())


# ---------------------------------------------------------------- start


def _spectra(frame, x, y, frames, cell, segments):
    """Fourier transforms of the segments' histograms, without their mean, and the mean frame of each segment."""
    which = frame * segments // frames
    index = (which * TORUS + (y / cell).astype(np.int64) % TORUS) * TORUS + (x / cell).astype(np.int64) % TORUS
    image = np.bincount(index, minlength=segments * TORUS**2).reshape(segments, TORUS, TORUS).astype(np.float32)
    number = np.maximum(np.bincount(which, minlength=segments), 1)
    knots = np.bincount(which, frame, segments) / number
    empty = np.bincount(which, minlength=segments) == 0
    knots[empty] = ((np.arange(segments) + 0.5) * frames / segments)[empty]
    spectra = np.fft.rfft2(image)
    spectra[:, 0, 0] = 0
    return spectra, knots


def _start(frame, x, y, frames, width):
    """Centres of segments (k,) and their drift (2, k), each from the correlation with the sum of those before."""
    segments = max(1, min(SEGMENTS, frames, len(x) // 50))
    cell = max(2.5 * width, 1e-6)
    spectra, knots = _spectra(frame, x, y, frames, cell, segments)
    found = np.zeros((2, segments))
    rows, columns = np.fft.fftfreq(TORUS)[:, None], np.fft.rfftfreq(TORUS)
    blur = np.exp(-2 * np.pi**2 * (rows**2 + columns**2)).astype(np.float32)  # by one cell
    total = spectra[0].copy()
    for k in range(1, segments):
        dx, dy = _shift(spectra[k] * total.conj() * blur)
        found[:, k] = dx, dy
        total += spectra[k] * np.exp(2j * np.pi * (dx * columns + dy * rows)).astype(np.complex64)
    return knots, found * cell


def _shift(spectrum: np.ndarray) -> tuple[float, float]:
    """Place (x, y) of the largest value of a correlation, in cells, to a part of a cell: by a parabola through three.

    The correlation must be compact or blurred; a parabola through the logarithm would fail at zero counts.
    """
    image = np.fft.irfft2(spectrum, (TORUS, TORUS))
    row, column = divmod(int(image.argmax()), TORUS)
    out = []
    for at, line in ((column, image[row]), (row, image[:, column])):
        a, b, c = line[at - 1], line[at], line[(at + 1) % TORUS]
        part = 0.5 * (a - c) / (a - 2 * b + c) if a - 2 * b + c < 0 else 0.0
        out.append((at + part + TORUS / 2) % TORUS - TORUS / 2)
    return float(out[0]), float(out[1])


# ---------------------------------------------------------------- refinement


def _by_row(y: np.ndarray) -> np.ndarray:
    """An order by rows of the grid, so that a block of the table lies in few of its bands."""
    low, high = float(y.min()), float(y.max())
    band = ((y - low) * (4 * BANDS / max(high - low, 1e-6))).astype(np.uint16)
    return np.argsort(band, kind="stable")  # radix sort


def _refine(frame, x, y, path, count, cell, step):
    """One step: density, scores, smoother.  Returns drift (2, frames), its variance, the square of the walk, contrast.

    The contrast is the mean curvature over the mean square of the scores.  It is 0 where localizations do not know of
    each other, whatever the density, because the mean of a derivative is; a structure seen again makes it near 1.
    """
    n, blocks = len(x), -(-len(x) // BLOCK)
    u, v = np.empty_like(x), np.empty_like(y)
    reach = np.empty((blocks, 4), np.float32)
    share(partial(_move, frame, x, y, path.astype(np.float32), np.float32(1 / cell), u, v, reach), blocks)
    u -= reach[:, 0].min() - 1
    reach[:, 2:] -= (low := reach[:, 2].min() - 1)
    v -= low
    grid = np.empty((int(v.max()) + 4, int(u.max()) + 4), np.float32)
    share(partial(_deposit, u, v, reach, grid), BANDS, part=1)
    pull, sums = np.empty((2, n), np.float32), np.zeros((blocks, 4))
    share(partial(_scores, u, v, grid, pull, sums), blocks)
    score = np.stack([np.bincount(frame, values, path.shape[1]) for values in pull])
    square, curvature = sums.sum(0).reshape(2, 2)
    new, variance, steps = np.empty_like(path), np.empty_like(path), np.empty(2)
    seen = count > 0
    for axis in (0, 1):
        b = max(square[axis] / n, 1e-12)
        a = max(curvature[axis] / n, 0.2 * b)  # noise alone has no curvature to go by
        lack = -np.divide(score[axis], count * a, out=np.zeros(len(count)), where=seen) * cell
        noise = np.divide(b * cell**2, count * a**2, out=np.full(len(count), np.inf), where=seen)
        measured = path[axis] + lack
        steps[axis] = _walk(np.flatnonzero(seen), measured[seen], noise[seen], step[axis])
        new[axis], variance[axis] = _smooth(measured, noise, steps[axis])
    return new, variance, steps, float(curvature.sum() / max(square.sum(), 1e-12))


def _walk(at: np.ndarray, measured: np.ndarray, noise: np.ndarray, before: float) -> float:
    """Mean square step of the random walk, from how fast measurements `at` frames grow apart beyond their noise."""
    far = int(np.clip(4 * noise.mean() / before, 5, max(len(at) // 10, 1)))
    grown = span = 0.0
    for lag in sorted({1, max(1, far // 4), max(1, far // 2), far}):
        if lag < len(at):
            grown += ((measured[lag:] - measured[:-lag]) ** 2 - noise[lag:] - noise[:-lag]).mean()
            span += (at[lag:] - at[:-lag]).mean()
    return float(np.clip(grown / span if span else before, before / 100, before * 100))


@compiled
def _smooth(measured, noise, step):
    """Kalman filter and Rauch-Tung-Striebel smoother of a random walk; infinite noise is no measurement."""
    n = len(measured)
    mean, variance, ahead = np.empty(n), np.empty(n), np.empty(n)
    m, p = 0.0, np.inf
    for k in range(n):
        ahead[k] = p
        if noise[k] < np.inf:
            gain = p / (p + noise[k]) if p < np.inf else 1.0
            m += gain * (measured[k] - m)
            p = gain * noise[k]
        mean[k], variance[k] = m, p
        p += step
    for k in range(n - 2, -1, -1):
        if variance[k] == np.inf:
            mean[k], variance[k] = mean[k + 1], variance[k + 1] + step
        else:
            gain = variance[k] / ahead[k + 1]
            mean[k] += gain * (mean[k + 1] - mean[k])
            variance[k] += gain * gain * (variance[k + 1] - ahead[k + 1])
    return mean, variance


@compiled
def _move(frame, x, y, path, scale, u, v, reach, begin, end):
    """Corrected coordinates in cells, and for each block the least and largest of both."""
    for block in range(begin, end):
        left = bottom = np.float32(np.inf)
        right = top = np.float32(-np.inf)
        for k in range(block * BLOCK, min((block + 1) * BLOCK, len(x))):
            u[k] = (x[k] - path[0, frame[k]]) * scale
            v[k] = (y[k] - path[1, frame[k]]) * scale
            left, right, bottom, top = min(left, u[k]), max(right, u[k]), min(bottom, v[k]), max(top, v[k])
        reach[block, 0], reach[block, 1], reach[block, 2], reach[block, 3] = left, right, bottom, top


@numba.njit(cache=True, error_model="numpy", inline="always")
def _spline(t):
    """The four cubic B-spline weights at the place t in 0 to 1 of a cell."""
    s, sixth = np.float32(1) - t, np.float32(1 / 6)
    t2, s2 = t * t, s * s
    a, d = s2 * s * sixth, t2 * t * sixth
    b = np.float32(2 / 3) - t2 * (np.float32(1) - np.float32(0.5) * t)
    return a, b, np.float32(1) - a - b - d, d


@compiled
def _deposit(u, v, reach, grid, begin, end):
    """Add each localization to the grid; a band of rows has one owner, who adds in the order of the table."""
    rows = grid.shape[0]
    for band in range(begin, end):
        first, last = rows * band // BANDS, rows * (band + 1) // BANDS
        grid[first:last] = 0
        for block in range(len(reach)):
            if reach[block, 3] + 3 < first or reach[block, 2] - 2 > last:
                continue
            for k in range(block * BLOCK, min((block + 1) * BLOCK, len(u))):
                row, column = int(v[k]), int(u[k])
                if row - 1 >= last or row + 2 < first:
                    continue
                a, b, c, d = _spline(u[k] - np.float32(column))
                wy = _spline(v[k] - np.float32(row))
                for i in range(4):
                    line = row - 1 + i
                    if first <= line < last:
                        w = wy[i]
                        grid[line, column - 1] += w * a
                        grid[line, column] += w * b
                        grid[line, column + 1] += w * c
                        grid[line, column + 2] += w * d


@compiled
def _scores(u, v, grid, pull, sums, begin, end):
    """Score of each localization in cells, the density's share of the localization itself taken off.

    `sums` (blocks, 4): of the squares in x, y, and of the curvatures -d² log rho in x, y.
    """
    one, half, floor = np.float32(1), np.float32(0.5), np.float32(FLOOR)
    for block in range(begin, end):
        xx = yy = cx = cy = 0.0
        for k in range(block * BLOCK, min((block + 1) * BLOCK, len(u))):
            row, column = int(v[k]), int(u[k])
            t, s = u[k] - np.float32(column), v[k] - np.float32(row)
            a, b, c, d = _spline(t)
            # derivatives of the weights
            a1, d1 = -half * (one - t) * (one - t), half * t * t
            b1 = t * (np.float32(1.5) * t - np.float32(2))
            c1 = -a1 - b1 - d1
            a2, b2, c2, d2 = one - t, np.float32(3) * t - np.float32(2), one - np.float32(3) * t, t
            wy = _spline(s)
            e1, h1 = -half * (one - s) * (one - s), half * s * s
            f1 = s * (np.float32(1.5) * s - np.float32(2))
            y1 = (e1, f1, -e1 - f1 - h1, h1)
            y2 = (one - s, np.float32(3) * s - np.float32(2), one - np.float32(3) * s, s)
            own = a * a + b * b + c * c + d * d
            own1 = a * a1 + b * b1 + c * c1 + d * d1
            own2 = a * a2 + b * b2 + c * c2 + d * d2
            selfy = selfy1 = selfy2 = p = px = py = pxx = pyy = np.float32(0)
            for i in range(4):
                g0, g1 = grid[row - 1 + i, column - 1], grid[row - 1 + i, column]
                g2, g3 = grid[row - 1 + i, column + 1], grid[row - 1 + i, column + 2]
                line = a * g0 + b * g1 + c * g2 + d * g3
                p += wy[i] * line
                py += y1[i] * line
                pyy += y2[i] * line
                px += wy[i] * (a1 * g0 + b1 * g1 + c1 * g2 + d1 * g3)
                pxx += wy[i] * (a2 * g0 + b2 * g1 + c2 * g2 + d2 * g3)
                selfy += wy[i] * wy[i]
                selfy1 += wy[i] * y1[i]
                selfy2 += wy[i] * y2[i]
            q = one / (max(p - own * selfy, np.float32(0)) + floor)
            sx, sy = (px - own1 * selfy) * q, (py - own * selfy1) * q
            pull[0, k], pull[1, k] = sx, sy
            xx += sx * sx
            yy += sy * sy
            cx += sx * sx - (pxx - own2 * selfy) * q
            cy += sy * sy - (pyy - own * selfy2) * q
        sums[block, 0], sums[block, 1], sums[block, 2], sums[block, 3] = xx, yy, cx, cy


def _height(frame, x, y, path, z, cell):
    """Drift in z (frames,) and its standard error: heights against the mean height of their place, in turn."""
    column = ((x - path[0][frame]) / cell).astype(np.int64)
    row = ((y - path[1][frame]) / cell).astype(np.int64)
    row, column = row - row.min(), column - column.min()
    place = np.unique(row * (column.max() + 1) + column, return_inverse=True)[1]
    good, frames = np.isfinite(z), path.shape[1]
    frame, z, place = frame[good], z[good], place[good]
    number = np.bincount(place)
    alone = number[place] < 2  # says nothing
    drift, variance, step = np.zeros(frames), np.full(frames, np.inf), None
    for _ in range(10):
        flat = z - drift[frame]
        rest = flat - (np.bincount(place, flat) / np.maximum(number, 1))[place]
        spread = max(1.4826 * float(np.median(abs(rest[~alone]))) if (~alone).any() else 1.0, 1e-6)
        w = np.where(alone, 0.0, 1 / (1 + (rest / (3 * spread)) ** 2))  # Cauchy: several structures in one place
        weight = np.bincount(frame, w, frames)
        seen = weight > 0
        lack = np.divide(np.bincount(frame, w * rest, frames), weight, out=np.zeros(frames), where=seen)
        noise = np.divide(spread**2, weight, out=np.full(frames, np.inf), where=seen)
        if not seen.any():
            break
        step = spread**2 / 100 if step is None else step
        step = _walk(np.flatnonzero(seen), (drift + lack)[seen], noise[seen], step)
        drift, variance = _smooth(drift + lack, noise, step)
    return drift - drift.mean(), np.sqrt(variance)
