"""Point spread functions: images, their derivatives and the Cramér–Rao bound.

A new PSF is one file here (formula, reference, numba body, registration) and one in `kernels/`.
"""

from ..lazy import lazily

__getattr__, __dir__ = lazily(
    __name__,
    astigmatic="AstigmaticGaussian",
    base="PSF",
    elliptic="EllipticGaussian2D",
    files="load",
    gaussian="Gaussian2D",
    pupil="Pupil",
    retrieval="retrieve",
    spline="Spline",
    zernike="",
)
