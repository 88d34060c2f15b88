"""One Gaussian spot somewhere in each image, in heavy camera noise: an encoder learns from 2048 images alone.

No labels: a U-Net draws a map whose centre of mass is the position, a renderer draws the spot, the likelihood compares.
Images that training never saw are held against the Cramér-Rao bound, by the encoder alone and refined.
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
parser.add_argument("--out", type=Path, default=Path("results/single_gaussian"))
options = parser.parse_args()
seen, unseen, epochs = (512, 256, 2) if options.quick else (2048, 8192, 80)

# Peaks of 500 to 2000 photons per pixel, background up to 100, a camera of 100 electrons read noise, sigma^2 = 5.
rng = np.random.default_rng(options.seed)
spot, shape, variance, sigma = psf.Gaussian2D(), (32, 32), 100.0**2, 5**0.5
ranges = {"x": (7.5, 23.5), "y": (7.5, 23.5), "background": (0, 100), "sigma": sigma}
ranges["photons"] = (500 * 2 * np.pi * sigma**2, 2000 * 2 * np.pi * sigma**2)
images, _ = fit.simulate_spots(spot, seen, shape, rng, variance, **ranges)

# Half of the pixels are negative, by noise: the encoder sees the images as they are, not their square root.
start = time.perf_counter()
place = mapper.Centroid(1, {"sigma": mapper.Parameter("exp", 2.0, 0.3)}, solve=("photons", "background"))
network = encoder.UNet(place.features, depth=2, width=8, root=False)
model = fit.FitModel(network, place, renderer.PSF(spot, shape))
training.Trainer(model, images, variance, epochs=epochs, batch=64, rate=4e-3, held_out=0.05, seed=options.seed).run()
seconds = time.perf_counter() - start

images, truth = fit.simulate_spots(spot, unseen, shape, rng, variance, **ranges)
predicted = model.predict(images, variance)
refined = model.refine(images, variance)
scores = {
    "encoder": fit.score(spot, predicted, truth, shape, variance),
    "refined": fit.score(spot, refined, truth, shape, variance),
}

options.out.mkdir(parents=True, exist_ok=True)
report = {"images": seen, "training_seconds": seconds, **{stage: score.to_dict() for stage, score in scores.items()}}
(options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
prediction = spot.render({name: values[:8] for name, values in predicted.items()}, shape)
plot.scores(scores, images[:8], prediction, variance).savefig(options.out / "report.png", dpi=80)

print(f"{seconds:.0f} s of training on {seen} images")
for stage, score in scores.items():
    print(f"{stage}, unseen images\n{score}")
