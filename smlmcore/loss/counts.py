"""Losses of raw counts: gain and offset are trained with the model, or only known to be what they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from ..autograd import ops
from ..backend import Array
from ..camera import Camera
from .poisson_gaussian import PoissonGaussian

SHIFTED = PoissonGaussian(exact=False)


@dataclass(frozen=True)
class Counts:
    """Likelihood of counts c, with trainable gain g (electrons per count) and offset o:

        nll(c) = loss(μ, d, v) − log g,        d = (c − o) g,  v = (read_noise g)²

    −log g is the Jacobian of counts → photoelectrons: without it the likelihood grows without bound as g falls.
    `loss` is a likelihood that is differentiable in data and variance (`PoissonGaussian`, `GaussianNLL`);
    `read_noise` is in counts, which dark frames tell whatever the gain.  Parameters: `log_gain` and `offset`, numbers
    or maps (h, w).

    >>> part = Counts(PoissonGaussian(exact=False), read_noise=3.0)
    >>> p = part.init(gain=0.5, offset=100.0)
    >>> part(p, np.full((1, 2), 20.0), np.array([[140, 138]], np.uint16)).shape
    (1, 2)
    """

    loss: Any = SHIFTED
    read_noise: float = 0.0

    def init(self, gain: Any = 1.0, offset: Any = 0.0) -> dict[str, np.ndarray]:
        """The parameters at the start."""
        if not np.all(np.asarray(gain) > 0):
            raise ValueError(f"Counts.init got gain {gain!r}; expected electrons per count, above 0")
        return {"log_gain": np.log(np.asarray(gain, np.float64)), "offset": np.asarray(offset, np.float64)}

    def __call__(self, p: Mapping[str, Any], prediction: Any, counts: Array) -> Any:
        """Negative log-likelihood of every pixel, differentiable in the prediction, `log_gain` and `offset`."""
        counts = backend.asarray(counts, np.float64)
        gain = ops.exp(p["log_gain"]) + 0 * counts  # of the shape of the counts
        return self.loss(prediction, (counts - p["offset"]) * gain, ops.square(gain * self.read_noise)) - ops.log(gain)


class Floor(NamedTuple):
    """Mean loss at the truth in units of the loss per pixel, and its standard error."""

    value: float
    error: float


def noise_floor(truth: Any, camera: Camera, loss: Any | None = None, draws: int = 16, seed: int = 0) -> Floor:
    """The mean `loss` per pixel that the true image itself has: no model can be better but by learning the noise.

    `truth` (..., h, w) expected photons per pixel; `draws` exposures of it by `camera` are compared with it in
    photoelectrons.  `loss` defaults to the shifted Poisson likelihood, `EMCCD` for a camera with a register.
    The standard error is that of the draws.

    >>> floor = noise_floor(np.full((64, 64), 100.0), Camera(100, 0.5, 2.0))
    >>> bool(abs(floor.value - 0.5 * np.log(2 * np.pi * np.e * 104)) < 5 * floor.error + 0.002)  # a normal density's
    True
    """
    from .emccd import EMCCD

    if loss is None:
        loss = PoissonGaussian(exact=False) if camera.em_gain is None else EMCCD()
    if draws < 2:
        raise ValueError(f"noise_floor got {draws} draws; expected at least 2")
    truth = np.asarray(truth, np.float64)
    rng = np.random.default_rng(seed)
    electrons = np.asarray(camera.qe) * truth + camera.spurious_charge
    means = [
        float(np.mean(loss(electrons, camera.photoelectrons(camera.expose(truth, rng, np.float32)), camera.variance)))
        for _ in range(draws)
    ]
    return Floor(float(np.mean(means)), float(np.std(means, ddof=1) / draws**0.5))
