"""All ops, for plain arrays and Tensors alike, and the operators and methods of Tensor that call them.

>>> from smlmcore.autograd import Tensor
>>> float(Tensor([3.0, 4.0]).square().sum().sqrt())
5.0
"""

from __future__ import annotations

import operator
from typing import Any

from ..tensor import Tensor
from .elementwise import (
    abs2,
    absolute,
    add,
    cast,
    clip,
    conjugate,
    cos,
    divide,
    erf,
    exp,
    imag,
    log,
    log1p,
    maximum,
    minimum,
    multiply,
    negative,
    power,
    real,
    sigmoid,
    sin,
    softplus,
    sqrt,
    square,
    subtract,
    tanh,
    to_complex,
    where,
)  # fmt: skip
from .fft import fftn, ifftn
from .linalg import einsum, matmul, solve
from .reduce import logsumexp, max, mean, min, sum
from .shape import broadcast_to, concatenate, flip, getitem, moveaxis, pad, reshape, stack, transpose

for _f in (sum, mean, max, min, logsumexp, moveaxis, broadcast_to, flip, exp, log, log1p, sqrt, square, tanh, sigmoid,
           softplus, erf, sin, cos, clip, abs2, conjugate):  # fmt: skip
    setattr(Tensor, _f.__name__, _f)

_binary = {"add": add, "mul": multiply, "sub": subtract, "truediv": divide, "pow": power, "matmul": matmul}
for _name, _f in _binary.items():
    setattr(Tensor, f"__{_name}__", _f)
    setattr(Tensor, f"__r{_name}__", _f if _name in ("add", "mul") else lambda self, other, f=_f: f(other, self))

for _name in ("lt", "le", "gt", "ge", "eq", "ne"):  # compare the data; the result is a plain array
    _compare = getattr(operator, _name)
    setattr(
        Tensor,
        f"__{_name}__",
        lambda self, other, f=_compare: f(self.data, other.data if isinstance(other, Tensor) else other),
    )

Tensor.__neg__ = negative
Tensor.__abs__ = absolute
Tensor.__getitem__ = getitem
Tensor.T = property(lambda self: transpose(self))
Tensor.real = property(lambda self: real(self))
Tensor.imag = property(lambda self: imag(self))


def _lengths(first: Any, rest: tuple) -> Any:
    return (first, *rest) if rest else first


Tensor.reshape = lambda self, shape, *rest: reshape(self, _lengths(shape, rest))
Tensor.transpose = lambda self, axes=None, *rest: transpose(self, _lengths(axes, rest))
