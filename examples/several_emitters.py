"""Up to four molecules in one image, half of them off: found without a label from outside.

A network learns from images that the model draws itself (2000 photons, background 10, sigma 1.3 pixels of 100 nm),
then finds the molecules of images that it never saw, and a joint fit refines what it found: how many there are, where,
and with which error.  Truth is used for the score alone.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.spatial import cKDTree

from smlmcore import data, localize
from smlmcore.localize import joint
from smlmcore.localize.learn import learn
from smlmcore.localize.network import Network
from smlmcore.localize.prior import Prior
from smlmcore.psf import Gaussian2D

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--quick", action="store_true", help="fewer images and steps")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", type=Path, default=Path("results/several_emitters"))
options = parser.parse_args()
steps, count = (60, 100) if options.quick else (3000, 4000)
shape, places, sigma, background = (32, 32), 4, 1.3, 10.0
rng = np.random.default_rng(options.seed)

# images: four places each, half of them off
on = rng.random((count, places)) < 0.5
image = np.nonzero(on)[0]
truth = data.table(
    frame=image, x=rng.uniform(3, 28, on.sum()), y=rng.uniform(3, 28, on.sum()), photons=np.full(on.sum(), 2000.0)
)
psf = Gaussian2D(sigma)
values = {name: truth[name] for name in ("x", "y", "photons")}
clean = psf.render({**values, "background": np.full(count, background)}, shape, image=image)
images = rng.poisson(clean).astype(np.float32)

# learn: the prior is what the model may draw, not what it did
prior = Prior(
    photons=(1500, 2700), spread=(0, 0.2), background=(8, 13), sigma=(1.25, 1.35), density=(0.0005, 0.006),
    read_noise=(0, 0.1), uneven=0.0,
)  # fmt: skip
start = time.perf_counter()
network = learn(Network(prior), steps, seed=options.seed)
seconds = time.perf_counter() - start

# find, then refine
start = time.perf_counter()
found = network.find(images, background, sigma=sigma)
fitted = joint.fit(images, found, np.full((1, *shape), background, np.float32), sigma=sigma, light=(2000.0, 200.0))
refined = data.table(frame=fitted.frame, **dict(zip(("x", "y", "photons"), fitted.theta[:, :3].T, strict=True)))
rate = count / (time.perf_counter() - start)

at = np.stack([1000.0 * truth["frame"], truth["x"], truth["y"]], 1)
nearest = cKDTree(at).query(at, 2)[0][:, 1]  # pixels to the next molecule of the same image

# the bound for a molecule by itself: its own Fisher information, position, photons and background unknown
mean, partials = psf.partials(np.array([[15.3, 15.7, 2000.0, background]]), shape)
information = np.einsum("ahw,bhw->ab", partials[0] / mean[0], partials[0])
bound = 100 * float(np.sqrt(np.linalg.inv(information)[0, 0]))

report = {"learning": {"steps": steps, "seconds": round(seconds, 1)}, "images_per_second": round(rate)}
for name, table in (("network", found), ("refined", refined)):
    s = localize.score(table, truth, 0.1)["250"]
    report[name] = {k: s[k] for k in ("jaccard", "precision", "recall", "rmse", "rmse_lateral")}
    i, j = localize.match(table, truth, 2.5)
    report[name]["rmse over CRLB"] = s["rmse"] / bound
    # molecules with no other within 8 pixels: here the bound is the one of a molecule by itself
    error = np.stack([table[n][i] - truth[n][j] for n in ("x", "y")], 1)[nearest[j] > 8]
    report[name]["rmse over CRLB, isolated"] = 100 * float(np.sqrt((error**2).mean())) / bound
report["CRLB of an isolated molecule, nm per axis"] = bound

options.out.mkdir(parents=True, exist_ok=True)
(options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
figure = Figure(figsize=(13, 6.6), layout="constrained")
for ax, k in zip(figure.subplots(2, 4).flat, np.flatnonzero(on.sum(1) >= 2), strict=False):
    ax.imshow(images[k], cmap="gray_r")
    for table, style in ((truth, "c+"), (found, "yx"), (refined, "r1")):
        ax.plot(table["x"][table["frame"] == k], table["y"][table["frame"] == k], style, ms=13)
    ax.axis("off")
figure.suptitle("cyan +: truth, yellow x: network, red: refined; every second place is off")
figure.savefig(options.out / "report.png", dpi=80)

for name, numbers in report.items():
    if isinstance(numbers, dict):
        print(f"{name:<10}" + "  ".join(f"{k} {v:.4g}" for k, v in numbers.items()))
    else:
        print(f"{name}: {numbers:.4g}")
