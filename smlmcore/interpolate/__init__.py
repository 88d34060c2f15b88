"""Interpolation: B-splines of degree 0 to 5 and trigonometric polynomials (Fourier), both differentiable.

`prefilter` turns samples into B-spline coefficients, `sample` evaluates them anywhere; `resample`, `shift`, `zoom` and
`affine` do both.  `fourier.shift` and `fourier.zoom` do the same for images that are band-limited and periodic.
"""

from . import fourier
from .bspline import affine, prefilter, resample, sample, shift, zoom

__all__ = ["affine", "fourier", "prefilter", "resample", "sample", "shift", "zoom"]
