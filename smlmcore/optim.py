"""Optimisers as pairs of pure functions that compose, over parameters in a flat mapping of named arrays.

    optimiser = optim.chain(optim.clip_global_norm(1.0), optim.adam(optim.cosine(2e-3, steps=1000, warmup=200)))
    state = optimiser.init(parameters)
    updates, state = optimiser.update(gradients, state, parameters)
    parameters = optim.apply(parameters, updates)

Nothing is changed in place; a state is made of dicts, tuples, arrays and ints and can be pickled or saved as it is.
Arrays may be NumPy or CuPy; float32 stays float32.  After optax (DeepMind, 2020).

>>> o = adam(0.1)
>>> p = {"a": np.ones(1, np.float32)}
>>> u, state = o.update({"a": np.full(1, 3.0, np.float32)}, o.init(p), p)
>>> apply(p, u)
{'a': array([0.9], dtype=float32)}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import cos, pi
from typing import Any, NamedTuple

import numpy as np

from .backend import Array, module

Arrays = Mapping[str, Array]
Schedule = Callable[[int], float]


class Optimiser(NamedTuple):
    """`init(parameters) -> state` and `update(gradients, state, parameters) -> (updates, state)`.

    >>> sgd(0.5).update({"a": np.ones(1)}, sgd(0.5).init({"a": np.ones(1)}), {"a": np.ones(1)})[0]
    {'a': array([-0.5])}
    """

    init: Callable[[Arrays], Any]
    update: Callable[[Arrays, Any, Arrays], tuple[dict[str, Array], Any]]


def apply(parameters: Arrays, updates: Arrays) -> dict[str, Array]:
    """parameters + updates, as a new dict; parameters without an update are kept.

    >>> apply({"a": np.ones(1), "b": np.ones(1)}, {"a": np.ones(1)})
    {'a': array([2.]), 'b': array([1.])}
    """
    return {name: p + updates[name] if name in updates else p for name, p in parameters.items()}


def chain(*optimisers: Optimiser) -> Optimiser:
    """Apply `optimisers` one after the other, each to the updates of the one before; the state is a tuple of theirs.

    >>> o = chain(add_decayed_weights(0.5), scale_by_rate(2.0))
    >>> p = {"a": np.ones(1)}
    >>> o.update({"a": np.ones(1)}, o.init(p), p)[0]
    {'a': array([-3.])}
    """

    def init(parameters: Arrays) -> tuple:
        return tuple(o.init(parameters) for o in optimisers)

    def update(updates: Arrays, state: tuple, parameters: Arrays) -> tuple[dict[str, Array], tuple]:
        states = []
        for o, s in zip(optimisers, state, strict=True):
            updates, s = o.update(updates, s, parameters)
            states.append(s)
        return updates, tuple(states)

    return Optimiser(init, update)


def clip_global_norm(limit: float) -> Optimiser:
    """Shrink all gradients by one factor, so that the norm over all of them is at most `limit`.

    >>> clip_global_norm(1.0).update({"a": np.array([3.0]), "b": np.array([4.0])}, (), {})[0]
    {'a': array([0.6]), 'b': array([0.8])}
    """
    if not limit > 0:
        raise ValueError(f"clip_global_norm got limit {limit}; expected a positive number")

    def update(gradients: Arrays, state: tuple, parameters: Arrays) -> tuple[dict[str, Array], tuple]:
        _check(gradients, gradients)
        xp = module(*gradients.values(), name="clip_global_norm")
        total = sum(xp.vdot(g, g).real.astype(np.float64) for g in gradients.values())
        factor = limit / xp.maximum(xp.sqrt(total), limit)  # stays on the GPU: no waiting
        return {name: g * factor.astype(g.dtype) for name, g in gradients.items()}, state

    return Optimiser(lambda parameters: (), update)


def scale_by_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Optimiser:
    """m̂ / (√v̂ + eps), with m and v the running means of g and g² and m̂, v̂ corrected for their start at zero.

    Kingma & Ba 2015 (Adam).

    >>> o = scale_by_adam()
    >>> o.update({"a": np.array([7.0])}, o.init({"a": np.zeros(1)}), {})[0]["a"].round(6)
    array([1.])
    """

    def init(parameters: Arrays) -> dict[str, Any]:
        return {"count": 0, "m": _zeros(parameters), "v": _zeros(parameters)}

    def update(gradients: Arrays, state: dict, parameters: Arrays) -> tuple[dict[str, Array], dict]:
        _check(gradients, state["m"])
        count = int(state["count"]) + 1
        m_scale, v_scale = 1 / (1 - b1**count), 1 / (1 - b2**count)
        updates, means, squares = {}, {}, {}
        for name, g in gradients.items():
            xp = module(g)
            step = (1 - b1) * g  # three new arrays per parameter and one scratch; the arithmetic reuses them
            m = b1 * state["m"][name]
            m += step
            xp.multiply(g, g, out=step)
            step *= 1 - b2
            v = b2 * state["v"][name]
            v += step
            xp.multiply(v, v_scale, out=step)
            xp.sqrt(step, out=step)
            step += eps
            xp.divide(m, step, out=step)
            step *= m_scale
            updates[name], means[name], squares[name] = step, m, v
        return updates, {"count": count, "m": means, "v": squares}

    return Optimiser(init, update)


def add_decayed_weights(decay: float) -> Optimiser:
    """Add decay · parameter to each update (Loshchilov & Hutter 2019).

    >>> add_decayed_weights(0.5).update({"a": np.zeros(1)}, (), {"a": np.full(1, 4.0)})[0]
    {'a': array([2.])}
    """

    def update(updates: Arrays, state: tuple, parameters: Arrays) -> tuple[dict[str, Array], tuple]:
        return {name: u + decay * parameters[name] for name, u in updates.items()}, state

    return Optimiser(lambda parameters: (), update)


def accumulate(decay: float) -> Optimiser:
    """The running sum t ← g + decay · t of the gradients (Polyak 1964).

    >>> o = accumulate(0.5)
    >>> o.update({"a": np.ones(1)}, {"a": np.ones(1)}, {})[0]
    {'a': array([1.5])}
    """

    def update(gradients: Arrays, state: dict, parameters: Arrays) -> tuple[dict[str, Array], dict]:
        _check(gradients, state)
        trace = {name: g + decay * state[name] for name, g in gradients.items()}
        return trace, trace

    return Optimiser(_zeros, update)


def scale_by_rate(rate: float | Schedule) -> Optimiser:
    """Multiply by -`rate`, a number or a function of the step (0, 1, 2, ...): the last link, which turns to descent.

    >>> o = scale_by_rate(lambda step: 10.0 * step)
    >>> o.update({"a": np.ones(1)}, {"count": 2}, {})
    ({'a': array([-20.])}, {'count': 3})
    """
    schedule = rate if callable(rate) else constant(rate)

    def update(updates: Arrays, state: dict, parameters: Arrays) -> tuple[dict[str, Array], dict]:
        count = int(state["count"])
        factor = -float(schedule(count))  # a Python number leaves float32 as it is
        return {name: factor * u for name, u in updates.items()}, {"count": count + 1}

    return Optimiser(lambda parameters: {"count": 0}, update)


def adam(rate: float | Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Optimiser:
    """Adam (Kingma & Ba 2015) with the given rate.

    >>> p = {"a": np.ones(1)}
    >>> adam(0.5).update(p, adam(0.5).init(p), p)[0]["a"].round(6)
    array([-0.5])
    """
    return chain(scale_by_adam(b1, b2, eps), scale_by_rate(rate))


def adamw(
    rate: float | Schedule, decay: float = 1e-2, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> Optimiser:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019): each step also shrinks by rate · decay.

    >>> p = {"a": np.ones(1)}
    >>> adamw(0.5, decay=0.1).update(p, adamw(0.5).init(p), p)[0]["a"].round(6)
    array([-0.55])
    """
    return chain(scale_by_adam(b1, b2, eps), add_decayed_weights(decay), scale_by_rate(rate))


def sgd(rate: float | Schedule, momentum: float = 0.0) -> Optimiser:
    """Gradient descent, with Polyak's `momentum` (the decay of the running sum of gradients) if it is not zero.

    >>> p = {"a": np.ones(1)}
    >>> sgd(0.5, momentum=0.9).update(p, sgd(0.5, momentum=0.9).init(p), p)[0]
    {'a': array([-0.5])}
    """
    return chain(accumulate(momentum), scale_by_rate(rate)) if momentum else scale_by_rate(rate)


def constant(rate: float) -> Schedule:
    """The schedule that is always `rate`.

    >>> constant(0.1)(99)
    0.1
    """
    return lambda step: rate


def cosine(rate: float, steps: int, warmup: int = 0) -> Schedule:
    """Rise linearly over the first `warmup` steps to `rate`, then fall along half a cosine to 0 at `steps`, and stay.

    >>> [round(cosine(1.0, steps=6, warmup=2)(i), 3) for i in range(7)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if not 0 <= warmup < steps:
        raise ValueError(f"cosine got steps={steps}, warmup={warmup}; expected 0 <= warmup < steps")

    def schedule(step: int) -> float:
        if step < warmup:
            return rate * (step + 1) / warmup
        return rate * 0.5 * (1 + cos(pi * min(1.0, (step - warmup) / (steps - warmup))))

    return schedule


def _zeros(parameters: Arrays) -> dict[str, Array]:
    return {name: module(p).zeros_like(p) for name, p in parameters.items()}


def _check(gradients: Arrays, known: Mapping[str, Any]) -> None:
    if gradients.keys() != known.keys():
        odd = ", ".join(sorted(gradients.keys() ^ known.keys()))
        raise ValueError(
            f"an optimiser got gradients of other names than its state has: {odd}; "
            "give one for each parameter, and make a new state by .init(parameters) when these change"
        )
    for name, g in gradients.items():
        if g is None:
            raise ValueError(f"the gradient of {name!r} is None: was it used in the loss, and backward called?")
