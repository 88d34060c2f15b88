"""Joint fits of overlapping emitters, frame by frame, compiled: nothing of a frame leaves the processor's cache.

The emitters of a frame fall into groups of neighbours, of at most `GROUP`; a group has one background and is fitted as
a whole by damped Fisher scoring on the pixels of all its boxes, the light of emitters beyond it taken as it is:

    (F + lambda diag F) d = g,   F = sum w (dmu/da)(dmu/db),   w = 1 / (mu + v),   g = sum (x w - 1) (dmu/da)

with the read-noise variance v and x = max(data + v, 0), as in `fit.mle`.  Each group then looks for one emitter more,
at the peak of its residual or as one of its emitters split in two, for as long as twice the log likelihood grows by
`GAIN`, and for one less, as long as it falls by less (a likelihood-ratio test, near to Schwarz's criterion for three
parameters and the pixels of two boxes).  Groups next to one that has changed are fitted again.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from ..fit.generic import call_psf
from ..fit.numbers import cholesky, dot, log_single, multiply, poisson_term, solve
from ..fit.result import Status
from ..psf import axis

GROUP = 6  # emitters that are fitted together
GAIN = 18.0  # twice the log likelihood that an emitter must bring
LOOKS = 3.0  # standard deviations of the residual's peak from which on an emitter is tried there
DOUBT = 0.7  # standard deviations of chi square from which on a group is looked at for more emitters
SWEEPS = 3  # over the groups of a frame
ITERATIONS = 30
HOPE = 1.5  # a fit gives up where thrice the gain that a step promises would not be enough
TOLERANCE = 0.3  # standard errors that the last step may make
STILL = 0.2  # standard errors: what moves by less leaves its neighbours alone
LEAST_DAMPING, MOST_DAMPING = 1e-2, 1e6
BLOCK = 16  # frames that a thread takes at a time
CERTAIN = 8.0  # photons over their standard error above which an emitter in a group is not in doubt
FIT, ADD, SPLIT, FEWER, LAST = range(5)  # steps of a group
CONVERGED, MAX_ITERATIONS, SINGULAR = int(Status.converged), int(Status.max_iterations), int(Status.singular)

compiled = numba.njit(cache=True, error_model="numpy")
fast = numba.njit(cache=True, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"})


@fast
def _set(a, value, size):
    for j in range(size):
        axis.put(a, j, value)


@fast
def _clear(a, start, columns):
    for j in range(start, start + columns):
        axis.put(a, j, np.float32(0))


@fast
def _image(address, constants, gaussian, theta, background, row, column, box, img, w):
    """Value and derivatives of an emitter in its box at (row, column): img[0] and img[1 + a], in rows of `wide`."""
    wide, real = axis.whole(box), img.dtype.type
    if gaussian:
        across, down = 0, 3 * wide
        edges = 6 * wide
        n, s = theta[2], theta[4]
        axis.slopes(w, across, edges, 0, theta[0] - real(column), s, box)
        axis.slopes(w, down, edges, 0, theta[1] - real(row), s, box)
        value, dx, dy, dn, ds = img[0], img[1], img[2], img[3], img[5]
        for i in range(box):
            e, e_c, e_s = (
                n * axis.get(w, down + i),
                n * axis.get(w, down + wide + i),
                n * axis.get(w, down + 2 * wide + i),
            )
            one = axis.get(w, down + i)
            for j in range(wide):
                a, a_s = axis.get(w, across + j), axis.get(w, across + 2 * wide + j)
                axis.put(value, i * wide + j, e * a)
                axis.put(dx, i * wide + j, e * axis.get(w, across + wide + j))
                axis.put(dy, i * wide + j, e_c * a)
                axis.put(dn, i * wide + j, one * a)
                axis.put(ds, i * wide + j, e * a_s + e_s * a)
        return
    p = len(theta)
    local = w[:p]
    for a in range(p):
        local[a] = theta[a]
    local[0] -= real(column)
    local[1] -= real(row)
    local[background] = real(0)
    size = box * box
    value, partials = w[p : p + size].reshape(box, box), w[p + size : p + size + p * size].reshape(p, box, box)
    call_psf(address, local, constants, value, partials, w[p + size + p * size :], box, box)
    for i in range(box):
        for j in range(box):
            img[0, i * wide + j] = value[i, j]
            for a in range(p):
                img[1 + a, i * wide + j] = partials[a, i, j]


@fast
def _weigh(count, var, on, mu, weight, residual, start, columns):
    """Weights and residuals of a row of pixels; returns its log likelihood without factorials."""
    total, get, put = np.float32(0), axis.get, axis.put
    for j in range(start, start + columns):
        m, x, seen = get(mu, j) + get(var, j), get(count, j), get(on, j)
        inverse = seen / m
        put(weight, j, inverse)
        put(residual, j, x * inverse - seen)
        total += seen * (x * log_single(m) - m)
    return total


@fast
def _lift(base, b, mu, start, columns):
    for j in range(start, start + columns):
        axis.put(mu, j, axis.get(base, j) + b)


@fast
def _add(value, mu, start, stride, box, wide):
    for i in range(box):
        for j in range(wide):
            q = start + i * stride + j
            axis.put(mu, q, axis.get(mu, q) + axis.get(value, i * wide + j))


@fast
def _gather(image, start, stride, box, wide, out):
    for i in range(box):
        for j in range(wide):
            axis.put(out, i * wide + j, axis.get(image, start + i * stride + j))


@fast
def _total(a, start, end):
    total = a.dtype.type(0)
    for j in range(start, end):
        total += axis.get(a, j)
    return np.float64(total)


@compiled
def _place(theta, box, top, left, rows, columns):
    """Corner of an emitter's box, in the region."""
    half = box // 2
    y = min(max(round(theta[1]) - half - top, 0), rows - box)
    x = min(max(round(theta[0]) - half - left, 0), columns - box)
    return y, x


@compiled
def _evaluate(scene, theta, k, region, span, px, img, at, w):
    """Model, weights, residuals of a group; returns the log likelihood."""
    address, constants, gaussian, background, box = scene
    top, left, rows, columns, stride = region
    wide = axis.whole(box)
    base, mu, half = px[3], px[4], box // 2
    b = np.float32(theta[0, background])
    for r in range(half, rows - half):
        _lift(base, b, mu, span[r, 0], span[r, 1])
    for e in range(k):
        y, x = _place(theta[e], box, top, left, rows, columns)
        at[e, 0], at[e, 1] = y, x
        _image(address, constants, gaussian, theta[e], background, y + top, x + left, box, img[e], w)
        value = img[e, 0]
        _add(value, mu, y * stride + x, stride, box, wide)
    total = 0.0
    for r in range(half, rows - half):
        total += _weigh(px[0], px[1], px[2], mu, px[5], px[6], span[r, 0], span[r, 1])
    return total


@compiled
def _assemble(scene, k, held, region, px, img, at, near, information, gradient):
    """Information and gradient of the free parameters of a group, the background last; returns how many there are."""
    box = scene[4]
    _, _, rows, _, stride = region
    wide, p = axis.whole(box), img.shape[1] - 1
    free = 0
    for a in range(p):
        free += not held[a]
    size = k * free + 1
    for a in range(size):
        gradient[a] = 0.0
        for b in range(size):
            information[a, b] = 0.0
    last = size - 1
    half = box // 2
    for r in range(half, rows - half):
        start, end = r * stride + half, (r + 1) * stride - half
        information[last, last] += _total(px[5], start, end)
        gradient[last] += _total(px[6], start, end)
    weight, residual = near[p], near[p + 1]
    for e in range(k):
        start = at[e, 0] * stride + at[e, 1]
        _gather(px[5], start, stride, box, wide, weight)
        _gather(px[6], start, stride, box, wide, residual)
        u = e * free
        for a in range(p):
            if held[a]:
                continue
            one = img[e, 1 + a]
            gradient[u] = dot(one, residual)
            information[last, u] = dot(one, weight)
            multiply(one, weight, near[a])
            v = e * free
            for b in range(a + 1):
                if not held[b]:
                    information[u, v] = dot(img[e, 1 + b], near[a])
                    v += 1
            u += 1
        for f in range(e):  # the other's derivatives, times nothing where the boxes do not meet
            dy, dx = at[e, 0] - at[f, 0], at[e, 1] - at[f, 1]
            if abs(dy) >= box or abs(dx) >= box:
                continue
            i0, i1, j0, j1 = max(0, -dy), min(box, box - dy), max(0, -dx), min(box, box - dx)
            v = f * free
            for b in range(p):
                if held[b]:
                    continue
                other, shifted = img[f, 1 + b], near[p + 2]
                _set(shifted, np.float32(0), box * wide)
                for i in range(i0, i1):
                    for j in range(j0, j1):
                        shifted[i * wide + j] = other[(i + dy) * wide + j + dx]
                u = e * free
                for a in range(p):
                    if not held[a]:
                        information[u, v] = dot(near[a], shifted)
                        u += 1
                v += 1
    for a in range(size):
        for b in range(a):
            information[b, a] = information[a, b]
    return size


@compiled
def _optimise(scene, limits, theta, k, held, goal, region, span, px, img, at, near, w, numbers, matrices):
    """Highest likelihood of a group from `theta`, which is overwritten: log likelihood, status, and the information.

    Gives up when `goal` is out of reach.
    """
    background = scene[3]
    lower, upper, step, factor = limits[0], limits[1], limits[2], limits[3]
    p = theta.shape[1]
    trial, gradient, move, scale = numbers[0].reshape(-1, p), numbers[1], numbers[2], numbers[3]
    information, matrix, factored = matrices[0], matrices[1], matrices[2]
    for e in range(k):
        for a in range(p):
            trial[e, a] = theta[e, a]
    best, damping, status, size = -np.inf, 0.0, MAX_ITERATIONS, 0
    trial32 = near[-1, : k * p].reshape(k, p)
    for count in range(ITERATIONS):
        for e in range(k):
            for a in range(p):
                trial32[e, a] = trial[e, a]
        value = _evaluate(scene, trial32, k, region, span, px, img, at, w)
        better = count == 0 or value >= best - 1e-6 * abs(best)
        if better:
            best = value
            for e in range(k):
                for a in range(p):
                    theta[e, a] = trial[e, a]
            size = _assemble(scene, k, held, region, px, img, at, near, information, gradient)
            damping = damping / 10 if damping > LEAST_DAMPING / 10 else 0.0
        else:
            damping = max(10 * damping, LEAST_DAMPING)
        for a in range(size):
            scale[a] = math.sqrt(information[a, a]) + 1e-30
        for a in range(size):
            for b in range(a + 1):
                matrix[a, b] = information[a, b] / (scale[a] * scale[b])
        while not cholesky(matrix, factored, size, damping + 1e-7, 0.0) and damping < MOST_DAMPING:
            damping = max(100 * damping, LEAST_DAMPING)
        for a in range(size):
            move[a] = gradient[a] / scale[a]
        solve(factored, size, move)
        decrement = 0.0
        for a in range(size):
            decrement += move[a] * gradient[a] / scale[a]
        done = better and damping < LEAST_DAMPING and decrement < TOLERANCE**2
        if damping >= MOST_DAMPING or (count > 0 and best + HOPE * decrement < goal):
            break
        u = 0
        for e in range(k):
            for a in range(p):
                c = u
                if a == background:
                    c = size - 1
                elif held[a]:
                    trial[e, a] = theta[e, a]
                    continue
                else:
                    u += 1
                limit = step[a] + factor[a] * abs(theta[e, a])
                trial[e, a] = min(max(theta[e, a] + min(max(move[c] / scale[c], -limit), limit), lower[a]), upper[a])
        if done:  # the last step is too small to be looked at
            for e in range(k):
                for a in range(p):
                    theta[e, a] = trial[e, a]
            return best + 0.5 * decrement, CONVERGED, size
    return best, status, size


@compiled
def _errors(k, held, size, information, matrix, factored, move, errors):
    """Standard errors of all emitters of a group (k, p) from the inverse information; NaN if there is none."""
    p = errors.shape[1]
    sound = True
    for a in range(size):
        sound &= information[a, a] > 0
    for a in range(size):
        for b in range(a + 1):
            matrix[a, b] = information[a, b] / (math.sqrt(information[a, a] * information[b, b]) + 1e-300)
    sound = sound and cholesky(matrix, factored, size, 0.0, 1e-6)
    u = 0
    for e in range(k):
        for a in range(p):
            errors[e, a] = np.nan
            if held[a] == 1:
                continue
            c = size - 1 if held[a] == 2 else u
            u += held[a] == 0
            if sound:
                for b in range(size):
                    move[b] = b == c
                solve(factored, size, move)
                errors[e, a] = math.sqrt(move[c] / information[c, c])
    return sound


@fast
def _pass(given, squares, start, step, c, out, out2, columns):
    """Add `c` times a row of one image and c^2 times one of another, `step` numbers on, to rows that begin at start."""
    get, put, c2 = axis.get, axis.put, c * c
    for j in range(start, start + columns):
        put(out, j, get(out, j) + c * get(given, j + step))
        put(out2, j, get(out2, j) + c2 * get(squares, j + step))


@compiled
def _residual_peak(region, box, px, taps, line):
    """Matched filter over the residual of a group: its largest value in units of noise, where it is, its photons.

    (count - (mu + v)) / (mu + v) is px[6], and px[5] is 1 / (mu + v); zero where nothing is seen.
    """
    top, left, rows, columns, stride = region
    reach, half = len(taps) - 1, box // 2
    inner, best, place, light = axis.whole(columns - 2 * half), np.float32(0), 0, np.float32(0)
    for r in range(half, rows - half):
        start = r * stride + half
        for part in range(4):
            _clear(line[part], start, inner)
        for q in range(-reach, reach + 1):
            if half <= r + q < rows - half:
                _pass(px[6], px[5], start, q * stride, taps[abs(q)], line[0], line[1], inner)
    for r in range(half, rows - half):
        start = r * stride + half
        for q in range(-reach, reach + 1):
            _pass(line[0], line[1], start, q, taps[abs(q)], line[2], line[3], inner)
        for j in range(start, start + inner):
            s, t = line[2, j], line[3, j]
            if s > 0 and s * s > best * best * t and px[2, j] > 0:
                best, place, light = s / math.sqrt(t), j, s / t
    return best, place // stride + top, place % stride + left, light


@compiled
def _doubt(scene, k, region, px, at):
    """Chi square of a group in standard deviations above its expectation; and the emitter in whose box it is worst."""
    box = scene[4]
    stride = region[4]
    worst, which = -np.inf, 0
    for e in range(k):
        squares, n = 0.0, 0.0
        for i in range(box):
            start = (at[e, 0] + i) * stride + at[e, 1]
            for j in range(start, start + box):
                # ((count - m) / m)^2 m
                squares += px[6, j] * px[6, j] * (px[4, j] + px[1, j]) * px[2, j]
                n += px[2, j]
        excess = (squares - n) / math.sqrt(2 * n + 1)
        if excess > worst:
            worst, which = excess, e
    return worst, which


@compiled
def _direction(scene, e, sigma, theta, region, px, at):
    """Along which axis, and by how much, the residual spreads in an emitter's box: second moments against its light."""
    box, stride = scene[4], region[4]
    xx = yy = xy = 0.0
    for i in range(box):
        for j in range(box):
            q = (at[e, 0] + i) * stride + at[e, 1] + j
            v, u = at[e, 0] + i + region[0] - theta[e, 1], at[e, 1] + j + region[1] - theta[e, 0]
            # residual in photons, within two widths of the emitter
            d = px[6, q] * (px[4, q] + px[1, q]) * math.exp(-(u * u + v * v) / (4 * sigma * sigma))
            xx += d * (u * u - sigma * sigma)
            yy += d * (v * v - sigma * sigma)
            xy += d * u * v
    return 0.5 * math.atan2(2 * xy, xx - yy)


@compiled
def _solve_group(
    scene, limits, frame, read, every, member, keep, n, sigma, width, taps, k, theta, spare, errors, free_width, known,
    span, px, img, at, near, line, w, numbers, matrices, grow, measure,
):  # fmt: skip
    """Fit a group of k emitters `theta`, with more or fewer of them if `grow`, before the others of the frame.

    Returns how many there are, the status, and whether others shine in; fills `theta`, `errors` and `measure`: log
    likelihood, chi square and pixels of each box.
    """
    background, box = scene[3], scene[4]
    h, wd = frame.shape
    half, p, wide = box // 2, theta.shape[1], axis.whole(box)
    # the region: all boxes, and half a box around, which does not count
    top = left = 1 << 30
    bottom = right = -(1 << 30)
    for e in range(k):
        y, x = round(theta[e, 1]), round(theta[e, 0])
        top, bottom, left, right = (
            min(top, y - 2 * half),
            max(bottom, y + 2 * half),
            min(left, x - 2 * half),
            max(right, x + 2 * half),
        )
    rows, columns = bottom - top + 1, right - left + 1
    stride = axis.whole(columns) + axis.LANES
    if rows > len(span) or rows * stride > px.shape[1]:
        return k, SINGULAR, False
    region = (top, left, rows, columns, stride)
    for part in range(7):
        _set(px[part], np.float32(part < 2), rows * stride)
    for r in range(rows):
        span[r, 0], span[r, 1] = columns, 0
    for e in range(k):
        y, x = round(theta[e, 1]), round(theta[e, 0])
        for r in range(max(0, y - half), min(h, y + half + 1)):
            span[r - top, 0] = min(span[r - top, 0], x - half - left)
            span[r - top, 1] = max(span[r - top, 1], x + half + 1 - left)
            for c in range(max(0, x - half), min(wd, x + half + 1)):
                d = frame[r, c]
                if math.isfinite(d):
                    q = (r - top) * stride + c - left
                    px[0, q], px[1, q], px[2, q] = max(d + read[r, c], np.float32(0)), read[r, c], 1
    for r in range(rows):  # from a first pixel on, whole vectors
        first = span[r, 0]
        span[r, 0], span[r, 1] = r * stride + first, axis.whole(max(span[r, 1] - first, 0))
    shone = False
    for o in range(n):  # the light of those beyond the group
        if member[o] or not keep[o]:
            continue
        y, x = round(every[o, 1]) - half, round(every[o, 0]) - half
        if y > bottom - half or y + box <= top + half or x > right - half or x + box <= left + half:
            continue
        for a in range(p):
            near[-1, a] = every[o, a]
        shone = True
        _image(scene[0], scene[1], scene[2], near[-1, :p], background, y, x, box, img[0], w)
        for r in range(max(y, top), min(y + box, bottom + 1)):
            for c in range(max(x, left), min(x + box, right + 1)):
                px[3, (r - top) * stride + c - left] += max(img[0, 0, (r - y) * wide + c - x], np.float32(0))
    step, growing, better, sound = FIT, grow, False, False
    best, winner, status, worst, value, angle = -np.inf, -np.inf, SINGULAR, 0, np.float32(0), 0.0
    y, x, light, least = 0, 0, np.float32(0), 0
    trial = spare[0]
    while True:
        m, c = k, 0
        for e in range(k):
            if step == FEWER and e == least:
                continue
            for a in range(p):
                trial[c, a] = theta[e, a]
            c += 1
        if step in (ADD, SPLIT):
            m = k + 1
            for a in range(p):
                trial[k, a] = trial[worst, a]
            if width >= 0:
                for e in range(m):
                    trial[e, width] = sigma
            if step == ADD:
                trial[k, 0], trial[k, 1], trial[k, 2] = x, y, max(light, np.float32(20))
            else:
                u, v = 0.7 * sigma * math.cos(angle), 0.7 * sigma * math.sin(angle)
                trial[k, 0] += u
                trial[k, 1] += v
                trial[worst, 0] -= u
                trial[worst, 1] -= v
                trial[k, 2] *= 0.5
                trial[worst, 2] *= 0.5
        elif step == FEWER:
            m = k - 1
        held = known if m > 1 else free_width
        goal = -np.inf if step in (FIT, LAST) else best - 0.5 * GAIN if step == FEWER else winner
        high, state, size = _optimise(
            scene, limits, trial, m, held, goal, region, span, px, img, at, near, w, numbers, matrices
        )
        if step in (FIT, LAST) or (step == FEWER and high >= best - 0.5 * GAIN):
            best, status, k = high, state, m
            for e in range(k):
                for a in range(p):
                    theta[e, a] = trial[e, a]
            sound = _errors(k, held, size, matrices[0], matrices[1], matrices[2], numbers[2], errors)
            growing &= step == FIT
            if growing and k <= GROUP:
                excess, worst = _doubt(scene, k, region, px, at)
                growing = excess > DOUBT
            if growing and k <= GROUP:
                value, y, x, light = _residual_peak(region, box, px, taps, line)
                angle, better = _direction(scene, worst, sigma, theta, region, px, at), False
                winner = best + 0.5 * GAIN
                step = ADD if value > LOOKS else SPLIT
            elif grow and k > 1 and step != LAST:
                least = 0
                for e in range(1, k):
                    if theta[e, 2] * errors[least, 2] < theta[least, 2] * errors[e, 2]:
                        least = e
                if sound and theta[least, 2] > CERTAIN * errors[least, 2]:
                    break
                step = FEWER
            else:
                break
        elif step == FEWER:
            step = LAST
        else:
            if state == CONVERGED and high > winner:
                winner, better = high, True
                for e in range(m):
                    for a in range(p):
                        spare[1, e, a] = trial[e, a]
            if step == ADD:
                step = SPLIT
                continue
            if better:
                k = m
                for e in range(k):
                    for a in range(p):
                        theta[e, a] = spare[1, e, a]
            else:
                growing = False
            step = FIT
    if not sound:
        status = SINGULAR
    for e in range(k):
        measure[e, 0], measure[e, 1], measure[e, 2] = _judge(scene, e, region, px, at)
    return k, status, shone


@fast
def _judge(scene, e, region, px, at):
    """Log likelihood, chi square and number of pixels of an emitter's box."""
    box, stride = scene[4], region[4]
    likelihood = squares = pixels = np.float32(0)
    count, var, on, mu, residual = px[0], px[1], px[2], px[4], px[6]
    for i in range(box):
        start = (at[e, 0] + i) * stride + at[e, 1]
        for j in range(start, start + box):
            m, seen = axis.get(mu, j) + axis.get(var, j), axis.get(on, j)
            # where nothing is seen, count and variance are 1, and the model is no less than nothing
            likelihood += seen * poisson_term(axis.get(count, j), max(m, np.float32(1e-6)))
            squares += axis.get(residual, j) ** 2 * m
            pixels += seen
    return likelihood, squares, pixels


@numba.njit(cache=True, nogil=True, error_model="numpy")
def fit(
    begin, end, address, constants, gaussian, background, box, limits, frames, read, starts, theta, work, sigma, width,
    near_by, taps, free_width, known, room, scratch, origin, found, errors, measure, status, crowded, count,
):  # fmt: skip
    """Fit all emitters marked `work` in the frames from `begin` to `end`; row starts[f] of `theta` is the first of f.

    `address`, `constants`, `gaussian`: of the PSF, and whether it is a plain Gaussian; `background`, `width`: columns,
    the latter -1 where there is none; `limits` (4, p): lowest, highest, and how far a step may go.  `sigma`, `taps`:
    usual width and the filter.  `near_by`: distance in x or y within which two belong together.  `free_width`, `known`
    (p,): for one alone and for several, 0 for a parameter to fit, 1 for one that is held, 2 for the background.

    Results of frame f are `count[f]` rows from room[f] on: `origin` the row of `theta` that they come from, or -1;
    `found`, `errors` (m, p); `measure` (m, 3), log likelihood, chi square, pixels; `status`; `crowded`.
    """
    scene = (address, constants, gaussian, background, box)
    p = theta.shape[1]
    wide, most = axis.whole(box), GROUP + 2
    side = 2 * box + int(near_by) * GROUP + 8
    px = np.zeros((7, side * (axis.whole(side) + 2 * axis.LANES)), np.float32)
    line = np.zeros((4, px.shape[1]), np.float32)
    img, near = np.zeros((most, p + 1, box * wide), np.float32), np.zeros((p + 4, box * wide), np.float32)
    span = np.zeros((side, 2), np.int64)
    at, w = np.zeros((most, 2), np.int64), np.zeros(scratch, np.float32)
    numbers, matrices = np.zeros((4, most * p)), np.zeros((3, most * p, most * p))
    group, spare, error = np.zeros((most, p)), np.zeros((2, most, p)), np.zeros((most, p))
    sums, slot = np.zeros((most, 3)), np.zeros(most, np.int64)
    for f in range(begin, end):
        n, cap, first = starts[f + 1] - starts[f], room[f + 1] - room[f], room[f]
        every, keep, dirty = found[first : first + cap], np.zeros(cap, np.bool_), np.zeros(cap, np.bool_)
        young = np.ones(cap, np.bool_)
        member, done = np.zeros(cap, np.bool_), np.zeros(cap, np.bool_)
        for i in range(n):
            origin[first + i], keep[i], dirty[i] = starts[f] + i, True, work[starts[f] + i]
            for a in range(p):
                every[i, a] = theta[starts[f] + i, a]
        for sweep in range(SWEEPS):
            for i in range(n):
                done[i] = not keep[i] or (origin[first + i] >= 0 and not work[origin[first + i]])
            before = n
            for number in range(before):
                seed = before - 1 - number if sweep % 2 else number
                if done[seed]:
                    continue
                for i in range(n):
                    member[i] = False
                k, slot[0], member[seed], done[seed] = 1, seed, True, True
                any_dirty, fresh = dirty[seed], young[seed]
                while k < GROUP:  # the nearest to any of the group
                    best, nearest = near_by, -1
                    for i in range(before):
                        if not done[i]:
                            for e in range(k):
                                d = max(abs(every[i, 0] - every[slot[e], 0]), abs(every[i, 1] - every[slot[e], 1]))
                                if d < best:
                                    best, nearest = d, i
                    if nearest < 0:
                        break
                    slot[k], member[nearest], done[nearest] = nearest, True, True
                    any_dirty |= dirty[nearest]
                    fresh |= young[nearest]
                    k += 1
                if not any_dirty:
                    continue
                for e in range(k):
                    if width >= 0 and k > 1:  # one too wide has taken the light of others
                        wider = min(max(every[slot[e], width] / sigma, 1.0), 2.0)
                        every[slot[e], 2] /= wider * wider
                        every[slot[e], width] = sigma
                    for a in range(p):
                        group[e, a] = every[slot[e], a]
                for e in range(k):
                    group[e, background] = group[0, background]
                new, ended, shone = _solve_group(
                    scene, limits, frames[f], read, every, member, keep, n, sigma, width, taps, k, group, spare,
                    error, free_width, known, span, px, img, at, near, line, w, numbers, matrices, fresh, sums,
                )  # fmt: skip
                moved = new != k
                for e in range(max(k, new)):
                    if e >= new:
                        keep[slot[e]] = False
                        continue
                    if e >= k:
                        if n == cap:
                            break
                        slot[e], origin[first + n], keep[n] = n, -1, True
                        n += 1
                    i = slot[e]
                    for a in range(p):
                        if e < k and a < 3:
                            moved |= not abs(every[i, a] - group[e, a]) < STILL * error[e, a]
                        every[i, a] = group[e, a]
                        errors[first + i, a] = error[e, a]
                    for a in range(3):
                        measure[first + i, a] = sums[e, a]
                    status[first + i], crowded[first + i], dirty[i] = ended, new > 1 or shone, new > k
                    young[i] = new > k
                if moved:
                    for i in range(n):
                        if member[i] or not keep[i]:
                            continue
                        for e in range(new):
                            reach = near_by + sigma
                            if abs(every[i, 0] - group[e, 0]) < reach and abs(every[i, 1] - group[e, 1]) < reach:
                                dirty[i] |= origin[first + i] < 0 or work[origin[first + i]]
        kept = 0
        for i in range(n):
            if keep[i] and (origin[first + i] < 0 or work[origin[first + i]]):
                for a in range(p):
                    every[kept, a], errors[first + kept, a] = every[i, a], errors[first + i, a]
                for a in range(3):
                    measure[first + kept, a] = measure[first + i, a]
                origin[first + kept], status[first + kept] = origin[first + i], status[first + i]
                crowded[first + kept] = crowded[first + i]
                kept += 1
        count[f] = kept
