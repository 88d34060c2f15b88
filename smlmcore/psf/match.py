"""Where emitters are in z, y and x, roughly: images compared with those of a pupil at many z and all whole shifts."""

from __future__ import annotations

import numpy as np
import scipy

from . import moments
from .pupil import Pupil


def scores(templates: np.ndarray, images: np.ndarray, reach: int) -> np.ndarray:
    """How well `images` (n, h, w) agree with `templates` (k, h, w), moved by up to `reach` pixels each way.

    The part of an image's sum of squares that photons times template plus background explain, (n, k, 2 reach + 1,
    2 reach + 1) over the shifts in y and x.
    """
    h, w = images.shape[1:]
    size = tuple(scipy.fft.next_fast_len(s + reach, real=True) for s in (h, w))
    t = templates - templates.mean((1, 2), keepdims=True)
    d = images - images.mean((1, 2), keepdims=True)
    both = scipy.fft.rfft2(d, size)[:, None] * scipy.fft.rfft2(t, size).conj()
    agree = scipy.fft.irfft2(both, size)
    shifts = np.arange(-reach, reach + 1)
    agree = agree[:, :, shifts[:, None], shifts]
    return np.maximum(agree, 0) ** 2 / (t**2).sum((1, 2))[None, :, None, None]


def place(psf: Pupil, images: np.ndarray, z: np.ndarray, reach: int = 3) -> np.ndarray:
    """x, y, z, photons and background (n, 5) of `images` (n, h, w): the best of `z` (k,) and of all whole shifts.

    >>> psf = Pupil(1.2, 0.6, 1.33, 1.33, 0.1, vectorial=False, zernike={(2, 2): 1.0}, samples=32)
    >>> image = psf.render(8.0, 6.0, 0.4, 1000.0, 5.0, shape=(15, 15))
    >>> place(psf, image, np.linspace(-0.8, 0.8, 9))[0, :3].round(2).tolist()
    [8.0, 6.0, 0.4]
    """
    data, weights = moments.weigh(images)
    h, w = shape = data.shape[1:]
    templates = psf.partials(_centred(z, shape), shape)[0]
    found = np.empty((len(data), 5))
    for start in range(0, len(data), 256):
        rows = slice(start, start + 256)
        score = scores(templates, data[rows], reach)
        best = score.reshape(len(score), -1).argmax(1)
        k, dy, dx = np.unravel_index(best, score.shape[1:])
        x, y = (w - 1) / 2 + dx - reach, (h - 1) / 2 + dy - reach
        image = psf.partials(np.stack([x, y, z[k], np.ones(len(x)), np.zeros(len(x))], 1), shape)[0]
        photons, background, _ = moments.brightness(image, data[rows], weights[rows])
        found[rows] = np.stack([x, y, z[k], photons, background], 1)
    return found


def focus(psf: Pupil, stack: np.ndarray, z: np.ndarray, offsets: np.ndarray, reach: int) -> tuple[float, float, float]:
    """x, y and the offset, out of `offsets`, of the bead in `stack` (nz, h, w) with slices at `z` + offset."""
    data, _ = moments.weigh(stack)
    h, w = data.shape[1:]
    best, found = -1.0, (0.0, 0.0, 0.0)
    for offset in offsets:
        templates = psf.partials(_centred(z + offset, (h, w)), (h, w))[0]
        total = sum(scores(t[None], d[None], reach)[0, 0] for t, d in zip(templates, data, strict=True))
        dy, dx = np.unravel_index(total.argmax(), total.shape)
        if total.max() > best:
            best, found = total.max(), ((w - 1) / 2 + dx - reach, (h - 1) / 2 + dy - reach, float(offset))
    return found


def _centred(z: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Parameters (k, 5) of emitters of one photon in the middle, at `z` (k,)."""
    theta = np.tile([(shape[1] - 1) / 2, (shape[0] - 1) / 2, 0.0, 1.0, 0.0], (len(z), 1))
    theta[:, 2] = z
    return theta
