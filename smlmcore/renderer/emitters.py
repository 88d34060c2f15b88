"""Renderer of many emitters in each image."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import numpy as np

from .. import backend
from ..autograd import ops, plain
from ..psf import PSF as Model
from .psf import PSF


class Emitters(PSF):
    """Draw many emitters into each image of `shape` (h, w) with the PSF `psf`, each only where it is.

    Two layouts of the parameters, arrays or Tensors:

    - (n, emitters) for every parameter and `background` (n,), as mappers give them: n images;
    - (emitters,) for every parameter, besides `image` (emitters,), the index of the image that each belongs to, and
      `background` (n,): n images with any number of emitters each, none included.

    Time follows the number of emitters, and memory the parameters and the images: there is no image per emitter.
    The PSF has to take `render(..., image=...)`: the Gaussian ones do, unless rotated.  Nothing is learned.

    >>> from smlmcore import psf
    >>> draw = Emitters(psf.Gaussian2D(sigma=1.3), (64, 48))
    >>> values = {"x": [10.0, 20.0, 30.0], "y": [50.0, 9.0, 8.0], "photons": 500.0, "background": [1.0, 2.0]}
    >>> images = draw({}, {**values, "image": [0, 1, 1]})
    >>> images.shape, images.sum((1, 2)).round(0).tolist()
    ((2, 64, 48), [3572.0, 7144.0])
    """

    def __init__(self, psf: Model, shape: tuple[int, int]) -> None:
        if "image" not in signature(psf.render).parameters:
            raise TypeError(
                f"renderer.Emitters got {type(psf).__name__}, whose render takes no image=...; expected a "
                "Gaussian PSF, or use renderer.PSF with the parameters (n, emitters)"
            )
        super().__init__(psf, shape)

    def __call__(self, p: Mapping[str, Any], parameters: Mapping[str, Any]) -> Any:
        """Images (n, h, w) of `parameters`."""
        values = dict(parameters)
        if "image" in values:
            return self.psf.render(values, self.shape, image=values.pop("image"))
        shapes = {k: np.shape(plain(v)) for k, v in values.items() if k != "background"}
        try:
            n, emitters = np.broadcast_shapes((1, 1), *((*s, 1) if len(s) == 1 else s for s in shapes.values()))
        except ValueError:
            raise ValueError(
                f"renderer.Emitters got shapes {shapes}; expected (n, emitters) or (n,) for each parameter, or "
                "(emitters,) and `image`, the index of each emitter's image"
            ) from None
        for name, shape in shapes.items():
            if shape:
                v = values[name] if hasattr(values[name], "reshape") else backend.asarray(values[name])
                v = v.reshape(-1, 1) if len(shape) == 1 else v
                values[name] = ops.broadcast_to(v, (n, emitters)).reshape(n * emitters)
        arrays = [plain(v) for v in values.values()]
        xp = backend.module(*arrays, name="renderer.Emitters")
        index = xp.repeat(xp.arange(n), emitters)
        if "background" in values and np.ndim(plain(values["background"])) == 0:
            dtype = next((a.dtype for a in arrays if backend.is_array(a)), np.float64)
            values["background"] = xp.ones(n, dtype) * values["background"]
        return self.psf.render(values, self.shape, image=index)
