"""Training of a model on images alone, or on images that a source draws."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import backend, layers, optim
from ..autograd import Tensor, no_grad
from .callback import Callback
from .descent import descent, schedule_of
from .feed import Drawn, Images, Source, numbers
from .folder import Folder
from .interrupt import deferred

COLUMNS = ("epoch", "step", "train", "validation", "rate", "seconds", "images_per_second")


class Trainer:
    """Fit the learned parameters of `model` to `images` (n, h, w) in photoelectrons; `run()` returns the history.

    AdamW with warm-up and cosine decay to zero, clipped gradients and, with a `symmetric` renderer, flips and
    transposes of the images, which the physics does not change.  A share `held_out` of the images is never trained on
    (default 0.2; 0 for an encoder `by_index`, which knows only images that it was trained on); the loss there, or else
    that of training, decides which parameters are best, and these the model has in the end.  A loss that is not finite
    ends the training: `run` raises a `FloatingPointError` that names epoch, step and images, and the model has the best
    parameters until then.  Training lets the process keep freed memory (`layers.keep_freed`).  Same seed, same result.

    `images` may be a source instead, any object with `draw(rng, n) -> (images, variance, extra)`: then each of the
    `steps` in an epoch trains on `batch` new images, and the loss of a share `held_out` (default 0.05) of as many more
    decides.  `model` is a `FitModel` or anything with `parameters`, a flat mapping of arrays, and
    `objective(p, images, variance, extra)`, the loss to make small; `extra` is what the source gave, else the numbers
    of the images.

    `variance`: read-noise variance in squared photoelectrons, scalar, (h, w) or (n, h, w).  `epochs`: passes over the
    training images, `batch`: images in a step, `clip`: largest gradient norm, `decay`: weight decay.  `rate`: the
    highest learning rate, `rates`: multiples of it for parameters by pattern, such as {"renderer.*": 0.1};
    `schedule`: how it goes on, "cosine" and "constant" after `warmup` steps of linear rise (at most a fifth of all),
    "one_cycle", "plateau", or a function of the step.  `average`: decay of a running mean of the parameters, such as
    0.999, which is then what is validated and kept.  `validate_every`: epochs from one validation to the next,
    `patience`: so many validations without a better one end the training.  `progress`: show a bar if the output is a
    terminal.  `callbacks` are told of every step and epoch (`Callback`).

    With a `folder` the best parameters lie in `best.npz`, as `model.save` writes them, and all that it takes to go on
    in `last.npz`, written after each epoch and every `save_every` steps.  With `resume` a training that lies there goes
    on exactly where it was, as if it had never been interrupted; images, batch and seed must be those of before.
    Ctrl-C (or SIGTERM) finishes the step and saves.

    >>> import smlmcore as sc
    >>> model = sc.fit.gaussian2d((7, 7), width=8, hidden=16)
    >>> images = np.random.default_rng(0).poisson(5.0, (40, 7, 7))
    >>> history = Trainer(model, images, epochs=2, batch=16).run()
    >>> len(history["validation"])
    2
    """

    def __init__(
        self,
        model: Any,
        images: Any | Source,
        variance: Any = 0.0,
        *,
        epochs: int = 20,
        batch: int = 256,
        steps: int = 100,
        rate: float = 2e-3,
        rates: Mapping[str, float] | None = None,
        schedule: str | optim.Schedule = "cosine",
        warmup: int = 200,
        decay: float = 1e-3,
        clip: float = 1.0,
        average: float | None = None,
        held_out: float | None = None,
        validate_every: int = 1,
        patience: int | None = None,
        seed: int = 0,
        folder: str | PathLike[str] | None = None,
        save_every: int | None = None,
        resume: bool = False,
        progress: bool = True,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        drawn, by_index = hasattr(images, "draw"), getattr(model, "by_index", False)
        held_out = (0.05 if drawn else 0.0 if by_index else 0.2) if held_out is None else held_out
        counts = {"epochs": epochs, "batch": batch, "steps": steps, "validate_every": validate_every}
        counts |= {"patience": patience, "save_every": save_every}
        wrong = [f"{name}={value}; expected >= 1" for name, value in counts.items() if value is not None and value < 1]
        wrong += [] if 0 <= held_out < 1 else [f"held_out={held_out}; expected 0 <= held_out < 1"]
        wrong += [] if average is None or 0 < average < 1 else [f"average={average}; expected 0 < average < 1"]
        if wrong:
            raise ValueError(f"Trainer got {wrong[0]}")
        self.model, self.epochs, self.progress, self.callbacks = model, epochs, progress, tuple(callbacks)
        self.average, self.save_every = average, save_every
        self.validate_every, self.patience = validate_every, patience
        self.rng = np.random.default_rng(seed)
        if not model.parameters:
            model.init(self.rng)
        if drawn:
            self.feed: Drawn | Images = Drawn(images, batch, steps, held_out, seed)
        else:
            turns = not by_index and getattr(getattr(model, "renderer", None), "symmetric", False)
            self.feed = Images(*model.check(images, variance), batch, held_out, turns, self.rng)
        self.images, self.variance = self.feed.images, self.feed.variance
        self.trained, self.held_out = self.feed.trained, self.feed.held_out
        self.schedule = schedule_of(schedule, rate, epochs * self.feed.steps, warmup)
        self.optimiser = descent(self.schedule, rates, decay, clip)

        self.parameters = self.averages = model.parameters
        self.state = self.optimiser.init(self.parameters)
        self.best = math.inf, self.parameters
        self.history: dict[str, list[float]] = {name: [] for name in COLUMNS}
        self.losses: list[float] = []  # of the steps of this epoch
        self.order: list[Any] = []  # its batches
        self.shuffled: dict[str, Any] | None = None  # state of the generator that shuffled them
        self.step, self.seconds, self.stopped = 0, 0.0, ""
        self.tensors: dict[str, Tensor] = {}
        self.gradients: dict[str, Any] = {}
        settings = {"batch": batch, "seed": seed, "held_out": held_out, "steps of an epoch": self.feed.steps}
        self.folder = None if folder is None else Folder(folder, self, settings, resume)

    def run(self) -> dict[str, list[float]]:
        """Train and leave the best parameters in the model; returns the history, a list of each of COLUMNS by epoch.

        After Ctrl-C, or a `stop`, another `run()` goes on.
        """
        layers.keep_freed()
        self.stopped = ""
        self.model.parameters = self.parameters
        self._began = time.perf_counter() - self.seconds
        bar = {"total": self.epochs, "initial": len(self.history["epoch"]), "disable": None if self.progress else True}
        with deferred() as self._signals, tqdm(desc="training", unit="epoch", **bar) as shown:
            try:
                self._tell("start")
                while len(self.history["epoch"]) < self.epochs and not self._enough():
                    record = self._epoch()
                    shown.update()
                    shown.set_postfix({name: f"{record[name]:.4f}" for name in ("train", "validation")})
                self._heed_signals()
            finally:
                self.model.parameters = self.best[1]
                self._tell("end")
        return self.history

    def stop(self, why: str) -> None:
        """End the training after this step or epoch; `stopped` says why."""
        self.stopped = why

    def validate(self) -> float:
        """Mean loss of the held-out images with the parameters of the model; NaN if there are none."""
        total, count = 0.0, 0
        with no_grad():
            for images, variance, extra in self.feed.validation():
                total += float(self.model.objective(self.model.parameters, images, variance, extra)) * len(images)
                count += len(images)
        return total / count if count else math.nan

    def _enough(self) -> bool:
        """Whether to end before the last epoch."""
        losses = [loss for loss in self.history["validation"] if not math.isnan(loss)]
        if self.patience and losses and len(losses) > int(np.argmin(losses)) + self.patience:
            self.stop(f"the last {self.patience} validations were not better than one before")
        return bool(self.stopped)

    def _epoch(self) -> dict[str, float]:
        """The rest of this epoch and its validation; returns its record, which is now the last of the history."""
        epoch = len(self.history["epoch"]) + 1
        if not self.order:
            self.shuffled = self.rng.bit_generator.state
            self.order = self.feed.order(self.rng)
        start, images = time.perf_counter(), 0
        for batch in self.order[len(self.losses) :]:
            self._heed_signals()
            images += self._step(epoch, batch)
            if self.folder and self.save_every and self.step % self.save_every == 0:
                self.folder.save(self)
            if self.stopped:
                break
        speed = images / max(time.perf_counter() - start, 1e-9)
        train, validation = float(np.mean(self.losses)), math.nan
        if self.average is not None:
            self.model.parameters = self.averages
        if epoch % self.validate_every == 0 or epoch == self.epochs or self.stopped:
            validation = self._judge(epoch, train)
        self.seconds = time.perf_counter() - self._began
        row = epoch, self.step, train, validation, self.schedule(self.step - 1), self.seconds, speed
        record = dict(zip(COLUMNS, row, strict=True))
        for name, value in record.items():
            self.history[name].append(value)
        self.losses, self.order, self.shuffled = [], [], None
        if self.folder:
            self.folder.save(self)
        self._tell("epoch", record)
        self.model.parameters = self.parameters
        return record

    def _judge(self, epoch: int, train: float) -> float:
        """The loss that decides which parameters are the best."""
        loss = self.validate() if self.feed.validates else train
        _check(loss, "loss", f"the validation of epoch {epoch}", self.held_out)
        if hasattr(self.schedule, "observe"):
            self.schedule.observe(loss)
        if loss < self.best[0]:
            self.best = loss, self.model.parameters
            if self.folder:
                self.folder.save_best(self.model)
        return loss

    def _step(self, epoch: int, batch: Any) -> int:
        """One step of the optimiser; returns the number of images."""
        where = f"epoch {epoch}, step {len(self.losses) + 1} of {len(self.order)}"
        images, variance, extra = self.feed.batch(batch, self.rng)
        self.tensors = {name: Tensor(value) for name, value in self.parameters.items()}
        with layers.training(self.rng) as mode:
            loss = self.model.objective(self.tensors, images, variance, extra)
        value = float(loss.data)
        _check(value, "loss", where, batch)
        loss.backward()
        self.gradients = mode.gradients(self.tensors)
        norm = _norm(self.gradients)
        _check(norm, "gradient", where, batch)
        updates, self.state = self.optimiser.update(self.gradients, self.state, self.parameters)
        self.parameters = self.model.parameters = optim.apply(mode.updated(self.parameters), updates)
        if self.average is not None:  # after a few steps the mean must not remember the start
            decay = min(self.average, (1 + self.step) / (10 + self.step))
            self.averages = optim.average(self.averages, self.parameters, decay)
        self.losses.append(value)
        self.step += 1
        self.seconds = time.perf_counter() - self._began
        record = {"epoch": epoch, "step": self.step, "loss": value, "rate": self.schedule(self.step - 1)}
        self._tell("step", {**record, "gradient_norm": norm, **mode.notes})
        self.tensors, self.gradients = {}, {}
        return len(images)

    def _tell(self, what: str, *record: dict[str, Any]) -> None:
        for callback in self.callbacks:
            getattr(callback, what)(self, *record)

    def _heed_signals(self) -> None:
        """End, saved, if Ctrl-C or SIGTERM has come."""
        if not self._signals:
            return
        if self.folder:
            self.folder.save(self)
        if self._signals[0] == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        saved = f" and saved in {self.folder.path}: resume=True goes on" if self.folder else ": another run() goes on"
        raise KeyboardInterrupt(f"training interrupted after {self.step} steps{saved}")


def _norm(gradients: Mapping[str, Any]) -> float:
    """Norm over all gradients together."""
    squares = (backend.module(g).vdot(g, g).real.astype(np.float64) for g in gradients.values())
    return math.sqrt(float(sum(squares)))


def _check(value: float, what: str, where: str, rows: Any) -> None:
    """Raise an error that names the place and the images, unless the value is finite."""
    if not math.isfinite(value):
        some = f"images {numbers(rows)}" if np.size(rows) and np.ndim(rows) else "images that the source drew"
        raise FloatingPointError(
            f"Trainer got a {what} of {value} in {where}, {some}; the model has the best parameters until then: "
            "look for absurd values in these images, or train with a smaller rate"
        )
