"""Two Gaussians of known width in each image, a pair in each SIMD lane.

Where one emitter does not explain a spot, two may.  They start as its two halves, on the axis that the residual tells:
of the PSF's second derivatives, xx - yy and xy, to which brightness, position and an error of the width are
orthogonal.  From there damped Fisher scoring on positions, photons and one background,

    mu = N1 a1 A1 + N2 a2 A2 + b,   (F + lambda diag F) d = g

with A, a = E along x and y, and the sums over the pixels of a row as in `lanes`.  All of a block take their steps
together until the last has ended: pairs are alike.
"""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from ..threads import share
from . import template
from .lanes import LANES, LIMIT, basics, ldl
from .numbers import locked

STEPS = 8
ENOUGH = 0.3  # standard errors that the last step may make
PART = 512  # pairs that a thread takes at a time


class Pairs(NamedTuple):
    """Pairs (n): parameters and errors (n, 7) are x, y, photons of both, then background."""

    parameters: np.ndarray
    errors: np.ndarray
    gain: np.ndarray  # log likelihood above that of one emitter
    chi2: np.ndarray
    converged: np.ndarray


def fit(spots: np.ndarray, variance: np.ndarray, single: np.ndarray, sigma: float) -> Pairs:
    """Fit two emitters of width `sigma` to each of `spots` (n, h, w) with `variance` of read noise and other light.

    `single` (n, 4): x, y, photons, background of the one emitter that explains each best.  Pixels that are
    NaN, or of a variance above 1e11, do not count.  No result depends on threads or on which other images there are.

    >>> from smlmcore.psf import Gaussian2D
    >>> pair = {"x": [[3.0, 5.0]], "y": [[4.0, 4.5]], "photons": [[3000.0, 2000.0]], "background": [5.0], "sigma": 1.3}
    >>> image = Gaussian2D().render(pair, (9, 9)).astype(np.float32)
    >>> found = fit(image, np.full((1, 9, 9), 1.0), np.array([[3.8, 4.2, 5000.0, 5.0]]), 1.3)
    >>> found.parameters[0].astype(float).round(1).tolist(), bool(found.converged[0]), bool(found.gain[0] > 10)
    ([3.0, 4.0, 3000.0, 5.0, 4.5, 2000.0, 5.0], True, True)
    """
    n, h, w = spots.shape
    real = np.dtype(np.float32)
    found = Pairs(
        *(np.empty((n, 7), real) for _ in range(2)), *(np.empty(n, real) for _ in range(2)), np.empty(n, np.bool_)
    )
    given = (locked(spots, real).reshape(-1), locked(np.broadcast_to(variance, spots.shape), real).reshape(-1))
    numbers = locked(single, real), real.type(sigma), STEPS, real.type(ENOUGH**2)
    share(partial(module(h, w).work, *given, *numbers, *found), n, PART)
    return found


@lru_cache
def module(h: int, w: int) -> ModuleType:
    """The generated module."""
    return template.load(source(h, w), "pairs")


def source(h: int, w: int) -> str:
    """The module for images of (h, w).

    >>> compiled = compile(source(7, 9), "pairs", "exec")
    """
    known, words = basics(np.float32)
    pairs = [(i, j) for i in range(7) for j in range(i + 1)]
    tables = ("A1", "B1", "A2", "B2")
    products = [(p, q) for a, p in enumerate(tables) for q in tables[a:]]
    # derivatives by x, y, photons: factor of the row, table of the column
    factors = [(f"{a}{e}", f"{t}{e}") for e in (1, 2) for a, t in (("a", "B"), ("p", "A"), ("a", "A"))]

    def product(i: int, j: int) -> str:
        if i == 6:
            return "m0" if j == 6 else f"{factors[j][0]} * m{factors[j][1]}"
        (a, s), (b, t) = factors[i], factors[j]
        return f"{a} * {b} * {''.join(sorted((s, t), key=tables.index))}"

    rows = {"PAR": 7, "HOME": 7, "ERR": 7, "GAIN": 1, "ONE": 1, "ACTIVE": 1, "KEEP": 1, "DAMPING": 1, "INVERSE": 1}
    rows |= {"EDGE": 2, "x1_TABLE": 2 * w, "y1_TABLE": 2 * h, "x2_TABLE": 2 * w, "y2_TABLE": 2 * h}
    rows |= {"x_WAVES": 3 * w, "y_WAVES": 3 * h, "ACC": 37, "BEST": 37}
    rows |= dict.fromkeys(("DATA", "VAR", "SEEN", "UNIT"), h * w)
    offset = {name: LANES * sum(list(rows.values())[:i]) for i, name in enumerate(rows)}
    places = ("x1_AT", "y1_AT", "N1", "x2_AT", "y2_AT", "N2", "B")
    constants = offset | {name: offset["PAR"] + j * LANES for j, name in enumerate(places)}
    constants |= {"H": h, "W": w, "SIZE": LANES * sum(rows.values()), "SUMS": 37, "VALUE": 35, "CHI": 36}
    constants |= known | {"UNSEEN": 1e11}
    limit = {"x": "R(0.4) / q", "n": LIMIT["n"], "b": LIMIT["b"]}
    parameters = []
    for j, kind in enumerate("xyn" * 2 + "b"):
        size = {"x": w, "y": h}.get(kind, 0)
        v = f"{kind}{j // 3 + 1}" if j < 6 else "b"
        low, high = (
            (f"R({-size / 2 - 1})", f"R({size / 2 + 1})")
            if size
            else ("R(1.0)" if kind == "n" else "R(1e-3)", "R(1e9)")
        )
        scale = f"R(1.0) / max(w[HOME + {j // 3 * 3 + 2} * L + k], R(1.0))" if size else "R(1.0)"
        text = limit["x" if size else kind].replace(" n ", f" {v} ")
        parameters.append((j, v, scale, text, low, high))
    scope = {
        "CONSTANTS": list(constants.items()),
        "AXES": [(f"{v}{e}", f"{v}{e}_AT", f"{v}{e}_TABLE", n, n / 2) for e in (1, 2) for v, n in (("x", w), ("y", h))],
        "WAVES": [(v, f"{v}1_AT", f"{v}_WAVES", n, n / 2) for v, n in (("x", w), ("y", h))],
        "H": h, "W": w,
        "TABLES": tables,
        "SUMMED": [f"{s}{t}" for s in "rm" for t in tables] + [p + q for p, q in products],
        "PRODUCTS": products,
        "TERMS": [f"{a} * r{t}" for a, t in factors] + ["r0"] + [product(i, j) for i, j in pairs],
        "entries": [f"g{j}" for j in range(7)] + [f"h{i}{j}" for i, j in pairs],
        "PARAMETERS": parameters,
        "ldl": ldl(range(7)),
    }  # fmt: skip
    folder = Path(__file__).parent
    text = "".join((folder / f"{name}.template").read_text() for name in ("numbers", "pairs"))
    return template.lighten(template.expand(text, scope, words))
