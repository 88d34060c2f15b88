"""The fitter on the GPU, for PSFs with a device function in `kernels/`: one image for each warp (kernels/fit.cuh)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import backend, kernel
from ..psf import Gaussian2D
from . import generic
from .problem import Limits, limits
from .refine import lockstep

WARPS = 4  # of a block


def fit(
    spots: Any, variance: Any, initial: Any, given: Limits, max_iterations: int, tolerance: float, out: tuple[Any, ...]
) -> None:
    """Maximum-likelihood fits of `Gaussian2D()` on CuPy arrays; arguments as for `generic.fit`."""
    xp = backend.module(spots)
    real, n = spots.dtype, len(spots)
    maps = xp.empty((0, *spots.shape[1:]), real) if variance is None else variance.reshape(-1, *spots.shape[1:])
    bounds = xp.asarray(np.stack(given[:4]).clip(-1e30, 1e30), real)
    parameters, errors, status, iterations, log_likelihood, chi2 = out
    wide = xp.empty(n, np.int32)
    fit_gaussian2d(
        spots,
        maps,
        xp.ascontiguousarray(initial, real),
        bounds,
        xp.asarray(given.fixed, np.int32),
        xp.asarray([tolerance], real),
        max_iterations,
        out=(parameters, errors, log_likelihood, chi2, wide, iterations),
    )
    status[...] = wide


def _arguments(spots, variance, initial, bounds, fixed, tolerance):
    """What the NumPy and the numba fitter are called with."""
    given = Limits(*np.asarray(bounds, np.float64), fixed.astype(bool), np.where(fixed, 1.0, np.nan))
    maps = None if not len(variance) else variance[0] if len(variance) == 1 else variance
    return Gaussian2D(), spots, maps, initial, given, float(tolerance[0])


def _reference(
    spots, variance, initial, bounds, fixed, tolerance, max_iterations,
    parameters, errors, log_likelihood, chi2, status, iterations,
):  # fmt: skip
    psf, spots, maps, initial, given, tolerance = _arguments(spots, variance, initial, bounds, fixed, tolerance)
    maps = 0.0 if maps is None else maps
    found = lockstep(psf, spots, maps, initial, given, max_iterations=max_iterations, tolerance=tolerance)
    parameters[...], errors[...], status[...] = found.parameters, found.errors, found.status
    log_likelihood[...], chi2[...], iterations[...] = found.log_likelihood, found.chi2, found.iterations


def _cpu(
    spots, variance, initial, bounds, fixed, tolerance, max_iterations,
    parameters, errors, log_likelihood, chi2, status, iterations,
):  # fmt: skip
    psf, spots, maps, initial, given, tolerance = _arguments(spots, variance, initial, bounds, fixed, tolerance)
    narrow = np.empty(len(spots), np.int8)
    out = (parameters, errors, narrow, iterations, log_likelihood, chi2)
    generic.fit(psf, spots, maps, None, initial, given, max_iterations, tolerance, False, out)
    status[...] = narrow


def _sample(rng, n, h, w, m, max_iterations):
    """Spots that a fit can be sure of, started 10 % off; the first one with a pixel left out."""
    psf = Gaussian2D()
    truth = np.stack(
        [
            (w - 1) / 2 + rng.uniform(-0.5, 0.5, n),
            (h - 1) / 2 + rng.uniform(-0.5, 0.5, n),
            rng.uniform(1000, 3000, n),
            rng.uniform(2, 10, n),
            rng.uniform(1.0, 1.3, n),
        ],
        1,
    )
    variance = rng.uniform(0.5, 4.0, (m, h, w))
    expected = psf.partials(truth, (h, w))[0]
    spots = rng.poisson(expected) + rng.normal(0, 1, expected.shape) * (np.sqrt(variance) if m else 0.0)
    if n:
        spots[0, 1, 1] = np.nan
    own = limits(psf, (h, w))
    fixed = np.zeros(5, np.int32)
    initial = truth * rng.uniform(0.9, 1.1, truth.shape)
    return [spots, variance, initial, np.stack(own[:4]).clip(-1e30, 1e30), fixed, np.array([1e-3]), max_iterations]


def _tolerance(expected: tuple[np.ndarray, ...], dtype: np.dtype) -> list[Any]:
    """How far a body may end from the reference.

    All stop where less than 1e-3 standard errors are left, after steps that shrink the rest at least fivefold each; so
    in float32 their ends lie within 1e-3 standard errors, and a fit on the brink may take a step more.  In float64 they
    take the same steps.  Likelihood and chi square are sums of terms of up to their own size.
    """
    _, errors, likelihood, chi2, *_ = expected
    single = np.dtype(dtype) == np.float32
    part, rounding = (1e-3, 1e-6) if single else (1e-8, 1e-12)
    return [part * errors, part * errors, part + rounding * abs(likelihood), part * chi2, 0, int(single)]


fit_gaussian2d = kernel.register(
    "fit_gaussian2d",
    "spots[n,h,w] variance[m,h,w] initial[n,5] limits[4,5] fixed[5]:int32 tolerance[1] max_iterations:int -> "
    "parameters[n,5] errors[n,5] log_likelihood[n] chi2[n] status[n]:int32 iterations[n]:int32",
    _reference,
    cpu=_cpu,
    cuda=kernel.Cuda("fit.cu", lambda dims: -(-dims["n"] // WARPS), 32 * WARPS, ("h", "w")),
    sample=_sample,
    cases=tuple(
        {"n": n, "h": h, "w": w, "m": m, "max_iterations": 20}
        for n, h, w, m in [(0, 7, 7, 0), (1, 7, 7, 1), (5, 11, 11, 0), (3, 9, 12, 3), (2, 32, 32, 1)]
    ),
    bench={"n": 100_000, "h": 11, "w": 11, "m": 0, "max_iterations": 20},
    tolerance=_tolerance,
)
