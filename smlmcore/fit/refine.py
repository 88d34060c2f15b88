"""Fisher scoring: from a good guess to the likelihood's maximum, with the uncertainty that the data allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

import numpy as np

from .. import backend
from ..psf.base import PSF, information, standard_errors


class Status(IntEnum):
    """How a fit ended.  Nothing that is not finite is ever `converged`."""

    converged = 0
    max_iterations = 1
    at_bound = 2
    singular = 3
    invalid_input = 4


@dataclass(frozen=True)
class Result:
    """Fitted `parameters` (n, p) in the order of `names`, also as attributes: `result.x`, `result.photons`, ...

    `errors` (n, p): standard errors at the Cramér–Rao bound, NaN for a parameter at its bound or a failed fit;
    `status` (n,) int8 values of `Status`; `iterations` (n,); `log_likelihood` (n,) in nats; `chi2` (n,), the sum of
    (data - mu)^2 / (mu + v) over the pixels.
    """

    names: tuple[str, ...]
    parameters: Any
    errors: Any
    status: Any
    iterations: Any
    log_likelihood: Any
    chi2: Any

    def __getattr__(self, name: str) -> Any:
        if name in object.__getattribute__(self, "names"):
            return self.parameters[:, self.names.index(name)]
        raise AttributeError(f"fit.Result has no {name!r}; its parameters are {', '.join(self.names)}")

    def __len__(self) -> int:
        return len(self.parameters)

    def to_cpu(self) -> Result:
        """The same result in NumPy arrays."""
        values = (getattr(self, f.name) for f in fields(self)[1:])
        return Result(self.names, *(backend.to_cpu(v) for v in values))


def refine(
    psf: PSF,
    images: Any,
    variance: Any,
    initial: Any,
    loss: Any,
    max_iterations: int = 30,
    tolerance: float = 1e-3,
    progress: Callable[[int], Any] = lambda done: None,
) -> Result:
    """Maximum-likelihood parameters of `images` (n, h, w) from `initial` (n, p), by Fisher scoring with damping.

    One step solves (F + lambda diag F) d = g with F = sum (dmu/da dmu/db) / (mu + v) and g the gradient of the log
    likelihood, in float64; a step that lowers the likelihood is refused and lambda raised.  A fit ends when
    g^T F^-1 g < tolerance^2: no parameter is further than `tolerance` standard errors from the maximum.  Parameters
    stay in `psf.bounds`; one that is held there by the data has no standard error.  NaN pixels carry no information.

    `variance`: read-noise variance, scalar, (h, w) or (n, h, w); `loss` gives nats per pixel and their `slope`;
    `progress` is called with the number of images done.  (Smith et al. 2010, Nature Methods 7, 373.)
    """
    xp = backend.module(images, initial, name="refine")
    n = len(images)
    v = xp.asarray(variance, np.float64)
    result = Result(
        names=psf.names,
        parameters=xp.full((n, len(psf.names)), np.nan),
        errors=xp.full((n, len(psf.names)), np.nan),
        status=xp.full(n, Status.invalid_input, np.int8),
        iterations=xp.zeros(n, np.int32),
        log_likelihood=xp.full(n, np.nan),
        chi2=xp.full(n, np.nan),
    )
    size = 4096  # images whose derivatives (p planes of float64 each) are in memory together
    for start in range(0, n, size):
        block = slice(start, start + size)
        _refine_block(
            psf,
            images[block].astype(np.float64),
            xp.broadcast_to(v[block] if v.ndim == 3 else v, images[block].shape),
            initial[block].astype(np.float64),
            loss,
            max_iterations,
            tolerance,
            result,
            block,
        )
        progress(min(size, n - start))
    return result


def _refine_block(psf, images, variance, theta, loss, max_iterations, tolerance, result, block):
    xp = backend.module(images)
    bounds = psf.bounds(images.shape[1:])
    lower, upper, step, factor = (xp.asarray(column) for column in np.array([bounds[k] for k in psf.names]).T)
    seen = xp.isfinite(images)
    valid = xp.isfinite(theta).all(1) & (seen.sum((1, 2)) > len(psf.names))
    theta = xp.clip(xp.where(valid[:, None], theta, 1.0), lower, upper)
    state = _evaluate(psf, images, variance, theta, loss)
    damping = xp.zeros(len(theta))
    iterations = xp.zeros(len(theta), np.int32)
    converged = xp.zeros(len(theta), bool)
    active = xp.flatnonzero(valid)
    for _ in range(max_iterations):
        if active.size == 0:
            break
        now = [s[active] for s in state]
        likelihood, gradient, fisher = now[:3]
        held = _held(theta[active], gradient, lower, upper)
        move = _step(xp.where(held, 0, gradient), _release(fisher, held), damping[active])
        decrement = (move * xp.where(held, 0, gradient)).sum(1)
        limit = step + factor * xp.abs(theta[active])
        trial = xp.clip(theta[active] + xp.clip(move, -limit, limit), lower, upper)
        new = _evaluate(psf, images[active], variance[active], trial, loss)
        better = new[0] >= likelihood - 1e-9 * xp.abs(likelihood)
        theta[active] = xp.where(better[:, None], trial, theta[active])
        for old, value, before in zip(state, new, now, strict=True):
            old[active] = xp.where(better.reshape(-1, *(1,) * (value.ndim - 1)), value, before)
        iterations[active] += 1
        small = damping[active] < 1e-2
        converged[active] = better & small & (decrement < tolerance**2)
        damping[active] = xp.where(better, damping[active] / 10, xp.maximum(10 * damping[active], 1e-2))
        active = active[~converged[active]]
    likelihood, gradient, fisher, chi2 = state
    held = _held(theta, gradient, lower, upper)
    errors = xp.where(held, np.nan, standard_errors(_release(fisher, held)))
    status = xp.where(converged, int(Status.converged), int(Status.max_iterations))
    status = xp.where(held.any(1), int(Status.at_bound), status)
    failed = ~xp.isfinite(xp.where(held, 0, errors)).all(1) | ~xp.isfinite(likelihood)
    status = xp.where(failed, int(Status.singular), status)
    result.status[block] = xp.where(valid, status, int(Status.invalid_input))
    result.parameters[block] = xp.where(valid[:, None], theta, np.nan)
    result.errors[block] = xp.where((valid & ~failed)[:, None], errors, np.nan)
    result.iterations[block] = iterations
    result.log_likelihood[block] = xp.where(valid, likelihood, np.nan)
    result.chi2[block] = xp.where(valid, chi2, np.nan)


def _evaluate(psf, images, variance, theta, loss):
    """Log likelihood (n,), its gradient (n, p), Fisher information (n, p, p), chi2 (n,)."""
    xp = backend.module(images)
    mu, partials = psf.partials(theta, images.shape[1:])
    seen = xp.isfinite(images)
    nats, slope = loss.value_and_slope(mu, images, variance)  # both 0 where a pixel is NaN
    weights = seen / (mu + variance)
    flat = partials.reshape(*partials.shape[:2], -1)
    gradient = -(flat @ slope.reshape(len(flat), -1, 1))[:, :, 0]
    residual = xp.where(seen, images - mu, 0)
    return [-nats.sum((1, 2)), gradient, information(partials, weights), (residual**2 * weights).sum((1, 2))]


def _held(theta, gradient, lower, upper):
    """Parameters at a bound that the data push outwards."""
    return ((theta <= lower) & (gradient <= 0)) | ((theta >= upper) & (gradient >= 0))


def _release(fisher, held):
    """`fisher` without the rows and columns of held parameters (1 on their diagonal)."""
    xp = backend.module(fisher)
    free = ~held
    return fisher * (free[:, :, None] & free[:, None, :]) + held[:, :, None] * xp.eye(held.shape[1])


def _step(gradient, fisher, damping):
    """Damped Fisher step (n, p), solved with unit diagonal for the sake of conditioning."""
    xp = backend.module(gradient)
    scale = xp.sqrt(xp.einsum("npp->np", fisher)) + 1e-30
    unit = fisher / (scale[:, :, None] * scale[:, None, :])
    unit = unit + (damping + 1e-9)[:, None, None] * xp.eye(fisher.shape[1])
    return xp.linalg.solve(unit, (gradient / scale)[:, :, None])[:, :, 0] / scale
