"""Zernike polynomials: indices of every school, values that stay exact to high order, radians and waves.

    Z_n^m(rho, phi) = N R_n^|m|(rho) cos(m phi)    m >= 0        N = sqrt((n + 1) (2 - [m = 0]))
                    = N R_n^|m|(rho) sin(|m| phi)  m < 0

N makes the root mean square over the unit disc 1 (Noll 1976, J. Opt. Soc. Am. 66, 207), so that a coefficient is the
RMS of its aberration and squares of coefficients add.  Everywhere in this library a mode is named by its pair (n, m),
and coefficients are phases in radians.  phi runs from the x to the y axis.

    >>> from_noll(11), to_ansi(4, 0), to_fringe(4, 0)
    ((4, 0), 12, 9)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Mode = tuple[int, int]

# ---------------------------------------------------------------- indices


def check(n: int, m: int) -> Mode:
    """The mode (n, m), or an error: n >= |m|, n - |m| even.

    >>> check(2, -2)
    (2, -2)
    """
    if int(n) != n or int(m) != m or n < abs(m) or (n - abs(m)) % 2:
        raise ValueError(f"zernike got the mode ({n}, {m}); expected whole numbers with n >= |m| and n - |m| even")
    return int(n), int(m)


def _index(j: Any, first: int, school: str) -> int:
    if int(j) != j or j < first:
        raise ValueError(f"zernike got the {school} index {j}; expected a whole number, {first} or more")
    return int(j)


def from_noll(j: int) -> Mode:
    """(n, m) of the Noll index j = 1, 2, ...: even j are cosines, odd ones sines.

    >>> [from_noll(j) for j in range(1, 7)]
    [(0, 0), (1, 1), (1, -1), (2, 0), (2, -2), (2, 2)]
    """
    j = _index(j, 1, "Noll")
    n = (math.isqrt(8 * j - 7) - 1) // 2
    rest = j - n * (n + 1) // 2 - 1  # 0...n within the order n
    m = 2 * ((rest + 1 - n % 2) // 2) + n % 2
    return n, m if j % 2 == 0 else -m


def to_noll(n: int, m: int) -> int:
    """Noll index of the mode (n, m).

    >>> to_noll(3, -1)
    7
    """
    n, m = check(n, m)
    start = n * (n + 1) // 2 + abs(m)  # the pair of indices that |m| has is start, start + 1
    if m == 0:
        return start + 1
    return start + (start % 2 == (m > 0))


def from_ansi(j: int) -> Mode:
    """(n, m) of the ANSI Z80.28 / OSA index j = 0, 1, ...

    >>> [from_ansi(j) for j in range(6)]
    [(0, 0), (1, -1), (1, 1), (2, -2), (2, 0), (2, 2)]
    """
    j = _index(j, 0, "ANSI")
    n = (math.isqrt(8 * j + 1) - 1) // 2
    return n, 2 * j - n * (n + 2)


def to_ansi(n: int, m: int) -> int:
    """ANSI Z80.28 / OSA index of the mode (n, m).

    >>> to_ansi(2, 2)
    5
    """
    n, m = check(n, m)
    return (n * (n + 2) + m) // 2


def from_fringe(j: int) -> Mode:
    """(n, m) of the Fringe (University of Arizona) index j = 1, 2, ...

    >>> [from_fringe(j) for j in range(1, 10)]
    [(0, 0), (1, 1), (1, -1), (2, 0), (2, 2), (2, -2), (3, 1), (3, -1), (4, 0)]
    """
    j = _index(j, 1, "Fringe")
    half = math.isqrt(j - 1)  # (n + |m|) / 2
    down = (half + 1) ** 2 - j  # 2|m|, or one less for a sine
    m = (down + 1) // 2
    return 2 * half - m, -m if down % 2 else m


def to_fringe(n: int, m: int) -> int:
    """Fringe (University of Arizona) index of the mode (n, m).

    >>> to_fringe(6, 0)
    16
    """
    n, m = check(n, m)
    return (1 + (n + abs(m)) // 2) ** 2 - 2 * abs(m) + (m < 0)


def from_wyant(j: int) -> Mode:
    """(n, m) of the Wyant index j = 0, 1, ...: the Fringe index less one.

    >>> from_wyant(8)
    (4, 0)
    """
    return from_fringe(_index(j, 0, "Wyant") + 1)


def to_wyant(n: int, m: int) -> int:
    """Wyant index of the mode (n, m).

    >>> to_wyant(4, 0)
    8
    """
    return to_fringe(n, m) - 1


def noll(count: int) -> list[Mode]:
    """The first `count` modes in Noll's order.

    >>> noll(4)
    [(0, 0), (1, 1), (1, -1), (2, 0)]
    """
    return [from_noll(j) for j in range(1, count + 1)]


# ---------------------------------------------------------------- values


def radial(n: int, m: int, rho: Any) -> np.ndarray:
    """R_n^|m|(rho), R(1) = 1, float64; to 1e-13 for n = 30, where the sum of powers has lost six digits.

    R_n^m(rho) = rho^m P_k^(0,m)(2 rho^2 - 1), k = (n - m) / 2, by the three-term recurrence of the Jacobi polynomials.

    >>> float(radial(2, 0, 0.5))  # 2 rho^2 - 1
    -0.5
    """
    n, m = check(n, m)
    m, rho = abs(m), np.asarray(rho, np.float64)
    x, before, now = 2 * rho**2 - 1, np.zeros_like(rho), np.ones_like(rho)
    for k in range(1, (n - m) // 2 + 1):
        s = 2 * k + m
        if k == 1:  # the general rule is 0 / 0 for m = 0
            before, now = now, 0.5 * ((m + 2) * x - m)
            continue
        a = (s - 1) * (s * (s - 2) * x - m * m) * now - 2 * (k - 1) * (k + m - 1) * s * before
        before, now = now, a / (2 * k * (k + m) * (s - 2))
    return rho**m * now


def polynomial(n: int, m: int, rho: Any, phi: Any) -> np.ndarray:
    """Z_n^m at `rho`, `phi` (module text), also beyond rho = 1.

    >>> round(float(polynomial(2, 2, 1.0, 0.0)), 3)  # sqrt(6)
    2.449
    """
    angle = np.asarray(phi, np.float64) * abs(m)
    turned = np.sin(angle) if m < 0 else np.cos(angle)
    return math.sqrt((n + 1) * (1 if m == 0 else 2)) * radial(n, m, rho) * turned


def basis(modes: Iterable[Mode], rho: Any, phi: Any) -> np.ndarray:
    """The modes' polynomials, stacked (k, ...) over the shape of `rho` and `phi`.

    >>> basis(noll(3), np.ones(5), np.zeros(5)).shape
    (3, 5)
    """
    found = [polynomial(n, m, rho, phi) for n, m in modes]
    return np.stack(found) if found else np.zeros((0, *np.shape(rho)))


def radians(waves: Any) -> Any:
    """Radians of a phase in waves.

    >>> round(radians(0.5), 3)
    3.142
    """
    return waves * (2 * math.pi)


def waves(radians: Any) -> Any:
    """Waves of a phase in radians.

    >>> waves(math.pi)
    0.5
    """
    return radians / (2 * math.pi)


NAMES = {
    (0, 0): "piston",
    (1, 1): "tip",
    (1, -1): "tilt",
    (2, 0): "defocus",
    (2, 2): "astigmatism",
    (2, -2): "oblique astigmatism",
    (3, 1): "coma x",
    (3, -1): "coma y",
    (3, 3): "trefoil x",
    (3, -3): "trefoil y",
    (4, 0): "spherical",
}


def label(modes: Sequence[Mode]) -> list[str]:
    """Names of modes for people; those that have none are called by (n, m).

    >>> label([(2, 0), (5, 1)])
    ['defocus', '(5, 1)']
    """
    return [NAMES.get(tuple(mode), f"({mode[0]}, {mode[1]})") for mode in modes]
