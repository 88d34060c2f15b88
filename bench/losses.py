"""Losses: ns per pixel at 10^7 pixels, the shifted form beside the floor that memory sets and beside the exact sum.

The floor of a loss is its traffic, three arrays read and two written, at the bandwidth of a threaded copy in the same
run.  Exact: about 30 terms a pixel at a read noise of 1.5 electrons.

Two cores that copy 43 GB/s, float32 and float64: exact 8.1 and 8.5 ns, shifted 2.7 ns in both, floor 0.46 and 0.86 ns.
So exact costs 3 times the shifted form, which arithmetic limits and not memory: two logarithms and four divisions in
float64 are 14 cycles a pixel and core.  A version without the product for x < 10 helps only where no pixel of a strip
is that dark; half the lanes in float32 would still be above twice the floor.
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
