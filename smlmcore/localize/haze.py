"""Light of molecules far out of focus: blobs that come and go, in which no molecule is to be looked for.

The background of a chunk does not know of them, so that each is taken for a few dim emitters.  Haze is what the frames
have beside background and emitters, smoothed twice over WIDTH widths of the PSF with the weights w of the pixels,

    S r = G * (w r) / G * w,    haze = (1 - (1 - S)²) r

first without the emitters in doubt.  Which of these are molecules shows in what remains: of a blob of width b, in
widths of the PSF, the filter of the PSF's width sees the share

    s(b) = 1 - 2 B / (B + W) + B / (B + 2 W),    B = 1 + b²,  W = WIDTH²

of what it saw before, so that both values tell apart a point (b = 1) and a BLOB.
"""

from __future__ import annotations

import math
from threading import Lock
from typing import Any

import numpy as np

from ..psf.base import PSF
from ..simulate.movie import light
from ..threads import with_threads
from .crowd import as_starts, width_of
from .emitters import Emitters
from .finder import filter_kernel, scale_kernel, taps

WIDTH = 2.0  # widths of the PSF
BLOB = 2.0  # the same: what is wider is no point
DIM = 0.5  # of the usual photons: emitters with less are in doubt,
WIDE = 2.0  # and those of so many widths
POINT = 4.8  # standard deviations from which on a point is a molecule
SHARE = 0.01  # of all emitters that are none: with less the frames are left as they are
ROUNDS = 2  # the second knows of the molecules that the first has found
PIXELS = 1 << 19  # worked on at a time
LOOK = 8  # frames of a chunk that are looked at first
_rendering = Lock()  # renderers use numba's threads, which may not be for two at a time, and chunks are side by side


def haze(
    frames: np.ndarray,
    behind: np.ndarray,
    found: Emitters,
    psf: PSF,
    variance: Any = 0.0,
    sigma: float = 1.3,
    photons: float = 0.0,
) -> np.ndarray | None:
    """The background of each of the `frames` (n, h, w) with the haze over it, or None if there is none.

    `behind` (m, h, w): background of m equal parts of the frames, without it; `found`: the emitters of fits with `psf`
    that know no other; `sigma`: its width, about; `photons`: of a usual molecule.

    >>> from smlmcore.psf import Gaussian2D
    >>> rng, flat = np.random.default_rng(0), np.full((1, 40, 40), 8.0)
    >>> blobs = {"x": [20.0, 18.0], "y": [15.0, 24.0], "photons": [4000.0, 4000.0], "sigma": [5.0, 5.0]}
    >>> frames = rng.poisson(light(Gaussian2D(), blobs, np.array([0, 1]), (2, 40, 40)) + 8)
    >>> theta = np.array([[19.0, 16.0, 90.0, 30.0, 1.3], [17.0, 23.0, 110.0, 30.0, 1.3]])
    >>> rest = np.ones(2)
    >>> dim = Emitters(np.array([0, 1]), theta, theta, rest, rest, rest, rest, rest > 0)
    >>> fog = haze(frames, flat, dim, Gaussian2D(), photons=2000.0)
    >>> fog.shape, bool(fog[0, 15, 20] > 25)
    ((2, 40, 40), True)
    """
    if not (len(frames) and photons > 0):
        return None
    frames, behind = (np.ascontiguousarray(v, np.float32) for v in (frames, behind))
    found = found.rows(np.isfinite(found.theta).all(1))
    table = as_starts(found, psf)
    column = width_of(psf)
    wide = found.theta[:, column] > WIDE * sigma if column >= 0 else np.zeros(len(found), bool)
    if not _many(wide | (table["photons"] < DIM / 2 * photons)):  # so that it costs nothing where spots are alike
        return None
    doubt = wide | (table["photons"] < DIM * photons)
    n, h, w = frames.shape
    every, at_once = np.arange(n), max(1, PIXELS // (h * w))
    out, none = np.empty(frames.shape, np.float32), np.zeros(len(table), bool)
    for some in [every[:: n // LOOK], every] if n > LOOK else [every]:
        among = np.isin(table["frame"], some)
        for few in np.split(some, range(at_once, len(some), at_once)):
            here = np.isin(table["frame"], few)
            rows, ground = table[here], behind[few * len(behind) // n]
            rows["frame"] = np.searchsorted(few, rows["frame"])
            with with_threads(1):  # numba's would be in the way of others, as they wait for work on a core each
                fog, none[here] = _haze(frames[few], ground, rows, doubt[here], psf, variance, sigma)
            out[few] = np.maximum(ground + fog, np.float32(0.01))
        if not _many(none[among], SHARE / 2 if len(some) < n else SHARE):
            return None
    return out


def _haze(
    frames: np.ndarray, behind: np.ndarray, table: np.ndarray, doubt: np.ndarray, psf: PSF, variance: Any, sigma: float
) -> tuple[np.ndarray, np.ndarray]:
    """Haze over frames (n, h, w) of background (n, h, w), and which of the emitters in doubt are part of it."""
    h, w = frames.shape[1:]
    y, x = (np.clip(np.rint(table[k]), 0, m - 1).astype(int) for k, m in (("y", h), ("x", w)))
    at, (point, blob) = (table["frame"].astype(int), y, x), (_left(b) for b in (1.0, BLOB))
    for _ in range(ROUNDS):
        sure = table[~doubt]
        values = {name: sure[name] for name in psf.names if name != "background"}
        with _rendering:
            lit = light(psf, values, sure["frame"].astype(np.int64), frames.shape, 2 * math.ceil(4 * sigma) + 1)
        mean = behind + lit
        fog = fog_over(frames, mean, variance, sigma)
        before, after = (_strength(frames, m, mean + variance, sigma)[at] for m in (mean, mean + fog))
        doubt = doubt & ~((after - blob * before) / (point - blob) > POINT)
    return fog, doubt


def fog_over(
    frames: np.ndarray, mean: np.ndarray, variance: Any = 0.0, sigma: float = 1.3, where: np.ndarray | None = None
) -> np.ndarray:
    """What frames (n, h, w) have beside their `mean` (n, h, w), smoothed; NaN, and pixels not `where`, say nothing."""
    frames = np.ascontiguousarray(frames if where is None else np.where(where, frames, np.float32(np.nan)), np.float32)
    mean = np.ascontiguousarray(mean, np.float32)
    once = _smoothed(frames, mean, variance, WIDTH * sigma)
    return once + _smoothed(frames, mean + once, variance, WIDTH * sigma)


def drifting(fog: np.ndarray, variance: np.ndarray, where: np.ndarray, sigma: float) -> tuple[float, float]:
    """How much the smoothed light (n, h, w) differs from its mean over time, photons, and how much noise alone does.

    The first is exceeded in one of ten pixels `where` (n, h, w); bright places with a molecule that was missed are few.
    The second follows from the mean square of noise that is smoothed so, with S the Gaussian's transform,

        integral (1 - (1 - S)²)² / mean(1 / variance) = 11 / 12 / (2 pi (WIDTH sigma)²) / mean(1 / variance)
    """
    count = where.sum(0)
    if len(fog) < 2 or not where.any():
        return 0.0, 0.0
    apart = abs(fog - (fog * where).sum(0) / np.maximum(count, 1)) * np.sqrt(count / np.maximum(count - 1, 1))
    share = 11 / 12 / (2 * math.pi * (WIDTH * sigma) ** 2)
    noise = math.sqrt(share / np.mean(1 / _noise(variance[where]), dtype=float))
    return float(np.quantile(apart[where], 0.9)), 1.645 * noise


def _smoothed(frames: np.ndarray, mean: np.ndarray, variance: Any, width: float) -> np.ndarray:
    """Weighted mean of what frames have beside their `mean`, under a Gaussian of so many pixels."""
    noise = _noise(mean + variance)
    weights, one, seen = taps(width).astype(np.float32), np.ones_like(noise), np.isfinite(frames).astype(np.float32)
    rest, share = np.empty_like(noise), np.empty_like(noise)
    filter_kernel(frames, mean, noise, one, weights, out=rest)
    filter_kernel(seen, np.zeros_like(noise), noise, one, weights, out=share)
    return rest / np.maximum(share, np.float32(1e-9))


def _strength(frames: np.ndarray, mean: np.ndarray, variance: np.ndarray, sigma: float) -> np.ndarray:
    """Light of the PSF's width above the mean, in standard deviations."""
    noise, weights = _noise(variance), taps(sigma).astype(np.float32)
    scale, strength = np.empty_like(noise), np.empty_like(noise)
    scale_kernel(noise, weights, out=scale)
    filter_kernel(frames, mean, noise, scale, weights, out=strength)
    return strength


def _many(which: np.ndarray, share: float = SHARE) -> bool:
    """Whether more are marked than so large a share and a standard deviation."""
    usual = share * len(which)
    return which.sum() > usual + math.sqrt(usual)


def _noise(variance: np.ndarray) -> np.ndarray:
    return np.maximum(variance, np.float32(0.1)).astype(np.float32)


def _left(width: float) -> float:
    """Share of a blob's light, seen by a filter of the PSF's width, that is left without haze."""
    both, wide = 1 + width**2, WIDTH**2
    return 1 - 2 * both / (both + wide) + both / (both + 2 * wide)
