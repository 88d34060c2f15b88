"""The fast path of the isotropic Gaussian: a spot in each SIMD lane.

`LANES` spots at a time are transposed into structure-of-arrays scratch, and every inner loop runs over the lanes, so
that LLVM turns it into vectors across spots.  Three things make it do so: scratch is one flat array whose offsets are
compile-time constants, the pixels of a row are straight-line code, and nothing in an inner loop branches.  Hence the
code is generated, from the one TEMPLATE below, for each box size, dtype and set of free parameters; the Python of it
lies in the user's cache directory, so that numba compiles it once and later processes load it.

Fisher scoring on a separable model costs one division and the row moments of three tables for each pixel:

    mu = N a A + b,   dmu = N a B, N p A, a A, 1, N (a C + q A)   for x, y, N, b, sigma

with A, B, C = E, dE/dx, dE/dsigma along x, and a, p, q along y.  A spot's path depends on its own pixels alone: a lane
that has ended is frozen with its errors, and one that needs more than a few steps goes to a second stage, which packs
such spots into full blocks again and goes on with Levenberg-Marquardt damping.  docs/fitting.md tells the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
import numpy as np

from ..psf.axis import erfcx, horner, polynomial
from ..threads import share
from . import template
from .numbers import locked, log1p_polynomial, stirling_polynomial
from .problem import Problem, negative
from .result import Status

LANES = 32
NAMES = ("x", "y", "photons", "background", "sigma")

# Row sums that make up the gradient (5 entries) and the lower triangle of the information, by parameters' numbers.
GRADIENT = ("a * gB", "p * gA", "a * gA", "g0", "a * gC + q * gA")
INFORMATION = {
    **{(0, 0): "a * a * BB", (1, 0): "p * s", (1, 1): "p * p * AA", (2, 0): "a * s", (2, 1): "p * u", (2, 2): "a * u"},
    **{(3, 0): "a * mB", (3, 1): "p * mA", (3, 2): "a * mA", (3, 3): "m0"},
    **{(4, 0): "a * a * BC + q * s", (4, 1): "p * t", (4, 2): "a * t", (4, 3): "a * mC + q * mA"},
    (4, 4): "a * (a * CC + q * AC) + q * t",
}
SHORT = "xynbs"  # the parameters' names in the template
# How far one step may go, and what turns a step without factors of N into one of the parameter.
LIMIT = {"x": "R(0.4) * s", "y": "R(0.4) * s", "n": "R(0.75) * n + R(10)", "b": "R(0.9) * b + R(1)", "s": "R(0.3) * s"}
SCALE = {"x": "inverse", "y": "inverse", "n": "R(1.0)", "b": "R(1.0)", "s": "inverse"}


# ---------------------------------------------------------------- pieces of source


def ldl(free: Sequence[int]) -> list[str]:
    """Straight-line L D L^T of h with M = L^-1: step d = M^T D^-1 M g, decrement g.d, and v, the diagonal of h^-1."""
    out = []
    for a, j in enumerate(free):
        before = free[:a]
        out.append(f"pivot = h{j}{j}" + "".join(f" - c{j}{k} * l{j}{k}" for k in before))
        out.append(f"singular |= pivot <= R(WEAKEST) * h{j}{j}")
        out.append(f"i{j} = R(1.0) / max(pivot, R(WEAKEST) * h{j}{j} + R(1e-30))")
        for i in free[a + 1 :]:
            out.append(f"c{i}{j} = h{i}{j}" + "".join(f" - c{i}{k} * l{j}{k}" for k in before))
            out.append(f"l{i}{j} = c{i}{j} * i{j}")
    for a, i in enumerate(free):
        for b in range(a - 1, -1, -1):
            j = free[b]
            out.append(f"m{i}{j} = -l{i}{j}" + "".join(f" - l{i}{k} * m{k}{j}" for k in free[b + 1 : a]))
        out.append(f"z{i} = g{i}" + "".join(f" + m{i}{j} * g{j}" for j in free[:a]))
        out.append(f"f{i} = z{i} * i{i}")
    out.append("dec = " + " + ".join(f"z{i} * f{i}" for i in free))
    for a, j in enumerate(free):
        out.append(f"d{j} = f{j}" + "".join(f" + m{i}{j} * f{i}" for i in free[a + 1 :]))
        out.append(f"v{j} = i{j}" + "".join(f" + m{i}{j} * m{i}{j} * i{i}" for i in free[a + 1 :]))
    return out


def basics(dtype: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constants and words of `numbers.template`."""
    single = np.dtype(dtype) == np.float32
    scale = 0.45 if single else 0.4  # of u in the variable t of the erfc: 2 / (1 + scale |u|) - 1
    far = 9.0  # exp(-u^2/2) is below 1e-17 there

    def erfc(t):
        u = (2 / (t + 1) - 1) / scale
        return 0.5 * erfcx(u / math.sqrt(2))

    constants = {
        **{"BIAS": 127 if single else 1023, "SHIFT": 23 if single else 52, "BYTES": 4 if single else 8},
        **{"SQRT_HALF": 0x3F3504F3 if single else 0x3FE6A09E667F3BCD, "ERF_SCALE": scale},
        "WEAKEST": 1e-6 if single else 1e-12,
    }
    words = {
        "REAL": np.dtype(dtype).name,
        "INT": "int32" if single else "int64",
        "L": LANES,
        "EXP2": horner("f", polynomial(np.exp2, 5 if single else 10, -0.5, 0.5)),
        "LOG": horner("f", log1p_polynomial(8 if single else 20)),
        "ERF": horner("t", polynomial(erfc, 8 if single else 16, 2 / (1 + scale * far) - 1, 1.0)),
    }
    return constants, words


def _inverse(free: Sequence[int]) -> list[str]:
    """The full inverse o of h, and the noise's information e, after `ldl`."""
    out = []
    for i in free:
        for j in free[: free.index(i) + 1]:
            terms = [f"{_m(k, i)}{_m(k, j)}i{k}" for k in free if k >= i]
            out.append(f"o{i}{j} = o{j}{i} = " + " + ".join(terms))
    pairs = [pair for pair in INFORMATION if set(pair) <= set(free)]
    for number, (i, j) in enumerate(pairs, len(free)):
        out.append(f"e{i}{j} = e{j}{i} = w[ACC2 + {number} * L + k]")
    return out


def _m(i: int, j: int) -> str:
    return "" if i == j else f"m{i}{j} * "


def source(h: int, w: int, dtype: Any, free: tuple[int, ...], variance: bool, least_squares: bool) -> str:
    """The module for images of (h, w) of which the parameters numbered `free` are fitted.

    >>> compiled = compile(source(7, 9, np.float32, (0, 1, 2, 3), True, False), "lanes", "exec")
    """
    single, (known, words) = np.dtype(dtype) == np.float32, basics(dtype)
    pairs = [pair for pair in INFORMATION if set(pair) <= set(free)]
    saved = {"PAR": 5, "LAST": 5, "DECREMENT": 1, "LENGTH": 1, "STEPS": 1}  # of a spot that goes to the second stage
    rows = saved | {"X": 3 * w, "Y": 3 * h, "ACC": 21, "ACC2": 21, "ERR": 5, "BEST": 6, "EDGE": 3, "MOMENTS": 4}
    rows |= {"FLAT_x": 4, "FLAT_y": 4, "DATA": h * w}
    single_rows = "ACTIVE GO DAMPING WEAK LIKELIHOOD CHI SQUARES WIDTH TOTAL STATE"
    rows |= dict.fromkeys(single_rows.split(), 1)
    if variance:
        rows |= {"VAR": h * w, "CLEAN": h * w, "RAW": 1}
    offset = {name: LANES * sum(list(rows.values())[:i]) for i, name in enumerate(rows)}
    if not variance:
        offset |= {"CLEAN": offset["DATA"], "RAW": offset["TOTAL"]}
    constants = offset | {
        **{name: offset["PAR"] + i * LANES for i, name in enumerate(("PX", "PY", "N", "B", "S"))},
        **{"H": h, "W": w, "SIZE": LANES * sum(rows.values()), "SAVED": sum(saved.values())},
        **{"SUMS": 20 + least_squares, "LEVEL": 20},
        **{"FIRST": FIRST, "FEW": LANES // 4, "PLAIN": PLAIN},
        **known,
        **{"ROUNDING": 2e-6 if single else 1e-10, "RATE": RATE, "LATER": LATER},
        **{"UNSEEN": 1e12, "HELD": 1e20, "NEAR": NEAR},
        **{"STEPPING": 0, "SETTLING": 1, "LOOKING": 2, "ENDING": 3},
        **{status.name.upper(): int(status) for status in Status},
    }
    scope = {
        "CONSTANTS": list(constants.items()),
        "AXES": [("x", "PX", "X", w, w / 2), ("y", "PY", "Y", h, h / 2)],
        "PASSES": [("rows", "ACC", False)] + [("noise", "ACC2", True)] * least_squares,
        "LOADS": [("load", "DATA")] + [("load_variance", "VAR")] * variance,
        "AROUND": [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)],
        "H": h,
        "W": w,
        "large": h * w > LARGE,
        "variance": variance,
        "least_squares": least_squares,
        "free": [(j, SHORT[j]) for j in free],
        "TERMS": [GRADIENT[j] for j in free] + [INFORMATION[pair] for pair in pairs],
        "entries": [f"g{j}" for j in free] + [f"h{i}{j}" for i, j in pairs],
        "ldl": ldl(free),
        "inverse_lines": _inverse(free),
    }
    words |= {
        "SERIES": horner("q", stirling_polynomial(4 if single else 12)),
        "BOUNDS": ", ".join(f"low_{v}, high_{v}" for v in SHORT),
        **{f"limit_{v}": text for v, text in LIMIT.items()},
        **{f"scale_{v}": text for v, text in SCALE.items()},
    }
    # squared relative errors; the background counts less, as most of the light's pixels hardly know of it
    own = {0: "inverse * inverse / (s * s)", 1: "inverse * inverse / (s * s)", 2: "inverse * inverse"}
    own |= {3: "R(0.25) / (b * b)", 4: "inverse * inverse / (s * s)"}
    words["RELATIVE"] = " + ".join(f"v{j} * {own[j]}" for j in free)
    for j in free:
        terms = [f"o{j}{i} * e{i}{k} * o{k}{j}" for i in free for k in free]
        words[f"sandwich_{SHORT[j]}"] = " + ".join(terms)
    folder = Path(__file__).parent
    text = "".join((folder / f"{name}.template").read_text() for name in ("numbers", "lanes"))
    return template.lighten(template.expand(text, scope, words))


# ---------------------------------------------------------------- the compiled module


@lru_cache
def module(h: int, w: int, dtype: Any, free: tuple[int, ...], variance: bool, least_squares: bool) -> ModuleType:
    """The generated module."""
    return template.load(source(h, w, dtype, free, variance, least_squares), "lanes")


LARGE = 144  # pixels from which on the first guess looks at 3 x 3 of them and not at rows and columns
FIRST = 2  # steps after which the last few spots of a block that are not at their end are packed anew
PLAIN = 4  # steps without damping; after them, all that are not at their end are packed anew
NEAR = 1.0  # decrement from which on a step may differ from 1 in length
RATE = 4.0  # part of the decrement that a step leaves, in squares of the relative errors of place, width and photons
LATER = 0.2  # of the tolerance's square, for spots that need more than FIRST steps: they converge slowly
PART = 16384  # spots that a thread takes at a time, at most
SMALLEST = 1024  # spots that are worth a thread


def fit(
    spots: np.ndarray,
    variance: np.ndarray | None,
    initial: np.ndarray | None,
    sigma: float | None,
    fixed: Sequence[bool],
    lower: Sequence[float],
    upper: Sequence[float],
    max_iterations: int,
    tolerance: float,
    least_squares: bool,
    out: Sequence[np.ndarray],
) -> None:
    """Fit a Gaussian to each of `spots` (n, h, w), photoelectrons of any real dtype, and write `out`.

    `variance`: read-noise variance, None, (h, w) or (n, h, w); infinite leaves a pixel out.  `initial` (n, 5) in the
    order of `NAMES`, or None for an own guess; `sigma`: its known value, or None to fit it; `fixed` (5,): parameters
    that stay at `initial`; `lower`, `upper` (5,): bounds of the others.  `out`: parameters (n, 5), errors (n, 5),
    status (n,) int8, iterations (n,) int32, C-contiguous; the dtype of the first two is the one that is computed in.

    A spot with a pixel or a start that is not finite is `invalid_input`, and its parameters are NaN.

    >>> out = np.empty((1, 5)), np.empty((1, 5)), np.empty(1, "i1"), np.empty(1, "i4")
    >>> from smlmcore.psf import Gaussian2D
    >>> image = Gaussian2D().render({"x": 4.3, "y": 3.8, "photons": 900.0, "background": 2.0, "sigma": 1.2}, (9, 9))
    >>> fit(image, None, None, None, [False] * 5, [-1, -1, 1, 1e-3, 0.2], [9, 9, 1e9, 1e9, 9], 20, 1e-3, False, out)
    >>> out[0].round(3), Status(out[2][0]).name
    (array([[  4.3,   3.8, 900. ,   2. ,   1.2]]), 'converged')
    """
    n, h, w = spots.shape
    real = out[0].dtype
    fixed = [*map(bool, fixed)]
    fixed[4] |= sigma is not None
    if initial is None and any(fixed[:4] if sigma is not None else fixed):
        raise ValueError("lanes.fit got fixed parameters without initial, which holds their values")
    free = tuple(j for j in range(5) if not fixed[j])
    if not free:
        raise ValueError("lanes.fit got five fixed parameters; expected at least one to fit")
    centre = np.array([w / 2 - 0.5, h / 2 - 0.5, 0, 0, 0])
    bounds = np.stack([np.asarray(lower, float) - centre, np.asarray(upper, float) - centre], 1)
    numbers = (
        real.type(0 if sigma is None else sigma),
        int(max_iterations),
        real.type(max(tolerance, 2e-4 if real == np.float32 else 1e-9) ** 2),
        *bounds.astype(real).ravel(),
    )
    work = module(h, w, real, free, variance is not None, bool(least_squares)).work

    def run(rows: slice) -> None:
        start = np.empty((0, 5), real) if initial is None else initial[rows]
        work(*_images(spots, variance, rows, real), locked(start, real), *numbers, *(a[rows] for a in out))

    _share(n, run)


def is_compiled(problem: Problem) -> bool:
    """Whether the machine code for this problem lies in memory or on disk; making it takes seconds."""
    sigma, real = problem.psf.sigma, problem.dtype
    held = [*problem.limits.fixed, *([True] if sigma is not None else [])]
    free = tuple(j for j in range(5) if not held[j])
    found = module(*problem.shape, real, free, problem.variance is not None, problem.least_squares)
    return template.is_compiled(found, "work")


def measure(
    spots: np.ndarray, variance: np.ndarray | None, parameters: np.ndarray, log_likelihood: np.ndarray, chi2: np.ndarray
) -> None:
    """Write Poisson log likelihood and chi square (n,) of `parameters` (n, 5) in the order of `NAMES`.

    `spots` and `variance` as for `fit`; a pixel that is NaN is left out.
    """
    n, h, w = spots.shape
    real = parameters.dtype
    body = module(h, w, real, (0, 1, 2, 3, 4), variance is not None, False).measure

    def run(rows: slice) -> None:
        given = locked(parameters[rows], real)
        body(*_images(spots, variance, rows, real), given, log_likelihood[rows], chi2[rows])

    _share(n, run)


def _images(spots: np.ndarray, variance: np.ndarray | None, rows: slice, real: np.dtype) -> tuple[np.ndarray, ...]:
    """Flat images and noise of these rows; the conversion of a thread's part stays in its cache."""
    if variance is None:
        return locked(spots[rows], real).reshape(-1), locked(np.empty(0), real)
    noise = variance
    if variance.ndim == 3:
        noise = variance[rows]
        if len(noise) and not noise.min() >= 0:  # a NaN makes this false too
            raise ValueError(negative("fit", "variance"))
    return locked(spots[rows], real).reshape(-1), locked(noise, real).reshape(-1)


def _share(n: int, run: Callable[[slice], None]) -> None:
    """Call `run` with slices of n rows, on as many threads as are worth it."""
    threads = min(numba.get_num_threads(), max(1, n // SMALLEST))
    size = LANES * math.ceil(n / (threads * math.ceil(n / (threads * PART))) / LANES) if n else 1
    share(lambda first, end: run(slice(first, end)), n, n if threads == 1 else size)
