"""Direct fitting: images of single molecules in, parameters with standard errors out.

Which body does the work follows from the PSF and from where the images live:

    Gaussian2D, NumPy     `lanes`: a spot in each SIMD lane
    Spline, NumPy         `spline`: a row of pixels in a vector
    any PSF, NumPy        `generic`: one spot after another
    Gaussian2D, CuPy      `cuda`: the kernel of kernels/fit.cu
    any PSF, CuPy         `refine`: array operations, all spots in step

All of them do Fisher scoring with damping, and end each fit in one of `Status`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np
from tqdm import tqdm

from .. import backend
from ..psf import Gaussian2D, Spline
from ..psf.base import PSF
from . import cuda, generic, lanes, spline
from . import emitters as several
from .problem import Chunk, Limits, Problem, check
from .refine import lockstep
from .result import Result, Status

Progress = Callable[[int], Any] | bool | None


def mle(
    spots: Any,
    psf: PSF,
    variance: Any = None,
    initial: Any = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    fixed: Mapping[str, float] | None = None,
    max_iterations: int = 20,
    emitters: int | tuple[int, int] | str = 1,
    threads: int | None = None,
    progress: Progress = None,
    tolerance: float = 0.03,
) -> Result:
    """Maximum-likelihood parameters of each image, at the Cramér–Rao bound, with their standard errors.

    Maximises sum(x log(mu + v) - mu - v), x = max(data + v, 0), by Fisher scoring (Smith et al. 2010, Nature Methods
    7, 373; with read noise Huang et al. 2013, Nature Methods 10, 653) until the step expected is below `tolerance`
    standard errors; the last step leaves a small part of that.

    `spots` (n, h, w): photoelectrons, any real dtype, NumPy or CuPy, also memory-mapped, h and w from 5 to 32; NaN
    leaves a pixel out.  `psf`: an object of `smlmcore.psf`.  `variance`: read-noise variance in squared
    photoelectrons, a number, (h, w) or (n, h, w).  `initial` (n, p): where to start, default `psf.initial`.
    `bounds` {name: (low, high)}, `fixed` {name: value}.  `emitters`: how many molecules there are in an image, 1 to 5,
    or (lowest, highest) or "auto" to let the data choose; see `fit.emitters` (`initial` is then that of the first).
    `threads`: of the CPU, default all.  `progress`: a function of the number of images just done, True or False;
    default a bar where there is a terminal.

    Images of float64 or of integers of more than 16 bits are fitted in float64, all others in float32.  No result
    depends on threads or on which other images there are.  Raises `ValueError` or `TypeError` that names the input.

    >>> from smlmcore import psf
    >>> images, truth = simulate_spots(psf.Gaussian2D(), 100, (9, 9), np.random.default_rng(0))
    >>> result = mle(images, psf.Gaussian2D())
    >>> bool(np.std((result.x - truth[:, 0]) / result.errors[:, 0]) < 1.2), int(result.status.max())
    (True, 0)
    """
    problem = check(spots, psf, variance, None, initial, bounds, fixed, max_iterations, tolerance, False)
    lowest, highest = several.numbers(emitters)
    if highest == 1:
        return _run(problem, threads, progress)
    with _threads(threads), _progress(progress, len(problem.spots)) as advance:
        return several.fit(problem, lowest, highest, _fit_chunk, advance)


def lsq(
    spots: Any,
    psf: PSF,
    weights: Any = None,
    variance: Any = None,
    initial: Any = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    fixed: Mapping[str, float] | None = None,
    max_iterations: int = 20,
    threads: int | None = None,
    progress: Progress = None,
    tolerance: float = 0.03,
) -> Result:
    """Least-squares parameters of each image: sum of weight (data - mu)^2, without weights all pixels alike.

    `weights`: a number, (h, w) or (n, h, w), best 1 / variance of the pixel.  The standard errors are those that this
    estimator has for photoelectrons of variance mu + v, whatever the weights: sqrt(diag(A^-1 B A^-1)) with
    A = sum w (dmu/da)(dmu/db) and B = sum w^2 (mu + v)(dmu/da)(dmu/db).  `log_likelihood` is the Poisson likelihood of
    the solution, to be compared with that of `mle`.  All else as for `mle`.

    >>> from smlmcore import psf
    >>> model = psf.EllipticGaussian2D()
    >>> images, truth = simulate_spots(model, 100, (9, 9), np.random.default_rng(0))
    >>> result = lsq(images, model)
    >>> bool(np.std((result.x - truth[:, 0]) / result.errors[:, 0]) < 1.2)
    True
    """
    problem = check(spots, psf, variance, weights, initial, bounds, fixed, max_iterations, tolerance, True)
    return _run(problem, threads, progress)


# ---------------------------------------------------------------- one emitter in each image


def _run(problem: Problem, threads: int | None, progress: Progress) -> Result:
    result = problem.result()
    with _threads(threads), _progress(progress, len(problem.spots)) as advance:
        for chunk in problem.chunks():
            _fit_chunk(problem, chunk, _outputs(result, chunk.rows))
            _try_again(problem, chunk, result)
            advance(len(chunk.spots))
    return result


def _outputs(result: Result, rows: slice) -> tuple[Any, ...]:
    names = ("parameters", "errors", "status", "iterations", "log_likelihood", "chi2")
    return tuple(getattr(result, name)[rows] for name in names)


def _fit_chunk(problem: Problem, chunk: Chunk, out: tuple[Any, ...]) -> None:
    """Fit a chunk with the body that suits it."""
    gaussian = type(problem.psf) is Gaussian2D  # a subclass may draw something else
    if backend.is_gpu(chunk.spots):
        body = _on_gpu if gaussian and not problem.least_squares else _in_step
    else:
        quick = _in_rows if type(problem.psf) is Spline and not problem.least_squares else _one_by_one
        body = _in_lanes if gaussian and problem.weights is None else quick
    body(problem, chunk, out)


def start(problem: Problem, chunk: Chunk) -> Any:
    """Where the fits of a chunk start (m, p): the user's guess or the PSF's own, with the fixed values in place."""
    guess = chunk.initial
    if guess is None:
        guess = problem.psf.initial(chunk.spots, 0.0 if chunk.variance is None else chunk.variance)
    if not problem.limits.fixed.any():
        return guess
    xp = backend.module(guess)
    return xp.where(xp.asarray(problem.limits.fixed), xp.asarray(problem.limits.value), guess).astype(problem.dtype)


def _one_by_one(problem: Problem, chunk: Chunk, out: tuple[Any, ...]) -> None:
    generic.fit(
        problem.psf, chunk.spots, chunk.variance, chunk.weights, start(problem, chunk), problem.limits,
        problem.max_iterations, problem.tolerance, problem.least_squares, out,
    )  # fmt: skip


@contextmanager
def _five_columns(problem: Problem, guess: Any, out: tuple[Any, ...]) -> Iterator[tuple[Any, Limits, tuple]]:
    """Guess, limits and outputs for bodies that take sigma for a parameter; one that the PSF knows is added."""
    if problem.psf.sigma is None:
        yield guess, problem.limits, out
        return
    xp, n, sigma = backend.module(out[0]), len(out[0]), problem.psf.sigma
    ends = (0.0, np.inf, 0.0, 0.0, True, sigma)
    five = Limits(*(np.append(column, end) for column, end in zip(problem.limits, ends, strict=True)))
    if guess is not None:
        guess = xp.concatenate([guess, xp.full((n, 1), sigma, guess.dtype)], 1)
    wide = tuple(xp.empty((n, 5), problem.dtype) for _ in range(2))
    yield guess, five, (*wide, *out[2:])
    for a, b in zip(out, wide, strict=False):
        a[...] = b[:, :4]


def _in_lanes(problem: Problem, chunk: Chunk, out: tuple[Any, ...]) -> None:
    own = chunk.initial is None and not problem.limits.fixed.any()  # lanes have their own first guess
    with _five_columns(problem, None if own else start(problem, chunk), out) as (guess, given, wide):
        lanes.fit(
            chunk.spots, chunk.variance, guess, problem.psf.sigma, given.fixed, given.lower, given.upper,
            problem.max_iterations, problem.tolerance, problem.least_squares, wide,
        )  # fmt: skip
    # lanes refuse an image with a NaN pixel; the generic body leaves the pixel out
    _some_one_by_one(problem, chunk, np.flatnonzero(out[2] == Status.invalid_input), out)


def _in_rows(problem: Problem, chunk: Chunk, out: tuple[Any, ...]) -> None:
    own = chunk.initial is None and not problem.limits.fixed.any()  # the fast path has its own first guess
    left = spline.fit(
        problem.psf, chunk.spots, chunk.variance, None if own else start(problem, chunk), problem.limits,
        problem.max_iterations, problem.tolerance, numba.get_num_threads(), out,
    )  # fmt: skip
    _some_one_by_one(problem, chunk, left, out)


def _some_one_by_one(problem: Problem, chunk: Chunk, which: np.ndarray, out: tuple[Any, ...]) -> None:
    """Fit some images of a chunk with the generic body."""
    if which.size:
        found = tuple(a[which] for a in out)
        _one_by_one(problem, _rows(chunk, which), found)
        for a, values in zip(out, found, strict=True):
            a[which] = values


def _on_gpu(problem: Problem, chunk: Chunk, out: tuple[Any, ...]) -> None:
    with _five_columns(problem, start(problem, chunk), out) as (guess, given, wide):
        cuda.fit(chunk.spots, chunk.variance, guess, given, problem.max_iterations, problem.tolerance, wide)


def _in_step(problem: Problem, chunk: Chunk, out: tuple[Any, ...]) -> None:
    weights = chunk.weights if chunk.weights is not None or not problem.least_squares else 1.0
    found = lockstep(
        problem.psf, chunk.spots, 0.0 if chunk.variance is None else chunk.variance, start(problem, chunk),
        problem.limits, weights=weights, max_iterations=problem.max_iterations, tolerance=problem.tolerance,
    )  # fmt: skip
    for a, values in zip(out, _outputs(found, slice(None)), strict=True):
        a[...] = values


def _rows(chunk: Chunk, rows: Any) -> Chunk:
    """Some images of a chunk."""
    maps = [m if m is None or m.ndim == 2 else m[rows] for m in (chunk.variance, chunk.weights)]
    return Chunk(rows, chunk.spots[rows], *maps, None if chunk.initial is None else chunk.initial[rows])


def _try_again(problem: Problem, chunk: Chunk, result: Result) -> None:
    """Fits that a given start has led astray get a second one, the PSF's own; the better end counts."""
    if chunk.initial is None:
        return
    out = _outputs(result, chunk.rows)
    astray = np.flatnonzero(backend.to_cpu(_astray(problem, chunk, result)))
    if not astray.size:
        return
    part = _rows(chunk, astray)._replace(initial=None)
    second = tuple(a[astray] for a in out)
    _fit_chunk(problem, part, second)
    (_, _, old_status, _, old, _), (_, _, status, _, new, _) = (tuple(a[astray] for a in out), second)
    xp = backend.module(new)
    better = (status == Status.converged) & ((old_status != Status.converged) | (new > old))
    for a, values in zip(out, second, strict=True):
        a[astray] = xp.where(better.reshape(-1, *(1,) * (values.ndim - 1)), values, a[astray])


def _astray(problem: Problem, chunk: Chunk, result: Result) -> Any:
    """Fits that have not converged, or that leave residuals which noise explains once in a million times."""
    status, chi2 = result.status[chunk.rows], result.chi2[chunk.rows]
    pixels = math.prod(problem.shape)
    return (status != Status.converged) & (status != Status.invalid_input) | (chi2 > pixels + 5 * math.sqrt(2 * pixels))


# ---------------------------------------------------------------- threads and progress


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """numba's number of threads within the block."""
    most, before = numba.config.NUMBA_NUM_THREADS, numba.get_num_threads()
    if count is not None and not (isinstance(count, int | np.integer) and 1 <= count <= most):
        raise ValueError(f"fit got threads={count!r}; expected 1 to {most}, the number that this machine offers")
    numba.set_num_threads(int(count or before))
    try:
        yield
    finally:
        numba.set_num_threads(before)


@contextmanager
def _progress(progress: Progress, total: int) -> Iterator[Callable[[int], Any]]:
    """What is to be called with the number of images done: the user's function, or that of a bar."""
    if callable(progress):
        yield progress
        return
    hidden = None if progress is None else not progress  # None: hidden where there is no terminal
    with tqdm(total=total, desc="fitting", unit="spot", unit_scale=True, disable=hidden, leave=False) as bar:
        yield bar.update


# ---------------------------------------------------------------- images to try it with

DEFAULTS = {"photons": 2000.0, "background": 10.0, "sigma": 1.3, "sigma_x": 1.3, "sigma_y": 1.3}


def simulate_spots(
    psf: PSF, n: int, shape: tuple[int, int], rng: np.random.Generator, variance: Any = 0.0, **parameters: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, h, w) of single molecules with photon and read noise, float32, and the truth (n, p) behind them.

    Each of the PSF's parameters is a number, a range (low, high) to draw from evenly, or an array (n,).  Default: x
    and y up to half a pixel from the centre, 2000 photons, background 10 per pixel, sigma 1.3 pixels, any other within
    the middle half of its bounds.  `variance`: read-noise variance, a number, (h, w) or (n, h, w).

    >>> from smlmcore import psf
    >>> images, truth = simulate_spots(psf.Gaussian2D(), 5, (7, 9), np.random.default_rng(0), photons=(500, 900))
    >>> images.shape, truth.shape, bool(truth[:, 2].max() < 900)
    ((5, 7, 9), (5, 5), True)
    """
    h, w = shape
    if unknown := [name for name in parameters if name not in psf.names]:
        raise ValueError(
            f"simulate_spots got {', '.join(map(repr, unknown))}; {type(psf).__name__} has the parameters "
            f"{', '.join(psf.names)}"
        )
    centre = {"x": ((w - 2) / 2, w / 2), "y": ((h - 2) / 2, h / 2)}
    truth = np.empty((n, len(psf.names)))
    for column, name in enumerate(psf.names):
        low, high = psf.bounds((h, w))[name][:2]
        middle = (0.75 * low + 0.25 * high, 0.25 * low + 0.75 * high)
        given = parameters.get(name, centre.get(name, DEFAULTS.get(name, middle)))
        if isinstance(given, tuple):
            truth[:, column] = rng.uniform(*given, n)
        elif np.shape(given) in ((), (n,)):
            truth[:, column] = given
        else:
            raise ValueError(
                f"simulate_spots got {name} of shape {np.shape(given)}; expected a number, a pair (low, high) or ({n},)"
            )
    images = np.empty((n, h, w), np.float32)
    deviation = np.sqrt(np.asarray(variance, float))
    for first in range(0, n, 4096):
        rows = slice(first, first + 4096)
        expected = psf.render(dict(zip(psf.names, truth[rows].T, strict=True)), (h, w))
        noise = deviation[rows] if deviation.ndim == 3 else deviation
        images[rows] = rng.poisson(expected) + (rng.normal(0.0, 1.0, expected.shape) * noise if noise.any() else 0.0)
    return images, truth
