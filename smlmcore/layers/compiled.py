"""How the layers' functions are compiled by numba: once, kept in its cache, and shared where many call the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import binding
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from tqdm import tqdm

# Files whose functions are compiled into those of other files.
SHARED = ("compiled", "simd", "vectors", "activation", "direct", "winograd")
DIGEST = hashlib.sha256(b"".join(Path(__file__).with_stem(f).read_bytes() for f in SHARED)).hexdigest()[:8]


# What else than prange numba would run in parallel: each array expression would be a function more to compile.
REST = ("comprehension", "reduction", "inplace_binop", "setitem", "numpy", "stencil", "fusion")


def njit(parallel: bool = False) -> Callable[[Callable], Any]:
    """`numba.njit(cache=True, nogil=True)` that compiles anew when one of the files `SHARED` has changed.

    numba looks only at the file of the function itself, not at those of the functions that it calls.  The name of the
    cache file follows the function's name, so the digest of the sources goes there.  Divisors are never 0 here.
    """

    def decorate(function: Callable) -> Any:
        function.__qualname__ += f"_{DIGEST}"
        prange = dict.fromkeys(REST, False) if parallel else False
        return numba.njit(cache=True, nogil=True, error_model="numpy", parallel=prange)(function)

    return decorate


SINGLE, WHOLE = types.CPointer(types.float32), types.int64  # types of addresses and counts, for `shared`
_links: list[Callable[[], Any]] = []


def shared(signature: Any) -> Callable[[Callable], Any]:
    """Compile a function once for all compiled functions that call it, instead of into each of them.

    They call it by a symbol, which exists after `link()`: to be called before any of them.
    """

    def decorate(function: Callable) -> Any:
        symbol = f"smlmcore_{function.__name__}_{DIGEST}"
        function.__qualname__ = symbol

        @cache
        def link() -> Any:
            compiled = numba.cfunc(signature, cache=True)(function)
            binding.add_symbol(symbol, compiled.address)
            return compiled  # kept by the cache

        _links.append(link)
        return types.ExternalFunction(symbol, signature)

    return decorate


@cache
def link() -> None:
    """Compile the `shared` functions, or load them from numba's cache; at once the second time.

    On a terminal a bar says so, if it takes long.
    """
    for one in tqdm(_links, "compiling layers, once", unit="function", delay=0.5, leave=False, disable=None):
        one()


def _address(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """Where an array begins; an address as it is."""
    return value if isinstance(kind, types.CPointer) else context.make_array(kind)(context, builder, value=value).data


@intrinsic
def at(typing, array, offset):
    """Address of element `offset` of a flat array, or of the numbers at another address."""
    pointer = array if isinstance(array, types.CPointer) else types.CPointer(array.dtype)

    def codegen(context, b, signature, args):
        return b.gep(_address(context, b, array, args[0]), [args[1]])

    return pointer(array, types.int64), codegen


def frozen(a: np.ndarray) -> np.ndarray:
    """The array as a read-only one: the tape locks arrays now and then, and numba would compile anew for each kind."""
    a = a.view()
    a.flags.writeable = False
    return a


@intrinsic
def copy(typing, source, s, target, t, count):
    """Copy `count` numbers from source[s:] to target[t:], flat arrays or addresses of one type that do not overlap.

    As one memcpy: numba's own loop checks each index for a negative one, and copies number by number.
    """

    def codegen(context, b, signature, args):
        pointers = [b.gep(_address(context, b, signature.args[i], args[i]), [args[i + 1]]) for i in (0, 2)]
        size = context.get_abi_sizeof(context.get_data_type(source.dtype))
        cgutils.raw_memcpy(b, pointers[1], pointers[0], args[4], size)
        return context.get_dummy_value()

    return types.void(source, types.int64, target, types.int64, types.int64), codegen
