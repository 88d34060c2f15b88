"""Elementwise ops.  Most are one line: forward, and the derivative with respect to each input.

The arguments of a derivative say what it needs and so what is kept for it: the inputs x and y, the result `out`, the
array library `xp`.  The gradient of an input is g · conj(derivative), which for holomorphic functions of complex
arrays is the convention of `smlmcore.autograd.tensor`.

>>> import numpy as np
>>> square(np.array([1.0, 3.0]))
array([1., 9.])
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from math import pi
from operator import itemgetter
from typing import Any

from ...backend import Array, module, scipy_module
from ..op import op


def _conj(x: Any) -> Any:
    return x.conj() if hasattr(x, "conj") else x.conjugate()


def _rule(text: str, forward: Callable[..., Array], *derivatives: Callable[..., Array]) -> Callable[..., Any]:
    name = text.partition("(")[0]
    order = (*("xp", "x", "y")[: 1 + len(derivatives)], "out")
    needs = [[order.index(p) for p in signature(d).parameters] for d in derivatives]
    keep = [itemgetter(*(i if i in set().union(*n) else -1 for i in range(len(order)))) for n in (needs[:1], needs)]

    def run(*inputs: Any) -> tuple[Array, tuple]:
        xp = module(*inputs, name=name)
        out = forward(xp, *inputs)
        pick = keep[type(inputs[-1]) not in (int, float)]  # a number y needs no gradient: spare what only it needs
        return out, pick((xp, *inputs, out, None))  # None in place of what is not kept

    def vjp(saved: tuple, g: Array) -> tuple:
        return tuple([partial(gradient, d, n, saved, g) for d, n in zip(derivatives, needs, strict=True)])

    def gradient(derivative: Callable[..., Array], need: list[int], saved: tuple, g: Array) -> Array:
        return g * _conj(derivative(*[saved[i] for i in need]))

    run.__name__, run.__qualname__, run.__doc__ = name, name, text
    result = op(run)
    result.vjp(vjp)
    return result


# fmt: off
multiply = _rule("multiply(x, y) = x y", lambda xp, x, y: x * y, lambda y: y, lambda x: x)
divide = _rule("divide(x, y) = x / y", lambda xp, x, y: x / y, lambda y: 1 / y, lambda y, out: -out / y)
power = _rule("power(x, y) = xʸ", lambda xp, x, y: x**y, lambda x, y: y * x ** (y - 1 + (y == 0)),
              lambda xp, x, out: out * xp.log(x + (x == 0)))
square = _rule("square(x) = x²", lambda xp, x: x * x, lambda x: 2 * x)
exp = _rule("exp(x) = eˣ", lambda xp, x: xp.exp(x), lambda out: out)
log = _rule("log(x), natural", lambda xp, x: xp.log(x), lambda x: 1 / x)
log1p = _rule("log1p(x) = log(1 + x), exact for small x", lambda xp, x: xp.log1p(x), lambda x: 1 / (1 + x))
sqrt = _rule("sqrt(x) = √x", lambda xp, x: xp.sqrt(x), lambda out: 0.5 / out)
tanh = _rule("tanh(x)", lambda xp, x: xp.tanh(x), lambda out: 1 - out * out)
sin = _rule("sin(x), x in radians", lambda xp, x: xp.sin(x), lambda xp, x: xp.cos(x))
cos = _rule("cos(x), x in radians", lambda xp, x: xp.cos(x), lambda xp, x: -xp.sin(x))
sigmoid = _rule("sigmoid(x) = 1 / (1 + e⁻ˣ), without overflow", lambda xp, x: _special(xp).expit(x),
                lambda out: out * (1 - out))
softplus = _rule("softplus(x) = log(1 + eˣ), without overflow", lambda xp, x: xp.logaddexp(x, 0),
                 lambda xp, x: _special(xp).expit(x))
erf = _rule("erf(x) = 2/√π ∫₀ˣ exp(-t²) dt", lambda xp, x: _special(xp).erf(x),
            lambda xp, x: 2 / pi**0.5 * xp.exp(-x * x))
maximum = _rule("maximum(x, y); where both are equal the gradient goes to x", lambda xp, x, y: xp.maximum(x, y),
                lambda x, y: x >= y, lambda x, y: x < y)
minimum = _rule("minimum(x, y); where both are equal the gradient goes to x", lambda xp, x, y: xp.minimum(x, y),
                lambda x, y: x <= y, lambda x, y: x > y)
# fmt: on


def _special(xp: Any) -> Any:
    return scipy_module(xp, "special")


@op
def add(x: Array, y: Array) -> Array:
    """x + y"""
    module(x, y, name="add")
    return x + y, None


@add.vjp
def _(_: None, g: Array) -> tuple:
    return g, g


@op
def subtract(x: Array, y: Array) -> Array:
    """x - y"""
    module(x, y, name="subtract")
    return x - y, None


@subtract.vjp
def _(_: None, g: Array) -> tuple:
    return g, lambda: -g


@op
def negative(x: Array) -> Array:
    """-x"""
    return -x, None


@negative.vjp
def _(_: None, g: Array) -> tuple:
    return (-g,)


@op
def absolute(x: Array) -> Array:
    """|x|, real or complex; the gradient at 0 is 0."""
    out = abs(x)
    return out, (x, out)


@absolute.vjp
def _(saved: tuple, g: Array) -> tuple:
    x, out = saved
    return (g * (x / (out + (out == 0))),)


@op
def where(condition: Array, x: Array, y: Array) -> Array:
    """x where `condition` (a boolean array, no Tensor) holds, else y.

    A value that is not chosen gets gradient 0, but its own derivative is still evaluated: keep it finite.

    >>> where([True, False], 1.0, 2.0)
    array([1., 2.])
    """
    xp = module(condition, x, y, name="where")
    return xp.where(condition, x, y), (xp, condition)


@where.vjp
def _(saved: tuple, g: Array) -> tuple:
    xp, condition = saved
    return None, lambda: xp.where(condition, g, 0), lambda: xp.where(condition, 0, g)


def clip(x: Array, low: Array | float | None = None, high: Array | float | None = None) -> Array:
    """x limited to [low, high]; no gradient passes where it is beyond.

    >>> import numpy as np
    >>> clip(np.array([-1.0, 0.5, 3.0]), 0, 1)
    array([0. , 0.5, 1. ])
    """
    x = x if low is None else maximum(x, low)
    return x if high is None else minimum(x, high)


@op
def real(x: Array) -> Array:
    """Re x"""
    return x.real, None


@real.vjp
def _(_: None, g: Array) -> tuple:
    return (g,)


@op
def imag(x: Array) -> Array:
    """Im x"""
    return x.imag, None


@imag.vjp
def _(_: None, g: Array) -> tuple:
    return (1j * g,)


@op
def conjugate(x: Array) -> Array:
    """x*, the complex conjugate."""
    return _conj(x), None


@conjugate.vjp
def _(_: None, g: Array) -> tuple:
    return (_conj(g),)


@op
def abs2(x: Array) -> Array:
    """|x|² = Re² x + Im² x, real."""
    return (x.real**2 + x.imag**2 if x.dtype.kind == "c" else x * x), x


@abs2.vjp
def _(x: Array, g: Array) -> tuple:
    return (2 * g * x,)


@op
def to_complex(x: Array, y: Array) -> Array:
    """x + i y of real x and y."""
    module(x, y, name="to_complex")
    return x + 1j * y, None


@to_complex.vjp
def _(_: None, g: Array) -> tuple:
    return g.real, g.imag


@op
def cast(x: Array, dtype: Any) -> Array:
    """The same numbers in another dtype.

    >>> import numpy as np
    >>> cast(np.ones(1), np.float32).dtype
    dtype('float32')
    """
    return x.astype(dtype, copy=False), None


@cast.vjp
def _(_: None, g: Array) -> tuple:
    return (g,)  # the tape brings it to the dtype of the input
