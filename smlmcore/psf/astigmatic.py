"""The astigmatic Gaussian: a separable, pixel-integrated Gaussian whose two widths tell the depth z.

    sigma(z) = sigma0 * sqrt(1 + u^2 + a u^3 + b u^4),   u = (z - gamma) / depth,   for x and y each

gamma is the z where that axis is in focus; by Huang's convention -gamma for y.  The image is that of `gaussian.py`, and
d/dz = (d/dsigma_x) dsigma_x/dz + (d/dsigma_y) dsigma_y/dz.  (Huang et al. 2008, Science 319, 810; Smith et al. 2010,
Nature Methods 7, 373.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numba
import numpy as np

from .. import backend, kernel
from ..autograd import ops
from . import moments
from .base import PSF, Bounds, run_partials, stack_emitters
from .elliptic import EllipticGaussian2D
from .gaussian import SIZES, axes_cpu, block_per_image, draw, sample, separable, separable_cpu, widths_cpu

# ---------------------------------------------------------------- reference: the definition


def _polynomial(z: Any, calibration: Any) -> tuple[Any, Any]:
    """(sigma(z) / sigma0)^2 of one axis, and its derivative to z."""
    _, gamma, depth, a, b = calibration
    u = (z - gamma) * (1 / depth)
    return 1 + u * u * (1 + u * (a + u * b)), u * (2 + u * (3 * a + 4 * b * u)) * (1 / depth)


def _width(z: Any, calibration: Any) -> Any:
    """sigma(z) of one axis, array or Tensor."""
    return ops.sqrt(_polynomial(z, calibration)[0]) * calibration[0]


def _partials(parameters, calibration, value, partials):
    x, y, z, photons, background = parameters.T
    axes = calibration[:5], calibration[5:]
    sigma_x, sigma_y = (_width(z, c) for c in axes)
    value[...], d = separable(x, y, photons, background, sigma_x, sigma_y, value.shape[1:])
    slopes = (
        (c[0] ** 2 * _polynomial(z, c)[1] / (2 * s))[:, None, None]
        for c, s in zip(axes, (sigma_x, sigma_y), strict=True)
    )
    slope_x, slope_y = slopes
    d["z"] = slope_x * d["sigma_x"] + slope_y * d["sigma_y"]
    for column, name in enumerate(AstigmaticGaussian.names):
        partials[:, column] = d[name]


# ---------------------------------------------------------------- cpu


@numba.njit(cache=True, error_model="numpy")
def _width_cpu(z, calibration):
    """sigma(z) of one axis, and its derivative."""
    real = type(z)
    q, a, b = real(1) / calibration[2], calibration[3], calibration[4]
    u = (z - calibration[1]) * q
    sigma = calibration[0] * math.sqrt(real(1) + u * u * (real(1) + u * (a + u * b)))
    slope = u * (real(2) + u * (real(3) * a + real(4) * b * u)) * q
    return sigma, real(0.5) * calibration[0] * calibration[0] / sigma * slope


@numba.njit(cache=True, error_model="numpy")
def _spot(theta, constants, value, partials, scratch):
    sigma_x, slope_x = _width_cpu(theta[2], constants[:5])
    sigma_y, slope_y = _width_cpu(theta[2], constants[5:])
    a, b = axes_cpu(theta[0], theta[1], sigma_x, sigma_y, value.shape, scratch)
    separable_cpu(theta[3], theta[4], a, b, value, partials[0], partials[1], partials[3], partials[4])
    widths_cpu(theta[3], a, b, slope_x, slope_y, partials[2])


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _partials_cpu(parameters, calibration, value, partials):
    n, h, w = value.shape
    for i in numba.prange(n):
        _spot(parameters[i], calibration, value[i], partials[i], np.empty(3 * (h + w), value.dtype))


# ---------------------------------------------------------------- registration


def _sample(rng, n, h, w):
    x, y, photons, _, _, background = sample(rng, n, h, w)
    z = rng.uniform(-0.6, 0.6, n)
    calibration = [1.2, 0.2, 0.4, 0.1, -0.02, 1.3, -0.25, 0.45, -0.05, 0.03]
    return [np.stack([x[:, 0], y[:, 0], z, photons[:, 0], background], 1), np.array(calibration)]


partials_kernel = kernel.register(
    "astigmatic_partials",
    "parameters[n,5] calibration[10] -> value[n,h,w] partials[n,5,h,w]",
    _partials,
    cpu=_partials_cpu,
    cuda=kernel.Cuda("astigmatic.cu", block_per_image, threads=128, constants=("h", "w")),
    sample=_sample,
    cases=tuple(SIZES),
    bench={"n": 50_000, "h": 11, "w": 11},
)

# ---------------------------------------------------------------- the PSF


class Report(NamedTuple):
    """What `calibrate` measured: `z` (k,) in um, and for each slice, in columns x and y, (k, 2) pixels: the fitted
    `sigma`, its standard `error` and the `residual` from the calibration; `used` (k,) marks the slices it rests on.
    """

    z: np.ndarray
    sigma: np.ndarray
    error: np.ndarray
    residual: np.ndarray
    used: np.ndarray


class AstigmaticGaussian(PSF):
    """Pixel-integrated astigmatic Gaussian (module text: formula, source).

    Parameters: x, y (pixels), z (um), photons (of the whole PSF), background (photons per pixel).  The calibration,
    each a pair for x and y or one number for both: `sigma0` (pixels, in focus), `gamma` (um, the z of the focus; one
    number g means g for x and -g for y), `depth` (um, at which sigma has grown by sqrt(2)), `a` and `b` (higher
    orders).  `z_range` (um): where it holds; fits stay inside.  `calibrate` finds it all from images of a bead.

    >>> psf = AstigmaticGaussian(1.2, gamma=0.25, depth=0.4)
    >>> psf.sigma([0.25, -0.25]).round(3)  # columns x, y
    array([[1.2  , 1.921],
           [1.921, 1.2  ]])
    """

    names = ("x", "y", "z", "photons", "background")
    linear = ("photons", "background")
    numba_partials = staticmethod(_spot)
    report: Report | None = None  # of `calibrate`

    def __init__(
        self,
        sigma0: float | tuple[float, float],
        gamma: float | tuple[float, float],
        depth: float | tuple[float, float],
        a: float | tuple[float, float] = 0.0,
        b: float | tuple[float, float] = 0.0,
        z_range: tuple[float, float] = (-0.8, 0.8),
    ) -> None:
        given = {"sigma0": sigma0, "gamma": gamma, "depth": depth, "a": a, "b": b}
        pairs = {k: _pair(k, v) for k, v in given.items()}
        if np.ndim(gamma) == 0:
            pairs["gamma"] = (pairs["gamma"][0], -pairs["gamma"][1])
        for name in ("sigma0", "depth"):
            if not min(pairs[name]) > 0:
                raise ValueError(f"AstigmaticGaussian got {name}={given[name]}; expected lengths > 0")
        low, high = _pair("z_range", z_range)
        if not low < high:
            raise ValueError(f"AstigmaticGaussian got z_range={z_range}; expected (lowest, highest) z in um")
        self._pairs, self.z_range = pairs, (low, high)
        for axis, calibration in zip("xy", self.constants.reshape(2, 5), strict=True):
            lowest = _polynomial(np.linspace(low, high, 1001), calibration)[0].min()
            if not lowest > 0:
                raise ValueError(
                    f"AstigmaticGaussian got a calibration with no real sigma_{axis} everywhere in z_range {z_range}: "
                    f"(sigma/sigma0)^2 falls to {lowest:.3g}; narrow z_range or check a and b"
                )

    @property
    def constants(self) -> np.ndarray:
        return np.array(list(self._pairs.values())).T.ravel()

    def configuration(self) -> dict[str, Any]:
        return {**{k: list(v) for k, v in self._pairs.items()}, "z_range": list(self.z_range)}

    def scratch_size(self, shape: tuple[int, int]) -> int:
        return 3 * sum(shape)

    def sigma(self, z: Any) -> Any:
        """sigma_x and sigma_y (..., 2) in pixels at `z` (um)."""
        z = backend.asarray(z)
        return backend.module(z).stack([_width(z, c) for c in self.constants.reshape(2, 5).tolist()], -1)

    def bounds(self, shape: tuple[int, int]) -> dict[str, Bounds]:
        """Bounds of each parameter when fitted to images of `shape`; z stays in the calibrated range."""
        return {**super().bounds(shape), "z": Bounds(*self.z_range, 0.2 * min(self._pairs["depth"]))}

    def render(self, parameters: Mapping[str, Any], shape: tuple[int, int], image: Any = None) -> Any:
        """Images (n, h, w) of the emitters' sum plus background; arrays or Tensors, (n,) or (n, emitters) each.

        `background` is (n,): counted once per image.  Differentiable in every parameter that is a Tensor.  With
        `image`, the index (emitters,) of each emitter's image, parameters are (emitters,), and emitters are drawn only
        where they are: for many in a large image.  Where the
        calibration's polynomial is negative, far outside `z_range`, the image is NaN.
        """
        x, y, z, photons, background = stack_emitters(self, parameters, ("x", "y", "z", "photons"), image)
        sigma_x, sigma_y = (_width(z, c) for c in self.constants.reshape(2, 5).tolist())
        return draw((x, y, photons, sigma_x, sigma_y, background), shape, image)

    def partials(self, parameters: Any, shape: tuple[int, int]) -> tuple[Any, Any]:
        """Images (n, h, w) and their derivatives (n, p, h, w) for one emitter per image, `parameters` (n, p)."""
        theta = self.check(parameters)
        calibration = backend.module(theta).asarray(self.constants, theta.dtype)
        return run_partials(partials_kernel, theta, shape, calibration)

    def guess(self, found: dict[str, Any], data: Any, weights: Any) -> dict[str, Any]:
        """The z, of those a third of the depth apart whose widths are nearest, that fits best."""
        xp, (low, high) = backend.module(data), self.z_range
        count = max(5, math.ceil(3 * (high - low) / min(self._pairs["depth"])))
        grid = low + (xp.arange(count) + 0.5) / count * (high - low)
        measured = xp.stack([found["sigma_x"], found["sigma_y"]], -1)[:, None]
        misfit = (xp.log(measured / self.sigma(grid)) ** 2).sum(2)
        depths = (grid[nearest].astype(data.dtype) for nearest in xp.argsort(misfit, 1)[:, :4].T)
        shapes = ({"x": found["x"], "y": found["y"], "z": z} for z in depths)
        return moments.likeliest(self, shapes, data, weights)

    @classmethod
    def calibrate(cls, stack: Any, z: Any, variance: Any = 0.0) -> AstigmaticGaussian:
        """The PSF from the images of a bead, `stack` (k, h, w) in photoelectrons, at known `z` (k,) in um.

        Each slice is fitted with an elliptic Gaussian; then sigma(z) of each axis, weighted with the slices' standard
        errors, by non-linear least squares.  The z range is that of the slices used; `report` tells what was measured.
        `variance`: read-noise variance, scalar, (h, w) or (k, h, w).
        """
        from .. import fit, loss

        stack, z = backend.to_cpu(stack), np.asarray(z, np.float64)
        if stack.ndim != 3 or z.shape != stack.shape[:1] or not np.isfinite(z).all():
            raise ValueError(
                f"AstigmaticGaussian.calibrate got a stack of shape {stack.shape} and z of shape {z.shape}; "
                "expected (slices, h, w) and one finite z in um for each slice"
            )
        elliptic = EllipticGaussian2D()
        start = elliptic.initial(stack, variance)
        result = fit.refine(elliptic, np.asarray(stack, float), variance, start, loss.PoissonGaussian())
        sigma = np.stack([result.sigma_x, result.sigma_y], 1)
        error = result.errors[:, [4, 5]]
        used = np.asarray(result.status) == fit.Status.converged
        if len(np.unique(z[used])) < 8:
            raise ValueError(
                f"AstigmaticGaussian.calibrate could fit {used.sum()} of {len(z)} slices, at "
                f"{len(np.unique(z[used]))} different z; expected 8 or more: check the stack's offset and gain, and z"
            )
        axes = np.array([_fit_width(z[used], sigma[used, i], error[used, i]) for i in (0, 1)])
        psf = cls(*axes.T, z_range=(z[used].min(), z[used].max()))
        psf.report = Report(z, sigma, error, sigma - psf.sigma(z), used)
        return psf


def _pair(name: str, value: Any) -> tuple[float, float]:
    """Two finite numbers, or one for both."""
    pair = np.atleast_1d(np.asarray(value, float))
    if pair.shape not in ((1,), (2,)) or not np.isfinite(pair).all():
        raise ValueError(f"AstigmaticGaussian got {name}={value}; expected a finite number or a pair, for x and y")
    return float(pair[0]), float(pair[-1])


def _fit_width(z: np.ndarray, sigma: np.ndarray, error: np.ndarray) -> np.ndarray:
    """sigma0, gamma, depth, a, b from sigma (k,) with standard error (k,) at z (k,)."""
    from scipy.optimize import least_squares

    # a parabola for sigma^2, whose minimum is in focus
    curvature, slope, _ = np.polyfit(z, sigma**2, 2, w=1 / (sigma * error))
    span = np.ptp(z)
    best = float(sigma.min())
    gamma = -slope / (2 * curvature) if curvature > 0 else z[sigma.argmin()]
    depth = best / np.sqrt(curvature) if curvature > 0 else span / 2
    start = [best, np.clip(gamma, z.min(), z.max()), np.clip(depth, 0.05 * span, 2 * span), 0.0, 0.0]

    def residuals(c):
        return (c[0] * np.sqrt(np.maximum(_polynomial(z, c)[0], 1e-3)) - sigma) / error

    lower = [0.1, z.min() - span, 0.01 * span, -np.inf, -np.inf]
    upper = [np.inf, z.max() + span, 10 * span, np.inf, np.inf]
    return least_squares(residuals, start, bounds=(lower, upper), x_scale=[0.1, 0.1, 0.1, 0.1, 0.1]).x
