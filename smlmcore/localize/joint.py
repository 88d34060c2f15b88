"""Emitters of whole frames fitted together: those that overlap in one step, the others in turn, with the number open.

The mean of a pixel is the background, the light of all emitters and, for emitters within LINK widths of each other,
directly or through others, one offset of the background.  Such a group of at most MOST is moved by damped Fisher
scoring on the pixels around it while all others stand still,

    (F + lambda diag F) d = g,   F = sum w (dmu/da)(dmu/db),   w = 1 / (mu + v),   g = sum (x w - 1) (dmu/da)

with the read-noise variance v and x = max(data + v, 0), as in `fit.mle`; the groups of a frame take turns, and those
beside one that has moved again.  What photons an emitter usually has may count as an observation.

Is there one emitter more?  Two that were taken for one leave a residual like a clover leaf: of the PSF's second
derivatives, xx - yy and xy, to which brightness, position and an error of the width are orthogonal.  Where these are
TRY standard deviations strong, the emitter is split along their axis; where the residual has a peak of LOOKS that is
APART from all others, one is added.  Either stays if the likelihood gains PROOF nats, and an emitter that is not
CERTAIN goes if it brings less.

Everything of a frame stays in the second cache.  Images are strips of pixels in rows of whole vectors, at offsets in
one flat array that are known to the compiler, so that all loops over them become vectors.  Floor, for an emitter in 9²
pixels: 9 vectors of 16 float32, some 35 operations each for model, weight and logarithm, 17 sums over them for the
information, and a system of 4, some 800 cycles or 0.2 µs for each step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np

from ..fit.generic import call_psf, callback
from ..fit.numbers import cholesky, locked, log_single, poisson_term, solve
from ..fit.result import Status
from ..psf import Gaussian2D, axis
from ..psf.base import PSF
from .emitters import Emitters
from .finder import taps

MOST = 5  # emitters of a group
LINK = 4.0  # widths
SWEEPS = 4  # over the groups of a frame: all by themselves, then with doubts about their number
STEPS = 30  # of a group at a time
ENOUGH = 0.3  # standard errors that the last step may make
STILL = 0.2  # standard errors: what moves by less leaves its neighbours alone
TRY, LOOKS, PROOF = 3.0, 3.0, 8.0
HOPE = 1.5  # a trial ends where thrice the gain that a step promises would not be enough
CERTAIN = 8.0  # photons over their standard error above which an emitter in a group is not in doubt
WEAK = 2.0  # the same for any emitter, below which it is no more than noise
EVEN = 0.05  # scatter of widths, relative, up to which they are held
TAILS = 4.0  # degrees of freedom of the t distribution of photons: a bead is no crowd of molecules
LEAST_DAMPING, MOST_DAMPING = 1e-2, 1e6
NOWHERE = np.float32(1e12)  # variance of a pixel that says nothing
DOUBT = 0.7  # standard deviations of chi square from which on a peak is looked for
APART = 3.0  # widths between this and all others: what is nearer is a matter of the clover leaf
DIMMEST = np.float32(0.01)  # mean of a pixel
BLOCK = 16  # frames that a thread takes at a time
CONVERGED, MAX_ITERATIONS, SINGULAR = int(Status.converged), int(Status.max_iterations), int(Status.singular)

# Offsets in the flat array; odd multiples of a vector, so that images do not fall on the same lines of the cache.
L = axis.LANES
WINDOW, STRIP, TABLE = 515 * L, 131 * L, 17 * L  # pixels of a group, of an emitter's rows, of an axis
MARGIN = 2 * L  # pixels beside a line that is filtered
COUNT, ON, BASE, MEAN, WEIGHT, REST, ACROSS, SQUARE = (i * WINDOW for i in range(8))
EDGES = 8 * WINDOW
X, Y = EDGES + 2 * TABLE, EDGES + 5 * TABLE  # three tables each
PRODUCTS = EDGES + 8 * TABLE
FREE = 8  # parameters of an emitter, at most
IMAGES = PRODUCTS + FREE * STRIP
EMITTER = (FREE + 1) * STRIP  # of each: its light, then the derivatives
SIZE = IMAGES + (MOST + 1) * EMITTER

compiled = numba.njit(cache=True, error_model="numpy")
fast = numba.njit(cache=True, error_model="numpy", fastmath=axis.FAST)
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
def _leaf(s, start, box, wide, first):
    """The residual's product with xx - yy and xy, and the squares of these under the weights; chi square, pixels."""
    t1 = t2 = n1 = n2 = squares = pixels = np.float32(0)
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
                seen = get(s, ON + row + j) if first <= j < first + box else np.float32(0)
                squares += seen * r * r * get(s, MEAN + row + j)
                pixels += seen
    return t1, t2, n1, n2, squares, pixels


@fast
def _peak(s, weights, rows, columns, wide):
    """Matched filter over the residual: its largest value in units of noise, where it is, its photons."""
    reach, line = len(weights) - 1, EDGES + MARGIN
    best, place, light = np.float32(0), 0, np.float32(0)
    for j in range(2 * TABLE):
        put(s, EDGES + j, np.float32(0))
    for r in range(rows):  # along the rows
        row = r * wide
        for v in range(0, wide, L):
            for j in range(v, v + L):
                put(s, line + j, get(s, REST + row + j))
                put(s, line + TABLE + j, get(s, WEIGHT + row + j))
                put(s, ACROSS + row + j, np.float32(0))
                put(s, SQUARE + row + j, np.float32(0))
        for q in range(-reach, reach + 1):
            c = weights[abs(q)]
            for v in range(0, wide, L):
                for j in range(v, v + L):
                    put(s, ACROSS + row + j, get(s, ACROSS + row + j) + c * get(s, line + j + q))
                    put(s, SQUARE + row + j, get(s, SQUARE + row + j) + c * c * get(s, line + TABLE + j + q))
    for r in range(rows):  # and down
        for v in range(0, wide, L):
            for j in range(v, v + L):
                put(s, line + j, np.float32(0))
                put(s, line + TABLE + j, np.float32(1e-30))
        for q in range(max(-reach, -r), min(reach, rows - 1 - r) + 1):
            c, row = weights[abs(q)], (r + q) * wide
            for v in range(0, wide, L):
                for j in range(v, v + L):
                    put(s, line + j, get(s, line + j) + c * get(s, ACROSS + row + j))
                    put(s, line + TABLE + j, get(s, line + TABLE + j) + c * c * get(s, SQUARE + row + j))
        for j in range(columns):
            a, b = get(s, line + j), get(s, line + TABLE + j)
            if a > 0 and a * a > best * best * b and get(s, ON + r * wide + j) > 0:
                best, place, light = a / math.sqrt(b), r * wide + j, a / b
    return best, place // wide, place % wide, light


@fast
def _cut(count, on, model, first, stride, s, rows, columns, wide):
    """The pixels of a window that begins at `first` of a frame."""
    for i in range(rows):
        q, row = first + i * stride, i * wide
        for v in range(0, wide, L):
            for j in range(v, v + L):
                put(s, COUNT + row + j, get(count, q + j))
                put(s, BASE + row + j, get(model, q + j))
                put(s, ON + row + j, get(on, q + j) if j < columns else np.float32(0))


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
def _draw(s, w, scene, theta, e, row, top, left, columns):
    """Light and derivatives of emitter e of a group in the rows of its box."""
    address, constants, gaussian, background, box, free, order = scene
    wide, image = axis.whole(columns), IMAGES + e * EMITTER
    if gaussian:
        _tables(s, X, left, theta[0], theta[4], columns)
        _tables(s, Y, row, theta[1], theta[4], box)
        _gaussian(s, image, theta[2], box, wide)
        return
    p, size = len(theta), box * box
    own, column = w[:p], min(max(round(theta[0]) - box // 2, left), left + columns - box)
    for a in range(p):
        own[order[a]] = np.float32(0) if a == background else theta[a]
    own[order[0]] -= np.float32(column)
    own[order[1]] -= np.float32(row)
    value, partials = w[p : p + size].reshape(box, box), w[p + size : p + size + p * size].reshape(p, box, box)
    call_psf(address, own, constants, value, partials, w[p + size + p * size :], box, box)
    for j in range(box * wide):
        for c in range(len(free) + 1):
            s[image + c * STRIP + j] = 0
    for i in range(box):
        for j in range(box):
            q = image + i * wide + column - left + j
            s[q] = value[i, j]
            for c in range(len(free)):
                s[q + (c + 1) * STRIP] = partials[order[free[c]], i, j]


@compiled
def _evaluate(s, w, scene, light, window, k, theta, row):
    """Model, weights and residuals of a group; log likelihood, sums of weights and residuals."""
    top, left, rows, columns = window
    wide = axis.whole(columns)
    _lift(s, theta[0, scene[3]], rows * wide)
    for e in range(k):
        _draw(s, w, scene, theta[e], e, row[e], top, left, columns)
        _add(s, IMAGES + e * EMITTER, (row[e] - top) * wide, scene[4] * wide)
    value, weights, rest = _weigh(s, rows * wide)
    total = np.float64(value)
    for e in range(k if light[1] < np.inf else 0):
        far = (theta[e, 2] - light[0]) / light[1]
        total -= 0.5 * (TAILS + 1) * math.log(1 + far * far / TAILS)
    for e in range(k if light[3] > 0 else 0):
        total -= 0.5 * ((theta[e, 4] - light[2]) / light[3]) ** 2
    return total, weights, rest


@compiled
def _assemble(s, scene, light, window, k, theta, row, weights, rest, information, gradient):
    """Information and gradient of a group, the background last; returns how many parameters there are."""
    box, free = scene[4], len(scene[5])
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
                    t = _dot(s, other, product + (y - row[e]) * wide, common) if common > 0 else np.float32(0)
                    information[u, f * free + b] = t
        if light[1] < np.inf:
            far, u = (theta[e, 2] - light[0]) / light[1], e * free + 2
            pull = (TAILS + 1) / (TAILS + far * far) / light[1]
            gradient[u] -= pull * far
            information[u, u] += pull / light[1]
        if light[3] > 0:
            gradient[e * free + 3] -= (theta[e, 4] - light[2]) / light[3] ** 2
            information[e * free + 3, e * free + 3] += 1 / light[3] ** 2
    return last + 1


@compiled
def _climb(s, w, scene, limits, light, window, k, theta, row, goal, trial, matrices, vectors):
    """Move a group to its highest likelihood, if this may be above `goal`; returns it, and whether it converged.

    Leaves there the Cholesky factor of the information, scaled to unit diagonal, and the scale.
    """
    background, free = scene[3], scene[5]
    information, matrix, factor = matrices[0], matrices[1], matrices[2]
    gradient, move, scale = vectors[0], vectors[1], vectors[2]
    p, best, damping, size = theta.shape[1], -np.inf, 0.0, 0
    for e in range(k):
        for a in range(p):
            trial[e, a] = theta[e, a]
    for count in range(STEPS):
        value, weights, rest = _evaluate(s, w, scene, light, window, k, trial, row)
        better = count == 0 or value >= best - 1e-6 * abs(best)
        if better:
            best = value
            for e in range(k):
                for a in range(p):
                    theta[e, a] = trial[e, a]
            size = _assemble(s, scene, light, window, k, theta, row, weights, rest, information, gradient)
            for a in range(size):
                scale[a] = 1 / (math.sqrt(information[a, a]) + 1e-30)
            for a in range(size):
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
        for e in range(k):
            for c in range(len(free) + 1):
                a, u = (free[c], e * len(free) + c) if c < len(free) else (background, size - 1)
                limit = limits[2, a] + limits[3, a] * abs(theta[e, a])
                to = theta[e, a] + min(max(move[u] * scale[u], -limit), limit)
                trial[e, a] = min(max(to, limits[0, a]), limits[1, a])
        if better and damping < LEAST_DAMPING and decrement < ENOUGH**2:  # a last step too small to be looked at
            for e in range(k):
                for a in range(p):
                    theta[e, a] = trial[e, a]
            return best + 0.5 * decrement, True
    return best, False


@compiled
def _errors(scene, k, size, factor, scale, errors):
    """Standard errors from the Cholesky factor: the diagonal of the inverse information."""
    background, free = scene[3], scene[5]
    column = errors[-1]  # of the factor's inverse
    for u in range(size):
        total = 0.0
        for i in range(u, size):
            t = 1.0 if i == u else 0.0
            for j in range(u, i):
                t -= factor[i, j] * column[j]
            column[i] = t / factor[i, i]
            total += column[i] * column[i]
        error = math.sqrt(total) * scale[u]
        if u == size - 1:
            for e in range(k):
                errors[e, background] = error
        else:
            errors[u // len(free), free[u % len(free)]] = error


@compiled
def _clover(s, e, sigma, scene, window, theta, row):
    """Strength of an emitter's clover leaf in standard deviations, the shift (x, y) of each half along its axis, and
    chi square of its box in standard deviations.
    """
    top, left, _, columns = window
    _waves(s, X, left, theta[0], sigma, columns)
    _waves(s, Y, row, theta[1], sigma, scene[4])
    wide = axis.whole(columns)
    first = min(max(round(theta[0]) - scene[4] // 2 - left, 0), columns - scene[4])
    t1, t2, n1, n2, squares, pixels = _leaf(s, (row - top) * wide, scene[4], wide, first)
    excess = (squares - pixels) / math.sqrt(2 * pixels + 1)
    if not (n1 > 0 and n2 > 0):
        return 0.0, 0.0, 0.0, excess
    unit = 2 * math.pi * sigma**4  # of the second derivatives, in place of the density's
    a, b = 4 * t1 / n1 * unit, 2 * t2 / n2 * unit
    far = min(max(math.sqrt(math.hypot(a, b) / max(theta[2], 1.0)), 0.3 * sigma), 1.2 * sigma)
    angle = 0.5 * math.atan2(b, a)
    return math.sqrt(t1 * t1 / n1 + t2 * t2 / n2), far * math.cos(angle), far * math.sin(angle), excess


@compiled
def _settle(s, w, scene, limits, light, window, sigma, weights, k, own, row, errors, doubt, matrices, vectors):
    """Fit the group own[0], with more or fewer emitters if in doubt; returns how many there are and the status.

    row[0]: where their boxes begin.
    """
    theta, trial, spare = own[0], own[1], own[2]
    p, free, (top, left, rows, columns) = theta.shape[1], len(scene[5]), window
    best, good = _climb(
        s, w, scene, limits, light, window, k, theta, row[0], -np.inf, spare, matrices, vectors
    )  # fmt: skip
    _errors(scene, k, k * free + 1, matrices[2], vectors[2], errors)
    while doubt and k <= MOST:  # one more?
        strongest, which, dx, dy, excess = 0.0, 0, 0.0, 0.0, 0.0
        for e in range(k):
            strength, u, v, more = _clover(s, e, sigma, scene, window, theta[e], row[0, e])
            excess = max(excess, more)
            if strength > strongest:
                strongest, which, dx, dy = strength, e, u, v
        grown = False
        for split in (True, False):
            if grown or (split and strongest < TRY):
                continue
            y = x = 0
            bright = np.float32(0)
            if not split:
                if excess < DOUBT:
                    continue
                if strongest > TRY:
                    _evaluate(s, w, scene, light, window, k, theta, row[0])
                value, y, x, bright = _peak(s, weights, rows, columns, axis.whole(columns))
                apart = np.inf
                for e in range(k):
                    apart = min(apart, math.hypot(theta[e, 0] - left - x, theta[e, 1] - top - y))
                if value < LOOKS or apart < APART * sigma:
                    continue
            for e in range(k + 1):
                for a in range(p):
                    trial[e, a] = theta[which if e == k else e, a]
                row[1, e] = row[0, which if e == k else e]
            if split:
                trial[k, 0] += dx
                trial[k, 1] += dy
                trial[which, 0] -= dx
                trial[which, 1] -= dy
                trial[k, 2] *= 0.5
                trial[which, 2] *= 0.5
            else:
                trial[k, 0], trial[k, 1], trial[k, 2] = left + x, top + y, max(bright, np.float32(20))
                row[1, k] = min(max(top + y - scene[4] // 2, top), top + rows - scene[4])
            high, sure = _climb(
                s, w, scene, limits, light, window, k + 1, trial, row[1], best + PROOF, spare, matrices, vectors
            )
            if sure and high > best + PROOF:
                grown, best, good = True, high, True
                k += 1
                _take(trial, row, k, theta)
                _errors(scene, k, k * free + 1, matrices[2], vectors[2], errors)
        if not grown:
            break
    while doubt and k > 1:  # one less?
        least, c = 0, 0
        for e in range(1, k):
            if theta[e, 2] * errors[least, 2] < theta[least, 2] * errors[e, 2]:
                least = e
        if theta[least, 2] > CERTAIN * errors[least, 2]:
            break
        for e in range(k):
            if e != least:
                for a in range(p):
                    trial[c, a] = theta[e, a]
                row[1, c] = row[0, e]
                c += 1
        high, sure = _climb(
            s, w, scene, limits, light, window, c, trial, row[1], best - PROOF, spare, matrices, vectors
        )
        if high < best - PROOF:
            break
        k, best, good = c, high, sure
        _take(trial, row, k, theta)
        _errors(scene, k, k * free + 1, matrices[2], vectors[2], errors)
    return k, CONVERGED if good else MAX_ITERATIONS


@compiled
def _take(trial, row, k, theta):
    for e in range(k):
        row[0, e] = row[1, e]
        for a in range(theta.shape[1]):
            theta[e, a] = trial[e, a]


@compiled
def _group(at, n, seed, first, free_to, scene, link, slot, far):
    """Emitters that belong to `seed`, the nearest to any of them first; returns how many, and their window."""
    box, most = scene[4], MOST
    half = box // 2
    y0 = y1 = round(at[seed, 1])
    x0 = x1 = round(at[seed, 0])
    slot[0], k, newest = seed, 1, seed
    for i in range(n):
        far[i] = link * link
    while k < most:
        nearest = -1
        best = link * link
        for i in range(n):
            if free_to[i]:
                dx, dy = at[i, 0] - at[newest, 0], at[i, 1] - at[newest, 1]
                far[i] = min(far[i], dx * dx + dy * dy)
                if far[i] < best:
                    best, nearest = far[i], i
        if nearest < 0:
            break
        y, x = round(at[nearest, 1]), round(at[nearest, 0])
        top, bottom, left, right = min(y0, y), max(y1, y), min(x0, x), max(x1, x)
        rows, wide = bottom - top + box, axis.whole(right - left + box)
        if rows * wide > WINDOW or box * wide > STRIP or max(rows, wide) > TABLE - 2 * MARGIN:
            break
        y0, y1, x0, x1 = top, bottom, left, right
        slot[k], newest, free_to[nearest] = nearest, nearest, False
        k += 1
    return k, (y0 - half, x0 - half, y1 - y0 + box, x1 - x0 + box)


@compiled
def _shine(s, w, scene, theta, sign, model, pad, stride):
    """Add an emitter's light to a frame's model, or take it off."""
    box = scene[4]
    top, left = round(theta[1]) - box // 2, round(theta[0]) - box // 2
    wide, corner = axis.whole(box), (top + pad) * stride + left + pad
    if scene[2]:
        _tables(s, X, left, theta[0], theta[4], box)
        _tables(s, Y, top, theta[1], theta[4], box)
        for i in range(box):
            _brighten(s, X, np.float32(sign * theta[2]) * s[Y + i], model, corner + i * stride, wide)
        return
    _draw(s, w, scene, theta, 0, top, top, left, box)
    for i in range(box):
        _brighten(s, IMAGES + i * wide, np.float32(sign), model, corner + i * stride, wide)


@fast
def _brighten(s, row, f, model, q, wide):
    for v in range(0, wide, L):
        for j in range(v, v + L):
            put(model, q + j, get(model, q + j) + f * get(s, row + j))


@fast
def _lay_out(frame, behind, read, pad, stride, count, on, model):
    """A frame with a border in which nothing is seen."""
    h, w = frame.shape
    for i in range(h):
        q = (i + pad) * stride + pad
        for j in range(w):
            put(on, q + j, np.float32(1) if abs(frame[i, j]) < NOWHERE else np.float32(0))
        for j in range(w):
            put(count, q + j, max(frame[i, j] + read[i, j], np.float32(0)) if get(on, q + j) > 0 else np.float32(0))
        for j in range(w):
            put(model, q + j, behind[i, j] + read[i, j])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _frames(
    begin, end, scene, limits, light, sigma, weights, frames, behind, read, start, starts, fixed_start, fixed, room,
    scratch, out, count,
):  # fmt: skip
    """Fit the emitters `starts` of the frames from `begin` to `end`; those of f are its rows from start[f] on.

    `scene`: the PSF's address and constants, whether it is a Gaussian, column of the background, side of the box, the
    columns of all other parameters that are fitted.  `limits` (4, p): lowest, highest, and how far a step may go.
    `fixed`, of `fixed_start`: emitters that shine but stay as they are.  Results of f: count[f] rows of `out` from
    room[f] on, parameters, errors, log likelihood, chi square, status.
    """
    background, box, p = scene[3], scene[4], starts.shape[1]
    half, (h, wd) = box // 2, frames.shape[1:]
    pad = half + 2
    stride, link, reach = wd + 2 * pad, LINK * sigma, half + 1.5 * sigma
    area = (h + 2 * pad) * stride + TABLE
    seen, on, model = np.zeros(area, np.float32), np.zeros(area, np.float32), np.ones(area, np.float32)
    s, w = np.zeros(SIZE, np.float32), np.zeros(scratch, np.float32)
    size = (MOST + 1) * len(scene[5]) + 1
    matrices, vectors = np.zeros((3, size, size)), np.zeros((3, size))
    own, row, slot = np.zeros((3, MOST + 1, p)), np.zeros((2, MOST + 1), np.int64), np.zeros(MOST + 1, np.int64)
    errors = np.full((MOST + 2, max(p, size)), np.nan)
    for f in range(begin, end):
        n, cap, first = start[f + 1] - start[f], room[f + 1] - room[f], room[f]
        if n == 0:
            continue
        ground = behind[f * len(behind) // len(frames)]
        _lay_out(frames[f], ground, read, pad, stride, seen, on, model)
        at, error = np.zeros((cap, p)), np.zeros((cap, p))
        there, dirty, young = np.zeros(cap, np.bool_), np.ones(cap, np.bool_), np.ones(cap, np.bool_)
        left, far, ended = np.zeros(cap, np.bool_), np.zeros(cap), np.zeros(cap, np.int64)
        for i in range(fixed_start[f], fixed_start[f + 1]):
            _shine(s, w, scene, fixed[i], 1.0, model, pad, stride)
        for i in range(n):
            there[i] = True
            for a in range(p):
                at[i, a] = min(max(starts[start[f] + i, a], limits[0, a]), limits[1, a])
            at[i, background] = 0.0
            _shine(s, w, scene, at[i], 1.0, model, pad, stride)
        for sweep in range(SWEEPS):
            before = n
            for i in range(n):
                left[i] = there[i]
            for number in range(before):
                seed = before - 1 - number if sweep % 2 else number
                if not left[seed]:
                    continue
                left[seed] = False
                k, window = _group(at, before, seed, 0, left, scene, link, slot, far)
                top, edge, rows, columns = window
                todo, fresh, shone = False, False, False
                for e in range(k):
                    todo |= dirty[slot[e]]
                    fresh |= young[slot[e]]
                    there[slot[e]] = False
                for i in range(n):
                    y, x = at[i, 1] - top, at[i, 0] - edge
                    shone |= there[i] and -half < y < rows + half and -half < x < columns + half
                for e in range(k):
                    there[slot[e]] = True
                fresh &= sweep > 0 or not shone  # what the others are, comes first
                if not (todo or fresh):
                    continue
                for e in range(k):
                    i = slot[e]
                    _shine(s, w, scene, at[i], -1.0, model, pad, stride)
                    row[0, e] = round(at[i, 1]) - half
                    for a in range(p):
                        own[0, e, a] = at[i, a]
                    own[0, e, background] = at[slot[0], background]
                corner = (top + pad) * stride + edge + pad
                _cut(seen, on, model, corner, stride, s, rows, columns, axis.whole(columns))
                new, status = _settle(
                    s, w, scene, limits, light, window, sigma, weights, k, own, row, errors, fresh, matrices, vectors
                )
                moved = new != k
                for e in range(max(k, new)):
                    if e >= new:
                        there[slot[e]] = False
                        continue
                    if e >= k:
                        if n == cap:
                            break
                        slot[e], there[n] = n, True
                        n += 1
                    i = slot[e]
                    for a in range(3):
                        moved |= not abs(at[i, a] - own[0, e, a]) < STILL * errors[e, a]
                    for a in range(p):
                        at[i, a], error[i, a] = own[0, e, a], errors[e, a]
                    ended[i] = status
                    dirty[i], young[i] = False, new > k or (young[i] and not fresh)
                    _shine(s, w, scene, at[i], 1.0, model, pad, stride)
                if moved:
                    for e in range(new):
                        for i in range(n):
                            dx, dy = at[i, 0] - at[slot[e], 0], at[i, 1] - at[slot[e], 1]
                            dirty[i] |= dx * dx + dy * dy < reach * reach
                    for e in range(new):
                        dirty[slot[e]] = False
        kept = 0
        for i in range(n):
            if not there[i] or not at[i, 2] > WEAK * error[i, 2]:
                continue
            top, edge = round(at[i, 1]) - half, round(at[i, 0]) - half
            corner, wide, pixels = (top + pad) * stride + edge + pad, axis.whole(box), 0
            _cut(seen, on, model, corner, stride, s, box, box, wide)
            _lift(s, at[i, background], box * wide)
            for a in range(p):
                out[first + kept, a], out[first + kept, p + a] = at[i, a], error[i, a]
            out[first + kept, 2 * p], out[first + kept, 2 * p + 1] = _judge(s, box * wide)
            out[first + kept, 2 * p + 2] = ended[i]
            level = 0.0
            for y in range(max(top, 0), min(top + box, h)):
                for x in range(max(edge, 0), min(edge + box, wd)):
                    level += ground[y, x]
                    pixels += 1
            out[first + kept, background] += level / max(pixels, 1)
            kept += 1
        count[f] = kept


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
    limits[:2, 0], limits[:2, 1] = (-1.5, frames.shape[2] + 0.5), (-1.5, frames.shape[1] + 0.5)
    limits[:, names.index("background")] = -np.inf, np.inf, np.inf, 0  # of an offset
    n, p, frame = len(frames), len(names), np.arange(len(frames) + 1)

    def rows(table):
        known = {"sigma": np.full(len(table), sigma), "background": np.zeros(len(table))}
        known |= {name: table[name] for name in names if name in table.dtype.names}
        return np.stack([known[name] for name in names], 1).astype(float), np.searchsorted(table["frame"], frame)

    theta, start = rows(starts)
    if scene[2]:
        theta[:, names.index("sigma")] = sigma
    theta[:, 2] = np.maximum(theta[:, 2], 1)
    fixed, fixed_start = rows(starts[:0] if others is None else others)
    had = np.diff(start)
    room = np.concatenate([[0], np.cumsum(2 * had + 4 * (had > 0))])
    out, count = np.full((room[-1], 2 * p + 3), np.nan), np.zeros(n, np.int64)
    read = np.ascontiguousarray(np.broadcast_to(np.asarray(variance, np.float32), frames.shape[1:]))
    frames, behind = (np.ascontiguousarray(v, np.float32) for v in (frames, behind))
    given = (
        scene, limits, (*map(float, light or (0.0, math.inf)), float(sigma), float(uneven)), float(sigma),
        taps(sigma).astype(np.float32), frames, behind, read, start, theta, fixed_start, fixed, room, scratch, out,
        count,
    )  # fmt: skip
    _share(n, BLOCK, lambda begin, end: _frames(begin, end, *given))
    which = np.arange(len(out)) - np.repeat(room[:-1], np.diff(room)) < np.repeat(count, np.diff(room))
    own, columns = out[which], [names.index(name) for name in psf.names]
    theta, errors = own[:, columns].astype(np.float32), own[:, p:][:, columns].astype(np.float32)
    return Emitters(
        np.repeat(frame[:-1], count), theta, errors, own[:, -1].astype(np.int8), own[:, -3].astype(np.float32),
        own[:, -2].astype(np.float32), (own[:, 2] / own[:, p + 2]).astype(np.float32), np.ones(len(own), bool),
    )  # fmt: skip


def _scene(psf: PSF, box: int, held: bool = True) -> tuple[tuple[str, ...], tuple[Any, ...], int]:
    """Names of the parameters, what the compiled code knows of a PSF, and how much scratch its function needs."""
    gaussian, real = type(psf) is Gaussian2D and held, np.dtype(np.float32)
    others = [name for name in psf.names if name not in ("x", "y", "photons")]
    names = ("x", "y", "photons", *others, *(["sigma"] if gaussian and "sigma" not in others else []))
    order = np.array([psf.names.index(name) if name in psf.names else -1 for name in names])
    background, p = names.index("background"), len(names)
    free = [a for a in range(p) if a != background and not (gaussian and a > 3)]
    if len(free) > FREE:
        raise ValueError(f"joint.fit got a PSF of {p} parameters; expected at most {FREE + 1}")
    address, constants = callback(psf.numba_partials, real), locked(psf.constants, real)
    scratch = p + (p + 1) * box * box + psf.scratch_size((box, box))
    return names, (address, constants, gaussian, background, box, np.array(free), order), scratch


def _share(n: int, size: int, run: Callable[[int, int], None]) -> None:
    """Call `run` with first and end of parts of n; plain threads, which compile it once."""
    with ThreadPoolExecutor(numba.get_num_threads()) as pool:
        list(pool.map(lambda first: run(first, min(first + size, n)), range(0, n, size)))
