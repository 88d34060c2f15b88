"""The pupil of a microscope from blinking molecules alone: no beads, no labels, nothing known of any molecule.

Every image has its own x, y, z, photons and background, all share the pupil; `psf.joint` fits everything together by
Gauss-Newton steps, exact and at a cost linear in the number of images.  Three things keep it from going astray:

- A flat pupil is a saddle: its images at z and -z are equal, so nothing tells which way to go.  Fits of a few hundred
  images start at 0.5 rad of either astigmatism (-0.5 rad is the twin, below), then at random, with no more samples of
  the pupil than its images need; the best by likelihood goes on with all images.
- An image may sit in the wrong valley of z.  All z are looked through again (`psf.match`) as the pupil becomes known.
- Tip, tilt and defocus are what x, y and z are for: they are 0 by convention.

The conjugate twin: z -> -z, and modes of even n change sign, gives the same images (for matched indices exactly), as
conjugating a field and mirroring its pupil leaves intensities alone.  No image tells twins apart; `twin` gives the
other one, and what is known of the microscope (the direction of z, the sign of the astigmatism) decides.
(Xu et al. 2020, Nat. Methods 17, 531; Liu et al. 2024, Nat. Methods 21, 1082.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import backend
from ..psf import Pupil
from ..psf.base import PSF
from ..psf.joint import Joint
from ..psf.match import place
from ..psf.retrieval import modes_of
from .direct import mle
from .problem import Limits
from .refine import lockstep
from .result import Result

FEW = 256  # images of a start
PRIOR = 0.5  # radians; what starts expect of a coefficient
ASTIGMATISM = ((2, 2), (2, -2))


@dataclass(frozen=True)
class Report:
    """What `learn_pupil` found besides the pupil.

    `errors`: standard error of each coefficient; `parameters` (n, 5): x, y, z, photons, background of each image;
    `residual`: chi2 / (pixels - parameters), 1 by noise alone, and `residual_error`, its standard deviation then;
    `starts`: residual of each start; `used` (n,): images that were learned from, those that no molecule explains are
    left out.
    """

    errors: np.ndarray
    parameters: np.ndarray = field(repr=False)
    residual: float
    residual_error: float
    starts: list[float]
    used: np.ndarray = field(repr=False)


def learn_pupil(
    images: Any,
    psf: Pupil,
    variance: Any = 0.0,
    modes: int | Sequence[tuple[int, int]] = 25,
    starts: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> Pupil:
    """The pupil behind `images` (n, h, w) in photoelectrons of single molecules, with `pupil.report`, a `Report`.

    `psf`: the optics, its `z_range` the range in which molecules are; if it has aberrations, learning starts there.
    `modes`: how many of Noll's modes, or which; piston, tip, tilt and defocus stay 0.  `variance`: read-noise variance,
    a number, (h, w) or (n, h, w).  `starts`: the most starts, random from `seed` beyond the second; they end as soon as
    one explains the images to the noise.  A few hundred images suffice to see strong aberrations; errors fall as
    1 / sqrt(images).  The result may be the conjugate twin of the truth (module text): see `twin`.

    >>> optics = Pupil(1.2, 0.6, 1.33, 1.33, 0.12, vectorial=False, samples=32, z_range=(-0.5, 0.5))
    >>> truth, rng = optics.replace(zernike={(2, 2): 0.6}), np.random.default_rng(0)
    >>> images = rng.poisson(truth.render(6.0, 6.0, rng.uniform(-0.5, 0.5, 100), 5000.0, 2.0, shape=(13, 13)))
    >>> found = learn_pupil(images, optics, modes=[(2, 2), (2, -2)], progress=False)
    >>> abs(found.zernike).round(1).tolist()
    [0.6, 0.0]
    """
    images, v = _check(images, psf, variance)
    phase = modes_of(modes, "zernike")
    rng = np.random.default_rng(seed)
    some = np.sort(rng.permutation(len(images))[:FEW])
    few, few_v = images[some], v[some] if v.ndim == 3 else v
    results: list[float] = []
    best: tuple[float, Any] = (np.inf, None)
    coarse = _sampled(psf, min(psf.samples, int(1.2 * psf.samples_needed(images.shape[1:], psf.z_range))))
    bar = tqdm(
        _starts(coarse, phase, starts, rng), "learning", starts, unit="start", disable=None if progress else True
    )
    with bar:
        for start in bar:
            pupil, residual = _start(start, few, few_v, phase, best[0])
            results.append(residual)
            best = min(best, (residual, pupil), key=lambda pair: pair[0])
            if best[0] < 1 + 4 * np.sqrt(2.2 / np.isfinite(few).sum()):
                break
    return _finish(_sampled(best[1], psf.samples), images, v, phase, results)


def locate(images: Any, pupil: Pupil, variance: Any = None, **settings: Any) -> Result:
    """`fit.mle` of `images` (n, h, w) with `pupil` from several starts in z; the likeliest end counts.

    Behind aberrations a likelihood has several maxima along z, and from one start a few per cent of the molecules end
    in a wrong one.  Each image is compared with the pupil's at all z and all whole shifts, and fitted from the best
    agreement in each third of the range.  `settings`: those of `mle`.

    >>> optics = Pupil(1.2, 0.6, 1.33, 1.33, 0.12, vectorial=False, samples=32, zernike={(2, 2): 1.0})
    >>> image = optics.render([6.0, 6.2], [6.0, 5.7], [0.3, -0.6], 5000.0, 2.0, shape=(13, 13))
    >>> locate(image, optics, progress=False).z.round(2).tolist()
    [0.3, -0.6]
    """
    images = np.asarray(images)
    low, high = pupil.z_range
    edges = np.linspace(low, high, 4)
    ends = []
    for a, b in pairwise(edges):
        z = np.linspace(a, b, max(3, int(np.ceil((b - a) / 0.08))))
        ends.append(mle(images, pupil, variance, initial=place(pupil, images, z), **settings))
    best = np.nan_to_num(np.stack([end.log_likelihood for end in ends]), nan=-np.inf).argmax(0)

    def chosen(name: str) -> np.ndarray:
        return np.stack([getattr(end, name) for end in ends])[best, np.arange(len(images))]

    names = ("parameters", "errors", "status", "iterations", "log_likelihood", "chi2")
    return Result(ends[0].names, *map(chosen, names))


def twin(pupil: Pupil) -> Pupil:
    """The pupil that gives the same images with z -> -z: coefficients of even n change sign.

    >>> optics = Pupil(1.2, 0.6, 1.33, 1.33, 0.1, zernike={(2, 2): 0.5, (3, 1): 0.3})
    >>> twin(optics).zernike.tolist()
    [-0.5, 0.3]
    >>> bool(np.allclose(optics.volume([0.3], (9, 9)), twin(optics).volume([-0.3], (9, 9))))
    True
    """
    sign = np.array([-1 if n % 2 == 0 else 1 for n, _ in pupil.modes])
    other = pupil.replace(zernike=pupil.zernike * sign)
    if pupil.report is not None:
        other.report = replace(pupil.report, parameters=pupil.report.parameters * [1, 1, -1, 1, 1])
    return other


def _check(images: Any, psf: Pupil, variance: Any) -> tuple[np.ndarray, np.ndarray]:
    images = backend.to_cpu(images) if backend.is_array(images) else np.asarray(images)
    if not isinstance(psf, Pupil):
        raise TypeError(f"learn_pupil got a PSF of {type(psf).__name__}; expected a smlmcore.psf.Pupil: the optics")
    if images.dtype.kind not in "fiub" or images.ndim != 3 or min(images.shape[1:]) < 7 or len(images) < 16:
        raise ValueError(
            f"learn_pupil got images of shape {images.shape} and {images.dtype}; expected photoelectrons (n, h, w), 16 "
            "images or more, 7 x 7 pixels or more"
        )
    v = np.asarray(variance, float)
    if v.shape not in ((), images.shape[1:], images.shape) or not (v >= 0).all():
        raise ValueError(
            f"learn_pupil got a variance of shape {v.shape} for images {images.shape}; expected numbers >= 0, one, "
            f"{images.shape[1:]} or {images.shape}"
        )
    return images.astype(np.float64), v


def _starts(psf, phase, count, rng):
    """Pupils to start from: the user's if it has aberrations, 0.5 rad of either astigmatism, then random ones."""
    if np.any(psf.zernike):
        count -= 1
        yield psf
    low = [mode for mode in phase if mode[0] <= 4]
    for mode in ASTIGMATISM[:count]:
        yield psf.replace(zernike={mode: 0.5})
    for _ in range(count - len(ASTIGMATISM)):
        yield psf.replace(zernike=rng.normal(0, 0.5, len(low)), modes=low)


def _sampled(pupil, samples):
    """The pupil with so many samples, rounded up to an even number; one that has maps of its own stays as it is."""
    samples += samples % 2
    if samples == pupil.samples or pupil.phase is not None or pupil.magnitude is not None:
        return pupil
    return Pupil(**{**pupil._settings(), "samples": samples}, zernike=pupil.zernike, modes=pupil.modes)


def _start(pupil, images, variance, phase, best):
    """From `pupil` to the nearest maximum with few images; the pupil and chi2 per degree of freedom.

    A start whose chi2 is not below `best` by the time that most have arrived is not followed to its end.
    """
    low = [mode for mode in phase if mode[0] <= 4]
    free = np.isfinite(images).sum() - 5 * len(images) - len(phase)
    theta = None
    for modes, iterations in ((low, 5), (low, 5), (phase, 8), (phase, 20)):
        theta = _settled(pupil, images, variance, theta)
        joint = Joint(pupil, images, theta, variance, modes, prior=PRIOR, dtype=np.float32)
        residual = float(joint.run(iterations, tolerance=0.1).chi2.sum() / free)
        pupil, theta = joint.psf, joint.theta
        if modes is phase and residual > best:
            break
    return pupil, residual


def _settled(pupil, images, variance, theta=None):
    """x, y, z, photons and background (n, 5) of each image: all z looked through, the better of this and `theta`."""
    low, high = pupil.z_range
    z = np.linspace(low, high, max(5, int(np.ceil((high - low) / 0.08))))
    found = [_maximum(pupil, images, variance, place(pupil, images, z))]
    if theta is not None:
        found.append(_maximum(pupil, images, variance, theta))
        better = found[1].log_likelihood > found[0].log_likelihood
        return np.where(better[:, None], found[1].parameters, found[0].parameters)
    return found[0].parameters


def _maximum(pupil, images, variance, theta):
    """Fits of each image for itself."""
    low, high = pupil.z_range
    own = PSF.bounds(pupil, images.shape[1:])  # while it is learned, a pupil may be too coarse for its corners
    own["z"] = own["z"]._replace(lower=low - 0.2, upper=high + 0.2)
    fixed = np.zeros(5, bool)
    given = Limits(*np.array([own[name] for name in pupil.names]).T, fixed, np.full(5, np.nan))
    return lockstep(pupil, images, variance, theta, given, max_iterations=6, tolerance=0.1)


def _finish(pupil, images, variance, phase, results):
    pupil = _sampled(pupil, max(pupil.samples, pupil.samples_needed(images.shape[1:], pupil.z_range)))
    theta = _settled(pupil, images, variance)
    used = np.isfinite(theta).all(1)
    for last in (False, True):
        v = variance[used] if variance.ndim == 3 else variance
        joint = Joint(pupil, images[used], theta[used], v, phase, prior=3.0, dtype=np.float32)
        normal = joint.run(12, tolerance=0.1)
        pupil, theta[used] = joint.psf, joint.theta
        pixels = np.maximum(joint.seen.sum((1, 2)), 1)
        strange = normal.chi2 > pixels + 5 * np.sqrt(2.5 * pixels)
        if last or not strange.any():
            break
        used[np.flatnonzero(used)[strange]] = False
    free = joint.seen.sum() - 5 * used.sum() - len(phase)
    errors = np.sqrt(np.diag(joint.covariance(normal)))
    pupil.report = Report(errors, theta, float(normal.chi2.sum() / free), float(np.sqrt(2.2 / free)), results, used)
    return pupil
