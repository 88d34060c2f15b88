"""Deconvolution of the hollow bars (EPFL benchmark) with a kernel that is known, nearly known, and unknown.

Needs the folder deconvolution_bars below SMLMCORE_DATA.  A score is the peak signal-to-noise ratio at the best scale,
and the share of the truth's peak is the range.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import tifffile
from matplotlib.figure import Figure

from smlmcore.deconvolution import deconvolve

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--quick", action="store_true", help="fewer iterations")
parser.add_argument("--out", type=Path, default=Path("results/deconvolution"))
options = parser.parse_args()
iterations = 400 if options.quick else 3000
folder = Path(os.environ.get("SMLMCORE_DATA", "../shared/data")) / "deconvolution_bars"
if not folder.is_dir():
    sys.exit(f"{folder} is not there; set SMLMCORE_DATA to the folder that holds deconvolution_bars")
truth, image, kernel = (
    tifffile.imread(folder / f"{name}.tif").astype(np.float32) for name in ("actual", "data", "kernel")
)


def score(estimate):
    """PSNR in dB of the estimate at its best scale."""
    scale = (estimate * truth).sum() / (estimate**2).sum()
    return float(10 * np.log10(truth.max() ** 2 / ((scale * estimate - truth) ** 2).mean()))


# What one may guess without having measured a kernel: a Gaussian, here narrower than the truth.
z, y, x = (np.arange(n) - n // 2 for n in kernel.shape)
gaussian = np.exp(-0.5 * ((z[:, None, None] / 1.5) ** 2 + y[:, None] ** 2 + x**2)).astype(np.float32)
ways = {
    "Richardson-Lucy, given kernel": (kernel, min(iterations, 1000), None),
    "given kernel, refined with the object": (kernel, iterations, 200),
    "Richardson-Lucy, Gaussian of a wrong width": (gaussian, min(iterations, 1000), None),
    "blind: from that Gaussian": (gaussian, min(iterations, 1500), 200),
}
report, found = {"blurred image": {"dB": score(image)}}, {}
for name, (first, count, refine) in ways.items():
    begin = time.perf_counter()
    found[name] = deconvolve(image, first, count, refine=refine, progress=True)
    same = np.corrcoef(found[name].kernel.ravel(), kernel.ravel())[0, 1]
    seconds = round(time.perf_counter() - begin, 1)
    report[name] = {"dB": score(found[name].object), "r of the kernel": float(same), "seconds": seconds}

options.out.mkdir(parents=True, exist_ok=True)
(options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
figure = Figure(figsize=(16, 8), layout="constrained")
columns = {"truth": (truth, kernel), "data": (image, None)} | {k: (v.object, v.kernel) for k, v in found.items()}
for ax, (title, (volume, its_kernel)) in zip(figure.subplots(2, 6).T, columns.items(), strict=True):
    ax[0].imshow(volume[16], cmap="gray")
    ax[0].set_title(title, fontsize=9)
    if its_kernel is not None:
        ax[1].imshow(np.log(its_kernel[:, 32] / its_kernel.max() + 1e-4), cmap="magma", aspect=2)
        ax[1].set_title("kernel, x-z, logarithmic", fontsize=9)
    for a in ax:
        a.axis("off")
figure.savefig(options.out / "report.png", dpi=90)

for name, numbers in report.items():
    print(f"{name:<44}" + "  ".join(f"{key} {value:.4g}" for key, value in numbers.items()))
