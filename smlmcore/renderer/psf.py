"""Renderer that draws emitters with a PSF."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..pictures import Picture
from ..psf import PSF as Model


class PSF:
    """Draw images of `shape` (h, w) from a mapping of physical parameters with the PSF `psf`; nothing is learned.

    >>> from smlmcore import psf
    >>> draw = PSF(psf.Gaussian2D(sigma=1.0), (7, 7))
    >>> draw({}, {"x": [3.0], "y": [3.0], "photons": [100.0], "background": [1.0]}).shape
    (1, 7, 7)
    """

    def __init__(self, psf: Model, shape: tuple[int, int]) -> None:
        self.psf, self.shape = psf, (int(shape[0]), int(shape[1]))

    @property
    def symmetric(self) -> bool:
        """Whether flipped images are images of flipped parameters."""
        return self.psf.symmetric

    def configuration(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"psf": self.psf, "shape": self.shape}

    def init(self, rng: np.random.Generator) -> dict[str, Any]:
        """The learned parameters at the start: none."""
        return {}

    def model(self, p: Mapping[str, Any]) -> Model:
        """The PSF that draws: always the same."""
        return self.psf

    def pictures(self, p: Mapping[str, Any]) -> dict[str, Picture]:
        """Those of the PSF, if it has any."""
        return self.psf.pictures() if hasattr(self.psf, "pictures") else {}

    def __call__(self, p: Mapping[str, Any], parameters: Mapping[str, Any]) -> Any:
        """Images (n, h, w) of `parameters`, arrays or Tensors."""
        return self.psf.render(parameters, self.shape)
