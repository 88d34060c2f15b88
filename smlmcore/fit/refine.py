"""Fisher scoring: from a good guess to the likelihood's maximum, with the uncertainty that the data allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .. import backend
from ..loss import PoissonGaussian
from ..psf.base import PSF, information, standard_errors
from .problem import Limits, limits
from .result import Result, Status

POISSON = PoissonGaussian(exact=False)


def refine(
    psf: PSF,
    images: Any,
    variance: Any,
    initial: Any,
    loss: Any = POISSON,
    max_iterations: int = 30,
    tolerance: float = 1e-3,
    progress: Callable[[int], Any] = lambda done: None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    fixed: Mapping[str, float] | None = None,
    weights: Any = None,
) -> Result:
    """Maximum-likelihood parameters of `images` (n, h, w) from `initial` (n, p), by Fisher scoring with damping.

    One step solves (F + lambda diag F) d = g with F = sum (dmu/da dmu/db) / (mu + v) and g the gradient of the log
    likelihood, in float64; a step that lowers the likelihood is refused and lambda raised.  A fit ends when
    g^T F^-1 g < tolerance^2, and the next one is foretold to be below a tenth of it: no parameter is further than
    `tolerance` standard errors from the maximum.  Parameters
    stay in `psf.bounds`; one that is held there by the data has no standard error.  NaN pixels carry no information.

    `variance`: read-noise variance, scalar, (h, w) or (n, h, w), infinite for a pixel to be left out; `loss` gives nats
    per pixel and their `slope`; `progress` is called with the number of images done; `bounds` {name: (low, high)} and
    `fixed` {name: value} replace those of the PSF.  With `weights`, scalar, (h, w) or (n, h, w), the sum of
    weight (data - mu)^2 is made small instead; the errors are those of photoelectrons, whatever the weights.
    This is the reference of the compiled fits.  (Smith et al. 2010, Nature Methods 7, 373.)
    """
    given = limits(psf, images.shape[1:], bounds, fixed, "fit.refine")
    return lockstep(psf, images, variance, initial, given, loss, weights, max_iterations, tolerance, progress)


def lockstep(
    psf: PSF,
    images: Any,
    variance: Any,
    initial: Any,
    given: Limits,
    loss: Any = POISSON,
    weights: Any = None,
    max_iterations: int = 30,
    tolerance: float = 1e-3,
    progress: Callable[[int], Any] = lambda done: None,
) -> Result:
    """`refine` with its limits resolved: all images take their steps together."""
    xp = backend.module(images, initial, name="refine")
    n = len(images)
    v = xp.asarray(variance, np.float64)
    w = None if weights is None else xp.asarray(weights, np.float64)
    result = Result(
        names=psf.names,
        parameters=xp.full((n, len(psf.names)), np.nan),
        errors=xp.full((n, len(psf.names)), np.nan),
        status=xp.full(n, int(Status.invalid_input), np.int8),
        iterations=xp.zeros(n, np.int32),
        log_likelihood=xp.full(n, np.nan),
        chi2=xp.full(n, np.nan),
    )
    columns = Limits(*map(xp.asarray, given))
    size = 4096  # images whose derivatives (p planes of float64 each) are in memory together
    for start in range(0, n, size):
        block = slice(start, start + size)
        shape = images[block].shape
        fit = _Block(
            psf,
            images[block].astype(np.float64),
            xp.broadcast_to(v[block] if v.ndim == 3 else v, shape),
            None if w is None else xp.broadcast_to(w[block] if w.ndim == 3 else w, shape),
            loss,
            columns,
        )
        found = fit.run(initial[block].astype(np.float64), max_iterations, tolerance)
        for name, values in found.items():
            getattr(result, name)[block] = values
        progress(min(size, n - start))
    return result


class _Block:
    """Images that are fitted in step with one another."""

    def __init__(self, psf, images, variance, weights, loss, limits):
        xp = backend.module(images)
        self.psf, self.images, self.loss, self.limits = psf, images, loss, limits
        self.seen = ~xp.isnan(images) & (variance < np.inf)
        self.variance = xp.where(self.seen, variance, 0)
        self.weights = None if weights is None else xp.where(self.seen, weights, 0)

    def run(self, theta, max_iterations, tolerance):
        xp = backend.module(theta)
        lower, upper, step, factor, fixed, value = self.limits
        theta = xp.where(fixed, value, theta)
        free = int((~fixed).sum())
        valid = xp.isfinite(theta).all(1) & (self.seen.sum((1, 2)) > free) & ~xp.isinf(self.images).any((1, 2))
        theta = xp.where(valid[:, None], theta, 1.0)
        theta = xp.where(fixed, theta, xp.clip(theta, lower, upper))
        every = xp.arange(len(theta))
        state, unit = self.evaluate(theta, every)
        damping = xp.zeros(len(theta))
        iterations = xp.zeros(len(theta), np.int32)
        converged = xp.zeros(len(theta), bool)
        accepted = valid.copy()
        for done in range(max_iterations + 1 if valid.any() else 0):
            active = xp.flatnonzero(valid & ~converged)
            now = [s[active] for s in state]
            likelihood, gradient, fisher = now[:3]
            held = self.held(theta[active], gradient) | fixed
            gradient = xp.where(held, 0, gradient)
            move = _step(gradient, _release(fisher, held), damping[active])
            # the square of the step ahead in standard errors is how far the maximum is
            near = (move * gradient).sum(1) < tolerance**2 * unit[active]
            converged[active] = near & accepted[active] & (damping[active] < 1e-2)
            go = xp.flatnonzero(~converged[active])
            if done == max_iterations or go.size == 0:
                break
            active, likelihood, move, held = active[go], likelihood[go], move[go], held[go]
            limit = step + factor * xp.abs(theta[active])
            trial = xp.clip(theta[active] + xp.clip(move, -limit, limit), lower, upper)
            trial = xp.where(held, theta[active], trial)
            new = self.evaluate(trial, active)[0]
            better = new[0] >= likelihood - 1e-9 * xp.abs(likelihood)
            theta[active] = xp.where(better[:, None], trial, theta[active])
            for old, after in zip(state, new, strict=True):
                old[active] = xp.where(better.reshape(-1, *(1,) * (after.ndim - 1)), after, old[active])
            iterations[active] += 1
            accepted[active] = better
            less = xp.where(damping[active] > 1e-4, damping[active] / 10, 0)
            damping[active] = xp.where(better, less, xp.maximum(10 * damping[active], 1e-2))
        _, gradient, fisher, spread, likelihood, chi2 = state
        pushed = self.held(theta, gradient) & ~fixed
        held = pushed | fixed
        errors = standard_errors(_release(fisher, held))
        if self.weights is not None:
            errors = _spread(_release(fisher, held), _release(spread, held), xp.isfinite(errors).all(1))
        errors = xp.where(held, np.nan, errors)
        status = xp.where(converged, int(Status.converged), int(Status.max_iterations))
        status = xp.where(pushed.any(1), int(Status.at_bound), status)
        failed = ~xp.isfinite(xp.where(held, 0, errors)).all(1) | ~xp.isfinite(likelihood)
        status = xp.where(failed, int(Status.singular), status)
        return {
            "status": xp.where(valid, status, int(Status.invalid_input)),
            "parameters": xp.where(valid[:, None], theta, np.nan),
            "errors": xp.where((valid & ~failed)[:, None], errors, np.nan),
            "iterations": iterations,
            "log_likelihood": xp.where(valid, likelihood, np.nan),
            "chi2": xp.where(valid, chi2, np.nan),
        }

    def evaluate(self, theta, rows):
        """What is maximised (n,), its gradient (n, p), information and noise (n, p, p), log likelihood, chi2; unit."""
        images, variance, seen = self.images[rows], self.variance[rows], self.seen[rows]
        xp = backend.module(images)
        mu, partials = self.psf.partials(theta, images.shape[1:])
        mean = mu + variance
        nats, slope = self.loss.value_and_slope(mu, xp.where(seen, images, np.nan), variance)  # 0 where NaN
        residual = xp.where(seen, images - mu, 0)
        likelihood, chi2 = -nats.sum((1, 2)), (residual**2 * (seen / mean)).sum((1, 2))
        if self.weights is None:
            objective, information_ = likelihood, information(partials, seen / mean)
            spread, unit = information_, xp.ones(len(images))
        else:
            weights = self.weights[rows]
            slope, objective = -weights * residual, -0.5 * (weights * residual**2).sum((1, 2))
            information_, spread = information(partials, weights), information(partials, weights**2 * mean)
            # least squares counts in units of the noise that the model expects, the likelihood in nats
            unit = xp.maximum((weights * mean).sum((1, 2)), 1e-30) / xp.maximum(seen.sum((1, 2)), 1)
        flat = partials.reshape(*partials.shape[:2], -1)
        gradient = -(flat @ slope.reshape(len(flat), -1, 1))[:, :, 0]
        return [objective, gradient, information_, spread, likelihood, chi2], unit

    def held(self, theta, gradient):
        """Parameters at a bound that the data push outwards."""
        lower, upper = self.limits[:2]
        return ((theta <= lower) & (gradient <= 0)) | ((theta >= upper) & (gradient >= 0))


def _spread(fisher, noise, sound):
    """Standard errors sqrt(diag(F^-1 B F^-1)) of least squares with information F and noise B; NaN if not `sound`."""
    xp = backend.module(fisher)
    eye = xp.eye(fisher.shape[1])
    scale = xp.sqrt(xp.einsum("npp->np", fisher)) + 1e-30
    both = scale[:, :, None] * scale[:, None, :]
    inverse = xp.linalg.inv(xp.where(sound[:, None, None], fisher / both, eye))
    errors = xp.sqrt(xp.einsum("npp->np", inverse @ (noise / both) @ inverse)) / scale
    return xp.where(sound[:, None], errors, np.nan)


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
