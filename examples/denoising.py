"""Denoising of a noisy filament movie without one clean image: sCMOS pixels, each with its own read noise.

The truth is simulated, and used for the score alone.  Beside it: the best Gaussian filter, and, where they are
installed, BM3D and non-local means after the variance is stabilised.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter

from smlmcore import psf, renderer
from smlmcore.data import atomic
from smlmcore.denoising import denoise
from smlmcore.simulate import filaments

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--quick", action="store_true", help="fewer and smaller images, little training")
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", type=Path, default=Path("results/denoising"))
options = parser.parse_args()
frames, size, steps = (4, 48, 60) if options.quick else (32, 128, options.steps)

# Filaments of different brightness through a PSF of 1.3 px, on a background of 3 photoelectrons.
rng, sigma = np.random.default_rng(options.seed), 1.3
sites = [filaments(rng, (size, size), count=1) for _ in range(frames * 8)]
light = np.concatenate([np.full(len(s), rng.uniform(0.5, 1.5)) for s in sites])
frame = np.concatenate([np.full(len(s), i // 8) for i, s in enumerate(sites)])
x, y = np.concatenate(sites).T
draw = renderer.Emitters(psf.Gaussian2D(sigma=sigma), (size, size))
clean = draw({}, {"x": x, "y": y, "photons": light, "image": frame, "background": np.zeros(frames)})
clean = 3 + clean * (30 / np.percentile(clean, 99.5))
variance = rng.gamma(0.8, 8, (size, size)) + 1
noisy = rng.poisson(clean) + rng.normal(0, 1, clean.shape) * np.sqrt(variance)


def score(images):
    """Mean PSNR in dB, with the peak of each clean image as its range."""
    error = ((images - clean[: len(images)]) ** 2).mean((1, 2))
    return float(np.mean(10 * np.log10(clean[: len(images)].max((1, 2)) ** 2 / error)))


def stabilised(method, v):
    """`method` for images of unit variance, between Anscombe's transform for variance v and its unbiased inverse."""
    d = np.maximum([method(2 * np.sqrt(np.maximum(a + 3 / 8 + v, 0))) for a in noisy], 1)
    root = np.sqrt(1.5)
    return np.maximum(d**2 / 4 + root / 4 / d - 11 / 8 / d**2 + 5 / 8 * root / d**3 - 1 / 8 - v, 0)


line = np.exp(-0.5 * (np.arange(-5, 6) / sigma) ** 2)
ways = {
    "noisy": lambda: noisy,
    "Gaussian filter, the best of eight": lambda: max(
        (gaussian_filter(noisy, (0, s, s)) for s in np.arange(0.6, 2.2, 0.2)), key=score
    ),
    "the first image alone": lambda: denoise(noisy[:1], variance, steps=steps if options.quick else None).images,
    f"all images, {steps} steps": lambda: denoise(noisy, variance, steps=steps).images,
    f"all images, {steps} steps, with the PSF": lambda: (
        denoise(noisy, variance, psf=np.outer(line, line), steps=steps).images
    ),
}
try:
    from bm3d import bm3d

    ways["BM3D, mean variance"] = lambda: stabilised(lambda a: bm3d(a, 1.0), variance.mean())
except ImportError:
    print("BM3D: not installed")
try:
    from skimage.restoration import denoise_nl_means

    ways["non-local means, mean variance"] = lambda: stabilised(
        lambda a: denoise_nl_means(a, 5, 10, h=0.6, sigma=1.0), variance.mean()
    )
except ImportError:
    print("scikit-image: not installed")

report, found = {}, {}
for name, way in ways.items():
    start = time.perf_counter()
    found[name] = way()
    bias = 100 * (found[name].mean() / clean[: len(found[name])].mean() - 1)
    report[name] = {
        "dB": score(found[name]),
        "dB of the first": score(found[name][:1]),
        "bias of the mean, %": float(bias),
        "seconds": round(time.perf_counter() - start, 1),
    }

options.out.mkdir(parents=True, exist_ok=True)
with atomic(options.out / "report.json") as path:
    path.write_text(json.dumps(report, indent=2) + "\n")
shown = {"clean": clean} | found
figure = Figure(figsize=(3.2 * ((len(shown) + 1) // 2), 6.8), layout="constrained")
for ax, (name, images) in zip(figure.subplots(2, (len(shown) + 1) // 2).flat, shown.items(), strict=False):
    ax.imshow(images[0], cmap="inferno", vmin=0, vmax=np.percentile(clean[0], 99.8))
    ax.set_title(f"{name}\n{report[name]['dB of the first']:.1f} dB" if name in report else name, fontsize=9)
for ax in figure.axes:
    ax.axis("off")
figure.savefig(options.out / "report.png", dpi=100)

for name, numbers in report.items():
    print(f"{name:<44}" + "  ".join(f"{key} {value:.4g}" for key, value in numbers.items()))
