"""Renderers draw images from physical parameters; all are differentiable in every parameter."""

from .psf import PSF
from .pupil import Pupil
