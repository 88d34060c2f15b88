"""Training or inference: the few layers that differ, `Dropout` and `BatchNorm`, look here.

    with layers.training(rng) as mode:
        loss = model(tensors, images)
    loss.backward()
    updates, state = optimiser.update(mode.gradients(tensors), state, parameters)
    parameters = optim.apply(mode.updated(parameters), updates)  # the running means of BatchNorm are new, too

Outside of the block, which is inference, Dropout passes everything on and BatchNorm uses its running means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from .. import backend
from ..backend import Array

_current: ContextVar[Mode | None] = ContextVar("mode", default=None)


class Mode:
    """Training: the generator for dropout, and new values for parameters that learn without a gradient."""

    def __init__(self, rng: np.random.Generator | None) -> None:
        self.rng = rng
        self.notes: dict[str, Any] = {}
        self._new: dict[int, tuple[Array, Array]] = {}  # by id of the old array, which is kept alive with it

    def replace(self, old: Array, new: Array) -> None:
        """Note that the parameter whose array is `old` shall become `new`, in its dtype."""
        self._new[id(old)] = old, new.astype(old.dtype)

    def gradients(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The gradients of `tensors`, those of all parameters, after `backward`; zero for what learns without one."""
        return {
            name: backend.module(t.data).zeros_like(t.data) if id(t.data) in self._new else t.grad
            for name, t in tensors.items()
        }

    def updated(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """`parameters`, a flat mapping of arrays, with the new values put in."""
        return {name: self._new.get(id(value), (value, value))[1] for name, value in parameters.items()}


@contextmanager
def training(rng: np.random.Generator | None = None) -> Iterator[Mode]:
    """Within `with training(rng) as mode:` layers are in training; `rng` draws what Dropout drops.

    >>> with training() as mode:
    ...     current() is mode
    True
    """
    token = _current.set(Mode(rng))
    try:
        yield _current.get()
    finally:
        _current.reset(token)


def current() -> Mode | None:
    """The innermost `training` block, or None in inference."""
    return _current.get()


def note(**scalars: Any) -> None:
    """Note numbers of this step by name, for the callbacks of the `Trainer`; nothing in inference.

    >>> with training() as mode:
    ...     note(gate=0.5)
    >>> mode.notes
    {'gate': 0.5}
    """
    if mode := current():
        mode.notes.update(scalars)
