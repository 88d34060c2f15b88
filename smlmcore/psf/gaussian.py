"""The pixel-integrated 2-D Gaussian PSF.

    mu(i, j)    = photons * E(i; y, sigma_y) * E(j; x, sigma_x) + background
    E(i; c, s)  = 1/2 [erf((i + 1/2 - c) / (sqrt(2) s)) - erf((i - 1/2 - c) / (sqrt(2) s))]

With u, v = (i -+ 1/2 - c) / s and the normal density f: dE/dc = (f(u) - f(v)) / s and dE/ds = (u f(u) - v f(v)) / s.
(Smith et al. 2010, Nature Methods 7, 373.)

The kernels that render have a sigma for each axis, so that every separable Gaussian can be drawn with them: here both
are one parameter; `elliptic.py` has two, `astigmatic.py` two functions of z.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numba
import numpy as np
import scipy

from .. import backend, kernel
from ..autograd import op
from . import axis, scatter
from .base import PSF, run_partials, stack_emitters

# ---------------------------------------------------------------- reference: the definition


def _axis(centre: Any, sigma: Any, size: int) -> tuple[Any, Any, Any]:
    """Value and derivatives to centre and sigma of E for pixels 0...size-1, appended as the last axis."""
    c, s = np.asarray(centre, float)[..., None], np.asarray(sigma, float)[..., None]
    u = (np.arange(size + 1) - 0.5 - c) / s
    f = np.exp(-0.5 * u**2) / math.sqrt(2 * math.pi)
    value = np.diff(0.5 * scipy.special.erf(u / math.sqrt(2)), axis=-1)
    return value, -np.diff(f, axis=-1) / s, -np.diff(u * f, axis=-1) / s


def _render(x, y, photons, sigma_x, sigma_y, background, image):
    h, w = image.shape[1:]
    spots = np.einsum("ne,neh,new->nhw", photons, _axis(y, sigma_y, h)[0], _axis(x, sigma_x, w)[0])
    image[...] = spots + np.asarray(background, float)[:, None, None]


def _render_vjp(x, y, photons, sigma_x, sigma_y, gradient, gx, gy, gphotons, gsigma_x, gsigma_y, gbackground):
    h, w = gradient.shape[1:]
    (a, a_c, a_s), (b, b_c, b_s) = _axis(x, sigma_x, w), _axis(y, sigma_y, h)

    def contract(rows, columns):
        return np.einsum("nhw,neh,new->ne", gradient.astype(float), rows, columns)

    gx[...] = photons * contract(b, a_c)
    gy[...] = photons * contract(b_c, a)
    gphotons[...] = contract(b, a)
    gsigma_x[...] = photons * contract(b, a_s)
    gsigma_y[...] = photons * contract(b_s, a)
    gbackground[...] = gradient.astype(float).sum((1, 2))


def separable(x, y, photons, background, sigma_x, sigma_y, shape):
    """Images (n, h, w) and their derivatives by name, of one emitter each: every argument is (n,), in float64."""
    a, a_c, a_s = (v[:, None, :] for v in _axis(x, sigma_x, shape[1]))
    b, b_c, b_s = (v[:, :, None] for v in _axis(y, sigma_y, shape[0]))
    n = np.asarray(photons, float)[:, None, None]
    spot = b * a
    partials = {"x": n * b * a_c, "y": n * b_c * a, "photons": spot, "background": np.ones_like(spot)}
    partials |= {"sigma_x": n * b * a_s, "sigma_y": n * b_s * a}
    return n * spot + np.asarray(background, float)[:, None, None], partials


def _partials(parameters, value, partials):
    x, y, photons, background, sigma = parameters.T
    value[...], d = separable(x, y, photons, background, sigma, sigma, value.shape[1:])
    d["sigma"] = d["sigma_x"] + d["sigma_y"]
    for column, name in enumerate(("x", "y", "photons", "background", "sigma")):
        partials[:, column] = d[name]


# ---------------------------------------------------------------- cpu

CHUNK = 64  # images that a thread takes at a time


@numba.njit(cache=True, error_model="numpy")
def axis_cpu(centre, sigma, out):
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


@numba.njit(cache=True, error_model="numpy")
def axes_cpu(x, y, sigma_x, sigma_y, shape, scratch):
    """Tables (3, w) and (3, h) of both axes, in scratch (3 (h + w))."""
    h, w = shape
    a, b = scratch[: 3 * w].reshape(3, w), scratch[3 * w : 3 * (w + h)].reshape(3, h)
    axis_cpu(x, sigma_x, a)
    axis_cpu(y, sigma_y, b)
    return a, b


@numba.njit(cache=True, error_model="numpy")
def separable_cpu(photons, background, a, b, value, d_x, d_y, d_photons, d_background):
    """Value and the derivatives that every separable Gaussian has, from the tables of its axes."""
    for r in range(value.shape[0]):
        row, row_c = photons * b[0, r], photons * b[1, r]
        for c in range(value.shape[1]):
            value[r, c] = row * a[0, c] + background
            d_x[r, c] = row * a[1, c]
            d_y[r, c] = row_c * a[0, c]
            d_photons[r, c] = b[0, r] * a[0, c]
            d_background[r, c] = 1


@numba.njit(cache=True, error_model="numpy")
def widths_cpu(photons, a, b, slope_x, slope_y, out):
    """out (h, w): derivative to a parameter that both sigmas depend on, with these slopes."""
    for r in range(out.shape[0]):
        row, row_s = photons * slope_x * b[0, r], photons * slope_y * b[2, r]
        for c in range(out.shape[1]):
            out[r, c] = row * a[2, c] + row_s * a[0, c]


@numba.njit(cache=True, error_model="numpy")
def _spot(theta, constants, value, partials, scratch):
    fixed = len(theta) == 4
    sigma = constants[0] if fixed else theta[4]
    a, b = axes_cpu(theta[0], theta[1], sigma, sigma, value.shape, scratch)
    separable_cpu(theta[2], theta[3], a, b, value, partials[0], partials[1], partials[2], partials[3])
    if not fixed:
        one = value.dtype.type(1)
        widths_cpu(theta[2], a, b, one, one, partials[4])


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _partials_cpu(parameters, value, partials):
    n, h, w = value.shape
    for i in numba.prange(n):
        scratch = np.empty(3 * (h + w), value.dtype)
        _spot(parameters[i], parameters[i], value[i], partials[i], scratch)  # sigma is free: no constants are read


@axis.parallel
def _render_cpu(x, y, photons, sigma_x, sigma_y, background, image):
    n, h, w = image.shape
    columns, flat = axis.whole(w), image.reshape(-1)
    for chunk in numba.prange((n + CHUNK - 1) // CHUNK):
        along_x, along_y = 0, columns
        edges = along_y + axis.whole(h)
        canvas = edges + axis.room(max(h, w))
        scratch = np.zeros(canvas + h * columns, image.dtype)
        stop = min(n, (chunk + 1) * CHUNK)
        for i in range(chunk * CHUNK, stop):
            for j in range(h * columns):
                axis.put(scratch, canvas + j, background[i])
            for k in range(x.shape[1]):
                axis.values(scratch, along_x, edges, 0, x[i, k], sigma_x[i, k], w)
                axis.values(scratch, along_y, edges, 0, y[i, k], sigma_y[i, k], h)
                axis.spread(scratch, canvas, columns, h, columns, along_y, along_x, photons[i, k])
            for r in range(h):  # whole vectors: each row overwrites what the one before wrote too much
                start = (i * h + r) * w
                length = columns if start + columns <= stop * h * w else w
                for j in range(length):
                    axis.put(flat, start + j, axis.get(scratch, canvas + r * columns + j))


@axis.parallel
def _render_vjp_cpu(x, y, photons, sigma_x, sigma_y, gradient, gx, gy, gphotons, gsigma_x, gsigma_y, gbackground):
    n, h, w = gradient.shape
    flat = gradient.reshape(-1)
    for chunk in numba.prange((n + CHUNK - 1) // CHUNK):
        across, down = 0, 3 * axis.whole(w)
        edges = down + 3 * axis.whole(h)
        sums = edges + 3 * axis.room(max(h, w))
        scratch = np.zeros(sums + 4 * axis.whole(w), gradient.dtype)
        for i in range(chunk * CHUNK, min(n, (chunk + 1) * CHUNK)):
            start, end = i * h * w, (i + 1) * h * w
            total = gradient.dtype.type(0)
            for j in range(h * w):
                total += axis.get(flat, start + j)
            gbackground[i] = total
            for k in range(x.shape[1]):
                axis.slopes(scratch, across, edges, 0, x[i, k], sigma_x[i, k], w)
                axis.slopes(scratch, down, edges, 0, y[i, k], sigma_y[i, k], h)
                sx, sy, s, ssx, ssy = axis.collect(scratch, sums, down, across, h, w, flat, start, w, end)
                gx[i, k] = photons[i, k] * sx
                gy[i, k] = photons[i, k] * sy
                gphotons[i, k] = s
                gsigma_x[i, k] = photons[i, k] * ssx
                gsigma_y[i, k] = photons[i, k] * ssy


# ---------------------------------------------------------------- registration


def sample(rng: np.random.Generator, n: int, h: int, w: int, e: int = 1) -> list[np.ndarray]:
    """x, y, photons, sigma_x, sigma_y (n, e), background (n,) of plausible emitters."""
    spread = rng.uniform(0, 1, (5, n, e)) * np.reshape([w - 1, h - 1, 3000, 1, 1], (5, 1, 1))
    return [*(spread + np.reshape([0, 0, 100, 0.8, 0.8], (5, 1, 1))), rng.uniform(0, 20, n)]


def _sample_vjp(rng, n, h, w, e):
    return [*sample(rng, n, h, w, e)[:5], rng.normal(size=(n, h, w))]


def _sample_partials(rng, n, h, w):
    x, y, photons, sigma, _, background = sample(rng, n, h, w)
    return [np.stack([x[:, 0], y[:, 0], photons[:, 0], background, sigma[:, 0]], 1)]


def block_per_image(dims: Mapping[str, int]) -> int:
    """Number of blocks of the CUDA bodies."""
    return dims["n"]


_SHAPES = [(0, 5, 5), (1, 1, 1), (3, 5, 12), (33, 17, 9)]  # the last: more pixels than threads
SIZES = [{"n": n, "h": h, "w": w} for n, h, w in _SHAPES]
_CUDA = kernel.Cuda("gaussian2d.cu", block_per_image, threads=128, constants=("h", "w"))
_CASES = tuple(size | {"e": e} for size in SIZES for e in (0, 1, 3))
_BENCH = {"n": 50_000, "h": 11, "w": 11}

render_kernel = kernel.register(
    "gaussian2d_render",
    "x[n,e] y[n,e] photons[n,e] sigma_x[n,e] sigma_y[n,e] background[n] -> image[n,h,w]",
    _render,
    cpu=_render_cpu,
    cuda=_CUDA,
    sample=sample,
    cases=_CASES,
    bench=_BENCH | {"e": 1},
)
render_vjp_kernel = kernel.register(
    "gaussian2d_render_vjp",
    "x[n,e] y[n,e] photons[n,e] sigma_x[n,e] sigma_y[n,e] gradient[n,h,w] -> "
    "gx[n,e] gy[n,e] gphotons[n,e] gsigma_x[n,e] gsigma_y[n,e] gbackground[n]",
    _render_vjp,
    cpu=_render_vjp_cpu,
    cuda=_CUDA,
    sample=_sample_vjp,
    cases=_CASES,
    bench=_BENCH | {"e": 1},
)
partials_kernel = kernel.register(
    "gaussian2d_partials",
    "parameters[n,5] -> value[n,h,w] partials[n,5,h,w]",
    _partials,
    cpu=_partials_cpu,
    cuda=_CUDA,
    sample=_sample_partials,
    cases=tuple(SIZES),
    bench=_BENCH,
)

# ---------------------------------------------------------------- the op and the PSF


@op
def render_op(x, y, photons, sigma_x, sigma_y, background, *, shape):
    """Images (n, h, w) of separable Gaussians, (n, e) each, and background (n,)."""
    image = backend.module(x).empty((len(x), *shape), x.dtype)
    saved = (x, y, photons, sigma_x, sigma_y)
    return render_kernel(*saved, background, out=image), saved


@render_op.vjp
def _(saved, gradient):
    xp = backend.module(gradient)
    outputs = (*(xp.empty_like(a) for a in saved), xp.empty(len(gradient), gradient.dtype))
    return render_vjp_kernel(*saved, gradient, out=outputs)


def draw(values: Sequence[Any], shape: tuple[int, int], image: Any = None) -> Any:
    """Images of x, y, photons, sigma_x, sigma_y, background as `stack_emitters` gives them, with or without `image`."""
    if image is None:
        return render_op(*values, shape=tuple(shape))
    index = scatter.check_index(image, len(values[0]), len(values[-1]))
    return scatter.scatter_op(*values, image=index, shape=tuple(shape))


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
    symmetric = True
    numba_partials = staticmethod(_spot)

    def __init__(self, sigma: float | None = None) -> None:
        if sigma is not None and not sigma > 0:
            raise ValueError(f"Gaussian2D got sigma={sigma}; expected a standard deviation in pixels, > 0, or None")
        self.sigma = None if sigma is None else float(sigma)
        self.names = ("x", "y", "photons", "background") + (() if sigma else ("sigma",))

    def configuration(self) -> dict[str, Any]:
        return {"sigma": self.sigma}

    @property
    def constants(self) -> np.ndarray:
        return np.array([] if self.sigma is None else [self.sigma])

    def scratch_size(self, shape: tuple[int, int]) -> int:
        return 3 * sum(shape)

    def render(self, parameters: Mapping[str, Any], shape: tuple[int, int], image: Any = None) -> Any:
        """Images (n, h, w) of the emitters' sum plus background; arrays or Tensors, (n,) or (n, emitters) each.

        `background` is (n,): counted once per image.  Differentiable in every parameter that is a Tensor.  With
        `image`, the index (emitters,) of each emitter's image, parameters are (emitters,), and emitters are drawn only
        where they are: for many in a large image.
        """
        values = dict(parameters) if self.sigma is None else {**parameters, "sigma": self.sigma}
        x, y, photons, sigma, background = stack_emitters(self, values, ("x", "y", "photons", "sigma"), image)
        return draw((x, y, photons, sigma, sigma, background), shape, image)

    def partials(self, parameters: Any, shape: tuple[int, int]) -> tuple[Any, Any]:
        """Images (n, h, w) and their derivatives (n, p, h, w) for one emitter per image, `parameters` (n, p)."""
        theta = self.check(parameters)
        if self.sigma is not None:
            xp = backend.module(theta)
            theta = xp.concatenate([theta, xp.full((len(theta), 1), self.sigma, theta.dtype)], 1)
        value, partials = run_partials(partials_kernel, theta, shape)
        return value, partials[:, : len(self.names)]
