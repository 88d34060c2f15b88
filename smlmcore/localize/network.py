"""A network that sees all emitters of a frame at once, however crowded."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..encoder import UNet
from ..mapper.mixture import CHANNELS, peaks

INPUTS = 4


def inputs(frames: np.ndarray, background: Any, variance: Any, sigma: Any) -> np.ndarray:
    """What the network sees (n, h, w, 4): the signal on two scales, its noise, and the width of the PSF.

    With r = sqrt(counts + variance + 3/8), whose noise is 1/2 everywhere, and r0 the same of the background:
    (r - r0) / 3, log(1 + max(r - r0, 0)), log(r0) - 1, 3 log(sigma) - 1.
    """
    frames = np.asarray(frames, np.float32)
    out = np.empty((*frames.shape, INPUTS), np.float32)
    quiet = np.sqrt(np.maximum(background, 0) + variance + np.float32(0.375))
    signal = np.sqrt(np.maximum(frames + variance, 0) + np.float32(0.375)) - quiet
    out[..., 0] = signal / 3
    np.log1p(np.maximum(signal, 0), out=out[..., 1])
    out[..., 2] = np.log(quiet) - 1
    out[..., 3] = (3 * np.log(sigma) - 1).reshape(-1, 1, 1) if np.ndim(sigma) else 3 * np.log(sigma) - 1
    return out


def unet(width: int = 16, last: int = 16) -> UNet:
    return UNet(CHANNELS, inputs=INPUTS, depth=2, width=width, last=last, root=False, centre=0.0, spread=1.0)
