"""Molecules in depth behind a cylindrical lens: an encoder learns x, y and z from images alone.

The astigmatic PSF is known (`smlmcore calibrate` finds it from beads), the molecules are not: no labels.  Images that
training never saw are compared with the Cramér-Rao bound, by the encoder alone and refined.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from smlmcore import encoder, fit, mapper, plot, psf, renderer, training

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--quick", action="store_true", help="fewer images and a short training")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", type=Path, default=Path("results/astigmatic"))
options = parser.parse_args()
seen, unseen, epochs = (1024, 256, 2) if options.quick else (20_000, 8192, 40)

# z over 1.2 um; x is in focus at +0.2 um, y at -0.2 um.  Photons over a factor of four.
rng = np.random.default_rng(options.seed)
shape = (19, 19)
spot = psf.AstigmaticGaussian(sigma0=1.3, gamma=0.2, depth=0.4, z_range=(-0.7, 0.7))
ranges = {"x": (8, 10), "y": (8, 10), "z": (-0.6, 0.6), "photons": (1000, 4000), "background": (5, 15)}
images, _ = fit.simulate_spots(spot, seen, shape, rng, **ranges)

# The encoder gives three numbers, photons and background follow from them in closed form.
start = time.perf_counter()
place = {
    "x": mapper.Parameter("tanh", 9.0, 4.0),
    "y": mapper.Parameter("tanh", 9.0, 4.0),
    "z": mapper.Parameter("tanh", 0.0, 1.0),
}
model = fit.FitModel(
    encoder.Conv(shape, outputs=3),
    mapper.Direct(place, solve=("photons", "background")),
    renderer.PSF(spot, shape),
)
training.Trainer(model, images, epochs=epochs, held_out=0.05, seed=options.seed).run()
seconds = time.perf_counter() - start

images, truth = fit.simulate_spots(spot, unseen, shape, rng, **ranges)
predicted = model.predict(images)
first = np.stack([predicted[name] for name in spot.names], 1)
scores = {
    "encoder": fit.score(spot, predicted, truth, shape),
    "refined": fit.score(spot, fit.mle(images, spot, initial=first), truth, shape),
}

options.out.mkdir(parents=True, exist_ok=True)
report = {"images": seen, "training_seconds": seconds, **{stage: score.to_dict() for stage, score in scores.items()}}
(options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
prediction = spot.render({name: values[:8] for name, values in predicted.items()}, shape)
plot.scores(scores, images[:8], prediction).savefig(options.out / "report.png", dpi=80)

print(f"{seconds:.0f} s of training on {seen} images")
for stage, score in scores.items():
    print(f"{stage}, unseen images\n{score}")
