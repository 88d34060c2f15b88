"""Ops that move elements about and compute nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...backend import Array, is_array, is_gpu, module
from ..op import op


@op
def reshape(x: Array, shape: int | Sequence[int]) -> Array:
    """x in another shape; one length may be -1.

    >>> import numpy as np
    >>> reshape(np.arange(6), (2, -1)).shape
    (2, 3)
    """
    return x.reshape(shape), x.shape


@reshape.vjp
def _(shape: tuple, g: Array) -> tuple:
    return (g.reshape(shape),)


@op
def transpose(x: Array, axes: Sequence[int] | None = None) -> Array:
    """x with its axes permuted, reversed by default.

    >>> import numpy as np
    >>> transpose(np.ones((2, 3, 4)), (0, 2, 1)).shape
    (2, 4, 3)
    """
    order = tuple(range(x.ndim))[::-1] if axes is None else tuple(a % x.ndim for a in axes)
    return x.transpose(order), order


@transpose.vjp
def _(order: tuple, g: Array) -> tuple:
    return (g.transpose(sorted(range(len(order)), key=order.__getitem__)),)


@op
def moveaxis(x: Array, source: int | Sequence[int], destination: int | Sequence[int]) -> Array:
    """x with axis `source` moved to `destination`.

    >>> import numpy as np
    >>> moveaxis(np.ones((2, 3, 4)), 0, -1).shape
    (3, 4, 2)
    """
    xp = module(x)
    return xp.moveaxis(x, source, destination), (xp, source, destination)


@moveaxis.vjp
def _(saved: tuple, g: Array) -> tuple:
    xp, source, destination = saved
    return (xp.moveaxis(g, destination, source),)


@op
def getitem(x: Array, index: Any) -> Array:
    """x[index]; slices, None, ..., integers, and integer or boolean arrays.  Repeated elements add their gradients.

    >>> import numpy as np
    >>> getitem(np.arange(3.0), [0, 0, 2])
    array([0., 0., 2.])
    """
    return x[index], (module(x), x.shape, index)


@getitem.vjp
def _(saved: tuple, g: Array) -> tuple:
    xp, shape, index = saved
    out = xp.zeros(shape, g.dtype)
    parts = index if isinstance(index, tuple) else (index,)
    if not any(isinstance(i, list) or (is_array(i) and i.dtype.kind in "iu") for i in parts):
        out[index] = g
    elif is_gpu(out):
        import cupyx

        cupyx.scatter_add(out, index, g)
    else:
        xp.add.at(out, index, g)
    return (out,)


@op
def _concatenate(*arrays: Array, axis: int) -> Array:
    xp = module(*arrays, name="concatenate")
    return xp.concatenate(arrays, axis=axis), (axis, [a.shape[axis] for a in arrays])


@_concatenate.vjp
def _(saved: tuple, g: Array) -> tuple:
    axis, lengths = saved
    parts, start = [], 0
    for length in lengths:
        parts.append(g[(slice(None),) * (axis % g.ndim) + (slice(start, start + length),)])
        start += length
    return tuple(parts)


def concatenate(arrays: Sequence[Array], axis: int = 0) -> Array:
    """The arrays one after the other along an axis they have.

    >>> import numpy as np
    >>> concatenate([np.ones(2), np.zeros(1)])
    array([1., 1., 0.])
    """
    return _concatenate(*arrays, axis=axis)


@op
def _stack(*arrays: Array, axis: int) -> Array:
    xp = module(*arrays, name="stack")
    return xp.stack(arrays, axis=axis), (xp, axis)


@_stack.vjp
def _(saved: tuple, g: Array) -> tuple:
    xp, axis = saved
    return tuple(xp.moveaxis(g, axis, 0))


def stack(arrays: Sequence[Array], axis: int = 0) -> Array:
    """Arrays of one shape along a new axis.

    >>> import numpy as np
    >>> stack([np.ones(2), np.zeros(2)], axis=1).shape
    (2, 2)
    """
    return _stack(*arrays, axis=axis)


@op
def pad(x: Array, width: int | Sequence[Any], value: float = 0.0) -> Array:
    """x with a border of `value`; `width` as in numpy.pad: one number, (before, after), or one pair per axis.

    >>> import numpy as np
    >>> pad(np.ones(1), (1, 2))
    array([0., 1., 0., 0.])
    """
    xp = module(x)
    out = xp.pad(x, width, constant_values=value)
    pairs = np.broadcast_to(width, (x.ndim, 2))
    return out, tuple(slice(int(before), int(before) + n) for (before, _), n in zip(pairs, x.shape, strict=True))


@pad.vjp
def _(inside: tuple, g: Array) -> tuple:
    return (g[inside],)


@op
def broadcast_to(x: Array, shape: Sequence[int]) -> Array:
    """x repeated, as a read-only view, to `shape`.

    >>> import numpy as np
    >>> broadcast_to(np.ones(3), (2, 3)).shape
    (2, 3)
    """
    return module(x).broadcast_to(x, shape), None


@broadcast_to.vjp
def _(_: None, g: Array) -> tuple:
    return (g,)


@op
def flip(x: Array, axis: int | tuple[int, ...] | None = None) -> Array:
    """x in reverse order along `axis` (default: all).

    >>> import numpy as np
    >>> flip(np.arange(3))
    array([2, 1, 0])
    """
    xp = module(x)
    return xp.flip(x, axis), (xp, axis)


@flip.vjp
def _(saved: tuple, g: Array) -> tuple:
    xp, axis = saved
    return (xp.flip(g, axis),)
