"""A pupil and the emitters seen through it, fitted together: derivatives by all of them, damped Gauss-Newton steps.

Image i shows one emitter, theta_i = (x, y, z, photons, background), behind a pupil whose coefficients s all share.
With weights w = 1 / (mu + v) the Poisson likelihood's information and gradient are

    F = sum w (dmu/da)(dmu/db),     g = sum (x w - 1) (dmu/da),     x = max(data + v, 0)

for a, b in (theta_i, s).  F couples images only through s, and slices of one bead through the parameters of that bead:
what is an image's alone is eliminated image by image, then what is a bead's, and a small system for s remains (Schur
complement): exact Gauss-Newton steps at a cost linear in the number of images.  (Triggs et al. 2000, Lect. Notes
Comput. Sci. 1883, 298; Hanser et al. 2004, J. Microsc. 216, 32 for the pupil; Huang et al. 2013, Nature Methods 10, 653
for the read noise.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .aperture import aperture
from .pupil import Pupil

OWN = 5  # parameters of an image: x, y, z, photons, background
STEP = np.array([0.5, 0.5, 0.2, 0.5, 0.5])  # longest step: pixels, um, and parts of the value
CHUNK = 1 << 20  # complex numbers of pupils that are transformed together


# ---------------------------------------------------------------- derivatives


def derivatives(
    psf: Pupil, theta: np.ndarray, shape: tuple[int, int], phase: np.ndarray, magnitude: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, h, w) and derivatives (n, 5 + k + l, h, w) by theta (n, 5) and by coefficients of the pupil.

    `phase` (k, m, m), `magnitude` (l, m, m): the polynomials whose coefficients are meant.  All derivatives of an image
    are transformed from the pupil to the pixels together, by two products of matrices.
    """
    n, m, real = len(theta), psf.samples, theta.dtype
    pupil, wave_number = psf._fields(np, real)[0], aperture(psf.optics).axial
    axial = np.stack([wave_number.real, wave_number.imag]).astype(real)
    blur, fine, points, reach = psf.blur, 1, shape, 0
    if blur is not None:
        fine, points, reach = blur.fine, tuple(blur.points(s) for s in shape), blur.reach
    j = (np.arange(m) - (m - 1) / 2).astype(real)
    x, y, z, photons, background = (column[:, None, None] for column in theta.T)
    above = np.maximum(z, real.type(psf.floor))
    turn = axial[0] * z - real.type(psf.step) * (j * x + j[:, None] * y)
    wave = np.exp(-axial[1] * above) * np.exp(1j * turn)
    q = (pupil[:, 0] + 1j * pupil[:, 1]) * wave[:, None]  # (n, c, v, u)
    c, columns = q.shape[1], 4 + len(phase) + len(magnitude)

    moved = np.empty((m, n, columns, c, m), q.dtype)  # rows of the pupil first: each product is one of two matrices
    moved[:, :, 0] = q.transpose(2, 0, 1, 3)
    inner = 1 if psf.magnitude is None else np.where(psf.inside, psf.magnitude, 1)
    slope = 1j * axial[0] - axial[1] * (z > psf.floor)
    factors = [
        (-1j * psf.step * j)[None, None, None],
        (-1j * psf.step * j)[:, None, None, None],
        slope.transpose(1, 0, 2)[:, :, None],
        *(1j * a[:, None, None] for a in phase),
        *((a / inner)[:, None, None] for a in magnitude),
    ]
    for i, factor in enumerate(factors):
        np.multiply(moved[:, :, 0], factor, out=moved[:, :, 1 + i], casting="same_kind")
    step = psf.step / fine
    a_y, a_x = (np.exp(1j * step * np.outer(np.arange(s) - reach, j)).astype(q.dtype) for s in points)
    fields = moved.reshape(-1, m) @ a_x.T
    fields = (a_y @ fields.reshape(m, -1)).reshape(points[0], n, columns, c, points[1])
    still = fields[:, :, :1]
    found = np.ascontiguousarray((fields.real * still.real + fields.imag * still.imag).sum(3).transpose(1, 2, 0, 3))
    if blur is not None:
        found = blur(found.reshape(-1, *points), shape).reshape(n, columns, *shape)

    # the energy that photons are divided by, with its derivatives by z and the magnitude
    flow = (np.abs(q) ** 2).sum(1) / np.where(psf.inside, psf.weight, 1)
    energy = flow.sum((1, 2))
    scale = 4 * math.pi**2 / psf.step**2 * energy
    by_z = -2 * (flow * axial[1] * (z > psf.floor)).sum((1, 2)) / energy
    by_magnitude = 2 * np.einsum("nvu,kvu->nk", flow, magnitude / inner) / energy[:, None]
    change = np.concatenate([np.zeros((n, 2)), by_z[:, None], np.zeros((n, len(phase))), by_magnitude], 1)

    unit = found[:, 0] / scale[:, None, None].astype(real)
    partials = np.empty((n, columns + 1, *shape), real)
    bright = (photons / scale[:, None, None]).astype(real)[:, None]
    moved_ = 2 * bright * found[:, 1:] - (photons * unit)[:, None] * change[:, :, None, None].astype(real)
    partials[:, :3], partials[:, OWN:] = moved_[:, :3], moved_[:, 3:]
    partials[:, 3], partials[:, 4] = unit, 1
    return photons * unit + background, partials


# ---------------------------------------------------------------- the problem

OPTICS = ("na", "wavelength", "n_immersion", "n_medium", "pixel_size", "depth", "blur", "bead")  # that can be fitted


@dataclass
class Normal:
    """Likelihood (n,) in nats, chi2 (n,), gradient (n, 5 + s) and information (n, 5 + s, 5 + s) of n images."""

    likelihood: np.ndarray
    chi2: np.ndarray
    gradient: np.ndarray
    information: np.ndarray


class Joint:
    """`images` (n, h, w) in photoelectrons behind one pupil; `theta` (n, 5) and `psf` as they stand.

    `bead` (n,): which bead an image shows; the images of one move in x, y and z together.  With `own_xy` each image
    has its own x and y (drift); without `bead` each image has all five parameters of its own.  `phase`, `magnitude`:
    modes whose coefficients are fitted, `optics`: numbers out of `OPTICS` that are.  `prior`: the standard deviation
    that is expected of a coefficient.  Pixels that are NaN or of infinite `variance` (read noise) are left out.
    `dtype`: of the images and their derivatives; sums are in float64.
    """

    def __init__(
        self,
        psf: Pupil,
        images: np.ndarray,
        theta: np.ndarray,
        variance: Any = 0.0,
        phase: Sequence[tuple[int, int]] = (),
        magnitude: Sequence[tuple[int, int]] = (),
        optics: Sequence[str] = (),
        bead: np.ndarray | None = None,
        own_xy: bool = False,
        prior: float = np.inf,
        dtype: Any = np.float64,
    ) -> None:
        self.phase, self.magnitude, self.optics = list(phase), list(magnitude), tuple(optics)
        self.prior, self.dtype = prior, np.dtype(dtype)
        known = dict(zip(psf.modes, psf.zernike, strict=True))
        start = [known.get(mode, 0.0) for mode in self.phase]
        settings = psf._settings()
        self.shared = np.array([*start, *[0.0] * len(self.magnitude), *(settings[name] for name in self.optics)])
        self.psf, self.theta = psf, np.array(theta, float)
        self.psf = self.pupil(self.shared)
        v = np.broadcast_to(np.asarray(variance, float), images.shape)
        self.seen = np.isfinite(images) & np.isfinite(v)
        self.noise = np.where(self.seen, v, 0.0).astype(dtype)
        self.data = np.where(self.seen, images, 0.0).astype(dtype)
        self.bead = np.arange(len(images)) if bead is None else np.asarray(bead)
        self.own = [0, 1, 2, 3, 4] if bead is None else [0, 1, 3, 4] if own_xy else [3, 4]
        self.common = [i for i in range(OWN) if i not in self.own]

    def pupil(self, shared: np.ndarray) -> Pupil:
        """The pupil with these coefficients and optics."""
        k, psf = len(self.phase), self.psf
        last = k + len(self.magnitude)
        if self.optics:
            psf = Pupil(**{**psf._settings(), **dict(zip(self.optics, shared[last:].tolist(), strict=True))})
        magnitude = dict(zip(self.magnitude, shared[k:last], strict=True)) or None
        return psf.replace(zernike=shared[:k], modes=self.phase, magnitude=magnitude)

    def normal(self, psf: Pupil, theta: np.ndarray, shared: np.ndarray, rows: Any = slice(None)) -> Normal:
        """Likelihood and its derivatives at (theta, shared), of the images `rows`."""
        phase, magnitude = (
            (psf.polynomials(modes) * psf.inside).astype(self.dtype) for modes in (self.phase, self.magnitude)
        )
        near = [self._near(shared, i) for i in range(len(phase) + len(magnitude), len(shared))]
        data, noise, seen = self.data[rows], self.noise[rows], self.seen[rows]
        n, columns, shape = len(data), OWN + len(shared), data.shape[1:]
        found = Normal(np.empty(n), np.empty(n), np.empty((n, columns)), np.empty((n, columns, columns)))
        c = len(psf._fields(np, self.dtype)[0])
        size = max(1, CHUNK // (psf.samples**2 * columns * c))
        none = phase[:0]
        for start in range(0, n, size):
            now = slice(start, start + size)
            place = theta[now].astype(self.dtype)
            mu, partials = derivatives(psf, place, shape, phase, magnitude)
            for low, high, step in near:
                change = derivatives(high, place, shape, none, none)[0] - derivatives(low, place, shape, none, none)[0]
                partials = np.concatenate([partials, (change / step)[:, None]], 1)
            mean = np.maximum(mu + noise[now], 1e-6)
            counts, used = np.maximum(data[now] + noise[now], 0), seen[now]
            w = (used / mean).reshape(len(mu), 1, -1)
            flat = partials.reshape(len(mu), columns, -1)
            slope = np.where(used, counts / mean - 1, 0).reshape(len(mu), -1, 1)
            found.likelihood[now] = (used * (counts * np.log(mean) - mean)).sum((1, 2), dtype=np.float64)
            found.chi2[now] = (used * (data[now] - mu) ** 2 / mean).sum((1, 2), dtype=np.float64)
            found.gradient[now] = (flat @ slope)[:, :, 0]
            found.information[now] = (flat * w) @ flat.transpose(0, 2, 1)
        return found

    def _near(self, shared: np.ndarray, i: int) -> tuple[Pupil, Pupil, float]:
        """Two pupils that differ in the i-th shared number, one of the optics, and by how much."""
        step = 1e-3 * max(shared[i], 0.1)
        low, high = shared.copy(), shared.copy()
        low[i], high[i] = max(shared[i] - step, 0.0), shared[i] + step
        return self.pupil(low), self.pupil(high), high[i] - low[i]

    # ------------------------------------------------------------ steps

    def step(self, normal: Normal, damping: float) -> tuple[np.ndarray, np.ndarray, float]:
        """The damped step of theta (n, 5) and of what is shared (s,), and how much likelihood it promises."""
        order = [*self.own, *self.common, *range(OWN, normal.gradient.shape[1])]
        g, f = normal.gradient[:, order], normal.information[:, order][:, :, order]
        scale = np.sqrt(np.einsum("npp->np", f).mean(0)) + 1e-30
        g, f = g / scale, f / (scale[:, None] * scale)
        diagonal = np.einsum("npp->np", f)
        f = f + (damping * diagonal + 1e-9)[:, :, None] * np.eye(len(order))
        back, g_own, f_own = _eliminate(g, f, len(self.own))
        if self.common:
            beads = self.bead.max() + 1
            g_bead, f_bead = np.zeros((beads, g_own.shape[1])), np.zeros((beads, *f_own.shape[1:]))
            np.add.at(g_bead, self.bead, g_own)
            np.add.at(f_bead, self.bead, f_own)
            back_bead, g_own, f_own = _eliminate(g_bead, f_bead, len(self.common))
        g_all, f_all = g_own.sum(0), f_own.sum(0)
        k = len(self.phase) + len(self.magnitude)
        unit = scale[OWN:]
        stiff = np.r_[np.full(k, self.prior**-2.0), np.zeros(len(g_all) - k)] / unit**2
        d = np.linalg.solve(f_all + np.diag(stiff), g_all - stiff * unit * self.shared) if len(g_all) else g_all
        every = np.broadcast_to(d, (len(g), len(d)))
        if self.common:
            every = np.concatenate([back_bead(np.broadcast_to(d, (beads, len(d))))[self.bead], every], 1)
        every = np.concatenate([back(every), every], 1)
        move = np.empty((len(g), OWN))
        move[:, order[:OWN]] = every[:, :OWN] / scale[:OWN]
        return move, d / unit, float((every * g).sum())

    def covariance(self, normal: Normal) -> np.ndarray:
        """Covariance (s, s) of what is shared, all else being unknown too: the Cramer-Rao bound at the solution."""
        order = [*self.own, *self.common, *range(OWN, normal.gradient.shape[1])]
        f = normal.information[:, order][:, :, order]
        _, _, f = _eliminate(np.zeros(f.shape[:2]), f, len(self.own))
        if self.common:
            total = np.zeros((self.bead.max() + 1, *f.shape[1:]))
            np.add.at(total, self.bead, f)
            _, _, f = _eliminate(np.zeros(total.shape[:2]), total, len(self.common))
        k = len(self.phase) + len(self.magnitude)
        f = f.sum(0) + np.diag(np.r_[np.full(k, self.prior**-2.0), np.zeros(len(self.shared) - k)])
        size = np.sqrt(np.diag(f))
        return np.linalg.pinv(f / np.outer(size, size), hermitian=True) / np.outer(size, size)

    def run(self, iterations: int = 30, tolerance: float = 0.03, damping: float = 1e-2) -> Normal:
        """Raise the likelihood until a step promises less than tolerance^2 / 2 nats for each parameter.

        `psf`, `theta` and `shared` then stand at the maximum; returns the derivatives there.
        """
        enough = tolerance**2 / 2 * (len(self.shared) + len(self.own) * len(self.theta))
        now = self.normal(self.psf, self.theta, self.shared)
        for _ in range(iterations):
            move, change, promise = self.step(now, damping)
            theta = self._within(self.theta + _limit(move, self.theta))
            largest = np.abs(change[: len(self.phase) + len(self.magnitude)]).max(initial=0)
            shared = self.shared + change * min(1, 0.5 / max(largest, 1e-9))
            try:
                psf = self.pupil(shared)
                new = self.normal(psf, theta, shared)
            except ValueError:  # optics that cannot be
                damping = max(10 * damping, 1e-2)
                continue
            gain = (new.likelihood - now.likelihood).sum() - self._penalty(shared) + self._penalty(self.shared)
            if gain > -1e-9 * abs(now.likelihood.sum()):
                self.psf, self.theta, self.shared, now = psf, theta, shared, new
                damping /= 10
                if promise < enough:
                    break
            else:
                damping = max(10 * damping, 1e-2)
                if damping > 1e8:
                    break
        return now

    def _penalty(self, shared: np.ndarray) -> float:
        k = len(self.phase) + len(self.magnitude)
        return float((shared[:k] ** 2).sum() / (2 * self.prior**2))

    def _within(self, theta: np.ndarray) -> np.ndarray:
        h, w = self.data.shape[1:]
        lower, upper = [-1, -1, -np.inf, 1, 1e-3], [w, h, np.inf, np.inf, np.inf]
        return np.clip(theta, lower, upper)


def _limit(move: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """A step that is not longer than `STEP`; the last two columns count in parts of the value."""
    longest = np.where(np.arange(OWN) < 3, STEP, STEP * np.abs(theta) + [0, 0, 0, 10, 1])
    return np.clip(move, -longest, longest)


def _eliminate(g: np.ndarray, f: np.ndarray, p: int) -> tuple[Callable[[np.ndarray], np.ndarray], Any, Any]:
    """Solve batches of f d = g for the first `p` unknowns: what remains for the others, and the way back to these."""
    solved = np.linalg.solve(f[:, :p, :p], np.concatenate([f[:, :p, p:], g[:, :p, None]], 2))
    by, alone = solved[:, :, :-1], solved[:, :, -1]
    cross = f[:, p:, :p]

    def back(others: np.ndarray) -> np.ndarray:
        return alone - (by @ others[:, :, None])[:, :, 0]

    return back, g[:, p:] - (cross @ alone[:, :, None])[:, :, 0], f[:, p:, p:] - cross @ by
