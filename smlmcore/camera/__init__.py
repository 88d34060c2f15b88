"""Cameras: photons to counts and back, noise sampling, calibration from dark and bright stacks, guesses from a movie.

>>> import numpy as np
>>> from smlmcore.camera import Camera
>>> scmos = Camera(offset=np.full((2, 3), 100.0), gain=0.47, read_noise=np.full((2, 3), 1.4), bits=12)
>>> scmos.expose(np.full((2, 3), 20.0), np.random.default_rng(0)).shape
(2, 3)
"""

from .. import numba_cache  # makes the cache safe
from .calibrate import Calibration, calibrate
from .guess import Guess, guess
from .model import Camera

__all__ = ["Calibration", "Camera", "Guess", "calibrate", "guess"]
