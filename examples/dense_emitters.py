"""Dense frames that no fit of single spots can take apart, 60 and 164 molecules in 128 x 128 pixels.

Pixels of 100 nm, so that 164 are one per square micrometre; the molecules lie anywhere in the field,
its border included: 2000 photons (a logarithmic spread of 0.3), background 10, sigma 1.3.  A network learns from frames
that the model draws itself, then finds the molecules in frames that it never saw, and a joint fit refines them; the
network that comes with the package does the same without any learning.  Beside them Picasso's maximum likelihood fit
at its best threshold.  RMSE is lateral, sqrt(mean(dx^2 + dy^2)), of pairs at most 250 nm apart.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from smlmcore import data, localize
from smlmcore.localize import joint
from smlmcore.localize.background import background
from smlmcore.localize.learn import learn
from smlmcore.localize.network import Network, general
from smlmcore.localize.prior import Prior
from smlmcore.psf import Gaussian2D

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--quick", action="store_true", help="fewer frames and steps")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", type=Path, default=Path("results/dense_emitters"))
options = parser.parse_args()
steps, frames = (60, 2) if options.quick else (6000, 40)
side, sigma, light = 128, 1.3, (2000.0, 600.0)


def movie(per_frame):
    """Frames and truth."""
    rng = np.random.default_rng((options.seed, per_frame))
    frame = np.repeat(np.arange(frames), rng.poisson(per_frame, frames))
    x, y = rng.uniform(-0.5, side - 0.5, (2, len(frame)))
    photons = light[0] * np.exp(0.3 * rng.normal(size=len(frame)))
    values = {"x": x, "y": y, "photons": photons, "background": np.full(frames, 10.0)}
    mean = Gaussian2D(sigma).render(values, (side, side), image=frame)
    return rng.poisson(mean).astype(np.float32), data.table(frame=frame, x=x, y=y, photons=photons)


def picasso(images, truth):
    """Picasso's localizations at the threshold that serves it best, or None."""
    try:
        from picasso import gaussmle
        from picasso import localize as peer
    except ImportError:
        return None
    camera = {"Baseline": 0, "Sensitivity": 1, "Gain": 1, "Qe": 1, "Pixelsize": 100}
    best = None
    for threshold in (300, 500, 800, 1200):
        spots = peer.identify(images, threshold, 7, threaded=False, return_info=False)
        cut = peer.get_spots(images, spots, 7, camera)
        fits = gaussmle.gaussmle(cut, 0.001, 100, "sigma")
        found = gaussmle.locs_from_fits(spots, *fits, 7, spherical=True)
        table = data.table(**{name: found[name].to_numpy() for name in ("frame", "x", "y")})
        if best is None or jaccard(table, truth) > jaccard(best, truth):
            best = table
    return best


def jaccard(table, truth):
    return localize.score(table, truth, 0.1)["250"]["jaccard"]


# the prior is what the model may draw: wider than what there is
prior = Prior(
    photons=(1600, 2500), spread=(0.1, 0.5), background=(7, 14), sigma=(1.2, 1.4), density=(0.0005, 0.014),
    read_noise=(0, 0.1), uneven=0.0,
)  # fmt: skip
start = time.perf_counter()
own = learn(Network(prior), steps, seed=options.seed)
report = {"learning": {"steps": steps, "seconds": round(time.perf_counter() - start, 1)}}
figure = Figure(figsize=(16, 8.4), layout="constrained")
for ax, per_frame in zip(figure.subplots(1, 2), (60, 164), strict=True):
    images, truth = movie(per_frame)
    behind = background(images, 0.0, sigma)
    tables = {}
    for name, network in (("learned here", own), ("of the package", general())):
        found = network.find(images, behind, sigma=sigma)
        fitted = joint.fit(images, found, behind, sigma=sigma, light=light)
        tables[f"network {name}"] = found
        tables[f"network {name}, refined"] = data.table(frame=fitted.frame, x=fitted.theta[:, 0], y=fitted.theta[:, 1])
    tables["Picasso"] = picasso(images, truth)
    for name, table in tables.items():
        s = None if table is None else localize.score(table, truth, 0.1)["250"]
        row = "not installed" if s is None else {k: s[k] for k in ("jaccard", "precision", "recall", "rmse_lateral")}
        report[f"{per_frame} per frame, {name}"] = row
    ax.imshow(images[0], cmap="gray_r", vmax=np.quantile(images[0], 0.995))
    shown = (("truth", truth, "c+"), ("refined", tables["network learned here, refined"], "r1"))
    for label, table, style in shown:
        ax.plot(*(table[n][table["frame"] == 0] for n in "xy"), style, ms=6, label=label)
    ax.set(title=f"{per_frame} per frame", xlim=(0, 128), ylim=(128, 0))
    ax.legend(loc="upper right", framealpha=0.9)

options.out.mkdir(parents=True, exist_ok=True)
(options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
figure.savefig(options.out / "report.png", dpi=80)
for name, row in report.items():
    text = row if isinstance(row, str) else "  ".join(f"{k} {v:.4g}" for k, v in row.items())
    print(f"{name:<47} {text}")
