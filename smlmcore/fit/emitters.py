"""Several molecules in one image: their sum as a PSF of its own, and how many there are.

`Several(psf, k)` is a PSF with the parameters of k emitters, x0, y0, photons0, ..., x1, y1, ..., and one background;
the fitter treats it as any other.  A fit of k emitters grows from one of k - 1: the next one starts where the residual
is highest.  Two starts are tried, one with the emitter added, one with its nearest neighbour split in two; the likelier
end counts.  Where the number is open, one more emitter is taken for as long as it lowers

    BIC = -2 log likelihood + (number of parameters) log(number of pixels)

(Schwarz 1978, Annals of Statistics 6, 461; several emitters: Huang et al. 2011, Biomedical Optics Express 2, 1377).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from numbers import Integral
from typing import Any

import numba
import numpy as np

from .. import backend
from ..psf.base import PSF, Bounds
from .problem import Chunk, Limits, Problem
from .result import Result, Status

MOST = 5
OUTPUTS = ("parameters", "errors", "status", "iterations", "log_likelihood", "chi2")


def numbers(emitters: Any) -> tuple[int, int]:
    """Lowest and highest number of emitters from what the user said: a number, a pair of numbers or "auto".

    >>> numbers(2), numbers((1, 3)), numbers("auto")
    ((2, 2), (1, 3), (1, 5))
    """
    pair = (1, MOST) if isinstance(emitters, str) and emitters == "auto" else emitters
    pair = (pair, pair) if isinstance(pair, Integral) else pair
    whole = isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(k, Integral) for k in pair)
    if not whole or not 1 <= pair[0] <= pair[1] <= MOST:
        raise ValueError(
            f'fit.mle got emitters={emitters!r}; expected a number from 1 to {MOST}, a pair (lowest, highest) or "auto"'
        )
    return int(pair[0]), int(pair[1])


class Several(PSF):
    """The sum of `emitters` images of `psf` on one background; parameters x0, y0, ..., x1, y1, ..., background.

    >>> from smlmcore.psf import Gaussian2D
    >>> Several(Gaussian2D(sigma=1.3), 2).names
    ('x0', 'y0', 'photons0', 'x1', 'y1', 'photons1', 'background')
    """

    def __init__(self, psf: PSF, emitters: int) -> None:
        self.psf, self.emitters = psf, emitters
        self.own = tuple(name for name in psf.names if name != "background")
        self.names = (*(f"{name}{k}" for k in range(emitters) for name in self.own), "background")

    def configuration(self) -> dict[str, Any]:
        return {"psf": self.psf, "emitters": self.emitters}

    def bounds(self, shape: tuple[int, int]) -> dict[str, Bounds]:
        """Those of the single PSF, for each emitter."""
        single = self.psf.bounds(shape)
        return {name: single[name if name in single else name[:-1]] for name in self.names}

    def split(self, parameters: Any) -> Any:
        """Parameters (n, emitters, p) of the single PSF, background included in each, from those of the sum (n, q)."""
        xp = backend.module(parameters)
        each = parameters[:, :-1].reshape(len(parameters), self.emitters, len(self.own))
        columns = {name: each[:, :, i] for i, name in enumerate(self.own)}
        columns["background"] = xp.broadcast_to(parameters[:, -1:], each.shape[:2])
        return xp.stack([columns[name] for name in self.psf.names], 2)

    def join(self, each: Any) -> Any:
        """Parameters (n, q) of the sum from those of its emitters (n, emitters, p); the first has the background."""
        xp = backend.module(each)
        column = self.psf.names.index("background")
        own = xp.stack([each[:, :, self.psf.names.index(name)] for name in self.own], 2)
        return xp.concatenate([own.reshape(len(each), -1), each[:, 0, column : column + 1]], 1)

    def render(self, parameters: Mapping[str, Any], shape: tuple[int, int]) -> Any:
        """Images (n, h, w) of the sum."""
        xp = backend.module(*parameters.values())
        table = xp.stack([xp.asarray(parameters[name]) for name in self.names], 1)
        return self.partials(table, shape)[0]

    def partials(self, parameters: Any, shape: tuple[int, int]) -> tuple[Any, Any]:
        """Images (n, h, w) and derivatives (n, q, h, w)."""
        theta = self.check(parameters)
        xp, column = backend.module(theta), self.psf.names.index("background")
        each = self.split(theta)
        each[:, :, column] = 0
        value, partials = self.psf.partials(each.reshape(-1, each.shape[2]), shape)
        value = value.reshape(*each.shape[:2], *shape).sum(1) + theta[:, -1, None, None]
        kept = xp.stack([partials[:, self.psf.names.index(name)] for name in self.own], 1)
        kept = kept.reshape(len(theta), -1, *shape)
        return value, xp.concatenate([kept, xp.ones_like(kept[:, :1])], 1)

    @property
    def numba_partials(self) -> Any:
        """The compiled value-and-partials function of one image."""
        return _sum_of(self.psf.numba_partials)

    @property
    def constants(self) -> np.ndarray:
        """Number of emitters, parameters of each, which of them is the background; then those of the single PSF."""
        names = self.psf.names
        return np.array([self.emitters, len(names), names.index("background"), *self.psf.constants], float)

    def scratch_size(self, shape: tuple[int, int]) -> int:
        """Numbers of scratch memory: parameters, image and derivatives of one emitter, and what this one needs."""
        p = len(self.psf.names)
        return p + (p + 1) * shape[0] * shape[1] + max(1, self.psf.scratch_size(shape))


@lru_cache
def _sum_of(numba_partials: Any) -> Any:
    """The value-and-partials function of a sum of emitters, from that of one."""

    @numba.njit(error_model="numpy")
    def several(theta, constants, value, partials, scratch):
        emitters, p, background = int(constants[0]), int(constants[1]), int(constants[2])
        h, w = value.shape
        size, q = h * w, theta.size
        own, image = scratch[:p], scratch[p : p + size].reshape(h, w)
        each, rest = scratch[p + size : p + size + p * size].reshape(p, h, w), scratch[p + size + p * size :]
        value[:] = theta[q - 1]
        partials[q - 1] = 1
        first = 0
        for _ in range(emitters):
            column = first
            for a in range(p):
                own[a] = 0
                if a != background:
                    own[a] = theta[column]
                    column += 1
            numba_partials(own, constants[3:], image, each, rest)
            for i in range(h):
                for j in range(w):
                    value[i, j] += image[i, j]
            for a in range(p):
                if a != background:
                    partials[first] = each[a]
                    first += 1

    return several


# ---------------------------------------------------------------- growing a fit


def fit(
    problem: Problem,
    lowest: int,
    highest: int,
    body: Callable[[Problem, Chunk, tuple[Any, ...]], None],
    advance: Callable[[int], Any],
) -> Result:
    """Fit from `lowest` to `highest` emitters in each image; `body` fits a chunk of a problem."""
    xp = backend.module(problem.spots)
    largest = dataclasses.replace(problem, psf=Several(problem.psf, highest), initial=None)
    result = dataclasses.replace(largest.result(), emitters=xp.ones(len(problem.spots), np.int8))
    for chunk in problem.chunks():
        best, count = _grow(problem, chunk, lowest, highest, body)
        for name, values in zip(OUTPUTS, best, strict=True):
            getattr(result, name)[chunk.rows] = values
        result.emitters[chunk.rows] = count
        advance(len(chunk.spots))
    return result


def _grow(problem, chunk, lowest, highest, body):
    """Outputs for a chunk in the columns of `highest` emitters, and how many emitters each image has."""
    xp, n, p = backend.module(chunk.spots), len(chunk.spots), len(problem.psf.names)
    pixels = xp.maximum((~xp.isnan(chunk.spots)).sum((1, 2)), 1)
    count = xp.ones(n, np.int8)
    rows, before = xp.arange(n), _blank(problem, n, p)
    body(problem, chunk, before)
    psf = Several(problem.psf, 1)
    before = (*(psf.join(a[:, None]) for a in before[:2]), *before[2:])
    best = _widen(before, highest, len(psf.own))
    for k in range(2, highest + 1):
        good = xp.isfinite(before[0]).all(1)
        rows, before = rows[good], tuple(a[good] for a in before)
        if not rows.size:
            break
        part = chunk.take(rows)._replace(initial=None)
        after = None
        for start in _starts(psf, before[0], part):
            psf_k = Several(problem.psf, k)
            larger = dataclasses.replace(problem, psf=psf_k, limits=_limits(problem, psf_k), initial=None)
            trial = _blank(problem, len(rows), len(psf_k.names))
            body(larger, part._replace(initial=start), trial)
            after = trial if after is None else _better(trial, after)
        psf = Several(problem.psf, k)
        penalty = len(psf.own) * xp.log(pixels[rows])
        gain = 2 * (after[4].astype(float) - before[4].astype(float))
        taken = xp.ones(len(rows), bool) if k <= lowest else (after[2] == Status.converged) & (gain > penalty)
        rows, before = rows[taken], tuple(a[taken] for a in _brightest_first(psf, after))
        for a, values in zip(best, _widen(before, highest, len(psf.own)), strict=True):
            a[rows] = values
        count[rows] = k
    return best, count


def _blank(problem: Problem, n: int, p: int) -> tuple[Any, ...]:
    xp, real = backend.module(problem.spots), problem.dtype
    numbers = [xp.full((n, p), np.nan, real), xp.full((n, p), np.nan, real), xp.full(n, np.nan, real)]
    return (*numbers[:2], xp.zeros(n, np.int8), xp.zeros(n, np.int32), numbers[2], numbers[2].copy())


def _limits(problem: Problem, psf: Several) -> Limits:
    """The limits of the single PSF, the user's included, for each emitter."""
    single, names = problem.limits, problem.psf.names
    columns = [names.index(name if name in names else name[:-1]) for name in psf.names]
    return Limits(*(column[columns] for column in single))


def _widen(out: tuple[Any, ...], highest: int, own: int) -> tuple[Any, ...]:
    """Parameters and errors in the columns of `highest` emitters: NaN for those that are not there."""
    xp, wide = backend.module(out[0]), []
    for a in out[:2]:
        b = xp.full((len(a), own * highest + 1), np.nan, a.dtype)
        b[:, : a.shape[1] - 1], b[:, -1] = a[:, :-1], a[:, -1]
        wide.append(b)
    return (*wide, *out[2:])


def _better(one: tuple[Any, ...], other: tuple[Any, ...]) -> tuple[Any, ...]:
    """Of two fits of each image, the likelier one that converged."""
    xp = backend.module(one[0])

    def score(out):
        return xp.where(xp.isfinite(out[4]), out[4], -np.inf) - 1e9 * (out[2] != Status.converged)

    first = score(one) > score(other)
    return tuple(xp.where(first.reshape(-1, *(1,) * (a.ndim - 1)), a, b) for a, b in zip(one, other, strict=True))


def _brightest_first(psf: Several, out: tuple[Any, ...]) -> tuple[Any, ...]:
    xp = backend.module(out[0])
    order = xp.argsort(-psf.split(out[0])[:, :, psf.psf.names.index("photons")], 1)[:, :, None]
    return (*(psf.join(xp.take_along_axis(psf.split(a), order, 1)) for a in out[:2]), *out[2:])


def _starts(psf: Several, parameters: Any, chunk: Chunk) -> Iterator[Any]:
    """Two guesses with one emitter more than `psf` has: added at the residual's peak, or split from the nearest."""
    xp, shape = backend.module(parameters), chunk.spots.shape[1:]
    names = psf.psf.names
    x, y, photons = (names.index(name) for name in ("x", "y", "photons"))
    each = psf.split(parameters)
    values = {name: each[:, :, i] for i, name in enumerate(names)}
    mean = psf.psf.render({**values, "background": parameters[:, -1]}, shape)
    residual = xp.where(xp.isfinite(chunk.spots), chunk.spots - mean, 0)
    noise = mean if chunk.variance is None else mean + chunk.variance
    clear = _smooth(residual) / xp.sqrt(noise)
    peak = clear.reshape(len(clear), -1).argmax(1)
    at_y, at_x = (peak // shape[1]).astype(each.dtype), (peak % shape[1]).astype(each.dtype)
    distance = (each[:, :, x] - at_x[:, None]) ** 2 + (each[:, :, y] - at_y[:, None]) ** 2
    nearest = (xp.arange(len(each)), distance.argmin(1))

    # added: as much light as there is around the peak, at least a tenth of its neighbour's
    rows, columns = (xp.arange(s, dtype=each.dtype) for s in shape)
    near = (abs(rows - at_y[:, None]) <= 2)[:, :, None] & (abs(columns - at_x[:, None]) <= 2)[:, None, :]
    new = each[nearest].copy()
    new[:, x], new[:, y] = at_x, at_y
    new[:, photons] = xp.maximum((residual * near).sum((1, 2)), 0.1 * new[:, photons])
    larger = Several(psf.psf, psf.emitters + 1)
    yield larger.join(xp.concatenate([each, new[:, None]], 1))

    # split: two halves on opposite sides of where one was
    halves = each.copy()
    halves[nearest[0], nearest[1], photons] /= 2
    new = halves[nearest].copy()
    for column, at in ((x, at_x), (y, at_y)):
        shift = xp.clip((at - new[:, column]) / 2, -2, 2)
        halves[nearest[0], nearest[1], column] -= shift
        new[:, column] += shift
    yield larger.join(xp.concatenate([halves, new[:, None]], 1))


def _smooth(images: Any) -> Any:
    """Binomial 3 x 3 mean of each image, zero outside."""
    xp = backend.module(images)
    padded = xp.pad(images, ((0, 0), (1, 1), (1, 1)))
    rows = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    return (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4
