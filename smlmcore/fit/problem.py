"""What is to be fitted: every input checked in one place, and handed out in chunks of the dtype that is computed in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from ..psf.base import PSF
from .result import Result

SIDES = (5, 32)
CHUNK = 16 << 20  # bytes of pixels that are converted and fitted together
RAW = 1 << 19  # images that are fitted together where they need no conversion


class Limits(NamedTuple):
    """Bounds of the parameters (p,), how far one step may go (absolute plus relative), and which are fixed at what."""

    lower: np.ndarray
    upper: np.ndarray
    step: np.ndarray
    factor: np.ndarray
    fixed: np.ndarray
    value: np.ndarray


def limits(
    psf: PSF,
    shape: tuple[int, int],
    bounds: Mapping[str, tuple[float, float]] | None = None,
    fixed: Mapping[str, float] | None = None,
    caller: str = "fit",
) -> Limits:
    """The PSF's own bounds with the user's `bounds` and `fixed` values put in their place; an error names the fault.

    >>> from smlmcore.psf import Gaussian2D
    >>> limits(Gaussian2D(), (7, 7), bounds={"sigma": (1, 2)}).upper.tolist()
    [7.0, 7.0, inf, inf, 2.0]
    """
    own = psf.bounds(shape)
    lower, upper, step, factor = np.array([own[name] for name in psf.names], float).T.copy()
    held, value = np.zeros(len(psf.names), bool), np.full(len(psf.names), np.nan)
    for what, given in (("bounds", bounds or {}), ("fixed", fixed or {})):
        if not isinstance(given, Mapping):
            raise TypeError(f"{caller} got {what} of {type(given).__name__}; expected a mapping from parameters' names")
        if unknown := [name for name in given if name not in psf.names]:
            raise ValueError(
                f"{caller} got {what} for {', '.join(map(repr, unknown))}; {type(psf).__name__} has the parameters "
                f"{', '.join(psf.names)}"
            )
    for name, pair in (bounds or {}).items():
        try:
            low, high = map(float, pair)
        except (TypeError, ValueError):
            raise ValueError(f"{caller} got bounds {pair!r} for {name}; expected a pair (low, high)") from None
        if not low < high:
            raise ValueError(f"{caller} got bounds ({low:g}, {high:g}) for {name}; expected low < high")
        lower[psf.names.index(name)], upper[psf.names.index(name)] = low, high
    for name, number in (fixed or {}).items():
        if not (isinstance(number, Real) and np.isfinite(number)):
            raise ValueError(f"{caller} got {number!r} as the fixed value of {name}; expected one finite number")
        held[psf.names.index(name)], value[psf.names.index(name)] = True, number
    return Limits(lower, upper, step, factor, held, value)


class Chunk(NamedTuple):
    """Part of a problem, unless raw in the dtype that is computed in; maps are None, (h, w) or (m, h, w)."""

    def take(self, rows: Any) -> Chunk:
        """Some images of it."""
        maps = (a if a is None or a.ndim == 2 else a[rows] for a in (self.variance, self.weights))
        return Chunk(rows, self.spots[rows], *maps, None if self.initial is None else self.initial[rows])

    rows: slice
    spots: Any
    variance: Any
    weights: Any
    initial: Any


@dataclass(frozen=True)
class Problem:
    """Checked inputs of `mle` and `lsq`; `dtype` is the one that is computed in."""

    psf: PSF
    spots: Any
    variance: Any
    weights: Any
    initial: Any
    limits: Limits
    max_iterations: int
    tolerance: float
    least_squares: bool
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.spots.shape[1:]

    def chunks(self, raw: bool = False) -> Iterator[Chunk]:
        """The problem piece by piece: only one piece is converted and in memory at a time; `raw`, nothing is."""
        size = RAW if raw else max(1024, CHUNK // (self.shape[0] * self.shape[1] * self.dtype.itemsize))
        for start in range(0, len(self.spots), size):
            yield self.chunk(slice(start, min(start + size, len(self.spots))), raw)

    def chunk(self, rows: slice | np.ndarray, raw: bool = False) -> Chunk:
        """The images `rows`, converted unless `raw`."""
        part = Chunk(slice(None), self.spots, self.variance, self.weights, self.initial).take(rows)
        return part if raw else self.convert(part)

    def convert(self, raw: Chunk) -> Chunk:
        """A raw chunk in the dtype that is computed in, its maps checked."""
        xp = backend.module(self.spots)
        part = Chunk(raw.rows, *(None if a is None else xp.ascontiguousarray(a, self.dtype) for a in raw[1:]))
        for name in ("variance", "weights"):
            each = getattr(part, name)
            if each is not None and each.ndim == 3 and not bool(each.min() >= 0):  # a NaN makes this false too
                raise ValueError(negative(self.caller, name))
        return part

    @property
    def caller(self) -> str:
        """The name of the function that was called."""
        return "fit.lsq" if self.least_squares else "fit.mle"

    def outputs(self, n: int, measured: bool = True) -> tuple[Any, ...]:
        """Arrays for n fits, not yet written: parameters, errors, status, iterations, log_likelihood, chi2.

        The last two are None unless they are `measured` by the fit.
        """
        xp, p = backend.module(self.spots), len(self.psf.names)
        shapes = {(n, p): (self.dtype, self.dtype), (n,): (np.int8, np.int32)}
        out = [xp.empty(shape, dtype) for shape, dtypes in shapes.items() for dtype in dtypes]
        return (*out, *(xp.empty(n, self.dtype) if measured else None for _ in range(2)))

    def result(self) -> Result:
        """A result whose arrays are not yet written."""
        return Result(self.psf.names, *self.outputs(len(self.spots)))


def check(
    spots: Any,
    psf: PSF,
    variance: Any,
    weights: Any,
    initial: Any,
    bounds: Mapping[str, tuple[float, float]] | None,
    fixed: Mapping[str, float] | None,
    max_iterations: int,
    tolerance: float,
    least_squares: bool,
) -> Problem:
    """The `Problem` of these inputs, or one error that says what came, what was expected and what to do."""
    caller = "fit.lsq" if least_squares else "fit.mle"
    if not isinstance(psf, PSF):
        raise TypeError(f"{caller} got a PSF of {type(psf).__name__}; expected an object of smlmcore.psf")
    spots = spots if backend.is_array(spots) else np.asarray(spots)
    if spots.dtype.kind not in "fiub":
        raise TypeError(f"{caller} got spots of {spots.dtype}; expected photoelectrons as real numbers")
    if spots.ndim != 3 or not all(SIDES[0] <= side <= SIDES[1] for side in spots.shape[1:]):
        raise ValueError(
            f"{caller} got spots of shape {spots.shape}; expected (n, h, w) with h and w from {SIDES[0]} to {SIDES[1]}"
        )
    small = spots.dtype.itemsize <= (4 if spots.dtype.kind == "f" else 2)
    dtype = np.dtype(np.float32 if small else np.float64)
    xp = backend.module(spots, variance, weights, initial, name=caller)
    variance, weights, initial = (
        a if a is None or backend.is_array(a) else xp.asarray(a) for a in (variance, weights, initial)
    )
    variance = _map(variance, spots, dtype, caller, "variance", "read noise squared, in squared photoelectrons")
    weights = _map(weights, spots, dtype, caller, "weights", "one weight for each pixel")
    if initial is not None and (initial.shape != (len(spots), len(psf.names)) or initial.dtype.kind not in "fiub"):
        raise ValueError(
            f"{caller} got initial of shape {initial.shape} and {initial.dtype}; expected real numbers "
            f"({len(spots)}, {len(psf.names)}), columns {', '.join(psf.names)}"
        )
    if not isinstance(max_iterations, Integral) or max_iterations < 1:
        raise ValueError(f"{caller} got max_iterations={max_iterations!r}; expected a whole number, 1 or more")
    if not (isinstance(tolerance, Real) and tolerance > 0):
        raise ValueError(f"{caller} got tolerance={tolerance!r}; expected a part of a standard error, > 0")
    own = limits(psf, spots.shape[1:], bounds, fixed, caller)
    return Problem(
        psf, spots, variance, weights, initial, own, int(max_iterations), float(tolerance), least_squares, dtype
    )


def _map(given: Any, spots: Any, dtype: np.dtype, caller: str, name: str, meaning: str) -> Any:
    """None, (h, w) or (n, h, w); a number becomes a map."""
    if given is None:
        return None
    if given.shape not in ((), spots.shape[1:], spots.shape) or given.dtype.kind not in "fiub":
        raise ValueError(
            f"{caller} got {name} of shape {given.shape} and {given.dtype} for spots {spots.shape}; expected a number, "
            f"{spots.shape[1:]} or {spots.shape}: {meaning}"
        )
    if given.ndim == 3:
        return given
    xp = backend.module(spots)
    if not bool((given >= 0).all()):
        raise ValueError(negative(caller, name))
    if given.ndim == 0 and given == 0 and name == "variance":
        return None
    return xp.ascontiguousarray(xp.broadcast_to(xp.asarray(given, dtype), spots.shape[1:]))


def negative(caller: str, name: str) -> str:
    return f"{caller} got {name} below 0 or NaN; expected numbers from 0 on (infinite variance leaves a pixel out)"
