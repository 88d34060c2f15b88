"""Teach a network to find emitters by frames that are drawn for it: no label from outside, no real image.

    python -m smlmcore.localize.learn OUT.npz

makes the weights that come with the package (`general`), in some ten minutes on two cores.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import layers, optim
from ..autograd import Tensor
from ..loss import Mixture
from ..mapper.mixture import PHOTONS
from ..psf import Gaussian2D
from ..psf.base import PSF
from .network import Network, inputs
from .prior import Prior
from .shape import isolated_shapes, lone_spots, psf_of, ranges_of, usual_of, width_in

CROP = 40  # pixels
BATCH = 16
WARMUP = 100  # steps
LESSONS = 3000  # of a network for one movie, which starts from that of the package
UNEVEN = 0.06  # scatter of widths in the lessons, relative, at least
HAZE = 0.25  # emitters far out of focus in the lessons, at most, for each that is found
STEPS = 20_000  # of the network that comes with the package


def learn(
    network: Network,
    steps: int,
    rate: float = 2e-3,
    seed: int = 0,
    progress: bool = True,
    after: Callable[[int, float], None] | None = None,
) -> Network:
    """`network` after `steps` steps of BATCH frames drawn from its prior; the one given stays as it was.

    AdamW with warm-up and cosine decay to zero, gradients clipped at norm 1/2.  Same seed, same weights.  `after(step,
    loss)` is called after each step.  Raises `FloatingPointError` if the loss is not finite.

    >>> network = learn(Network(Prior(), width=8, last=8), steps=2, progress=False)
    >>> sorted(network.parameters)[0]
    'down.0.0.bias'
    """
    schedule = optim.cosine(rate, steps, min(WARMUP, steps // 10))
    optimiser = optim.chain(optim.clip_global_norm(0.5), optim.adamw(schedule, 1e-3))
    parameters, loss = network.parameters, Mixture()
    state = optimiser.init(parameters)
    layers.keep_freed()
    for step in tqdm(range(steps), desc="learning", unit="step", disable=None if progress else True):
        lesson = network.prior.draw(np.random.default_rng((seed, step)), BATCH, (CROP, CROP))
        x = inputs(lesson.frames, lesson.background, lesson.variance, lesson.sigma)
        tensors = {name: Tensor(value) for name, value in parameters.items()}
        nats = loss(network.encoder.network(tensors, x), lesson.emitters, lesson.image).mean()
        if not np.isfinite(nats.data):
            raise FloatingPointError(f"learn got a loss of {nats.data} in step {step}; try a rate below {rate}")
        nats.backward()
        updates, state = optimiser.update({k: t.grad for k, t in tensors.items()}, state, parameters)
        parameters = optim.apply(parameters, updates)
        if after is not None:
            after(step, float(nats.data))
    return Network(network.prior, parameters, network.width, network.last)


def prior_of(
    frames: np.ndarray, variance: Any = 0.0, sigma: float = 1.3, psf: PSF | None = None, threshold: float | None = None
) -> Prior:
    """What `frames` (n, h, w) of a movie suggest: its PSF if none is given, and ranges a little wider than what it has.

    `variance`: of the read noise, a number or (h, w); `sigma`: about the width of the PSF; `threshold`: see `find`.

    >>> from smlmcore.psf import EllipticGaussian2D
    >>> from smlmcore.simulate.movie import light
    >>> rng, frame = np.random.default_rng(0), np.repeat(np.arange(20), 6)
    >>> values = {"x": rng.uniform(0, 63, 120), "y": rng.uniform(0, 63, 120), "photons": np.full(120, 2000.0)}
    >>> mean = EllipticGaussian2D(fixed=(2.0, 1.2, 0.3))
    >>> prior = prior_of(rng.poisson(light(mean, values, frame, (20, 64, 64)) + 10))
    >>> type(prior.psf).__name__, prior.photons[0] < 2000 < prior.photons[1]
    ('EllipticGaussian2D', True)
    """
    spots, noise, peaks, behind = lone_spots(frames, variance, sigma, threshold, widths=4.0)
    uneven = usual_of(frames, variance, None, sigma, threshold).uneven
    psf = psf_of(spots, noise) if psf is None else psf
    shape, photons = {}, np.empty(0)
    if len(spots):
        photons = isolated_shapes(spots, psf, noise)[0][:, psf.names.index("photons")]
        if not isinstance(psf, Gaussian2D):
            shape, sigma = ranges_of(spots, psf, noise), width_in(spots, noise)
    median = float(np.median(photons)) if len(photons) else PHOTONS
    low, high = np.quantile(np.log(photons), (0.16, 0.84)) if len(photons) > 9 else (0.0, 0.8)
    spread = float(np.clip((high - low) / 2, 0.1, 1.5))
    least, most = np.quantile(behind, (0.02, 0.98)) if behind.size else (1.0, 10.0)
    density, read = len(peaks) / max(np.size(frames), 1), float(np.sqrt(np.median(variance)))
    return Prior(
        photons=(median / 1.3, median * 1.3),
        spread=(spread / 2, spread * 1.2),
        background=(max(0.7 * float(least), 0.05), max(1.4 * float(most), 0.1)),
        sigma=(0.93 * sigma, 1.07 * sigma),
        density=(0.0005, max(2 * density, 0.002)),
        read_noise=(read, read + 1e-6) if read else (0.0, 0.5),
        uneven=max(UNEVEN, 1.5 * uneven / sigma),
        psf=psf,
        shape=shape,
        haze=(0.0, HAZE * density),
    )


def main(path: str) -> None:
    """Make the weights of the network that comes with the package."""
    learn(Network(Prior()), STEPS).save(Path(path))


if __name__ == "__main__":
    main(sys.argv[1])
