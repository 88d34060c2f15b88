"""Renderers draw images from physical parameters; all are differentiable in every parameter.

A renderer has `shape`, that of its images, `init(rng)` for what it learns, and is called with that and with named
parameters.  `PSF` draws one or a few emitters, `Emitters` many in a large image, `Convolution` an object through a
kernel, `Template` and `Spline` something learned at any position, `Image` passes images on.
"""

from .conv import convolve
from .convolution import Convolution
from .emitters import Emitters
from .image import Image
from .psf import PSF
from .pupil import Pupil
from .spline import Spline
from .template import Template
