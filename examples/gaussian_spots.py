"""One Gaussian spot per image: learn position, photons, background and width without labels, compare with the bound.

The demanding case of noisy cameras: 11x11 pixels, read noise of 5 electrons, photons over a factor of four.
"""

import argparse

import numpy as np

from smlmcore import fit, psf, training

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--spots", type=int, default=20_000)
parser.add_argument("--epochs", type=int, default=25)
options = parser.parse_args()

# Images with known truth: the model never sees it.
rng = np.random.default_rng(1)
n, shape, variance = options.spots, (11, 11), 5.0**2
truth = {
    "x": rng.uniform(4, 6, n),
    "y": rng.uniform(4, 6, n),
    "photons": rng.uniform(1000, 4000, n),
    "background": rng.uniform(5, 15, n),
    "sigma": rng.uniform(1.1, 1.5, n),
}
model_psf = psf.Gaussian2D()
images = rng.poisson(model_psf.render(truth, shape)) + rng.normal(0, variance**0.5, (n, *shape))

model = fit.gaussian2d(shape)
trainer = training.Trainer(model, images, variance, epochs=options.epochs)
history = trainer.run()

unseen = trainer.held_out
encoder = model.predict(images[unseen], variance)
refined = model.refine(images[unseen], variance)
true = np.stack([truth[name][unseen] for name in model_psf.names], 1)
bound = model_psf.crlb(true, shape, variance)
found = {"encoder": np.stack([encoder[name] for name in model_psf.names], 1), "refined": refined.parameters}

print(f"{len(unseen)} unseen spots after {history['seconds'][-1]:.0f} s of training; RMSE / CRLB (1 is the bound):")
print(" " * 10 + "".join(f"{name:>12}" for name in model_psf.names))
for stage, values in found.items():
    ratio = np.sqrt(np.mean(((values - true) / bound) ** 2, axis=0))
    print(f"{stage:<10}" + "".join(f"{v:12.3f}" for v in ratio))
