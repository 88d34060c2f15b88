"""A PSF from a file, whatever kind it is."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from .base import PSF
from .pupil import Pupil
from .spline import Spline


def load(path: str | os.PathLike[str]) -> PSF:
    """The PSF in `path`: what `smlmcore calibrate`, `Pupil.save` or `Spline.save` wrote, or a calibration of others.

    Raises `DataError` for any other file; formats: see `Pupil.load` and `Spline.load`.
    """
    if Path(path).suffix == ".npz" and Path(path).is_file():
        try:
            with np.load(path, allow_pickle=False) as file:
                pupil = "header" in file.files
        except (ValueError, OSError, EOFError):
            pupil = False
        if pupil:
            return Pupil.load(path)
    return Spline.load(path)
