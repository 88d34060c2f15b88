"""Emitters of whole frames fitted together: those that overlap in one step, the others in turn, with the number open.

The mean of a pixel is the background, the light of all emitters (Gaussians of one width, integrated over the pixel)
and, for emitters that are within LINK widths of each other, directly or through others, one offset of the background.
Such a group of at most MOST is moved by Fisher scoring with Levenberg's damping while all others stand still; the
groups of a frame take turns, SWEEPS times.  The likelihood is that of `loss.PoissonGaussian(exact=False)`.

Two emitters so near to each other that they were taken for one leave a residual like a clover leaf: of the PSF's second
derivatives, xx - yy and xy, to which brightness, position and an error of its width are orthogonal.  Where these are
TRY standard deviations strong, the emitter is split along their axis, and stays so if the likelihood gains PROOF nats.
An emitter of photons below WEAK standard errors is taken out.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

MOST = 5  # emitters of a group
LINK = 2.5  # widths
SWEEPS = 2
STEPS = 12  # of a group at a time
STILL = 0.03  # standard errors
TRY, PROOF, WEAK = 3.0, 8.0, 2.0
TAILS = 4.0  # degrees of freedom of the t distribution of photons: a bead is no crowd of molecules
OUT = ("x", "y", "photons", "background", "x_error", "y_error", "photons_error", "background_error", "chi2", "pixels",
       "log_likelihood")  # fmt: skip
ROOT, DENSITY = math.sqrt(0.5), 1 / math.sqrt(2 * math.pi)


@numba.njit(cache=True, error_model="numpy")
def _axis(centre, sigma, first, count, value, slope):
    """Integrals of a normal density over `count` pixels from `first`, and their derivatives to the centre."""
    u = (first - 0.5 - centre) / sigma
    e, f = math.erf(u * ROOT), math.exp(-0.5 * u * u)
    for i in range(count):
        v = (first + i + 0.5 - centre) / sigma
        ev, fv = math.erf(v * ROOT), math.exp(-0.5 * v * v)
        value[i] = 0.5 * (ev - e)
        slope[i] = (f - fv) * DENSITY / sigma
        e, f = ev, fv


@numba.njit(cache=True, error_model="numpy")
def _range(centre, reach, size):
    """First pixel and end of those within reach of centre, inside."""
    middle = math.floor(centre + 0.5)
    return min(max(0, middle - reach), size), max(min(size, middle + reach + 1), 0)


@numba.njit(cache=True, error_model="numpy")
def _shine(theta, sigma, reach, sign, model):
    """Add an emitter's light to an image, or take it off."""
    h, w = model.shape
    y0, y1 = _range(theta[1], reach, h)
    x0, x1 = _range(theta[0], reach, w)
    if y1 <= y0 or x1 <= x0:
        return
    a, b, unused = np.empty(x1 - x0), np.empty(y1 - y0), np.empty(max(x1 - x0, y1 - y0))
    _axis(theta[0], sigma, x0, x1 - x0, a, unused)
    _axis(theta[1], sigma, y0, y1 - y0, b, unused)
    for i in range(y1 - y0):
        for j in range(x1 - x0):
            model[y0 + i, x0 + j] += sign * theta[2] * b[i] * a[j]


@numba.njit(cache=True, error_model="numpy")
def _solve(matrix, vector, n):
    """Cholesky factor in place of the lower triangle, and the solution in place of the vector; False if singular."""
    for a in range(n):
        for b in range(a + 1):
            t = matrix[a, b]
            for k in range(b):
                t -= matrix[a, k] * matrix[b, k]
            if a == b:
                if not t > 1e-12:
                    return False
                matrix[a, a] = math.sqrt(t)
            else:
                matrix[a, b] = t / matrix[b, b]
    for a in range(n):
        t = vector[a]
        for k in range(a):
            t -= matrix[a, k] * vector[k]
        vector[a] = t / matrix[a, a]
    for a in range(n - 1, -1, -1):
        t = vector[a]
        for k in range(a + 1, n):
            t -= matrix[k, a] * vector[k]
        vector[a] = t / matrix[a, a]
    return True


@numba.njit(cache=True, error_model="numpy")
def _look(frame, read, model, theta, offset, count, sigma, light, box, gradient, fisher):
    """Log-likelihood of a group in its window `box`, with its gradient and Fisher information (n, n), n = 3 count + 1.

    `model` is all else.  With `count` of emitters in `theta`, whose light reaches the whole window.
    """
    y0, y1, x0, x1 = box
    n = 3 * count + 1
    value = np.empty((2, count, max(y1 - y0, x1 - x0)))
    slope = np.empty((2, count, max(y1 - y0, x1 - x0)))
    for k in range(count):
        _axis(theta[k, 0], sigma, x0, x1 - x0, value[0, k], slope[0, k])
        _axis(theta[k, 1], sigma, y0, y1 - y0, value[1, k], slope[1, k])
    gradient[:n] = 0.0
    fisher[:n, :n] = 0.0
    total, d = 0.0, np.empty(n)
    d[n - 1] = 1.0
    for i in range(y1 - y0):
        for j in range(x1 - x0):
            data = frame[y0 + i, x0 + j]
            if not np.isfinite(data):
                continue
            v = read[y0 + i, x0 + j]
            mean = model[y0 + i, x0 + j] + offset
            for k in range(count):
                spot = value[1, k, i] * value[0, k, j]
                mean += theta[k, 2] * spot
                d[3 * k] = theta[k, 2] * value[1, k, i] * slope[0, k, j]
                d[3 * k + 1] = theta[k, 2] * slope[1, k, i] * value[0, k, j]
                d[3 * k + 2] = spot
            mean = max(mean, 0.01) + v
            data = max(data + v, 0.0)
            total += data * math.log(mean) - mean
            weight = 1 / mean
            score = data * weight - 1
            for a in range(n):
                gradient[a] += score * d[a]
                t = weight * d[a]
                for b in range(a + 1):
                    fisher[a, b] += t * d[b]
    for k in range(count):
        far = (theta[k, 2] - light[0]) / light[1]
        pull = (TAILS + 1) / (TAILS + far * far)
        total -= 0.5 * (TAILS + 1) * math.log(1 + far * far / TAILS)
        gradient[3 * k + 2] -= pull * far / light[1]
        fisher[3 * k + 2, 3 * k + 2] += pull / (light[1] * light[1])
    return total


@numba.njit(cache=True, error_model="numpy")
def _climb(frame, read, model, theta, offset, count, sigma, light, box, errors):
    """Move a group to its likeliest place; returns log-likelihood and offset.  `theta`, `errors` change in place."""
    n = 3 * count + 1
    gradient, fisher = np.empty(n), np.empty((n, n))
    step, factor, scale, trial = np.empty(n), np.empty((n, n)), np.empty(n), theta.copy()
    best = _look(frame, read, model, theta, offset, count, sigma, light, box, gradient, fisher)
    damping = 1e-3
    for _ in range(STEPS):
        for a in range(n):
            scale[a] = math.sqrt(max(fisher[a, a], 1e-12))
        for a in range(n):
            for b in range(a + 1):
                factor[a, b] = fisher[a, b] / (scale[a] * scale[b])
            factor[a, a] += damping
            step[a] = gradient[a] / scale[a]
        if not _solve(factor, step, n):
            damping = max(10 * damping, 1e-2)
            continue
        largest = 0.0
        for a in range(n):
            largest = max(largest, abs(step[a]))
            step[a] /= scale[a]
        for k in range(count):
            for a in range(2):
                trial[k, a] = theta[k, a] + min(max(step[3 * k + a], -1.0), 1.0)
            trial[k, 2] = max(theta[k, 2] + step[3 * k + 2], 0.2 * theta[k, 2])
        new_gradient, new_fisher = np.empty(n), np.empty((n, n))
        moved = offset + step[n - 1]
        value = _look(frame, read, model, trial, moved, count, sigma, light, box, new_gradient, new_fisher)
        if value >= best - 1e-9 * abs(best):
            theta[:count] = trial[:count]
            offset = moved
            gain, best, gradient, fisher = value - best, value, new_gradient, new_fisher
            damping = max(0.1 * damping, 1e-6)
            if largest < STILL or gain < 1e-3:
                break
        else:
            damping *= 10
            if damping > 1e4:
                break
    # standard errors: the diagonal of the inverse, column by column
    for a in range(n):
        scale[a] = math.sqrt(max(fisher[a, a], 1e-12))
    for a in range(n):
        for b in range(n):
            for c in range(b + 1):
                factor[b, c] = fisher[b, c] / (scale[b] * scale[c])
            factor[b, b] += 1e-9
        step[:] = 0.0
        step[a] = 1.0
        errors[a] = math.sqrt(max(step[a], 0.0)) / scale[a] if _solve(factor, step, n) else np.inf
    return best, offset


@numba.njit(cache=True, error_model="numpy")
def _window(theta, members, count, reach, shape):
    y0, y1, x0, x1 = shape[0], 0, shape[1], 0
    for k in range(count):
        a, b = _range(theta[members[k], 1], reach, shape[0])
        y0, y1 = min(y0, a), max(y1, b)
        a, b = _range(theta[members[k], 0], reach, shape[1])
        x0, x1 = min(x0, a), max(x1, b)
    return y0, y1, x0, x1


@numba.njit(cache=True, error_model="numpy")
def _group(theta, n, link, group):
    """Number each emitter's group in `group` (n,); groups of at most MOST, by distance."""
    groups = 0
    members = np.empty(MOST, np.int64)
    group[:n] = -1
    for first in range(n):
        if group[first] >= 0:
            continue
        members[0], count, at = first, 1, 0
        group[first] = groups
        while at < count:
            p = members[at]
            for q in range(n):
                if group[q] < 0 and count < MOST:
                    dx, dy = theta[p, 0] - theta[q, 0], theta[p, 1] - theta[q, 1]
                    if dx * dx + dy * dy < link * link:
                        members[count], group[q] = q, groups
                        count += 1
            at += 1
        groups += 1
    return groups


@numba.njit(cache=True, error_model="numpy")
def _clover(frame, read, model, theta, offset, sigma, reach):
    """Strength of an emitter's clover leaf in standard deviations, and the shift (x, y) of each half along its axis."""
    h, w = frame.shape
    y0, y1 = _range(theta[1], reach, h)
    x0, x1 = _range(theta[0], reach, w)
    t1 = t2 = n1 = n2 = 0.0
    s2 = 1 / (sigma * sigma)
    for i in range(y0, y1):
        v = i - theta[1]
        for j in range(x0, x1):
            data = frame[i, j]
            if not np.isfinite(data):
                continue
            u = j - theta[0]
            g = math.exp(-0.5 * (u * u + v * v) * s2) * s2 * s2 * s2 / (2 * math.pi)
            a, b = (u * u - v * v) * g, u * v * g
            mean = max(model[i, j] + offset, 0.01)
            weight = 1 / (mean + read[i, j])
            r = (data - mean) * weight
            t1 += r * a
            t2 += r * b
            n1 += a * a * weight
            n2 += b * b * weight
    if not (n1 > 0 and n2 > 0):
        return 0.0, 0.0, 0.0
    strength = math.sqrt(t1 * t1 / n1 + t2 * t2 / n2)
    a, b = 4 * t1 / n1, 2 * t2 / n2
    far = min(max(math.sqrt(math.hypot(a, b) / max(theta[2], 1.0)), 0.3 * sigma), 1.2 * sigma)
    angle = 0.5 * math.atan2(b, a)
    return strength, far * math.cos(angle), far * math.sin(angle)


@numba.njit(cache=True, error_model="numpy")
def _frame(frame, read, model, theta, n, sigma, light, reach, out):
    """All emitters of one frame; `theta` (room, 3) has room for more; returns how many there are in the end.

    `model` is the background, and in the end all light.
    """
    room, shape = len(theta), frame.shape
    group, link = np.empty(room, np.int64), LINK * sigma
    offset, members = np.zeros(room), np.empty(MOST + 1, np.int64)
    own, errors = np.empty((MOST + 1, 3)), np.empty(3 * MOST + 4)
    for k in range(n):
        _shine(theta[k], sigma, reach, 1.0, model)
    for sweep in range(SWEEPS + 2):
        groups = _group(theta, n, link, group)
        splitting, grown = sweep == SWEEPS - 1, n
        for g in range(groups):
            count = 0
            for k in range(n):
                if group[k] == g:
                    members[count] = k
                    count += 1
            if count == 0:
                continue
            box = _window(theta, members, count, reach, shape)
            for k in range(count):
                _shine(theta[members[k]], sigma, reach, -1.0, model)
                own[k] = theta[members[k]]
            best, shift = _climb(frame, read, model, own, offset[members[0]], count, sigma, light, box, errors)
            for k in range(count):
                theta[members[k]] = own[k]
                offset[members[k]] = shift
                _shine(own[k], sigma, reach, 1.0, model)
                row = out[members[k]]
                row[0:3] = own[k]
                row[3] = shift
                row[4:7] = errors[3 * k : 3 * k + 3]
                row[7] = errors[3 * count]
            if splitting and count <= MOST:
                for k in range(count):
                    strength, dx, dy = _clover(frame, read, model, theta[members[k]], shift, sigma, reach)
                    if strength < TRY or grown == room:
                        continue
                    for q in range(count):
                        _shine(theta[members[q]], sigma, reach, -1.0, model)
                        own[q] = theta[members[q]]
                    own[k, 2] *= 0.5
                    own[count] = own[k]
                    own[k, 0] -= dx
                    own[k, 1] -= dy
                    own[count, 0] += dx
                    own[count, 1] += dy
                    better, other = _climb(frame, read, model, own, shift, count + 1, sigma, light, box, errors)
                    taken = better > best + PROOF
                    if taken:
                        for q in range(count):
                            theta[members[q]] = own[q]
                            offset[members[q]] = other
                        theta[grown] = own[count]
                        offset[grown] = other
                        _shine(theta[grown], sigma, reach, 1.0, model)
                        grown += 1
                    for q in range(count):
                        _shine(theta[members[q]], sigma, reach, 1.0, model)
                    if taken:
                        break
        n = grown
        if sweep == SWEEPS:  # take out what is no more than noise
            kept = 0
            for k in range(n):
                if out[k, 2] > WEAK * out[k, 6]:
                    theta[kept], offset[kept] = theta[k], offset[k]
                    out[kept] = out[k]
                    kept += 1
                else:
                    _shine(theta[k], sigma, reach, -1.0, model)
            n = kept
    return n


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _frames(frames, behind, read, start, theta, room, fixed_start, fixed, sigma, light, reach, count, out):
    n, h, w = frames.shape
    for f in numba.prange(n):
        had = start[f + 1] - start[f]
        if had == 0:
            continue
        own, model = np.empty((room[f + 1] - room[f], 3)), np.empty((h, w), np.float32)
        own[:had] = theta[start[f] : start[f + 1]]
        model[:] = behind[f * len(behind) // n]
        for k in range(fixed_start[f], fixed_start[f + 1]):
            _shine(fixed[k], fixed[k, 3], math.ceil(3 * fixed[k, 3]), 1.0, model)
        result = out[room[f] : room[f + 1]]
        count[f] = _frame(frames[f], read, model, own, had, sigma, light, reach, result)
        for k in range(count[f]):
            _judge(frames[f], read, model, behind[f * len(behind) // n], result[k], reach)


@numba.njit(cache=True, error_model="numpy")
def _judge(frame, read, model, behind, row, reach):
    """Chi square, pixels and log-likelihood in an emitter's box, and its background."""
    y0, y1 = _range(row[1], reach, frame.shape[0])
    x0, x1 = _range(row[0], reach, frame.shape[1])
    chi2 = total = ground = 0.0
    pixels = 0
    for i in range(y0, y1):
        for j in range(x0, x1):
            ground += behind[i, j]
            if np.isfinite(frame[i, j]):
                mean = max(model[i, j] + row[3], 0.01)
                v, x = read[i, j], max(frame[i, j] + read[i, j], 0.0)
                chi2 += (frame[i, j] - mean) ** 2 / (mean + v)
                total += x * math.log(mean + v) - mean - v - math.lgamma(x + 1)
                pixels += 1
    row[3] += ground / max((y1 - y0) * (x1 - x0), 1)
    row[8], row[9], row[10] = chi2, pixels, total


@numba.njit(cache=True, parallel=True, error_model="numpy")
def clovers(images, read, model, theta, sigma, reach, strength):
    """Strength of the clover leaf in `images` (n, h, w) of one emitter each, at `theta` (n, 3), against `model`."""
    for p in numba.prange(len(images)):
        strength[p] = _clover(images[p], read[p], model[p], theta[p], 0.0, sigma, reach)[0]


def refine(
    frames: np.ndarray,
    starts: np.ndarray,
    behind: np.ndarray,
    variance: Any = 0.0,
    sigma: float = 1.3,
    light: tuple[float, float] | None = None,
    others: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Fit all emitters in `frames` (n, h, w) from `starts`, a table of frame, x, y, photons that is sorted by frame.

    `behind` (m, h, w): background of m equal parts of the frames; `variance`: of the read noise; `sigma`: width of the
    PSF.  `light`: centre and scale of the distribution of emitters' photons where it is known beforehand (t with TAILS
    degrees of freedom), which tells apart emitters that are very near to each other; it counts as an observation.
    `others`: table of frame, x, y, photons, sigma, sorted by frame, of emitters that shine but are not fitted.
    Returns which frame (e,) each emitter is in, and its OUT (e, 11).

    >>> from smlmcore.psf import Gaussian2D
    >>> pair = {"x": [[8.0, 9.2]], "y": [[7.0, 7.6]], "photons": [[3000.0, 3000.0]], "sigma": 1.3, "background": [5.0]}
    >>> image = np.random.default_rng(0).poisson(Gaussian2D().render(pair, (16, 18))).astype(np.float32)
    >>> start = np.array([(0, 8.6, 7.3, 5000.0)], [("frame", int), *((n, float) for n in ("x", "y", "photons"))])
    >>> _, rows = refine(image, start, np.full((1, 16, 18), 5.0, np.float32))  # one that is two
    >>> np.sort(rows[:, 0]).round(0).tolist()
    [8.0, 9.0]
    """
    n = len(frames)
    read = np.ascontiguousarray(np.broadcast_to(np.asarray(variance, np.float32), frames.shape[1:]))
    start = np.searchsorted(starts["frame"], np.arange(n + 1))
    theta = np.stack([starts["x"], starts["y"], np.maximum(starts["photons"], 1)], 1).astype(float)
    had = np.diff(start)
    room = np.concatenate([[0], np.cumsum(had + had // 4 + 4 * (had > 0))])
    out, count = np.full((room[-1], len(OUT)), np.nan), np.zeros(n, np.int64)
    fixed_start, fixed = np.zeros(n + 1, int), np.empty((0, 4))
    if others is not None:
        fixed_start = np.searchsorted(others["frame"], np.arange(n + 1))
        fixed = np.stack([others[name] for name in ("x", "y", "photons", "sigma")], 1).astype(float)
    known = np.array([0.0, np.inf] if light is None else light, float)
    frames, behind = (np.ascontiguousarray(v, np.float32) for v in (frames, behind))
    _frames(
        frames,
        behind,
        read,
        start,
        theta,
        room,
        fixed_start,
        fixed,
        float(sigma),
        known,
        math.ceil(3 * sigma),
        count,
        out,
    )
    which = np.arange(len(out)) - np.repeat(room[:-1], np.diff(room)) < np.repeat(count, np.diff(room))
    return np.repeat(np.arange(n), count), out[which]
