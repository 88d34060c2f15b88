"""Emitters of whole frames fitted together: those that overlap in one step, the others in turn, with the number open.

The mean of a pixel is the background, the light of all emitters and, for emitters within LINK widths of each other,
directly or through others, one offset of the background.  Such a group of at most MOST is moved by damped Fisher
scoring on the pixels around it while all others stand still,

    (F + lambda diag F) d = g,   F = sum w (dmu/da)(dmu/db),   w = 1 / (mu + v),   g = sum (x w - 1) (dmu/da)

with the read-noise variance v and x = max(data + v, 0), as in `fit.mle`; the groups of a frame take turns, and those
beside one that has moved again.  What photons an emitter usually has may count as an observation.

Is there one emitter more?  Two that were taken for one leave a residual like a clover leaf: of the PSF's second
derivatives, xx - yy and xy, to which brightness, position and an error of the width are orthogonal.  Where these are
TRY standard deviations strong, the emitter is split along their axis, and stays so if the likelihood gains PROOF nats.
An emitter that is not CERTAIN goes if it brings less.

Everything of a frame stays in the second cache.  Images are strips of pixels in rows of whole vectors, at offsets in
one flat array that are known to the compiler, so that all loops over them become vectors.  Floor, for an emitter in 9²
pixels: 9 vectors of 16 float32, some 35 operations each for model, weight and logarithm, 12 sums over them for the
information, and a system of 4, some 800 cycles or 0.2 µs for each step; measured by itself 0.5 µs.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numba
import numpy as np

from ..fit.generic import call_psf, callback
from ..fit.numbers import cholesky, locked, log_single, poisson_term, solve
from ..fit.result import Status
from ..psf import Gaussian2D, axis
from ..psf.base import PSF
from ..threads import share
from .emitters import Emitters

MOST = 5  # emitters of a group
LINK = 4.0  # widths
SWEEPS = 4  # over the groups of a frame: all by themselves, then with doubts about their number
STEPS = 30  # of a group at a time
ENOUGH = 0.3  # standard errors that the last step may make
STILL = 0.2  # standard errors: what moves by less leaves its neighbours alone
TRY, PROOF = 3.0, 8.0
HOPE = 1.5  # a trial ends where thrice the gain that a step promises would not be enough
CERTAIN = 8.0  # photons over their standard error above which an emitter in a group is not in doubt
WEAK = 2.0  # the same for any emitter, below which it is no more than noise
EVEN = 0.05  # scatter of widths, relative, up to which they are held
TAILS = 4.0  # degrees of freedom of the t distribution of photons: a bead is no crowd of molecules
LEAST_DAMPING, MOST_DAMPING = 1e-2, 1e6
NOWHERE = np.float32(1e12)  # variance of a pixel that says nothing
DIMMEST = np.float32(0.01)  # mean of a pixel
BLOCK = 16  # frames that a thread takes at a time

# Offsets in the flat array; odd multiples of a vector, so that images do not fall on the same lines of the cache.
L = axis.LANES
WINDOW, STRIP, TABLE = 515 * L, 131 * L, 17 * L  # pixels of a group, of an emitter's rows, of an axis
COUNT, ON, BASE, MEAN, WEIGHT, REST = (i * WINDOW for i in range(6))
X, Y = 6 * WINDOW, 6 * WINDOW + 3 * TABLE  # three tables each
PRODUCTS = Y + 3 * TABLE
FREE = 8  # parameters of an emitter, at most
IMAGES = PRODUCTS + FREE * STRIP
EMITTER = (FREE + 1) * STRIP  # of each: its light, then the derivatives
SIZE = IMAGES + (MOST + 1) * EMITTER

# all arrays live in `_frames`: counting the views of them would cost a third of the time
compiled = numba.njit(cache=True, error_model="numpy", _nrt=False)
fast = numba.njit(cache=True, error_model="numpy", _nrt=False, fastmath=axis.FAST)
get, put = axis.get, axis.put


# ---------------------------------------------------------------- vectors


@fast
def _tables(s, table, first, centre, sigma, size):
    """Integrals of a normal density over `size` pixels from `first` and their derivatives to the centre; then zeros."""
    q = np.float32(1) / np.float32(sigma)
    density, shift = q * np.float32(0.3989422804014327), np.float32(first - 0.5 - centre)
    for v in range(0, size, L):
        for j in range(v, v + L):  # both edges of a pixel: a neighbour's would have to go through memory
            u = (np.float32(j) + shift) * q
            (left, low), (right, high) = axis.edge(u), axis.edge(u + q)
            put(s, table + j, right - left if j < size else np.float32(0))
            put(s, table + TABLE + j, (low - high) * density if j < size else np.float32(0))


@fast
def _waves(s, table, first, centre, sigma, size):
    """exp(-u² / 2), and this times u and u², for u the distance from the centre in widths; zeros after `size`."""
    q, shift = np.float32(1) / np.float32(sigma), np.float32(first - centre)
    for v in range(0, size, L):
        for j in range(v, v + L):
            u = (np.float32(j) + shift) * q
            g = axis.edge(u)[1] if j < size else np.float32(0)
            put(s, table + j, g)
            put(s, table + TABLE + j, u * g)
            put(s, table + 2 * TABLE + j, u * u * g)


@fast
def _gaussian(s, image, photons, box, wide):
    """Light and derivatives to x, y, photons from the tables."""
    n = np.float32(photons)
    for i in range(box):
        a, p = get(s, Y + i), n * get(s, Y + TABLE + i)
        na, row = n * a, image + i * wide
        for v in range(0, wide, L):
            for j in range(v, v + L):
                b = get(s, X + j)
                put(s, row + j, na * b)
                put(s, row + STRIP + j, na * get(s, X + TABLE + j))
                put(s, row + 2 * STRIP + j, p * b)
                put(s, row + 3 * STRIP + j, a * b)


@fast
def _lift(s, offset, size):
    b = np.float32(offset)
    for j in range(size):
        put(s, MEAN + j, get(s, BASE + j) + b)


@fast
def _add(s, image, start, size):
    for j in range(size):
        put(s, MEAN + start + j, get(s, MEAN + start + j) + get(s, image + j))


@fast
def _weigh(s, size):
    """Weights and residuals; log likelihood without factorials, sums of weights and residuals."""
    total = weights = rest = np.float32(0)
    for j in range(size):
        m, x, seen = max(get(s, MEAN + j), DIMMEST), get(s, COUNT + j), get(s, ON + j)
        w = seen / m
        r = x * w - seen
        put(s, WEIGHT + j, w)
        put(s, REST + j, r)
        total += seen * (x * log_single(m) - m)
        weights += w
        rest += r
    return total, weights, rest


@fast
def _product(s, image, start, out, size):
    """A derivative times the weights; its sum, and that of derivative times residual."""
    total = gradient = np.float32(0)
    for j in range(size):
        a = get(s, image + j)
        b = a * get(s, WEIGHT + start + j)
        put(s, out + j, b)
        total += b
        gradient += a * get(s, REST + start + j)
    return total, gradient


@fast
def _normal(s, image, start, size):
    """All products of three derivatives under the weights, with their sums and those with the residual, in one pass."""
    xx = yx = yy = nx = ny = nn = x = y = n = gx = gy = gn = np.float32(0)
    for j in range(size):
        a, b, c = get(s, image + j), get(s, image + STRIP + j), get(s, image + 2 * STRIP + j)
        w, r = get(s, WEIGHT + start + j), get(s, REST + start + j)
        wa, wb, wc = w * a, w * b, w * c
        xx += wa * a
        yx += wa * b
        yy += wb * b
        nx += wa * c
        ny += wb * c
        nn += wc * c
        x += wa
        y += wb
        n += wc
        gx += r * a
        gy += r * b
        gn += r * c
    return (xx, yx, yy, nx, ny, nn), (x, y, n), (gx, gy, gn)


@fast
def _dot(s, a, b, size):
    total = np.float32(0)
    for j in range(size):
        total += get(s, a + j) * get(s, b + j)
    return total


@fast
def _leaf(s, start, box, wide):
    """The residual's product with xx - yy and xy, and the squares of these under the weights."""
    t1 = t2 = n1 = n2 = np.float32(0)
    for i in range(box):
        g, g1, g2 = get(s, Y + i), get(s, Y + TABLE + i), get(s, Y + 2 * TABLE + i)
        row = start + i * wide
        for v in range(0, wide, L):
            for j in range(v, v + L):
                a = g * get(s, X + 2 * TABLE + j) - g2 * get(s, X + j)
                b = g1 * get(s, X + TABLE + j)
                r, w = get(s, REST + row + j), get(s, WEIGHT + row + j)
                t1 += r * a
                t2 += r * b
                n1 += w * a * a
                n2 += w * b * b
    return t1, t2, n1, n2


@fast
def _cut(count, model, first, stride, s, rows, columns, wide):
    """The pixels of a window that begins at `first` of a frame."""
    for i in range(rows):
        q, row = first + i * stride, i * wide
        for v in range(0, wide, L):
            for j in range(v, v + L):
                v = get(count, q + j)
                put(s, COUNT + row + j, max(v, np.float32(0)))
                put(s, BASE + row + j, get(model, q + j))
                put(s, ON + row + j, np.float32(1) if v >= 0 and j < columns else np.float32(0))


@fast
def _judge(s, size):
    """Log likelihood and chi square of the window."""
    likelihood = squares = np.float32(0)
    for j in range(size):
        m, x, seen = max(get(s, MEAN + j), DIMMEST), get(s, COUNT + j), get(s, ON + j)
        likelihood += seen * poisson_term(x, m)
        squares += seen * (x - m) * (x - m) / m
    return likelihood, squares


# ---------------------------------------------------------------- a group


@compiled
def _draw(job, theta, e, row, top, left, columns):
    """Light and derivatives of emitter e of a group in the rows of its box."""
    s, w, (address, constants, gaussian, _, background, box, free) = job[:3]
    wide, image = axis.whole(columns), IMAGES + e * EMITTER
    if gaussian:
        _tables(s, X, left, theta[0], theta[4], columns)
        _tables(s, Y, row, theta[1], theta[4], box)
        _gaussian(s, image, theta[2], box, wide)
        return
    p, size = len(theta), box * box
    own, column = w[:p], min(max(round(theta[0]) - box // 2, left), left + columns - box)
    for a in range(p):
        own[a] = theta[a]
    own[0] -= np.float32(column)
    own[1] -= np.float32(row)
    own[background] = np.float32(0)
    value, partials = w[p : p + size].reshape(box, box), w[p + size : p + size + p * size].reshape(p, box, box)
    call_psf(address, own, constants, value, partials, w[p + size + p * size :], box, box)
    for c in range(free + 1):
        first = image + c * STRIP
        for j in range(box * wide):
            s[first + j] = 0
        for i in range(box):
            for j in range(box):
                q = first + i * wide + column - left + j
                s[q] = value[i, j] if c == 0 else partials[_column(c - 1, background), i, j]


@compiled
def _column(c, background):
    """Of the c-th free parameter: all but the background are free, but for a Gaussian's width, which is the last."""
    return c + (c >= background)


@compiled
def _evaluate(job, window, k, theta, row):
    """Model, weights and residuals of a group; log likelihood, sums of weights and residuals."""
    s, box, light, (top, left, rows, columns) = job[0], job[2][5], job[4], window
    wide = axis.whole(columns)
    _lift(s, theta[0, job[2][4]], rows * wide)
    for e in range(k):
        _draw(job, theta[e], e, row[e], top, left, columns)
        _add(s, IMAGES + e * EMITTER, (row[e] - top) * wide, box * wide)
    value, weights, rest = _weigh(s, rows * wide)
    total = np.float64(value)
    for e in range(k if light[1] < np.inf else 0):
        far = (theta[e, job[2][3]] - light[0]) / light[1]
        total -= 0.5 * (TAILS + 1) * math.log(1 + far * far / TAILS)
    for e in range(k if light[3] > 0 else 0):
        total -= 0.5 * ((theta[e, 4] - light[2]) / light[3]) ** 2
    return total, weights, rest


@compiled
def _assemble(job, window, k, theta, row, weights, rest, information, gradient):
    """Information and gradient of a group, the background last; returns how many parameters there are."""
    s, bright, box, free, light = job[0], job[2][3], job[2][5], job[2][6], job[4]
    top, wide, last = window[0], axis.whole(window[3]), k * free
    information[last, last], gradient[last] = weights, rest
    for e in range(k):
        start, image, size = (row[e] - top) * wide, IMAGES + e * EMITTER + STRIP, box * wide
        if free == 3:
            own, sums, slopes = _normal(s, image, start, size)
            for a in range(3):
                information[last, e * 3 + a], gradient[e * 3 + a] = sums[a], slopes[a]
                for b in range(a + 1):
                    information[e * 3 + a, e * 3 + b] = own[a * (a + 1) // 2 + b]
        for a in range(free if free != 3 or e > 0 else 0):
            u, product = e * free + a, PRODUCTS + a * STRIP
            information[last, u], gradient[u] = _product(s, image + a * STRIP, start, product, size)
            for b in range(a + 1 if free != 3 else 0):
                information[u, e * free + b] = _dot(s, image + b * STRIP, product, size)
            for f in range(e):  # where their rows meet
                y = max(row[e], row[f])
                common = (box - abs(row[e] - row[f])) * wide
                for b in range(free):
                    other = IMAGES + f * EMITTER + (b + 1) * STRIP + (y - row[f]) * wide
                    information[u, f * free + b] = _dot(s, other, product + (y - row[e]) * wide, max(common, 0))
        if light[1] < np.inf:
            far, u = (theta[e, bright] - light[0]) / light[1], e * free + bright
            pull = (TAILS + 1) / (TAILS + far * far) / light[1]
            gradient[u] -= pull * far
            information[u, u] += pull / light[1]
        if light[3] > 0:
            gradient[e * free + 3] -= (theta[e, 4] - light[2]) / light[3] ** 2
            information[e * free + 3, e * free + 3] += 1 / light[3] ** 2
    return last + 1


@compiled
def _copy(own, row, source, first, target, to, k):
    """Copy k emitters, with the rows of their boxes, from own[source, first] on to own[target, to] on."""
    for e in range(k):
        row[target, to + e] = row[source, first + e]
        for a in range(own.shape[2]):
            own[target, to + e, a] = own[source, first + e, a]


@compiled
def _climb(job, window, k, own, which, row, goal):
    """Move the group own[which] to its highest likelihood, if this may be above `goal`; returns it, and if it is there.

    Leaves behind the Cholesky factor of the information, scaled to unit diagonal, and the scale.
    """
    limits, (information, matrix, factor, gradient, move, scale, _) = job[3], job[6]
    background, free, theta, trial = job[2][4], job[2][6], own[which], own[2]
    best, damping, size = -np.inf, 0.0, 0
    _copy(own, row, which, 0, 2, 0, k)
    for count in range(STEPS):
        value, weights, rest = _evaluate(job, window, k, trial, row[which])
        better = count == 0 or value >= best - 1e-6 * abs(best)
        if better:
            best = value
            _copy(own, row, 2, 0, which, 0, k)
            size = _assemble(job, window, k, theta, row[which], weights, rest, information, gradient)
            for a in range(size):
                scale[a] = 1 / (math.sqrt(information[a, a]) + 1e-30)
                for b in range(a + 1):
                    matrix[a, b] = information[a, b] * scale[a] * scale[b]
            damping = damping / 10 if damping > LEAST_DAMPING / 10 else 0.0
        else:
            damping = max(10 * damping, LEAST_DAMPING)
        while not cholesky(matrix, factor, size, damping + 1e-7, 0.0) and damping < MOST_DAMPING:
            damping = max(100 * damping, LEAST_DAMPING)
        for a in range(size):
            move[a] = gradient[a] * scale[a]
        solve(factor, size, move)
        decrement = 0.0
        for a in range(size):
            decrement += move[a] * gradient[a] * scale[a]
        if damping >= MOST_DAMPING or (count > 0 and best + HOPE * decrement < goal):
            break
        done = better and damping < LEAST_DAMPING and decrement < ENOUGH**2
        for e in range(k):
            for c in range(free + 1):
                a, u = (_column(c, background), e * free + c) if c < free else (background, size - 1)
                limit = limits[2, a] + limits[3, a] * abs(theta[e, a])
                to = theta[e, a] + min(max(move[u] * scale[u], -limit), limit)
                trial[e, a] = min(max(to, limits[0, a]), limits[1, a])
        if done:  # a last step too small to be looked at
            _copy(own, row, 2, 0, which, 0, k)
            return best + 0.5 * decrement, True
    return best, False


@compiled
def _errors(job, k):
    """Standard errors from the Cholesky factor: the diagonal of the inverse information."""
    background, free, factor, scale, errors = job[2][4], job[2][6], job[6][2], job[6][5], job[6][6]
    size, column = k * free + 1, errors[-1]  # of the factor's inverse
    for u in range(size):
        total = 0.0
        for i in range(u, size):
            t = 1.0 if i == u else 0.0
            for j in range(u, i):
                t -= factor[i, j] * column[j]
            column[i] = t / factor[i, i]
            total += column[i] * column[i]
        error = math.sqrt(total) * scale[u]
        for e in range(k if u == size - 1 else 0):
            errors[e, background] = error
        if u < size - 1:
            errors[u // free, _column(u % free, background)] = error


@compiled
def _clover(job, window, theta, row):
    """Strength of an emitter's clover leaf in standard deviations, and the shift (x, y) of each half along its axis."""
    s, bright, box, sigma, (top, left, _, columns) = job[0], job[2][3], job[2][5], job[5], window
    wide = axis.whole(columns)
    _waves(s, X, left, theta[0], sigma, columns)
    _waves(s, Y, row, theta[1], sigma, box)
    t1, t2, n1, n2 = _leaf(s, (row - top) * wide, box, wide)
    if not (n1 > 0 and n2 > 0):
        return 0.0, 0.0, 0.0
    unit = 2 * math.pi * sigma**4  # of the second derivatives, in place of the density's
    a, b = 4 * t1 / n1 * unit, 2 * t2 / n2 * unit
    far = min(max(math.sqrt(math.hypot(a, b) / max(theta[bright], 1.0)), 0.3 * sigma), 1.2 * sigma)
    angle = 0.5 * math.atan2(b, a)
    return math.sqrt(t1 * t1 / n1 + t2 * t2 / n2), far * math.cos(angle), far * math.sin(angle)


@compiled
def _settle(job, window, k, own, row, doubt):
    """Fit the group own[0], if in `doubt` with more or fewer emitters; how many there are, and whether they converged.

    row[0]: where their boxes begin; the others are for trials.
    """
    bright, errors = job[2][3], job[6][6]
    best, good = _climb(job, window, k, own, 0, row, -np.inf)
    _errors(job, k)
    while doubt and k <= MOST:  # one that is two?
        strongest, which, dx, dy = TRY, -1, 0.0, 0.0
        for e in range(k):
            strength, u, v = _clover(job, window, own[0, e], row[0, e])
            if strength > strongest:
                strongest, which, dx, dy = strength, e, u, v
        if which < 0:
            break
        _copy(own, row, 0, 0, 1, 0, k)
        own[1, which, bright] *= 0.5
        _copy(own, row, 1, which, 1, k, 1)
        own[1, which, 0] -= dx
        own[1, which, 1] -= dy
        own[1, k, 0] += dx
        own[1, k, 1] += dy
        high, sure = _climb(job, window, k + 1, own, 1, row, best + PROOF)
        if not (sure and high > best + PROOF):
            break
        k, best, good = k + 1, high, True
        _errors(job, k)
        _copy(own, row, 1, 0, 0, 0, k)
    while doubt and k > 1:  # one that is none?
        least = 0
        for e in range(1, k):
            if own[0, e, bright] * errors[least, bright] < own[0, least, bright] * errors[e, bright]:
                least = e
        if own[0, least, bright] > CERTAIN * errors[least, bright]:
            break
        _copy(own, row, 0, 0, 1, 0, k)
        _copy(own, row, 0, k - 1, 1, least, 1)
        high, sure = _climb(job, window, k - 1, own, 1, row, best - PROOF)
        if high < best - PROOF:
            break
        k, best, good = k - 1, high, sure
        _errors(job, k)
        _copy(own, row, 1, 0, 0, 0, k)
    return k, good


# ---------------------------------------------------------------- a frame


@compiled
def _group(at, n, seed, left, box, link, slot, far):
    """Those `left` that belong to `seed`, the nearest to any of them first; returns how many, and their window."""
    half, slot[0], k, newest = box // 2, seed, 1, seed
    y0 = y1 = round(at[seed, 1])
    x0 = x1 = round(at[seed, 0])
    for i in range(n):
        far[i] = link * link
    while k < MOST:
        nearest, best = -1, link * link
        for i in range(n):
            if left[i]:
                far[i] = min(far[i], (at[i, 0] - at[newest, 0]) ** 2 + (at[i, 1] - at[newest, 1]) ** 2)
                if far[i] < best:
                    best, nearest = far[i], i
        if nearest < 0:
            break
        y, x = round(at[nearest, 1]), round(at[nearest, 0])
        top, bottom, first, last = min(y0, y), max(y1, y), min(x0, x), max(x1, x)
        rows, wide = bottom - top + box, axis.whole(last - first + box)
        if rows * wide > WINDOW or box * wide > STRIP or max(rows, wide) > TABLE:
            break
        y0, y1, x0, x1 = top, bottom, first, last
        slot[k], newest, left[nearest] = nearest, nearest, False
        k += 1
    return k, (y0 - half, x0 - half, y1 - y0 + box, x1 - x0 + box)


@compiled
def _shine(job, theta, sign, model, pad, stride):
    """Add an emitter's light to a frame's model, or take it off."""
    s, gaussian, box = job[0], job[2][2], job[2][5]
    top, left = round(theta[1]) - box // 2, round(theta[0]) - box // 2
    wide, corner, n = axis.whole(box), (top + pad) * stride + left + pad, np.float32(sign)
    if gaussian:
        _tables(s, X, left, theta[0], theta[4], box)
        _tables(s, Y, top, theta[1], theta[4], box)
        n *= np.float32(theta[2])
    else:
        _draw(job, theta, 0, top, top, left, box)
    for i in range(box):
        if gaussian:
            _brighten(s, X, n * s[Y + i], model, corner + i * stride, wide)
        else:
            _brighten(s, IMAGES + i * wide, n, model, corner + i * stride, wide)


@fast
def _brighten(s, row, f, model, q, wide):
    for v in range(0, wide, L):
        for j in range(v, v + L):
            put(model, q + j, get(model, q + j) + f * get(s, row + j))


@fast
def _lay_out(frame, behind, read, pad, stride, count, model):
    """A frame with a border; where nothing is seen, the count is negative."""
    h, w = frame.shape
    for i in range(h):
        q = (i + pad) * stride + pad
        for j in range(w):
            v = frame[i, j]
            put(count, q + j, max(v + read[i, j], np.float32(0)) if abs(v) < NOWHERE else np.float32(-1))
        for j in range(w):
            put(model, q + j, behind[i, j] + read[i, j])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _frames(
    scene, limits, light, sigma, frames, behind, read, start, starts, fixed_start, fixed, room, scratch, out, count,
    begin, end,
):  # fmt: skip
    """Fit the emitters `starts` of the frames from `begin` to `end`; those of f are its rows from start[f] on.

    `scene`: the PSF's address and constants, whether it is a Gaussian, columns of photons and background, side of the
    box, number of other parameters that are fitted.  `limits` (4, p): lowest, highest, and how far a step may go.
    `fixed`, of `fixed_start`: emitters that shine but stay as they are.  Results of f: count[f] rows of `out` from
    room[f] on, parameters, errors, log likelihood, chi square, whether it has converged.
    """
    bright, background, box, p = scene[3], scene[4], scene[5], starts.shape[1]
    half, (h, wd) = box // 2, frames.shape[1:]
    pad = half + 2
    stride, link, reach = wd + 2 * pad, LINK * sigma, half + 1.5 * sigma
    area = (h + 2 * pad) * stride + TABLE
    seen, model = np.full(area, np.float32(-1)), np.ones(area, np.float32)
    size = (MOST + 1) * scene[6] + 1
    errors = np.full((MOST + 2, max(p, size)), np.nan)
    matrices = np.zeros((size, size)), np.zeros((size, size)), np.zeros((size, size))
    work = (*matrices, np.zeros(size), np.zeros(size), np.zeros(size), errors)
    s = np.zeros(SIZE, np.float32)
    job = s, np.zeros(scratch, np.float32), scene, limits, light, sigma, work
    own, row, slot = np.zeros((3, MOST + 1, p)), np.zeros((3, MOST + 1), np.int64), np.zeros(MOST + 1, np.int64)
    for f in range(begin, end):
        n, cap, first = start[f + 1] - start[f], room[f + 1] - room[f], room[f]
        if n == 0:
            continue
        ground = behind[f * len(behind) // len(frames)]
        _lay_out(frames[f], ground, read, pad, stride, seen, model)
        at, error, far, good = np.zeros((cap, p)), np.zeros((cap, p)), np.zeros(cap), np.zeros(cap, np.bool_)
        there, left = np.zeros(cap, np.bool_), np.zeros(cap, np.bool_)
        dirty, young = np.ones(cap, np.bool_), np.ones(cap, np.bool_)
        for i in range(fixed_start[f], fixed_start[f + 1]):
            _shine(job, fixed[i], 1, model, pad, stride)
        for i in range(n):
            there[i] = True
            for a in range(p):
                at[i, a] = min(max(starts[start[f] + i, a], limits[0, a]), limits[1, a])
            at[i, background] = 0.0
            _shine(job, at[i], 1, model, pad, stride)
        for sweep in range(SWEEPS):
            before = n
            for i in range(n):
                left[i] = there[i]
            for number in range(before):
                seed = before - 1 - number if sweep % 2 else number
                if not left[seed]:
                    continue
                left[seed] = False
                k, window = _group(at, before, seed, left, box, link, slot, far)
                top, edge, rows, columns = window
                todo, fresh, near = False, False, -k
                for e in range(k):
                    todo |= dirty[slot[e]]
                    fresh |= young[slot[e]]
                for i in range(n):
                    y, x = at[i, 1] - top, at[i, 0] - edge
                    near += there[i] and -half < y < rows + half and -half < x < columns + half
                fresh &= sweep > 0 or near == 0  # what the others are, comes first
                if not (todo or fresh):
                    continue
                for e in range(k):
                    i = slot[e]
                    _shine(job, at[i], -1, model, pad, stride)
                    row[0, e] = round(at[i, 1]) - half
                    for a in range(p):
                        own[0, e, a] = at[i, a]
                    own[0, e, background] = at[slot[0], background]
                _cut(seen, model, (top + pad) * stride + edge + pad, stride, s, rows, columns, axis.whole(columns))
                new, converged = _settle(job, window, k, own, row, fresh)
                moved = new != k
                for e in range(new, k):
                    there[slot[e]] = False
                for e in range(min(new, k + cap - n)):
                    if e >= k:
                        slot[e], there[n] = n, True
                        n += 1
                    i = slot[e]
                    for a in (0, 1, bright):
                        moved |= not abs(at[i, a] - own[0, e, a]) < STILL * errors[e, a]
                    for a in range(p):
                        at[i, a], error[i, a] = own[0, e, a], errors[e, a]
                    good[i], young[i] = converged, new > k or (young[i] and not fresh)
                    _shine(job, at[i], 1, model, pad, stride)
                for e in range(min(new, k + cap - n) if moved else 0):
                    for i in range(n):
                        dirty[i] |= (at[i, 0] - at[slot[e], 0]) ** 2 + (at[i, 1] - at[slot[e], 1]) ** 2 < reach**2
                for e in range(min(new, k + cap - n)):
                    dirty[slot[e]] = False
        kept, wide = first, axis.whole(box)
        for i in range(n):
            if not there[i] or not at[i, bright] > WEAK * error[i, bright]:
                continue
            top, edge = round(at[i, 1]) - half, round(at[i, 0]) - half
            _cut(seen, model, (top + pad) * stride + edge + pad, stride, s, box, box, wide)
            _lift(s, at[i, background], box * wide)
            for a in range(p):
                out[kept, a], out[kept, p + a] = at[i, a], error[i, a]
            out[kept, 2 * p], out[kept, 2 * p + 1] = _judge(s, box * wide)
            out[kept, 2 * p + 2] = good[i]
            level, pixels = 0.0, 0
            for y in range(max(top, 0), min(top + box, h)):
                for x in range(max(edge, 0), min(edge + box, wd)):
                    level += ground[y, x]
                    pixels += 1
            out[kept, background] += level / max(pixels, 1)
            kept += 1
        count[f] = kept - first


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _apart(scene, sigma, frames, read, start, theta, which, first, images, noise, pixels, scratch, begin, end):
    """Cut out the emitters `which` of the frames from `begin` to `end`; those of f are images[first[f]] on."""
    box, (h, w) = scene[5], frames.shape[1:]
    half = box // 2
    pad = half + 2
    stride = w + 2 * pad
    light = np.zeros((h + 2 * pad) * stride + TABLE, np.float32)
    nothing, matrix = np.zeros(1), np.zeros((1, 1))
    work = matrix, matrix, matrix, nothing, nothing, nothing, matrix
    job = np.zeros(SIZE, np.float32), np.zeros(scratch, np.float32), scene, matrix, (0.0, np.inf, 0.0, 0.0), sigma, work
    for f in range(begin, end):
        if first[f + 1] == first[f]:
            continue
        light[:] = 0
        for i in range(start[f], start[f + 1]):
            _shine(job, theta[i], 1, light, pad, stride)
        p = first[f]
        for i in range(start[f], start[f + 1]):
            if not which[i]:
                continue
            _shine(job, theta[i], -1, light, pad, stride)
            top, left = round(theta[i, 1]) - half, round(theta[i, 0]) - half
            pixels[p] = 0
            for y in range(box):
                r, row = top + y, (top + y + pad) * stride + left + pad
                for x in range(box):
                    c = left + x
                    seen = 0 <= r < h and 0 <= c < w and abs(frames[f, r, c]) < NOWHERE
                    others = get(light, row + x)
                    images[p, y, x] = frames[f, r, c] - others if seen else np.float32(0)
                    noise[p, y, x] = read[r, c] + max(others, np.float32(0)) if seen else NOWHERE
                    pixels[p] += seen
            p += 1
            _shine(job, theta[i], 1, light, pad, stride)


def apart(
    frames: np.ndarray, emitters: np.ndarray, which: np.ndarray, variance: Any, sigma: float, psf: PSF, box: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images (m, box, box) of some of the `emitters` without the light of all others, and the variance of their noise.

    `emitters`: a table of frame and parameters, sorted by frame; `which`: a mask of them.  The variance is of the read
    noise and the others' light; it is NOWHERE where nothing is seen.  Third, how many pixels are seen; fourth, x and
    y (m, 2) of the central ones.
    """
    names, scene, scratch = _scene(psf, box)
    theta, start = _rows(emitters, names, sigma, frames.shape)
    first = np.searchsorted(emitters["frame"][which], np.arange(len(frames) + 1))
    images, noise = (np.empty((first[-1], box, box), np.float32) for _ in range(2))
    pixels, read = np.empty(first[-1], np.int32), _read(variance, frames)
    given = scene, float(sigma), frames, read, start, theta, which, first, images, noise, pixels, scratch
    share(partial(_apart, *given), len(frames), BLOCK)
    return images, noise, pixels, np.rint(theta[which, :2]).astype(np.int64)


def fit(
    frames: np.ndarray,
    starts: np.ndarray,
    behind: np.ndarray,
    variance: Any = 0.0,
    sigma: float = 1.3,
    psf: PSF | None = None,
    box: int | None = None,
    light: tuple[float, float] | None = None,
    others: np.ndarray | None = None,
    uneven: float = 0.0,
) -> Emitters:
    """Fit all emitters in `frames` (n, h, w) from `starts`, a table of frame and parameters that is sorted by frame.

    `behind` (m, h, w): background of m equal parts of the frames; `variance`: of the read noise; `sigma`: width of the
    PSF, at which Gaussians are held.  `light`: centre and scale of the distribution of emitters' photons where it is
    known beforehand (t with TAILS degrees of freedom), which tells apart emitters that are very near to each other; it
    counts as an observation.  `others`: emitters, like `starts`, that shine but are not fitted.  `uneven`: how far
    (standard deviation, pixels) widths of Gaussians scatter; above EVEN sigma they are free, and this an observation.

    >>> from smlmcore.psf import Gaussian2D
    >>> pair = {"x": [[8.0, 9.2]], "y": [[7.0, 7.6]], "photons": [[3000.0, 3000.0]], "sigma": 1.3, "background": [5.0]}
    >>> image = np.random.default_rng(0).poisson(Gaussian2D().render(pair, (16, 18))).astype(np.float32)
    >>> start = np.array([(0, 8.6, 7.3, 5000.0)], [("frame", int), *((n, float) for n in ("x", "y", "photons"))])
    >>> found = fit(image, start, np.full((1, 16, 18), 5.0, np.float32))  # one that is two
    >>> np.sort(found.theta[:, 0]).round(0).tolist()
    [8.0, 9.0]
    """
    psf = Gaussian2D() if psf is None else psf
    box = 2 * math.ceil(3 * sigma) + 1 if box is None else box
    uneven = uneven if type(psf) is Gaussian2D and psf.sigma is None and uneven > EVEN * sigma else 0.0
    names, scene, scratch = _scene(psf, box, held=not uneven)
    bounds = psf.bounds((box, box))
    limits = np.array([bounds.get(name, (0, np.inf, 0, 0)) for name in names], float).T.copy()
    limits[:2, :2] = _reach(frames.shape).T
    limits[:, names.index("background")] = -np.inf, np.inf, np.inf, 0  # of an offset
    n, p, frame = len(frames), len(names), np.arange(len(frames) + 1)

    theta, start = _rows(starts, names, sigma, frames.shape)
    if scene[2]:
        theta[:, names.index("sigma")] = sigma
    theta[:, scene[3]] = np.maximum(theta[:, scene[3]], 1)
    fixed, fixed_start = _rows(starts[:0] if others is None else others, names, sigma, frames.shape)
    had = np.diff(start)
    room = np.concatenate([[0], np.cumsum(2 * had + 4 * (had > 0))])
    out, count = np.full((room[-1], 2 * p + 3), np.nan), np.zeros(n, np.int64)
    frames, behind = (np.ascontiguousarray(v, np.float32) for v in (frames, behind))
    given = (
        scene, limits, (*map(float, light or (0.0, math.inf)), float(sigma), float(uneven)), float(sigma),
        frames, behind, _read(variance, frames), start, theta, fixed_start, fixed, room, scratch, out,
        count,
    )  # fmt: skip
    share(partial(_frames, *given), n, BLOCK)
    which = np.arange(len(out)) - np.repeat(room[:-1], np.diff(room)) < np.repeat(count, np.diff(room))
    own, columns = out[which], [names.index(name) for name in psf.names]
    theta, errors = own[:, columns].astype(np.float32), own[:, p:][:, columns].astype(np.float32)
    status = np.where(own[:, -1], Status.converged, Status.max_iterations).astype(np.int8)
    snr = theta[:, scene[3]] / errors[:, scene[3]]
    frame, judged = np.repeat(frame[:-1], count), own[:, -3:-1].T.astype(np.float32)
    return Emitters(frame, theta, errors, status, *judged, snr, np.ones(len(own), bool))


def _reach(shape: tuple[int, ...]) -> np.ndarray:
    """From where to where emitters may be, x and y: so far beyond frames of `shape` there is room for their light."""
    return np.array([[-1.5, shape[2] + 0.5], [-1.5, shape[1] + 0.5]])


def _rows(
    table: np.ndarray, names: tuple[str, ...], sigma: float, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The parameters `names` (n, p) of a table, within reach of frames of `shape`, and where each frame begins."""
    known = {"sigma": np.full(len(table), sigma), "background": np.zeros(len(table))}
    known |= {name: table[name] for name in names if name in table.dtype.names}
    theta = np.stack([known[name] for name in names], 1).astype(float)
    np.clip(theta[:, :2], *_reach(shape).T, out=theta[:, :2])
    return theta, np.searchsorted(table["frame"], np.arange(shape[0] + 1))


def _read(variance: Any, frames: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.broadcast_to(np.asarray(variance, np.float32), frames.shape[1:]))


def _scene(psf: PSF, box: int, held: bool = True) -> tuple[tuple[str, ...], tuple[Any, ...], int]:
    """Names of the parameters, what the compiled code knows of a PSF, and how much scratch its function needs."""
    gaussian, real = type(psf) is Gaussian2D and held, np.dtype(np.float32)
    names = (*psf.names, "sigma") if gaussian and "sigma" not in psf.names else psf.names
    background, p = names.index("background"), len(names)
    free = 3 if gaussian else p - 1
    if free > FREE:
        raise ValueError(f"joint.fit got a PSF of {p} parameters; expected at most {FREE + 1}")
    address, constants = callback(psf.numba_partials, real), locked(psf.constants, real)
    scratch = p + (p + 1) * box * box + psf.scratch_size((box, box))
    return names, (address, constants, gaussian, names.index("photons"), background, box, free), scratch
