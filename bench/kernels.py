"""Every registered kernel at its benchmark size: time, bytes per second, and the fraction of the measured roofline.

The roofline is a copy of 256 MB in the same run, read and written once each.  A kernel whose arrays are read and
written once and whose arithmetic is hidden comes near 1; a smaller fraction says that arithmetic decides.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import numba
import numpy as np

from smlmcore import backend
from smlmcore.kernel import Argument
from smlmcore.testing import all_kernels

from .harness import Row


def rows(device: str) -> Iterator[Row]:
    move = backend.to_gpu if device == "gpu" else np.asarray
    big = move(np.ones(32 << 20, np.float64))  # zeros would be one page of memory, read from the cache
    target = big.copy()

    def copy() -> None:
        if device == "cpu":
            copy_in_threads(big, target)
        else:
            target[...] = big

    seconds = timed(copy, device)
    roofline = 2 * big.nbytes / seconds
    yield Row("copy of 256 MB", seconds, {}, note=f"{roofline / 1e9:.1f} GB/s: the roofline of memory")
    for name, kernel in sorted(all_kernels().items()):
        rng = np.random.default_rng(0)
        values = zip(kernel.inputs, kernel.sample(rng, **kernel.bench), strict=True)
        inputs = [v if spec.dims is None else move(np.asarray(v, dtype(spec))) for spec, v in values]
        shapes = zip(kernel.outputs, kernel.output_shapes(kernel.bench), strict=True)
        outputs = tuple(move(np.empty(shape, dtype(spec))) for spec, shape in shapes)
        seconds = timed(lambda: kernel(*inputs, out=outputs), device)  # noqa: B023 - run at once
        moved = sum(a.nbytes for a in (*inputs, *outputs) if backend.is_array(a))
        note = f"{moved / seconds / 1e9:.1f} GB/s, {moved / seconds / roofline:.0%} of the roofline"
        yield Row(f"{name} float32 {kernel.bench}", seconds, {}, note=note)


@numba.njit(parallel=True)
def copy_in_threads(source, target):
    """What all cores together get out of memory; NumPy copies with one."""
    for i in numba.prange(source.size):
        target[i] = source[i]


def dtype(spec: Argument) -> np.dtype:
    """float32 for real arguments, else what the signature says."""
    return np.dtype(np.float32 if spec.dtype == "real" else spec.dtype)


def timed(run: Callable[[], object], device: str, repeat: int = 9) -> float:
    """Median seconds of `run` after a warm-up; on the GPU until the device has finished."""
    wait = (lambda: None) if device == "cpu" else __import__("cupy").cuda.runtime.deviceSynchronize
    run()
    seconds = []
    for _ in range(repeat):
        wait()
        start = time.perf_counter()
        run()
        wait()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
