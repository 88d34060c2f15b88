"""Poisson fits of a Gaussian spot beside Picasso, Cpufit and scipy, each with what it makes of the photons."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from smlmcore import fit, psf

from .harness import Row, compare

N, CHECKED = 500_000, 50_000
FEW, LEAST = 10_000, 20  # spots for the slower peers, and for scipy
TARGET = {(7, "float32"): "13,000,000/s", (11, "float32"): "9,000,000/s", (11, "float64"): "3,500,000/s"}
MODEL = psf.Gaussian2D()


class Peer(NamedTuple):
    """A peer's fit of its first `spots` images: `run`, and what that returned as columns x, y, N, b, sigma."""

    run: Callable[[], Any]
    parameters: Callable[[Any], np.ndarray]
    spots: int


def rows() -> Iterator[Row]:
    for size in (7, 11):
        rng = np.random.default_rng(size)
        truth = np.empty((CHECKED, 5))
        truth[:, :2] = (size - 1) / 2 + rng.uniform(-0.5, 0.5, (CHECKED, 2))
        truth[:, 2:] = 2000, 10, 1.3
        images = rng.poisson(MODEL.partials(truth, (size, size))[0]).astype(np.float32)
        variance = rng.gamma(1.0, 4.0, (size, size))
        noisy = images + rng.normal(0, 1, images.shape) * np.sqrt(variance)
        peers = {"Picasso LM-MLE": picasso(images), "Cpufit": cpufit(images), "scipy": scipy_fit(images, truth)}
        for dtype in ("float32", "float64"):
            plain, found = fitter(images, dtype)
            yield beside(f"Poisson MLE of a Gaussian, {size}x{size}, {dtype}", plain, found, truth, peers, size, dtype)
            yield judged(images, plain, size, dtype)
            with_noise, found = fitter(noisy, dtype, variance)
            yield compare(
                f"the same with a map of read noise, {size}x{size}, {dtype}",
                with_noise,
                {"without": plain},
                repeat=5,
                items=N,
                target="without at least 0.77x",
                note="RMSE/CRLB " + accuracy(found, truth, size, variance),
            )
    yield from general()


def judged(images, plain, size, dtype) -> Row:
    """The same with log likelihood and chi square, which are computed when they are asked for."""
    return compare(
        f"the same, log likelihood and chi2 read, {size}x{size}, {dtype}",
        lambda: plain().chi2,
        {"without": plain},
        repeat=5,
        items=N,
    )


def general() -> Iterator[Row]:
    """The body for any PSF, one spot after another, own guess included."""
    n = 20_000
    for name, model, given in (
        ("elliptic", psf.EllipticGaussian2D(), {"sigma_x": 1.1, "sigma_y": 1.5}),
        ("astigmatic", psf.AstigmaticGaussian(1.2, gamma=0.25, depth=0.4), {"z": (-0.4, 0.4)}),
    ):
        images, truth = fit.simulate_spots(model, n, (11, 11), np.random.default_rng(0), **given)
        found = fit.mle(images, model)
        ratio = (found.parameters - truth) / model.crlb(truth, (11, 11))
        quality = " ".join(f"{r:.3f}" for r in np.sqrt(np.nanmean(ratio**2, axis=0)))
        yield compare(
            f"Poisson MLE, {name} Gaussian, any-PSF body, 11x11, float32",
            lambda images=images, model=model: fit.mle(images, model),
            {"first guess alone": lambda images=images, model=model: model.initial(images)},
            repeat=5,
            items=n,
            note="RMSE/CRLB " + quality,
        )


def beside(work, plain, found, truth, peers, size, dtype) -> Row:
    """Ours and the peers, whose seconds are scaled to as many spots as ours."""
    row = compare(
        work,
        plain,
        {name: peer and peer.run for name, peer in peers.items()},
        repeat=5,
        items=N,
        target=TARGET.get((size, dtype), ""),
    )
    quality = ["RMSE/CRLB of x y N b sigma: ours " + accuracy(found, truth, size)]
    for name, peer in peers.items():
        if peer is not None:
            row.peers[name] *= N / peer.spots
            quality.append(f"{name} {accuracy(peer.parameters(peer.run()), truth, size)}")
    row.note = "; ".join(quality)
    return row


def accuracy(found: np.ndarray, truth: np.ndarray, size: int, variance: Any = 0.0) -> str:
    """Root mean square error of each parameter in units of its bound, over the first spots that were fitted."""
    rows = truth[: len(found)]
    z = (found[: len(rows)] - rows) / MODEL.crlb(rows, (size, size), variance)
    return " ".join(f"{r:.3f}" for r in np.sqrt(np.nanmean(z**2, axis=0)))


def fitter(images, dtype, variance=None) -> tuple[Callable[[], None], np.ndarray]:
    """`fit.mle` of N spots as a user calls it, result arrays included, and what it found in those of `images`."""
    shape = images.shape[1:]
    spots = np.resize(images.astype(dtype), (N, *shape))
    noise = None if variance is None else variance.astype(dtype)

    def run():
        return fit.mle(spots, MODEL, noise)

    return run, run().parameters[: len(images)].copy()


def picasso(images) -> Peer | None:
    """Picasso's Levenberg-Marquardt MLE with its own start, on two threads."""
    try:
        from picasso.fitting import gaussfit, seeds
    except ImportError:
        return None
    spots = np.ascontiguousarray(images[:FEW])

    def run():
        start = seeds.initial_parameters_gauss(spots, spots.shape[1], spherical=True)
        running = gaussfit.fit_spots_async(gaussfit.SPHERICAL, spots, start, mle=True, n_threads=2)
        while not running.finished():
            time.sleep(1e-4)
        return running.results()[0]

    return Peer(run, from_peak, FEW)


def cpufit(images) -> Peer | None:
    """Cpufit, from one thread as it is made, from Picasso's start or the middle of the box."""
    try:
        import pycpufit.cpufit as library
    except ImportError:
        return None
    n, h, w = FEW, *images.shape[1:]
    spots = np.ascontiguousarray(images[:n].reshape(n, h * w))
    low, high = spots.min(1), spots.max(1)
    start = np.stack([high - low, np.full(n, (w - 1) / 2), np.full(n, (h - 1) / 2), np.full(n, w / 5), low], 1)

    def run():
        model, estimator = library.ModelID.GAUSS_2D, library.EstimatorID.MLE
        return library.fit(spots, None, model, start.astype(np.float32), estimator_id=estimator)[0]

    return Peer(run, from_peak, FEW)


def from_peak(theta: np.ndarray) -> np.ndarray:
    """Peak, x, y, sigma, background of a Gaussian sampled at the pixels' centres, as our five parameters."""
    peak, x, y, sigma, background = np.asarray(theta, float).T
    return np.stack([x, y, peak * 2 * np.pi * sigma**2, background, sigma], 1)


def scipy_fit(images, truth) -> Peer:
    """scipy's L-BFGS-B with our derivatives, from near the truth, in a loop."""
    shape = images.shape[1:]
    scale = np.array([0.1, 0.1, 100.0, 1.0, 0.1])
    bounds = [(low, high) for low, high, *_ in MODEL.bounds(shape).values()]

    def one(image, start):
        def loss(u):
            mu, partials = MODEL.partials((u * scale)[None], shape)
            slope = 1 - image / mu[0]
            return float((mu[0] - image * np.log(mu[0])).sum()), (partials[0] * slope).sum((1, 2)) * scale

        limits = [(low / s, high / s) for (low, high), s in zip(bounds, scale, strict=True)]
        return minimize(loss, start / scale, jac=True, method="L-BFGS-B", bounds=limits).x * scale

    def run():
        # BLAS would leave a thread spinning on a core of ours for its 5 x 5 matrices
        with threadpool_limits(1):
            return np.array([one(image, 1.05 * start) for image, start in zip(images[:LEAST], truth, strict=False)])

    return Peer(run, np.asarray, LEAST)
