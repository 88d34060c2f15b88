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
from fnmatch import fnmatchcase
from math import cos, pi
from typing import Any, NamedTuple

import numba
import numpy as np
import scipy

from . import kernel
from .backend import Array, is_gpu, module

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


# ---------------------------------------------------------------------------------------------- Adam, fused
BLOCK = 1 << 14  # elements that one thread takes at a time
SMALL = 1 << 13  # elements below which NumPy is as fast


def _moments(g, m, v, settings, step, new_m, new_v):
    """One step of Adam; `settings` are b1, 1 - b1, b2, 1 - b2, 1 / (1 - b1^t), 1 / (1 - b2^t) and eps.

    1 - b2 comes from outside, rounded once: in float32 1 - 0.999 is wrong by 5e-5.
    """
    b1, c1, b2, c2, m_scale, v_scale, eps = settings
    new_m[...] = b1 * m + c1 * g
    new_v[...] = b2 * v + c2 * g * g
    step[...] = m_scale * new_m / (np.sqrt(v_scale * new_v) + eps)


@numba.njit(cache=True, nogil=True, parallel=True, error_model="numpy", fastmath={"contract"})
def _moments_cpu(g, m, v, settings, step, new_m, new_v):
    b1, c1, b2, c2 = settings[0], settings[1], settings[2], settings[3]
    m_scale, v_scale, eps = settings[4], settings[5], settings[6]
    for block in numba.prange((g.size + BLOCK - 1) // BLOCK):
        own = slice(block * BLOCK, min((block + 1) * BLOCK, g.size))  # slices: else LLVM makes no vectors of the loop
        gs, ms, vs, steps, new_ms, new_vs = g[own], m[own], v[own], step[own], new_m[own], new_v[own]
        for i in range(gs.size):
            a, b = b1 * ms[i] + c1 * gs[i], b2 * vs[i] + c2 * (gs[i] * gs[i])
            new_ms[i], new_vs[i] = a, b
            steps[i] = m_scale * a / (np.sqrt(v_scale * b) + eps)


adam_kernel = kernel.register(
    "adam",
    "g[n] m[n] v[n] settings[7] -> step[n] new_m[n] new_v[n]",
    _moments,
    cpu=_moments_cpu,
    cuda=kernel.Cuda("adam.cu", lambda dims: -(-dims["n"] // 128)),
    sample=lambda rng, n: [
        rng.normal(size=n),
        rng.normal(size=n),
        rng.random(n),
        [0.9, 0.1, 0.99, 0.01, 1.5, 2.5, 1e-3],
    ],
    cases=tuple({"n": n} for n in (0, 1, 127, BLOCK + 3)),
    bench={"n": 8_000_000},
)


def scale_by_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Optimiser:
    """m̂ / (√v̂ + eps), with m and v the running means of g and g² and m̂, v̂ corrected for their start at zero.

    Kingma & Ba 2015 (Adam).  One pass over each large array: three numbers read and three written for each parameter.

    >>> o = scale_by_adam()
    >>> o.update({"a": np.array([7.0])}, o.init({"a": np.zeros(1)}), {})[0]["a"].round(6)
    array([1.])
    """

    def init(parameters: Arrays) -> dict[str, Any]:
        return {"count": 0, "m": _zeros(parameters), "v": _zeros(parameters)}

    def update(gradients: Arrays, state: dict, parameters: Arrays) -> tuple[dict[str, Array], dict]:
        _check(gradients, state["m"])
        count = int(state["count"]) + 1
        settings = b1, 1 - b1, b2, 1 - b2, 1 / (1 - b1**count), 1 / (1 - b2**count), eps
        updates, means, squares = {}, {}, {}
        for name, g in gradients.items():
            m, v, xp = state["m"][name], state["v"][name], module(g)
            out = tuple(xp.empty(g.shape, g.dtype) for _ in range(3))
            if g.dtype.kind == "f" and (g.size >= SMALL or is_gpu(g)):
                flat = (a.reshape(-1) for a in (g, m, v))
                adam_kernel(*flat, xp.asarray(settings, g.dtype), out=tuple(a.reshape(-1) for a in out))
            else:
                _moments(g, m, v, settings, *out)
            updates[name], means[name], squares[name] = out
        return updates, {"count": count, "m": means, "v": squares}

    return Optimiser(init, update)


def scale_by_rms(decay: float = 0.99, eps: float = 1e-8) -> Optimiser:
    """g / (√v + eps), with v the running mean of g² (Tieleman & Hinton 2012).

    >>> o = scale_by_rms(0.75)
    >>> o.update({"a": np.array([4.0])}, o.init({"a": np.zeros(1)}), {})[0]["a"].round(6)
    array([2.])
    """

    def update(gradients: Arrays, state: dict, parameters: Arrays) -> tuple[dict[str, Array], dict]:
        _check(gradients, state)
        squares = {name: decay * state[name] + (1 - decay) * g * g for name, g in gradients.items()}
        return {name: g / (module(g).sqrt(squares[name]) + eps) for name, g in gradients.items()}, squares

    return Optimiser(_zeros, update)


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


def rmsprop(rate: float | Schedule, decay: float = 0.99, momentum: float = 0.0, eps: float = 1e-8) -> Optimiser:
    """RMSprop (Tieleman & Hinton 2012), with Polyak's `momentum` if it is not zero.

    >>> p = {"a": np.ones(1)}
    >>> rmsprop(0.5, decay=0.75).update(p, rmsprop(0.5).init(p), p)[0]["a"].round(6)
    array([-1.])
    """
    links = [scale_by_rms(decay, eps), *([accumulate(momentum)] if momentum else []), scale_by_rate(rate)]
    return chain(*links)


def by_name(rules: Mapping[str, Optimiser]) -> Optimiser:
    """One optimiser for each group of parameters: the first rule whose pattern (with * and ?) fits the name.

    >>> o = by_name({"psf.*": sgd(1.0), "*": sgd(0.1)})
    >>> p = {"psf.z": np.ones(1), "encoder.w": np.ones(1)}
    >>> o.update(p, o.init(p), p)[0]
    {'psf.z': array([-1.]), 'encoder.w': array([-0.1])}
    """

    def split(values: Arrays) -> dict[str, dict[str, Array]]:
        groups: dict[str, dict[str, Array]] = {pattern: {} for pattern in rules}
        for name, value in values.items():
            pattern = next((pattern for pattern in rules if fnmatchcase(name, pattern)), None)
            if pattern is None:
                raise ValueError(f"by_name has no rule for {name!r}, only {', '.join(rules)}; add '*' as the last one")
            groups[pattern][name] = value
        return groups

    def init(parameters: Arrays) -> dict[str, Any]:
        return {pattern: rules[pattern].init(group) for pattern, group in split(parameters).items()}

    def update(gradients: Arrays, state: dict, parameters: Arrays) -> tuple[dict[str, Array], dict]:
        updates, states, own = {}, {}, split(parameters)
        for pattern, group in split(gradients).items():
            part, states[pattern] = rules[pattern].update(group, state[pattern], own[pattern])
            updates |= part
        return {name: updates[name] for name in gradients}, states

    return Optimiser(init, update)


def average(averages: Arrays, parameters: Arrays, decay: float = 0.999) -> dict[str, Array]:
    """The exponential moving average of the parameters, one step on: decay · average + (1 - decay) · parameter.

    Start with the parameters themselves.

    >>> average({"a": np.zeros(1)}, {"a": np.ones(1)}, decay=0.75)
    {'a': array([0.25])}
    """
    return {name: decay * averages[name] + (1 - decay) * p for name, p in parameters.items()}


def lbfgs(
    objective: Callable[[dict[str, np.ndarray]], tuple[float, Arrays]],
    parameters: Arrays,
    steps: int = 100,
    memory: int = 10,
    tolerance: float = 1e-10,
) -> dict[str, np.ndarray]:
    """Minimise objective(parameters) -> (value, gradients) for small, smooth problems without noise; NumPy arrays.

    L-BFGS with a line search (Nocedal 1980; SciPy's), in double precision; at most `steps` iterations, or until the
    largest gradient is below `tolerance`.

    >>> p = lbfgs(lambda p: (((p["a"] - 3) ** 2).sum(), {"a": 2 * (p["a"] - 3)}), {"a": np.zeros(2)})
    >>> p["a"].round(6)
    array([3., 3.])
    """
    sizes = np.cumsum([0, *(p.size for p in parameters.values())])

    def unpack(flat: np.ndarray) -> dict[str, np.ndarray]:
        parts = zip(parameters.items(), sizes[:-1], sizes[1:], strict=True)
        return {name: flat[a:b].reshape(p.shape).astype(p.dtype) for (name, p), a, b in parts}

    def function(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradients = objective(unpack(flat))
        _check(gradients, parameters)
        return float(value), np.concatenate([np.ravel(gradients[n]).astype(float) for n in parameters])

    start = np.concatenate([np.ravel(p).astype(float) for p in parameters.values()])
    options = {"maxiter": steps, "maxcor": memory, "gtol": tolerance, "ftol": 0.0, "maxfun": 20 * steps}
    return unpack(scipy.optimize.minimize(function, start, jac=True, method="L-BFGS-B", options=options).x)


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


def warmup(schedule: float | Schedule, steps: int) -> Schedule:
    """A schedule (or constant rate) whose first `steps` steps rise linearly to it.

    >>> [warmup(1.0, 4)(i) for i in range(6)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    """
    after = schedule if callable(schedule) else constant(schedule)
    return lambda step: after(step) * min(1.0, (step + 1) / steps) if steps else after(step)


def one_cycle(rate: float, steps: int, rise: float = 0.3, start: float = 25.0, end: float = 1e4) -> Schedule:
    """Along half a cosine from rate / start up to `rate` in the share `rise` of `steps`, then to rate / start / end.

    Smith & Topin 2019.

    >>> [round(one_cycle(1.0, 12, rise=0.5)(i), 3) for i in (0, 5, 11)]
    [0.04, 1.0, 0.0]
    """
    if not 1 < rise * steps < steps:
        raise ValueError(f"one_cycle got steps={steps}, rise={rise}; expected 1 < rise * steps < steps")
    top, last, low, lowest = rise * steps - 1, steps - 1, rate / start, rate / start / end

    def between(a: float, b: float, share: float) -> float:
        return b + (a - b) * 0.5 * (1 + cos(pi * share))

    def schedule(step: int) -> float:
        if step <= top:
            return between(low, rate, step / top)
        return between(rate, lowest, min(1.0, (step - top) / (last - top)))

    return schedule


class Plateau:
    """The schedule that multiplies its rate by `factor` after more than `patience` losses without an improvement.

    Tell it the loss by `observe`; an improvement is one of more than the share `threshold`.

    >>> s = Plateau(1.0, factor=0.1, patience=1)
    >>> for loss in (5.0, 5.0, 5.0): s.observe(loss)
    >>> s(0)
    0.1
    """

    def __init__(self, rate: float, factor: float = 0.5, patience: int = 5, threshold: float = 1e-4) -> None:
        if not 0 < factor < 1 or patience < 0:
            raise ValueError(
                f"Plateau got factor={factor}, patience={patience}; expected 0 < factor < 1, patience >= 0"
            )
        self.rate, self.factor, self.patience, self.threshold = rate, factor, patience, threshold
        self.best, self.waited = float("inf"), 0

    def observe(self, loss: float) -> None:
        """Note one more loss."""
        if float(loss) < self.best - self.threshold * abs(self.best if np.isfinite(self.best) else 0.0):
            self.best, self.waited = float(loss), 0
            return
        self.waited += 1
        if self.waited > self.patience:
            self.rate, self.waited = self.rate * self.factor, 0

    def __call__(self, step: int) -> float:
        return self.rate


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
