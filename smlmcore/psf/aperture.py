"""The pupil of an objective without aberrations: its samples, the waves that pass through it, and their depth phases.

A wave of lateral wave number k0 NA rho, rho <= 1, makes the angle theta_imm with the axis in the immersion medium and
theta_med in that of the emitter: n_imm sin(theta_imm) = n_med sin(theta_med) = NA rho.  Where NA rho > n_med it is
supercritical: cos(theta_med) is imaginary, the wave decays with the distance from the cover glass.  A dipole p sends

    E = a_p (p . e_p) (cos(phi), sin(phi)) + a_s (p . e_s) (-sin(phi), cos(phi))         field in the pupil, x and y
    e_p = (cos(phi) cos(theta_med), sin(phi) cos(theta_med), sin(theta_med)),   e_s = (-sin(phi), cos(phi), 0)
    a = t sqrt(cos(theta_imm)) / cos(theta_med)          apodisation, t: Fresnel's transmission from medium to immersion

through it (Richards & Wolf 1959, Proc. R. Soc. A 253, 358; Arnoldus & Foley 2004, J. Opt. Soc. Am. A 21, 1109).  A
dipole that rotates freely while it is seen adds the intensities of p = x, y, z: six fields, two of them equal.  The
scalar model is one field, (a_p + a_s) / 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from . import zernike


@dataclass(frozen=True)
class Optics:
    """The numbers that make an aperture; see `Pupil` for their meaning."""

    na: float
    wavelength: float
    n_immersion: float
    n_medium: float
    samples: int
    vectorial: bool
    dipole: tuple[float, float] | None
    apodization: bool
    depth: float
    focus: float
    moves: str


@dataclass(frozen=True)
class Aperture:
    """Samples of the pupil, (m, m) over v (rows, along y) and u (columns, along x) of [-1, 1]; float64.

    `rho` <= 1, `phi`: polar coordinates; `weight`: the part of the sample's cell that is inside; `fields` (c, m, m):
    complex fields of an emitter at z = 0, without aberrations; `axial` (m, m): complex wave number along z, rad/um.
    """

    rho: np.ndarray
    phi: np.ndarray
    weight: np.ndarray
    fields: np.ndarray
    axial: np.ndarray


@lru_cache(maxsize=8)
def aperture(o: Optics) -> Aperture:
    """The aperture of these optics; kept, as it is asked for again and again."""
    u = (np.arange(o.samples) + 0.5) * 2 / o.samples - 1
    x, y = np.meshgrid(u, u)
    rho, phi = np.minimum(np.hypot(x, y), 1.0), np.arctan2(y, x)  # at the rim also where a cell's centre is outside
    weight = coverage(o.samples)
    sine = o.na * rho
    cos_imm = np.sqrt(1 - (sine / o.n_immersion) ** 2)
    cos_med = np.sqrt(1 - (sine / o.n_medium) ** 2 + 0j)  # +i |cos|: decays away from the glass
    k0 = 2 * np.pi / o.wavelength
    in_medium, in_immersion = k0 * o.n_medium * cos_med, k0 * o.n_immersion * cos_imm
    root = np.sqrt(cos_imm) * (1 if o.apodization else np.sqrt(cos_imm))
    a_p = 2 * o.n_medium * root / (o.n_immersion * cos_med + o.n_medium * cos_imm)
    a_s = 2 * o.n_medium * root / (o.n_medium * cos_med + o.n_immersion * cos_imm)
    fields = _dipoles(a_p, a_s, cos_med, sine / o.n_medium, phi, o.dipole) if o.vectorial else (a_p + a_s)[None] / 2
    fields = fields * np.exp(1j * (in_medium * o.depth - in_immersion * o.focus))
    axial = in_medium if o.moves == "emitter" else in_immersion + 0j
    found = Aperture(rho, phi, weight, np.where(weight > 0, fields, 0), np.where(weight > 0, axial, 0))
    for array in vars(found).values():
        array.setflags(write=False)
    return found


@lru_cache(maxsize=8)
def polynomials(o: Optics, modes: tuple[zernike.Mode, ...]) -> np.ndarray:
    """Zernike polynomials (k, m, m) at the samples; kept."""
    a = aperture(o)
    found = zernike.basis(modes, a.rho, a.phi)
    found.setflags(write=False)
    return found


def _dipoles(a_p, a_s, cosine, sine, phi, dipole):
    """Fields (c, m, m): x and y of a fixed dipole (polar, azimuth), or the five of one that rotates freely."""
    c, s = np.cos(phi), np.sin(phi)
    xx, xy, yy = a_p * cosine * c * c + a_s * s * s, (a_p * cosine - a_s) * c * s, a_p * cosine * s * s + a_s * c * c
    xz, yz = a_p * sine * c, a_p * sine * s
    if dipole is None:
        return np.stack([xx, math.sqrt(2) * xy, yy, xz, yz])
    polar, azimuth = dipole
    px, py, pz = math.sin(polar) * math.cos(azimuth), math.sin(polar) * math.sin(azimuth), math.cos(polar)
    return np.stack([px * xx + py * xy + pz * xz, px * xy + py * yy + pz * yz])


def coverage(samples: int, fine: int = 32) -> np.ndarray:
    """The part of each of samples x samples cells of the square [-1, 1]^2 that lies in the unit disc.

    Exact along x, by the midpoint rule with `fine` lines in each cell along y.

    >>> round(float(coverage(10).sum()) * 0.04, 3)
    3.142
    """
    edges = np.linspace(-1, 1, samples + 1)
    lines = (np.arange(samples * fine) + 0.5) * 2 / (samples * fine) - 1
    half = np.sqrt(1 - lines[:, None] ** 2)
    inside = np.diff(np.clip(edges, -half, half), axis=1) * samples / 2
    return inside.reshape(samples, fine, samples).mean(1)
