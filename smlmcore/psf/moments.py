"""First guesses from moments: where an emitter is, how wide and how bright, before any fit.

The moments are taken under a Gaussian weight that is matched to the emitter.  The product of a Gaussian of centre c0
and covariance C with a weight of centre c and covariance W has precision inv(M) = inv(C) + inv(W) and mean
c + M inv(C) (c0 - c): measure M and the mean, solve for C and c0, take them as the next weight.  The weight keeps the
noise of far pixels out, and each round finds the background anew, by least squares with the weight as the template.
(Bernstein & Jarvis 2002, Astronomical Journal 123, 583.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numba
import numpy as np

from .. import backend

ROUNDS = 5
START = 1.3  # sigma of the first weight, pixels
LIMIT = 1e9  # photoelectrons; no pixel holds more, and squares of this stay finite in float32


def weigh(spots: Any, variance: Any = 0.0) -> tuple[Any, Any]:
    """Images (n, h, w) as real numbers without gaps, and the weight of each pixel, 1 / (level + variance).

    Pixels that are not finite have weight 0; these, and pixels of much more read noise than the image has on average,
    are filled with the mean of their neighbours.
    """
    xp = backend.module(spots, variance, name="initial")
    data = backend.asarray(spots)
    if data.ndim != 3:
        raise ValueError(f"initial got spots of shape {data.shape}; expected (n, h, w)")
    v = xp.broadcast_to(xp.asarray(variance, data.dtype), data.shape)
    seen = xp.isfinite(data) & xp.isfinite(v)
    if not seen.all():
        data, v = xp.where(seen, data, 0), xp.where(seen, v, 0)
    data = xp.clip(data, -LIMIT, LIMIT)
    count = xp.maximum(seen.sum((1, 2), keepdims=True), 1).astype(data.dtype)
    level = xp.maximum(data.sum((1, 2), keepdims=True) / count, 0.1)
    weights = seen / (level + v)
    good = seen & (v <= 10 * (level + v.sum((1, 2), keepdims=True) / count))
    if not good.all():
        near = _box(good.astype(data.dtype))
        data = xp.where(good, data, xp.where(near > 0, _box(data * good) / xp.maximum(near, 1), level))
    return data, weights


def _box(a: Any) -> Any:
    """Sums over 3 x 3 pixels, zero outside."""
    xp = backend.module(a)
    p = xp.pad(a, ((0, 0), (1, 1), (1, 1)))
    p = p[:, :-2] + p[:, 1:-1] + p[:, 2:]
    return p[:, :, :-2] + p[:, :, 1:-1] + p[:, :, 2:]


def measure(data: Any) -> dict[str, Any]:
    """Centre x, y and widths sigma, sigma_x, sigma_y, (n,) each, of the brightest spot in images (n, h, w); finite.

    Also `angle` (radians, from the x to the y axis) of the longer principal axis, with `major` and `minor` widths.
    """
    xp = backend.module(data)
    if xp is np:
        found = np.empty((5, len(data)), data.dtype)
        _measure_cpu(np.ascontiguousarray(data), found)
        x, y, vx, vy, cxy = found
    else:
        x, y, vx, vy, cxy = _measure(data)
    vx, vy = vx - 1 / 12, vy - 1 / 12  # a pixel's own width
    middle, half = (vx + vy) / 2, xp.hypot((vx - vy) / 2, cxy)
    half = xp.minimum(half, 0.9 * middle)
    variances = {"sigma": middle, "sigma_x": vx, "sigma_y": vy, "major": middle + half, "minor": middle - half}
    angle = 0.5 * xp.arctan2(2 * cxy, vx - vy)
    return {"x": x, "y": y, "angle": angle, **{k: xp.sqrt(v) for k, v in variances.items()}}


def _measure(data: Any) -> tuple[Any, ...]:
    """Centre x, y, variances along x and y, and covariance, (n,) each, by array operations."""
    xp = backend.module(data)
    n, h, w = data.shape
    columns, rows = xp.arange(w, dtype=data.dtype), xp.arange(h, dtype=data.dtype)
    border = xp.concatenate([data[:, 0], data[:, -1], data[:, :, 0], data[:, :, -1]], 1)
    background = xp.sort(border, 1)[:, border.shape[1] // 2]
    total = data.sum((1, 2))
    # the brightest 3 x 3 pixels; those far from the middle count less, as spots are cut out around their emitters
    middle = xp.exp(-2 * (((rows - (h - 1) / 2) / h) ** 2)[:, None] - 2 * ((columns - (w - 1) / 2) / w) ** 2)
    brightest = ((_box(data - background[:, None, None])) * middle.astype(data.dtype)).reshape(n, h * w).argmax(1)
    x, y = (brightest % w).astype(data.dtype), (brightest // w).astype(data.dtype)
    low, high = 0.3, (max(h, w) / 3) ** 2 + 0.1  # of variances
    vx = vy = xp.full(n, START**2, data.dtype)
    cxy = xp.zeros(n, data.dtype)
    for i in range(ROUNDS):
        (a, dx), (b, dy) = (_weight(x, vx, columns), _weight(y, vy, rows))
        powers_x = xp.stack([a, a * dx, a * dx * dx], 2)
        powers_y = xp.stack([b, b * dy, b * dy * dy], 1)
        m = powers_y @ data @ powers_x
        flat = powers_y.sum(2)[:, :, None] * powers_x.sum(1)[:, None, :]
        if i:
            square = (a * a).sum(1) * (b * b).sum(1)
            area = flat[:, 0, 0]
            determinant = h * w * square - area**2
            found = (square * total - area * m[:, 0, 0]) / xp.where(determinant > 1e-3 * square, determinant, np.inf)
            background = xp.where(determinant > 1e-3 * square, found, background)
        m = m - background[:, None, None] * flat
        mass = xp.where(m[:, 0, 0] > 1e-3, m[:, 0, 0], np.inf)
        mx, my = m[:, 0, 1] / mass, m[:, 1, 0] / mass
        # precision of the product, less that of the weight
        mxx = xp.clip(m[:, 0, 2] / mass - mx**2, 0.1 * vx, 0.95 * vx)
        myy = xp.clip(m[:, 2, 0] / mass - my**2, 0.1 * vy, 0.95 * vy)
        limit = 0.6 * xp.sqrt(mxx * myy)
        mxy = xp.clip(m[:, 1, 1] / mass - mx * my, -limit, limit)
        px, py, pxy = _inverse(mxx, myy, mxy)
        step_x, step_y = px * mx + pxy * my, py * my + pxy * mx
        qx, qy = xp.maximum(px - 1 / vx, 1 / high), xp.maximum(py - 1 / vy, 1 / high)
        limit = 0.8 * xp.sqrt(qx * qy)
        cxx, cyy, cxy = _inverse(qx, qy, xp.clip(pxy, -limit, limit))
        x = xp.clip(x + xp.clip(cxx * step_x + cxy * step_y, -1, 1), -0.5, w - 0.5)
        y = xp.clip(y + xp.clip(cyy * step_y + cxy * step_x, -1, 1), -0.5, h - 0.5)
        vx = xp.clip(xp.clip(cxx, vx / 3, vx * 3), low, high)
        vy = xp.clip(xp.clip(cyy, vy / 3, vy * 3), low, high)
    return x, y, vx, vy, cxy


def _weight(centre, variance, pixels):
    """Gaussian weight (n, size) along one axis, not normalised, and the distances from its centre."""
    d = pixels - centre[:, None]
    return backend.module(d).exp(-0.5 * d * d / variance[:, None]), d


def _inverse(xx, yy, xy):
    """Inverse of symmetric 2 x 2 matrices."""
    determinant = xx * yy - xy**2
    return yy / determinant, xx / determinant, -xy / determinant


@numba.njit(cache=True, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"})
def _weight_cpu(centre, variance, out):
    """Fill out (3, size) with g, g d, g d^2 and return the sums of these and of g^2."""
    s0 = s1 = s2 = square = 0.0
    for i in range(out.shape[1]):
        d = i - centre
        g = math.exp(-0.5 * d * d / variance)
        out[0, i], out[1, i], out[2, i] = g, g * d, g * d * d
        s0, s1, s2, square = s0 + g, s1 + g * d, s2 + g * d * d, square + g * g
    return s0, s1, s2, square


@numba.njit(cache=True, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"})
def _sums_cpu(image, a, b):
    """Sums of the image under the weights of the columns `a` and rows `b`: of 1, x, y, x^2, y^2, x y."""
    m00 = m10 = m01 = m20 = m02 = m11 = 0.0
    for r in range(image.shape[0]):
        s0 = s1 = s2 = image.dtype.type(0)
        for c in range(image.shape[1]):
            s0 += image[r, c] * a[0, c]
            s1 += image[r, c] * a[1, c]
            s2 += image[r, c] * a[2, c]
        m00 += b[0, r] * s0
        m10 += b[0, r] * s1
        m20 += b[0, r] * s2
        m01 += b[1, r] * s0
        m11 += b[1, r] * s1
        m02 += b[2, r] * s0
    return m00, m10, m01, m20, m02, m11


@numba.njit(cache=True, error_model="numpy")
def _brightest_cpu(image, background):
    """Column and row of the brightest 3 x 3 pixels; those far from the middle count less."""
    h, w = image.shape
    best, x, y = -np.inf, 0, 0
    for r in range(h):
        for c in range(w):
            total = 0.0
            for i in range(max(r - 1, 0), min(r + 2, h)):
                for j in range(max(c - 1, 0), min(c + 2, w)):
                    total += image[i, j] - background
            total *= math.exp(-2 * ((r - (h - 1) / 2) / h) ** 2 - 2 * ((c - (w - 1) / 2) / w) ** 2)
            if total > best:
                best, x, y = total, c, r
    return float(x), float(y)


@numba.njit(cache=True, error_model="numpy")
def _clip_cpu(value, low, high):
    return min(max(value, low), high)


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _measure_cpu(data, found):
    """`_measure`, one image after another; found (5, n)."""
    n, h, w = data.shape
    low, high = 0.3, (max(h, w) / 3) ** 2 + 0.1
    for k in numba.prange(n):
        image = data[k]
        a, b = np.empty((3, w), data.dtype), np.empty((3, h), data.dtype)
        border, total = np.empty(2 * (h + w), data.dtype), 0.0
        for i in range(w):
            border[i], border[w + i] = image[0, i], image[h - 1, i]
        for i in range(h):
            border[2 * w + i], border[2 * w + h + i] = image[i, 0], image[i, w - 1]
            for j in range(w):
                total += image[i, j]
        background = float(np.sort(border)[h + w])
        x, y = _brightest_cpu(image, background)
        vx = vy = START**2
        cxy = 0.0
        for turn in range(ROUNDS):
            ax, a1, a2, a_square = _weight_cpu(x, vx, a)
            by, b1, b2, b_square = _weight_cpu(y, vy, b)
            m00, m10, m01, m20, m02, m11 = _sums_cpu(image, a, b)
            if turn:
                square, area = a_square * b_square, ax * by
                determinant = h * w * square - area**2
                if determinant > 1e-3 * square:
                    background = (square * total - area * m00) / determinant
            mass = m00 - background * ax * by
            mass = mass if mass > 1e-3 else np.inf
            mx, my = (m10 - background * a1 * by) / mass, (m01 - background * ax * b1) / mass
            # precision of the product, less that of the weight
            mxx = _clip_cpu((m20 - background * a2 * by) / mass - mx**2, 0.1 * vx, 0.95 * vx)
            myy = _clip_cpu((m02 - background * ax * b2) / mass - my**2, 0.1 * vy, 0.95 * vy)
            limit = 0.6 * math.sqrt(mxx * myy)
            mxy = _clip_cpu((m11 - background * a1 * b1) / mass - mx * my, -limit, limit)
            determinant = mxx * myy - mxy**2
            px, py, pxy = myy / determinant, mxx / determinant, -mxy / determinant
            step_x, step_y = px * mx + pxy * my, py * my + pxy * mx
            qx, qy = max(px - 1 / vx, 1 / high), max(py - 1 / vy, 1 / high)
            limit = 0.8 * math.sqrt(qx * qy)
            qxy = _clip_cpu(pxy, -limit, limit)
            determinant = qx * qy - qxy**2
            cxx, cyy, cxy = qy / determinant, qx / determinant, -qxy / determinant
            x = _clip_cpu(x + _clip_cpu(cxx * step_x + cxy * step_y, -1.0, 1.0), -0.5, w - 0.5)
            y = _clip_cpu(y + _clip_cpu(cyy * step_y + cxy * step_x, -1.0, 1.0), -0.5, h - 0.5)
            vx = _clip_cpu(_clip_cpu(cxx, vx / 3, vx * 3), low, high)
            vy = _clip_cpu(_clip_cpu(cyy, vy / 3, vy * 3), low, high)
        found[0, k], found[1, k], found[2, k], found[3, k], found[4, k] = x, y, vx, vy, cxy


def brightness(shape: Any, data: Any, weights: Any) -> tuple[Any, Any, Any]:
    """Photons and background (n,) of `data` given the image `shape` of one photon, by weighted least squares, and chi2.

    The photons are at least one standard error, the background at least 0.
    """
    xp = backend.module(data)
    s, d, w = (a.reshape(len(a), a.shape[1] * a.shape[2]) for a in (shape, data, weights))
    ws, wd = w * s, w * d
    s0, s1, s2 = w.sum(1), ws.sum(1), _dot(ws, s)
    d0, d1, d2 = wd.sum(1), _dot(wd, s), _dot(wd, d)
    determinant = s0 * s2 - s1**2
    regular = determinant > 1e-6 * s0 * s2
    determinant = xp.where(regular, determinant, 1)
    background = xp.maximum(xp.where(regular, (s2 * d0 - s1 * d1) / determinant, 0), 0)
    least = xp.sqrt(xp.where(regular, s0 / determinant, 1))
    photons = xp.maximum((d1 - background * s1) / xp.maximum(s2, 1e-30), least)
    chi2 = d2 + photons * (photons * s2 + 2 * (background * s1 - d1)) + background * (background * s0 - 2 * d0)
    return photons, background, chi2


def likeliest(psf: Any, shapes: Iterable[Mapping[str, Any]], data: Any, weights: Any) -> dict[str, Any]:
    """Of several `shapes`, all parameters of `psf` but photons and background, for each image the one that fits best.

    Returned with its photons and background, see `brightness`.
    """
    xp = backend.module(data)
    best, least = {}, xp.full(len(data), xp.inf, data.dtype)
    for shape in shapes:
        image = psf.render({**shape, "photons": 1.0, "background": 0.0}, data.shape[1:])
        photons, background, chi2 = brightness(image, data, weights)
        now = {**shape, "photons": photons, "background": background}
        best = {k: xp.where(chi2 < least, v, best.get(k, v)) for k, v in now.items()}
        least = xp.minimum(chi2, least)
    return best


def _dot(a: Any, b: Any) -> Any:
    """Sum of a b over the last axis."""
    return backend.module(a).einsum("np,np->n", a, b)
