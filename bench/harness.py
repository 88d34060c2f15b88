"""Side-by-side timing: ours and each peer in turn, medians, ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Row:
    """One line of the comparison: `work`, seconds of ours and of each peer (None: not installed), and the target."""

    work: str
    ours: float
    peers: Mapping[str, float | None]
    items: int = 1  # what one run does, for the rate
    target: str = ""
    note: str = ""

    def text(self) -> str:
        rate = f"{self.items / self.ours:,.0f}/s" if self.items > 1 else f"{1e3 * self.ours:.2f} ms"
        beside = "  ".join(
            f"{name}: not installed" if s is None else f"{name}: {s / self.ours:.2f}x our time"
            for name, s in self.peers.items()
        )
        return f"{self.work:<58} {rate:>16}  {beside}  [target: {self.target}] {self.note}"


def compare(
    work: str, ours: Callable[[], Any], peers: Mapping[str, Callable[[], Any] | None], repeat: int = 7, **about: Any
) -> Row:
    """Median seconds of `ours` and of all `peers`, taken in turn after a warm-up, so that drift hits all alike."""
    runs = {"": ours, **{name: peer for name, peer in peers.items() if peer is not None}}
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeat):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(s) for name, s in seconds.items()}
    return Row(work, median[""], {name: median.get(name) for name in peers}, **about)
