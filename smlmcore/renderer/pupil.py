"""Renderer whose pupil is learned together with the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..pictures import Picture
from ..psf import Pupil as Model


class Pupil:
    """Draw images of `shape` (h, w) with the PSF `psf`, whose Zernike coefficients are learned, shared by all images.

    Learning starts at `psf`'s own coefficients and modes; with `pixels` a phase for each sample is learned besides.
    Both are kept in units of `unit` radians: Adam moves all parameters by about the same step, and a pupil has further
    to go than a weight.  A flat pupil is a saddle; `fit.learn_pupil` finds where to start.

    >>> from smlmcore import psf
    >>> optics = psf.Pupil(1.2, 0.6, 1.33, 1.33, 0.1, zernike={(2, 2): 0.5}, samples=32)
    >>> draw = Pupil(optics, (9, 9))
    >>> p = draw.init(np.random.default_rng(0))
    >>> p["zernike"].tolist()
    [0.10000000149011612]
    >>> draw(p, {"x": [4.0], "y": [4.0], "z": [0.1], "photons": [100.0], "background": [1.0]}).shape
    (1, 9, 9)
    """

    def __init__(self, psf: Model, shape: tuple[int, int], pixels: bool = False, unit: float = 5.0) -> None:
        if not unit > 0:
            raise ValueError(f"renderer.Pupil got unit={unit}; expected radians, > 0")
        self.psf, self.shape, self.pixels, self.unit = psf, (int(shape[0]), int(shape[1])), bool(pixels), float(unit)

    def configuration(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"psf": self.psf, "shape": self.shape, "pixels": self.pixels, "unit": self.unit}

    def init(self, rng: np.random.Generator) -> dict[str, Any]:
        """The learned parameters at the start: `zernike` (k,) and, with `pixels`, `phase` (m, m)."""
        p = {"zernike": (np.asarray(self.psf.zernike) / self.unit).astype(np.float32)}
        if self.pixels:
            m = self.psf.samples
            phase = np.zeros((m, m)) if self.psf.phase is None else np.asarray(self.psf.phase)
            p["phase"] = (phase / self.unit).astype(np.float32)
        return p

    def model(self, p: Mapping[str, Any]) -> Model:
        """The PSF as learned: `p` holds arrays or Tensors."""
        return self.psf.replace(**{name: value * self.unit for name, value in p.items()})

    def pictures(self, p: Mapping[str, Any]) -> dict[str, Picture]:
        """Those of the PSF as learned."""
        return self.model(p).pictures()

    def __call__(self, p: Mapping[str, Any], parameters: Mapping[str, Any]) -> Any:
        """Images (n, h, w) of `parameters`, arrays or Tensors; differentiable in the pupil as well."""
        return self.model(p).render(parameters, self.shape)
