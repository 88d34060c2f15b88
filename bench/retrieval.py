"""Pupils from noisy images: how near to the truth, and how long it takes.

Beads: 21 planes 0.1 um apart, 32 x 32 pixels, 5000 photons and 10 background photons per pixel and plane; vectorial, NA
1.4; 21 Zernikes (Noll 5 to 25), each drawn with a standard deviation of 0.3 rad (1.4 rad RMS together); the bead up to
a pixel and 0.2 um off; 32 modes fitted.  Molecules: 4096 images of 24 x 24 pixels, +-0.8 um, 3000 photons, background 5
to 15; nine Zernikes drawn evenly up to 1 rad; 21 modes fitted, nothing known of any molecule.

Errors are the root mean square over modes, in radians; the bound is the Cramer-Rao bound of the same fit.

python -m bench retrieval, or of some seeds only: python -m bench.retrieval beads|molecules FIRST LAST
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import numpy as np

from smlmcore import fit, psf
from smlmcore.psf import zernike

from .harness import Row

BEADS = {
    "na": 1.4, "wavelength": 0.68, "n_immersion": 1.518, "n_medium": 1.518, "pixel_size": 0.1, "moves": "stage"
}  # fmt: skip
MOLECULES = psf.Pupil(1.4, 0.67, 1.518, 1.518, 0.1, vectorial=False, samples=64, z_range=(-0.8, 0.8))
NINE = [(2, -2), (2, 2), (3, -1), (3, 1), (3, -3), (3, 3), (4, 0), (4, 2), (4, -2)]


def rows(seeds: tuple[int, int] | None = None) -> Iterator[Row]:
    yield from beads(*(seeds or (0, 20)))
    yield from molecules(*(seeds or (0, 10)))


def beads(first: int, last: int) -> Iterator[Row]:
    """Retrieval from one bead stack for each seed."""
    modes, z = [zernike.from_noll(j) for j in range(5, 26)], np.linspace(-1, 1, 21)
    for seed in range(first, last):
        rng = np.random.default_rng(seed)
        truth = dict(zip(modes, rng.normal(0, 0.3, len(modes)), strict=True))
        x, y, offset = 15.5 + rng.uniform(-1, 1), 15.5 + rng.uniform(-1, 1), rng.uniform(-0.2, 0.2)
        true = psf.Pupil(**BEADS, samples=128, zernike=truth)
        stack = rng.poisson(true.render(x, y, z + offset, 5000.0, 10.0, shape=(32, 32)))
        start = time.perf_counter()
        found = psf.retrieve(stack, 0.1, **BEADS, progress=False)
        seconds, report = time.perf_counter() - start, found.report
        error = _error(found, truth)
        note = (
            f"error {error:.4f} rad (bound {np.sqrt((report.errors**2).mean()):.4f}), residual {report.residual:.3f} "
            f"+- {report.residual_error:.3f}, {report.starts} starts"
        )
        yield Row(f"retrieval, bead stack, seed {seed}", seconds, {}, target="<= 0.02 rad, <= 1.05", note=note)


def molecules(first: int, last: int) -> Iterator[Row]:
    """The pupil from molecules alone, up to the conjugate twin, for each seed."""
    for seed in range(first, last):
        rng = np.random.default_rng(seed)
        truth = dict(zip(NINE, rng.uniform(-1, 1, len(NINE)), strict=True))
        images, _ = simulate(rng, 4096, truth)
        start = time.perf_counter()
        found = fit.learn_pupil(images, MOLECULES, progress=False)
        seconds, report = time.perf_counter() - start, found.report
        error, twin = _error(found, truth), _error(fit.twin(found), truth)
        note = (
            f"error {min(error, twin):.4f} rad (bound {np.sqrt((report.errors**2).mean()):.4f})"
            f"{', twin' if twin < error else ''}, residual {report.residual:.3f}, {len(report.starts)} starts"
        )
        yield Row(f"pupil from 4096 molecules, seed {seed}", seconds, {}, target="<= 0.01 rad, <= 180 s", note=note)


def simulate(rng: np.random.Generator, n: int, truth: dict[tuple[int, int], float]) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 24, 24) of molecules and their x, y, z, photons and background (n, 5)."""
    x, y = 11.5 + rng.uniform(-1.5, 1.5, (2, n))
    z, photons, background = rng.uniform(-0.8, 0.8, n), 3000 * np.exp(0.3 * rng.normal(size=n)), rng.uniform(5, 15, n)
    theta = np.stack([x, y, z, photons, background], 1)
    return rng.poisson(MOLECULES.replace(zernike=truth).partials(theta, (24, 24))[0]), theta


def _error(found: psf.Pupil, truth: dict[tuple[int, int], float]) -> float:
    return float(
        np.sqrt(np.mean([(c - truth.get(m, 0.0)) ** 2 for m, c in zip(found.modes, found.zernike, strict=True)]))
    )


if __name__ == "__main__":
    for row in {"beads": beads, "molecules": molecules}[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3])):
        sys.stdout.write(row.text() + "\n")
        sys.stdout.flush()
