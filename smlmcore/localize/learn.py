"""Teach a network to find emitters, by frames that are drawn for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import layers, optim
from ..autograd import Tensor
from ..loss import Mixture
from .network import inputs
from .prior import Prior

CROP = 40  # pixels
BATCH = 16


def learn(net, parameters, prior: Prior, steps: int, rate: float = 2e-3, seed: int = 0, after: Callable | None = None, first: int = 0, state=None):
    optimiser = optim.chain(optim.clip_global_norm(0.5), optim.adamw(optim.cosine(rate, steps, min(100, steps // 10)), 1e-3))
    state = optimiser.init(parameters) if state is None else state
    loss = Mixture()
    layers.keep_freed()
    for step in range(first, steps):
        lesson = prior.draw(np.random.default_rng((seed, step)), BATCH, (CROP, CROP))
        tensors = {k: Tensor(v) for k, v in parameters.items()}
        x = inputs(lesson.frames, lesson.background, lesson.variance, lesson.sigma)
        nats = loss(net.network(tensors, x), lesson.emitters, lesson.image).mean()
        nats.backward()
        updates, state = optimiser.update({k: t.grad for k, t in tensors.items()}, state, parameters)
        parameters = optim.apply(parameters, updates)
        if after is not None:
            after(step, float(nats.data), parameters, state)
    return parameters
