"""The fitter for any PSF on the CPU: Fisher scoring with damping, one spot after another, all threads at work.

It knows of a PSF only its compiled value-and-partials function, `psf.numba_partials`, which it calls by address: one
compilation of the fitter serves all PSFs.  The algorithm is that of `refine`, the reference; in a word

    (F + lambda diag F) d = g,   F = sum w (dmu/da)(dmu/db),   g = sum r (dmu/da)

with w = 1 / (mu + v), r = x w - 1, x = max(data + v, 0) for the Poisson likelihood (shifted by the read-noise variance
v; Huang et al. 2013, Nature Methods 10, 653), and w the given weights, r = w (data - mu) for least squares.  A step is
clamped, kept within bounds, and refused if it lowers the likelihood; then lambda grows tenfold.

Pixels are in float32 or float64, sums over them too; the p x p algebra and the likelihood are in float64.  Each spot is
fitted by itself from its own pixels alone, so that no bit of a result depends on threads, order or neighbours.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache, partial
from types import FunctionType
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..psf.axis import FAST
from ..threads import share
from .numbers import cholesky, dot, locked, log, log_factorial, multiply, solve
from .result import Status

BLOCK = 256  # spots that a thread takes at a time, with one scratch memory for all
LEAST_DAMPING, MOST_DAMPING = 1e-2, 1e8
CONVERGED, MAX_ITERATIONS, AT_BOUND, SINGULAR, INVALID = map(int, Status)


def fit(
    psf: Any, spots: Any, variance: Any, weights: Any, initial: Any, limits: Any, max_iterations: int, tolerance: float,
    least_squares: bool, out: tuple[Any, ...],
) -> None:  # fmt: skip
    """Fit `spots` (n, h, w) of float32 or float64 from `initial` (n, p) and write `out`, all of the same dtype.

    `variance`, `weights`: None, (h, w) or (n, h, w); `limits`: lower, upper, step, factor and fixed, (p,) each;
    `out`: parameters (n, p), errors (n, p), status (n,) int8, iterations (n,) int32, log_likelihood (n,), chi2 (n,).
    """
    real, shape = spots.dtype, spots.shape[1:]
    if not len(spots):
        return
    given = (
        callback(psf.numba_partials, real),
        locked(psf.constants, real),
        max(1, psf.scratch_size(shape)),
        locked(spots.reshape(len(spots), -1), real),
        _stack(variance, spots, 0),
        _stack(weights, spots, 1),
        locked(initial, np.float64),
        *(locked(column, np.float64) for column in limits[:4]),
        locked(limits.fixed, np.bool_),
        max_iterations,
        tolerance,
        least_squares,
        *shape,
        *out,
    )
    share(partial(_fit, *given), len(spots), BLOCK)


def _stack(maps: Any, spots: np.ndarray, default: float) -> np.ndarray:
    """None, one map or one for each image as (1 or n, h * w)."""
    size = spots[0].size
    if maps is None:
        return locked(np.full((1, size), default), spots.dtype)
    return locked(maps.reshape(-1, size), spots.dtype)


# ---------------------------------------------------------------- a PSF's function by its address


def _wrapper(theta, constants, value, partials, scratch, p, k, h, w, m):
    numba_partials(  # noqa: F821 - `callback` puts it among the globals
        numba.carray(theta, p),
        numba.carray(constants, k),
        numba.carray(value, (h, w)),
        numba.carray(partials, (p, h, w)),
        numba.carray(scratch, m),
    )
    return 0


_compiled: list[Any] = []  # keeps the machine code whose addresses are in use


@lru_cache
def callback(numba_partials: Any, real: np.dtype) -> int:
    """Address of `numba_partials` as a C function of pointers and sizes; compiled once, and kept on disk.

    numba's disk cache does not tell apart two closures over compiled functions, nor see that one has changed: so the
    name carries a digest of all the code that is called.
    """
    scope = {**globals(), "numba_partials": numba_partials}
    wrapper = FunctionType(_wrapper.__code__, scope, _wrapper.__name__)
    wrapper.__qualname__ = f"_wrapper_{digest(numba_partials)}"
    pointer = types.CPointer(numba.from_dtype(np.dtype(real)))
    signature = types.int32(*[pointer] * 5, *[types.intp] * 5)
    _compiled.append(numba.cfunc(signature, nopython=True, cache=True, error_model="numpy")(wrapper))
    return _compiled[-1].address


def digest(function: Any) -> str:
    """A name for the code of a numba function and of all numba functions that it calls."""
    found, left = {}, [function]
    while left:
        python = getattr(left.pop(), "py_func", None)
        if python is None or python in found:
            continue
        code, cells = python.__code__, python.__closure__ or ()
        values = [python.__globals__.get(name) for name in code.co_names] + [c.cell_contents for c in cells]
        plain = [v for v in values if isinstance(v, int | float | str | bool | tuple)]
        found[python] = repr((python.__module__, python.__qualname__, code.co_code, code.co_consts, plain))
        left += [v for v in values if hasattr(v, "py_func")]
    return hashlib.sha256("".join(found.values()).encode()).hexdigest()[:16]


@intrinsic
def call_psf(typing, address, theta, constants, value, partials, scratch, h, w):
    """Call the C function at `address` with the arrays' pointers and the sizes p, k, h, w, m."""

    def codegen(context, builder, signature, arguments):
        kinds = signature.args[1:6]
        arrays = [context.make_array(k)(context, builder, a) for k, a in zip(kinds, arguments[1:6], strict=True)]
        p, k, m = (cgutils.unpack_tuple(builder, arrays[i].shape, 1)[0] for i in (0, 1, 4))
        pointers, sizes = [a.data for a in arrays], [p, k, *arguments[6:], m]
        kind = ir.FunctionType(ir.IntType(32), [a.type for a in (*pointers, *sizes)])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [*pointers, *sizes])
        return context.get_dummy_value()

    return types.void(address, theta, constants, value, partials, scratch, types.intp, types.intp), codegen


# ---------------------------------------------------------------- sums over pixels; flat, so that LLVM vectorises them


@numba.njit(cache=True, error_model="numpy", fastmath=FAST)
def _poisson(value, count, variance, on, weight, residual):
    """Fill weight and residual; log likelihood without the factorials, and how far rounding may change it."""
    likelihood, doubt = 0.0, 0.0
    for i in range(value.size):
        m = value[i] + variance[i]
        inverse = on[i] / m
        weight[i] = inverse
        residual[i] = count[i] * inverse - on[i]
        x, m = np.float64(count[i]), np.float64(m)
        likelihood += on[i] * (x * log(m) - m)
        doubt += on[i] * abs(x - m)
    return likelihood, doubt


@numba.njit(cache=True, error_model="numpy", fastmath=FAST)
def _squares(value, data, given, weight, residual):
    """The same for least squares, with the weights `given`."""
    total, doubt = 0.0, 0.0
    for i in range(value.size):
        weight[i] = given[i]
        difference = data[i] - value[i]
        residual[i] = given[i] * difference
        total -= 0.5 * np.float64(residual[i]) * np.float64(difference)
        doubt += abs(residual[i] * value[i])
    return total, doubt


@numba.njit(cache=True, error_model="numpy")
def _copy(source, target):  # a slice would take numba seconds to compile, for its check of the shapes
    for a in range(len(source)):
        target[a] = source[a]


@numba.njit(cache=True, error_model="numpy")
def _information(partials, weight, residual, fixed, product, gradient, fisher):
    """Gradient and Fisher information; rows of fixed parameters are left alone."""
    for a in range(len(partials)):
        if fixed[a]:
            continue
        gradient[a] = dot(partials[a], residual)
        multiply(partials[a], weight, product)
        for b in range(a + 1):
            if not fixed[b]:
                fisher[a, b] = fisher[b, a] = dot(partials[b], product)


@numba.njit(cache=True, error_model="numpy")
def _reduce(fisher, held, index, scale, matrix):
    """Information of the parameters that are not held, scaled to unit diagonal; returns how many they are."""
    size = 0
    for a in range(len(held)):
        if not held[a]:
            index[size] = a
            scale[size] = math.sqrt(fisher[a, a]) + 1e-30
            for b in range(size + 1):
                matrix[size, b] = fisher[a, index[b]] / (scale[size] * scale[b])
            size += 1
    return size


@numba.njit(cache=True, error_model="numpy")
def _hold(theta, gradient, lower, upper, fixed, held):
    """Mark the fixed parameters and those at a bound that the data push outwards; True if there are any of these."""
    any_ = False
    for a in range(len(theta)):
        pushed = (theta[a] <= lower[a] and gradient[a] <= 0) or (theta[a] >= upper[a] and gradient[a] >= 0)
        held[a] = fixed[a] or pushed
        any_ |= pushed and not fixed[a]
    return any_


# ---------------------------------------------------------------- the fit


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _fit(
    address, constants, scratch_size, spots, variance, weights, initial, lower, upper, step, factor, fixed,
    max_iterations, tolerance, least_squares, h, w, parameters, errors, status, iterations, log_likelihood, chi2,
    begin, end,
):  # fmt: skip
    size, p = spots.shape[1], initial.shape[1]
    pixels, partials = np.empty((9, size), spots.dtype), np.empty((p, size), spots.dtype)
    given, scratch = np.empty(p, spots.dtype), np.empty(scratch_size, spots.dtype)
    held, index = np.empty(p, np.bool_), np.empty(p, np.int64)
    numbers, matrices = np.empty((5, p), np.float64), np.empty((4, p, p), np.float64)
    for i in range(begin, end):
        status[i], iterations[i], log_likelihood[i], chi2[i] = _fit_one(
            address, constants, spots[i], variance[i if len(variance) > 1 else 0],
            weights[i if len(weights) > 1 else 0], initial[i], lower, upper, step, factor, fixed,
            max_iterations, tolerance, least_squares, h, w, parameters[i], errors[i],
            pixels, partials, given, scratch, held, index, numbers, matrices,
        )  # fmt: skip


@numba.njit(cache=True, error_model="numpy")
def _fit_one(
    address, constants, data, variance, weights, initial, lower, upper, step, factor, fixed,
    max_iterations, tolerance, least_squares, h, w, parameters, errors,
    pixels, partials, given, scratch, held, index, numbers, matrices,
):  # fmt: skip
    seen, count, noise, on = pixels[0], pixels[1], pixels[2], pixels[3]
    chosen, weight, residual, product, value = pixels[4], pixels[5], pixels[6], pixels[7], pixels[8]
    theta, trial, gradient, move, scale = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    fisher, matrix, factored, spread = matrices[0], matrices[1], matrices[2], matrices[3]
    p = len(initial)

    # pixels that count: neither NaN nor of infinite variance
    pixels_seen, valid = 0, True
    for i in range(data.size):
        good = not math.isnan(data[i]) and variance[i] < np.inf
        valid &= not math.isinf(data[i])
        on[i] = good
        seen[i] = data[i] if good else 0
        noise[i] = variance[i] if good else 0
        count[i] = max(seen[i] + noise[i], data.dtype.type(0))
        chosen[i] = weights[i] if good else 0
        pixels_seen += good
    free = 0
    for a in range(p):
        valid &= math.isfinite(initial[a])
        theta[a] = initial[a] if fixed[a] else min(max(initial[a], lower[a]), upper[a])
        free += not fixed[a]
        parameters[a] = errors[a] = np.nan
        gradient[a] = 0
        for b in range(p):
            fisher[a, b] = 0
    if not valid or pixels_seen <= free:
        return INVALID, 0, np.nan, np.nan

    _copy(theta, trial)

    rounding = 2.0**-52 if data.itemsize == 8 else 2.0**-23
    likelihood, damping, unit, done = -np.inf, 0.0, 1.0, 0
    converged = better = False
    while True:
        _copy(trial, given)
        call_psf(address, given, constants, value, partials, scratch, h, w)
        if least_squares:
            new, doubt = _squares(value, seen, chosen, weight, residual)
        else:
            new, doubt = _poisson(value, count, noise, on, weight, residual)
        better = done == 0 or new >= likelihood - 1e-9 * abs(likelihood) * (rounding < 1e-12) - 2 * rounding * doubt
        if better:
            _copy(trial, theta)
            likelihood = new
            _information(partials, weight, residual, fixed, product, gradient, fisher)
            damping = damping / 10 if damping > LEAST_DAMPING / 100 else 0.0
        else:
            damping = max(10 * damping, LEAST_DAMPING)
        if least_squares and done == 0:
            # least squares counts in units of the noise that the model expects, the likelihood in nats
            unit = max(dot(weight, value) + dot(weight, noise), 1e-30) / pixels_seen

        _hold(theta, gradient, lower, upper, fixed, held)
        size = _reduce(fisher, held, index, scale, matrix)
        while not cholesky(matrix, factored, size, damping + 1e-9, 0.0) and damping < MOST_DAMPING:
            damping = max(100 * damping, 10 * LEAST_DAMPING)
        for c in range(size):
            move[c] = gradient[index[c]] / scale[c]
        solve(factored, size, move)
        # the square of the step ahead in standard errors is how far the maximum is
        decrement = 0.0
        for c in range(size):
            decrement += move[c] * gradient[index[c]] / scale[c]
        converged = better and damping < LEAST_DAMPING and decrement < tolerance**2 * unit
        if converged or done == max_iterations:
            break
        done += 1
        for c in range(size):
            a = index[c]
            limit = step[a] + factor[a] * abs(theta[a])
            trial[a] = min(max(theta[a] + min(max(move[c] / scale[c], -limit), limit), lower[a]), upper[a])

    # what the solution is worth
    _copy(theta, given)
    if not better:
        call_psf(address, given, constants, value, partials, scratch, h, w)
    likelihood, squares = _judge(value, seen, count, noise, on, product)
    at_bound = _hold(theta, gradient, lower, upper, fixed, held)
    size = _reduce(fisher, held, index, scale, matrix)
    sound = math.isfinite(likelihood) and cholesky(matrix, factored, size, 0.0, max(1e-12, 8 * rounding))
    if sound:
        if least_squares:
            multiply(weight, weight, residual)
            multiply(residual, product, weight)
            _information(partials, weight, residual, fixed, product, gradient, spread)
        for c in range(size):
            for d in range(size):
                move[d] = c == d
            solve(factored, size, move)
            square = move[c] / scale[c] ** 2
            if least_squares:
                square = 0.0
                for d in range(size):
                    for e in range(size):
                        square += move[d] * move[e] * spread[index[d], index[e]] / (scale[d] * scale[e])
                square /= scale[c] ** 2
            errors[index[c]] = math.sqrt(square)
            sound &= math.isfinite(errors[index[c]])
    for a in range(p):
        parameters[a] = given[a]
        errors[a] = errors[a] if sound else np.nan
    ending = SINGULAR if not sound else AT_BOUND if at_bound else CONVERGED if converged else MAX_ITERATIONS
    return ending, done, likelihood, squares


@numba.njit(cache=True, error_model="numpy", fastmath=FAST)
def _judge(value, data, count, variance, on, mean):
    """Poisson log likelihood and chi square; fills `mean` with mu + v."""
    likelihood, squares = 0.0, 0.0
    for i in range(value.size):
        mean[i] = value[i] + variance[i]
        x, m = np.float64(count[i]), np.float64(mean[i])
        likelihood += on[i] * (x * log(m) - m - log_factorial(x))
        difference = data[i] - value[i]
        squares += on[i] * np.float64(difference * difference) / m
    return likelihood, squares
