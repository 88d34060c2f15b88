"""Deconvolution with a kernel that is known, nearly known, and unknown: the hollow bars (EPFL), and what is simulated.

The bars need the folder deconvolution_bars below SMLMCORE_DATA; without it there are the simulated image and volume
alone, whose model is exact.  A score is the peak signal-to-noise ratio at the best scale, and the share of the truth's
peak is the range.  On the bars, the unknown kernel has as many iterations as Richardson-Lucy.  What is simulated ends
where the residual is Poisson noise alone; then the object begins anew with the kernel found: what a better object
teaches is a better kernel.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import tifffile
from matplotlib.figure import Figure

from smlmcore import psf, renderer
from smlmcore.data import atomic
from smlmcore.deconvolution import deconvolve
from smlmcore.simulate import filaments

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--quick", action="store_true", help="fewer iterations")
parser.add_argument("--seed", type=int, default=1, help="of what is simulated")
parser.add_argument("--out", type=Path, default=Path("results/deconvolution"))
options = parser.parse_args()
folder = Path(os.environ.get("SMLMCORE_DATA", "../shared/data")) / "deconvolution_bars"
rng = np.random.default_rng(options.seed)


def score(estimate, truth):
    """PSNR in dB of the estimate at its best scale."""
    scale = (estimate * truth).sum() / (estimate**2).sum()
    return float(10 * np.log10(truth.max() ** 2 / ((scale * estimate - truth) ** 2).mean()))


def gaussian(shape, *sigma):
    """A Gaussian kernel of width `sigma` in pixels along each axis."""
    axes = np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij")
    return np.exp(-0.5 * sum((a / s) ** 2 for a, s in zip(axes, sigma, strict=True))).astype(np.float32)


def widths(kernel):
    """Standard deviations of the kernel in pixels along each axis."""
    axes = np.meshgrid(*(np.arange(n) - n // 2 for n in kernel.shape), indexing="ij")
    return [float(np.sqrt((kernel * a**2).sum() / kernel.sum())) for a in axes]


def bars():
    """Truth, data and kernel of the benchmark, and the ways to go."""
    truth, data, kernel = (
        tifffile.imread(folder / f"{n}.tif").astype(np.float32) for n in ("actual", "data", "kernel")
    )
    guess, most = gaussian(kernel.shape, 1.5, 1, 1), 400 if options.quick else 3000
    few = min(most, 1000)
    return truth, data, kernel, {
        "Richardson-Lucy, given kernel": (kernel, few, {}),
        "given kernel, refined with the object": (kernel, most, {"refine": 200}),
        "Richardson-Lucy, Gaussian of a wrong width": (guess, few, {}),
        "blind: from that Gaussian, symmetric": (guess, few, {"refine": 200, "symmetric": True}),
    }  # fmt: skip


def simulated(truth, kernel, factor):
    """Truth, Poisson data on a background of 2, kernel, and the ways to go; the guess is `factor` times too wide."""
    kernel = (kernel / kernel.sum()).astype(np.float32)
    mean = np.maximum(renderer.convolve(truth, kernel, "periodic"), 0) + 2
    guess, noise = gaussian(kernel.shape, *(factor * w for w in widths(kernel))), {"background": 2.0, "deviance": 1.0}
    return truth, rng.poisson(mean).astype(np.float32), kernel, {
        "Richardson-Lucy, known kernel": (kernel, 1000, noise),
        "Richardson-Lucy, Gaussian of a wrong width": (guess, 200, noise),
        "blind: from that Gaussian, symmetric": (guess, 1000, noise | BLIND),
        "blind: a new object, from the kernel found": (None, 1000, noise | BLIND),
    }  # fmt: skip


BLIND = {"refine": 100, "every": 1, "symmetric": True}
pupil = psf.Pupil(na=1.2, wavelength=0.58, n_immersion=1.33, n_medium=1.33, pixel_size=0.1)
planes = {"x": 12.0, "y": 12.0, "z": 0.3 * (np.arange(13) - 6), "photons": 1.0, "background": 0.0}
stack = pupil.render({k: np.broadcast_to(v, 13).astype(float) for k, v in planes.items()}, (25, 25))
site = filaments(rng, (96, 96), count=8)
image = np.histogram2d(site[:, 1], site[:, 0], bins=96, range=[(-0.5, 95.5)] * 2)[0]
z, y, x = np.mgrid[:16, :48, :48].astype(float)
volume = np.zeros_like(z)
for _ in range(6):  # hollow balls
    cz, cy, cx = rng.uniform((4, 10, 10), (12, 38, 38))
    distance = np.sqrt((3 * (z - cz)) ** 2 + (y - cy) ** 2 + (x - cx) ** 2) - rng.uniform(4, 8)
    volume += rng.uniform(600, 1200) * np.exp(-0.5 * (distance / 0.8) ** 2)
for _ in range(3):  # rods
    ends = rng.uniform((2, 4, 4), (14, 44, 44), (2, 3))
    along = np.rint(ends[0] + np.linspace(0, 1, 200)[:, None] * (ends[1] - ends[0])).astype(int)
    np.add.at(volume, tuple(along.T), 240)
scenes = {
    "2-D": simulated(image * 600 / np.percentile(image, 99.5), stack[6], 1.4),
    "3-D, confocal": simulated(volume, stack**2, 1.4),
}
if folder.is_dir():
    scenes = {"bars": bars()} | scenes
else:
    print(f"{folder} is not there; set SMLMCORE_DATA to the folder that holds deconvolution_bars")

report, shown, found = {}, {}, None
for scene, (truth, data, kernel, ways) in scenes.items():
    report[f"{scene}: blurred image"] = {"dB": score(data, truth)}
    row = shown[scene] = [(f"{scene}: truth", truth, kernel), (f"data {score(data, truth):.1f} dB", data, None)]
    for name, (first, count, settings) in ways.items():
        begin = time.perf_counter()
        found = deconvolve(data, found.kernel if first is None else first, count, progress=True, **settings)
        same = np.corrcoef(found.kernel.ravel(), kernel.ravel())[0, 1]
        seconds = round(time.perf_counter() - begin, 1)
        numbers = {"dB": score(found.object, truth), "r of the kernel": float(same), "iterations": len(found.loss)}
        report[f"{scene}: {name}"] = numbers | {"seconds": seconds}
        row.append((f"{name}\n{numbers['dB']:.1f} dB", found.object, found.kernel))

options.out.mkdir(parents=True, exist_ok=True)
with atomic(options.out / "report.json") as path:
    path.write_text(json.dumps(report, indent=2) + "\n")
figure = Figure(figsize=(15, 5 * len(shown)), layout="constrained")
axes = figure.subplots(2 * len(shown), 6, squeeze=False)
for ax in axes.flat:
    ax.axis("off")
for pair, row in zip(axes.reshape(len(shown), 2, 6), shown.values(), strict=True):
    for ax, (title, item, its_kernel) in zip(pair.T, row, strict=False):
        ax[0].imshow(item[len(item) // 2] if item.ndim == 3 else item, cmap="gray", vmax=np.percentile(item, 99.9))
        ax[0].set_title(title, fontsize=8)
        if its_kernel is not None:
            across = its_kernel[:, its_kernel.shape[1] // 2] if its_kernel.ndim == 3 else its_kernel
            ax[1].imshow(np.log(across / across.max() + 1e-4), cmap="magma", aspect=2 if its_kernel.ndim == 3 else 1)
figure.savefig(options.out / "report.png", dpi=80)

for name, numbers in report.items():
    print(f"{name:<58}" + "  ".join(f"{key} {value:.4g}" for key, value in numbers.items()))
