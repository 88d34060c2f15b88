"""Renderers draw images from physical parameters; all are differentiable in every parameter."""

from .emitters import Emitters
from .psf import PSF
