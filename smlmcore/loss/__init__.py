"""Losses: how well a prediction explains the images, in photoelectrons, pixel by pixel.

| loss | what |
|---|---|
| `PoissonGaussian(exact)` | the exact marginal of photons and read noise, or the shifted Poisson form (Huang 2013) |
| `EMCCD` | with the excess noise of an EM register |
| `GaussianNLL(poisson)` | Gaussian with variance μ + v, or constant v |
| `PoissonWeighted`, `L2`, `MSE` | squared residuals |
| `Counts` | any likelihood on raw counts, with trainable gain and offset |
| `SelfLimiting` | any loss, with a limit beyond which only noise is learned |

All take `loss(prediction, data, variance)` with a read-noise variance for all or each pixel; NaN data mask a pixel.

>>> import numpy as np
>>> from smlmcore import loss
>>> loss.poisson_gaussian(np.full((1, 2, 2), 4.0), np.full((1, 2, 2), 4.0), variance=2.0).shape
(1, 2, 2)
"""

from ..lazy import lazily
from .poisson_gaussian import PoissonGaussian, deviance, poisson_gaussian, slope

__getattr__, __dir__ = lazily(
    __name__,
    counts="Counts Floor noise_floor",
    emccd="EMCCD",
    limit="SelfLimiting",
    mixture="Mixture",
    pixel="L2 MSE GaussianNLL PoissonWeighted",
)
__all__ = [
    "EMCCD",
    "L2",
    "MSE",
    "Counts",
    "Floor",
    "GaussianNLL",
    "Mixture",
    "PoissonGaussian",
    "PoissonWeighted",
    "SelfLimiting",
    "deviance",
    "noise_floor",
    "poisson_gaussian",
    "slope",
]
