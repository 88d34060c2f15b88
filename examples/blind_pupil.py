"""The pupil of a microscope from blinking molecules alone, and an encoder and direct fits that use it.

Molecules anywhere in 1.6 um of depth (the phase at the pupil's edge runs over +-7 rad), nine aberrations up to 1 rad,
nothing known of any molecule: no beads, no labels.  Molecules that nothing has seen are held against the Cramér-Rao
bound of the true pupil, by the encoder alone and refined.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from smlmcore import fit, psf, training

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--quick", action="store_true", help="fewer molecules, a short training")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", type=Path, default=Path("results/blind_pupil"))
options = parser.parse_args()
n, sleep, epochs = (400, 1000, 2) if options.quick else (4096, 160_000, 4)
unseen = 256 if options.quick else 8192

optics = psf.Pupil(1.4, 0.67, 1.518, 1.518, 0.1, vectorial=False, samples=64, z_range=(-0.8, 0.8))
modes = [(2, -2), (2, 2), (3, -1), (3, 1), (3, -3), (3, 3), (4, 0), (4, 2), (4, -2)]
rng = np.random.default_rng(options.seed)
truth = dict(zip(modes, rng.uniform(-1, 1, len(modes)) * [1, 1, 0.6, 0.6, 0.5, 0.5, 0.4, 0.3, 0.3], strict=True))
microscope, shape = optics.replace(zernike=truth), (24, 24)


place = {"x": (10, 13), "y": (10, 13), "z": (-0.8, 0.8)}


def molecules(count):
    """Images and truth of molecules as the microscope shows them."""
    photons = 3000 * np.exp(0.3 * rng.normal(size=count))
    return fit.simulate_spots(microscope, count, shape, rng, **place, photons=photons, background=(5, 15))


images, _ = molecules(n)

# The pupil.  No image tells it from its conjugate twin (z -> -z): here the known truth chooses, else the user does.
start = time.perf_counter()
pupil = fit.learn_pupil(images, optics)
seconds = {"pupil": time.perf_counter() - start}


def error(p):
    """Root mean square over all fitted modes, radians."""
    return float(np.sqrt(np.mean([(c - truth.get(m, 0.0)) ** 2 for m, c in zip(p.modes, p.zernike, strict=True)])))


pupil = min((pupil, fit.twin(pupil)), key=error)

# The encoder learns from images that the pupil draws, with molecules like those found: as many as one likes.
start = time.perf_counter()
found = pupil.report.parameters[pupil.report.used]
like = found[rng.integers(len(found), size=sleep)]
dreams, _ = fit.simulate_spots(pupil, sleep, shape, rng, **place, photons=like[:, 3], background=like[:, 4])
model = fit.pupil3d(pupil, shape, learn=False)
training.Trainer(model, dreams, epochs=epochs, batch=128, held_out=0.01, seed=options.seed).run()
seconds["encoder"] = time.perf_counter() - start

images, true = molecules(unseen)
start = time.perf_counter()
refined = fit.locate(images, pupil)
seconds["refined"] = time.perf_counter() - start
scores = {
    "encoder": fit.score(microscope, model.predict(images), true, shape),
    "refined": fit.score(microscope, refined, true, shape),
}

options.out.mkdir(parents=True, exist_ok=True)
report = {
    "images": n,
    "seconds": seconds,
    "zernike_error": error(pupil),
    "zernike_bound": float(np.sqrt((pupil.report.errors**2).mean())),
    "residual": pupil.report.residual,
    **{stage: score.to_dict() for stage, score in scores.items()},
}
(options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
figure = Figure(figsize=(12, 4), layout="constrained")
bars, phase, errors = figure.subplots(1, 3, width_ratios=[1.6, 1, 1.2])
places = np.arange(len(pupil.modes))
bars.bar(places - 0.2, [truth.get(m, 0.0) for m in pupil.modes], 0.4, color="#adb5bd", label="truth")
bars.bar(places + 0.2, pupil.zernike, 0.4, yerr=pupil.report.errors, color="#0b7285", label="learned")
bars.set_xticks(places, [f"{a},{b}" for a, b in pupil.modes], rotation=90)
bars.set(title=f"error {error(pupil):.4f} rad", ylabel="radians")
bars.legend(frameon=False)
figure.colorbar(phase.imshow(np.where(pupil.inside, pupil.aberration(), np.nan), cmap="RdBu_r"), ax=phase, shrink=0.8)
phase.set(title="phase (rad)", xticks=[], yticks=[])
for stage, score in scores.items():
    errors.hist(score.deviation[:, 2], np.linspace(-5, 5, 61), density=True, histtype="step", label=stage, lw=1.8)
errors.set(title="error of z / CRLB, unseen molecules")
errors.legend(frameon=False)
figure.savefig(options.out / "report.png", dpi=90)

print(f"pupil: error {report['zernike_error']:.4f} rad ({len(pupil.modes)} modes; bound {report['zernike_bound']:.4f})")
print("seconds: " + ", ".join(f"{k} {v:.0f}" for k, v in seconds.items()))
for stage, score in scores.items():
    print(f"{stage}, unseen molecules\n{score}")
