"""numba's cache of compiled functions, made safe for processes that compile at the same time.

numba numbers the files with the compiled variants of a function, and each process goes by the index it has read: two
that compile one function for different types at once both write number 1, and the index that stays may give the types
of one process to the code of the other: wrong numbers, then and in all later processes.

Here the name of such a file follows from what it was compiled for (source, types, processor), for functions of this
package and of the modules that it writes (`smlmcore_...`) only, once this module is imported.  An index that loses the
race lacks an entry, which is then made again.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from numba.core.caching import FunctionCache, IndexDataCacheFile


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
