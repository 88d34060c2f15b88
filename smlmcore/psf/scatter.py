"""Many separable Gaussian emitters in large images, each drawn only where it is.

The image is that of `gaussian.py`: a sum over emitters plus one background.  An emitter is computed within REACH
standard deviations of its centre, where the rest is below the rounding of its peak: 1e-7 in float32, 1e-16 in float64.
So time follows the number of emitters and memory does not: no (emitters, h, w) exists anywhere.

CPU: the image is cut into bands of rows that fit in the cache; a counting sort lists the emitters that touch each
band, in order, and a thread draws a band at a time.  CUDA: a block draws a tile of 16 x 16 pixels and finds the
emitters that touch it by itself.  Neither adds to memory that another one writes: the result is the same at every run.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numba
import numpy as np

from .. import backend, kernel
from ..autograd import op
from . import axis, gaussian

BAND = 64  # rows
CHUNK = 128  # emitters, in the gradient
REACH = {np.dtype("float32"): 5.3, np.dtype("float64"): 8.5}

# ---------------------------------------------------------------- reference: the definition


def _scatter(x, y, photons, sigma_x, sigma_y, start, background, image):
    for i, (first, last) in enumerate(pairwise(start)):
        own = [np.asarray(a[first:last], float)[None] for a in (x, y, photons, sigma_x, sigma_y)]
        gaussian._render(*own, background[i : i + 1], image[i : i + 1])


def _scatter_vjp(x, y, photons, sigma_x, sigma_y, start, gradient, *outputs):
    *emitters, gbackground = outputs
    for i, (first, last) in enumerate(pairwise(start)):
        own = [np.asarray(a[first:last], float)[None] for a in (x, y, photons, sigma_x, sigma_y)]
        out = [a[None, first:last] for a in emitters]
        gaussian._render_vjp(*own, gradient[i : i + 1], *out, gbackground[i : i + 1])


# ---------------------------------------------------------------- cpu


@axis.compiled
def window(centre, sigma, reach, size):
    """First and number of the pixels within reach * sigma of centre; all if that is not finite, perhaps none."""
    half = np.ceil(reach * sigma)
    middle = np.rint(centre)
    if not (abs(middle) < 1e9 and half < 1e9):
        return 0, size
    first = max(int(middle) - int(half), 0)
    return first, max(min(int(middle) + int(half), size - 1) - first + 1, 0)


@axis.compiled
def _lists(y, sigma_y, reach, start, height):
    """Emitters that touch each band: `order`, and the `offsets` of each band's part in it."""
    bands = (height + BAND - 1) // BAND
    offsets = np.zeros((len(start) - 1) * bands + 2, np.int64)  # one entry late: they become offsets while filled
    for i in range(len(start) - 1):
        for k in range(start[i], start[i + 1]):
            first, count = window(y[k], sigma_y[k], reach, height)
            for band in range(first // BAND, (first + count + BAND - 1) // BAND if count else 0):
                offsets[i * bands + band + 2] += 1
    for b in range(1, len(offsets)):
        offsets[b] += offsets[b - 1]
    order = np.empty(offsets[-1], np.int32)
    for i in range(len(start) - 1):
        for k in range(start[i], start[i + 1]):
            first, count = window(y[k], sigma_y[k], reach, height)
            for band in range(first // BAND, (first + count + BAND - 1) // BAND if count else 0):
                order[offsets[i * bands + band + 1]] = k
                offsets[i * bands + band + 1] += 1
    return offsets, order


@axis.parallel
def _scatter_bands(x, y, photons, sigma_x, sigma_y, reach, offsets, order, background, image):
    h, w = image.shape[1:]
    bands = (h + BAND - 1) // BAND
    stride, flat = axis.whole(w), image.reshape(-1)
    for band in numba.prange(len(offsets) - 2):
        i, top = band // bands, band % bands * BAND
        height = min(BAND, h - top)
        along_x, along_y = 0, stride
        edges = along_y + axis.whole(h)
        canvas = edges + axis.room(max(h, stride))
        scratch = np.zeros(canvas + height * stride, image.dtype)
        for j in range(height * stride):
            axis.put(scratch, canvas + j, background[i])
        for e in range(offsets[band], offsets[band + 1]):
            k = order[e]
            left, columns = window(x[k], sigma_x[k], reach, w)
            if columns == 0:
                continue
            columns = axis.whole(columns)
            left = min(left, stride - columns)
            first, rows = window(y[k], sigma_y[k], reach, h)
            rows = min(first + rows, top + height)
            first = max(first, top)
            rows -= first
            axis.values(scratch, along_x, edges, left, x[k], sigma_x[k], columns)
            axis.values(scratch, along_y, edges, first, y[k], sigma_y[k], rows)
            corner = canvas + (first - top) * stride + left
            axis.spread(scratch, corner, stride, rows, columns, along_y, along_x, photons[k])
        for r in range(height):
            for j in range(w):
                axis.put(flat, (i * h + top + r) * w + j, axis.get(scratch, canvas + r * stride + j))


def _scatter_cpu(x, y, photons, sigma_x, sigma_y, start, background, image):
    reach = x.dtype.type(REACH[x.dtype])
    offsets, order = _lists(y, sigma_y, reach, start, image.shape[1])
    _scatter_bands(x, y, photons, sigma_x, sigma_y, reach, offsets, order, background, image)


@axis.parallel
def _gather(x, y, photons, sigma_x, sigma_y, reach, start, gradient, gx, gy, gphotons, gsigma_x, gsigma_y):
    h, w = gradient.shape[1:]
    flat = gradient.reshape(-1)
    for chunk in numba.prange((len(x) + CHUNK - 1) // CHUNK):
        across, down = 0, 3 * axis.whole(w)
        edges = down + 3 * axis.whole(h)
        sums = edges + 3 * axis.room(max(h, w))
        scratch = np.zeros(sums + 4 * axis.whole(w), gradient.dtype)
        i = np.searchsorted(start, chunk * CHUNK, side="right") - 1
        for k in range(chunk * CHUNK, min(len(x), (chunk + 1) * CHUNK)):
            while start[i + 1] <= k:
                i += 1
            left, columns = window(x[k], sigma_x[k], reach, w)
            top, rows = window(y[k], sigma_y[k], reach, h)
            axis.slopes(scratch, across, edges, left, x[k], sigma_x[k], columns)
            axis.slopes(scratch, down, edges, top, y[k], sigma_y[k], rows)
            corner, end = (i * h + top) * w + left, (i + 1) * h * w
            sx, sy, s, ssx, ssy = axis.collect(scratch, sums, down, across, rows, columns, flat, corner, w, end)
            gx[k] = photons[k] * sx
            gy[k] = photons[k] * sy
            gphotons[k] = s
            gsigma_x[k] = photons[k] * ssx
            gsigma_y[k] = photons[k] * ssy


def _scatter_vjp_cpu(x, y, photons, sigma_x, sigma_y, start, gradient, *outputs):
    _gather(x, y, photons, sigma_x, sigma_y, x.dtype.type(REACH[x.dtype]), start, gradient, *outputs[:5])
    outputs[5][...] = gradient.sum((1, 2))


# ---------------------------------------------------------------- registration


def _sample(rng, n, m, s, h, w):
    x, y, photons, sigma_x, sigma_y = (a[:, 0] for a in gaussian.sample(rng, n, h + 6, w + 6)[:5])
    owner = np.sort(rng.integers(0, m, n)) if m else np.empty(0, int)
    start = np.searchsorted(owner, np.arange(s))
    return [x - 3, y - 3, photons, sigma_x, sigma_y, start, rng.uniform(0, 20, m)]


def _sample_vjp(rng, n, m, s, h, w):
    return [*_sample(rng, n, m, s, h, w)[:6], rng.normal(size=(m, h, w))]


_CASES = tuple(
    {"n": n, "m": m, "s": m + 1, "h": h, "w": w}
    for n, m, h, w in [(0, 0, 5, 5), (0, 2, 3, 4), (1, 1, 1, 1), (7, 3, 5, 12), (40, 2, 70, 33)]
)
_BENCH = {"n": 100_000, "m": 4, "s": 5, "h": 256, "w": 256}
_INPUTS = "x[n] y[n] photons[n] sigma_x[n] sigma_y[n] start[s]:int32"


def _tiles(dims: Mapping[str, int]) -> int:
    return dims["m"] * (-(-dims["h"] // 16)) * (-(-dims["w"] // 16))


scatter_kernel = kernel.register(
    "gaussian2d_scatter",
    f"{_INPUTS} background[m] -> image[m,h,w]",
    _scatter,
    cpu=_scatter_cpu,
    cuda=kernel.Cuda("scatter.cu", _tiles, threads=256),
    sample=_sample,
    cases=_CASES,
    bench=_BENCH,
)
scatter_vjp_kernel = kernel.register(
    "gaussian2d_scatter_vjp",
    f"{_INPUTS} gradient[m,h,w] -> gx[n] gy[n] gphotons[n] gsigma_x[n] gsigma_y[n] gbackground[m]",
    _scatter_vjp,
    cpu=_scatter_vjp_cpu,
    cuda=kernel.Cuda("scatter.cu", lambda dims: dims["m"] + -(-dims["n"] // 4), threads=128),
    sample=_sample_vjp,
    cases=_CASES,
    bench=_BENCH,
)

# ---------------------------------------------------------------- the op


@op
def scatter_op(x, y, photons, sigma_x, sigma_y, background, *, image, shape):
    """Images (m, h, w) of `shape` (h, w): emitters (n,) into the images of index `image` (n,), and background (m,)."""
    xp = backend.module(x)
    image, count = xp.asarray(image), len(background)
    order = None if bool((image[1:] >= image[:-1]).all()) else xp.argsort(image, kind="stable")
    if order is not None:
        image = image[order]
        x, y, photons, sigma_x, sigma_y = (a[order] for a in (x, y, photons, sigma_x, sigma_y))
    start = xp.searchsorted(image, xp.arange(count + 1, dtype=image.dtype)).astype(np.int32)
    saved = tuple(map(xp.ascontiguousarray, (x, y, photons, sigma_x, sigma_y, start)))
    out = xp.empty((count, *shape), x.dtype)
    return scatter_kernel(*saved, background, out=out), (saved, order)


@scatter_op.vjp
def _(kept, gradient):
    saved, order = kept
    xp = backend.module(gradient)
    out = (*(xp.empty_like(a) for a in saved[:5]), xp.empty(len(gradient), gradient.dtype))
    scatter_vjp_kernel(*saved, gradient, out=out)
    if order is None:
        return out
    back = xp.empty_like(order)
    back[order] = xp.arange(len(order))
    return (*(a[back] for a in out[:5]), out[5])


def check_index(image: Any, emitters: int, count: int) -> Any:
    """`image` as an integer array (emitters,) of indices below `count`, or an error."""
    xp = backend.module(image)
    index = xp.asarray(image)
    if index.dtype.kind not in "iu" and index.size:
        raise TypeError(f"render got image of {index.dtype}; expected integers, the image that each emitter is in")
    index = xp.broadcast_to(index, (emitters,)) if index.ndim == 0 else index
    if index.shape != (emitters,):
        raise ValueError(f"render got image of shape {index.shape}; expected ({emitters},), one for each emitter")
    if index.size and not (int(index.min()) >= 0 and int(index.max()) < count):
        raise ValueError(
            f"render got image from {int(index.min())} to {int(index.max())} and background of {count} images; "
            "expected indices of these, from 0: background has one number for each image"
        )
    return index.astype(np.int64)
