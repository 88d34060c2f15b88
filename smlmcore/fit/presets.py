"""Ready models for the usual cases."""

from __future__ import annotations

from ..encoder import Conv
from ..mapper import Direct, Parameter
from ..psf import Gaussian2D, Pupil
from ..renderer import PSF
from ..renderer import Pupil as LearnedPupil
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


def pupil3d(psf: Pupil, shape: tuple[int, int], learn: bool = True, width: int = 16, hidden: int = 128) -> FitModel:
    """One molecule behind a pupil in each image of `shape` (h, w): x, y, z, photons and background.

    `psf`: the optics, with aberrations where learning starts, and the `z_range` of molecules.  With `learn` its Zernike
    coefficients are learned along with the encoder, without beads or labels; start from `fit.learn_pupil`, as a flat
    pupil is a saddle.  Photons and background are solved in closed form.  `model.psf` is the PSF as learned.

    >>> optics = Pupil(1.2, 0.6, 1.33, 1.33, 0.1, zernike={(2, 2): 0.5}, samples=32)
    >>> pupil3d(optics, (11, 11)).mapper.features
    3
    """
    h, w = shape
    low, high = psf.z_range
    parameters = {
        "x": Parameter("tanh", (w - 1) / 2, 0.25 * w),
        "y": Parameter("tanh", (h - 1) / 2, 0.25 * h),
        "z": Parameter("tanh", (low + high) / 2, 0.7 * (high - low)),
    }
    mapper = Direct(parameters, solve=psf.linear)
    renderer = LearnedPupil(psf, shape) if learn else PSF(psf, shape)
    return FitModel(Conv(shape, mapper.features, width=width, hidden=hidden), mapper, renderer)
