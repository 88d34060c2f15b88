"""The spline PSF: an image measured at many depths, interpolated by a cubic B-spline in z, y and x.

    mu(i, j) = photons * max(f, 0) + background,   f = sum of c[p, q, r] B(u - p) B(v - q) B(w - r)
    u = z / dz + cz,   v = i - y + cy,   w = j - x + cx

with B the cubic B-spline, c its coefficients, (cz, cy, cx) the emitter's place among them and dz the distance of the
planes in um.  Beyond the first and last plane the image stays as it is there; laterally it runs out to 0.  f may fall
below 0 where the measurement is noise: there the image is the background alone.

One coefficient a voxel, found by the exact prefilter of `interpolate`, says the same as the 64 polynomial coefficients
of published calibrations, with an eleventh of the memory traffic.  (Babcock & Zhuang 2017, Scientific Reports 7, 552;
Li et al. 2018, Nature Methods 15, 367.)
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numba
import numpy as np

from .. import backend, kernel
from ..autograd import op
from ..interpolate import kernels as bspline
from ..interpolate import prefilter, sample
from ..interpolate.modes import MODES
from . import moments, rows
from .base import PSF, Bounds, run_partials, stack_emitters

PAD = rows.PAD
ZERO = MODES.index("zero")

# ---------------------------------------------------------------- reference: the definition


def _images(x, y, z, table, geometry, shape):
    """f and its derivatives to x, y, z, (m, h, w) each, for emitters (m,), in float64."""
    x, y, z = (np.asarray(a, float)[:, None] for a in (x, y, z))
    cz, cy, cx, per_um = np.asarray(geometry, float)
    last = table.shape[0] - 2.0
    u = z * per_um + cz
    within = (u > 1) & (u < last)
    planes = bspline.taps(np.clip(np.where(np.isfinite(u), u, 1), 1, last), table.shape[0], 3, ZERO)
    lines = bspline.taps(np.arange(shape[0]) - y + cy, table.shape[1], 3, ZERO)
    columns = bspline.taps(np.arange(shape[1]) - x + cx, table.shape[2], 3, ZERO)
    p = planes[0].reshape(-1, 1, 4, 1, 1, 1, 1)
    q, r = lines[0][:, None, None, :, :, None, None], columns[0][:, None, None, None, None, :, :]
    near = np.asarray(table, float)[p, q, r]  # (m, 1, 4, h, 4, w, 4)

    def combine(i, j, k):
        return np.einsum("mpihjwk,mpi,mhj,mwk->mhw", near, planes[i], lines[j], columns[k])

    f = combine(1, 1, 1)
    slopes = -combine(1, 1, 2), -combine(1, 2, 1), combine(2, 1, 1) * np.where(within, per_um, 0)[..., None]
    positive = f > 0
    return np.where(positive, f, 0), *(np.where(positive, d, 0) for d in slopes)


def _partials(parameters, table, geometry, value, partials):
    x, y, z, photons, background = np.asarray(parameters, float).T
    f, *slopes = _images(x, y, z, table, geometry, value.shape[1:])
    n = photons[:, None, None]
    value[...] = n * f + background[:, None, None]
    for column, d in enumerate(slopes):
        partials[:, column] = n * d
    partials[:, 3], partials[:, 4] = f, 1


def _render(x, y, z, photons, background, table, geometry, image):
    f = _images(x.ravel(), y.ravel(), z.ravel(), table, geometry, image.shape[1:])[0]
    image[...] = np.einsum("ne,nehw->nhw", photons, f.reshape(*x.shape, *f.shape[1:]))
    image += np.asarray(background, float)[:, None, None]


def _render_vjp(x, y, z, photons, table, geometry, gradient, gx, gy, gz, gphotons, gbackground):
    images = _images(x.ravel(), y.ravel(), z.ravel(), table, geometry, gradient.shape[1:])
    f, d_x, d_y, d_z = (
        np.einsum("nehw,nhw->ne", a.reshape(*x.shape, *a.shape[1:]), np.asarray(gradient, float)) for a in images
    )
    gx[...], gy[...], gz[...], gphotons[...] = photons * d_x, photons * d_y, photons * d_z, f
    gbackground[...] = np.asarray(gradient, float).sum((1, 2))


# ---------------------------------------------------------------- cpu


@numba.njit(cache=True, error_model="numpy")
def _fill(theta, table, size, geometry, value, partials, scratch):
    """value (h, w) and partials (5, h, w) of one image."""
    h, w = value.shape
    rows.evaluate(theta[0], theta[1], theta[2], table, size, geometry, h, w, True, scratch)
    stride = rows.stride_of(w)
    photons, background = theta[3], theta[4]
    known = theta[0] + theta[1] + theta[2]  # NaN makes the image NaN
    bad = known - known
    for i in range(h):
        at = i * stride
        for j in range(w):
            f = scratch[at + j] + bad
            value[i, j] = photons * f + background
            partials[0, i, j] = photons * scratch[at + h * stride + j]
            partials[1, i, j] = photons * scratch[at + 2 * h * stride + j]
            partials[2, i, j] = photons * scratch[at + 3 * h * stride + j]
            partials[3, i, j] = f
            partials[4, i, j] = 1


@numba.njit(cache=True, error_model="numpy")
def _spot(theta, constants, value, partials, scratch):
    size = int(constants[0]), int(constants[1]), int(constants[2])
    scratch[:] = 0
    _fill(theta, constants[7:], size, constants[3:7], value, partials, scratch)


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _partials_cpu(parameters, table, geometry, value, partials):
    n, h, w = value.shape
    flat = table.reshape(-1)
    for i in numba.prange(n):
        scratch = np.zeros(rows.scratch_size(h, w), value.dtype)
        _fill(parameters[i], flat, table.shape, geometry, value[i], partials[i], scratch)


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _render_cpu(x, y, z, photons, background, table, geometry, image):
    n, h, w = image.shape
    flat = table.reshape(-1)
    for i in numba.prange(n):
        scratch = np.zeros(rows.scratch_size(h, w), image.dtype)
        image[i] = background[i]
        for k in range(x.shape[1]):
            rows.evaluate(x[i, k], y[i, k], z[i, k], flat, table.shape, geometry, h, w, False, scratch)
            known = x[i, k] + y[i, k] + z[i, k]
            bad = known - known
            for r in range(h):
                at = r * rows.stride_of(w)
                for c in range(w):
                    image[i, r, c] += photons[i, k] * scratch[at + c] + bad


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _render_vjp_cpu(x, y, z, photons, table, geometry, gradient, gx, gy, gz, gphotons, gbackground):
    n, h, w = gradient.shape
    flat, zero = table.reshape(-1), gradient.dtype.type(0)
    for i in numba.prange(n):
        scratch = np.zeros(rows.scratch_size(h, w), gradient.dtype)
        total = zero
        for r in range(h):
            for c in range(w):
                total += gradient[i, r, c]
        gbackground[i] = total
        for k in range(x.shape[1]):
            rows.evaluate(x[i, k], y[i, k], z[i, k], flat, table.shape, geometry, h, w, True, scratch)
            image = h * rows.stride_of(w)
            sf = sx = sy = sz = zero
            for r in range(h):
                at = r * rows.stride_of(w)
                for c in range(w):
                    g = gradient[i, r, c]
                    sf += g * scratch[at + c]
                    sx += g * scratch[at + image + c]
                    sy += g * scratch[at + 2 * image + c]
                    sz += g * scratch[at + 3 * image + c]
            gx[i, k], gy[i, k], gz[i, k] = photons[i, k] * sx, photons[i, k] * sy, photons[i, k] * sz
            gphotons[i, k] = sf


# ---------------------------------------------------------------- registration


def astigmatic_stack(size: int = 25, planes: int = 41, dz: float = 0.05, gamma: float = 0.25) -> np.ndarray:
    """A PSF (planes, size, size) of unit sum to try things with: an astigmatic Gaussian, in focus at -+gamma um.

    >>> astigmatic_stack(13, 5).shape
    (5, 13, 13)
    """
    from .astigmatic import AstigmaticGaussian

    z = (np.arange(planes) - (planes - 1) / 2) * dz
    centre = (size - 1) / 2
    model = AstigmaticGaussian(1.15, gamma, 0.45)
    known = {"x": centre, "y": centre, "z": z, "photons": 1.0, "background": 0.0}
    return model.render(known, (size, size))


def _table(coefficients: np.ndarray) -> np.ndarray:
    """Coefficients with a mirrored plane at either end, and zeros around."""
    padded = np.pad(coefficients, ((0, 0), (PAD, PAD), (PAD, PAD)))
    return np.ascontiguousarray(np.pad(padded, ((1, 1), (0, 0), (0, 0)), mode="reflect"))


def _coefficients(samples: np.ndarray) -> np.ndarray:
    """Of the spline through samples (z, y, x): 0 beyond the image, mirrored beyond the first and last plane."""
    lateral = prefilter(samples, 3, "zero", 2)
    return np.moveaxis(prefilter(np.moveaxis(lateral, 0, -1), 3, "mirror", 1), -1, 0)


def _emitters(rng, n, e, h, w, **_):
    """x, y, z, photons (n, e), background (n,), table, geometry; some emitters beyond the image or the planes."""
    x, y = rng.uniform(-2, w + 1, (n, e)), rng.uniform(-2, h + 1, (n, e))
    z, photons, background = rng.uniform(-0.4, 0.4, (n, e)), rng.uniform(100, 3000, (n, e)), rng.uniform(0, 20, n)
    x[1:2], z[2:3] = 100, 5
    table = _table(_coefficients(astigmatic_stack(9, 11)))
    return [x, y, z, photons, background, table, np.array([6.0, 4.0 + PAD, 4.0 + PAD, 1 / 0.05])]


def _sample_partials(rng, n, h, w, **_):
    x, y, z, photons, background, table, geometry = _emitters(rng, n, 1, h, w)
    return [np.stack([x[:, 0], y[:, 0], z[:, 0], photons[:, 0], background], 1), table, geometry]


def _sample_vjp(rng, n, e, h, w, **_):
    x, y, z, photons, _, table, geometry = _emitters(rng, n, e, h, w)
    return [x, y, z, photons, table, geometry, rng.normal(size=(n, h, w))]


_TABLE = {"p": 13, "q": 9 + 2 * PAD, "r": 9 + 2 * PAD}  # of `_emitters`
_SHAPES = [(0, 5, 5), (1, 5, 5), (5, 13, 13), (3, 9, 32)]
_CASES = tuple({"n": n, "h": h, "w": w, **_TABLE} for n, h, w in _SHAPES)
_SEVERAL = tuple(case | {"e": e} for case, e in zip(_CASES, (1, 0, 2, 1), strict=True))
_BENCH = {"n": 50_000, "h": 13, "w": 13, **_TABLE}
_CUDA = kernel.Cuda("spline.cu", lambda dims: dims["n"], threads=128, constants=("h", "w"))

partials_kernel = kernel.register(
    "spline_partials",
    "parameters[n,5] table[p,q,r] geometry[4] -> value[n,h,w] partials[n,5,h,w]",
    _partials,
    cpu=_partials_cpu,
    cuda=_CUDA,
    sample=_sample_partials,
    cases=_CASES,
    bench=_BENCH,
)
render_kernel = kernel.register(
    "spline_render",
    "x[n,e] y[n,e] z[n,e] photons[n,e] background[n] table[p,q,r] geometry[4] -> image[n,h,w]",
    _render,
    cpu=_render_cpu,
    cuda=_CUDA,
    sample=_emitters,
    cases=_SEVERAL,
    bench=_BENCH | {"e": 1},
)
render_vjp_kernel = kernel.register(
    "spline_render_vjp",
    "x[n,e] y[n,e] z[n,e] photons[n,e] table[p,q,r] geometry[4] gradient[n,h,w] -> "
    "gx[n,e] gy[n,e] gz[n,e] gphotons[n,e] gbackground[n]",
    _render_vjp,
    cpu=_render_vjp_cpu,
    cuda=_CUDA,
    sample=_sample_vjp,
    cases=_SEVERAL,
    bench=_BENCH | {"e": 1},
)

# ---------------------------------------------------------------- the op and the PSF


@op
def _render_op(x, y, z, photons, background, *, table, geometry, shape):
    image = backend.module(x).empty((len(x), *shape), x.dtype)
    saved = x, y, z, photons, table, geometry
    return render_kernel(x, y, z, photons, background, table, geometry, out=image), saved


@_render_op.vjp
def _(saved, gradient):
    xp = backend.module(gradient)
    outputs = (*(xp.empty_like(a) for a in saved[:4]), xp.empty(len(gradient), gradient.dtype))
    return render_vjp_kernel(*saved, gradient, out=outputs)


class Templates:
    """Images of a spline PSF at `parameters` (k, 3) = x, y, z on a coarse grid, for a first guess by correlation.

    `images` (k, h * w) have their mean taken off and unit norm, so that the correlation with data does not see a
    background; `norm` and `total` (k,) turn it into photons and background.  k is a multiple of `GROUP`: the grid in z
    is as fine as that allows, and the rest of the images is 0.
    """

    GROUP = 96
    Z_STEP = 0.25  # um between templates, at most
    SHIFTS = (-0.8, 0.0, 0.8)  # pixels from the middle of the image

    def __init__(self, psf: Spline, shape: tuple[int, int]) -> None:
        (h, w), (low, high), places = shape, psf.z_range, len(self.SHIFTS) ** 2
        size = self.GROUP * math.ceil(places * (math.ceil((high - low) / self.Z_STEP) + 1) / self.GROUP)
        # not at the very ends, whence most of the way to the emitter would be along a bound
        depths = size // places
        z = low + (high - low) * (np.arange(depths) + 0.5) / depths
        z, dy, dx = np.meshgrid(z, self.SHIFTS, self.SHIFTS, indexing="ij")
        grid = np.stack([(w - 1) / 2 + dx, (h - 1) / 2 + dy, z], -1).reshape(-1, 3)
        self.parameters = np.pad(grid, ((0, size - len(grid)), (0, 0)), mode="edge")
        values = dict(zip("xyz", self.parameters.T, strict=True))
        images = psf.render({**values, "photons": 1.0, "background": 0.0}, shape).reshape(size, h * w)
        images[len(grid) :] = 0
        self.total = images.sum(1)
        images = images - images.mean(1, keepdims=True)
        self.norm = np.sqrt((images**2).sum(1)) + 1e-30
        self.images = images / self.norm[:, None]


class Spline(PSF):
    """A PSF measured at many depths, interpolated by a cubic B-spline (module text: formula, source).

    Parameters: x, y (pixels), z (um), photons, background (photons per pixel).  `coefficients` (z, y, x) are those of
    the B-spline of one photon's image, whose planes are `dz` um apart; `centre` (z, y, x): the emitter's place in it,
    whose z is 0, default the middle.  To make one: `from_array`, `from_beads`, `load`.

    >>> psf = Spline.from_array(astigmatic_stack(), dz=0.05)
    >>> image = psf.render({"x": 6.0, "y": 5.8, "z": 0.2, "photons": 1000.0, "background": 2.0}, (13, 13))
    >>> errors = psf.crlb([[6.0, 5.8, 0.2, 1000.0, 2.0]], (13, 13))
    >>> [round(float(e), 3) for e in errors[0]]
    [0.042, 0.059, 0.026, 34.081, 0.132]
    """

    names = ("x", "y", "z", "photons", "background")
    linear = ("photons", "background")
    numba_partials = staticmethod(_spot)

    def __init__(self, coefficients: Any, dz: float, centre: Sequence[float] | None = None) -> None:
        c = np.asarray(coefficients, np.float64)
        if c.ndim != 3 or c.shape[0] < 4 or min(c.shape) < 1 or not np.isfinite(c).all():
            raise ValueError(
                f"Spline got coefficients of shape {c.shape}; expected finite numbers (z, y, x) with 4 planes or more"
            )
        if not 0 < dz < np.inf:
            raise ValueError(f"Spline got dz={dz}; expected the distance of the planes in um, > 0")
        middle = [(n - 1) / 2 for n in c.shape]
        place = middle if centre is None else [float(v) for v in centre]
        if len(place) != 3 or not all(0 <= v <= n - 1 for v, n in zip(place, c.shape, strict=True)):
            raise ValueError(f"Spline got centre={centre}; expected (z, y, x) within coefficients of shape {c.shape}")
        self.coefficients, self.dz, self.centre = c, float(dz), tuple(place)
        self._tables: dict[Any, tuple[Any, Any]] = {}
        self._templates: dict[tuple[int, int], Templates] = {}

    @property
    def z_range(self) -> tuple[float, float]:
        """Lowest and highest z in um: those of the first and last plane."""
        return -self.centre[0] * self.dz, (len(self.coefficients) - 1 - self.centre[0]) * self.dz

    def configuration(self) -> dict[str, Any]:
        return {"coefficients": self.coefficients.tolist(), "dz": self.dz, "centre": list(self.centre)}

    def table(self, like: Any) -> tuple[Any, Any]:
        """What the kernels take, in the library and dtype of `like`: coefficients with a border, geometry (4,)."""
        key = backend.is_gpu(like), np.dtype(like.dtype)
        if key not in self._tables:
            cz, cy, cx = self.centre
            geometry = np.array([cz + 1, cy + PAD, cx + PAD, 1 / self.dz])
            made = _table(self.coefficients).astype(key[1]), geometry.astype(key[1])
            self._tables[key] = tuple(map(backend.to_gpu, made)) if key[0] else made
        return self._tables[key]

    @property
    def constants(self) -> np.ndarray:
        table, geometry = self.table(self.coefficients)
        return np.concatenate([table.shape, geometry, table.ravel()])

    def scratch_size(self, shape: tuple[int, int]) -> int:
        return rows.scratch_size(*shape)

    def bounds(self, shape: tuple[int, int]) -> dict[str, Bounds]:
        """Bounds of each parameter when fitted to images of `shape`; z stays in the calibrated range."""
        return {**super().bounds(shape), "z": Bounds(*self.z_range, 0.15)}

    def render(self, parameters: Mapping[str, Any], shape: tuple[int, int]) -> Any:
        """Images (n, h, w) of the emitters' sum plus background; arrays or Tensors, (n,) or (n, emitters) each.

        `background` is (n,): counted once per image.  Differentiable in every parameter that is a Tensor.
        """
        x, y, z, photons, background = stack_emitters(self, parameters, ("x", "y", "z", "photons"))
        table, geometry = self.table(getattr(x, "data", x) if not backend.is_array(x) else x)
        return _render_op(x, y, z, photons, background, table=table, geometry=geometry, shape=tuple(shape))

    def partials(self, parameters: Any, shape: tuple[int, int]) -> tuple[Any, Any]:
        """Images (n, h, w) and their derivatives (n, p, h, w) for one emitter per image, `parameters` (n, p)."""
        theta = self.check(parameters)
        return run_partials(partials_kernel, theta, shape, *self.table(theta))

    def templates(self, shape: tuple[int, int]) -> Templates:
        """Images on a coarse grid of x, y and z for a first guess; made once for each shape."""
        if shape not in self._templates:
            self._templates[shape] = Templates(self, shape)
        return self._templates[shape]

    def initial(self, spots: Any, variance: Any = 0.0) -> Any:
        """A first guess (n, p): the template with the highest correlation, whatever the shape of the PSF.

        `variance`: read-noise variance, scalar, (h, w) or (n, h, w); noisy pixels are replaced by their neighbours.
        """
        data, _ = moments.weigh(spots, variance)
        xp, (n, h, w) = backend.module(data), data.shape
        known = self.templates((h, w))
        images, norm, total, parameters = (
            xp.asarray(a, data.dtype) for a in (known.images, known.norm, known.total, known.parameters)
        )
        scores = data.reshape(n, h * w) @ images.T
        best = scores.argmax(1)
        photons = xp.take_along_axis(scores, best[:, None], 1)[:, 0] / norm[best]
        photons = xp.maximum(photons, xp.sqrt(xp.maximum(data.mean((1, 2)), 0.1)) / norm[best])  # one standard error
        background = (data.sum((1, 2)) - photons * total[best]) / (h * w)
        guess = xp.concatenate([parameters[best], photons[:, None], background[:, None]], 1)
        bounds = self.bounds((h, w))
        lower, upper = (xp.asarray([bounds[name][i] for name in self.names], data.dtype) for i in (0, 1))
        return xp.clip(guess, lower, upper)

    @classmethod
    def from_array(cls, psf: Any, dz: float, centre: Sequence[float] | None = None, normalize: bool = True) -> Spline:
        """The spline through an image stack `psf` (z, y, x), background already taken off.

        `normalize`: divide by the sum of the brightest plane, so that `photons` are those that this plane catches.
        """
        a = np.asarray(backend.to_cpu(psf), np.float64)
        if a.ndim != 3 or a.shape[0] < 4 or not np.isfinite(a).all():
            raise ValueError(
                f"Spline.from_array got a stack of shape {a.shape}; expected finite (z, y, x), 4 planes up"
            )
        if normalize:
            total = a.sum((1, 2)).max()
            if not total > 0:
                raise ValueError("Spline.from_array got a stack without light; take off its background, not more")
            a = a / total
        return cls(_coefficients(a), dz, centre)

    @classmethod
    def from_beads(cls, stacks: Any, dz: float, smooth: float | tuple[float, float] = 0.1) -> Spline:
        """The PSF from beads `stacks` (beads, z, y, x) in photoelectrons, slices `dz` um apart.

        The beads are registered in x, y and z, and averaged (see `beads`); z = 0 is in the middle slice.  `smooth`:
        standard deviation, in um along z, of a Gaussian over the average, or a pair: um along z, pixels laterally.
        A little is needed: where slopes along z are noise, fits are less precise and some do not converge.
        """
        from . import beads

        return beads.spline(stacks, dz, smooth)[0]

    def samples(self) -> np.ndarray:
        """The image stack (z, y, x) that the spline passes through."""
        z, y, x = self.coefficients.shape
        grid = np.stack(np.meshgrid(np.arange(z), np.arange(y), np.arange(x), indexing="ij"), -1)
        moved = np.pad(self.coefficients, ((1, 1), (0, 0), (0, 0)), mode="reflect")
        return sample(moved, (grid + np.array([1.0, 0, 0])).astype(float), 3, "zero")

    @classmethod
    def load(cls, path: str | os.PathLike, **options: Any) -> Spline:
        """The PSF from a file: `.npz` of `save`, `.mat` of SMAP or fit3Dcspline, `.spline` of storm-analysis.

        See `spline_files` for the formats; `options` (dz of a `.mat` that does not tell it) are passed on.
        """
        from . import spline_files

        return spline_files.load(path, **options)

    def save(self, path: str | os.PathLike) -> None:
        """Write the PSF to `path`, an `.npz` file in the library's own format (see `spline_files`)."""
        from . import spline_files

        spline_files.save(self, path)
