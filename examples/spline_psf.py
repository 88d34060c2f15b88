"""A PSF nobody has a formula for: a B-spline in two and three dimensions, learned from images at unknown positions.

2-D: the sum of an oblique ellipse and a halo.  3-D: astigmatic beads at stage positions that are 20 nm off.  Spline,
positions, photons and background are learned together, the last two in closed form.  R2 is that of the prediction
against the clean images, the floor the variance of the noise.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from smlmcore import encoder, fit, mapper, psf, renderer, training

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--quick", action="store_true", help="fewer images and epochs")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", type=Path, default=Path("results/spline_psf"))
options = parser.parse_args()
count, epochs = (256, 30) if options.quick else (1024, 240)
shape = (15, 15)
rng = np.random.default_rng(options.seed)
place = {k: rng.uniform(6.2, 7.8, count) for k in ("x", "y")}
light = {"photons": rng.uniform(3000, 6000, count), "background": rng.uniform(5, 15, count)}


def oblique():
    """Images (n, h, w) of the ellipse and halo."""
    core = {**place, "photons": 0.7 * light["photons"], "sigma_x": 1.8, "sigma_y": 1.0, "angle": 0.6, "background": 0.0}
    halo = {**place, "photons": 0.3 * light["photons"], "sigma": 2.5, "background": light["background"]}
    return psf.EllipticGaussian2D(rotated=True).render(core, shape) + psf.Gaussian2D().render(halo, shape)


def learn(images, draw, z=None):
    """The model after training on `images`, the images that it predicts, and the seconds."""
    columns = {"x": mapper.Parameter("linear"), "y": mapper.Parameter("linear")}
    table = np.full((count, 2), 7.0)
    if z is not None:
        columns["z"] = mapper.Parameter("linear", 0.0, 0.1)  # in units of 100 nm: one rate for all columns
        table = np.concatenate([table, z[:, None] / 0.1], 1)
    model = fit.FitModel(
        encoder.Table(table.shape, initial=table), mapper.Direct(columns, solve=("photons", "background")), draw
    ).init(rng)
    history = training.Trainer(model, images, epochs=epochs, batch=count // 8, rate=3e-2, decay=0.0).run()
    return model, model(model.parameters, images.astype(np.float32))[1], history["seconds"][-1]


z = rng.uniform(-0.5, 0.5, count)
stage = z + rng.normal(0, 0.02, count)
astigmatic = psf.AstigmaticGaussian(sigma0=1.3, gamma=0.15, depth=0.5, z_range=(-0.8, 0.8))
flat, deep = renderer.Spline((17, 17), shape), renderer.Spline((13, 19, 19), shape, z_step=0.1)
report, pictures = {}, {}
for dimensions, clean, given in (
    (2, oblique(), (flat,)),
    (3, astigmatic.render({**place, "z": z, **light}, shape), (deep, stage)),
):
    for noisy in (False, True):
        images = rng.poisson(clean) if noisy else clean
        model, prediction, seconds = learn(images, *given)
        kind = f"{dimensions}-D, {'noisy' if noisy else 'noiseless'}"
        report[kind] = {
            "R2": float(1 - ((prediction - clean) ** 2).mean() / clean.var()),
            "training_seconds": seconds,
        }
        if noisy:
            report[kind]["loss / noise floor"] = float((((images - prediction) ** 2) / clean).mean())
        learned = model.renderer.render({"coefficients": model.parameters["renderer.coefficients"]}, 4)
        pictures[kind] = (images[0], prediction[0], learned)

options.out.mkdir(parents=True, exist_ok=True)
(options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
figure = Figure(figsize=(13, 12), layout="constrained")
for row, (kind, (image, prediction, learned)) in zip(figure.subplots(4, 5), pictures.items(), strict=True):
    planes = [learned] if learned.ndim == 2 else [learned[i] for i in (9, 26, 42)]
    titles = ["the learned PSF, x4"] if learned.ndim == 2 else [f"PSF at z = {z:+.1f} um" for z in (-0.4, 0.0, 0.4)]
    for ax, picture, title in zip(row, [image, prediction, *planes], [kind, "prediction", *titles], strict=False):
        ax.imshow(picture, cmap="inferno")
        ax.set_title(title)
    for ax in row:
        ax.axis("off")
figure.savefig(options.out / "report.png", dpi=80)

for kind, numbers in report.items():
    print(f"{kind:<16}" + "  ".join(f"{name} {value:.6g}" for name, value in numbers.items()))
