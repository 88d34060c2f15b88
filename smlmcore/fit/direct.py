"""Direct fitting: images of single molecules in, parameters with standard errors out.

Which body does the work follows from the PSF and from where the images live; it is the first of BODIES that suits:

    Gaussian2D, NumPy     `lanes`: a spot in each SIMD lane
    Spline, NumPy         `spline`: a row of pixels in a vector
    any PSF, NumPy        `generic`: one spot after another
    these two, CuPy       `cuda`: the kernels of kernels/fit.cu
    any PSF, CuPy         `refine`: array operations, all spots in step

All of them do Fisher scoring with damping, and end each fit in one of `Status`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from ..psf import Gaussian2D, Spline
from ..psf.base import PSF
from ..threads import with_threads
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
    tolerance: float = 0.007,
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
    with with_threads(threads), _progress(progress, len(problem.spots)) as advance:
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
    tolerance: float = 0.007,
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
    body = _body(problem)
    later = body.measure is not None and problem.initial is None
    out = problem.outputs(len(problem.spots), measured=not later)
    new = body.is_compiled is not None and not body.is_compiled(problem)
    with with_threads(threads), _progress(progress, len(problem.spots), COMPILING if new else FITTING) as advance:
        for chunk in problem.chunks(body.raw):
            part = _rows_of(out, chunk.rows)
            _fit_chunk(problem, chunk, part)
            _try_again(problem, chunk, part)
            advance(len(chunk.spots))
    return Result(problem.psf.names, *out, measure=partial(_measure, problem, body, out[0]) if later else None)


def _measure(problem: Problem, body: Body, parameters: Any) -> tuple[Any, Any]:
    """Log likelihood and chi2 of what was found."""
    found = np.empty((2, len(parameters)), problem.dtype)
    for chunk in problem.chunks(body.raw):
        body.measure(problem, chunk, parameters[chunk.rows], *found[:, chunk.rows])
    return found[0], found[1]


def _rows_of(out: tuple[Any, ...], rows: Any) -> tuple[Any, ...]:
    return tuple(a if a is None else a[rows] for a in out)


class Body(NamedTuple):
    """A way to do the work.

    `suits(problem)`: whether it can; `fit(problem, chunk, out)`: fit and write parameters, errors, status, iterations,
    log_likelihood, chi2; `measure(problem, chunk, parameters, log_likelihood, chi2)`: write the last two later, in
    place of `fit`.  `raw`: takes chunks that are not converted to the problem's dtype.  `is_compiled(problem)`: false
    where the first call will take seconds, which the progress bar then says.
    """

    suits: Callable[[Problem], bool]
    fit: Callable[[Problem, Chunk, tuple[Any, ...]], None]
    measure: Callable[[Problem, Chunk, Any, Any, Any], None] | None = None
    raw: bool = False
    is_compiled: Callable[[Problem], bool] | None = None


def _body(problem: Problem) -> Body:
    return next(body for body in BODIES if body.suits(problem))


def _fit_chunk(problem: Problem, chunk: Chunk, out: tuple[Any, ...]) -> None:
    """Fit a chunk with the body that suits it; log_likelihood and chi2 may be None if they are to come later."""
    body = _body(problem)
    body.fit(problem, chunk, out)
    if body.measure is not None and out[4] is not None:
        body.measure(problem, chunk, out[0], *out[4:])


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
        guess = _with_sigma(problem, guess)
    wide = tuple(xp.empty((n, 5), problem.dtype) for _ in range(2))
    yield guess, five, (*wide, *out[2:])
    for a, b in zip(out, wide, strict=False):
        a[...] = b[:, :4]


def _with_sigma(problem: Problem, parameters: Any) -> Any:
    """Five columns, the last the sigma that the PSF knows."""
    xp, sigma = backend.module(parameters), problem.psf.sigma
    return xp.concatenate([parameters, xp.full((len(parameters), 1), sigma, parameters.dtype)], 1)


def _in_lanes(problem: Problem, chunk: Chunk, out: tuple[Any, ...]) -> None:
    own = chunk.initial is None and not problem.limits.fixed.any()  # lanes have their own first guess
    with _five_columns(problem, None if own else start(problem, chunk), out) as (guess, given, wide):
        lanes.fit(
            chunk.spots, chunk.variance, guess, problem.psf.sigma, given.fixed, given.lower, given.upper,
            problem.max_iterations, problem.tolerance, problem.least_squares, wide[:4],
        )  # fmt: skip
    # lanes refuse an image with a NaN pixel; the generic body leaves the pixel out
    _some_one_by_one(problem, chunk, np.flatnonzero(out[2] == Status.invalid_input), out[:4])


def _in_rows(problem: Problem, chunk: Chunk, out: tuple[Any, ...]) -> None:
    own = chunk.initial is None and not problem.limits.fixed.any()  # the fast path has its own first guess
    left = spline.fit(
        problem.psf, chunk.spots, chunk.variance, None if own else start(problem, chunk), problem.limits,
        problem.max_iterations, problem.tolerance, out[:4],
    )  # fmt: skip
    _some_one_by_one(problem, chunk, left, out[:4])


def _some_one_by_one(problem: Problem, chunk: Chunk, which: np.ndarray, out: tuple[Any, ...]) -> None:
    """Fit some images of a chunk with the generic body."""
    if which.size:
        found = problem.outputs(which.size)
        _one_by_one(problem, problem.convert(chunk.take(which)), found)
        for a, values in zip(out, found, strict=False):
            a[which] = values


def _measure_in_lanes(problem: Problem, chunk: Chunk, parameters: Any, log_likelihood: Any, chi2: Any) -> None:
    five = parameters if problem.psf.sigma is None else _with_sigma(problem, parameters)
    lanes.measure(chunk.spots, chunk.variance, five, log_likelihood, chi2)


def _measure_in_rows(problem: Problem, chunk: Chunk, parameters: Any, log_likelihood: Any, chi2: Any) -> None:
    spline.measure(problem.psf, chunk.spots, chunk.variance, parameters, log_likelihood, chi2)


def _on_gpu(problem: Problem, chunk: Chunk, out: tuple[Any, ...]) -> None:
    guess, limits_, wide = start(problem, chunk), problem.limits, out
    psf, (most, tolerance) = problem.psf, (problem.max_iterations, problem.tolerance)
    if type(psf) is not Gaussian2D:
        cuda.fit(psf, chunk.spots, chunk.variance, guess, limits_, most, tolerance, wide)
        return
    with _five_columns(problem, guess, out) as (guess, limits_, wide):
        cuda.fit(psf, chunk.spots, chunk.variance, guess, limits_, most, tolerance, wide)


def _in_step(problem: Problem, chunk: Chunk, out: tuple[Any, ...]) -> None:
    weights = chunk.weights if chunk.weights is not None or not problem.least_squares else 1.0
    found = lockstep(
        problem.psf, chunk.spots, 0.0 if chunk.variance is None else chunk.variance, start(problem, chunk),
        problem.limits, weights=weights, max_iterations=problem.max_iterations, tolerance=problem.tolerance,
    )  # fmt: skip
    for a, name in zip(out, several.OUTPUTS, strict=True):
        a[...] = getattr(found, name)


def _gaussian(problem: Problem) -> bool:
    # a subclass may draw something else; nothing to fit is no work for lanes
    return type(problem.psf) is Gaussian2D and problem.weights is None and not problem.limits.fixed.all()


def _spline(problem: Problem) -> bool:
    return type(problem.psf) is Spline and not problem.least_squares


def _gpu(problem: Problem) -> bool:
    return backend.is_gpu(problem.spots)


BODIES = (
    Body(lambda p: not _gpu(p) and _gaussian(p), _in_lanes, _measure_in_lanes, raw=True, is_compiled=lanes.is_compiled),
    Body(lambda p: not _gpu(p) and _spline(p), _in_rows, _measure_in_rows),
    Body(lambda p: not _gpu(p), _one_by_one),
    Body(lambda p: not p.least_squares and cuda.device_kernel(p.psf) is not None, _on_gpu),
    Body(lambda p: True, _in_step),
)


def _try_again(problem: Problem, chunk: Chunk, out: tuple[Any, ...]) -> None:
    """Fits that a given start has led astray get a second one, the PSF's own; the better end counts."""
    if chunk.initial is None:
        return
    astray = np.flatnonzero(backend.to_cpu(_astray(problem, *out)))
    if not astray.size:
        return
    part = chunk.take(astray)._replace(initial=None)
    first, second = _rows_of(out, astray), problem.outputs(astray.size)
    _fit_chunk(problem, part, second)
    (_, _, old_status, _, old, _), (_, _, status, _, new, _) = first, second
    xp = backend.module(new)
    ended = (old_status == Status.converged) | (old_status == Status.at_bound)  # a maximum of what is allowed
    better = (status == Status.converged) & (~ended | (new > old))
    for a, before, values in zip(out, first, second, strict=True):
        a[astray] = xp.where(better.reshape(-1, *(1,) * (values.ndim - 1)), values, before)


def _astray(problem: Problem, parameters, errors, status, iterations, log_likelihood, chi2) -> Any:
    """Fits that have not converged, or that leave residuals which noise explains once in a million times."""
    pixels = math.prod(problem.shape)
    return (status != Status.converged) & (status != Status.invalid_input) | (chi2 > pixels + 5 * math.sqrt(2 * pixels))


# ---------------------------------------------------------------- progress


FITTING, COMPILING = "fitting", "compiling, once for this size of images (5 to 8 s)"


@contextmanager
def _progress(progress: Progress, total: int, title: str = FITTING) -> Iterator[Callable[[int], Any]]:
    """What is to be called with the number of images done: the user's function, or that of a bar with this title."""
    if callable(progress) or progress is False:
        yield progress or (lambda done: None)
        return
    from tqdm import tqdm

    hidden = None if progress is None else not progress  # None: hidden where there is no terminal
    with tqdm(total=total, desc=title, unit="spot", unit_scale=True, disable=hidden, leave=False) as bar:

        def advance(done: int) -> None:
            bar.set_description(FITTING, refresh=False)
            bar.update(done)

        yield advance


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
    noise = np.asarray(variance, float)
    if noise.shape not in ((), (h, w), (n, h, w)) or not (noise >= 0).all():
        raise ValueError(
            f"simulate_spots got a variance of shape {noise.shape}; expected numbers >= 0, one, ({h}, {w}) or "
            f"({n}, {h}, {w}): read noise squared, in squared photoelectrons"
        )
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
    deviation = np.sqrt(noise)
    for first in range(0, n, 4096):
        rows = slice(first, first + 4096)
        expected = psf.render(dict(zip(psf.names, truth[rows].T, strict=True)), (h, w))
        spread = deviation[rows] if deviation.ndim == 3 else deviation
        images[rows] = rng.poisson(expected) + (rng.normal(0.0, 1.0, expected.shape) * spread if spread.any() else 0.0)
    return images, truth
