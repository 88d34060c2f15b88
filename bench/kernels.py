"""Every registered kernel at its benchmark size: time, bytes per second, and the fraction of the measured roofline.

The roofline is a copy of 256 MB in the same run, read and written once each.  A kernel whose arrays are read and
written once and whose arithmetic is hidden comes near 1; a smaller fraction says that arithmetic decides.

On a GPU also `fit.mle` of a Gaussian, first guess included, against the roofline of arithmetic.  Operations of one look
at an image of 11 x 11 pixels (kernels/fit.cuh), additions and products one each, a division, square root, exp, erf and
log1p taken as 1, 1, 10, 20 and 20:

    a pixel: value and partials 11, weights 4, gradient 10, information 35, deviance 24, doubt and chi2 6      90 x 121
    tables of both axes: for each of 22 pixels two exp, two erf and 15 others                                  75 x 22
    the 23 sums over 32 lanes, and the step                                                                       900

A fit takes one look at the start and one for each step.

And convolutions of 3x3 taps, forward and backward, by each body: what the rules `layers.cudnn.FROM` and
`layers.conv.BLAS_FROM` choose, beside what they could have chosen.
"""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np

from smlmcore import backend, fit, layers, psf
from smlmcore.autograd import Tensor
from smlmcore.kernel import Argument
from smlmcore.layers import cudnn
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
    if device == "gpu":
        yield direct_fits(move, device, arithmetic_peak())
        yield from convolutions(move, device)


LOOK = 90 * 121 + 75 * 22 + 900  # operations of one look at an image


def direct_fits(move: Callable[[np.ndarray], Any], device: str, peak: float, n: int = 500_000) -> Row:
    """Fits a second of spots that are on the device, and their part of `peak`, operations a second."""
    model = psf.Gaussian2D()
    images, _ = fit.simulate_spots(model, min(n, 20_000), (11, 11), np.random.default_rng(0))
    spots = move(np.resize(images, (n, 11, 11)))
    looks = 1 + float(fit.mle(spots, model).iterations.mean())
    seconds = timed(lambda: fit.mle(spots, model), device)
    rate = n * looks * LOOK / seconds
    note = f"{looks:.2f} looks a fit; {rate / 1e12:.2f} Tflop/s, {rate / peak:.0%} of {peak / 1e12:.1f}"
    return Row("Poisson MLE of a Gaussian, 11x11, float32", seconds, {}, n, note=note)


NEVER = 1 << 62
BODIES = {"cuDNN": (0, NEVER), "cuBLAS": (NEVER, 0), "own kernel": (NEVER, NEVER)}  # from how much work on


def convolutions(move: Callable[[np.ndarray], Any], device: str) -> Iterator[Row]:
    """A layer and its gradients for batches of growing size, by the body that is chosen and by each one."""
    for n, size, width in ((1, 16, 16), (1, 32, 32), (4, 32, 32), (32, 32, 32), (8, 128, 32), (8, 128, 128)):
        rng = np.random.default_rng(0)
        layer = layers.Conv2d(width, width, activation="gelu")
        p = {k: Tensor(move(v)) for k, v in layer.init(rng).items()}
        x = Tensor(move(rng.normal(size=(n, size, size, width)).astype(np.float32)))
        gradient = move(np.ones(x.shape, np.float32))

        def step(p=p, x=x, layer=layer, gradient=gradient) -> None:
            layer(p, x).backward(gradient)

        peers: dict[str, float | None] = {}
        for body, sizes in BODIES.items():
            with chosen(*sizes):
                installed = body != "cuDNN" or importlib.util.find_spec("cudnn") is not None
                peers[body] = timed(step, device) if installed else None
        work = f"convolution 3x3 and gradients, {n}x{size}x{size}, {width} channels"
        yield Row(work, timed(step, device), peers, note=f"2^{np.log2(9 * x.size * width):.1f} multiply-adds each")


@contextmanager
def chosen(cudnn_from: int, blas_from: int) -> Iterator[None]:
    """Other sizes from which cuDNN and cuBLAS are taken."""
    conv = importlib.import_module("smlmcore.layers.conv")
    before = cudnn.FROM, conv.BLAS_FROM
    cudnn.FROM, conv.BLAS_FROM = cudnn_from, blas_from
    try:
        yield
    finally:
        cudnn.FROM, conv.BLAS_FROM = before


def arithmetic_peak() -> float:
    """float32 operations a second of the GPU: two for each core and clock."""
    device = __import__("cupy").cuda.Device()
    cores = 64 if device.compute_capability in ("70", "72", "75", "80") else 128  # of a multiprocessor
    return 2e3 * cores * device.attributes["MultiProcessorCount"] * device.attributes["ClockRate"]


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
