"""Point spread functions: images, their derivatives and the Cramér–Rao bound.

A new PSF is one file here (formula, reference, numba body, registration) and one in `kernels/`.
"""

from .base import PSF
from .gaussian import Gaussian2D
