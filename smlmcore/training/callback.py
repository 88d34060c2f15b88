"""What is told of a training while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .trainer import Trainer


class Callback:
    """Is told of start, steps, epochs and end of a training; a subclass has the methods that it needs.

    `record` of a step: `epoch` and `step` (both from 1, steps counted over all epochs), `loss`, `rate` (learning rate),
    `gradient_norm` (before clipping), and what parts of the model noted (`layers.note`).  Of an epoch: `epoch`,
    `step` (its last), `train` and `validation` (losses; NaN without a validation), `rate`, `seconds` (since the start)
    and `images_per_second` (of training alone).

    A callback may read all of the trainer; in a step, `trainer.tensors` and `trainer.gradients` as well.
    `trainer.stop("why")` ends the training after the step or epoch.

    >>> import numpy as np
    >>> import smlmcore as sc
    >>> class GoodEnough(Callback):
    ...     def epoch(self, trainer, record):
    ...         if record["validation"] < 100:
    ...             trainer.stop("good enough")
    >>> model = sc.fit.gaussian2d((7, 7), width=8, hidden=16)
    >>> images = np.random.default_rng(0).poisson(5.0, (40, 7, 7))
    >>> trainer = sc.training.Trainer(model, images, epochs=9, batch=16, callbacks=[GoodEnough()])
    >>> len(trainer.run()["train"]), trainer.stopped
    (1, 'good enough')
    """

    def start(self, trainer: Trainer) -> None:
        """Before the first step, and before the first step after a resume."""

    def step(self, trainer: Trainer, record: Mapping[str, Any]) -> None:
        """After every step."""

    def epoch(self, trainer: Trainer, record: Mapping[str, Any]) -> None:
        """After every epoch and its validation; the model has the parameters that were validated."""

    def end(self, trainer: Trainer) -> None:
        """After the last step, or when an error or Ctrl-C ended the training; the model has the best parameters."""
