"""The pupil of a microscope from images of beads at known focus: maximum likelihood on the camera's noise.

Piston, tip, tilt and defocus are not fitted: piston is invisible, the other three are what x, y and z of a bead are for
(a pupil that has them is the same as one that has not, with the beads elsewhere), so they are 0 by convention.  All
else is fitted together: the modes of the phase, on request of the magnitude and numbers of the optics, x, y and z of
each bead, photons and background of each slice (`joint.py`).

The likelihood has local maxima.  Coarse fits, scalar, with every second slice and few samples, start from a flat pupil
at several offsets in z and then from random pupils, until the best of them, refined, explains the data to the noise.

Residual: chi2 / (pixels - parameters), chi2 = sum (data - mu)^2 / (mu + v) over the pixels used.  Noise alone gives 1,
with the standard deviation sqrt(sum (2 + 1 / (mu + v))) / (pixels - parameters).
(Hanser et al. 2003, Opt. Lett. 28, 801; Aristov et al. 2018, Nat. Commun. 9, 2409; Liu et al. 2013, Opt. Express 21,
29462; Xu et al. 2020, Nat. Methods 17, 531.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy
from tqdm import tqdm

from .. import backend
from ..autograd import Tensor
from ..loss import PoissonGaussian
from . import moments, zernike
from .joint import OPTICS, Joint
from .match import focus
from .pupil import Pupil

GAUGE = ((0, 0), (1, 1), (1, -1), (2, 0))  # piston, tip, tilt, defocus
PRIOR = 0.5  # radians; what coarse fits expect of a coefficient


@dataclass(frozen=True)
class Report:
    """What `retrieve` found besides the pupil.

    `errors`: standard error of each coefficient of the phase, in the order of the pupil's modes; `magnitude` {(n, m):
    coefficient} with `magnitude_errors`; `optics` {name: value} that were fitted, with `optics_errors`.  `x`, `y`
    (pixels, of the cut), `z` (um) of each bead; `photons`, `background` (beads, slices).  `residual` and its
    `residual_error`, the standard deviation that noise gives it about 1 (module text: definition); `masked`: the part
    of the pixels left out; `starts`: how many coarse fits it took.  `z_planes`, `data`, `model`, `noise`: what
    `figure` shows; data are NaN where masked.
    """

    pupil: Pupil
    errors: np.ndarray
    magnitude: dict[tuple[int, int], float]
    magnitude_errors: np.ndarray
    optics: dict[str, float]
    optics_errors: dict[str, float]
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    photons: np.ndarray
    background: np.ndarray
    residual: float
    residual_error: float
    masked: float
    starts: int
    z_planes: np.ndarray
    data: np.ndarray = field(repr=False)
    model: np.ndarray = field(repr=False)
    noise: np.ndarray = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """The numbers, JSON-ready."""
        psf = self.pupil
        names = zernike.label(psf.modes)
        rows = zip(psf.modes, names, psf.zernike.tolist(), self.errors.tolist(), strict=True)
        return {
            "residual": self.residual,
            "residual_standard_deviation": self.residual_error,
            "noise_floor": 1.0,
            "residual_definition": "sum (data - model)^2 / (model + read variance) / (pixels - parameters)",
            "masked_pixels": self.masked,
            "coarse_starts": self.starts,
            "optics": psf._settings(),
            "fitted_optics": {k: {"value": v, "error": self.optics_errors[k]} for k, v in self.optics.items()},
            "convention": "phase in radians, Zernike RMS-normalised; piston, tip, tilt and defocus are 0 by convention",
            "phase_rms": float(np.sqrt((psf.zernike**2).sum())),
            "zernike": [{"mode": list(m), "name": n, "radians": c, "error": e} for m, n, c, e in rows],
            "magnitude": [
                {"mode": list(m), "coefficient": float(b), "error": float(e)}
                for (m, b), e in zip(self.magnitude.items(), self.magnitude_errors, strict=True)
            ],
            "beads": [
                {"x": float(x), "y": float(y), "z": float(z), "photons": p.tolist(), "background": b.tolist()}
                for x, y, z, p, b in zip(self.x, self.y, self.z, self.photons, self.background, strict=True)
            ],
        }

    def figure(self) -> Any:
        """matplotlib Figure: data, model and residual of slices; pupil; coefficients with errors; residual by slice."""
        from ..plot import retrieval

        return retrieval(self)


def retrieve(
    stack: Any,
    z_step: float | None = None,
    *,
    na: float,
    wavelength: float,
    pixel_size: float,
    n_immersion: float,
    n_medium: float,
    z: Any = None,
    zernike: int | Sequence[tuple[int, int]] = 36,
    magnitude: int | Sequence[tuple[int, int]] = 0,
    optics: Sequence[str] = (),
    variance: Any = 0.0,
    saturation: float | None = None,
    drift: bool = False,
    pixels: float = 0.0,
    vectorial: bool = True,
    moves: str = "stage",
    samples: int | None = None,
    starts: int = 60,
    seed: int = 0,
    progress: bool = True,
    **settings: Any,
) -> Pupil:
    """The `Pupil` behind bead stacks, with `pupil.report`, a `Report`: errors, residual, figure.

    `stack`: photoelectrons (nz, h, w), or (beads, nz, h, w) of beads cut out to equal fields, each about centred; NaN
    leaves a pixel out.  Slices are `z_step` (um) apart, or at `z` (nz,): the focus of the objective, growing away from
    it (`moves`="stage"), or the height of the bead.  The middle of z is where beads are expected, within a few
    tenths of a um.

    `zernike`: how many of Noll's modes the phase has (piston, tip, tilt and defocus, the first four, stay 0), or which;
    `magnitude`: likewise, the magnitude's, default uniform.  `optics`: names out of na, wavelength, n_immersion,
    n_medium, pixel_size, depth, blur, bead that are fitted, from the given values on (a length among them that no other
    fixes makes a degenerate fit: errors in the report say so).  `settings`: other arguments of `Pupil`.

    `variance`: read-noise variance, photoelectrons squared.  `saturation`: pixels from this value on are left out;
    default: where the largest value occurs in more than two pixels, these.  A neighbour in the field, light that the
    model has no place for, is found and left out.  `drift`: x and y of each slice by themselves.  `pixels`: if not 0,
    each sample of the pupil gets a phase of its own besides, the pupil's `phase`, that may differ from its neighbour's
    by about as many radians (0.05 is much).  `samples`: of the pupil, default as many as are needed.  `starts`: the
    most coarse fits, random from `seed`.

    Raises `ValueError` that names the input.

    >>> optics = dict(na=1.2, wavelength=0.6, n_immersion=1.33, n_medium=1.33, pixel_size=0.12, vectorial=False)
    >>> z = np.linspace(-0.8, 0.8, 5)
    >>> stack = Pupil(**optics, zernike={(2, 2): 0.4}).volume(z, (12, 12), 5e4, 5.0)
    >>> found = retrieve(np.random.default_rng(0).poisson(stack), 0.4, zernike=8, **optics, progress=False)
    >>> dict(zip(found.modes, found.zernike.round(1).tolist()))[2, 2], found.report.residual < 1.15
    (0.4, True)
    """
    data, variance, heights = _check(stack, variance, z_step, z)
    data = _alone(_without_saturated(data, saturation))
    phase, inner = modes_of(zernike, "zernike"), modes_of(magnitude, "magnitude")
    unknown = [name for name in optics if name not in OPTICS]
    if unknown:
        raise ValueError(f"retrieve got optics {unknown}; expected names out of {', '.join(OPTICS)}")
    common = {
        "na": na, "wavelength": wavelength, "n_immersion": n_immersion, "n_medium": n_medium, "pixel_size": pixel_size,
        "moves": moves, **settings,
    }  # fmt: skip
    for name, least in (("blur", 0.5), ("bead", 0.1)):  # the derivative by either is 0 at 0
        if name in optics:
            common[name] = max(common.get(name, 0.0), least)
    model = Pupil(**common, vectorial=vectorial, samples=samples or 64)
    spread = (heights.max() - heights.min()) / 2
    model.z_range = (-float(spread) - 0.3, float(spread) + 0.3)
    search = _Search(Pupil(**{**model._settings(), "samples": 40}), data, variance, heights, phase, seed)
    with tqdm(total=starts, desc="retrieving", unit="start", disable=None if progress else True, leave=False) as bar:
        for count in search.run(starts):
            bar.update(count - bar.n)
            if search.explained():
                break
    joint, normal = _refined(model, search, data, variance, heights, phase, inner, tuple(optics), drift, samples)
    errors = np.sqrt(np.diag(joint.covariance(normal)))
    if pixels:
        _pixelwise(joint, pixels)
    found = _report(joint, errors, data.shape, heights, count)
    found.pupil.report = found
    return found.pupil


# ---------------------------------------------------------------- input


def _check(stack: Any, variance: Any, z_step: Any, z: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stacks (beads, nz, h, w) and their variance in float64, and the centred heights (nz,), or one error."""
    data = backend.to_cpu(stack) if backend.is_array(stack) else np.asarray(stack)
    if data.dtype.kind not in "fiub" or data.ndim not in (3, 4):
        raise ValueError(
            f"retrieve got a stack of shape {data.shape} and {data.dtype}; expected photoelectrons (nz, h, w), or "
            "(beads, nz, h, w)"
        )
    data = np.array(data if data.ndim == 4 else data[None], np.float64)
    beads, nz, h, w = data.shape
    if beads < 1 or nz < 3 or min(h, w) < 7:
        raise ValueError(
            f"retrieve got {beads} beads of {nz} slices of {h} x {w} pixels; expected one bead or more, 3 slices or "
            "more (focus is what tells aberrations apart), 7 x 7 pixels or more"
        )
    if (z is None) == (z_step is None):
        raise ValueError("retrieve got neither or both of z_step and z; give one of them")
    if z is None and not 0 < abs(z_step) < np.inf:
        raise ValueError(f"retrieve got z_step={z_step}; expected um from slice to slice, not 0")
    heights = np.arange(nz) * float(z_step) if z is None else np.asarray(z, float)
    if heights.shape != (nz,) or not np.isfinite(heights).all():
        raise ValueError(f"retrieve got z of shape {heights.shape}; expected {nz} finite numbers, um, one for a slice")
    variance = np.asarray(variance, float)
    if not (variance >= 0).all():
        raise ValueError("retrieve got a negative or NaN variance; expected read noise squared, in photoelectrons")
    try:
        variance = np.broadcast_to(variance, data.shape)
    except ValueError:
        raise ValueError(f"retrieve got variance of shape {variance.shape} for stacks {data.shape}") from None
    if not np.isfinite(data).any((1, 2, 3)).all():
        raise ValueError("retrieve got a bead without one finite pixel")
    return data, variance, heights - (heights.max() + heights.min()) / 2


def _without_saturated(data: np.ndarray, saturation: float | None) -> np.ndarray:
    """NaN where a pixel is saturated."""
    if saturation is None:
        top = np.nanmax(data)
        saturation = top if (data == top).sum() > 2 else np.inf
    return np.where(data >= saturation, np.nan, data)


def _alone(data: np.ndarray) -> np.ndarray:
    """NaN around a second bead in the field, at least half as bright as the first and a third of the field away.

    Every pixel nearer to it than to the first goes.  What comes in from outside the field is seen by `_neighbours`.
    """
    h, w = data.shape[2:]
    y, x = np.indices((h, w))
    middle = np.exp(-2 * ((y - (h - 1) / 2) / h) ** 2 - 2 * ((x - (w - 1) / 2) / w) ** 2)
    alone = data.copy()
    for bead, stack in zip(alone, data, strict=True):
        filled, _ = moments.weigh(stack)
        light = (scipy.ndimage.gaussian_filter(filled, (0, 1, 1)) - np.median(filled, (1, 2), keepdims=True)).max(0)
        first = np.unravel_index((light * middle).argmax(), light.shape)
        peaks = (scipy.ndimage.maximum_filter(light, 5) == light) & (light > 0.5 * light[first])
        for other in np.argwhere(peaks):
            if np.hypot(*(other - first)) > max(h, w) / 3:
                bead[:, np.hypot(y - other[0], x - other[1]) < np.hypot(y - first[0], x - first[1])] = np.nan
    return alone


def modes_of(given: int | Sequence[tuple[int, int]], name: str) -> list[tuple[int, int]]:
    """Modes without piston, tip, tilt and defocus (of the magnitude, without piston)."""
    if np.ndim(given) == 0:
        given = zernike.noll(int(given))
    modes = [zernike.check(*mode) for mode in given]
    gauge = GAUGE if name == "zernike" else GAUGE[:1]
    return [mode for mode in dict.fromkeys(modes) if mode not in gauge]


# ---------------------------------------------------------------- coarse fits


class _Search:
    """Coarse fits of the brightest bead from many starts; `best` is the solution that fits best."""

    def __init__(self, psf, data, variance, heights, phase, seed):
        self.psf, self.phase, self.heights = psf, phase, heights
        self.scalar = Pupil(**{**psf._settings(), "vectorial": False, "dipole": None})
        self.rng = np.random.default_rng(seed)
        spread = np.nanpercentile(data, 99.5, axis=(1, 2, 3)) - np.nanmedian(data, axis=(1, 2, 3))
        self.bead = int(spread.argmax())
        self.data, self.variance = data[self.bead], variance[self.bead]
        self.filled, self.weights = moments.weigh(self.data, np.where(np.isfinite(self.variance), self.variance, 0))
        every = max(1, len(heights) // 10)
        self.some = np.arange(len(heights) // 2 % every, len(heights), every)
        self.best = self.refined = (np.inf, None, None)  # chi2 per pixel, pupil, theta of all slices

    def run(self, starts):
        """Run one start after the other; yields how many there have been whenever `best` is a new one, and at the end.

        First a flat pupil at several offsets in z, with all modes at once and with few first, then random ones.
        """
        reach = max(2, min(self.data.shape[1:]) // 4)
        few = [mode for mode in self.phase if mode[0] <= 4]
        flat = [(offset, low) for low in (False, True) for offset in (0.0, 0.25, -0.25, 0.5, -0.5)]
        for count in range(starts):
            pupil, low_first = self.scalar, False
            if count < len(flat):
                offset, low_first = flat[count]
                x, y, _ = focus(pupil, self.data, self.heights, np.array([offset]), reach)
            else:
                offset, (x, y) = self.rng.uniform(-0.4, 0.4), self.best[2][0, :2]
                modes, width = [(few, 0.2), (self.phase, 0.3), (few, 0.4)][count % 3]
                pupil = pupil.replace(zernike=self.rng.normal(0, width, len(modes)), modes=modes)
            theta = self.starting(pupil, x, y, offset)
            if low_first:
                _, pupil, theta = self.fit(pupil, theta, few, 8)
            found = self.fit(pupil, theta, self.phase, 30)
            if found[0] < self.best[0] - 1e-3:
                self.best = found
                yield count + 1
        yield starts

    def explained(self):
        """Whether the best solution explains the data to the noise, once the vectorial model and all slices count."""
        _, pupil, theta = self.best
        pupil = self.psf.replace(zernike=pupil.zernike, modes=pupil.modes)
        found = self.fit(pupil, theta, self.phase, 20, np.arange(len(theta)))
        self.refined = min(self.refined, found, key=lambda f: f[0])
        return found[0] < 1 + 3 * math.sqrt(2.1 / np.isfinite(self.data).sum())

    def starting(self, pupil, x, y, offset):
        """theta (nz, 5) with the bead at x, y, offset."""
        theta = np.column_stack([np.tile([x, y], (len(self.heights), 1)), self.heights + offset])
        return bright(pupil, theta, self.filled, self.weights)

    def fit(self, pupil, theta, modes, iterations, rows=None):
        """Fit the slices `rows`, default every few; returns chi2 per degree of freedom, pupil, theta of all slices."""
        rows = self.some if rows is None else rows
        joint = Joint(
            pupil, self.data[rows], theta[rows], self.variance[rows], modes, bead=np.zeros(len(rows), int),
            prior=PRIOR, dtype=np.float32,
        )  # fmt: skip
        normal = joint.run(iterations, tolerance=0.3)
        moved = theta.copy()
        moved[:, :3] += joint.theta[0, :3] - theta[rows[0], :3]
        for column in (3, 4):
            moved[:, column] = np.interp(np.arange(len(theta)), rows, joint.theta[:, column])
        return normal.chi2.sum() / (joint.seen.sum() - 2 * len(rows) - 3 - len(modes)), joint.psf, moved


def bright(pupil, places, data, weights):
    """theta (n, 5) of x, y, z (n, 3) with the photons and the background that fit `data` best."""
    n = len(places)
    unit = pupil.partials(np.column_stack([places, np.ones(n), np.zeros(n)]), data.shape[1:])[0]
    photons, background, _ = moments.brightness(unit, data, weights)
    return np.column_stack([places, photons, background])


# ---------------------------------------------------------------- the fit that counts


def _refined(model, search, data, variance, heights, phase, inner, optics, drift, samples):
    """The full fit to all beads, from the best coarse solution: `Joint` at its end and its derivatives there."""
    _, coarse, theta = search.refined
    beads, nz, h, w = data.shape
    pupil = model.replace(zernike=coarse.zernike, modes=coarse.modes)
    if samples is None:
        needed = pupil.samples_needed((h, w), pupil.z_range)
        size = int(np.clip(8 * math.ceil(needed / 8 + 0.25), 40, 128))
        pupil = Pupil(**{**pupil._settings(), "samples": size}, zernike=pupil.zernike, modes=pupil.modes)
    start = np.empty((beads, nz, 5))
    for b in range(beads):
        places, reach = theta[:, :3].copy(), max(2, min(h, w) // 4)
        if b != search.bead:
            places[:, :2] = focus(coarse, data[b], heights, np.array([theta[0, 2] - heights[0]]), reach)[:2]
        start[b] = bright(coarse, places, *moments.weigh(data[b], np.where(np.isfinite(variance[b]), variance[b], 0)))
    images, noise, theta = data.reshape(-1, h, w).copy(), variance.reshape(-1, h, w), start.reshape(-1, 5)
    bead = np.repeat(np.arange(beads), nz)
    for attempt in range(3):
        stages = [()] if not (inner or optics) else [(), (inner, optics)]
        for stage in stages:
            more = {"magnitude": stage[0], "optics": stage[1]} if stage else {}
            joint = Joint(pupil, images, theta, noise, phase, **more, bead=bead, own_xy=drift, prior=3.0)
            normal = joint.run(40)
            pupil, theta = joint.psf, joint.theta
        mu = pupil.partials(theta, (h, w))[0]
        strange = _neighbours(images, mu, joint.noise, theta[:, 4], beads)
        if attempt == 2 or not strange.any():
            break
        images = np.where(np.repeat(strange, nz, 0), np.nan, images)
        pupil = pupil.replace(magnitude=np.ones((pupil.samples, pupil.samples))) if inner else pupil
    return joint, normal


def _neighbours(images, mu, noise, background, beads):
    """Pixels (beads, h, w) with light that the model has no place for: beyond six errors and half of its own there.

    The sum over all slices and 3 x 3 pixels decides; what is found is widened by two pixels.
    """
    seen = np.isfinite(images)
    shape = (beads, len(images) // beads, *images.shape[1:])
    excess, error, light = (
        scipy.ndimage.uniform_filter(np.where(seen, a, 0).reshape(shape).sum(1), (0, 3, 3)) * 9
        for a in (images - mu, mu + noise, mu - background[:, None, None])
    )
    strange = (excess > 6 * np.sqrt(np.maximum(error, 1e-9))) & (excess > 0.5 * light)
    strange = scipy.ndimage.binary_dilation(strange, np.ones((1, 5, 5)))
    return strange & (strange.mean((1, 2), keepdims=True) < 0.4)  # else it is the model that does not fit


def _pixelwise(joint, roughness, rounds=3):
    """Give each sample of the pupil a phase of its own, in turn with the parameters of the emitters.

    Maximises the likelihood less sum (difference of neighbours)^2 / (2 roughness^2) by L-BFGS, through autograd.
    """
    psf, shape = joint.psf, joint.data.shape[1:]
    m, inside = psf.samples, psf.inside
    pairs = [inside[1:] & inside[:-1], inside[:, 1:] & inside[:, :-1]]
    extra = np.zeros((m, m))

    def objective(flat, theta):
        pixels = Tensor(flat.reshape(m, m))
        mu = psf.replace(phase=pixels).render(*theta.T, shape=shape)
        nats = loss(mu, data, joint.noise).sum()
        down, right = pixels[1:] - pixels[:-1], pixels[:, 1:] - pixels[:, :-1]
        rough = ((down * down) * pairs[0]).sum() + ((right * right) * pairs[1]).sum()
        total = nats + rough * (0.5 / roughness**2)
        total.backward()
        return float(total.data), pixels.grad.ravel()

    loss, data = PoissonGaussian(exact=False), np.where(joint.seen, joint.data, np.nan)
    for _ in range(rounds):
        found = scipy.optimize.minimize(
            objective, extra.ravel(), args=(joint.theta,), jac=True, method="L-BFGS-B", options={"maxiter": 40}
        )
        extra = found.x.reshape(m, m) * inside
        own = Joint(
            psf.replace(zernike=[], modes=[], phase=psf.aberration() + extra), joint.data, joint.theta,
            np.where(joint.seen, joint.noise, np.inf), bead=joint.bead, own_xy=0 in joint.own,
        )  # fmt: skip
        own.run(5)
        joint.theta = own.theta
    joint.psf = psf.replace(phase=extra)


def _report(joint, errors, stacks, heights, count):
    (beads, nz), pupil, theta = stacks[:2], joint.psf, joint.theta
    mu = pupil.partials(theta, stacks[2:])[0]
    chi2 = np.where(joint.seen, (joint.data - mu) ** 2 / np.maximum(mu + joint.noise, 1e-6), 0).sum()
    k, last = len(joint.phase), len(joint.phase) + len(joint.magnitude)
    parameters = len(joint.shared) + len(joint.own) * len(theta) + len(joint.common) * beads
    free = max(int(joint.seen.sum()) - parameters, 1)
    spread = np.where(joint.seen, 2 + 1 / np.maximum(mu + joint.noise, 1e-6), 0).sum()
    places = theta.reshape(beads, nz, 5)
    data = np.where(joint.seen, joint.data, np.nan)
    return Report(
        pupil=pupil,
        errors=errors[:k],
        magnitude=dict(zip(joint.magnitude, joint.shared[k:last], strict=True)),
        magnitude_errors=errors[k:last],
        optics=dict(zip(joint.optics, joint.shared[last:].tolist(), strict=True)),
        optics_errors=dict(zip(joint.optics, errors[last:].tolist(), strict=True)),
        x=places[:, :, 0].mean(1),
        y=places[:, :, 1].mean(1),
        z=places[:, 0, 2] - heights[0],
        photons=places[:, :, 3],
        background=places[:, :, 4],
        residual=float(chi2 / free),
        residual_error=float(np.sqrt(spread) / free),
        masked=float(1 - joint.seen.mean()),
        starts=count,
        z_planes=heights,
        data=data.reshape(stacks),
        model=mu.reshape(stacks),
        noise=joint.noise.reshape(stacks),
    )
