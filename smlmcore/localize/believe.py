"""May the model be believed?  The frames against their reconstruction from the table, in some places of a movie."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..psf import Gaussian2D
from ..psf.base import PSF
from .background import background, flickering

PLACES, FRAMES = 4, 20  # frames are taken from so many places, so many at each
LIGHT = 0.3  # standard deviations of the noise: pixels with more light of emitters are near them
EXCESS = 0.25  # of chi square per pixel, beyond which the model does not fit


def believe(source: Any, table: np.ndarray, psf: PSF, sigma: float) -> dict[str, Any]:
    """Chi square per pixel of frames against their reconstruction, near emitters and elsewhere, and what is expected.

    chi² = Σ (d - m)² / (m + v) has, for the true mean m, the expectation 1 per pixel with a variance of 2 + 1 / (m + v)
    whatever the emitters; each emitter fitted takes off one per parameter.  `source`: frames and camera, `table`: the
    localizations before drift correction.  `believable`: chi² near emitters exceeds the expectation by less than
    EXCESS or three standard deviations.  PSFs that cannot draw emitters where they are: an empty dict.
    """
    frames, h, w = source.shape
    if not isinstance(psf, Gaussian2D) or not frames:
        return {}
    sums = np.zeros((2, 3))
    emitters = 0
    for first in np.unique(np.linspace(0, max(frames - FRAMES, 0), PLACES).astype(int)):
        images, full = source.read(first, min(first + FRAMES, frames))
        read = np.broadcast_to(np.asarray(source.camera.variance, np.float32), (h, w))
        behind = background(images, source.camera.variance, sigma)
        behind = flickering(images, behind, source.camera.variance, sigma)
        near = table[(table["frame"] >= first) & (table["frame"] < first + len(images))]
        values = {name: near["sigma_x" if name == "sigma" else name] for name in psf.names if name != "background"}
        values |= {"background": np.zeros(len(images), np.float32)}
        light = psf.render(values, (h, w), image=near["frame"].astype(int) - first)
        variance = np.maximum(light + behind + read, 0.01)
        bright = light > LIGHT * np.sqrt(variance)
        seen = np.isfinite(images) if full is None else np.isfinite(images) & ~full
        chi2 = (images - light - behind) ** 2 / variance
        for kind, mask in enumerate((bright & seen, ~bright & seen)):
            sums[kind] += mask.sum(), chi2[mask].sum(dtype=float), (2 + 1 / variance[mask]).sum(dtype=float)
        emitters += len(near)
    out: dict[str, Any] = {}
    for name, (pixels, chi2, spread), parameters in zip(
        ("near_emitters", "elsewhere"), sums, (emitters * len(psf.names), 0), strict=True
    ):
        n = max(pixels, 1)
        out[name] = {
            "chi2_per_pixel": chi2 / n,
            "expected": max(1 - parameters / n, 0.0) if pixels else 0.0,
            "error": float(np.sqrt(spread)) / n,
        }
    near = out["near_emitters"]
    excess = near["chi2_per_pixel"] - near["expected"]
    out["believable"] = bool(excess < max(EXCESS, 3 * near["error"]))
    return out
