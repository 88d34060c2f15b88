"""Automatic differentiation, first order, on NumPy and CuPy arrays: `Tensor`, `op`, `no_grad` and the `ops`.

>>> from smlmcore.autograd import Tensor, ops
>>> x = Tensor([0.0, 1.0])
>>> ops.exp(2 * x).sum().backward()
>>> x.grad.round(2)
array([ 2.  , 14.78])
"""

from . import ops
from .checks import check_adjoint, check_gradient
from .op import op
from .tensor import Tensor, no_grad, plain

__all__ = ["Tensor", "check_adjoint", "check_gradient", "no_grad", "op", "ops", "plain"]
