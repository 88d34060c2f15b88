"""Teach a network to find emitters by frames that are drawn for it: no label from outside, no real image.

    python -m smlmcore.localize.learn OUT.npz

makes the weights that come with the package (`general`), in some ten minutes on two cores.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .. import layers, optim
from ..autograd import Tensor
from ..loss import Mixture
from ..mapper.mixture import PHOTONS
from .network import Network, inputs
from .prior import Prior

CROP = 40  # pixels
BATCH = 16
WARMUP = 100  # steps
LESSONS = 3000  # of a network for one movie, which starts from that of the package
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


def prior_of(table: np.ndarray, background: np.ndarray, sigma: float, density: float, read_noise: float) -> Prior:
    """What a quick pass over some frames of a movie suggests: ranges that are somewhat wider than what it found.

    `table`: the emitters found, with photons; `background`: photons per pixel; `density`: emitters per pixel.

    >>> few = np.array([(1800.0,), (2200.0,)], [("photons", float)])
    >>> prior_of(few, np.full((1, 9, 9), 10.0), 1.3, 0.004, 0.0).density
    (0.0005, 0.008)
    """
    median = float(np.median(table["photons"])) if len(table) else PHOTONS
    low, high = np.quantile(np.log(np.maximum(table["photons"], 1)), (0.16, 0.84)) if len(table) > 9 else (0.0, 0.8)
    spread = float(np.clip((high - low) / 2, 0.1, 1.5))
    least, most = np.quantile(background, (0.02, 0.98)) if background.size else (1.0, 10.0)
    return Prior(
        photons=(median / 1.3, median * 1.3),
        spread=(spread / 2, spread * 1.2),
        background=(max(0.7 * float(least), 0.05), max(1.4 * float(most), 0.1)),
        sigma=(0.93 * sigma, 1.07 * sigma),
        density=(0.0005, max(2 * density, 0.002)),
        read_noise=(read_noise, read_noise + 1e-6) if read_noise else (0.0, 0.5),
    )


def main(path: str) -> None:
    """Make the weights of the network that comes with the package."""
    learn(Network(Prior()), STEPS).save(Path(path))


if __name__ == "__main__":
    main(sys.argv[1])
