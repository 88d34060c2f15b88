"""An op: a forward on plain arrays and, beside it, its vector-Jacobian product.

>>> import numpy as np
>>> @op
... def cube(x):
...     return x**3, x  # (value, what the vjp needs)
>>> @cube.vjp
... def _(x, g):
...     return (3 * x**2 * g,)
>>> x = Tensor([2.0])
>>> cube(x).backward()
>>> float(cube(2.0)), x.grad
(8.0, array([12.]))
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from .. import profiler
from .tensor import Node, Tensor, made, recording


def op(forward: Callable[..., tuple[Any, Any]]) -> Callable[..., Any]:
    """Make a differentiable function of `forward(*inputs, **static) -> (value, saved)`.

    The result takes arrays, numbers or Tensors by position and everything static by keyword.  Without a Tensor among
    the inputs it returns the plain value, unrecorded.  Declare the gradient with `@NAME.vjp`: a function of
    (saved, g), g = dL/dvalue, that returns dL/dinput for each input.  An entry may be None (no gradient) or a function
    without arguments, called only if that input needs a gradient; trailing entries of inputs that never are Tensors
    may be left out.  Sums over broadcast axes and casts to the input's dtype are made by the tape.

    `saved` may be anything; NumPy arrays in it (also in tuples and lists) are read-only while recorded.
    """
    name = forward.__name__.strip("_")

    @wraps(forward)
    def call(*inputs: Any, **static: Any) -> Any:
        if static and any(isinstance(v, Tensor) for v in static.values()):
            raise TypeError(f"{name} got a Tensor by keyword; give arrays by position, only settings by keyword")
        run = forward if profiler.active is None else profiler.active.watch(name, "forward", forward)
        for x in inputs:
            if isinstance(x, Tensor):
                break
        else:
            return run(*inputs, **static)[0]
        arrays, parents = [], []
        for x in inputs:
            tensor = isinstance(x, Tensor)
            arrays.append(x.data if tensor else x)
            parents.append((x.node or x) if tensor and x.requires_grad else None)
        value, saved = run(*arrays, **static)
        while parents and parents[-1] is None:
            parents.pop()
        result = made(value)
        if parents and recording.get():
            result.node, result.requires_grad = Node(name, call.rule, parents, saved, result.data), True
        return result

    def missing(saved: Any, gradient: Any) -> tuple:
        raise NotImplementedError(f"{name} has no gradient; declare one with @{name}.vjp")

    def vjp(rule: Callable[[Any, Any], tuple]) -> Callable[[Any, Any], tuple]:
        call.rule = rule
        return rule

    call.forward, call.rule, call.vjp = forward, missing, vjp
    return call
