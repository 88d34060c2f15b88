"""Ready models for the usual cases."""

from __future__ import annotations

from ..encoder import Conv
from ..mapper import Direct, Parameter
from ..psf import Gaussian2D
from ..renderer import PSF
from .model import FitModel


def gaussian2d(
    shape: tuple[int, int], sigma: float = 1.3, fixed_sigma: bool = False, width: int = 16, hidden: int = 128
) -> FitModel:
    """One pixel-integrated Gaussian in each image of `shape` (h, w): x, y, photons, background and sigma.

    `sigma`: the usual standard deviation in pixels, where learning starts; with `fixed_sigma` it is exact and not
    learned.  Photons and background are solved in closed form.  `width`, `hidden`: size of the encoder.

    >>> gaussian2d((11, 11)).mapper.features
    3
    """
    h, w = shape
    parameters = {"x": Parameter("tanh", (w - 1) / 2, 0.3 * w), "y": Parameter("tanh", (h - 1) / 2, 0.3 * h)}
    if not fixed_sigma:
        parameters["sigma"] = Parameter("exp", float(sigma), 0.3)
    psf = Gaussian2D(sigma if fixed_sigma else None)
    mapper = Direct(parameters, solve=psf.linear)
    return FitModel(Conv(shape, mapper.features, width=width, hidden=hidden), mapper, PSF(psf, shape))
