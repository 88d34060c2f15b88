"""Point spread functions: images, their derivatives and the Cramér–Rao bound.

A new PSF is one file here (formula, reference, numba body, registration) and one in `kernels/`.
"""

from . import zernike
from .astigmatic import AstigmaticGaussian
from .base import PSF
from .elliptic import EllipticGaussian2D
from .files import load
from .gaussian import Gaussian2D
from .pupil import Pupil
from .retrieval import retrieve
from .spline import Spline
