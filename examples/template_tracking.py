"""Tracking under shifts: one unknown object seen in 2048 images at unknown places, below a pixel and up to four.

The object and the shift of every image are learned together from the images alone; truth serves the report only.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from smlmcore import encoder, fit, mapper, psf, renderer, training

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--quick", action="store_true", help="fewer images")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", type=Path, default=Path("results/template_tracking"))
options = parser.parse_args()
count, epochs = 512 if options.quick else 2048, 60

# An object of twelve blobs, moved; Poisson noise and 5 electrons of read noise.
rng = np.random.default_rng(options.seed)
shape, read_noise, blobs = (32, 32), 5.0, 12
dx, dy = rng.uniform(-4, 4, (2, count))
x, y = rng.uniform(9, 22, (2, blobs))
photons, sigma = rng.uniform(1000, 4000, blobs), rng.uniform(1.2, 2.5, blobs)
values = {"x": x + dx[:, None], "y": y + dy[:, None], "photons": photons[None], "sigma": sigma[None]}
clean = psf.Gaussian2D().render({**values, "background": np.full(count, 10.0)}, shape)
images = rng.poisson(clean) + rng.normal(0, read_noise, clean.shape)

# Learning starts at the mean of the images, in which the object is blurred by its motion.
start = images.mean(0)
model = fit.FitModel(
    encoder.Table((count, 2)),
    mapper.Direct({name: mapper.Parameter("tanh", 0.0, 6.0) for name in ("x", "y")}),
    renderer.Template(start, shape),
)
history = training.Trainer(model, images, read_noise**2, epochs=epochs, batch=count // 8, rate=2e-2, decay=0.0).run()
found = model.predict(images, read_noise**2)
template = model.renderer.template_of({"template": model.parameters["renderer.template"]})
prediction = model.renderer({"template": model.parameters["renderer.template"]}, found)

floor = (clean + read_noise**2).mean()
errors = {name: found[name] - truth for name, truth in (("x", dx), ("y", dy))}
report = {
    "images": count,
    "training_seconds": history["seconds"][-1],
    "MSE / noise floor": float(((prediction - images) ** 2).mean() / floor),
    "MSE / noise floor of the start": float(((start - images) ** 2).mean() / floor),
    "RMSE of the prediction / peak": float(np.sqrt(((prediction - clean) ** 2).mean()) / clean.max()),
    **{f"shift {name}, RMSE (pixels)": float(e.std()) for name, e in errors.items()},  # the common offset is free
}

options.out.mkdir(parents=True, exist_ok=True)
(options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
figure = Figure(figsize=(12, 5), layout="constrained")
pictures = {"mean of the images: start": start, "learned template": template, "an image": images[0]}
pictures |= {"its prediction": prediction[0], "residual": images[0] - prediction[0]}
axes = figure.subplots(2, 3).ravel()
for ax, (title, picture) in zip(axes, pictures.items(), strict=False):
    ax.imshow(picture, cmap="gray")
    ax.set_title(title)
    ax.axis("off")
for name, e in errors.items():
    axes[5].hist(e - e.mean(), np.linspace(-0.15, 0.15, 61), histtype="step", label=f"{name}: {e.std():.3f} RMS")
axes[5].set_xlabel("error of the shift (pixels)")
axes[5].legend()
figure.savefig(options.out / "report.png", dpi=90)

for name, value in report.items():
    print(f"{name:<32} {value:.4g}")
