"""Dense layer, x @ weight + bias.

In float32 on the CPU it uses the same matrix product as the convolutions, not NumPy's BLAS: the threads of BLAS keep
spinning after a call, and take the cores from numba's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import get_num_threads, prange

from .. import backend
from ..autograd import op
from ..backend import Array
from .compiled import copy, frozen, link, njit
from .direct import ceil
from .simd import WIDEST, blocks, pack, product

ROWS = 64  # rows of the result that a thread takes at a time, at most


@njit()
def _rows(first, rows, a, row, step, length, weight, weight_step, widths, init, out):
    results, d = out.reshape(-1), out.shape[1]
    table, spare = np.zeros(1, np.int64), np.empty(rows * WIDEST, out.dtype)
    column = 0
    for width in widths:
        w, x = column if weight_step else column * length, first * row
        apart = weight_step if weight_step else width
        if column + width <= d:
            product(
                width, a, x, weight, w, results, first * d + column, init, column,
                table, length, row, step, apart, d, 0, rows,
            )  # fmt: skip
        else:  # the last block is wider than what is left
            product(width, a, x, weight, w, spare, 0, init, column, table, length, row, step, apart, width, 0, rows)
            for r in range(rows):
                copy(spare, r * width, results, (first + r) * d + column, d - column)
        column += width


@njit(parallel=True)
def _matmul(a, row, step, length, weight, weight_step, widths, init, threads, out):
    """`weight_step`: distance of the weight's rows, or 0 if it is packed."""
    rows = out.shape[0]
    most = ceil(ceil(rows, threads * ceil(rows, threads * ROWS)), 4) * 4
    for chunk in prange(ceil(rows, most)):
        first = chunk * most
        _rows(first, min(most, rows - first), a, row, step, length, weight, weight_step, widths, init, out)


def matmul(a: Array, b: Array, bias: Array | None = None) -> Array:
    """a @ b, plus `bias` in each row; `a` (n, k), contiguous or the transpose of a contiguous array, `b` (k, m).

    >>> matmul(np.ones((2, 3), np.float32), np.ones((3, 1), np.float32))
    array([[3.], [3.]], dtype=float32)
    """
    if backend.module(a, b, name="matmul") is not np or not a.dtype == b.dtype == np.float32 or a.size == 0:
        return a @ b if bias is None else a @ b + bias
    if not (a.flags.c_contiguous or a.flags.f_contiguous):
        a = np.ascontiguousarray(a)
    link()
    columns = b.shape[1]
    widths = blocks(columns)
    init = np.zeros(widths.sum(), a.dtype)
    if bias is not None:
        init[:columns] = bias
    out = np.empty((len(a), columns), a.dtype)
    row, step = (s // a.itemsize for s in a.strides)
    whole = init.size == columns  # then the blocks are read where they lie
    weight = np.ascontiguousarray(b).reshape(-1) if whole else pack(b, widths)
    _matmul(
        frozen(a.ravel("K")), row, step, a.shape[1], frozen(weight), columns if whole else 0,
        widths, init, get_num_threads(), out,
    )  # fmt: skip
    return out


@op
def linear(x: Array, weight: Array, bias: Array) -> Array:
    """x @ weight + bias for x (n, inputs), weight (inputs, outputs), bias (outputs,), all float32 or all float64.

    >>> linear(np.ones((1, 2)), np.ones((2, 3)), np.zeros(3))
    array([[2., 2., 2.]])
    """
    if x.ndim != 2 or x.shape[1:] != weight.shape[:1] or bias.shape != weight.shape[1:]:
        raise ValueError(
            f"linear got x of shape {x.shape}, weight {weight.shape} and bias {bias.shape}; "
            "expected (n, inputs), (inputs, outputs) and (outputs,)"
        )
    if not x.dtype == weight.dtype == bias.dtype:
        raise TypeError(
            f"linear got x of {x.dtype}, weight of {weight.dtype} and bias of {bias.dtype}; "
            "expected one dtype, float32 or float64; convert with .astype(...)"
        )
    return matmul(x, weight, bias), (x, weight)


@linear.vjp
def _(saved: tuple, g: Array) -> tuple:
    x, weight = saved
    return lambda: matmul(g, weight.T), lambda: matmul(x.T, g), lambda: g.sum(0)


@dataclass(frozen=True)
class Linear:
    """Dense layer: (n, inputs) -> (n, outputs); parameters `weight` (inputs, outputs), normal with variance 2 / inputs
    (He et al. 2015, ICCV), and `bias` (outputs,).

    >>> layer = Linear(3, 2)
    >>> layer(layer.init(np.random.default_rng(0)), np.ones((5, 3), np.float32)).shape
    (5, 2)
    """

    inputs: int
    outputs: int

    def __post_init__(self) -> None:
        if min(self.inputs, self.outputs) < 1:
            raise ValueError(f"{self} is not possible; inputs and outputs are at least 1")

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> dict[str, np.ndarray]:
        """Draw the parameters."""
        weight = rng.normal(0, (2 / self.inputs) ** 0.5, (self.inputs, self.outputs)).astype(dtype)
        return {"weight": weight, "bias": np.zeros(self.outputs, dtype)}

    def __call__(self, p: Mapping[str, Any], x: Any) -> Any:
        """Apply to x (n, inputs), an array or Tensor, with the parameters `p`."""
        return linear(x, p["weight"], p["bias"])
