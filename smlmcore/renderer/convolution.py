"""Renderer that blurs an object, 2-D or 3-D, with a known or a learned kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import backend
from ..autograd import ops, plain
from ..pictures import sections
from .conv import MODES, convolve, is_small, separate

SMALLEST = 1e-6  # of a learned kernel's starting value, in units of its mean: from 0 itself nothing grows


class Convolution:
    """Images = object * kernel + background, for objects `shape` (y, x) or (z, y, x) in the parameter "image".

    `kernel`: non-negative, of any size, its centre at element size // 2; divided by its sum, so that photons are kept.
    With `learned` it is where learning starts, and stays non-negative with unit sum by construction:
    kernel = softmax(logits).  `mode`: "same" (0 outside), "periodic" or "valid", as `renderer.convolve` has them;
    `stride`: every so many pixels of the result, one number or one for each axis; `background`: where a learned uniform
    background starts, photons per pixel, > 0.  A parameter "background" (n,) is added as well.

    A kernel that is a product of one-dimensional ones is applied one axis after the other; a small one directly; others
    by FFT.

    >>> draw = Convolution(np.ones((3, 3)), (8, 9))
    >>> draw({}, {"image": np.ones((2, 8, 9)), "background": np.array([1.0, 2.0])})[:, 4, 4].round(6)
    array([2., 3.])
    """

    def __init__(
        self,
        kernel: Any,
        shape: Sequence[int],
        mode: str = "same",
        learned: bool = False,
        stride: int | Sequence[int] = 1,
        background: float | None = None,
    ) -> None:
        kernel = backend.to_cpu(backend.asarray(kernel))
        total = kernel.sum(dtype=float)
        if not (kernel.ndim in (2, 3) and np.isfinite(total) and total > 0 and (kernel >= 0).all()):
            raise ValueError(
                f"renderer.Convolution got a kernel of shape {kernel.shape} with values from {kernel.min(initial=0)} "
                f"to {kernel.max(initial=0)} and sum {total}; expected 2 or 3 axes, finite values >= 0 and a sum > 0: "
                "subtract the background, clip at 0, or use renderer.convolve, which takes any kernel"
            )
        self.object = tuple(int(s) for s in shape)
        strides = (stride,) * kernel.ndim if isinstance(stride, int) else tuple(int(s) for s in stride)
        if len(self.object) != kernel.ndim or len(strides) != kernel.ndim or min(strides) < 1 or mode not in MODES:
            raise ValueError(
                f"renderer.Convolution got shape {shape}, stride {stride} and mode {mode!r} with a kernel of shape "
                f"{kernel.shape}; expected as many axes in each, strides >= 1 and a mode of {', '.join(MODES)}"
            )
        if background is not None and not background > 0:
            raise ValueError(
                f"renderer.Convolution got background={background}; expected photons per pixel > 0 or None"
            )
        out = [n - k + 1 if mode == "valid" else n for n, k in zip(self.object, kernel.shape, strict=True)]
        if min(out) < 1:
            raise ValueError(
                f"renderer.Convolution got a kernel of shape {kernel.shape} for an object of {self.object} in mode "
                "'valid': nothing is left; choose a larger object, or mode 'same' or 'periodic'"
            )
        self.kernel, self.mode, self.learned, self.stride = kernel / total, mode, bool(learned), strides
        self.background = background
        self.shape = tuple(-(-n // s) for n, s in zip(out, strides, strict=True))
        self.parts = None if learned or is_small(self.object, kernel.shape) else separate(self.kernel)

    def configuration(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-ready."""
        return {
            "kernel": self.kernel.tolist(),
            "shape": list(self.object),
            "mode": self.mode,
            "learned": self.learned,
            "stride": list(self.stride),
            "background": self.background,
        }

    def init(self, rng: np.random.Generator) -> dict[str, Any]:
        """The learned parameters at the start: `logits` of the kernel, and the logarithm of the background."""
        p = {}
        if self.learned:
            least = SMALLEST * self.kernel.mean()
            p["logits"] = np.log(np.maximum(self.kernel, least)).astype(np.float32)
        if self.background is not None:
            p["log_background"] = np.array([np.log(self.background)], np.float32)
        return p

    def kernel_of(self, p: Mapping[str, Any]) -> Any:
        """The kernel, non-negative with unit sum, for the learned parameters `p` of this part."""
        if not self.learned:
            return self.kernel
        weights = ops.exp(p["logits"] - plain(p["logits"]).max())
        return weights / weights.sum()

    def pictures(self, p: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The kernel."""
        return sections("kernel", self.kernel_of(p))

    def __call__(self, p: Mapping[str, Any], parameters: Mapping[str, Any]) -> Any:
        """Images (n, *shape) of parameters["image"] (n, *object), and "background" (n,) if given."""
        image = parameters["image"]
        if not hasattr(image, "shape") or image.shape[1:] != self.object:
            raise ValueError(
                f"renderer.Convolution got an image of shape {np.shape(image)}; expected (n, "
                f"{', '.join(map(str, self.object))}), the object that it was made for"
            )
        xp = backend.module(plain(image))
        kernels = [self.kernel_of(p)] if self.learned else self.parts or [self.kernel]
        for kernel in kernels:
            image = convolve(image, kernel if self.learned else xp.asarray(kernel, image.dtype), self.mode)
        image = image[(slice(None), *(slice(None, None, s) for s in self.stride))]
        if "background" in parameters:
            image = image + _per_image(parameters["background"], image.ndim)
        return image if self.background is None else image + ops.exp(p["log_background"])


def _per_image(values: Any, ndim: int) -> Any:
    """(n,) as (n, 1, ...); a number as it is."""
    return values.reshape(-1, *(1,) * (ndim - 1)) if getattr(values, "ndim", 0) == 1 else values
