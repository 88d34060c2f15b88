"""Half precision for the matrix products of convolutions on a GPU: float16 factors, sums in float32.

Tensor cores multiply float16 several times as fast as float32, and fetch half the bytes.  A factor is divided by the
power of two that brings its largest number to 1 ... 2, so that none overflows and a gradient does not vanish; what is
2^-24 of the largest or less becomes 0.  The result is right to some 1e-3 of its largest number.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from .. import backend
from ..backend import Array

_on: ContextVar[bool] = ContextVar("half", default=False)


@contextmanager
def half() -> Iterator[None]:
    """Within `with layers.half():` convolutions of float32 arrays on a GPU multiply in float16, and sum in float32.

    Parameters, activations between layers and gradients stay float32.  Nothing changes on the CPU, whose units are as
    fast in float32, and for float64.  A training step has its `backward` inside, too.

    >>> with half():
    ...     asked()
    True
    """
    token = _on.set(True)
    try:
        yield
    finally:
        _on.reset(token)


def asked() -> bool:
    """Whether `half` is on."""
    return _on.get()


def narrow(a: Array, spare: int = 0) -> tuple[Array, Any]:
    """`a` as a float16 array below 2^(1 - spare), and the power of two to multiply it with.

    >>> narrow(np.array([3.0, -5.0], np.float32))
    (array([ 0.75, -1.25], dtype=float16), np.float32(4.0))
    """
    xp = backend.module(a)
    largest = xp.maximum(xp.abs(a).max(initial=0), np.finfo(np.float32).tiny)
    factor = xp.exp2(xp.floor(xp.log2(largest)) + spare).astype(a.dtype)
    return (a / factor).astype(np.float16), factor


def add_product(out: Array, a: Array, b: Array) -> None:
    """out += a @ b, all C-contiguous, but `a` perhaps a transposed view of such; float16 factors are summed in float32.

    >>> out = np.ones((1, 1), np.float32)
    >>> add_product(out, np.full((1, 3), 0.5, np.float16), np.ones((3, 1), np.float16))
    >>> out
    array([[2.5]], dtype=float32)
    """
    if a.dtype == out.dtype:
        out += a @ b
    elif backend.module(out) is np:
        out += a.astype(out.dtype) @ b.astype(out.dtype)
    else:
        import cupy
        from cupy_backends.cuda.libs import cublas

        _gemm(cublas, cupy.cuda.device.get_cublas_handle(), out, a, b)


R_32F, R_16F = 0, 2  # cudaDataType


def _gemm(cublas: Any, handle: int, out: Array, a: Array, b: Array) -> None:
    """cuBLAS counts columns first, so it sees every array transposed, and computes outᵀ += bᵀ aᵀ."""
    if out.size == 0 or a.size == 0:
        return
    transposed = not a.flags.c_contiguous
    one, flag = np.ones(1, np.float32), cublas.CUBLAS_OP_T if transposed else cublas.CUBLAS_OP_N
    cublas.gemmEx(
        handle, cublas.CUBLAS_OP_N, flag, b.shape[1], a.shape[0], a.shape[1], one.ctypes.data,
        b.data.ptr, R_16F, b.shape[1], a.data.ptr, R_16F, a.shape[0] if transposed else a.shape[1], one.ctypes.data,
        out.data.ptr, R_32F, out.shape[1], cublas.CUBLAS_COMPUTE_32F, cublas.CUBLAS_GEMM_DEFAULT,
    )  # fmt: skip
