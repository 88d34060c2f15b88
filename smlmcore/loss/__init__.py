"""Losses: how well a prediction explains the images, in nats per pixel.

>>> import numpy as np
>>> from smlmcore import loss
>>> loss.poisson_gaussian(np.full((1, 2, 2), 4.0), np.full((1, 2, 2), 4.0), variance=2.0).shape
(1, 2, 2)
"""

from .poisson_gaussian import PoissonGaussian, deviance, poisson_gaussian, slope

__all__ = ["PoissonGaussian", "deviance", "poisson_gaussian", "slope"]
