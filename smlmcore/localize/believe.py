"""May the model be believed?  The frames against their reconstruction from the table, in some places of a movie."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import data, fit
from ..psf.base import PSF
from ..simulate.movie import light
from ..threads import with_threads
from .background import background, flickering
from .cut import cut
from .detect import isolated
from .finder import find
from .haze import drifting, fog_over

PLACES, FRAMES = 4, 20  # frames are taken from so many places, so many at each
LIGHT = 0.3  # standard deviations of the noise: pixels with more light of emitters are near them
EXCESS = 0.25  # of chi square per pixel, beyond which the model does not fit
BOX, ALONE = 5, 7  # pixels, sides of an emitter's square and of that of a spot by itself
SPOTS = 500  # of a place, by themselves
EVERY = 4  # frames of a place, that are looked at for haze
HAZY = 1.8  # times what noise does, beyond which smoothed light comes and goes


def believe(source: Any, table: np.ndarray, psf: PSF, sigma: float) -> dict[str, Any]:
    """Chi square per pixel of frames against their reconstruction, near emitters and elsewhere, and what is expected.

    chi² = Σ (d - m)² / (m + v) has, for the true mean m, the expectation 1 per pixel with a variance of 2 + 1 / (m + v)
    whatever the emitters; each emitter fitted takes off one per parameter.  `source`: frames and camera, `table`: the
    localizations before drift correction.

    `typical`: the median over emitters of chi² per pixel in the BOX² around each, which a PSF of another shape raises
    everywhere, and an emitter that was missed in a crowd only beside itself.  `single`: spots that the filter finds
    without a neighbour are fitted with one emitter each, and of their chi² per degree of freedom this is the lower
    quartile; for several emitters may explain a spot that the PSF does not.  `believable`: both are below 1 + EXCESS,
    or so few pixels were seen that three standard deviations are more.

    `haze`: the smoothed light beside emitters and background, see `haze.drifting`; where it comes and goes by more than
    HAZY times what noise does, it counts as background.  No frames: an empty dict.
    """
    frames, h, w = source.shape
    if not frames:
        return {}
    sums, haze = np.zeros((2, 3)), []
    emitters, typical, single = 0, [np.empty(0)], [np.empty(0)]
    for first in np.unique(np.linspace(0, max(frames - FRAMES, 0), PLACES).astype(int)):
        images, full = source.read(first, min(first + FRAMES, frames))
        read = np.broadcast_to(np.asarray(source.camera.variance, np.float32), (h, w))
        behind = background(images, source.camera.variance, sigma)
        behind = flickering(images, behind, source.camera.variance, sigma)
        single.append(_single(images if full is None else np.where(full, np.nan, images), behind, read, psf, sigma))
        near = table[(table["frame"] >= first) & (table["frame"] < first + len(images))]
        columns = {"sigma": "sigma_x"} if "sigma_x" not in psf.names else {}
        values = {name: near[columns.get(name, name)] for name in psf.names if name != "background"}
        frame = near["frame"].astype(np.int64) - first
        shine = light(psf, values, frame, images.shape, 2 * int(np.ceil(4 * sigma)) + 1)
        behind = behind[np.arange(len(images)) * len(behind) // len(images)]
        variance = np.maximum(shine + behind + read, 0.01)
        bright = shine > LIGHT * np.sqrt(variance)
        seen = np.isfinite(images) if full is None else np.isfinite(images) & ~full
        free = seen & ~bright
        with with_threads(1):  # numba's are still at work, or wait for it
            few = slice(None, None, EVERY)
            fog = fog_over(images[few], shine[few] + behind[few], read, sigma, free[few])
            haze.append(drifting(fog, variance[few], free[few], sigma))
            if haze[-1][0] > HAZY * haze[-1][1]:
                behind = behind + fog_over(images, shine + behind, read, sigma, free)
                variance = np.maximum(shine + behind + read, 0.01)
        chi2 = np.where(seen, (images - shine - behind) ** 2 / variance, 0)
        for kind, mask in enumerate((bright & seen, free)):
            sums[kind] += mask.sum(), chi2[mask].sum(dtype=float), (2 + 1 / variance[mask]).sum(dtype=float)
        emitters += len(near)
        at = frame, *(np.clip(np.rint(near[k]), 0, m - 1).astype(int) for k, m in (("y", h), ("x", w)))
        typical.append(_around(chi2, at) / np.maximum(_around(seen, at), 1))
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
    limit = max(EXCESS, 3 * out["near_emitters"]["error"])
    for name, values, share in (("typical", typical, 0.5), ("single", single, 0.25)):
        values = np.concatenate(values)
        out[name] = float(np.quantile(values, share)) if len(values) else 1.0
    photons, noise = np.mean(haze, 0)
    out["haze"] = {"photons": float(photons), "of_noise": float(noise), "hazy": bool(photons > HAZY * noise)}
    out["believable"] = max(out["typical"], out["single"]) < 1 + limit
    return out


def _around(images: np.ndarray, at: tuple[np.ndarray, ...]) -> np.ndarray:
    """Sums over the BOX² around pixels `at` (frame, y, x), as far as there are such."""
    half = BOX // 2
    padded = np.pad(images, ((0, 0), (half, half), (half, half)))
    return np.lib.stride_tricks.sliding_window_view(padded, (BOX, BOX), (1, 2))[at].sum((1, 2), dtype=float)


def _single(images: np.ndarray, behind: np.ndarray, read: np.ndarray, psf: PSF, sigma: float) -> np.ndarray:
    """Chi² per degree of freedom of spots by themselves, one emitter each."""
    peaks = find(images, behind, read, sigma)
    peaks = peaks[isolated(peaks, ALONE // 2 + 1.5 * sigma)][:SPOTS]
    spots, peaks = cut(images, peaks, ALONE)
    noise = cut(read[None], data.table(**{**{k: peaks[k] for k in "xy"}, "frame": np.zeros(len(peaks), int)}), ALONE)[0]
    found = fit.mle(spots, psf, variance=noise, progress=False)
    chi2 = found.chi2 / np.maximum(np.isfinite(spots).sum((1, 2)) - len(psf.names), 1)
    return chi2[np.isfinite(chi2)]
