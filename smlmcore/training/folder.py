"""The folder of a training: the best parameters, and all that it takes to go on."""

from __future__ import annotations

import zlib
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backend
from ..files import DataError
from . import checkpoint

if TYPE_CHECKING:
    from .trainer import Trainer

PROGRESS = "parameters", "averages", "state", "best", "history", "losses", "step", "seconds", "shuffled"


class Folder:
    """`best.npz` and `last.npz` of the training by `trainer` in the folder `path`, which is made if need be.

    Raises `DataError` if another training lies there, or one at all without `resume`.
    """

    def __init__(self, path: str | PathLike[str], trainer: Trainer, settings: dict[str, Any], resume: bool) -> None:
        self.path = Path(path)
        self.best, self.last = self.path / "best.npz", self.path / "last.npz"
        self.same = {**settings, **{f"the shape of {name}": list(p.shape) for name, p in trainer.parameters.items()}}
        if backend.is_array(trainer.images):
            self.same["checksum of the images"] = zlib.crc32(np.ascontiguousarray(backend.to_cpu(trainer.images)))
        if self.path.exists() and not self.path.is_dir():
            raise DataError(f"{self.path}: is a file; give the name of a folder")
        if not self.last.exists():
            self.path.mkdir(parents=True, exist_ok=True)
        elif resume:
            self._resume(trainer)
        else:
            raise DataError(f"{self.path}: a training lies there; resume=True goes on with it, or name another folder")

    def save(self, trainer: Trainer) -> None:
        """Write all that the training is made of at this moment."""
        values = {name: getattr(trainer, name) for name in PROGRESS}
        values |= {"same": self.same, "rng": trainer.rng.bit_generator.state}
        values |= {"schedule": vars(trainer.schedule) if hasattr(trainer.schedule, "observe") else {}}
        checkpoint.write(self.last, values)

    def save_best(self, model: Any) -> None:
        """Write the model as it is."""
        if hasattr(model, "save"):
            model.save(self.best)
        else:
            checkpoint.write(self.best, {"parameters": model.parameters})

    def _resume(self, trainer: Trainer) -> None:
        values = checkpoint.read(self.last, gpu=any(map(backend.is_gpu, trainer.parameters.values())))
        try:
            before, rng, schedule = (values.pop(name) for name in ("same", "rng", "schedule"))
            for name in {**before, **self.same}:
                was, now = before.get(name), self.same.get(name)
                if was != now:
                    raise DataError(f"{self.last}: cannot resume: {name} was {was}, is {now}; give what it was")
            for name in PROGRESS:
                setattr(trainer, name, values[name])
        except KeyError as error:
            raise DataError(f"{self.last}: is no checkpoint of a training ({error} is missing)") from None
        if schedule:
            vars(trainer.schedule).update(schedule)
        if trainer.shuffled:  # in the midst of an epoch: its batches again
            trainer.rng.bit_generator.state = trainer.shuffled
            trainer.order = trainer.feed.order(trainer.rng)
        trainer.rng.bit_generator.state = rng
