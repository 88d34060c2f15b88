"""What the isolated molecules of a movie look like: a round Gaussian, one ellipse, or an astigmatic PSF in depth.

Of a Gaussian with axes of widths s, t at the angle a, the covariance matrix is

    (A + B, C; C, A - B),   A = (s² + t²) / 2,   B = cos(2a) (s² - t²) / 2,   C = sin(2a) (s² - t²) / 2

B and C are 0 for round ones, and do not care which axis is called the first.  The same B, C for all molecules are an
ellipse.  If they scatter along B, the PSF is astigmatic: with widths sigma0 sqrt(1 + (z ∓ gamma)² / depth²) of x and y,

    A = sigma0² (1 + gamma² / depth²) + B² / (4 sigma0² gamma² / depth²),   z / depth = -B / (2 sigma0² gamma / depth)

a parabola that tells sigma0 and gamma / depth.  The unit of z it does not tell; DEPTH is what is usual for an
objective of high aperture and visible light.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import data, fit
from ..psf import AstigmaticGaussian, EllipticGaussian2D, Gaussian2D
from ..psf.base import PSF
from ..simulate.movie import light
from .background import background, flickering
from .cut import cut
from .detect import isolated
from .finder import find

DEPTH = 0.4  # um
ROUND = 0.05  # of B and C, relative to A, below which a PSF is taken for round
SCATTER = 2.5  # standard errors of B, by which molecules differ if they are not of one shape
SIGMA = 1.3  # pixels, where the width of the PSF is to be found out
SURE = 10  # spots that are enough to tell it
DEPTHS = 9  # tried for each emitter
FEW = 30  # molecules, below which nothing is told apart


class Usual(NamedTuple):
    """What the molecules of a movie usually are: see `usual_of`."""

    sigma: float  # width, pixels
    photons: float
    scatter: float  # scale of the distribution of photons, see `joint`
    uneven: float  # standard deviation of the widths, pixels


def lone_spots(
    frames: np.ndarray,
    variance: Any = 0.0,
    sigma: float = SIGMA,
    threshold: float | None = None,
    widths: float = 3.0,
) -> tuple[np.ndarray, Any, np.ndarray, np.ndarray]:
    """Images (n, h, w) of spots without neighbours, the variance of their read noise, all peaks, and the background.

    The images reach `widths` sigma in each direction.
    """
    frames = np.ascontiguousarray(frames, np.float32)
    behind = flickering(frames, background(frames, variance, sigma), variance, sigma)
    peaks = find(frames, behind, variance, sigma, threshold)
    box = 2 * math.ceil(widths * sigma) + 1
    images, alone = cut(frames, peaks[isolated(peaks, box // 2 + 1.5 * sigma)], box)
    if np.ndim(variance):
        alone["frame"] = 0
        variance = cut(np.asarray(variance, np.float32)[None], alone, box)[0]
    return images, variance, peaks, behind


def usual_of(
    frames: np.ndarray,
    variance: Any = 0.0,
    psf: PSF | None = None,
    sigma: float | None = None,
    threshold: float | None = None,
) -> Usual:
    """What molecules without neighbours are in `frames` (n, h, w); `sigma`, `threshold` (see `find`): if known.

    >>> rng, frame = np.random.default_rng(0), np.repeat(np.arange(40), 3)
    >>> values = {"x": rng.uniform(0, 47, 120), "y": rng.uniform(0, 47, 120), "photons": np.full(120, 2000.0)}
    >>> mean = light(Gaussian2D(), {**values, "sigma": np.full(120, 1.7)}, frame, (40, 48, 48))
    >>> round(usual_of(rng.poisson(mean + 5)).sigma, 1)
    1.7
    """
    width = SIGMA if sigma is None else sigma
    for _ in range(3):
        spots, noise, _, _ = lone_spots(frames, variance, width, threshold)
        theta, errors = isolated_shapes(spots, Gaussian2D(), noise)
        if len(theta) < SURE:
            return Usual(width, 0.0, np.inf, 0.0)
        # whole hundredths: no last digit of it depends on the machine
        before, found = width, round(float(np.clip(np.median(theta[:, 4]), 0.6, 4.0)), 2)
        width = found if sigma is None else sigma
        if abs(width - before) < 0.05 * width:
            break
    square = _spread(theta[:, 4]) ** 2  # known to 2.1 / sqrt(n), relative, as it comes from two quantiles
    more = square - float(np.median(errors[:, 4])) ** 2
    uneven = math.sqrt(more) if more > 3 * 2.1 / math.sqrt(len(theta)) * square else 0.0
    if psf is not None and not isinstance(psf, Gaussian2D):
        theta = isolated_shapes(spots, psf, noise)[0]
    photons = theta[:, 2 if psf is None else psf.names.index("photons")]
    low, median, high = np.quantile(photons, (0.16, 0.5, 0.84)) if len(photons) else (0.0, 0.0, np.inf)
    return Usual(*(round(float(v), 2) for v in (width, median, max(0.6 * (high - low), 0.1 * median), uneven)))


def isolated_shapes(images: np.ndarray, psf: PSF, variance: Any = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Parameters and errors (m, p) of the half of the spots `images` (n, h, w) that `psf` explains best."""
    found = fit.mle(images, psf, variance=variance, progress=False)
    good = (found.status == fit.Status.converged) & np.isfinite(found.parameters).all(1)
    good &= np.isfinite(found.errors).all(1)
    best = good & (found.chi2 <= np.median(found.chi2[good])) if good.any() else good
    return found.parameters[best].astype(float), found.errors[best].astype(float)


def psf_of(images: np.ndarray, variance: Any = 0.0) -> PSF:
    """The PSF of a movie from `images` (n, h, w) in photoelectrons of spots without neighbours.

    >>> rng, ellipse = np.random.default_rng(0), EllipticGaussian2D(fixed=(1.9, 1.1, 0.4))
    >>> spots = {"x": rng.uniform(5, 7, 300), "y": rng.uniform(5, 7, 300), "photons": 2000.0, "background": 8.0}
    >>> psf_of(rng.poisson(ellipse.render(spots, (13, 13)))).fixed
    (1.9, 1.1, 0.4)
    """
    if len(images) < FEW:
        return Gaussian2D()
    theta, errors = isolated_shapes(images, EllipticGaussian2D(rotated=True), variance)
    if len(theta) < FEW / 2:
        return Gaussian2D()
    s, t, angle = theta[:, 4:7].T
    a, difference = (s * s + t * t) / 2, (s * s - t * t) / 2
    b, c = difference * np.cos(2 * angle), difference * np.sin(2 * angle)
    error = np.median(np.hypot(s * errors[:, 4], t * errors[:, 5]))
    if _spread(b) > max(SCATTER * error, ROUND * np.median(a)) and _spread(b) > 2 * _spread(c):
        return _astigmatic(a, b)
    a, b, c = np.median(a), np.median(b), np.median(c)
    far = np.hypot(b, c)
    if not ROUND * a < far < a:
        return Gaussian2D()
    shape = np.sqrt(a + far), np.sqrt(a - far), 0.5 * np.arctan2(c, b)
    return EllipticGaussian2D(fixed=[round(float(v), 2) for v in shape])


def width_in(images: np.ndarray, variance: Any = 0.0) -> float:
    """About the width of spots without neighbours: of a round Gaussian of as much second moment, pixels."""
    theta = isolated_shapes(images, EllipticGaussian2D(rotated=True), variance)[0]
    return round(float(np.sqrt(np.median((theta[:, 4:6] ** 2).mean(1)))), 2)


def ranges_of(images: np.ndarray, psf: PSF, variance: Any = 0.0) -> dict[str, tuple[float, float]]:
    """From where to where each parameter of `psf` beside x, y, photons, background goes in spots without neighbours."""
    own = [name for name in psf.names if name not in ("x", "y", "photons", "background")]
    theta = isolated_shapes(images, psf, variance)[0] if own else np.empty((0, 0))
    out = {}
    for name in own:
        lowest, highest = psf.bounds(images.shape[1:])[name][:2]
        if len(theta) >= FEW / 2:
            low, high = np.quantile(theta[:, psf.names.index(name)], (0.02, 0.98))
            wider = 0.15 * (high - low)
            lowest, highest = max(lowest, low - wider), min(highest, high + wider)
        out[name] = float(lowest), float(highest)
    return out


def with_shapes(
    starts: np.ndarray,
    frames: np.ndarray,
    behind: np.ndarray,
    psf: PSF,
    shape: Mapping[str, tuple[float, float]],
    variance: Any = 0.0,
    sigma: float = 1.3,
) -> np.ndarray:
    """`starts`, a table of frame, x, y, photons, with a column for each other parameter of `psf`, from `frames`.

    z is the one of DEPTHS within its range in `shape` that explains most, in a small square and then, the light of the
    other emitters taken off, in a larger one; other parameters are in the middle of their range.  `behind` (m, h, w):
    background of m equal parts of the frames; `variance` of the read noise.
    """
    if not shape:
        return starts
    middle = {name: (low + high) / 2 for name, (low, high) in shape.items()}
    out = data.table(
        **{name: starts[name] for name in ("frame", "x", "y", "photons")},
        **{name: np.full(len(starts), value, np.float32) for name, value in middle.items()},
    )
    if "z" not in shape or not len(out):
        return out
    frame, depths = out["frame"].astype(np.int64), np.linspace(*shape["z"], DEPTHS)
    behind = behind[np.arange(len(frames)) * len(behind) // len(frames)] + np.asarray(variance, np.float32)
    rest, noise = frames - behind, behind
    for half in (math.ceil(1.5 * sigma), math.ceil(3 * sigma)):
        box = 2 * half + 1
        left, top = (np.rint(out[k]).astype(np.int64) - half for k in "xy")
        values = {name: out[name] for name in out.dtype.names if name not in ("frame", "x", "y")}
        values |= {"x": out["x"] - left, "y": out["y"] - top, "background": np.zeros(len(out), np.float32)}
        own = psf.render({k: v.astype(np.float32) for k, v in values.items()}, (box, box))
        r, v = _squares(rest, frame, top, left, box), _squares(noise, frame, top, left, box)
        if half > 1.5 * sigma + 1:
            r = r + own
        weight = np.where(np.isfinite(r), 1 / np.maximum(v, 0.1), 0)
        r = np.nan_to_num(r)
        gain = np.empty((DEPTHS, len(out)))
        for row, z in zip(gain, depths, strict=True):
            spot = psf.render({**values, "z": np.full(len(out), z, np.float32), "photons": 1.0}, (box, box))
            row[:] = np.maximum((weight * spot * r).sum((1, 2)), 0) ** 2 / (weight * spot**2).sum((1, 2))
        out["z"] = depths[gain.argmax(0)]
        columns = {name: out[name] for name in out.dtype.names if name != "frame"}
        shine = light(psf, columns, frame, frames.shape, 2 * math.ceil(4 * sigma) + 1)
        rest, noise = frames - behind - shine, behind + shine
    return out


def _squares(images: np.ndarray, frame: np.ndarray, top: np.ndarray, left: np.ndarray, box: int) -> np.ndarray:
    """Squares (e, box, box) of images (n, h, w), NaN beyond the border."""
    h, w = images.shape[1:]
    rows, columns = (at[:, None] + np.arange(box) for at in (top, left))
    inside = ((rows >= 0) & (rows < h))[:, :, None] & ((columns >= 0) & (columns < w))[:, None, :]
    near = images[frame[:, None, None], rows.clip(0, h - 1)[:, :, None], columns.clip(0, w - 1)[:, None, :]]
    return np.where(inside, near, np.nan)


def _spread(values: np.ndarray) -> float:
    """The standard deviation, if it were a normal distribution."""
    low, high = np.quantile(values, (0.16, 0.84))
    return float(high - low) / 2


def _astigmatic(a: np.ndarray, b: np.ndarray) -> PSF:
    """The astigmatic PSF behind A and B (n,) of its molecules; a round one if they do not lie on a parabola."""
    keep = np.ones(len(a), bool)
    for _ in range(5):
        curvature, level = np.polyfit(b[keep] ** 2, a[keep], 1)
        rest = a - level - curvature * b**2
        keep = abs(rest) < 3 * _spread(rest[keep])
    both = 1 / (4 * max(curvature, 1e-9))  # (sigma0 gamma / depth)²
    if not 0 < both < 0.8 * level:
        return Gaussian2D()
    sigma0, ratio = np.sqrt(level - both), np.sqrt(both / (level - both))
    z = -b * DEPTH / (2 * sigma0 * np.sqrt(both))
    low, high = np.quantile(z, (0.02, 0.98))
    limits = (round(float(v), 2) for v in (1.3 * low - 0.3 * high, 1.3 * high - 0.3 * low))
    return AstigmaticGaussian(round(float(sigma0), 2), round(float(ratio * DEPTH), 3), DEPTH, z_range=tuple(limits))
