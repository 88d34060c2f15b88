"""Discrete Fourier transforms; complex64 and float32 stay in single precision (scipy.fft, cupyx.scipy.fft).

The transform is linear, y = F x, so its gradient is Fᴴ g: the inverse transform with the opposite normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...backend import Array, module, scipy_module
from ..op import op

_opposite = {None: "forward", "backward": "forward", "ortho": "ortho", "forward": "backward"}


@op
def fftn(x: Array, axes: Sequence[int] | None = None, norm: str | None = None) -> Array:
    """Σ x(j) exp(-2πi Σ k j / n) over `axes` (default all); `norm` "backward" (1), "ortho" (1/√n) or "forward" (1/n).

    >>> import numpy as np
    >>> fftn(np.ones(2, np.float32))
    array([2.-0.j, 0.-0.j], dtype=complex64)
    """
    fft: Any = scipy_module(module(x), "fft")
    return fft.fftn(x, axes=axes, norm=norm), (fft, axes, norm)


@fftn.vjp
def _(saved: tuple, g: Array) -> tuple:
    fft, axes, norm = saved
    return (fft.ifftn(g, axes=axes, norm=_opposite[norm]),)


@op
def ifftn(x: Array, axes: Sequence[int] | None = None, norm: str | None = None) -> Array:
    """The inverse of `fftn` with the same `axes` and `norm`.

    >>> import numpy as np
    >>> ifftn(fftn(np.arange(3.0))).real.round(12)
    array([0., 1., 2.])
    """
    fft: Any = scipy_module(module(x), "fft")
    return fft.ifftn(x, axes=axes, norm=norm), (fft, axes, norm)


@ifftn.vjp
def _(saved: tuple, g: Array) -> tuple:
    fft, axes, norm = saved
    return (fft.fftn(g, axes=axes, norm=_opposite[norm]),)
