"""All emitters of some frames: one fit for each peak, and for those that overlap a joint one.

An emitter in front of others is fitted with these taken off: with m their light, the data d - m of extra variance m
have the very likelihood of d with the mean mu + m,

    (d - m) + (v + m) = d + v,        mu + (v + m) = (mu + m) + v,

so `fit.mle`, for any PSF, maximises the joint likelihood emitter by emitter, a few times in turn (coordinate ascent).
Where the residual still shows a peak in the vicinity of spots that the model does not explain (chi square), one more
emitter is put (as in DAOSTORM: Holden, Uphoff & Kapanidis 2011, Nat. Methods 8, 279), and the fit goes on.

At the border, pixels beyond have no weight: emitters there are fitted with the part that is seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from .. import fit
from ..psf import Gaussian2D
from ..psf.base import PSF
from .finder import taps

NOWHERE = np.float32(1e12)  # variance of a pixel that says nothing
ROUNDS = (3, 3, 4, 3)  # of joint fits; between them emitters are added (twice), then those that prove nothing removed
UNEXPLAINED = 3.0  # standard deviations of chi square
SUSPECT = 1.0  # the same, below which one looks for one more emitter in the residual
STILL = 0.1  # standard errors: an emitter that moves by less is not fitted again
MOST = 4  # neighbours whose uncertainty counts in an emitter's own
PROOF = 1.5  # photons over their standard error that an emitter in a crowd needs


@dataclass
class Emitters:
    """Emitters of some frames, sorted by frame: `theta`, `errors` (n, p) in pixels of the frame, and what is known."""

    frame: np.ndarray
    theta: np.ndarray
    errors: np.ndarray
    status: np.ndarray
    log_likelihood: np.ndarray
    chi2: np.ndarray
    pixels: np.ndarray  # that the fit had
    snr: np.ndarray
    crowded: np.ndarray  # fitted together with others

    def __len__(self) -> int:
        return len(self.frame)

    def rows(self, index: np.ndarray) -> Emitters:
        return Emitters(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def join(self, other: Emitters) -> Emitters:
        """Both, sorted by frame."""
        both = Emitters(*(np.concatenate([getattr(s, n) for s in (self, other)]) for n in self.__dataclass_fields__))
        return both.rows(np.argsort(both.frame, kind="stable"))


def fit_peaks(
    frames: np.ndarray,
    peaks: np.ndarray,
    psf: PSF,
    variance: Any = 0.0,
    sigma: float = 1.3,
    box: int = 9,
    threshold: float = 5.0,
    threads: int | None = None,
) -> Emitters:
    """Fit all emitters in `frames` (n, h, w) that `peaks` (frame, x, y, snr) show, and those hidden beside them.

    `sigma`: width of the PSF, at which overlapping Gaussians are
    held.  `threshold`: least snr in the residual for one more emitter.  Returns the emitters with a finite position.
    """
    frames = np.ascontiguousarray(frames, np.float32)
    read = np.ascontiguousarray(np.broadcast_to(np.asarray(variance, np.float32), frames.shape[1:]))
    # where two overlap, their widths cannot be told from their distance
    narrow = Gaussian2D(sigma) if type(psf) is Gaussian2D and psf.sigma is None else psf
    work = _Work(frames, read, psf, narrow, sigma, box, threads)
    emitters = work.first(peaks)
    emitters.crowded |= work.in_a_crowd(emitters)
    if emitters.crowded.any():
        emitters = work.together(emitters, threshold)
    return emitters.rows(np.isfinite(emitters.theta).all(1) & np.isfinite(emitters.errors[:, :2]).all(1))


class _Work:
    """The frames, and the model image of all emitters in them: `own` (n, box, box) around the pixels `x`, `y`."""

    def __init__(self, frames, read, psf, narrow, sigma, box, threads) -> None:
        self.frames, self.read, self.psf, self.narrow = frames, read, psf, narrow
        self.sigma, self.box, self.half, self.threads = sigma, box, box // 2, threads
        self.reach = np.float32(self.half + 1.5 * sigma)  # of an emitter's light into another's box
        self.photons = psf.names.index("photons")
        self.model = np.empty((0, 0, 0), np.float32)

    def first(self, peaks) -> Emitters:
        """Each peak for itself."""
        frame, x, y = (peaks[name].astype(np.int64) for name in ("frame", "x", "y"))
        images, noise, pixels = self.boxes(frame, x, y, np.empty((0, self.box, self.box), np.float32))
        found = fit.mle(images, self.psf, variance=noise, threads=self.threads, progress=False)
        theta = found.parameters.copy()
        theta[:, 0] += x - self.half
        theta[:, 1] += y - self.half
        return Emitters(
            frame, theta, found.errors, found.status, found.log_likelihood, found.chi2, pixels,
            peaks["snr"].astype(np.float32), np.zeros(len(frame), bool),
        )  # fmt: skip

    def boxes(self, frame, x, y, own):
        """Data and variance of the boxes around pixels (x, y), the other emitters taken off; and how many pixels."""
        n = len(frame)
        images, noise = (np.empty((n, self.box, self.box), np.float32) for _ in range(2))
        pixels = np.empty(n, np.int32)
        _cut(self.frames, self.model, self.read, frame, x, y, own, images, noise, pixels)
        return images, noise, pixels

    def in_a_crowd(self, emitters: Emitters) -> np.ndarray:
        """Emitters that others shine on, or that one emitter does not explain."""
        n, p = emitters.pixels, emitters.theta.shape[1]
        bad = ~(emitters.chi2 <= n - p + UNEXPLAINED * np.sqrt(2.0 * n)) | ~np.isfinite(emitters.theta).all(1)
        return bad | self.near(emitters, np.ones(len(emitters), bool))

    def near(self, emitters: Emitters, to: np.ndarray) -> np.ndarray:
        """Emitters within reach of one of those marked in `to`, other than themselves."""
        near = np.zeros(len(emitters), bool)
        _near(self.starts(emitters.frame), emitters.theta[:, 0], emitters.theta[:, 1], to, self.reach, near)
        return near

    def starts(self, frame: np.ndarray) -> np.ndarray:
        return np.searchsorted(frame, np.arange(len(self.frames) + 1))

    def together(self, emitters: Emitters, threshold: float) -> Emitters:
        """Fit those in a crowd in turn, add what the residual shows, remove what proves nothing."""
        if self.narrow is not self.psf:
            width, rows = self.psf.names.index("sigma"), emitters.crowded
            # a Gaussian too wide has taken the light of others
            wide = np.clip(np.nan_to_num(emitters.theta[rows, width], nan=self.sigma) / self.sigma, 1, 2)
            emitters.theta[rows, self.photons] /= wide**2
            emitters.theta[rows, width] = self.sigma
        self.draw(emitters)
        for stage, rounds in enumerate(ROUNDS):
            moved = emitters.crowded.copy()
            for _ in range(rounds):
                if not moved.any():
                    break
                which = (moved | self.near(emitters, moved)) & emitters.crowded
                moved = np.zeros(len(emitters), bool)
                for colour in (0, 1):  # neighbours not at the same time: each would take what the other takes as well
                    moved |= self.round(emitters, which & (self.colour == colour))
            if stage < 2:
                emitters = self.add(emitters, threshold)
            elif stage == 2:
                emitters = self.remove(emitters)
        self.joint_errors(emitters)
        return emitters

    def render(self, theta: np.ndarray):
        """Central pixel of each emitter's box, and its light there."""
        h, w = self.frames.shape[1:]
        theta = np.nan_to_num(theta)
        x, y = (np.clip(np.rint(theta[:, a]), 0, m - 1).astype(np.int64) for a, m in ((0, w), (1, h)))
        theta[:, 0] -= x - self.half
        theta[:, 1] -= y - self.half
        values = dict(zip(self.psf.names, theta.T.copy(), strict=True))
        values["background"] = np.zeros(len(x), np.float32)
        values["photons"] = np.maximum(values["photons"], np.float32(0))
        if "sigma" in values:
            values["sigma"] = np.where(values["sigma"] > 0, values["sigma"], np.float32(self.sigma))
        return x, y, np.asarray(self.psf.render(values, (self.box, self.box)), np.float32)

    def draw(self, emitters: Emitters) -> None:
        """The model image, from nothing."""
        if len(self.model):
            self.model.fill(0)
        else:
            self.model = np.zeros_like(self.frames)
        self.x, self.y, self.own = self.render(emitters.theta)
        starts = self.starts(emitters.frame)
        _add(starts, self.x, self.y, self.own, np.float32(1), self.model)
        self.colour = np.zeros(len(emitters), np.int8)
        _colours(starts, emitters.theta[:, 0], emitters.theta[:, 1], self.reach, self.colour)

    def round(self, emitters: Emitters, which: np.ndarray) -> np.ndarray:
        """Fit each of `which` once, the others as they are.  Returns those that moved by a part of their error."""
        rows = np.flatnonzero(which)
        frame, x, y, own = emitters.frame[rows], self.x[rows], self.y[rows], self.own[rows]
        starts = self.starts(frame)
        images, noise, pixels = self.boxes(frame, x, y, own)
        columns = [self.psf.names.index(name) for name in self.narrow.names]
        before = emitters.theta[rows]
        start = np.nan_to_num(before[:, columns])
        start[:, 0] -= x - self.half
        start[:, 1] -= y - self.half
        found = fit.mle(images, self.narrow, noise, start, threads=self.threads, progress=False, tolerance=0.1)
        theta, errors = before.copy(), np.full_like(before, np.nan)
        theta[:, columns], errors[:, columns] = found.parameters, found.errors
        theta[:, 0] += x - self.half
        theta[:, 1] += y - self.half
        good = np.isfinite(theta).all(1)
        theta[~good] = before[~good]
        emitters.theta[rows], emitters.errors[rows], emitters.status[rows] = theta, errors, found.status
        emitters.log_likelihood[rows], emitters.chi2[rows] = found.log_likelihood, found.chi2
        emitters.pixels[rows] = pixels
        _add(starts, x, y, own, np.float32(-1), self.model)
        self.x[rows], self.y[rows], self.own[rows] = new = self.render(theta)
        _add(starts, *new, np.float32(1), self.model)
        moved = np.zeros(len(emitters), bool)
        with np.errstate(invalid="ignore", divide="ignore"):
            moved[rows] = ~((abs(theta - before)[:, :3] < STILL * errors[:, :3]).all(1))
        return moved

    def unexplained(self, emitters: Emitters, limit: float) -> np.ndarray:
        n, p = emitters.pixels, len(self.narrow.names)
        return ~(emitters.chi2 <= n - p + limit * np.sqrt(2.0 * n))

    def add(self, emitters: Emitters, threshold: float) -> Emitters:
        """With one more emitter at each peak of the residual near a spot that is not explained."""
        h, w = self.frames.shape[1:]
        rows = np.flatnonzero(self.unexplained(emitters, SUSPECT) & emitters.crowded)
        frame, background = emitters.frame[rows], emitters.theta[rows, self.psf.names.index("background")]
        at, snr, light = np.empty(len(rows), np.int64), *np.empty((2, len(rows)), np.float32)
        _residual_peak(
            self.frames, self.model, np.maximum(np.nan_to_num(background), np.float32(0.01)), self.read, frame,
            self.x[rows], self.y[rows], taps(self.sigma).astype(np.float32), self.half, at, snr, light,
        )  # fmt: skip
        good = np.flatnonzero(snr > threshold)
        _, first = np.unique(frame[good] * (h * w) + at[good], return_index=True)
        first = good[first]
        if not first.size:
            return emitters
        new = emitters.rows(rows[first])
        new.theta[:, 0], new.theta[:, 1], new.theta[:, self.photons] = at[first] % w, at[first] // w, light[first]
        if self.narrow is not self.psf:
            new.theta[:, self.psf.names.index("sigma")] = self.sigma
        # so near that both shared one place: half of the light each, on either side of it
        old = emitters.theta[rows[first]]
        apart = new.theta[:, :2] - old[:, :2]
        shared = np.hypot(*apart.T) < 2 * self.sigma
        old[shared, :2] -= apart[shared] / 2
        old[shared, self.photons] /= 2
        new.theta[shared, self.photons] = old[shared, self.photons]
        emitters.theta[rows[first]] = old
        new.snr, new.crowded = snr[first], np.ones(len(first), bool)
        both = emitters.join(new)
        self.draw(both)
        return both

    def remove(self, emitters: Emitters) -> Emitters:
        """Without those that are no more than noise or the double of another."""
        self.joint_errors(emitters)
        with np.errstate(invalid="ignore", divide="ignore"):
            sure = emitters.theta[:, self.photons] / emitters.errors[:, self.photons]
        weak = emitters.crowded & ~(sure > PROOF)
        kept = emitters.rows(~weak)
        self.draw(kept)
        return kept

    def joint_errors(self, emitters: Emitters) -> None:
        """Standard errors of the crowded when the neighbours' places and light are unknown as well."""
        theta = np.nan_to_num(emitters.theta[:, [self.psf.names.index(name) for name in self.narrow.names]])
        theta[:, 0] -= self.x - self.half
        theta[:, 1] -= self.y - self.half
        partials = np.asarray(self.narrow.partials(theta, (self.box, self.box))[1], np.float32)
        background = np.nan_to_num(emitters.theta[:, self.psf.names.index("background")])
        errors = np.full((len(emitters), len(self.narrow.names)), np.nan, np.float32)
        column, reach = self.narrow.names.index("background"), np.float32(4 * self.sigma)
        _joint(
            self.starts(emitters.frame), emitters.theta, self.x, self.y, emitters.crowded, partials, self.frames,
            self.model, background, self.read, column, reach, errors,
        )  # fmt: skip
        rows = emitters.crowded
        columns = [self.psf.names.index(name) for name in self.narrow.names]
        for own, column in enumerate(columns):
            emitters.errors[rows, column] = errors[rows, own]


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _cut(frames, model, read, frame, x, y, own, images, noise, pixels):
    n, box = images.shape[:2]
    h, w = frames.shape[1:]
    half = box // 2
    for p in numba.prange(n):
        seen = 0
        for i in range(box):
            for j in range(box):
                r, c = y[p] - half + i, x[p] - half + j
                images[p, i, j], noise[p, i, j] = np.float32(0), NOWHERE
                if 0 <= r < h and 0 <= c < w and np.isfinite(frames[frame[p], r, c]):
                    others = np.float32(0)
                    if len(model):
                        others = max(model[frame[p], r, c] - own[p, i, j], np.float32(0))
                    images[p, i, j] = frames[frame[p], r, c] - others
                    noise[p, i, j] = read[r, c] + others
                    seen += 1
        pixels[p] = seen


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _add(starts, x, y, own, sign, model):
    """Add or take off emitters' light; those of frame f are starts[f] to starts[f + 1]."""
    n, h, w = model.shape
    box = own.shape[1]
    half = box // 2
    for f in numba.prange(n):
        for p in range(starts[f], starts[f + 1]):
            for i in range(max(0, half - y[p]), min(box, h - y[p] + half)):
                for j in range(max(0, half - x[p]), min(box, w - x[p] + half)):
                    model[f, y[p] - half + i, x[p] - half + j] += sign * own[p, i, j]


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _near(starts, x, y, to, reach, near):
    for f in numba.prange(len(starts) - 1):
        for p in range(starts[f], starts[f + 1]):
            for q in range(starts[f], p):
                if (to[p] or to[q]) and abs(x[p] - x[q]) < reach and abs(y[p] - y[q]) < reach:
                    near[p] |= to[q]
                    near[q] |= to[p]


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _colours(starts, x, y, reach, colour):
    """0 or 1 for each emitter, so that most neighbours differ."""
    for f in numba.prange(len(starts) - 1):
        for p in range(starts[f], starts[f + 1]):
            zeros = ones = 0
            for q in range(starts[f], p):
                if abs(x[p] - x[q]) < reach and abs(y[p] - y[q]) < reach:
                    ones += colour[q]
                    zeros += 1 - colour[q]
            colour[p] = 1 if zeros > ones else 0


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _joint(starts, theta, x, y, which, partials, frames, model, background, read, column, reach, errors):
    """Errors from the Fisher information of an emitter's parameters and those of its MOST nearest neighbours.

    A neighbour's background is the emitter's own, so its column is left out.
    """
    h, w = frames.shape[1:]
    own, box = partials.shape[1], partials.shape[2]
    half, rest = box // 2, own - 1
    size = own + MOST * rest
    for f in numba.prange(len(starts) - 1):
        values, inverse, information = np.empty(size), np.empty(size), np.empty((size, size))
        near, distance = np.empty(MOST, np.int64), np.empty(MOST)
        for p in range(starts[f], starts[f + 1]):
            if not which[p]:
                continue
            count = 0
            for q in range(starts[f], starts[f + 1]):
                d = (theta[p, 0] - theta[q, 0]) ** 2 + (theta[p, 1] - theta[q, 1]) ** 2
                if q == p or not d < reach * reach:
                    continue
                k = count if count < MOST else MOST - 1
                if count == MOST and d >= distance[k]:
                    continue
                while k > 0 and distance[k - 1] > d:
                    near[k], distance[k] = near[k - 1], distance[k - 1]
                    k -= 1
                near[k], distance[k] = q, d
                count = min(count + 1, MOST)
            n = own + count * rest
            information[:n, :n] = 0.0
            for i in range(box):
                for j in range(box):
                    r, c = y[p] - half + i, x[p] - half + j
                    if not (0 <= r < h and 0 <= c < w and np.isfinite(frames[f, r, c])):
                        continue
                    weight = 1.0 / max(float(model[f, r, c] + background[p] + read[r, c]), 1e-3)
                    for a in range(own):
                        values[a] = partials[p, a, i, j]
                    at = own
                    for k in range(count):
                        q = near[k]
                        u, v = r - y[q] + half, c - x[q] + half
                        inside = 0 <= u < box and 0 <= v < box
                        for a in range(own):
                            if a != column:
                                values[at] = partials[q, a, u, v] if inside else 0.0
                                at += 1
                    for a in range(n):
                        t = values[a] * weight
                        if t != 0:
                            for b in range(a + 1):
                                information[a, b] += t * values[b]
            # Cholesky in units of the diagonal; a neighbour that cannot be told apart leaves no information
            sure = True
            for a in range(n):
                if not information[a, a] > 0:
                    sure = False
                    break
                values[a] = 1 / np.sqrt(information[a, a])
            if not sure:
                continue
            for a in range(n):
                for b in range(a + 1):
                    information[a, b] *= values[a] * values[b]
            for a in range(n):
                for b in range(a + 1):
                    t = information[a, b]
                    for k in range(b):
                        t -= information[a, k] * information[b, k]
                    if a == b:
                        information[a, a] = np.sqrt(max(t, 1e-9))
                    else:
                        information[a, b] = t / information[b, b]
            for a in range(own):  # diagonal of the inverse: squares of the column a of the inverse factor
                total = 0.0
                for b in range(a, n):
                    t = 1.0 if b == a else 0.0
                    for k in range(a, b):
                        t -= information[b, k] * inverse[k]
                    inverse[b] = t / information[b, b]
                    total += inverse[b] * inverse[b]
                errors[p, a] = np.sqrt(total) * values[a]


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _residual_peak(frames, model, background, read, frame, x, y, weights, half, at, snr, light):
    """The largest value of the matched filter over the residual within `half` pixels, its place and its photons."""
    h, w = frames.shape[1:]
    reach = len(weights) - 1
    for p in numba.prange(len(x)):
        best, place, photons = np.float32(0), y[p] * w + x[p], np.float32(0)
        f = frame[p]
        for r in range(max(0, y[p] - half), min(h, y[p] + half + 1)):
            for c in range(max(0, x[p] - half), min(w, x[p] + half + 1)):
                top = bottom = np.float32(0)
                for i in range(max(0, r - reach), min(h, r + reach + 1)):
                    for j in range(max(0, c - reach), min(w, c + reach + 1)):
                        d = frames[f, i, j]
                        if np.isfinite(d):
                            mean = model[f, i, j] + background[p]
                            k = weights[abs(i - r)] * weights[abs(j - c)]
                            q = k / (mean + read[i, j])
                            top += q * (d - mean)
                            bottom += q * k
                value = top / np.sqrt(bottom)
                if value > best:
                    best, place, photons = value, r * w + c, top / bottom
        at[p], snr[p], light[p] = place, best, photons
