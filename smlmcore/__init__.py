"""smlmcore: single-molecule localization microscopy on NumPy and CuPy arrays, learned without labels.

An encoder extracts features from images, a mapper turns them into physical parameters, a renderer draws images from
them, and a loss that follows the camera's noise compares these with the input.  Submodules load on first use:

>>> import smlmcore
>>> smlmcore.psf.Gaussian2D(sigma=1.3).names
('x', 'y', 'photons', 'background')
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = [
    "autograd",
    "backend",
    "calibrate",
    "camera",
    "config",
    "data",
    "deconvolution",
    "denoising",
    "encoder",
    "fit",
    "interop",
    "interpolate",
    "kernel",
    "layers",
    "localize",
    "loss",
    "mapper",
    "optim",
    "profiler",
    "psf",
    "renderer",
    "simulate",
    "testing",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
