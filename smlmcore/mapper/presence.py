"""Is an emitter there?  A gate whose gradient is never dead."""

from __future__ import annotations

from typing import Any

from ..autograd import op, ops
from ..backend import Array


@op
def straight_through(p: Array) -> Any:
    """1 where p > 1/2, else 0; the gradient passes as if it were p (Bengio et al. 2013).

    >>> import numpy as np
    >>> straight_through(np.array([0.2, 0.7]))
    array([0., 1.])
    """
    return (p > 0.5).astype(p.dtype), None


@straight_through.vjp
def _(_: None, g: Array) -> tuple:
    return (g,)


def gate(feature: Any, kind: str) -> Any:
    """Presence from a feature: sigmoid for `kind` "soft", and 0 or 1 with the sigmoid's gradient for "straight".

    >>> import numpy as np
    >>> gate(np.array([0.0, 3.0]), "straight")
    array([0., 1.])
    """
    soft = ops.sigmoid(feature)
    return straight_through(soft) if kind == "straight" else soft
