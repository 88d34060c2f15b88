"""How long the stages of a run take."""

from __future__ import annotations

import time


class Stopwatch:
    """Seconds by stage, in `record`: `lap(stage)` says that this one has ended."""

    def __init__(self) -> None:
        self.record: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.record[stage], self.last = round(now - self.last, 3), now
