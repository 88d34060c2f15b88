"""Is the maximum that a fit ends in the highest?  scipy climbs the likelihood of each spot from many starts.

The formula is written anew here, on scipy's erf.  Minutes of scipy on all cores, next to none of ours.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter, maximum_filter
from scipy.optimize import minimize
from scipy.special import erf
from threadpoolctl import threadpool_limits

from smlmcore import fit, psf

from .accuracy import Cell, signal, simulate
from .harness import Row

SPOTS, STARTS, NATS = 10_000, 10, 1e-4
FEW, PEAKS = 200, 12  # spots of a cell of little signal, and starts at the peaks of each
WEAK = (
    Cell(100, 10.0, 0.8, 21, 0.0),
    Cell(200, 100.0, 0.8, 11, 0.0),
    Cell(200, 300.0, 0.8, 11, 0.0),
    Cell(100, 100.0, 1.3, 15, 0.0),
    Cell(200, 10.0, 1.3, 11, 500.0),
)
MODEL = psf.Gaussian2D()


def rows() -> Iterator[Row]:
    yield ten_starts(SPOTS)
    for cell in WEAK:
        yield weak(cell, FEW)


def ten_starts(n: int) -> Row:
    """Own and bad first guesses against the best of scipy's ends from the truth and nine places around it."""
    begun, rng, shape = time.perf_counter(), np.random.default_rng(7), (9, 9)
    truth = np.empty((n, 5))
    truth[:, :2] = 4 + rng.uniform(-1.5, 1.5, (n, 2))
    truth[:, 2:4] = 10 ** rng.uniform((2.3, -0.5), (4.5, 2), (n, 2))
    truth[:, 4] = rng.uniform(0.9, 1.8, n)
    images = rng.poisson(MODEL.partials(truth, shape)[0]).astype(np.float32)
    bad = truth * rng.uniform(0.5, 2.0, truth.shape)
    bad[:, :2] = truth[:, :2] + rng.uniform(-2, 2, (n, 2))
    starts = truth[:, None] * rng.uniform(0.7, 1.4, (n, STARTS, 5))
    starts[:, 0] = truth
    best = ascend(images, np.zeros(shape), starts)
    notes = []
    for name, guess in (("own", None), ("bad", bad)):
        result = fit.mle(images, MODEL, initial=guess)
        short = best[:, 0] - values(images, np.zeros(shape), result.parameters) >= NATS
        status = [fit.Status(s).name for s in result.status[short]]
        count = ", ".join(f"{status.count(s)} {s}" for s in sorted(set(status)))
        notes.append(f"{name} guesses: {1 - short.mean():.4f} within {NATS:g} nats, the others {count or 'none'}")
    work = f"best of {STARTS} starts of scipy, 9x9, N 200-30 000, b 0.3-100"
    return Row(work, time.perf_counter() - begun, {}, n, "0.995, no exception converged", "; ".join(notes))


def weak(cell: Cell, n: int) -> Row:
    """Where the likelihood has several maxima: scipy's highest, from the truth, our end and the peaks of the image."""
    begun = time.perf_counter()
    images, truth, noise = simulate(cell, n)
    variance = np.zeros(images.shape[1:]) if noise is None else noise
    result = fit.mle(images, MODEL, noise)
    good = result.status == fit.Status.converged
    images, truth, ours = images[good], truth[good], result.parameters[good].astype(float)
    starts = np.concatenate([truth[:, None], ours[:, None], at_peaks(images, truth)], 1)
    best = ascend(images, variance, starts)
    higher = best[:, 0] - values(images, variance, ours) > 0.01
    bound = MODEL.crlb(truth, images.shape[1:], variance)
    rmse = [np.sqrt((((t - truth) / bound)[:, :2] ** 2).mean(0)) for t in (ours, best[:, 1:])]
    text = "; ".join(
        f"{name} x {x:.2f} y {y:.2f}" for name, (x, y) in zip(("ours", "scipy's highest"), rmse, strict=True)
    )
    note = (
        f"signal/noise {signal(cell):.1f}; converged {good.mean():.3f}, of those RMSE/CRLB {text}; "
        f"ours is the highest maximum in {1 - higher.mean():.3f}"
    )
    work = "highest maximum, N {:g} b {:g} sigma {:g} box {} v 0...{:g}".format(*cell)
    return Row(work, time.perf_counter() - begun, {}, n, "the same", note)


def at_peaks(images: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Starts (n, PEAKS, 5) at the highest peaks of the smoothed images, otherwise at the truth, half of them narrow."""
    starts = np.repeat(truth[:, None], PEAKS, 1)
    for image, sigma, own in zip(images, truth[:, 4], starts, strict=True):
        for narrow, part in ((1.0, own[: PEAKS // 2]), (0.5, own[PEAKS // 2 :])):
            smooth = gaussian_filter(image, narrow * sigma, mode="nearest")
            peaks = np.argwhere(smooth == maximum_filter(smooth, 3))
            order = np.argsort(-smooth[tuple(peaks.T)])[: len(part)]
            part[: len(order), 1::-1] = peaks[order]
            part[:, 4] *= narrow
    return starts


# ---------------------------------------------------------------- the likelihood, and scipy's way up


def poisson(theta: np.ndarray, image: np.ndarray, variance: np.ndarray) -> tuple[float, np.ndarray]:
    """Log likelihood without factorials of the integrated Gaussian, and its gradient."""
    x, y, photons, background, sigma = theta

    def axis(centre, size):
        u = (np.arange(size + 1) - 0.5 - centre) / sigma
        f = np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi)
        return np.diff(erf(u / np.sqrt(2))) / 2, -np.diff(f) / sigma, -np.diff(u * f) / sigma

    (a, a_x, a_s), (b, b_y, b_s) = axis(x, image.shape[1]), axis(y, image.shape[0])
    mean = photons * np.outer(b, a) + background + variance
    counts = np.maximum(image + variance, 0)
    r = counts / mean - 1
    b_r, r_a = b @ r, r @ a
    gradient = [photons * (b_r @ a_x), photons * (b_y @ r_a), b @ r_a, r.sum(), photons * (b_s @ r_a + b_r @ a_s)]
    return float((counts * np.log(mean) - mean).sum()), np.array(gradient)


def values(images: np.ndarray, variance: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """The likelihood of each image at its parameters."""
    pairs = zip(images.astype(float), parameters.astype(float), strict=True)
    return np.array([poisson(theta, image, variance)[0] for image, theta in pairs])


def ascend(images: np.ndarray, variance: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Log likelihood and parameters (n, 6) of scipy's best end from `starts` (n, s, 5), on all cores."""
    scales = MODEL.crlb(starts.reshape(-1, 5), images.shape[1:], variance).reshape(starts.shape)
    scales = np.where(np.isfinite(scales), scales, 1.0)
    pieces = [np.array_split(a, max(1, len(images) // 50)) for a in (images.astype(float), starts, scales)]
    with ProcessPoolExecutor() as pool:
        return np.concatenate(list(pool.map(partial(_ascend, variance), *pieces)))


def _ascend(variance: np.ndarray, images: np.ndarray, starts: np.ndarray, scales: np.ndarray) -> np.ndarray:
    ends = np.array([end[:2] for end in MODEL.bounds(images.shape[1:]).values()])
    best = np.full((len(images), 6), -np.inf)
    with threadpool_limits(1):  # BLAS would spin for 5 x 5 matrices
        for image, own, units, out in zip(images, starts, scales, best, strict=True):
            for start, scale in zip(own, units, strict=True):
                end = _climb(image, variance, start, scale, ends)
                if end[0] > out[0]:
                    out[:] = end
    return best


def _climb(image: Any, variance: Any, start: np.ndarray, scale: np.ndarray, ends: np.ndarray) -> np.ndarray:
    def worse(t):
        value, gradient = poisson(t * scale, image, variance)
        return -value, -gradient * scale

    options = {"ftol": 1e-13, "gtol": 1e-5, "maxiter": 500}
    limits = [(low / s, high / s) for (low, high), s in zip(ends, scale, strict=True)]
    found = minimize(worse, start / scale, jac=True, method="L-BFGS-B", bounds=limits, options=options)
    return np.array([-found.fun, *(found.x * scale)])
