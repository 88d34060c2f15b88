"""What every PSF has in common: named parameters, their bounds, and the information that images carry about them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .. import backend
from ..autograd import Tensor, ops


class Bounds(NamedTuple):
    """Where a fitted parameter may lie, and how far one step may take it: `step` absolute plus `factor` relative."""

    lower: float
    upper: float
    step: float
    factor: float = 0.0


class PSF(ABC):
    """A model image of one emitter, with derivatives.  `names` orders the columns of every parameter array (n, p).

    `linear` names the parameters in which the image is linear.  A subclass provides `render` and `partials`.
    """

    names: tuple[str, ...]
    linear: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def render(self, parameters: Mapping[str, Any], shape: tuple[int, int]) -> Any:
        """Images (n, h, w), differentiable in every parameter given as a Tensor."""

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
            "sigma": Bounds(0.2, float(max(h, w)), 0.0, 0.3),
        }
        return {name: known[name] for name in self.names}

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


def stack_emitters(psf: PSF, values: Mapping[str, Any], per_emitter: Sequence[str]) -> list[Any]:
    """The parameters named `per_emitter` as (n, emitters) and `background` as (n,), all of one dtype, in this order."""
    name = type(psf).__name__
    expected = {*per_emitter, "background"}
    if set(values) != expected:
        raise ValueError(f"{name}.render got parameters {sorted(values)}; expected {sorted(expected)}")
    backend.module(*(v.data if isinstance(v, Tensor) else v for v in values.values()), name=f"{name}.render")
    arrays = {k: v if isinstance(v, Tensor) else backend.asarray(v) for k, v in values.items()}
    tensors = [a for a in arrays.values() if isinstance(a, Tensor)]
    given = tensors or [arrays[k] for k, v in values.items() if not np.isscalar(v)] or list(arrays.values())
    dtype = np.result_type(*(a.dtype for a in given))
    arrays = {k: a if a.dtype == dtype else a.astype(dtype) for k, a in arrays.items()}
    table = {k: a if a.ndim != 1 else a.reshape(-1, 1) for k, a in arrays.items()}
    try:
        n, emitters = np.broadcast_shapes((1, 1), *(table[k].shape for k in per_emitter))
        n = np.broadcast_shapes((n, 1), table["background"].shape)[0]
        if table["background"].ndim == 2 and table["background"].shape[1] != 1:
            raise ValueError
    except ValueError:
        shapes = {k: tuple(a.shape) for k, a in arrays.items()}
        raise ValueError(
            f"{name}.render got shapes {shapes}; expected (n,) or (n, emitters) for {', '.join(per_emitter)} "
            "and (n,) for background, which is counted once per image"
        ) from None
    return [
        *(ops.broadcast_to(table[k], (n, emitters)) for k in per_emitter),
        ops.broadcast_to(table["background"], (n, 1)).reshape(n),
    ]
