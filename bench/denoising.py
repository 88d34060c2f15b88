"""Denoising of 32 filament images 128 x 128 beside its peers: seconds, PSNR and bias of the mean.

Every pixel has its own read noise.  PSNR is the mean over the images, with the peak of each clean image as range.
All see the same data.  BM3D and non-local means work between Anscombe's transform and its unbiased inverse, with the
mean of the read-noise variance or that of each pixel; of strengths the best of several is shown, chosen with the
truth, which favours them.  The blind-spot network (Batson & Royer 2019, ICML) has our U-Net, inputs, crops, steps and
number of passes in the end: one pixel in 16 is hidden and predicted from the others.

Floor: the U-Net takes 62 700 multiply-adds a pixel, three times that with the gradient: 18.5 GFLOP a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
from scipy.ndimage import gaussian_filter

from smlmcore import psf, renderer
from smlmcore.autograd import no_grad
from smlmcore.denoising import CROPS, Denoiser, Splits, denoise
from smlmcore.simulate import filaments
from smlmcore.training import Trainer

from .harness import Row

FRAMES, SIZE, SIGMA, STEPS = 32, 128, 1.3, 2000
TARGET = "3 dB above the best peer, bias <= 0.5 %"


def scenes(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clean images of filaments (peak about 30, background 3), the map of read noise, and noisy images."""
    rng = np.random.default_rng(seed)
    sites = [filaments(rng, (SIZE, SIZE), count=1) for _ in range(FRAMES * 8)]
    light = np.concatenate([np.full(len(s), rng.uniform(0.5, 1.5)) for s in sites])
    frame = np.concatenate([np.full(len(s), i // 8) for i, s in enumerate(sites)])
    x, y = np.concatenate(sites).T
    draw = renderer.Emitters(psf.Gaussian2D(sigma=SIGMA), (SIZE, SIZE))
    clean = draw({}, {"x": x, "y": y, "photons": light, "image": frame, "background": np.zeros(FRAMES)})
    clean = 3 + clean * (30 / np.percentile(clean, 99.5))
    variance = rng.gamma(0.8, 8, (SIZE, SIZE)) + 1
    return clean, variance, rng.poisson(clean) + rng.normal(0, 1, clean.shape) * np.sqrt(variance)


def score(images: np.ndarray, clean: np.ndarray) -> float:
    error = ((images - clean[: len(images)]) ** 2).mean((1, 2))
    return float(np.mean(10 * np.log10(clean[: len(images)].max((1, 2)) ** 2 / error)))


def rows() -> Iterator[Row]:
    clean, variance, noisy = scenes()
    line = np.exp(-0.5 * (np.arange(-5, 6) / SIGMA) ** 2)
    kernel, mean = np.outer(line, line), variance.mean()

    def best(tries: Iterator[np.ndarray]) -> np.ndarray:
        return max(tries, key=lambda images: score(images, clean))

    ways: dict[str, Callable[[], np.ndarray] | None] = {
        "noisy": lambda: noisy,
        "Gaussian filter, best of 8": lambda: best(gaussian_filter(noisy, (0, s, s)) for s in np.arange(0.6, 2.2, 0.2)),
        "ours": lambda: denoise(noisy, variance, steps=STEPS).images,
        "ours, with the PSF as last layer": lambda: denoise(noisy, variance, psf=kernel, steps=STEPS).images,
        "blind-spot network": lambda: blind_spot(noisy, variance, STEPS),
        "BM3D, mean variance": bm3d(noisy, mean),
        "BM3D, variance of each pixel": bm3d(noisy, variance),
        "non-local means, mean variance, best of 4": nl_means(noisy, mean, best),
        "non-local means, variance of each pixel, best of 4": nl_means(noisy, variance, best),
        "ours, the first image alone": lambda: denoise(noisy[:1], variance).images,
        "BM3D, the first image": bm3d(noisy[:1], mean),
    }
    for name, run in ways.items():
        if run is None:
            yield Row(f"denoising: {name}", 0.0, {}, note="not installed")
            continue
        start = time.perf_counter()
        found = run()
        seconds = time.perf_counter() - start
        bias = 100 * (found.mean() / clean[: len(found)].mean() - 1)
        target = TARGET if name == "ours" else ">= BM3D" if name == "ours, the first image alone" else ""
        note = f"{score(found, clean):.2f} dB, bias {bias:+.2f} %"
        yield Row(f"denoising: {name}", seconds, {}, target=target, note=note)


def stabilised(noisy: np.ndarray, v: np.ndarray | float, method: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`method`, for unit variance, between Anscombe's transform and its unbiased inverse (Makitalo & Foi 2011)."""
    d = np.maximum([method(2 * np.sqrt(np.maximum(a + 3 / 8 + v, 0))) for a in noisy], 1)
    root = np.sqrt(1.5)
    return np.maximum(d**2 / 4 + root / 4 / d - 11 / 8 / d**2 + 5 / 8 * root / d**3 - 1 / 8 - v, 0)


def bm3d(noisy: np.ndarray, v: np.ndarray | float) -> Callable[[], np.ndarray] | None:
    try:
        from bm3d import bm3d as method
    except ImportError:
        return None
    return lambda: stabilised(noisy, v, lambda a: method(a, 1.0))


def nl_means(noisy: np.ndarray, v: np.ndarray | float, best: Callable) -> Callable[[], np.ndarray] | None:
    try:
        from skimage.restoration import denoise_nl_means as method
    except ImportError:
        return None
    return lambda: best(
        stabilised(noisy, v, lambda a, h=h: method(a, 5, 10, h=h, sigma=1.0)) for h in (0.4, 0.5, 0.6, 0.8)
    )


class Hidden(Splits):
    """Draws crops in which one pixel of 16 is hidden; what the objective gets beside them is what was hidden."""

    def draw(self, rng: np.random.Generator, n: int) -> tuple:
        halves, v, others = super().draw(rng, 2 * n)
        y, v = (halves[:n] + others[:n]) / 2, v[:n]
        hide = hidden(y.shape[1:], *rng.integers(0, 4, 2))
        target = np.where(hide, np.where(v < np.inf, y, np.nan), np.nan).astype(y.dtype)
        return np.where(hide, 0, y), np.where(hide, np.inf, v).astype(v.dtype), (target, v)


class BlindSpot(Denoiser):
    """The network that predicts hidden pixels from the others."""

    def objective(self, p, images, variance, extra):
        target, v = extra
        noise = self.encoder.noise(self.encoder.mean(images, variance), v)
        return self.loss(self(p, images, variance)[1], target, noise).mean()


def hidden(shape: tuple[int, int], top: int, left: int) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top::4, left::4] = True
    return mask


def blind_spot(noisy: np.ndarray, variance: np.ndarray, steps: int) -> np.ndarray:
    """All pixels, each predicted when it was hidden, twice: from the image and from the image upside down."""
    y, v = noisy.astype(np.float32), np.broadcast_to(variance, noisy.shape).astype(np.float32)
    model = BlindSpot.of(float(y.mean()), float(y.std()))
    settings = {"epochs": steps // 100, "steps": 100, "batch": 2 * CROPS, "rate": 5e-3, "warmup": 100, "average": 0.99}
    Trainer(model, Hidden(y, v, model, y), **settings).run()
    out = np.zeros_like(y)
    with no_grad():
        for i in range(len(y)):
            for flip in (1, -1):
                a, b = y[i : i + 1, ::flip], v[i : i + 1, ::flip]
                for k in range(16):
                    hide = hidden(a.shape[1:], *divmod(k, 4))
                    found = model(model.parameters, np.where(hide, 0, a), np.where(hide, np.inf, b))[1]
                    out[i] += np.where(hide, found[0] / 2, 0)[::flip]
    return out
