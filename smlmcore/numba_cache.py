"""numba's cache of compiled functions, made safe for processes that compile at the same time, and for same bits.

numba numbers the files with the compiled variants of a function, and each process goes by the index it has read: two
that compile one function for different types at once both write number 1, and the index that stays may give the types
of one process to the code of the other: wrong numbers, then and in all later processes.  Here the name of such a file
follows from what it was compiled for (source, types, processor).  An index that loses the race lacks an entry, which is
then made again.

A compiled function holds copies of those that it calls, under their names, and a process runs the first of a name that
it meets.  One that compiles has met each of them by itself; one that finds all in the cache has not: sums of several
copies that were optimized apart may be of another order, and end in other bits.  Here each calls its own copies.

Both for functions of this package and of the modules that it writes (`smlmcore_...`) only, once this is imported.

And numba loads scipy.linalg, which takes as long as ten functions do, with its first compiled function, to see whether
SciPy is there.  It asks again before each use, so that here the first answer is yes.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from llvmlite.binding import Linkage
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.codegen import CPUCodeLibrary
from numba.np import linalg


class NamedByKey(IndexDataCacheFile):
    """The files of one function; a file is complete before an index names it."""

    def save(self, key: Any, data: Any) -> None:
        """Save the compiled variant `data` for `key`."""
        digest = sha256(self._dump((self._source_stamp, key))).hexdigest()[:16]
        name = self._index_name.removesuffix(".nbi") + f".{digest}.nbc"
        self._save_data(name, data)
        self._save_index(self._load_index() | {key: name})


def _save_overload(self: FunctionCache, sig: Any, data: Any) -> None:
    if self._py_func.__module__.startswith(__package__):
        self._cache_file.__class__ = NamedByKey
    _numbas(self, sig, data)


_numbas, FunctionCache.save_overload = FunctionCache.save_overload, _save_overload


def _finalize_module(self: CPUCodeLibrary) -> None:
    functions = [f for f in self._final_module.functions if not f.is_declaration]
    if any(__package__ in f.name for f in functions):
        self._shared_module = self._final_module.clone()  # what others take copies from: as numba makes it
        for f in self._shared_module.functions:
            if not f.is_declaration and f.linkage == Linkage.external:
                f.linkage = Linkage.linkonce_odr
        for f in functions:
            if f.linkage == Linkage.linkonce_odr:
                f.linkage = Linkage.internal
    _numbas_finalize(self)


_numbas_finalize, CPUCodeLibrary._finalize_final_module = CPUCodeLibrary._finalize_final_module, _finalize_module


_numbas_check, linalg.ensure_blas = linalg.ensure_blas, lambda: None
from numba.np import arraymath  # noqa: E402

linalg.ensure_blas = arraymath.ensure_blas = _numbas_check
