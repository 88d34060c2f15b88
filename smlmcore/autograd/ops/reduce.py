"""Reductions over axes, with NumPy's `axis` (None, int or tuple) and `keepdims`."""

from __future__ import annotations

from typing import Any

from ...backend import Array, module
from ..op import op

Axis = int | tuple[int, ...] | None


def _keep(a: Array, shape: tuple[int, ...], axis: Axis) -> Array:
    """A reduced array with its reduced axes back, of length 1."""
    axes = range(len(shape)) if axis is None else (axis,) if isinstance(axis, int) else axis
    axes = {i % len(shape) for i in axes}
    return a.reshape([1 if i in axes else n for i, n in enumerate(shape)])


@op
def sum(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """Σ x over `axis`.

    >>> import numpy as np
    >>> sum(np.ones((2, 3)), axis=1)
    array([3., 3.])
    """
    return x.sum(axis=axis, keepdims=keepdims), (module(x), x.shape, axis)


@sum.vjp
def _(saved: tuple, g: Array) -> tuple:
    xp, shape, axis = saved
    return (xp.broadcast_to(_keep(g, shape, axis), shape),)


@op
def mean(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """Mean of x over `axis`.

    >>> import numpy as np
    >>> float(mean(np.arange(4.0)))
    1.5
    """
    out = x.mean(axis=axis, keepdims=keepdims)
    return out, (module(x), x.shape, axis, (x.size // (out.size or 1)) or 1)


@mean.vjp
def _(saved: tuple, g: Array) -> tuple:
    xp, shape, axis, n = saved
    return (xp.broadcast_to(_keep(g / n, shape, axis), shape),)


def _extreme(name: str) -> Any:
    def run(x: Array, axis: Axis = None, keepdims: bool = False) -> tuple[Array, tuple]:
        out = getattr(x, name)(axis=axis, keepdims=keepdims)
        return out, (x, out, axis)

    def vjp(saved: tuple, g: Array) -> tuple:
        x, out, axis = saved
        hit = x == _keep(out, x.shape, axis)
        return (hit * (_keep(g, x.shape, axis) / hit.sum(axis=axis, keepdims=True)).astype(g.dtype),)

    run.__name__ = run.__qualname__ = name
    run.__doc__ = f"The {name}imum of x over `axis`; elements that tie share the gradient equally."
    made = op(run)
    made.vjp(vjp)
    return made


max = _extreme("max")
min = _extreme("min")


@op
def logsumexp(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """log Σ eˣ over `axis`, without overflow; -inf counts as e⁻∞ = 0.

    >>> import numpy as np
    >>> logsumexp(np.array([[1000.0], [1000.0]]), axis=0).round(3)
    array([1000.693])
    """
    xp = module(x)
    top = x.max(axis=axis, keepdims=True)
    top = xp.where(xp.isfinite(top), top, 0)
    e = xp.exp(x - top)
    total = e.sum(axis=axis, keepdims=True)
    out = xp.where(total == 0, -xp.inf, xp.log(total + (total == 0)) + top)
    return (out if keepdims else out.reshape(e.sum(axis=axis).shape)), (e, total, axis)


@logsumexp.vjp
def _(saved: tuple, g: Array) -> tuple:
    e, total, axis = saved
    return (e * (_keep(g, e.shape, axis) / (total + (total == 0))),)
