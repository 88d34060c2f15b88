"""What every PSF has in common: named parameters, their bounds, and the information that images carry about them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .. import backend
from ..autograd import Tensor, ops
from . import moments


class Bounds(NamedTuple):
    """Where a fitted parameter may lie, and how far one step may take it: `step` absolute plus `factor` relative."""

    lower: float
    upper: float
    step: float
    factor: float = 0.0


class PSF(ABC):
    """A model image of one emitter, with derivatives.  `names` orders the columns of every parameter array (n, p).

    `linear` names the parameters in which the image is linear.  A subclass provides `render` and `partials`.

    For fits on the CPU it provides besides, for one image, all arrays C-contiguous and of one dtype:

        numba_partials(theta (p,), constants (k,), value (h, w), partials (p, h, w), scratch (m,))

    a numba function that fills `value` and `partials`, with the PSF's `constants` and m = `scratch_size((h, w))`.
    """

    names: tuple[str, ...]
    linear: ClassVar[tuple[str, ...]] = ()
    symmetric: ClassVar[bool] = False  # flipped and transposed images are images of this PSF as well
    numba_partials: ClassVar[Callable[..., None]]

    @property
    def constants(self) -> np.ndarray:
        """What `numba_partials` has to know of this PSF, float64: a fixed sigma, a calibration."""
        return np.empty(0)

    def scratch_size(self, shape: tuple[int, int]) -> int:
        """Numbers of working memory that `numba_partials` needs for an image of `shape`."""
        return 0

    @abstractmethod
    def render(self, parameters: Mapping[str, Any], shape: tuple[int, int]) -> Any:
        """Images (n, h, w), differentiable in every parameter given as a Tensor.

        A PSF that can draw each emitter only where it is takes besides `image`, the index (emitters,) of the image
        that each belongs to; then the parameters are (emitters,), and `background` is (images,).
        """

    @abstractmethod
    def partials(self, parameters: Any, shape: tuple[int, int]) -> tuple[Any, Any]:
        """Images (n, h, w) and derivatives (n, p, h, w) at `parameters` (n, p)."""

    @abstractmethod
    def configuration(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-ready."""

    def bounds(self, shape: tuple[int, int]) -> dict[str, Bounds]:
        """Bounds of each parameter when fitted to images of `shape`: x, y up to one pixel outside the image."""
        h, w = shape
        known = {
            "x": Bounds(-1.0, float(w), 0.5),
            "y": Bounds(-1.0, float(h), 0.5),
            "photons": Bounds(1.0, np.inf, 10.0, 0.5),
            "background": Bounds(1e-3, np.inf, 1.0, 0.5),
            "z": Bounds(-np.inf, np.inf, 0.1),
            "angle": Bounds(-np.pi, np.pi, 0.3),
            **dict.fromkeys(("sigma", "sigma_x", "sigma_y"), Bounds(0.2, float(max(h, w)), 0.0, 0.3)),
        }
        return {name: known[name] for name in self.names}

    def initial(self, spots: Any, variance: Any = 0.0) -> Any:
        """A first guess (n, p) from the moments of `spots` (n, h, w) in photoelectrons, finite and within `bounds`.

        `variance`: read-noise variance, scalar, (h, w) or (n, h, w).  Pixels that are not finite are ignored.

        >>> from smlmcore import psf
        >>> image = psf.Gaussian2D(1.3).render({"x": [5.2], "y": [4.9], "photons": [900], "background": [2]}, (11, 11))
        >>> psf.Gaussian2D(1.3).initial(image).round(1)
        array([[  5.2,   4.9, 900. ,   2. ]])
        """
        data, weights = moments.weigh(spots, variance)
        guess = self.guess(moments.measure(data), data, weights)
        xp, bounds = backend.module(data), self.bounds(data.shape[1:])
        return xp.stack([xp.clip(guess[k], *bounds[k][:2]).astype(data.dtype) for k in self.names], 1)

    def guess(self, found: dict[str, Any], data: Any, weights: Any) -> dict[str, Any]:
        """Each parameter (n,), from what `moments.measure` has `found` in `data` (n, h, w) with `weights`."""
        shape = {k: found[k] for k in self.names if k not in ("photons", "background")}
        image = self.render({**shape, "photons": 1.0, "background": 0.0}, data.shape[1:])
        photons, background, _ = moments.brightness(image, data, weights)
        return {**shape, "photons": photons, "background": background}

    def check(self, parameters: Any) -> Any:
        """`parameters` as a real array (n, p), or an error that names the columns."""
        theta = backend.asarray(parameters)
        if theta.ndim != 2 or theta.shape[1] != len(self.names):
            raise ValueError(
                f"{type(self).__name__} got parameters of shape {theta.shape}; expected (n, {len(self.names)}), "
                f"columns {', '.join(self.names)}"
            )
        return theta

    def crlb(self, parameters: Any, shape: tuple[int, int], variance: Any = 0.0) -> Any:
        """Standard errors (n, p) at the Cramér–Rao bound for `parameters` (n, p) in images of `shape`.

        I = sum over pixels of (dmu/da dmu/db) / (mu + v), errors = sqrt(diag(I^-1)), with the read-noise `variance` v
        in squared photoelectrons: a scalar, (h, w) or (n, h, w).  Singular information gives NaN.  (Ober et al. 2004,
        Biophys. J. 86, 1185; Huang et al. 2013, Nature Methods 10, 653 for the read noise.)

        >>> from smlmcore import psf
        >>> errors = psf.Gaussian2D().crlb([[5.0, 5.0, 2000.0, 10.0, 1.3]], (11, 11))
        >>> [round(float(e), 3) for e in errors[0]]
        [0.036, 0.036, 54.633, 0.387, 0.025]
        """
        value, partials = self.partials(backend.asarray(parameters, np.float64), shape)
        return standard_errors(information(partials, 1 / (value + variance)))


def arguments(
    psf: PSF, given: tuple[Any, ...], shape: tuple[int, int] | None
) -> tuple[dict[str, Any], tuple[int, int]]:
    """What `render` was called with, as a mapping and a shape: a mapping, or the parameters in the order of `names`."""
    if shape is None and len(given) in (2, len(psf.names) + 1):
        *given, shape = given
    if shape is None or len(given) not in (1, len(psf.names)) or (len(given) == 1) != isinstance(given[0], Mapping):
        raise TypeError(
            f"{type(psf).__name__}.render got {len(given)} arguments and shape={shape}; expected "
            f"render({', '.join(psf.names)}, shape=(h, w)), or render(parameters by name, shape)"
        )
    values = dict(given[0]) if len(given) == 1 else dict(zip(psf.names, given, strict=True))
    return values, (int(shape[0]), int(shape[1]))


def run_partials(kernel: Any, theta: Any, shape: tuple[int, int], *constants: Any) -> tuple[Any, Any]:
    """Images and derivatives from a kernel "parameters[n,p] ... -> value[n,h,w] partials[n,p,h,w]"."""
    xp = backend.module(theta)
    value = xp.empty((len(theta), *shape), theta.dtype)
    partials = xp.empty((*theta.shape, *shape), theta.dtype)
    return kernel(theta, *constants, out=(value, partials))


def information(partials: Any, weights: Any) -> Any:
    """Fisher information (n, p, p) of `partials` (n, p, h, w) with `weights` (n, h, w) = 1 / variance of each pixel."""
    flat = partials.reshape(*partials.shape[:2], partials.shape[2] * partials.shape[3])
    weighted = flat * weights.reshape(len(flat), 1, flat.shape[2])
    return weighted @ flat.transpose(0, 2, 1)


def standard_errors(fisher: Any) -> Any:
    """sqrt(diag(F^-1)) of `fisher` (n, p, p); NaN where F is singular or not finite.

    F is scaled to unit diagonal first, so that parameters of very different size do not make it ill-conditioned.
    """
    xp = backend.module(fisher)
    diagonal = xp.sqrt(xp.einsum("npp->np", fisher))
    scaled = fisher / (diagonal[:, :, None] * diagonal[:, None, :] + np.finfo(float).tiny)
    bad = ~xp.isfinite(scaled).all((1, 2))
    identity = xp.eye(fisher.shape[1], dtype=fisher.dtype)
    safe = xp.where(bad[:, None, None], identity, scaled)
    bad |= xp.linalg.eigvalsh(safe)[:, 0] < 1e-12
    inverse = xp.linalg.inv(xp.where(bad[:, None, None], identity, safe))
    errors = xp.sqrt(xp.abs(xp.einsum("npp->np", inverse))) / xp.where(bad[:, None], 1.0, diagonal)
    return xp.where(bad[:, None], np.nan, errors)


def stack_emitters(psf: PSF, values: Mapping[str, Any], per_emitter: Sequence[str], image: Any = None) -> list[Any]:
    """The parameters named `per_emitter` as (n, emitters) and `background` as (n,), all of one dtype, in this order.

    With `image`, the index of each emitter's image, they are (emitters,), and `background` (images,).
    """
    name = type(psf).__name__
    expected = {*per_emitter, "background"}
    if set(values) != expected:
        raise ValueError(f"{name}.render got parameters {sorted(values)}; expected {sorted(expected)}")
    data = [v.data if isinstance(v, Tensor) else v for v in values.values()]
    backend.module(*data, name=f"{name}.render")
    like = next(filter(backend.is_array, data), None)  # where numbers and lists go
    arrays = {k: v if isinstance(v, Tensor) else backend.asarray(v, like=like) for k, v in values.items()}
    tensors = [a for a in arrays.values() if isinstance(a, Tensor)]
    given = tensors or [arrays[k] for k, v in values.items() if not np.isscalar(v)] or list(arrays.values())
    dtype = np.result_type(*(a.dtype for a in given))
    arrays = {k: a if a.dtype == dtype else a.astype(dtype) for k, a in arrays.items()}
    table = {k: a if a.ndim != 1 or image is not None else a.reshape(-1, 1) for k, a in arrays.items()}
    try:
        if image is not None:
            (n,) = np.broadcast_shapes((1,), *(table[k].shape for k in per_emitter))
            if table["background"].ndim > 1:
                raise ValueError
            return [*(ops.broadcast_to(table[k], (n,)) for k in per_emitter), ops.reshape(table["background"], -1)]
        n, emitters = np.broadcast_shapes((1, 1), *(table[k].shape for k in per_emitter))
        n = np.broadcast_shapes((n, 1), table["background"].shape)[0]
        if table["background"].ndim == 2 and table["background"].shape[1] != 1:
            raise ValueError
    except ValueError:
        shapes = {k: tuple(a.shape) for k, a in arrays.items()}
        expected = ("(n,) or (n, emitters)", "(n,)") if image is None else ("(emitters,)", "(images,)")
        raise ValueError(
            f"{name}.render got shapes {shapes}; expected {expected[0]} for {', '.join(per_emitter)} "
            f"and {expected[1]} for background, which is counted once per image"
        ) from None
    return [
        *(ops.broadcast_to(table[k], (n, emitters)) for k in per_emitter),
        ops.broadcast_to(table["background"], (n, 1)).reshape(n),
    ]
