"""Freed memory stays with the process: else every training step gets it anew from the system, page by page."""

from __future__ import annotations

import ctypes
import os
from functools import cache

TRIM, MAP, ARENAS = -1, -3, -8  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_ARENA_MAX of glibc's malloc.h
KEEP = 512 << 20  # bytes that may stay free: the arrays of one step of a large U-Net
LARGEST = 32 << 20  # bytes of an array, the most that glibc takes here; larger ones are mapped one by one
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES")


@cache
def keep_freed() -> bool:
    """Let glibc's `malloc` keep up to `KEEP` freed bytes for later arrays, from now on; True if it does.

    By itself it returns large arrays to the system, which then has to clear each page again when it is next touched,
    in one thread at a time; steps and inference of small networks gain most, a factor of 1.6.  It holds for the whole
    process and cannot be undone, so nothing calls it but `training.Trainer` and who has a loop of their own.  Who has
    set glibc's own variables, for example MALLOC_TRIM_THRESHOLD_, keeps them.  Other C libraries are left as they are.

    >>> keep_freed() == keep_freed()
    True
    """
    return _set({MAP: LARGEST, TRIM: KEEP})


@cache
def share_freed() -> bool:
    """Let all threads use what one of them has freed, from now on; True if they do.

    By itself each of them keeps it for its own.  For processes of many short-lived threads: a quarter less memory, and
    of its pages half as many are touched for the first time.  Long-lived ones are better off with memory of their own.
    The same holds as for `keep_freed`.
    """
    return _set({ARENAS: 1})


def _set(values: dict[int, int]) -> bool:
    if any(name in os.environ for name in SETTINGS):
        return False
    try:
        os.confstr("CS_GNU_LIBC_VERSION")  # raises where the C library is another one
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, ValueError):
        return False
    return all(mallopt(name, value) for name, value in values.items())
