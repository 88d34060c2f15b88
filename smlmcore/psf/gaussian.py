"""The pixel-integrated 2-D Gaussian PSF.

    mu(i, j) = photons * E(i; y) * E(j; x) + background
    E(i; c)  = 1/2 [erf((i + 1/2 - c) / (sqrt(2) sigma)) - erf((i - 1/2 - c) / (sqrt(2) sigma))]

With u, v = (i -+ 1/2 - c) / sigma and the normal density f: dE/dc = (f(u) - f(v)) / sigma and
dE/dsigma = (u f(u) - v f(v)) / sigma.  (Smith et al. 2010, Nature Methods 7, 373.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numba
import numpy as np
from scipy.special import erf

from .. import backend, kernel
from ..autograd import op
from .base import PSF, stack_emitters

# ---------------------------------------------------------------- reference: the definition


def _axis(centre: Any, sigma: Any, size: int) -> tuple[Any, Any, Any]:
    """Value and derivatives to centre and sigma of E for pixels 0...size-1, appended as the last axis."""
    c, s = np.asarray(centre, float)[..., None], np.asarray(sigma, float)[..., None]
    u = (np.arange(size + 1) - 0.5 - c) / s
    f = np.exp(-0.5 * u**2) / math.sqrt(2 * math.pi)
    value = np.diff(0.5 * erf(u / math.sqrt(2)), axis=-1)
    return value, -np.diff(f, axis=-1) / s, -np.diff(u * f, axis=-1) / s


def _render(x, y, photons, sigma, background, image):
    h, w = image.shape[1:]
    spots = np.einsum("ne,neh,new->nhw", photons, _axis(y, sigma, h)[0], _axis(x, sigma, w)[0])
    image[...] = spots + np.asarray(background, float)[:, None, None]


def _render_vjp(x, y, photons, sigma, gradient, gx, gy, gphotons, gsigma, gbackground):
    h, w = gradient.shape[1:]
    (a, a_c, a_s), (b, b_c, b_s) = _axis(x, sigma, w), _axis(y, sigma, h)

    def contract(rows, columns):
        return np.einsum("nhw,neh,new->ne", gradient.astype(float), rows, columns)

    gx[...] = photons * contract(b, a_c)
    gy[...] = photons * contract(b_c, a)
    gphotons[...] = contract(b, a)
    gsigma[...] = photons * (contract(b_s, a) + contract(b, a_s))
    gbackground[...] = gradient.astype(float).sum((1, 2))


def _partials(parameters, value, partials):
    h, w = value.shape[1:]
    x, y, photons, background, sigma = np.asarray(parameters, float).T
    (a, a_c, a_s), (b, b_c, b_s) = _axis(x, sigma, w), _axis(y, sigma, h)
    a, a_c, a_s = (v[:, None, :] for v in (a, a_c, a_s))
    b, b_c, b_s = (v[:, :, None] for v in (b, b_c, b_s))
    n = photons[:, None, None]
    value[...] = n * b * a + background[:, None, None]
    for column, d in enumerate((n * b * a_c, n * b_c * a, b * a, np.ones_like(value), n * (b_s * a + b * a_s))):
        partials[:, column] = d


# ---------------------------------------------------------------- cpu


@numba.njit(cache=True, error_model="numpy")
def _axis_cpu(centre, sigma, out):
    """Fill out (3, size) with E and its derivatives; neighbouring pixels share an edge."""
    real = out.dtype.type
    q, half, root = real(1) / sigma, real(0.5), real(math.sqrt(0.5))
    u = (-half - centre) * q
    f = real(1 / math.sqrt(2 * math.pi)) * math.exp(-half * u * u)
    e = math.erf(u * root)
    for i in range(out.shape[1]):
        v = (real(i) + half - centre) * q
        fv = real(1 / math.sqrt(2 * math.pi)) * math.exp(-half * v * v)
        ev = math.erf(v * root)
        out[0, i] = half * (ev - e)
        out[1, i] = (f - fv) * q
        out[2, i] = (u * f - v * fv) * q
        u, f, e = v, fv, ev


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _render_cpu(x, y, photons, sigma, background, image):
    h, w = image.shape[1:]
    for i in numba.prange(x.shape[0]):
        a, b = np.empty((3, w), image.dtype), np.empty((3, h), image.dtype)
        image[i] = background[i]
        for k in range(x.shape[1]):
            _axis_cpu(x[i, k], sigma[i, k], a)
            _axis_cpu(y[i, k], sigma[i, k], b)
            for r in range(h):
                row = photons[i, k] * b[0, r]
                for c in range(w):
                    image[i, r, c] += row * a[0, c]


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _render_vjp_cpu(x, y, photons, sigma, gradient, gx, gy, gphotons, gsigma, gbackground):
    h, w = gradient.shape[1:]
    zero = gradient.dtype.type(0)
    for i in numba.prange(x.shape[0]):
        a, b = np.empty((3, w), gradient.dtype), np.empty((3, h), gradient.dtype)
        total = zero
        for r in range(h):
            for c in range(w):
                total += gradient[i, r, c]
        gbackground[i] = total
        for k in range(x.shape[1]):
            _axis_cpu(x[i, k], sigma[i, k], a)
            _axis_cpu(y[i, k], sigma[i, k], b)
            sx = sy = sn = ss = zero
            for r in range(h):
                m = m_c = m_s = zero
                for c in range(w):
                    g = gradient[i, r, c]
                    m += g * a[0, c]
                    m_c += g * a[1, c]
                    m_s += g * a[2, c]
                sx += b[0, r] * m_c
                sy += b[1, r] * m
                sn += b[0, r] * m
                ss += b[2, r] * m + b[0, r] * m_s
            gx[i, k] = photons[i, k] * sx
            gy[i, k] = photons[i, k] * sy
            gphotons[i, k] = sn
            gsigma[i, k] = photons[i, k] * ss


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _partials_cpu(parameters, value, partials):
    h, w = value.shape[1:]
    for i in numba.prange(value.shape[0]):
        a, b = np.empty((3, w), value.dtype), np.empty((3, h), value.dtype)
        photons, background = parameters[i, 2], parameters[i, 3]
        _axis_cpu(parameters[i, 0], parameters[i, 4], a)
        _axis_cpu(parameters[i, 1], parameters[i, 4], b)
        d = partials[i]
        for r in range(h):
            for c in range(w):
                spot = b[0, r] * a[0, c]
                value[i, r, c] = photons * spot + background
                d[0, r, c] = photons * b[0, r] * a[1, c]
                d[1, r, c] = photons * b[1, r] * a[0, c]
                d[2, r, c] = spot
                d[3, r, c] = 1
                d[4, r, c] = photons * (b[2, r] * a[0, c] + b[0, r] * a[2, c])


# ---------------------------------------------------------------- registration


def _sample(rng: np.random.Generator, n: int, h: int, w: int, e: int = 1) -> list[np.ndarray]:
    """x, y, photons, sigma (n, e), background (n,) of plausible emitters."""
    spread = rng.uniform(0, 1, (4, n, e)) * np.reshape([w - 1, h - 1, 3000, 1], (4, 1, 1))
    return [*(spread + np.reshape([0, 0, 100, 0.8], (4, 1, 1))), rng.uniform(0, 20, n)]


def _sample_vjp(rng, n, h, w, e):
    return [*_sample(rng, n, h, w, e)[:4], rng.normal(size=(n, h, w))]


def _sample_partials(rng, n, h, w):
    x, y, photons, sigma, background = _sample(rng, n, h, w)
    return [np.stack([x[:, 0], y[:, 0], photons[:, 0], background, sigma[:, 0]], 1)]


def _block_per_image(dims: Mapping[str, int]) -> int:
    return dims["n"]


_CUDA = kernel.Cuda("gaussian2d.cu", _block_per_image, threads=128, constants=("h", "w"))
_SIZES = [(0, 5, 5), (1, 1, 1), (3, 7, 7), (2, 5, 12), (33, 11, 11), (1, 17, 9)]
_CASES = tuple({"n": n, "h": h, "w": w, "e": e} for n, h, w in _SIZES for e in (0, 1, 3))
_BENCH = {"n": 50_000, "h": 11, "w": 11, "e": 1}

render_kernel = kernel.register(
    "gaussian2d_render",
    "x[n,e] y[n,e] photons[n,e] sigma[n,e] background[n] -> image[n,h,w]",
    _render,
    cpu=_render_cpu,
    cuda=_CUDA,
    sample=_sample,
    cases=_CASES,
    bench=_BENCH,
)
render_vjp_kernel = kernel.register(
    "gaussian2d_render_vjp",
    "x[n,e] y[n,e] photons[n,e] sigma[n,e] gradient[n,h,w] -> gx[n,e] gy[n,e] gphotons[n,e] gsigma[n,e] gbackground[n]",
    _render_vjp,
    cpu=_render_vjp_cpu,
    cuda=_CUDA,
    sample=_sample_vjp,
    cases=_CASES,
    bench=_BENCH,
)
partials_kernel = kernel.register(
    "gaussian2d_partials",
    "parameters[n,5] -> value[n,h,w] partials[n,5,h,w]",
    _partials,
    cpu=_partials_cpu,
    cuda=_CUDA,
    sample=_sample_partials,
    cases=tuple({"n": n, "h": h, "w": w} for n, h, w in _SIZES),
    bench={"n": 50_000, "h": 11, "w": 11},
)

# ---------------------------------------------------------------- the op and the PSF


@op
def _render_op(x, y, photons, sigma, background, *, shape):
    image = backend.module(x).empty((len(x), *shape), x.dtype)
    return render_kernel(x, y, photons, sigma, background, out=image), (x, y, photons, sigma)


@_render_op.vjp
def _(saved, gradient):
    xp = backend.module(gradient)
    outputs = (*(xp.empty_like(a) for a in saved), xp.empty(len(gradient), gradient.dtype))
    return render_vjp_kernel(*saved, gradient, out=outputs)


class Gaussian2D(PSF):
    """Pixel-integrated isotropic 2-D Gaussian: mu = photons * E(y) * E(x) + background (module text: formula, source).

    `sigma`: standard deviation in pixels if it is known and fixed; None (default) makes it a parameter.
    Parameters: x, y (pixels), photons (of the whole PSF), background (photons per pixel), sigma (pixels, > 0).

    >>> psf = Gaussian2D(sigma=1.2)
    >>> image = psf.render({"x": [5.0], "y": [4.0], "photons": [1000.0], "background": [0.0]}, shape=(9, 11))
    >>> image.shape, round(float(image.sum()), 1)
    ((1, 9, 11), 999.8)
    """

    linear = ("photons", "background")

    def __init__(self, sigma: float | None = None) -> None:
        if sigma is not None and not sigma > 0:
            raise ValueError(f"Gaussian2D got sigma={sigma}; expected a standard deviation in pixels, > 0, or None")
        self.sigma = None if sigma is None else float(sigma)
        self.names = ("x", "y", "photons", "background") + (() if sigma else ("sigma",))

    def configuration(self) -> dict[str, Any]:
        return {"sigma": self.sigma}

    def render(self, parameters: Mapping[str, Any], shape: tuple[int, int]) -> Any:
        """Images (n, h, w) of the emitters' sum plus background; arrays or Tensors, (n,) or (n, emitters) each.

        `background` is (n,): counted once per image.  Differentiable in every parameter that is a Tensor.
        """
        values = dict(parameters) if self.sigma is None else {**parameters, "sigma": self.sigma}
        x, y, photons, sigma, background = stack_emitters(self, values, ("x", "y", "photons", "sigma"))
        return _render_op(x, y, photons, sigma, background, shape=tuple(shape))

    def partials(self, parameters: Any, shape: tuple[int, int]) -> tuple[Any, Any]:
        """Images (n, h, w) and their derivatives (n, p, h, w) for one emitter per image, `parameters` (n, p)."""
        theta = self.check(parameters)
        xp = backend.module(theta)
        if self.sigma is not None:
            theta = xp.concatenate([theta, xp.full((len(theta), 1), self.sigma, theta.dtype)], 1)
        value = xp.empty((len(theta), *shape), theta.dtype)
        partials = xp.empty((len(theta), 5, *shape), theta.dtype)
        partials_kernel(theta, out=(value, partials))
        return value, partials[:, : len(self.names)]
