"""Which array library the data lives in: NumPy on the CPU, CuPy on the GPU.  The backend follows the data.

There is no global device.  Every function asks `module(...)` for the library of its arguments and stays in
it; arrays of both kinds in one call are an error, because moving them silently would hide the cost.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or cupy.ndarray; CuPy is optional, so no static type names it
REAL = (np.dtype("float32"), np.dtype("float64"))


def is_gpu(x: Any) -> bool:
    """True if `x` is a CuPy array."""
    cupy = sys.modules.get("cupy")  # a CuPy array exists only if CuPy is imported
    return cupy is not None and isinstance(x, cupy.ndarray)


def is_array(x: Any) -> bool:
    """True if `x` is a NumPy or a CuPy array (scalars and lists are neither)."""
    return isinstance(x, np.ndarray) or is_gpu(x)


def module(*arrays: Any, name: str = "this function") -> ModuleType:
    """The array library, `numpy` or `cupy`, that `arrays` live in; scalars and lists fit either.

    Raises `TypeError`, naming the caller `name`, if NumPy and CuPy arrays are mixed.

    >>> module(np.zeros(3), 2.0).__name__
    'numpy'
    """
    gpu = [is_gpu(a) for a in arrays if is_array(a)]
    if any(gpu):
        if not all(gpu):
            raise TypeError(
                f"{name} got NumPy and CuPy arrays together; "
                "move all to one side with smlmcore.backend.to_gpu(...) or to_cpu(...)"
            )
        return sys.modules["cupy"]
    return np


def scipy_module(xp: ModuleType, name: str) -> ModuleType:
    """`scipy.NAME`, or `cupyx.scipy.NAME` for CuPy.

    >>> scipy_module(np, "ndimage").__name__
    'scipy.ndimage'
    """
    return import_module(f"scipy.{name}" if xp is np else f"cupyx.scipy.{name}")


def asarray(x: Any, dtype: Any = None, like: Array | None = None) -> Array:
    """`x` as an array of the library of `like` (default: its own, NumPy for lists), real dtype unless `dtype` is given.

    Integers and booleans become float32 up to 16 bits and float64 above, so that no count is rounded.

    >>> asarray([1, 2]).dtype, asarray(np.zeros(2, np.uint16)).dtype
    (dtype('float64'), dtype('float32'))
    """
    xp = module(x, *(() if like is None else (like,)), name="asarray")
    a = xp.asarray(x, dtype=dtype)
    if dtype is None and a.dtype.kind in "biu":
        a = a.astype(np.float32 if a.dtype.itemsize <= 2 else np.float64)
    if dtype is None and a.dtype.kind not in "fc":
        raise TypeError(f"asarray got dtype {a.dtype}; expected numbers")
    return a.astype(np.float32) if a.dtype == np.float16 and dtype is None else a


def to_cpu(x: Any) -> np.ndarray:
    """`x` as a NumPy array; copies from the GPU only if it lives there."""
    return x.get() if is_gpu(x) else np.asarray(x)


def to_gpu(x: Any) -> Array:
    """`x` as a CuPy array on the current device; without CuPy or a GPU a `RuntimeError` says what to do."""
    try:
        import cupy

        return cupy.asarray(x)
    except ImportError:
        raise RuntimeError("CuPy is not installed; pip install 'smlmcore[gpu-cuda13]' (or gpu-cuda12)") from None
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise RuntimeError(f"CuPy finds no usable GPU ({error}); keep the data in NumPy arrays") from None
