"""What fits make of the photons: errors in units of the Cramér–Rao bound over a grid, likelihood, several emitters.

Not a race but a table, in the same form: `work`, seconds, and in the note what was found.  Each cell has SPOTS images,
so that an RMSE is known to 1/sqrt(2 SPOTS) of itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from smlmcore import fit, psf

from .harness import Row

SPOTS, MORE = 5_000, 20_000  # of a cell of the grid, of the rest
PHOTONS = (100, 200, 1000, 5000, 50_000)
BACKGROUND = (0.1, 1.0, 10.0, 100.0, 300.0)
SIGMA = (0.8, 1.3, 2.5)


class Cell(NamedTuple):
    """One condition; the noise is a map of read variances drawn from 0 to `variance`."""

    photons: float
    background: float
    sigma: float
    size: int
    variance: float


class Found(NamedTuple):
    """RMSE / bound of x and y, variance of z-scores of all parameters, parts that converged and that hit a bound."""

    rmse: np.ndarray
    scores: np.ndarray
    converged: float
    at_bound: float


def cells() -> Iterator[Cell]:
    """The grid, each size of box with the widths that fit in it."""
    for size in (7, 11, 15, 21):
        for sigma in SIGMA:
            if size / 2 >= 1.5 + 2 * sigma or (size == 7 and sigma < 1):
                for variance in (0.0, 500.0):
                    yield from (Cell(n, b, sigma, size, variance) for n in PHOTONS for b in BACKGROUND)


def simulate(cell: Cell, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Images of n spots up to 1.5 pixels off the centre in both directions, the truth, and the map of read noise."""
    rng, shape, middle = np.random.default_rng(seed), (cell.size, cell.size), (cell.size - 1) / 2
    place = (middle - 1.5, middle + 1.5)
    noise = rng.uniform(0, cell.variance, shape) if cell.variance else None
    given = {"photons": cell.photons, "background": cell.background, "sigma": cell.sigma, "x": place, "y": place}
    variance = 0.0 if noise is None else noise
    return *fit.simulate_spots(psf.Gaussian2D(), n, shape, rng, variance, **given), noise


def measure(cell: Cell, n: int, seed: int = 0) -> Found:
    """Simulate n spots and fit them."""
    model = psf.Gaussian2D()
    images, truth, noise = simulate(cell, n, seed)
    result = fit.mle(images, model, noise)
    bound = model.crlb(truth, images.shape[1:], 0.0 if noise is None else noise)
    good = result.status == fit.Status.converged
    if good.sum() < 10:
        return Found(np.full(2, np.nan), np.full(5, np.nan), good.mean(), 0.0)
    error = (result.parameters - truth)[good]
    rmse = np.sqrt(((error / bound[good])[:, :2] ** 2).mean(0))
    at_bound = (result.status == fit.Status.at_bound).mean()
    return Found(rmse, (error / result.errors[good]).var(0), good.mean(), at_bound)


def signal(cell: Cell) -> float:
    """Photons over their standard error with all else known: below about ten, spots are hard to tell from noise."""
    area = 4 * np.pi * cell.sigma**2
    return cell.photons / np.sqrt(cell.photons + area * (cell.background + cell.variance / 2))


def rows() -> Iterator[Row]:
    for cell in cells():
        begun = time.perf_counter()
        found = measure(cell, SPOTS)
        limit = "1.05" if cell.photons >= 200 else "1.10"
        scores = " ".join(f"{v:.3f}" for v in found.scores)
        note = (
            f"signal/noise {signal(cell):.1f}; RMSE/CRLB x {found.rmse[0]:.3f} y {found.rmse[1]:.3f}; "
            f"variance of z-scores {scores}; converged {found.converged:.4f}, at bound {found.at_bound:.4f}"
        )
        work = "N {:g} b {:g} sigma {:g} box {} v 0...{:g}".format(*cell)
        yield Row(work, time.perf_counter() - begun, {}, SPOTS, f"x, y {limit}; z-scores 0.95-1.05", note)
    yield from others()


def others() -> Iterator[Row]:
    """Small boxes, a hot pixel, depth, calibration, pairs."""
    for name, check in (
        ("5 x 5 boxes, sigma 1.0, free and known", small_boxes),
        ("a pixel of variance 1e4, moved by its deviation", hot_pixel),
        ("astigmatic, z +-0.5 um", astigmatic),
        ("calibration from 81 slices of a bead", calibration),
        ("two emitters 2 sigma apart, 2000 photons each", pairs),
    ):
        begun = time.perf_counter()
        note, target, n = check()
        yield Row(name, time.perf_counter() - begun, {}, n, target, note)


def small_boxes(n: int = MORE) -> tuple[str, str, int]:
    notes = []
    for model in (psf.Gaussian2D(), psf.Gaussian2D(1.0)):
        for sigma in (1.0,) if model.sigma else (0.8, 1.0, 1.3):
            rng, given = np.random.default_rng(0), {} if model.sigma else {"sigma": sigma}
            images, truth = fit.simulate_spots(model, n, (5, 5), rng, **given)
            result = fit.mle(images, model)
            good = result.status == fit.Status.converged
            ratio = ((result.parameters - truth) / model.crlb(truth, (5, 5)))[good]
            known = "known" if model.sigma else "free"
            numbers = " ".join(f"{r:.3f}" for r in np.sqrt((ratio**2).mean(0)))
            notes.append(f"sigma {sigma:g} {known}: RMSE/CRLB {numbers}, converged {good.mean():.4f}")
    return "; ".join(notes), "none: what a border of two pixels leaves of the background", n


def hot_pixel(n: int = MORE) -> tuple[str, str, int]:
    model, variance = psf.Gaussian2D(), np.full((11, 11), 1.0)
    variance[5, 6] = 1e4
    images, _ = fit.simulate_spots(model, n, (11, 11), np.random.default_rng(0), 1.0)
    before = fit.mle(images, model, variance)
    images[:, 5, 6] += 100
    after = fit.mle(images, model, variance)
    moved = np.abs(after.parameters - before.parameters) / before.errors
    return f"largest shift {np.nanmax(moved):.3f} CRLB, mean {np.nanmean(moved):.3f}", "0.1", n


def astigmatic(n: int = MORE) -> tuple[str, str, int]:
    model, shape = psf.AstigmaticGaussian(1.2, gamma=0.25, depth=0.4), (13, 13)
    images, truth = fit.simulate_spots(model, n, shape, np.random.default_rng(0), z=(-0.5, 0.5))
    result = fit.mle(images, model)
    good = result.status == fit.Status.converged
    ratio = ((result.parameters - truth) / model.crlb(truth, shape))[good]
    numbers = " ".join(f"{r:.3f}" for r in np.sqrt((ratio**2).mean(0)))
    return f"RMSE/CRLB of x y z N b {numbers}, converged {good.mean():.4f}", "x, y, z 1.05", n


def calibration() -> tuple[str, str, int]:
    truth = psf.AstigmaticGaussian((1.2, 1.3), gamma=0.25, depth=(0.4, 0.45), a=0.05, b=0.02)
    z = np.linspace(-0.6, 0.6, 81)
    beads = {"x": 9.3, "y": 8.8, "z": z, "photons": 100_000.0, "background": 10.0}
    stack = np.random.default_rng(0).poisson(truth.render(beads, (19, 19)))
    found = psf.AstigmaticGaussian.calibrate(stack, z)
    inner = np.linspace(-0.5, 0.5, 101)
    off = np.abs(found.sigma(inner) / truth.sigma(inner) - 1).max()
    return f"largest error of sigma(z) {100 * off:.3f} %", "1 %", 1


def pairs(n: int = 1000) -> tuple[str, str, int]:
    sigma, shape = 1.3, (11, 11)
    notes = []
    for model in (psf.Gaussian2D(), psf.Gaussian2D(sigma)):
        rng, both = np.random.default_rng(0), fit.Several(model, 2)
        angle, centre = rng.uniform(0, np.pi, n), 5 + rng.uniform(-0.5, 0.5, (2, n))
        columns = {"background": 10.0, **dict.fromkeys(("photons0", "photons1"), 2000.0)}
        columns |= dict.fromkeys(("sigma0", "sigma1"), sigma)
        for k, sign in (("0", 1), ("1", -1)):
            columns["x" + k] = centre[0] + sign * sigma * np.cos(angle)
            columns["y" + k] = centre[1] + sign * sigma * np.sin(angle)
        truth = np.stack([np.broadcast_to(columns[name], n) for name in both.names], 1)
        images = rng.poisson(both.partials(truth, shape)[0]).astype(np.float32)
        result = fit.mle(images, model, emitters=2)
        there, found = both.split(truth), both.split(result.parameters.astype(float))
        far = [np.hypot(*(f - there)[:, :, :2].transpose(2, 0, 1)).sum(1) for f in (found, found[:, ::-1])]
        found = np.where((far[1] < far[0])[:, None, None], found[:, ::-1], found)
        ratio = (both.join(found) - truth) / both.crlb(truth, shape)
        worst = np.sqrt(np.nanmean(ratio[result.status == fit.Status.converged] ** 2, 0)).max()
        number = fit.mle(images, model, emitters="auto").emitters
        alone = fit.simulate_spots(model, n, shape, rng)[0]
        single = fit.mle(alone, model, emitters="auto").emitters
        kind = "known" if model.sigma else "free"
        right = f"right number for pairs {np.mean(number == 2):.3f}, for single ones {np.mean(single == 1):.3f}"
        notes.append(f"sigma {kind}: largest RMSE/CRLB {worst:.3f}, {right}")
    return "; ".join(notes), "1.1; 0.95", n
