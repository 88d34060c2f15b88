"""Does a tape watch?  Ops that keep more for a gradient than for their value ask first."""

from __future__ import annotations

from typing import Any

from ..autograd import Tensor
from ..autograd.tensor import recording


def recorded(*inputs: Any) -> bool:
    """True if an op of `inputs` would be recorded: one of them is a Tensor that wants a gradient, outside `no_grad`.

    >>> recorded(1.0), recorded(Tensor(1.0))
    (False, True)
    """
    return recording.get() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
