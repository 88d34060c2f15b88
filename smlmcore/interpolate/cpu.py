"""The numba bodies of `kernels.py`.  Cubic splines in two and three dimensions have a fast path, in vectors of four.

A point near the border has its neighbours copied into an array of 4 x 4 (x 4), and then goes the same way.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from . import simd
from .modes import CONSTANT, LIMIT, MIDDLE, PERIODIC, POLES, REFLECT, ZERO

FAST = {"reassoc", "contract", "arcp", "nsz"}  # as fast as all of them, and NaN stays NaN
U = np.uint64
LANES = 64  # lines that are filtered together
CHUNK = 1024  # points that a thread takes at a time
SLABS = 8  # parts of an array into which points are scattered side by side

plain = numba.njit(cache=True, error_model="numpy")
fast = numba.njit(cache=True, error_model="numpy", fastmath=FAST)
parallel = numba.njit(cache=True, error_model="numpy", parallel=True, fastmath=FAST)

# ---------------------------------------------------------------- weights


@fast
def basis(t, degree, weight, slope):
    """Fill weight and slope (degree + 1) at t in [0, 1] beyond a knot, by de Boor's recursion."""
    real = weight.dtype.type
    weight[0], slope[0] = real(1), real(0)
    for j in range(1, degree + 1):
        scale = real(1) / real(j)
        left = real(0)
        for r in range(j + 1):
            right = weight[r] if r < j else real(0)
            slope[r] = left - right
            weight[r] = ((t + real(j - r)) * left + (real(r + 1) - t) * right) * scale
            left = right


@fast
def cubic(t):
    """The four weights of a cubic spline."""
    real = type(t)
    s = real(1) - t
    sixth, third = real(1 / 6), real(2 / 3)
    return (
        s * s * s * sixth,
        third - t * t * (real(1) - real(0.5) * t),
        third - s * s * (real(1) - real(0.5) * s),
        t * t * t * sixth,
    )


@fast
def cubic_slopes(t):
    """Their derivatives."""
    real = type(t)
    s, half = real(1) - t, real(0.5)
    return -half * s * s, t * (real(1.5) * t - real(2)), s * (real(2) - real(1.5) * s), half * t * t


@plain
def fold(i, n, mode):
    """The index in 0...n - 1 that a coefficient anywhere is equal to; -1 for one that is 0."""
    if 0 <= i < n:
        return i
    if mode == ZERO:
        return -1
    if mode == PERIODIC or n == 1:
        return i % n
    period = 2 * n if mode == REFLECT else 2 * n - 2
    i %= period
    return i if i < n else 2 * n - 1 - i if mode == REFLECT else period - i


@plain
def taps(x, n, degree, mode, index, weight, slope):
    """Fill index, weight and slope (degree + 1) for a coordinate along an axis of n; False if it is no number."""
    if not abs(x) < LIMIT:
        return False
    half = type(x)(0.5 if degree % 2 == 0 else 0)
    first = math.floor(x + half)
    basis(x + half - type(x)(first), degree, weight, slope)
    beyond = mode == CONSTANT and not 0 <= x <= n - 1
    for k in range(degree + 1):
        index[k] = fold(int(first) - degree // 2 + k, n, mode)
        if index[k] < 0 or beyond:
            index[k] = 0
            weight[k] = slope[k] = type(x)(0)
    return True


@plain
def all_taps(points, at, d, shape, degree, mode, index, weight, slope):
    """`taps` of the three axes, (3, 6) each, for the point at `at`; the number of taps of each, or zeros."""
    counts = (degree + 1 if d == 3 else 1, degree + 1 if d >= 2 else 1, degree + 1)
    for axis in range(3 - d):
        index[axis, 0], weight[axis, 0], slope[axis, 0] = 0, 1, 0
    known = True
    for i in range(d):
        a = 3 - d + i
        known &= taps(points[at + i], shape[a], degree, mode, index[a], weight[a], slope[a])
    return known, counts


@fast
def split(x):
    """Whole part and fraction of a coordinate that is not negative."""
    whole = int(x)
    return whole, x - type(x)(whole)


@plain
def inside(x, n):
    """Whether a coordinate has all four neighbours in 0...n - 1."""
    return x >= 1 and x < n - 2


# ---------------------------------------------------------------- values and slopes


@fast
def collect(c, base, q, r, index, counts, near):
    """Copy the neighbours into near (4^3 at most), rows of four."""
    for i in range(counts[0]):
        for j in range(counts[1]):
            row = base + (index[0, i] * q + index[1, j]) * r
            for k in range(4):
                near[(i * 4 + j) * 4 + k] = c[row + index[2, k]]


@fast
def general(c, base, q, r, counts, index, wz, wy, wx):
    """The weighted sum over any number of neighbours."""
    total = c.dtype.type(0)
    for i in range(counts[0]):
        plane = c.dtype.type(0)
        for j in range(counts[1]):
            row, line = base + (index[0, i] * q + index[1, j]) * r, c.dtype.type(0)
            for k in range(counts[2]):
                line += wx[k] * c[row + index[2, k]]
            plane += wy[j] * line
        total += wz[i] * plane
    return total


@plain
def four(w):
    return w[0], w[1], w[2], w[3]


@parallel
def _sample(coefficients, points, degree, mode, value):
    b, p, q, r = coefficients.shape
    m, d = points.shape[1:]
    c, x, out = coefficients.reshape(-1), points.reshape(-1), value.reshape(-1)
    for chunk in numba.prange((b * m + CHUNK - 1) // CHUNK):
        index, weight, slope = np.empty((3, 6), np.int64), np.empty((3, 6), c.dtype), np.empty((3, 6), c.dtype)
        near = np.empty(64, c.dtype)
        for s in range(chunk * CHUNK, min(b * m, (chunk + 1) * CHUNK)):
            base, at = s // m * (p * q * r), s * d
            vectors = degree == 3 and d >= 2
            if vectors and inside(x[at + d - 1], r) and inside(x[at + d - 2], q) and (d == 2 or inside(x[at], p)):
                (k, tx), (j, ty) = split(x[at + d - 1]), split(x[at + d - 2])
                wx, wy = cubic(tx), cubic(ty)
                o = base + (j - 1) * r + k - 1
                if d == 3:
                    i, tz = split(x[at])
                    out[s] = simd.value3(c, o + (i - 1) * q * r, q * r, r, cubic(tz), wy, wx)
                else:
                    out[s] = simd.value2(c, o, r, wy, wx)
                continue
            known, counts = all_taps(x, at, d, (p, q, r), degree, mode, index, weight, slope)
            if not known:
                out[s] = np.nan
            elif vectors:
                collect(c, base, q, r, index, counts, near)
                wx, wy = four(weight[2]), four(weight[1])
                if d == 3:
                    out[s] = simd.value3(near, 0, 16, 4, four(weight[0]), wy, wx)
                else:
                    out[s] = simd.value2(near, 0, 4, wy, wx)
            else:
                out[s] = general(c, base, q, r, counts, index, weight[0], weight[1], weight[2])


@parallel
def _slopes(coefficients, points, degree, mode, value, slopes):
    b, p, q, r = coefficients.shape
    m, d = points.shape[1:]
    c, x, out, gradient = coefficients.reshape(-1), points.reshape(-1), value.reshape(-1), slopes.reshape(-1)
    for chunk in numba.prange((b * m + CHUNK - 1) // CHUNK):
        index, weight, slope = np.empty((3, 6), np.int64), np.empty((3, 6), c.dtype), np.empty((3, 6), c.dtype)
        near = np.empty(64, c.dtype)
        for s in range(chunk * CHUNK, min(b * m, (chunk + 1) * CHUNK)):
            base, at = s // m * (p * q * r), s * d
            vectors = degree == 3 and d >= 2
            if vectors and inside(x[at + d - 1], r) and inside(x[at + d - 2], q) and (d == 2 or inside(x[at], p)):
                (k, tx), (j, ty) = split(x[at + d - 1]), split(x[at + d - 2])
                o = base + (j - 1) * r + k - 1
                wy, wx, dy, dx = cubic(ty), cubic(tx), cubic_slopes(ty), cubic_slopes(tx)
                if d == 3:
                    i, tz = split(x[at])
                    start = o + (i - 1) * q * r
                    found = simd.slopes3(c, start, q * r, r, cubic(tz), wy, wx, cubic_slopes(tz), dy, dx)
                    out[s], gradient[at], gradient[at + 1], gradient[at + 2] = found
                else:
                    out[s], gradient[at], gradient[at + 1] = simd.slopes2(c, o, r, wy, wx, dy, dx)
                continue
            known, counts = all_taps(x, at, d, (p, q, r), degree, mode, index, weight, slope)
            if not known:
                out[s] = np.nan
                gradient[at : at + d] = np.nan
            elif vectors:
                collect(c, base, q, r, index, counts, near)
                wy, wx, dy, dx = four(weight[1]), four(weight[2]), four(slope[1]), four(slope[2])
                if d == 3:
                    found = simd.slopes3(near, 0, 16, 4, four(weight[0]), wy, wx, four(slope[0]), dy, dx)
                    out[s], gradient[at], gradient[at + 1], gradient[at + 2] = found
                else:
                    out[s], gradient[at], gradient[at + 1] = simd.slopes2(near, 0, 4, wy, wx, dy, dx)
            else:
                out[s] = general(c, base, q, r, counts, index, weight[0], weight[1], weight[2])
                for i in range(d):
                    a = 3 - d + i
                    wz, wy = slope[0] if a == 0 else weight[0], slope[1] if a == 1 else weight[1]
                    wx = slope[2] if a == 2 else weight[2]
                    gradient[at + i] = general(c, base, q, r, counts, index, wz, wy, wx)


# ---------------------------------------------------------------- the adjoint


@parallel
def _scatter(gradient, points, degree, mode, coefficients):
    # Each slab of the first axis is written by one thread, that goes through all points in order: so the sums do not
    # depend on the number of threads.
    b, p, q, r = coefficients.shape
    m, d = points.shape[1:]
    g, x, c = gradient.reshape(-1), points.reshape(-1), coefficients.reshape(-1)
    first = p if d == 3 else q if d == 2 else r
    slabs = 1 if b >= 8 * SLABS else min(SLABS, first)
    for part in numba.prange(b * slabs):
        image, slab = part // slabs, part % slabs
        low, high = first * slab // slabs, first * (slab + 1) // slabs
        index, weight, slope = np.empty((3, 6), np.int64), np.empty((3, 6), c.dtype), np.empty((3, 6), c.dtype)
        base = image * p * q * r
        size = p * q * r // first
        c[base + low * size : base + high * size] = 0
        for s in range(image * m, (image + 1) * m):
            at = s * d
            if d >= 2 and degree == 3 and inside(x[at], first):
                a, tz = split(x[at])
                a -= 1
                if a + 4 <= low or a >= high:
                    continue
                if inside(x[at + d - 1], r) and inside(x[at + d - 2], q):
                    (k, tx), (j, ty) = split(x[at + d - 1]), split(x[at + d - 2])
                    wx, wy = cubic(tx), cubic(ty)
                    if d == 2:
                        for i in range(max(a, low), min(a + 4, high)):
                            simd.add_row(c, base + i * r + k - 1, g[s] * wy[i - a], wx)
                    else:
                        wz = cubic(tz)
                        for i in range(max(a, low), min(a + 4, high)):
                            u, o = g[s] * wz[i - a], base + (i * q + j - 1) * r + k - 1
                            simd.add_row(c, o, u * wy[0], wx)
                            simd.add_row(c, o + r, u * wy[1], wx)
                            simd.add_row(c, o + 2 * r, u * wy[2], wx)
                            simd.add_row(c, o + 3 * r, u * wy[3], wx)
                    continue
            known, counts = all_taps(x, at, d, (p, q, r), degree, mode, index, weight, slope)
            if not known:
                continue
            for i in range(counts[0]):
                for j in range(counts[1]):
                    u = g[s] * weight[0, i] * weight[1, j]
                    row = base + (index[0, i] * q + index[1, j]) * r
                    for k in range(counts[2]):
                        of = index[3 - d, i if d == 3 else j if d == 2 else k]
                        if low <= of < high:
                            c[row + index[2, k]] += u * weight[2, k]


# ---------------------------------------------------------------- the filter


def _prefilter(a, degree, mode, c):
    if degree < 2 or (a.shape[1] == 1 and mode != ZERO):
        c[...] = a
    else:
        _filter(a, np.array(POLES[degree], a.dtype), np.array(MIDDLE[degree], a.dtype), mode, c)


@parallel
def _filter(a, poles, middle, mode, c):
    outer, n, inner = a.shape
    source, target = a.reshape(-1), c.reshape(-1)
    factors = factor(middle, n if mode == ZERO else 0)
    wide = inner >= LANES // 4  # neighbouring lines lie side by side
    tiles = (inner + LANES - 1) // LANES
    for tile in numba.prange(outer * tiles if wide else (outer * inner + LANES - 1) // LANES):
        s = np.zeros(n * LANES, c.dtype)
        at = tile // tiles * (n * inner) + tile % tiles * LANES
        if wide:
            lanes = min(LANES, inner - tile % tiles * LANES)
            for k in range(n):
                copy(source, at + k * inner, s, k * LANES, lanes)
        else:
            lanes = min(LANES, outer * inner - tile * LANES)
            for i in range(lanes):
                line = tile * LANES + i
                move(source, line // inner * (n * inner) + line % inner, inner, s, i, LANES, n)
        if mode == ZERO:
            banded(s, n, factors)
        else:
            for pole in poles:
                recursive(s, n, pole, mode)
        if wide:
            for k in range(n):
                copy(s, k * LANES, target, at + k * inner, lanes)
        else:
            for i in range(lanes):
                line = tile * LANES + i
                move(s, i, LANES, target, line // inner * (n * inner) + line % inner, inner, n)


# Rows of LANES numbers of the flat scratch s (n, LANES).  Unsigned indices: numba checks the others for being negative,
# and LLVM makes no vectors of what remains.


@fast
def copy(source, at, target, to, count):
    for i in range(count):
        target[U(to) + U(i)] = source[U(at) + U(i)]


@fast
def move(source, at, step, target, to, stride, count):
    for i in range(count):
        target[U(to) + U(i) * U(stride)] = source[U(at) + U(i) * U(step)]


@fast
def mix(s, k, other, u, v):
    """Row k becomes u times itself plus v times another row."""
    a, b = U(k * LANES), U(other * LANES)
    for i in range(LANES):
        s[a + U(i)] = u * s[a + U(i)] + v * s[b + U(i)]


@fast
def add(total, w, s, k):
    for i in range(LANES):
        total[U(i)] += w * s[U(k * LANES) + U(i)]


@fast
def put(s, k, w, row):
    for i in range(LANES):
        s[U(k * LANES) + U(i)] = w * row[U(i)]


@fast
def recursive(s, n, z, mode):
    """The filter 1 / B of one pole z: causal, then anticausal.

    Each starts with the sum over all samples before the first (after the last) of the array that the mode continues.
    Its terms decay with z: it ends where they vanish, or after the whole array, whose copies are a geometric series.
    """
    real = s.dtype.type
    one = real(1)
    gain = (one - z) * (one - one / z)
    enough = min(n, int(math.log(1e-18 if s.itemsize == 8 else 1e-9) / math.log(abs(z))) + 2)
    head, tail = np.zeros(LANES, s.dtype), np.zeros(LANES, s.dtype)
    w, far = z, real(0)
    if mode == PERIODIC:
        add(head, one, s, 0)
        for k in range(n - 1, n - enough, -1):
            add(head, w, s, k)
            w *= z
        far = w if enough == n else far
        scale = one / (one - far)
    elif mode == REFLECT:
        far = real(z**n) if enough == n else far
        for k in range(enough):
            add(head, w, s, k)
            if far != 0:
                add(head, w * far, s, n - 1 - k)
            w *= z
        scale = one / (one - far * far)
        add(head, one / scale, s, 0)
    else:
        far = real(z ** (n - 1)) if enough == n else far
        add(head, one, s, 0)
        add(head, far, s, n - 1)
        for k in range(1, min(enough, n - 1)):
            add(head, w, s, k)
            if far != 0:
                add(head, w * far, s, n - 1 - k)
            w *= z
        scale = one / (one - far * far)
    put(s, 0, gain * scale, head)
    for k in range(1, n):
        mix(s, k, k - 1, gain, z)
    add(tail, one, s, n - 1)
    if mode == PERIODIC:
        w = z
        for k in range(enough - 1):
            add(tail, w, s, k)
            w *= z
        scale = -z / (one - (w if enough == n else real(0)))
    elif mode == REFLECT:
        scale = z / (z - one)
    else:
        add(tail, z, s, n - 2)
        scale = z / (z * z - one)
    put(s, n - 1, scale, tail)
    for k in range(n - 2, -1, -1):
        mix(s, k, k + 1, -z, z)


@plain
def factor(middle, n):
    """L D L^T (3, n) of the symmetric matrix with `middle` on its diagonals: 1 / D, and the two diagonals of L."""
    f = np.zeros((3, n), middle.dtype)
    for k in range(n):
        pivot, below = middle[0], middle[1]
        if k >= 1:
            pivot -= f[1, k - 1] ** 2 / f[0, k - 1]
            below -= f[1, k - 1] * f[2, k - 1] / f[0, k - 1]
        if k >= 2:
            pivot -= f[2, k - 2] ** 2 / f[0, k - 2]
        f[0, k] = 1 / pivot
        f[1, k] = below / pivot
        f[2, k] = middle[2] / pivot
    return f


@fast
def banded(s, n, f):
    """Solve for coefficients that are 0 beyond the array."""
    one = s.dtype.type(1)
    for k in range(1, n):
        mix(s, k, k - 1, one, -f[1, k - 1])
        if k >= 2:
            mix(s, k, k - 2, one, -f[2, k - 2])
    for k in range(n - 1, -1, -1):
        if k == n - 1:
            mix(s, k, k, f[0, k], s.dtype.type(0))
        else:
            mix(s, k, k + 1, f[0, k], -f[1, k])
        if k < n - 2:
            mix(s, k, k + 2, one, -f[2, k])
