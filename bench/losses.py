"""Losses: ns per pixel at 10^7 pixels, the shifted form beside the floor that memory sets and beside the exact sum.

The floor of a loss is its traffic, three arrays read and two written, at the bandwidth of a threaded copy in the same
run.  Rows: 5 to 2000 photons a pixel, read noise 1.5 and 0.8 electrons, and dark pixels of 1 to 10 photons.

On two threads (results/losses-cpu.json), float32 and float64, at 1.5 electrons: shifted 0.37 and 0.99 ns, 1.6 and 1.9
times the floor; exact 1.5 and 4.8 ns, 4.1 and 4.8 times the shifted form (all by sums: 8.1 and 8.5 ns).  Dark pixels
are summed, 5.5 and 9.7 ns, and so are bright ones with little read noise (below 0.9 and 1.8 electrons²), some 14 ns,
28 and 14 times the shifted form.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from smlmcore.kernel import registry
from smlmcore.loss import poisson_gaussian as _  # noqa: F401 - registers the kernel

from .harness import Row, compare
from .kernels import copy_in_threads, timed

PIXELS = 10_000_000
LIGHT = (5, 2000), (1, 10)  # photons, drawn evenly in their logarithm
READ_NOISE = 1.5, 0.8


def rows() -> Iterator[Row]:
    source = np.ones(PIXELS, np.float64)
    target = source.copy()
    kernel = registry["poisson_gaussian"]
    for (low, high), noise in ((LIGHT[0], READ_NOISE[0]), (LIGHT[0], READ_NOISE[1]), (LIGHT[1], READ_NOISE[0])):
        rng = np.random.default_rng(0)
        mu = np.exp(rng.uniform(np.log(low), np.log(high), PIXELS))
        data = rng.poisson(mu) + noise * rng.standard_normal(PIXELS)
        for dtype in (np.float32, np.float64):
            inputs = [a.astype(dtype) for a in (mu, data, np.full(PIXELS, noise**2))]
            out = np.empty(PIXELS, dtype), np.empty(PIXELS, dtype)
            bandwidth = 2 * source.nbytes / timed(lambda: copy_in_threads(source, target), "cpu")
            floor = 5 * np.dtype(dtype).itemsize * PIXELS / bandwidth
            row = compare(
                f"exact, {low} to {high} photons, noise {noise}, {np.dtype(dtype)}",
                lambda: kernel(*inputs, 1, out=out),  # noqa: B023 - run at once
                {"shifted": lambda: kernel(*inputs, 0, out=out)},  # noqa: B023
                repeat=3,
                items=PIXELS,
                target="<= 5x shifted",
            )
            ns = 1e9 / PIXELS
            shifted = row.peers["shifted"]
            row.note = (
                f"exact {row.ours * ns:.2f} ns, shifted {shifted * ns:.2f} ns, floor {floor * ns:.2f} ns per pixel: "
                f"exact {row.ours / shifted:.1f}x shifted, shifted {shifted / floor:.1f}x the floor (target: 2x)"
            )
            yield row
