"""A profile of a few steps of a training."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from .. import profiler
from ..profiler import profile
from .callback import Callback

if TYPE_CHECKING:
    from .trainer import Trainer


class Profiler(Callback):
    """Watches `steps` steps after the first `skip`, which compile: then `result` is the `profiler.profile`, else None.

    `trace`: a file for chrome://tracing or ui.perfetto.dev.  While somebody else profiles, nothing is watched.

    >>> import numpy as np
    >>> import smlmcore as sc
    >>> model = sc.fit.gaussian2d((7, 7), width=8, hidden=16)
    >>> images = np.random.default_rng(0).poisson(5.0, (40, 7, 7))
    >>> watch = Profiler(skip=1, steps=2)
    >>> history = sc.training.Trainer(model, images, epochs=1, batch=8, callbacks=[watch]).run()
    >>> [row["calls"] for row in watch.result.rows() if row["name"] == "encoder"]
    [2]
    """

    def __init__(self, trace: str | PathLike[str] | None = None, skip: int = 5, steps: int = 3) -> None:
        if skip < 1 or steps < 1:
            raise ValueError(f"Profiler got skip={skip}, steps={steps}; expected both >= 1")
        self.trace, self.skip, self.steps = trace, skip, steps
        self.result: profile | None = None
        self._running: profile | None = None
        self._done = 0

    def step(self, trainer: Trainer, record: Mapping[str, Any]) -> None:
        """Begin or finish."""
        self._done += 1
        if self._done == self.skip and profiler.active is None:
            self._running = profile().__enter__()
        elif self._running and self._done == self.skip + self.steps:
            self._running.__exit__()
            self.result, self._running = self._running, None
            if self.trace is not None:
                self.result.chrome(self.trace)

    def end(self, trainer: Trainer) -> None:
        """Stop watching, if the training ended within the steps."""
        if self._running:
            self._running.__exit__()
            self._running = None
