"""The fitter on the GPU, for PSFs with a device function in `kernels/`: one image for each warp (kernels/fit.cuh)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .. import backend, kernel
from ..psf import AstigmaticGaussian, EllipticGaussian2D, Gaussian2D, Spline
from ..psf.base import PSF
from ..psf.rows import PAD
from . import generic
from .problem import Limits, limits
from .refine import lockstep

WARPS = 4  # of a block
PAIR = 2  # of a block, for tables that fill the shared memory


def device_kernel(psf: PSF) -> kernel.Kernel | None:
    """The kernel that fits this PSF, if there is one; a subclass may draw something else.

    >>> device_kernel(EllipticGaussian2D()).name
    'fit_elliptic2d'
    """
    return next((d.kernel for d in DEVICES if type(psf) is type(d.example) and d.suits(psf)), None)


def fit(
    psf: PSF,
    spots: Any,
    variance: Any,
    initial: Any,
    given: Limits,
    max_iterations: int,
    tolerance: float,
    out: tuple[Any, ...],
) -> None:
    """Maximum-likelihood fits on CuPy arrays; arguments as for `generic.fit`."""
    xp = backend.module(spots)
    real, n = spots.dtype, len(spots)
    maps = xp.empty((0, *spots.shape[1:]), real) if variance is None else variance.reshape(-1, *spots.shape[1:])
    bounds = xp.asarray(np.stack(given[:4]).clip(-1e30, 1e30), real)
    constants = psf.constants if device_kernel(psf) is not fit_gaussian2d else np.empty(0)  # sigma is a fixed column
    parameters, errors, status, iterations, log_likelihood, chi2 = out
    wide = xp.empty(n, np.int32)
    device_kernel(psf)(
        spots,
        maps,
        xp.ascontiguousarray(initial, real),
        bounds,
        xp.asarray(constants, real),
        xp.asarray(given.fixed, np.int32),
        xp.asarray([tolerance], real),
        max_iterations,
        out=(parameters, errors, log_likelihood, chi2, wide, iterations),
    )
    status[...] = wide


# ---------------------------------------------------------------- the kernels' other bodies


def _arguments(make, spots, variance, initial, bounds, constants, fixed, tolerance):
    """What the NumPy and the numba fitter are called with."""
    given = Limits(*np.asarray(bounds, np.float64), fixed.astype(bool), np.where(fixed, 1.0, np.nan))
    maps = None if not len(variance) else variance[0] if len(variance) == 1 else variance
    return make(constants), spots, maps, initial, given, float(tolerance[0])


def _reference(
    make, spots, variance, initial, bounds, constants, fixed, tolerance, max_iterations,
    parameters, errors, log_likelihood, chi2, status, iterations,
):  # fmt: skip
    psf, spots, maps, initial, given, tolerance = _arguments(
        make, spots, variance, initial, bounds, constants, fixed, tolerance
    )
    maps = 0.0 if maps is None else maps
    found = lockstep(psf, spots, maps, initial, given, max_iterations=max_iterations, tolerance=tolerance)
    parameters[...], errors[...], status[...] = found.parameters, found.errors, found.status
    log_likelihood[...], chi2[...], iterations[...] = found.log_likelihood, found.chi2, found.iterations


def _cpu(
    make, spots, variance, initial, bounds, constants, fixed, tolerance, max_iterations,
    parameters, errors, log_likelihood, chi2, status, iterations,
):  # fmt: skip
    psf, spots, maps, initial, given, tolerance = _arguments(
        make, spots, variance, initial, bounds, constants, fixed, tolerance
    )
    narrow = np.empty(len(spots), np.int8)
    out = (parameters, errors, narrow, iterations, log_likelihood, chi2)
    generic.fit(psf, spots, maps, None, initial, given, max_iterations, tolerance, False, out)
    status[...] = narrow


def _sample(psf, ranges, rng, n, h, w, m, max_iterations):
    """Spots that a fit can be sure of, started up to 10 % off; the first one with a pixel left out."""
    own = {"x": ((w - 2) / 2, w / 2), "y": ((h - 2) / 2, h / 2), "photons": (1000, 3000), "background": (2, 10)}
    truth = np.stack([rng.uniform(*(own | ranges)[name], n) for name in psf.names], 1)
    variance = rng.uniform(0.5, 4.0, (m, h, w))
    expected = psf.partials(truth, (h, w))[0]
    spots = rng.poisson(expected) + rng.normal(0, 1, expected.shape) * (np.sqrt(variance) if m else 0.0)
    if n:
        spots[0, 1, 1] = np.nan
    bounds = np.stack(limits(psf, (h, w))[:4]).clip(-1e30, 1e30)
    fixed = np.zeros(len(psf.names), np.int32)
    initial = truth * rng.uniform(0.9, 1.1, truth.shape)
    return [spots, variance, initial, bounds, np.asarray(psf.constants), fixed, np.array([1e-3]), max_iterations]


def _tolerance(expected: tuple[np.ndarray, ...], dtype: np.dtype) -> list[Any]:
    """How far a body may end from the reference.

    All stop within 1e-3 standard errors of the maximum, after steps that shrink the rest at least fivefold each; so in
    float32 their ends lie within 1e-3 standard errors, and a fit on the brink may take a step more.  In float64 they
    take the same steps.  Likelihood and chi square are sums of terms of up to their own size.
    """
    _, errors, likelihood, chi2, *_ = expected
    single = np.dtype(dtype) == np.float32
    part, rounding = (1e-3, 1e-6) if single else (1e-8, 1e-12)
    return [part * errors, part * errors, part + rounding * abs(likelihood), part * chi2, 0, int(single)]


# ---------------------------------------------------------------- registration


class Device(NamedTuple):
    """A PSF that the GPU can fit: one like `example` for which `suits`."""

    example: PSF
    kernel: kernel.Kernel
    suits: Callable[[Any], bool] = lambda psf: True


def _register(
    name: str, psf: PSF, make: Callable[[Any], PSF], ranges: Mapping[str, tuple[float, float]], warps: int = WARPS
) -> kernel.Kernel:
    """A kernel that fits PSFs like `psf`, which `make` makes of their constants; `ranges` of its own parameters."""
    p, k = len(psf.names), len(psf.constants)
    cases = [(0, 7, 7, 0), (1, 7, 7, 1), (5, 11, 11, 0), (3, 9, 12, 3), (2, 32, 32, 1)]
    return kernel.register(
        name,
        f"spots[n,h,w] variance[m,h,w] initial[n,{p}] limits[4,{p}] constants[k] fixed[{p}]:int32 tolerance[1] "
        f"max_iterations:int -> parameters[n,{p}] errors[n,{p}] log_likelihood[n] chi2[n] status[n]:int32 "
        "iterations[n]:int32",
        partial(_reference, make),
        cpu=partial(_cpu, make),
        cuda=kernel.Cuda("fit.cu", lambda dims: -(-dims["n"] // warps), 32 * warps, ("h", "w")),
        sample=lambda rng, n, h, w, m, max_iterations, k: _sample(psf, ranges, rng, n, h, w, m, max_iterations),
        cases=tuple({"n": n, "h": h, "w": w, "m": m, "k": k, "max_iterations": 20} for n, h, w, m in cases),
        bench={"n": 100_000, "h": 11, "w": 11, "m": 0, "k": k, "max_iterations": 20},
        tolerance=_tolerance,
    )


def _astigmatic(constants: Any) -> AstigmaticGaussian:
    pairs = np.reshape(np.asarray(constants, float), (2, 5)).T
    return AstigmaticGaussian(*map(tuple, pairs))


def _spline(constants: Any) -> Spline:
    """The spline PSF whose constants these are, in which the coefficients have a border."""
    constants = np.asarray(constants, float)
    table = constants[7:].reshape(constants[:3].astype(int))
    (z, y, x), per_um = constants[3:6], constants[6]
    return Spline(table[1:-1, PAD:-PAD, PAD:-PAD], 1 / per_um, (z - 1, y - PAD, x - PAD))


def _like_astigmatic() -> Spline:
    """Coefficients that need no filter: Gaussians of width 1.1 to 2 pixels, in x and in y each in focus elsewhere."""
    z, u = np.linspace(-1, 1, 11), np.arange(-7.0, 8.0)
    y, x = (np.exp(-(u**2) / (2 * (1.2 + 0.6 * (z[:, None] + at) ** 2))) for at in (-0.5, 0.5))
    image = y[:, :, None] * x[:, None, :]
    return Spline(image / image.sum((1, 2), keepdims=True), 0.1)


_WIDTHS = {"sigma_x": (1.0, 1.2), "sigma_y": (1.3, 1.5)}

fit_gaussian2d = _register("fit_gaussian2d", Gaussian2D(), lambda c: Gaussian2D(), {"sigma": (1.0, 1.3)})
fit_elliptic2d = _register("fit_elliptic2d", EllipticGaussian2D(), lambda c: EllipticGaussian2D(), _WIDTHS)
fit_rotated2d = _register(
    "fit_rotated2d",
    EllipticGaussian2D(rotated=True),
    lambda c: EllipticGaussian2D(rotated=True),
    {"sigma_x": (1.7, 1.9), "sigma_y": (0.9, 1.0), "angle": (0.5, 1.0)},
)
fit_astigmatic = _register(
    "fit_astigmatic", AstigmaticGaussian(1.2, gamma=0.2, depth=0.4, a=0.05), _astigmatic, {"z": (-0.3, 0.3)}
)
fit_spline = _register("fit_spline", _like_astigmatic(), _spline, {"z": (-0.3, 0.3)}, PAIR)

DEVICES = (
    Device(Gaussian2D(), fit_gaussian2d),
    Device(EllipticGaussian2D(), fit_elliptic2d, lambda psf: not psf.rotated),
    Device(EllipticGaussian2D(rotated=True), fit_rotated2d, lambda psf: psf.rotated and not psf.fixed),
    Device(AstigmaticGaussian(1.0, 0.2, 0.4), fit_astigmatic),
    Device(_like_astigmatic(), fit_spline),
)
