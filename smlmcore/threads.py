"""How work is spread over the threads of the CPU.

Compiled functions that release the GIL run on plain threads, on as many as numba may use where they are called: one
that was compiled for `prange` takes twice as long to compile and to load, and its threads are not for two at a time.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np

TURN = 5e-4  # seconds


def share(run: Callable[[int, int], Any], n: int, part: int | None = None) -> None:
    """Call `run(first, end)` for all of range(n), `part` of it at a time, default as much as makes a part per thread.

    >>> done = np.zeros(10)
    >>> share(lambda first, end: done[first:end].fill(first), 10, part=4)
    >>> done
    array([0., 0., 0., 0., 4., 4., 4., 4., 8., 8.])
    """
    threads = numba.get_num_threads()
    part = part or max(1, -(-n // threads))
    starts = range(0, n, part)
    left = iter(starts)  # of which each thread takes the next

    def work() -> None:
        for first in left:
            run(first, min(first + part, n))

    others = min(threads, len(starts)) - 1
    if others < 1:
        return work()
    with ThreadPoolExecutor(others) as pool:
        running = [pool.submit(work) for _ in range(others)]
        try:
            work()
        finally:  # after an error nobody goes on
            deque(left, 0)
        for thread in running:
            thread.result()


@contextmanager
def with_threads(count: int | None) -> Iterator[None]:
    """numba's number of threads within the block, default as many as before; it holds for the calling thread only."""
    most, before = numba.config.NUMBA_NUM_THREADS, numba.get_num_threads()
    if count is not None and not (isinstance(count, int | np.integer) and 1 <= count <= most):
        raise ValueError(f"fit got threads={count!r}; expected 1 to {most}, the number that this machine offers")
    numba.set_num_threads(int(count or before))
    try:
        yield
    finally:
        numba.set_num_threads(before)


@contextmanager
def short_turns() -> Iterator[None]:
    """Within the block, a thread that comes out of compiled code waits 0.5 ms for one that runs Python, and not 5."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, TURN))
    try:
        yield
    finally:
        sys.setswitchinterval(before)
