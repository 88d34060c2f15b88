"""Convolution of images and volumes with one kernel, differentiable in both.

    out(i) = sum_j kernel(j) image(i + c - j),     c = kernel size // 2

`same`: out is as large as the image, which is 0 outside; `periodic`: as large, and the image repeats; `valid`: only
where the kernel lies inside, c = kernel size - 1.  The centre of a kernel is its element size // 2 on every axis, of an
even one the upper of the two in the middle, as numpy.fft.fftshift has it.

Small kernels are applied directly, by vector loops over rows.  Others by FFT: of the shortest fast length at which what
wraps around falls outside the result, axis after axis, so that lines of padding are never transformed and
lines that are cropped never transformed back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import scipy

from .. import backend, kernel
from ..autograd import Tensor, op, ops
from ..psf import axis

MODES = ("same", "valid", "periodic")
DIRECT = 2.5  # taps that cost, with their gradient, as much as one level of the transforms


def convolve(image: Any, kernel: Any, mode: str = "same") -> Any:
    """`image` (..., *spatial) convolved with `kernel` over its last kernel.ndim axes, 1 to 3; see the module's text.

    Either may be a Tensor.  Any real kernel will do, also of even size, of zero sum, or larger than the image (not in
    mode `valid`); it is used as it is.  A NaN or infinite pixel spoils what it reaches, with the FFT the whole image.

    Raises `ValueError` for an unknown mode and for shapes that do not fit, `TypeError` for complex numbers.

    >>> convolve(np.array([0.0, 0, 1, 0, 0]), np.array([1.0, 2, 3]))
    array([0., 1., 2., 3., 0.])
    >>> convolve(np.array([1.0, 0, 0]), np.array([1.0, 2, 3]), "periodic")
    array([2., 3., 1.])
    """
    image, kernel = (v if isinstance(v, Tensor) else backend.asarray(v) for v in (image, kernel))
    d, batch, size = kernel.ndim, image.shape[: image.ndim - kernel.ndim], image.shape[image.ndim - kernel.ndim :]
    if mode not in MODES:
        raise ValueError(f"convolve got mode {mode!r}; expected one of {', '.join(MODES)}")
    if "c" in (image.dtype.kind, kernel.dtype.kind):
        raise TypeError(f"convolve got {image.dtype} and {kernel.dtype}; expected real numbers")
    if not 1 <= d <= min(3, image.ndim) or 0 in (*kernel.shape, *size):
        raise ValueError(
            f"convolve got an image of shape {image.shape} and a kernel of shape {kernel.shape}; expected a kernel of "
            "1 to 3 axes, which are the last ones of the image, and at least one pixel in each"
        )
    if mode == "valid" and any(k > n for k, n in zip(kernel.shape, size, strict=True)):
        raise ValueError(
            f"convolve got a kernel of shape {kernel.shape}, larger than the image, {size}: no pixel is valid; choose "
            "mode 'same' or 'periodic', or crop the kernel"
        )
    dtype = np.result_type(image.dtype, kernel.dtype)
    image, kernel = (v if v.dtype == dtype else v * np.ones((), dtype) for v in (image, kernel))
    run = _direct if is_small(image.shape, kernel.shape) else _by_fft
    out = run(image.reshape(-1, *size), _fold(kernel, size) if mode == "periodic" else kernel, mode)
    return out.reshape(*batch, *out.shape[1:])


def is_small(shape: Sequence[int], kernel: Sequence[int]) -> bool:
    """Whether `kernel` is applied to images of `shape` directly: cost of taps against that of two transforms.

    >>> is_small((256, 256), (3, 3)), is_small((256, 256), (31, 31))
    (True, False)
    """
    return math.prod(kernel) <= DIRECT * math.log2(math.prod(shape[-len(kernel) :]) + 1)


def separate(kernel: np.ndarray) -> list[np.ndarray] | None:
    """One-dimensional kernels, shaped to be applied one after the other, whose product is `kernel`; None if it is none.

    >>> [k.shape for k in separate(np.outer([1.0, 2, 1], [1.0, 1]))]
    [(3, 1), (1, 2)]
    >>> separate(np.eye(2)) is None
    True
    """
    peak = np.unravel_index(np.abs(kernel).argmax(), kernel.shape)
    parts, product = [], np.ones((), kernel.dtype)
    for i, n in enumerate(kernel.shape):
        line = kernel[(*peak[:i], slice(None), *peak[i + 1 :])].reshape(
            [n if j == i else 1 for j in range(kernel.ndim)]
        )
        parts.append(line if i == 0 or kernel[peak] == 0 else line / kernel[peak])
        product = product * parts[-1]
    limit = 4 * np.finfo(kernel.dtype).eps * np.abs(kernel).max()
    return parts if kernel.ndim > 1 and np.abs(product - kernel).max() <= limit else None


def _fold(kernel: Any, size: Sequence[int]) -> Any:
    """A kernel larger than the period, added up where it meets itself; its centre stays at element size // 2."""
    for i, (k, n) in enumerate(zip(kernel.shape, size, strict=True)):
        if k > n:
            before = -(k // 2 - n // 2) % n
            after = -(before + k) % n
            kernel = ops.pad(kernel, [(before, after) if j == i else (0, 0) for j in range(kernel.ndim)])
            shape = kernel.shape
            kernel = kernel.reshape(*shape[:i], shape[i] // n, n, *shape[i + 1 :]).sum(axis=i)
    return kernel


# ---------------------------------------------------------------- by FFT


@op
def _fourier(image, kernel, *, mode):
    plan = Plan(image.shape[1:], kernel.shape, mode, backend.module(image, kernel, name="convolve"))
    x, k = plan.forward(image), plan.forward(kernel)
    return plan.back(x * k, plan.offset, plan.out), (plan, x, k)


@_fourier.vjp
def _(saved, gradient):
    plan, x, k = saved
    g = plan.forward(gradient)
    start = [-c for c in plan.offset]
    return (
        lambda: plan.back(g * k.conj(), start, plan.image),
        lambda: plan.back((g * x.conj()).sum(0), start, plan.kernel),
    )


def _by_fft(image: Any, kernel: Any, mode: str) -> Any:
    return _fourier(image, kernel, mode=mode)


class Plan:
    """Real transforms of one length for image, kernel and result, axis after axis, and windows into what comes back.

    The full convolution has n + k - 1 elements.  At a length L < n + k - 1 element t meets t + L; L is long enough if
    that spoils no element of the result: those from `offset` on, `out` of them.
    """

    def __init__(self, image: Sequence[int], kernel: Sequence[int], mode: str, xp: Any = np) -> None:
        self.xp, self.image, self.kernel = xp, tuple(image), tuple(kernel)
        self.fft = backend.scipy_module(xp, "fft")
        self.workers = {"workers": numba.get_num_threads()} if xp is np else {}
        pairs = list(zip(image, kernel, strict=True))
        self.offset = [k - 1 if mode == "valid" else k // 2 for _, k in pairs]
        self.out = tuple(n - k + 1 if mode == "valid" else n for n, k in pairs)
        self.length = [
            n if mode == "periodic" else scipy.fft.next_fast_len(max(c + m, n + k - 1 - c, n, k), real=True)
            for (n, k), c, m in zip(pairs, self.offset, self.out, strict=True)
        ]

    def forward(self, a: Any) -> Any:
        """Half spectrum of the last axes of a, continued with zeros."""
        d = len(self.length)
        axes = range(-d, 0)
        if 2 * math.prod(a.shape[-d:]) > math.prod(self.length):
            return self.fft.rfftn(a, self.length, axes=axes, **self.workers)
        a = self.fft.rfft(a, self.length[-1], axis=-1, **self.workers)
        for i in reversed(axes[:-1]):  # the lines that are all zero are not there yet
            a = self.fft.fft(a, self.length[i], axis=i, **self.workers)
        return a

    def back(self, spectrum: Any, start: Sequence[int], count: Sequence[int]) -> Any:
        """Elements start, start + 1, ... (`count` of them on each axis, modulo the length) of the inverse transform."""
        d = len(self.length)
        if 2 * math.prod(count) > math.prod(self.length):
            a = self.fft.irfftn(spectrum, self.length, axes=range(-d, 0), **self.workers)
            for i in range(-d, 0):
                a = self._window(a, start[i], count[i], i)
            return self.xp.ascontiguousarray(a)
        a = spectrum
        for i in range(-d, -1):
            a = self._window(self.fft.ifft(a, axis=i, **self.workers), start[i], count[i], i)
        a = self.fft.irfft(a, self.length[-1], axis=-1, **self.workers)
        return self.xp.ascontiguousarray(self._window(a, start[-1], count[-1], -1))

    def _window(self, a: Any, start: int, count: int, i: int) -> Any:
        length = self.length[i]
        after = (slice(None),) * (-i - 1)
        start %= length
        head = a[(..., slice(start, start + count), *after)]
        if start + count <= length:
            return head
        return self.xp.concatenate([head, a[(..., slice(0, start + count - length), *after)]], axis=i)


# ---------------------------------------------------------------- directly: kernels


def _correlate(image, taps, out):
    p, q, r = taps.shape
    windows = np.lib.stride_tricks.sliding_window_view(image.astype(float), (p, q, r), axis=(1, 2, 3))
    out[...] = np.einsum("nzyxpqr,pqr->nzyx", windows, taps)


def _correlate_taps(image, gradient, out):
    windows = np.lib.stride_tricks.sliding_window_view(image.astype(float), out.shape, axis=(1, 2, 3))
    out[...] = np.einsum("nzyxpqr,nzyx->pqr", windows, gradient)


@axis.parallel
def _correlate_cpu(image, taps, out):
    n, c, h, w = out.shape
    p, q, r = taps.shape
    a, o, t = image.reshape(-1), out.reshape(-1), taps.reshape(-1)
    planes, rows, columns = image.shape[1:]
    zero = out.dtype.type(0)
    for line in numba.prange(n * c * h):
        i, z, y = line // (c * h), line // h % c, line % h
        start = line * w
        for x in range(w):
            axis.put(o, start + x, zero)
        for k in range(p * q * r):
            tap = axis.get(t, k)
            source = ((i * planes + z + k // (q * r)) * rows + y + k // r % q) * columns + k % r
            for x in range(w):
                axis.put(o, start + x, axis.get(o, start + x) + tap * axis.get(a, source + x))


@axis.parallel
def _correlate_taps_cpu(image, gradient, out):
    n, c, h, w = gradient.shape
    p, q, r = out.shape
    a, g, t = image.reshape(-1), gradient.reshape(-1), out.reshape(-1)
    planes, rows, columns = image.shape[1:]
    for k in numba.prange(p * q * r):
        total = gradient.dtype.type(0)
        for line in range(n * c * h):
            i, z, y = line // (c * h), line // h % c, line % h
            source = ((i * planes + z + k // (q * r)) * rows + y + k // r % q) * columns + k % r
            row = gradient.dtype.type(0)
            for x in range(w):
                row += axis.get(g, line * w + x) * axis.get(a, source + x)
            total += row
        t[k] = total


def _dims(n, c, h, w, p, q, r):
    return {"n": n, "d": c + p - 1, "i": h + q - 1, "j": w + r - 1, "p": p, "q": q, "r": r, "c": c, "h": h, "w": w}


def _sample(rng, n, d, i, j, p, q, r, **out):
    return [rng.normal(size=(n, d, i, j)), rng.normal(size=(p, q, r))]


def _sample_taps(rng, n, d, i, j, c, h, w, **taps):
    return [rng.normal(size=(n, d, i, j)), rng.normal(size=(n, c, h, w))]


_CASES = tuple(
    _dims(*sizes)
    for sizes in [(0, 1, 3, 3, 1, 1, 1), (1, 1, 1, 1, 1, 1, 1), (3, 1, 5, 12, 1, 3, 2), (2, 3, 4, 37, 2, 3, 5)]
)
_BENCH = _dims(64, 1, 128, 128, 1, 5, 5)

correlate_kernel = kernel.register(
    "correlate",
    "image[n,d,i,j] taps[p,q,r] -> out[n,c,h,w]",
    _correlate,
    cpu=_correlate_cpu,
    cuda=kernel.Cuda("correlate.cu", lambda s: -(-s["n"] * s["c"] * s["h"] * s["w"] // 128), threads=128),
    sample=_sample,
    cases=_CASES,
    bench=_BENCH,
)
correlate_taps_kernel = kernel.register(
    "correlate_taps",
    "image[n,d,i,j] gradient[n,c,h,w] -> out[p,q,r]",
    _correlate_taps,
    cpu=_correlate_taps_cpu,
    cuda=kernel.Cuda("correlate.cu", lambda s: s["p"] * s["q"] * s["r"], threads=256),
    sample=_sample_taps,
    cases=_CASES,
    bench=_BENCH,
)


@op
def correlate(image, taps):
    """out(i) = sum_j taps(j) image(i + j) for images (n, z, y, x) and taps (z, y, x), where they lie inside."""
    xp = backend.module(image, taps, name="convolve")
    shape = [n - k + 1 for n, k in zip(image.shape[1:], taps.shape, strict=True)]
    out = xp.empty((len(image), *shape), image.dtype)
    return correlate_kernel(image, taps, out=out), (image, taps)


@correlate.vjp
def _(saved, gradient):
    image, taps = saved
    xp = backend.module(image)

    def to_image():
        wide = xp.pad(gradient, [(0, 0), *((k - 1, k - 1) for k in taps.shape)])
        return correlate_kernel(wide, xp.ascontiguousarray(taps[::-1, ::-1, ::-1]), out=xp.empty_like(image, order="C"))

    def to_taps():
        return correlate_taps_kernel(image, gradient, out=xp.empty_like(taps, order="C"))

    return to_image, to_taps


def _direct(image: Any, kernel: Any, mode: str) -> Any:
    """Pad the image as the mode asks, then correlate with the flipped kernel."""
    d = kernel.ndim
    for i, k in enumerate(kernel.shape, 1):
        before, after = (k - 1 - k // 2, k // 2)  # kernel element j sees the pixel i + k // 2 - j
        if mode == "same":
            image = ops.pad(image, [(before, after) if j == i else (0, 0) for j in range(image.ndim)])
        elif mode == "periodic":
            n, inner = image.shape[i], (slice(None),) * i
            parts = [image[(*inner, slice(n - before, n))], image, image[(*inner, slice(0, after))]]
            image = ops.concatenate([v for v in parts if v.shape[i]], axis=i)
    ones = (1,) * (3 - d)
    image = image.reshape(len(image), *ones, *image.shape[1:])
    out = correlate(image, ops.flip(kernel).reshape(*ones, *kernel.shape))
    return out.reshape(len(image), *out.shape[1 + 3 - d :])
