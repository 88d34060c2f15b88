"""The pixel-integrated elliptic Gaussian, along the pixels or rotated.

Along the pixels it is the separable image of `gaussian.py` with a sigma for each axis, exactly integrated.  Rotated,

    mu(i, j) = photons * (integral of f over pixel (i, j)) + background
    f(u, v)  = exp(-(u^2 + v^2) / 2) / (2 pi sigma_x sigma_y)
    u =  (cos(a) dx + sin(a) dy) / sigma_x,   v = (-sin(a) dx + cos(a) dy) / sigma_y

the integral is taken at 3 x 3 Gauss-Legendre points in each pixel: within 6e-5 of the peak for sigmas >= 0.8 pixels,
and 2e-5 for sigmas >= 1 (but 1e-3 for 0.5).  The derivatives are those of that very sum, all linear in the moments
m_pq = integral of f u^p v^q over the pixel: d/dx = (cos(a)/sigma_x) m_10 - (sin(a)/sigma_y) m_01,
d/dsigma_x = (m_20 - m_00) / sigma_x, d/da = (sigma_x/sigma_y - sigma_y/sigma_x) m_11, and so on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numba
import numpy as np

from .. import backend, kernel
from ..autograd import op
from .base import PSF, run_partials, stack_emitters
from .gaussian import SIZES, axes_cpu, block_per_image, draw, sample, separable, separable_cpu

NODE = math.sqrt(0.6) / 2  # Gauss-Legendre of three points on (-1/2, 1/2): -NODE, 0, NODE

# ---------------------------------------------------------------- reference: the definition


def _elliptic_partials(parameters, value, partials):
    value[...], d = separable(*parameters.T, value.shape[1:])
    for column, name in enumerate(EllipticGaussian2D().names):
        partials[:, column] = d[name]


def _moments(x, y, sigma_x, sigma_y, angle, shape):
    """Moments (6, ..., h, w) of f over each pixel: of 1, u, v, u^2, v^2, u v."""
    x, y, sigma_x, sigma_y, angle = (v[..., None, None, None, None] for v in (x, y, sigma_x, sigma_y, angle))
    nodes, weights = np.polynomial.legendre.leggauss(3)
    dy = np.arange(shape[0])[:, None, None, None] + nodes[:, None] / 2 - y
    dx = np.arange(shape[1])[None, :, None, None] + nodes / 2 - x
    u = (np.cos(angle) * dx + np.sin(angle) * dy) / sigma_x
    v = (-np.sin(angle) * dx + np.cos(angle) * dy) / sigma_y
    f = np.outer(weights, weights) / 4 * np.exp(-0.5 * (u**2 + v**2)) / (2 * np.pi * sigma_x * sigma_y)
    return [(f * factor).sum((-2, -1)) for factor in (1, u, v, u**2, v**2, u * v)]


def _derivatives(sigma_x, sigma_y, angle, moments):
    """Of the integral, to x, y, sigma_x, sigma_y and angle; arguments that broadcast."""
    one, u, v, uu, vv, uv = moments
    cosine, sine = np.cos(angle), np.sin(angle)
    return (
        cosine / sigma_x * u - sine / sigma_y * v,
        sine / sigma_x * u + cosine / sigma_y * v,
        (uu - one) / sigma_x,
        (vv - one) / sigma_y,
        (sigma_x / sigma_y - sigma_y / sigma_x) * uv,
    )


def _rotated_render(x, y, photons, sigma_x, sigma_y, angle, background, image):
    one = _moments(x, y, sigma_x, sigma_y, angle, image.shape[1:])[0]
    image[...] = np.einsum("ne,nehw->nhw", photons, one) + background[:, None, None]


def _rotated_vjp(
    x, y, photons, sigma_x, sigma_y, angle, gradient, gx, gy, gphotons, gsigma_x, gsigma_y, gangle, gbackground
):
    moments = _moments(x, y, sigma_x, sigma_y, angle, gradient.shape[1:])
    sums = [np.einsum("nhw,nehw->ne", gradient, m) for m in moments]
    gphotons[...] = sums[0]
    gbackground[...] = gradient.sum((1, 2))
    for out, d in zip((gx, gy, gsigma_x, gsigma_y, gangle), _derivatives(sigma_x, sigma_y, angle, sums), strict=True):
        out[...] = photons * d


def _rotated_partials(parameters, value, partials):
    x, y, photons, background, sigma_x, sigma_y, angle = parameters.T
    moments = _moments(x, y, sigma_x, sigma_y, angle, value.shape[1:])
    photons, background, sigma_x, sigma_y, angle = (
        v[:, None, None] for v in (photons, background, sigma_x, sigma_y, angle)
    )
    value[...] = photons * moments[0] + background
    d_x, d_y, d_sigma_x, d_sigma_y, d_angle = _derivatives(sigma_x, sigma_y, angle, moments)
    partials[:, 2], partials[:, 3] = moments[0], 1
    for column, d in {0: d_x, 1: d_y, 4: d_sigma_x, 5: d_sigma_y, 6: d_angle}.items():
        partials[:, column] = photons * d


# ---------------------------------------------------------------- cpu


@numba.njit(cache=True, error_model="numpy")
def _elliptic_spot(theta, constants, value, partials, scratch):
    photons = theta[2]
    a, b = axes_cpu(theta[0], theta[1], theta[4], theta[5], value.shape, scratch)
    separable_cpu(photons, theta[3], a, b, value, partials[0], partials[1], partials[2], partials[3])
    d_x, d_y = partials[4], partials[5]
    for r in range(value.shape[0]):
        for c in range(value.shape[1]):
            d_x[r, c] = photons * b[0, r] * a[2, c]
            d_y[r, c] = photons * b[2, r] * a[0, c]


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _elliptic_partials_cpu(parameters, value, partials):
    n, h, w = value.shape
    for i in numba.prange(n):
        _elliptic_spot(parameters[i], parameters[i], value[i], partials[i], np.empty(3 * (h + w), value.dtype))


@numba.njit(cache=True, error_model="numpy")
def _frame(sigma_x, sigma_y, angle):
    """du/dx, du/dy, dv/dx, dv/dy."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return cosine / sigma_x, sine / sigma_x, -sine / sigma_y, cosine / sigma_y


@numba.njit(cache=True, error_model="numpy")
def _pixel(dx, dy, ux, uy, vx, vy):
    """Moments of f over the pixel whose centre is dx, dy from that of the Gaussian."""
    real = type(dx)
    node, half = real(NODE), real(0.5)
    density = real(1 / (2 * math.pi)) * (ux * vy - uy * vx)
    one = m_u = m_v = m_uu = m_vv = m_uv = real(0)
    for j in range(-1, 2):
        weight_y = density * (real(8 / 18) if j == 0 else real(5 / 18))
        y = dy + real(j) * node
        for i in range(-1, 2):
            weight = weight_y * (real(8 / 18) if i == 0 else real(5 / 18))
            x = dx + real(i) * node
            u, v = ux * x + uy * y, vx * x + vy * y
            f = weight * math.exp(-half * (u * u + v * v))
            one += f
            m_u += f * u
            m_v += f * v
            m_uu += f * u * u
            m_vv += f * v * v
            m_uv += f * u * v
    return one, m_u, m_v, m_uu, m_vv, m_uv


@numba.njit(cache=True, error_model="numpy")
def _rotated_spot(theta, constants, value, partials, scratch):
    x, y, photons, background = theta[0], theta[1], theta[2], theta[3]
    free = len(theta) == 7
    shape = theta[4:7] if free else constants
    sigma_x, sigma_y, angle = shape[0], shape[1], shape[2]
    real = value.dtype.type
    ux, uy, vx, vy = _frame(sigma_x, sigma_y, angle)
    ratio = sigma_x / sigma_y - sigma_y / sigma_x
    for r in range(value.shape[0]):
        for c in range(value.shape[1]):
            one, u, v, uu, vv, uv = _pixel(real(c) - x, real(r) - y, ux, uy, vx, vy)
            value[r, c] = photons * one + background
            partials[0, r, c] = photons * (ux * u + vx * v)
            partials[1, r, c] = photons * (uy * u + vy * v)
            partials[2, r, c] = one
            partials[3, r, c] = 1
            if free:
                partials[4, r, c] = photons * (uu - one) / sigma_x
                partials[5, r, c] = photons * (vv - one) / sigma_y
                partials[6, r, c] = photons * ratio * uv


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _rotated_partials_cpu(parameters, value, partials):
    for i in numba.prange(len(value)):
        _rotated_spot(parameters[i], parameters[i], value[i], partials[i], parameters[i])


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _rotated_render_cpu(x, y, photons, sigma_x, sigma_y, angle, background, image):
    real = image.dtype.type
    for i in numba.prange(len(image)):
        image[i] = background[i]
        for k in range(x.shape[1]):
            ux, uy, vx, vy = _frame(sigma_x[i, k], sigma_y[i, k], angle[i, k])
            for r in range(image.shape[1]):
                for c in range(image.shape[2]):
                    image[i, r, c] += photons[i, k] * _pixel(real(c) - x[i, k], real(r) - y[i, k], ux, uy, vx, vy)[0]


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _rotated_vjp_cpu(
    x, y, photons, sigma_x, sigma_y, angle, gradient, gx, gy, gphotons, gsigma_x, gsigma_y, gangle, gbackground
):
    real = gradient.dtype.type
    for i in numba.prange(len(gradient)):
        total = real(0)
        for r in range(gradient.shape[1]):
            for c in range(gradient.shape[2]):
                total += gradient[i, r, c]
        gbackground[i] = total
        for k in range(x.shape[1]):
            n, sx, sy = photons[i, k], sigma_x[i, k], sigma_y[i, k]
            ux, uy, vx, vy = _frame(sx, sy, angle[i, k])
            one = u = v = uu = vv = uv = real(0)
            for r in range(gradient.shape[1]):
                for c in range(gradient.shape[2]):
                    g = gradient[i, r, c]
                    m = _pixel(real(c) - x[i, k], real(r) - y[i, k], ux, uy, vx, vy)
                    one += g * m[0]
                    u += g * m[1]
                    v += g * m[2]
                    uu += g * m[3]
                    vv += g * m[4]
                    uv += g * m[5]
            gx[i, k] = n * (ux * u + vx * v)
            gy[i, k] = n * (uy * u + vy * v)
            gphotons[i, k] = one
            gsigma_x[i, k] = n * (uu - one) / sx
            gsigma_y[i, k] = n * (vv - one) / sy
            gangle[i, k] = n * (sx / sy - sy / sx) * uv


# ---------------------------------------------------------------- registration


def _sample_elliptic(rng, n, h, w):
    x, y, photons, sigma_x, sigma_y, background = sample(rng, n, h, w)
    return [np.stack([x[:, 0], y[:, 0], photons[:, 0], background, sigma_x[:, 0], sigma_y[:, 0]], 1)]


def _sample_rotated(rng, n, h, w):
    return [np.concatenate([_sample_elliptic(rng, n, h, w)[0], rng.uniform(-2, 2, (n, 1))], 1)]


def _sample_render(rng, n, h, w, e):
    x, y, *others, background = sample(rng, n, h, w, e)  # off the pixels' centres, where derivatives vanish
    return [x + 0.2, y - 0.3, *others, rng.uniform(-2, 2, (n, e)), background]


def _sample_vjp(rng, n, h, w, e):
    return [*_sample_render(rng, n, h, w, e)[:6], rng.normal(size=(n, h, w))]


_CUDA = kernel.Cuda("elliptic2d.cu", block_per_image, threads=128, constants=("h", "w"))
_CASES = tuple(size | {"e": e} for size in SIZES for e in (0, 1, 3))
_BENCH = {"n": 20_000, "h": 11, "w": 11}
_EMITTERS = "x[n,e] y[n,e] photons[n,e] sigma_x[n,e] sigma_y[n,e] angle[n,e]"

elliptic_partials_kernel = kernel.register(
    "elliptic2d_partials",
    "parameters[n,6] -> value[n,h,w] partials[n,6,h,w]",
    _elliptic_partials,
    cpu=_elliptic_partials_cpu,
    cuda=_CUDA,
    sample=_sample_elliptic,
    cases=tuple(SIZES),
    bench=_BENCH,
)
rotated_partials_kernel = kernel.register(
    "rotated2d_partials",
    "parameters[n,7] -> value[n,h,w] partials[n,7,h,w]",
    _rotated_partials,
    cpu=_rotated_partials_cpu,
    cuda=_CUDA,
    sample=_sample_rotated,
    cases=tuple(SIZES),
    bench=_BENCH,
)
rotated_render_kernel = kernel.register(
    "rotated2d_render",
    f"{_EMITTERS} background[n] -> image[n,h,w]",
    _rotated_render,
    cpu=_rotated_render_cpu,
    cuda=_CUDA,
    sample=_sample_render,
    cases=_CASES,
    bench=_BENCH | {"e": 1},
)
rotated_vjp_kernel = kernel.register(
    "rotated2d_render_vjp",
    f"{_EMITTERS} gradient[n,h,w] -> "
    "gx[n,e] gy[n,e] gphotons[n,e] gsigma_x[n,e] gsigma_y[n,e] gangle[n,e] gbackground[n]",
    _rotated_vjp,
    cpu=_rotated_vjp_cpu,
    cuda=_CUDA,
    sample=_sample_vjp,
    cases=_CASES,
    bench=_BENCH | {"e": 1},
)

# ---------------------------------------------------------------- the op and the PSF


@op
def _rotated_op(x, y, photons, sigma_x, sigma_y, angle, background, *, shape):
    image = backend.module(x).empty((len(x), *shape), x.dtype)
    saved = (x, y, photons, sigma_x, sigma_y, angle)
    return rotated_render_kernel(*saved, background, out=image), saved


@_rotated_op.vjp
def _(saved, gradient):
    xp = backend.module(gradient)
    outputs = (*(xp.empty_like(a) for a in saved), xp.empty(len(gradient), gradient.dtype))
    return rotated_vjp_kernel(*saved, gradient, out=outputs)


class EllipticGaussian2D(PSF):
    """Pixel-integrated Gaussian with two widths, along x and y or, `rotated`, along axes of any direction.

    Parameters: x, y (pixels), photons (of the whole PSF), background (photons per pixel), sigma_x, sigma_y (pixels,
    > 0) and, if `rotated`, angle (radians) from the x axis to the axis of sigma_x, towards increasing y.  The image
    repeats after half a turn, and after a quarter if the sigmas change places; equal sigmas leave the angle
    undetermined.  `fixed`: (sigma_x, sigma_y, angle) where they are known; then they are no parameters.  Formulas and
    accuracy: text of this module.

    >>> psf = EllipticGaussian2D(rotated=True)
    >>> psf.names
    ('x', 'y', 'photons', 'background', 'sigma_x', 'sigma_y', 'angle')
    >>> EllipticGaussian2D(fixed=(1.8, 1.1, 0.5)).names
    ('x', 'y', 'photons', 'background')
    """

    linear = ("photons", "background")

    def __init__(self, rotated: bool = False, fixed: Sequence[float] | None = None) -> None:
        self.fixed = None if fixed is None else tuple(float(v) for v in fixed)
        if self.fixed and not (len(self.fixed) == 3 and np.isfinite(self.fixed).all() and min(self.fixed[:2]) > 0):
            raise ValueError(f"EllipticGaussian2D got fixed={fixed}; expected sigma_x, sigma_y > 0 (pixels) and angle")
        self.rotated = bool(rotated) or fixed is not None
        shape = () if self.fixed else ("sigma_x", "sigma_y", "angle") if self.rotated else ("sigma_x", "sigma_y")
        self.names = ("x", "y", "photons", "background", *shape)
        self.numba_partials = _rotated_spot if self.rotated else _elliptic_spot

    def configuration(self) -> dict[str, Any]:
        return {"rotated": self.rotated, "fixed": None if self.fixed is None else list(self.fixed)}

    @property
    def constants(self) -> np.ndarray:
        return np.array(self.fixed or [])

    def scratch_size(self, shape: tuple[int, int]) -> int:
        return 0 if self.rotated else 3 * sum(shape)

    def render(self, parameters: Mapping[str, Any], shape: tuple[int, int], image: Any = None) -> Any:
        """Images (n, h, w) of the emitters' sum plus background; arrays or Tensors, (n,) or (n, emitters) each.

        `background` is (n,): counted once per image.  Differentiable in every parameter that is a Tensor.  With
        `image`, the index (emitters,) of each emitter's image, parameters are (emitters,), and emitters are drawn only
        where they are: for many in a large image.  Not if rotated.
        """
        known = dict(zip(("sigma_x", "sigma_y", "angle"), self.fixed or (), strict=False))
        per_emitter = (*(name for name in self.names if name != "background"), *known)
        values = stack_emitters(self, {**parameters, **known}, per_emitter, image)
        if not self.rotated:
            return draw(values, shape, image)
        if image is not None:
            raise ValueError(
                "EllipticGaussian2D(rotated=True).render got image=..., which needs widths along x and y; give the "
                "emitters of each image as a row of (n, emitters) instead"
            )
        return _rotated_op(*values, shape=tuple(shape))

    def partials(self, parameters: Any, shape: tuple[int, int]) -> tuple[Any, Any]:
        """Images (n, h, w) and their derivatives (n, p, h, w) for one emitter per image, `parameters` (n, p)."""
        kernel, theta = rotated_partials_kernel if self.rotated else elliptic_partials_kernel, self.check(parameters)
        if self.fixed:
            xp = backend.module(theta)
            known = xp.broadcast_to(xp.asarray(self.fixed, theta.dtype), (len(theta), 3))
            theta = xp.concatenate([theta, known], 1)
        value, partials = run_partials(kernel, theta, shape)
        return value, partials[:, : len(self.names)]

    def guess(self, found: dict[str, Any], data: Any, weights: Any) -> dict[str, Any]:
        if self.rotated and not self.fixed:
            found = {**found, "sigma_x": found["major"], "sigma_y": found["minor"]}
        return super().guess(found, data, weights)
