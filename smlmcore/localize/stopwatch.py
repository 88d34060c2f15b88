"""How long the stages of a run take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock


class Stopwatch:
    """Seconds by stage, in `record`; those of stages side by side may add up to more than the run took.

    `lap(stage)` says that a stage has ended that began with the end of the one before.  What is done `within` a stage,
    in any thread, is added to it.
    """

    def __init__(self) -> None:
        self.record: dict[str, float] = {}
        self.begin = self.last = time.perf_counter()
        self.lock = Lock()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.record[stage], self.last = round(now - self.last, 3), now

    @contextmanager
    def within(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        with self.lock:
            self.record[stage] = round(self.record.get(stage, 0.0) + time.perf_counter() - begin, 3)

    def whole(self) -> dict[str, float]:
        """The record, and as `whole` the seconds since the beginning."""
        return {**self.record, "whole": round(time.perf_counter() - self.begin, 3)}
