"""The background of a movie: smooth in space, slow in time, and blind to the molecules in front of it."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import numba
import numpy as np

from ..threads import share
from .finder import find

TILE = 16  # pixels; the background is linear between the centres of tiles
BLOCK = 128  # frames that share a background
SAMPLES = 20  # frames of a block that are looked at
MASK = (
    3.5  # standard deviations: peaks above count as molecules, and standard deviations of the PSF around are left out
)
LEAST = 0.05  # share of a tile's pixels that must be free of molecules, lest the first estimate stands


def background(frames: Any, variance: Any = 0.0, sigma: float = 1.3, block: int = BLOCK) -> np.ndarray:
    """Photons per pixel (m, h, w) behind the molecules in `frames` (n, h, w), for m = ⌈n / block⌉ equal parts.

    First the mean of each tile of 16² pixels, over frames spread over the block, of the values below one standard
    deviation above it, corrected for the cut; then, once more, the mean of all pixels away from what `find` sees with
    the first.  Pixels of far more read noise than usual do not take part.  Linear between the tiles' centres and on
    to the border, at least 0.01.

    >>> frames = np.random.default_rng(0).poisson(8.0, (64, 32, 32)); frames[:, 10:13, 10:13] += 50
    >>> bool(abs(background(frames)[0, 11, 11] - 8) < 0.3)
    True
    """
    n, h, w = frames.shape
    parts = max(1, -(-n // block))
    out = np.empty((parts, h, w), np.float32)
    read = np.broadcast_to(np.asarray(variance, np.float32), (h, w))
    typical = float(np.median(read)) if read.size else 0.0
    usual = read <= 10 * typical + 1
    for part in range(parts):
        # the same parts as `find` has: frame i belongs to part i * parts // n
        first, last = -(-part * n // parts), -(-(part + 1) * n // parts)
        few = frames[np.unique(np.linspace(first, max(last - 1, first), SAMPLES).astype(int))] if n else frames
        few = np.ascontiguousarray(few, np.float32)
        tiles = _tiles(h, w)
        level, free = np.zeros(tiles), np.zeros(few.shape, np.bool_)
        free[:] = usual
        share(partial(_clipped, few, usual, typical, level), level.size)
        rough = _between(level, h, w)
        found = find(few, rough[None], read, sigma, threshold=MASK)
        _cover(free, found["frame"].astype(np.int64), found["y"], found["x"], int(MASK * sigma + 0.5))
        total, count = np.zeros(tiles), np.zeros(tiles)
        share(partial(_free, few, free, total, count), len(total))
        enough = count > LEAST * few[:, : -(-h // tiles[0]), : -(-w // tiles[1])].size
        out[part] = _between(np.where(enough, total / np.maximum(count, 1), level), h, w)
    return out


def flickering(frames: np.ndarray, behind: np.ndarray, variance: Any = 0.0, sigma: float = 1.3) -> np.ndarray:
    """The background `behind` (m, h, w) for each of the `frames` (n, h, w), if its level jumps from frame to frame.

    A frame's level is the mean of (d - b) / b over some thousand pixels, cut at 1.5 standard deviations of the
    noise so that molecules hardly matter, compared with the median of all frames.  If the levels scatter twice as
    much as the noise makes them, each frame has its own, (n, h, w), from a background that is estimated anew behind
    frames of one level; else `behind` comes back as it is.

    >>> frames = np.random.default_rng(0).poisson(np.repeat([5.0, 15.0], 20)[:, None, None], (40, 32, 32))
    >>> behind = flickering(frames, np.full((1, 32, 32), 10.0))
    >>> behind.shape, bool(abs(behind[0].mean() - 5) < 0.5)
    ((40, 32, 32), True)
    """
    n, h, w = frames.shape
    if frames.size == 0:
        return behind
    part = np.arange(n) * len(behind) // n
    step = max(1, int(np.sqrt(h * w / 1024)))
    b, data = np.ascontiguousarray(behind[:, ::step, ::step], np.float32), np.asarray(frames, np.float32)
    variance_there = np.broadcast_to(np.asarray(variance, np.float32), (h, w))[::step, ::step]
    spread = np.sqrt(b + variance_there)
    level, scale = np.zeros(n), b.mean((1, 2), dtype=float)
    share(partial(_levels, data, b, spread, scale, step, level), n)
    level = (level - np.median(level))[:, None, None]
    noise = 1.2 * np.sqrt((spread[part] ** 2).mean(dtype=float) / b[0].size) / scale[part].mean()
    if level.std() < 2 * noise:
        return behind
    jump = (behind[part] * level).astype(np.float32)
    behind = background(frames - jump, variance, sigma)
    return np.maximum(behind[np.arange(n) * len(behind) // n] + jump, np.float32(0.01))


def _tiles(h: int, w: int) -> tuple[int, int]:
    return max(1, round(h / TILE)), max(1, round(w / TILE))


def _between(level: np.ndarray, h: int, w: int) -> np.ndarray:
    rows, columns = _linear(h, level.shape[0]), _linear(w, level.shape[1])
    return np.maximum(rows @ level @ columns.T, 0.01).astype(np.float32)


@lru_cache(8)
def _linear(size: int, tiles: int) -> np.ndarray:
    """Weights (size, tiles) of linear interpolation between the centres of tiles, and beyond the outer ones."""
    if tiles == 1:
        return np.ones((size, 1))
    edges = np.arange(tiles + 1) * size // tiles
    centres = (edges[1:] + edges[:-1] - 1) / 2
    at = np.arange(size)
    left = np.clip(np.searchsorted(centres, at, "right") - 1, 0, tiles - 2)
    part = (at - centres[left]) / (centres[left + 1] - centres[left])
    weights = np.zeros((size, tiles))
    weights[at, left], weights[at, left + 1] = 1 - part, part
    return weights


compiled = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"})


@compiled
def _levels(frames, b, spread, scale, step, level, begin, end):
    """Of each frame by how much of the background `b` (m, h / step, w / step) it is brighter."""
    n, m, h, w = len(frames), *b.shape
    one, cut, zero = np.float32(1), np.float32(1.5), np.float32(0)
    few = np.empty(h * w, np.float32)
    for i in range(begin, end):
        part, found = i * m // n, zero
        for y in range(h):
            for x in range(w):
                few[y * w + x] = frames[i, y * step, x * step]
        behind, most = b[part].reshape(-1), spread[part].reshape(-1)
        for _ in range(12):
            total = zero
            for p in range(h * w):
                rest, limit = few[p] - behind[p] * (one + found), cut * most[p]
                rest = limit if rest > limit else -limit if rest < -limit else rest
                total += rest if abs(rest) <= limit else zero  # NaN says nothing
            found += np.float32(total / (h * w) / scale[part])
        level[i] = found


@compiled
def _clipped(frames, usual, variance, level, begin, end):
    """Mean of each tile below one standard deviation above itself, over every fourth of the frames."""
    n, h, w = frames.shape
    ty, tx = level.shape
    for tile in range(begin, end):
        i, j = tile // tx, tile % tx
        values = np.empty((n // 4 + 1) * (h // ty + 1) * (w // tx + 1), np.float32)
        count, first = 0, 0.0
        for k in range(0, n, 4):
            for y in range(i * h // ty, (i + 1) * h // ty):
                for x in range(j * w // tx, (j + 1) * w // tx):
                    if usual[y, x] and np.isfinite(frames[k, y, x]):
                        values[count] = frames[k, y, x]
                        first += frames[k, y, x]
                        count += 1
        b = first / count if count else 0.0
        for _ in range(30):
            spread = np.sqrt(max(b, 0.0) + variance)
            top = np.float32(b + spread)
            total, kept = np.float32(0), 0
            for v in values[:count]:
                total += v if v <= top else np.float32(0)
                kept += v <= top
            if kept == 0:
                break
            # the mean of a normal variable below its mean plus one standard deviation is 0.2876 of these lower
            new = total / kept + 0.2876 * spread
            near = abs(new - b) < 1e-3 * max(new, 0.1)
            b = new
            if near:
                break
        level[i, j] = b


@compiled
def _cover(free, frame, y, x, radius):
    """Take the discs around peaks out of `free`."""
    h, w = free.shape[1:]
    for p in range(len(x)):
        for i in range(max(0, y[p] - radius), min(h, y[p] + radius + 1)):
            half = int(np.sqrt(radius * radius - (i - y[p]) ** 2))
            for j in range(max(0, x[p] - half), min(w, x[p] + half + 1)):
                free[frame[p], i, j] = False


@compiled
def _free(frames, free, total, count, begin, end):
    """Sum and number of the values of each tile where it is free."""
    n, h, w = frames.shape
    ty, tx = total.shape
    for i in range(begin, end):
        light, seen = np.zeros(w, np.float32), np.zeros(w, np.float32)
        for k in range(n):
            for y in range(i * h // ty, (i + 1) * h // ty):
                data, open_there = frames[k, y], free[k, y]
                for x in range(w):
                    good = open_there[x] and abs(data[x]) < np.float32(1e30)
                    light[x] += data[x] if good else np.float32(0)
                    seen[x] += np.float32(good)
        for j in range(tx):
            for x in range(j * w // tx, (j + 1) * w // tx):
                total[i, j] += light[x]
                count[i, j] += seen[x]
