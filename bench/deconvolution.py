"""Deconvolution of the hollow bars by one scorer, beside its peers, and convolution in three dimensions.

The score is the PSNR at the best scale, with the peak of the truth as range.  Every method has the same image and the
same kernel and the periodic model; of Wiener filters and total variations the best weight of several is shown, chosen
with the truth, which favours them.

Convolution 64^3 with 15^3, float32, forward and both gradients: three transforms there and three back.  At the shortest
length that spoils nothing, 72, a real transform is 373 000 points; a linear convolution by scipy's usage takes 80.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.fft
import tifffile

from smlmcore import renderer
from smlmcore.autograd import Tensor
from smlmcore.deconvolution import deconvolve

from .harness import Row, compare


def rows() -> Iterator[Row]:
    yield convolution()
    folder = Path(os.environ.get("SMLMCORE_DATA", "../shared/data")) / "deconvolution_bars"
    if not folder.is_dir():
        yield Row(f"deconvolution: {folder} is not there", 0.0, {}, note="set SMLMCORE_DATA")
        return
    truth, image, kernel = (
        tifffile.imread(folder / f"{name}.tif").astype(np.float32) for name in ("actual", "data", "kernel")
    )

    def score(estimate):
        scale = (estimate * truth).sum() / (estimate**2).sum()
        return 10 * np.log10(truth.max() ** 2 / ((scale * estimate - truth) ** 2).mean())

    z, y, x = (np.arange(n) - n // 2 for n in kernel.shape)
    wrong = np.exp(-0.5 * ((z[:, None, None] / 1.5) ** 2 + y[:, None] ** 2 + x**2)).astype(np.float32)
    ways = {
        "ours, Richardson-Lucy, 1000": lambda: deconvolve(image, kernel, 1000).object,
        "ours, kernel refined, 1500": lambda: deconvolve(image, kernel, 1500, refine=200).object,
        "ours, kernel refined, 3000": lambda: deconvolve(image, kernel, 3000, refine=200).object,
        "ours, Richardson-Lucy from a Gaussian of a wrong width, 1000": lambda: deconvolve(image, wrong, 1000).object,
        "ours, blind from that Gaussian, 1500": lambda: deconvolve(image, wrong, 1500, refine=200).object,
        "ours, blind from that Gaussian, symmetric, 1000": lambda: (
            deconvolve(image, wrong, 1000, refine=200, symmetric=True).object
        ),
        "ours, Richardson-Lucy, 200": lambda: deconvolve(image, kernel, 200).object,
        "scikit-image Richardson-Lucy, 200": scikit_image(image, kernel, 200),
        "Wiener, best of 12 weights": lambda: max((wiener(image, kernel, 10.0**k) for k in range(-9, 3)), key=score),
        "Richardson-Lucy with total variation, 500, best of 3 weights": lambda: max(
            (total_variation(image, kernel, 500, w) for w in (1e-4, 1e-3, 1e-2)), key=score
        ),
    }
    yield Row("hollow bars: the blurred image", 0.0, {}, note=f"{score(image):.2f} dB")
    for name, run in ways.items():
        if run is None:
            yield Row(f"hollow bars: {name}", 0.0, {}, note="not installed")
            continue
        start = time.perf_counter()
        found = run()
        yield Row(f"hollow bars: {name}", time.perf_counter() - start, {}, note=f"{score(found):.2f} dB")


def scikit_image(image, kernel, iterations):
    """scikit-image's Richardson-Lucy, made periodic by padding with half a period; None without it."""
    try:
        from skimage.restoration import richardson_lucy
    except ImportError:
        return None
    kernel = np.pad(kernel / kernel.sum(), (0, 1))  # odd: the only size that it applies and transposes alike
    margin = [n // 2 for n in image.shape]
    wide = np.pad(np.maximum(image, 1e-3), [(m, m) for m in margin], mode="wrap")

    def run():
        level = wide.max()
        found = richardson_lucy(wide / level, kernel, iterations, clip=False, filter_epsilon=1e-9) * level
        return found[tuple(slice(m, m + n) for m, n in zip(margin, image.shape, strict=True))]

    return run


def wiener(image, kernel, weight):
    """The linear filter conj(K) / (|K|^2 + weight), negative values cut off."""
    transfer = scipy.fft.rfftn(scipy.fft.ifftshift(kernel / kernel.sum()))
    found = scipy.fft.irfftn(scipy.fft.rfftn(image) * transfer.conj() / (np.abs(transfer) ** 2 + weight), image.shape)
    return np.maximum(found, 0)


def total_variation(image, kernel, iterations, weight):
    """Richardson-Lucy, each step over 1 - weight div(grad e / |grad e|) (Dey et al. 2006, Microsc. Res. Tech. 69)."""
    k = scipy.fft.rfftn(scipy.fft.ifftshift(kernel / kernel.sum()))
    e = np.full_like(image, image.mean())
    image = np.maximum(image, 1e-3)
    for _ in range(iterations):
        ratio = image / np.maximum(scipy.fft.irfftn(scipy.fft.rfftn(e) * k, image.shape), 1e-3)
        step = scipy.fft.irfftn(scipy.fft.rfftn(ratio) * k.conj(), image.shape)
        slope = [np.roll(e, -1, i) - e for i in range(3)]
        size = np.sqrt(sum(g**2 for g in slope)) + 1e-3
        divergence = sum(g / size - np.roll(g / size, 1, i) for i, g in enumerate(slope))
        e = np.maximum(e * step / np.maximum(1 - weight * divergence, 0.1), 0)
    return e


def convolution() -> Row:
    """Forward and both gradients, beside scipy.fft and torch (direct, and by its own FFT)."""
    rng = np.random.default_rng(0)
    image, kernel = (rng.normal(size=(n, n, n)).astype(np.float32) for n in (64, 15))
    g = np.ones_like(image)

    def ours():
        a, k = Tensor(image), Tensor(kernel)
        renderer.convolve(a, k).backward(g)
        return a.grad, k.grad

    def scipy_fft():
        size, w = (80, 80, 80), {"workers": 2}  # next_fast_len(64 + 15 - 1)
        fa, fk = (scipy.fft.rfftn(v, size, **w) for v in (image, kernel))
        out = scipy.fft.irfftn(fa * fk, size, **w)[7:71, 7:71, 7:71]
        wide = np.zeros(size, np.float32)
        wide[7:71, 7:71, 7:71] = g
        fg = scipy.fft.rfftn(wide, **w)
        to_image = scipy.fft.irfftn(fg * fk.conj(), size, **w)[:64, :64, :64]
        to_kernel = scipy.fft.irfftn(fg * fa.conj(), size, **w)[:15, :15, :15]
        return to_image, to_kernel, out

    for mine, theirs in zip(ours(), scipy_fft(), strict=False):
        np.testing.assert_allclose(mine, theirs, atol=1e-4 * np.abs(theirs).max())
    return compare(
        "convolution 64^3 with 15^3, forward + gradients, float32",
        ours,
        {"scipy.fft": scipy_fft, "torch.fft": torch_fft(image, kernel), "torch conv3d": torch_direct(image, kernel)},
        repeat=5,
        target="<= all",
    )


def torch_fft(image, kernel):
    """The same in torch by its FFT; None without torch."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(2)
    a, k = (torch.from_numpy(v).requires_grad_() for v in (image, kernel))
    size = (80, 80, 80)

    def run():
        a.grad = k.grad = None
        torch.fft.irfftn(torch.fft.rfftn(a, size) * torch.fft.rfftn(k, size), size)[7:71, 7:71, 7:71].sum().backward()

    return run


def torch_direct(image, kernel):
    """The same in torch by conv3d; None without torch."""
    try:
        import torch
    except ImportError:
        return None
    a, k = (torch.from_numpy(v).requires_grad_() for v in (image, kernel))

    def run():
        a.grad = k.grad = None
        torch.nn.functional.conv3d(a[None, None], k.flip(0, 1, 2)[None, None], padding=7).sum().backward()

    return run
