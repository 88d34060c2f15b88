"""The PSF behind a pupil: Fourier optics of high numerical aperture, scalar or vectorial, exact and differentiable.

    mu(x, y) = photons sum_c |sum_(u, v) A_c(u, v) exp(i phase(u, v) + i k_z z + i k0 NA (u x + v y))|^2 + background

over the samples (u, v) of the pupil, rho <= 1, with the fields A_c of a dipole behind the objective (`aperture.py`)
times `magnitude`, and phase = sum_j zernike_j Z_j(u, v) + `phase`.  The sum over the pupil is a product of matrices for
each component, straight onto the pixels (`pupil_kernels.py`); a zero-padded FFT is never made.  docs/pupil.md holds the
conventions.  (Hanser et al. 2004, J. Microsc. 216, 32; Backer & Moerner 2014, J. Phys. Chem. B 118, 8313.)
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from typing import Any

import numpy as np

from .. import backend
from ..autograd import Tensor, ops, plain
from . import moments, pupil_cpu, zernike
from .aperture import Optics, aperture, polynomials
from .base import PSF, Bounds, arguments, run_partials, stack_emitters
from .blur import Blur, blur
from .pupil_kernels import partials_kernel, render_op

FORMAT = 1  # of `save`


class Pupil(PSF):
    """Image of a dipole through an objective with aberrations (module text: formula, sources).

    Parameters of an image: x, y (pixels), z (um), photons (of the whole PSF, over the infinite plane), background
    (photons per pixel).  What all images share:

    `na`, `wavelength` (um, vacuum), `n_immersion`, `n_medium` (refractive index around the emitter), `pixel_size` (um,
    in the sample).  `vectorial`: freely rotating dipole, or the `dipole` fixed at (polar, azimuth) in radians; else
    scalar.  `apodization`: the factor 1/sqrt(cos theta) of an aplanatic objective.

    `zernike`: phase in radians, {(n, m): coefficient}, or coefficients of `modes`, default Noll's 1, 2, ...; `phase`
    (m, m): radians for each sample, added; `magnitude`: (m, m), or {(n, m): b} for 1 + sum b Z.  Coefficients, `phase`
    and `magnitude` may be Tensors: what is rendered is differentiable in them.  `samples`: m, across the pupil.

    `depth` (um): distance of the emitter at z = 0 from the cover glass; `focus` (um): that of the focal plane, as if
    in the immersion medium, default where paraxial rays focus, depth n_immersion / n_medium.  `moves`: "emitter", z
    carries the emitter away from the glass; or "stage", z is the defocus by moving the objective (bead stacks).  Both
    grow away from the objective.

    `blur` (standard deviation, pixels), `bead` (diameter, um) and `integrate` (over the pixel's area) widen the image.
    `z_range` (um): where fits look.

    Raises `ValueError` for impossible optics, and where the samples are too few for a field or a z.

    >>> psf = Pupil(na=1.4, wavelength=0.68, n_immersion=1.518, n_medium=1.518, pixel_size=0.1, zernike={(2, 2): 0.5})
    >>> volume = psf.volume([-0.4, 0.0, 0.4], shape=(16, 15))
    >>> volume.shape, bool(volume.sum((1, 2)).max() < 1)
    ((3, 16, 15), True)
    >>> psf.render(7.0, 7.0, 0.1, [500.0, 900.0], 2.0, shape=(15, 15)).shape
    (2, 15, 15)
    """

    names = ("x", "y", "z", "photons", "background")
    linear = ("photons", "background")
    report: Any = None  # of `psf.retrieve` and `fit.learn_pupil`
    numba_partials = staticmethod(pupil_cpu.numba_partials)

    def __init__(
        self,
        na: float,
        wavelength: float,
        n_immersion: float,
        n_medium: float,
        pixel_size: float,
        vectorial: bool = True,
        zernike: Any = None,
        modes: Sequence[Sequence[int]] | None = None,
        phase: Any = None,
        magnitude: Any = None,
        samples: int = 64,
        dipole: Sequence[float] | None = None,
        apodization: bool = True,
        depth: float = 0.0,
        focus: float | None = None,
        moves: str = "emitter",
        blur: float = 0.0,
        bead: float = 0.0,
        integrate: bool = False,
        z_range: Sequence[float] = (-1.0, 1.0),
    ) -> None:
        _check(na, wavelength, n_immersion, n_medium, pixel_size, samples, dipole, vectorial, depth, moves, blur, bead)
        self.z_range = (float(z_range[0]), float(z_range[1]))
        if not self.z_range[0] < self.z_range[1]:
            raise ValueError(f"Pupil got z_range={z_range}; expected (lowest, highest) z in um")
        focus = depth * n_immersion / n_medium if focus is None else focus
        dipole = None if dipole is None else (float(dipole[0]), float(dipole[1]))
        numbers = (na, wavelength, n_immersion, n_medium)
        self.optics = Optics(
            *map(float, numbers), int(samples), vectorial, dipole, apodization, float(depth), float(focus), moves
        )
        self.pixel_size, self.sigma, self.bead, self.integrate = float(pixel_size), float(blur), float(bead), integrate
        self.modes, self.zernike, self.phase, self.magnitude = [], np.zeros(0), None, None
        self._set(zernike, modes, phase, magnitude)

    def replace(
        self,
        zernike: Any = None,
        modes: Sequence[Sequence[int]] | None = None,
        phase: Any = None,
        magnitude: Any = None,
    ) -> Pupil:
        """The same PSF with other aberrations, arguments as for the constructor; None leaves what there is.

        This is how a pupil is learned: the coefficients come as a Tensor, rendering records the rest.

        >>> from smlmcore.autograd import Tensor
        >>> psf = Pupil(1.2, 0.6, 1.33, 1.33, 0.1, zernike={(2, 2): 0.0, (3, 1): 0.0}, samples=32)
        >>> c = Tensor(np.array([0.1, 0.2]))
        >>> (psf.replace(zernike=c).render(4.0, 4.0, 0.2, 100.0, 1.0, shape=(9, 9))[0, 4, 4]).backward()
        >>> c.grad.shape
        (2,)
        """
        twin = copy.copy(self)
        twin._set(zernike, modes, phase, magnitude)
        return twin

    def detach(self) -> Pupil:
        """The same PSF with NumPy arrays in place of Tensors and of arrays on a GPU."""
        maps = (None if v is None else backend.to_cpu(plain(v)) for v in (self.zernike, self.phase, self.magnitude))
        return self.replace(**dict(zip(("zernike", "phase", "magnitude"), maps, strict=True)))

    def _set(self, coefficients: Any, modes: Any, phase: Any, magnitude: Any) -> None:
        """Take over aberrations that are given, checked."""
        self._made: dict[Any, Any] = {}  # fields by dtype and array library
        if isinstance(coefficients, Mapping):
            modes, coefficients = list(coefficients), np.array(list(coefficients.values()), float)
        if coefficients is not None:
            coefficients = _real(coefficients)
            if coefficients.ndim != 1:
                raise ValueError(
                    f"Pupil got zernike of shape {coefficients.shape}; expected (k,) or {{(n, m): radians}}"
                )
            if modes is None:
                same = len(self.modes) == len(coefficients)
                modes = self.modes if same else zernike.noll(len(coefficients))
            self.zernike = coefficients
        if modes is not None:
            self.modes = [zernike.check(*mode) for mode in modes]
        if len(self.modes) != len(self.zernike):
            raise ValueError(f"Pupil got {len(self.zernike)} zernike coefficients for {len(self.modes)} modes")
        if isinstance(magnitude, Mapping):
            b = np.array(list(magnitude.values()), float)
            magnitude = 1 + np.einsum("k,kvu->vu", b, self.polynomials(list(magnitude)))
        for name, value in (("phase", phase), ("magnitude", magnitude)):
            if value is not None:
                value = _real(value)
                m = self.optics.samples
                if value.shape != (m, m):
                    raise ValueError(f"Pupil got {name} of shape {value.shape}; expected ({m}, {m}), its samples")
                setattr(self, name, value)

    # ---------------------------------------------------------------- the pupil

    @property
    def samples(self) -> int:
        """Samples across the pupil."""
        return self.optics.samples

    @property
    def inside(self) -> np.ndarray:
        """Which samples (m, m) are in the aperture, in whole or in part."""
        return aperture(self.optics).weight > 0

    @property
    def weight(self) -> np.ndarray:
        """The part (m, m) of each sample's cell that is inside the aperture."""
        return aperture(self.optics).weight

    def polynomials(self, modes: Sequence[Sequence[int]] | None = None) -> np.ndarray:
        """Zernike polynomials (k, m, m) of `modes`, default the pupil's own, at the samples; float64."""
        return polynomials(
            self.optics, tuple(zernike.check(*mode) for mode in (self.modes if modes is None else modes))
        )

    def aberration(self) -> Any:
        """The phase (m, m) in radians: Zernikes and pixels together, array or Tensor; 0 outside."""
        xp, m = backend.module(plain(self.zernike)), self.samples
        polynomials = xp.asarray((self.polynomials() * self.inside).reshape(-1, m * m), self.zernike.dtype)
        total = ops.matmul(self.zernike, polynomials).reshape(m, m)
        return total if self.phase is None else total + self.phase * xp.asarray(self.inside, self.phase.dtype)

    def remove_tip_tilt_defocus(self) -> tuple[Pupil, dict[str, float]]:
        """The pupil without the phases that only move its image, and how far they do: (pupil, {"x", "y", "z"}).

        Piston, tip, tilt and the phase of a change of z (k_z, not the Zernike defocus) are fitted to the aberration
        jointly, by least squares over the aperture, and taken off the pixel-wise `phase`.  An image of this pupil at
        x, y (pixels), z (um) is one of the new pupil at x + shift["x"], y + shift["y"], z + shift["z"] (exactly so for
        waves that are not evanescent).

        >>> p = Pupil(1.2, 0.6, 1.33, 1.33, 0.1, zernike={(1, 1): 0.5, (2, 2): 0.3}, samples=32)
        >>> pupil, shift = p.remove_tip_tilt_defocus()
        >>> round(shift["x"], 3), round(abs(shift["z"]), 3)
        (-0.796, 0.0)
        """
        xp = backend.module(plain(self.zernike), plain(self.phase), name="remove_tip_tilt_defocus")
        m, a = self.samples, aperture(self.optics)
        u = (np.arange(m) + 0.5) * 2 / m - 1
        design = np.stack([np.ones((m, m)), *np.meshgrid(u, u), a.axial.real - a.axial.real.max()])
        flat, weight = xp.asarray(design.reshape(4, -1)), xp.asarray(a.weight.ravel())
        aberration = plain(self.aberration()).astype(np.float64)
        found = xp.linalg.solve((flat * weight) @ flat.T, (flat * weight) @ aberration.ravel())
        phase = 0 if self.phase is None else plain(self.phase)
        pupil = self.replace(phase=phase - (found @ flat).reshape(m, m) * xp.asarray(self.inside))
        _, u, v, z = map(float, found)
        return pupil, {"x": -2 * u / (m * self.step), "y": -2 * v / (m * self.step), "z": z}

    def _fields(self, xp: Any, dtype: Any) -> tuple[Any, ...]:
        """What the kernels take: pupil (c, 2, m, m), axial (2, m, m), and the energy: constant part, others, decay.

        The energy of an image is constant + others @ exp(-2 decay max(z, floor)): that of propagating waves, and that
        of evanescent ones at the samples where there are any.
        """
        key = (xp.__name__, np.dtype(dtype))
        if key not in self._made:
            found = self._make(xp, dtype)
            learned = any(isinstance(v, Tensor) for v in (self.zernike, self.phase, self.magnitude))
            if learned:
                return found
            self._made[key] = found
        return self._made[key]

    def _make(self, xp: Any, dtype: Any) -> tuple[Any, ...]:
        a = aperture(self.optics)
        energy = a.weight * (np.abs(a.fields) ** 2).sum(0)
        energy, scale = energy / energy.sum(), 1 / math.sqrt(energy.sum())
        fields = a.fields * a.weight * (scale * self.step / (2 * math.pi))
        outwards = a.axial[self.samples // 2 :, self.samples // 2 :]  # of all quadrants
        axial = np.stack([outwards.real, outwards.imag])
        re, im, e, axial = (xp.asarray(v, dtype) for v in (fields.real, fields.imag, energy, axial))
        if self.magnitude is not None:
            magnitude = _cast(self.magnitude, xp, dtype)
            re, im, e = re * magnitude, im * magnitude, e * (magnitude * magnitude)
        if len(self.modes) or self.phase is not None:
            aberration = _cast(self.aberration(), xp, dtype)
            c, s = ops.cos(aberration), ops.sin(aberration)
            re, im = re * c - im * s, re * s + im * c
        evanescent = np.flatnonzero(a.axial.imag)
        decay = xp.asarray(a.axial.imag.ravel()[evanescent], dtype)
        others = e.reshape(-1)[xp.asarray(evanescent)]
        constant = e.sum() - others.sum()
        return ops.stack([re, im], 1), axial, constant, others, decay

    @property
    def step(self) -> float:
        """Phase that one pixel makes from one pupil sample to the next, radians."""
        return 4 * math.pi * self.optics.na * self.pixel_size / (self.optics.wavelength * self.samples)

    @property
    def floor(self) -> float:
        """The z (um) at which the emitter is at the cover glass."""
        return -self.optics.depth

    @property
    def blur(self) -> Blur | None:
        """The filter that widens the image, or None."""
        sigma = math.hypot(self.sigma, self.bead / 2 / math.sqrt(5) / self.pixel_size)  # a sphere's, along one axis
        if not (sigma or self.integrate):
            return None
        return blur(4 * math.pi * self.optics.na * self.pixel_size / self.optics.wavelength, sigma, self.integrate)

    # ---------------------------------------------------------------- images

    def render(self, *parameters: Any, shape: tuple[int, int] | None = None) -> Any:
        """Images (n, h, w) of the emitters' sum plus background: `render(x, y, z, photons, background, shape=(h, w))`.

        Or `render(mapping, shape)` with parameters by name.  Arrays or Tensors, (n,) or (n, emitters) each;
        `background` (n,), counted once per image.  Differentiable in every parameter and every part of the pupil that
        is a Tensor.
        """
        values, shape = arguments(self, parameters, shape)
        x, y, z, photons, background = stack_emitters(self, values, ("x", "y", "z", "photons"))
        if not isinstance(z, Tensor):
            self.check_sampling(shape, z)
        n, emitters = x.shape
        x, y, z, photons = (v.reshape(-1) for v in (x, y, z, photons))
        xp, dtype = backend.module(plain(x)), x.dtype
        pupil, axial, constant, others, decay = self._fields(xp, dtype)
        energy = constant
        if len(decay):
            above = ops.maximum(z, self.floor)
            energy = energy + ops.matmul(ops.exp(above.reshape(-1, 1) * (-2 * decay)), others)
        photons = photons / energy
        filter_, fine, points = self.blur, 1, shape
        if filter_ is not None:
            fine, points = filter_.fine, tuple(filter_.points(s) for s in shape)
            x, y = x * fine + filter_.reach, y * fine + filter_.reach
        optics = xp.asarray([self.step / fine, self.floor], dtype)
        none = xp.zeros(n * emitters, dtype)
        alone = emitters == 1 and filter_ is None
        images = render_op(pupil, x, y, z, photons, background if alone else none, axial, optics, shape=points)
        if alone:
            return images
        if filter_ is not None:
            images = filter_(images, shape)
        return images.reshape(n, emitters, *shape).sum(1) + background.reshape(n, 1, 1)

    def volume(self, z: Any, shape: tuple[int, int], photons: Any = 1.0, background: Any = 0.0) -> Any:
        """Images (nz, h, w) of a centred emitter, at ((h-1)/2, (w-1)/2), at `z` (nz,) um."""
        z = z if isinstance(z, Tensor) else backend.asarray(z).reshape(-1)
        h, w = shape
        return self.render((w - 1) / 2, (h - 1) / 2, z, photons, background, shape=shape)

    def pictures(self) -> dict[str, Any]:
        """Phase and magnitude of the pupil, NaN outside, and the Zernike coefficients by mode.

        >>> psf = Pupil(1.2, 0.6, 1.33, 1.33, 0.1, zernike={(2, 2): 0.5}, samples=32)
        >>> psf.pictures()["Zernike coefficients (rad)"]
        {'astigmatism': 0.5}
        """
        psf = self.detach()
        magnitude = np.ones(psf.inside.shape) if psf.magnitude is None else psf.magnitude
        maps = {"pupil phase (rad)": psf.aberration(), "pupil magnitude": magnitude}
        bars = dict(zip(zernike.label(psf.modes), map(float, psf.zernike), strict=True))
        return {
            **{name: np.where(psf.inside, values, np.nan) for name, values in maps.items()},
            "Zernike coefficients (rad)": bars,
        }

    def partials(self, parameters: Any, shape: tuple[int, int]) -> tuple[Any, Any]:
        """Images (n, h, w) and their derivatives (n, 5, h, w) for one emitter per image, `parameters` (n, 5)."""
        theta = self.check(parameters)
        xp, dtype = backend.module(theta), theta.dtype
        pupil, axial, constant, others, decay = self._fields(xp, dtype)
        energy, slope = xp.full(len(theta), constant, dtype), xp.zeros(len(theta), dtype)
        if len(decay):
            z = xp.maximum(theta[:, 2], dtype.type(self.floor))
            flow = xp.exp(-2 * z[:, None] * decay)
            energy = energy + flow @ others
            slope = (flow @ (-2 * decay * others)) * (theta[:, 2] > self.floor)
        filter_, fine, points, moved = self.blur, 1, shape, theta.copy()
        moved[:, 3], moved[:, 4] = theta[:, 3] / energy, 0
        if filter_ is not None:
            fine, points = filter_.fine, tuple(filter_.points(s) for s in shape)
            moved[:, :2] = moved[:, :2] * fine + filter_.reach
        optics = xp.asarray([self.step / fine, self.floor], dtype)
        value, partials = run_partials(partials_kernel, moved, points, pupil, axial, optics)
        if filter_ is not None:
            value = filter_(value, shape)
            partials = filter_(partials.reshape(-1, *points), shape).reshape(*theta.shape, *shape)
            partials[:, :2] *= fine
            partials[:, 4] = 1
        partials[:, 2] -= value * (slope / energy)[:, None, None]
        partials[:, 3] /= energy[:, None, None]
        return value + theta[:, 4, None, None], partials

    # ---------------------------------------------------------------- sampling

    def samples_needed(self, shape: tuple[int, int], z: Any, light: float = 1.0) -> int:
        """Samples across the pupil that images of `shape` at `z` (um) need, for the part `light` of the pupil.

        The phase turns by less than pi from one sample to the next, du < pi / max |phase slope|; with fewer, copies of
        the image come into the field.  (A pixel-wise `phase` is not looked at: it is what its samples say.)  At the
        critical angle of an emitter in water the slope has no bound, for very little light.

        >>> psf = Pupil(1.4, 0.6, 1.518, 1.518, 0.05, vectorial=False)
        >>> psf.samples_needed((128, 128), [-1.6, 1.6])
        62
        """
        z = backend.to_cpu(plain(z)).ravel()
        z = z[np.isfinite(z)]
        if not z.size:
            return 1
        axial, inside = aperture(self.optics).axial.real, self.inside
        if "phase" not in self._made:
            phase = np.einsum("k,kvu->vu", backend.to_cpu(plain(self.zernike)), self.polynomials())
            self._made["phase"] = phase + _depth_phase(self.optics)
        most = 0.0
        for end in {float(z.min()), float(z.max())}:
            turned = self._made["phase"] + axial * end
            for a, seen in ((turned, inside), (turned.T, inside.T)):
                change = np.abs(np.diff(a, axis=0))[seen[1:] & seen[:-1]]
                rank = math.ceil(light * len(change)) - 1
                most = max(most, float(np.partition(change, rank)[rank]))
        return math.ceil(self.samples * (most + self.step * (max(shape) - 1) / 2) / math.pi)

    def check_sampling(self, shape: tuple[int, int], z: Any = None) -> None:
        """Raise `ValueError` if over 2 % of the pupil is too coarse for images of `shape` at `z` (or `z_range`)."""
        z = self.z_range if z is None else z
        if self.samples_needed(shape, z, light=0.98) > self.samples:
            extent = float(np.nanmax(np.abs(backend.to_cpu(plain(z)))))
            raise ValueError(
                f"Pupil with {self.samples} samples is too coarse for images of {tuple(shape)} pixels at |z| up to "
                f"{extent:.3g} um with these aberrations; give samples={self.samples_needed(shape, z)} or more, or a "
                "smaller field or z range"
            )

    # ---------------------------------------------------------------- fitting

    @property
    def constants(self) -> np.ndarray:
        pupil, axial, constant, others, decay = (backend.to_cpu(plain(v)) for v in self._fields(np, np.float64))
        filter_ = self.blur or Blur(np.ones(1), 1)
        optics = (self.step / filter_.fine, self.floor)
        return pupil_cpu.pack(pupil, axial, optics, np.r_[constant, others], decay, filter_.taps, filter_.fine)

    def bounds(self, shape: tuple[int, int]) -> dict[str, Bounds]:
        """Bounds of each parameter when fitted to images of `shape`; z stays in `z_range`."""
        self.check_sampling(shape)
        return {**super().bounds(shape), "z": Bounds(*self.z_range, 0.1)}

    def guess(self, found: dict[str, Any], data: Any, weights: Any) -> dict[str, Any]:
        """The z, of some over the range, at which photons and background fit best."""
        xp, (low, high) = backend.module(data), self.z_range
        count = max(5, math.ceil((high - low) / 0.15))
        depths = (low + (i + 0.5) / count * (high - low) for i in range(count))
        shapes = ({"x": found["x"], "y": found["y"], "z": xp.full(len(data), z, data.dtype)} for z in depths)
        return moments.likeliest(self, shapes, data, weights)

    # ---------------------------------------------------------------- files

    def configuration(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-ready."""
        maps = {"phase": self.phase, "magnitude": self.magnitude}
        return {
            **self._settings(),
            "zernike": backend.to_cpu(plain(self.zernike)).tolist(),
            "modes": [list(mode) for mode in self.modes],
            **{k: None if v is None else backend.to_cpu(plain(v)).tolist() for k, v in maps.items()},
        }

    def _settings(self) -> dict[str, Any]:
        optics = asdict(self.optics)
        optics["dipole"] = None if self.optics.dipole is None else list(self.optics.dipole)
        return {
            **optics,
            "pixel_size": self.pixel_size,
            "blur": self.sigma,
            "bead": self.bead,
            "integrate": self.integrate,
            "z_range": list(self.z_range),
        }

    def aberrated(self, zernike: Mapping[tuple[int, int], float]) -> Pupil:
        """The same PSF with the coefficients {(n, m): radians} added to its own.

        >>> psf = Pupil(1.4, 0.68, 1.518, 1.518, 0.1, zernike={(2, 2): 0.5})
        >>> psf.aberrated({(2, 2): 0.1, (3, 1): -0.2}).zernike.round(3)
        array([ 0.6, -0.2])
        """
        total = dict(zip(self.modes, plain(self.zernike), strict=True))
        for mode, coefficient in zernike.items():
            total[tuple(mode)] = total.get(tuple(mode), 0.0) + coefficient
        return type(self)(**self._settings(), zernike=total, phase=self.phase, magnitude=self.magnitude)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the PSF to `path` (.npz, no pickle; docs/pupil.md describes the file)."""
        from ..data import atomic

        maps = {"phase": self.phase, "magnitude": self.magnitude}
        arrays = {k: backend.to_cpu(plain(v)) for k, v in maps.items() if v is not None}
        header = json.dumps({"format": FORMAT, "kind": "Pupil", "settings": self._settings()})
        with atomic(path) as temporary, open(temporary, "wb") as file:
            np.savez(
                file,
                header=np.array(header),
                modes=np.array(self.modes, np.int64).reshape(-1, 2),
                zernike=backend.to_cpu(plain(self.zernike)),
                **arrays,
            )

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Pupil:
        """The PSF that `save` wrote; raises `DataError` for any other file."""
        from ..data import DataError

        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(str(file["header"]))
                names = {"modes", "zernike", "phase", "magnitude"}.intersection(file.files)
                arrays = {name: file[name] for name in names}
            if header["format"] != FORMAT or header["kind"] != "Pupil":
                raise ValueError(f"kind {header['kind']}, format {header['format']}")
            return cls(**header["settings"], **arrays)
        except (ValueError, KeyError, EOFError, OSError, TypeError) as error:
            raise DataError(f"{path} is no Pupil of this library, format {FORMAT} ({error})") from None


def _depth_phase(o: Optics) -> np.ndarray:
    """Phase (m, m) that depth and focus make, radians."""
    twin = {**asdict(o), "depth": 0.0, "focus": 0.0, "dipole": o.dipole}
    medium = aperture(Optics(**{**twin, "moves": "emitter"})).axial.real
    immersion = aperture(Optics(**{**twin, "moves": "stage"})).axial.real
    return medium * o.depth - immersion * o.focus


def _real(value: Any) -> Any:
    return value if isinstance(value, Tensor) else backend.asarray(value)


def _cast(value: Any, xp: Any, dtype: Any) -> Any:
    return ops.cast(value, dtype=dtype) if isinstance(value, Tensor) else xp.asarray(value, dtype)


def _check(na, wavelength, n_immersion, n_medium, pixel_size, samples, dipole, vectorial, depth, moves, blur, bead):
    """One error for optics that cannot be."""
    lengths = {"wavelength": wavelength, "pixel_size": pixel_size, "na": na}
    for name, value in {**lengths, "n_immersion": n_immersion, "n_medium": n_medium}.items():
        if not (np.ndim(value) == 0 and 0 < value < np.inf):
            unit = " in um" if name in ("wavelength", "pixel_size") else ""
            raise ValueError(f"Pupil got {name}={value}; expected a number > 0{unit}")
    if min(n_immersion, n_medium) < 1:
        raise ValueError(f"Pupil got refractive indices {n_immersion} and {n_medium}; expected 1 or more")
    if na >= n_immersion:
        raise ValueError(
            f"Pupil got na={na} with n_immersion={n_immersion}; no wave is steeper than 90 degrees: expected na below "
            "n_immersion (oil 1.518, silicone 1.406, water 1.333, air 1)"
        )
    if int(samples) != samples or samples < 4:
        raise ValueError(f"Pupil got samples={samples}; expected a whole number, 4 or more")
    if dipole is not None and (np.shape(dipole) != (2,) or not vectorial):
        raise ValueError(f"Pupil got dipole={dipole}; expected (polar, azimuth) in radians, and vectorial=True")
    if moves not in ("emitter", "stage"):
        raise ValueError(f"Pupil got moves={moves!r}; expected 'emitter' or 'stage': what z moves")
    for name, value in {"depth": depth, "blur": blur, "bead": bead}.items():
        if not 0 <= value < np.inf:
            raise ValueError(f"Pupil got {name}={value}; expected a number, 0 or more")
