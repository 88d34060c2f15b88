"""Losses: ns per pixel at 10^7 pixels, the shifted form beside the floor that memory sets and beside the exact sum.

The floor of a loss is its traffic, three arrays read and two written, at the bandwidth of a threaded copy in the same
run.  Exact: about 30 terms a pixel at a read noise of 1.5 electrons.

Measured on two threads (results/losses-cpu.json), float32 and float64: shifted 0.35 and 1.01 ns, exact 8.1 and 8.5 ns,
floor 0.24 and 0.47 ns per pixel: shifted 1.5 and 2.1 times the floor, exact 23 and 8 times the shifted form.  Outputs
are allocated, and their pages touched, before the clock starts.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from smlmcore.kernel import registry
from smlmcore.loss import poisson_gaussian as _  # noqa: F401 - registers the kernel

from .harness import Row, compare
from .kernels import copy_in_threads, timed

PIXELS = 10_000_000
READ_NOISE = 1.5


def rows() -> Iterator[Row]:
    rng = np.random.default_rng(0)
    mu = 10 ** rng.uniform(0.7, 3.3, PIXELS)
    data = rng.poisson(mu) + READ_NOISE * rng.standard_normal(PIXELS)
    source = np.ones(PIXELS, np.float64)
    target = source.copy()
    kernel = registry["poisson_gaussian"]
    for dtype in (np.float32, np.float64):
        inputs = [a.astype(dtype) for a in (mu, data, np.full(PIXELS, READ_NOISE**2))]
        out = np.empty(PIXELS, dtype), np.empty(PIXELS, dtype)
        bandwidth = 2 * source.nbytes / timed(lambda: copy_in_threads(source, target), "cpu")
        floor = 5 * np.dtype(dtype).itemsize * PIXELS / bandwidth
        row = compare(
            f"exact Poisson-Gaussian, 10^7 pixels, {np.dtype(dtype)}",
            lambda: kernel(*inputs, 1, out=out),  # noqa: B023 - run at once
            {"shifted": lambda: kernel(*inputs, 0, out=out)},  # noqa: B023
            repeat=3,
            items=PIXELS,
            target="<= 5x shifted",
        )
        ns = 1e9 / PIXELS
        shifted = row.peers["shifted"]
        row.note = (
            f"exact {row.ours * ns:.2f} ns, shifted {shifted * ns:.2f} ns, floor {floor * ns:.2f} ns per pixel: exact "
            f"{row.ours / shifted:.1f}x shifted, shifted {shifted / floor:.1f}x the floor (target: 2x)"
        )
        yield row
