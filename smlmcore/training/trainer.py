"""Training of a model on images alone, or on images that a source draws."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import layers, optim
from ..autograd import Tensor, no_grad
from .callback import Callback
from .feed import Drawn, Images, Source

COLUMNS = ("epoch", "step", "train", "validation", "rate", "seconds", "images_per_second")


class Trainer:
    """Fit the learned parameters of `model` to `images` (n, h, w) in photoelectrons; `run()` returns the history.

    AdamW with warm-up and cosine decay to zero, clipped gradients and, with a `symmetric` renderer, flips and
    transposes of the images, which the physics does not change.  A share `held_out` of the images is never trained on
    (default 0.2; 0 for an encoder `by_index`, which knows only images that it was trained on); after every epoch the
    loss there, or else that of training, decides which parameters are best, and these the model has in the end.
    A loss that is not finite ends the training: `run` raises a `FloatingPointError` that names epoch, step and images,
    and the model has the best parameters until then.  Training lets the process keep freed memory
    (`layers.keep_freed`).

    `images` may be a source instead, any object with `draw(rng, n) -> (images, variance, extra)`: then every step of
    `steps` in an epoch trains on `batch` new images, and the loss of a share `held_out` (default 0.05) of as many more
    decides.  `model` is a `FitModel` or anything with `parameters`, a flat mapping of arrays, and
    `objective(p, images, variance, extra)`, the loss to make small; `extra` is what the source gave, else the numbers
    of the images.

    `variance`: read-noise variance in squared photoelectrons, scalar, (h, w) or (n, h, w).  `epochs`: passes over the
    training images, `batch`: images in a step, `rate`: the highest learning rate, `decay`: weight decay, `clip`:
    largest gradient norm, `progress`: show a bar if the output is a terminal.  Same seed, same result.

    `callbacks` are told of every step and epoch (`Callback`), and may look at `model`, `images`, `variance`, the
    numbers `trained` and `held_out`, `optimiser` and its `state`, `rng`, `history` and `step`, the steps so far.

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
        warmup: int = 200,
        decay: float = 1e-3,
        clip: float = 1.0,
        held_out: float | None = None,
        seed: int = 0,
        progress: bool = True,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        drawn, by_index = hasattr(images, "draw"), getattr(model, "by_index", False)
        held_out = (0.05 if drawn else 0.0 if by_index else 0.2) if held_out is None else held_out
        if epochs < 1 or batch < 1 or steps < 1 or not 0 <= held_out < 1:
            raise ValueError(
                f"Trainer got epochs={epochs}, batch={batch}, steps={steps}, held_out={held_out}; "
                "expected epochs, batch and steps >= 1, 0 <= held_out < 1"
            )
        self.model, self.epochs, self.progress, self.callbacks = model, epochs, progress, tuple(callbacks)
        self.rng = np.random.default_rng(seed)
        if not model.parameters:
            model.init(self.rng)
        if drawn:
            self.feed = Drawn(images, batch, steps, held_out, seed)
        else:
            turns = not by_index and getattr(getattr(model, "renderer", None), "symmetric", False)
            self.feed = Images(*model.check(images, variance), batch, held_out, turns, self.rng)
        self.images, self.variance = self.feed.images, self.feed.variance
        self.trained, self.held_out = self.feed.trained, self.feed.held_out
        steps = epochs * self.feed.steps
        self.schedule = optim.cosine(rate, steps, warmup=min(warmup, steps // 5))
        self.optimiser = optim.chain(optim.clip_global_norm(clip), optim.adamw(self.schedule, decay))
        self.state = self.optimiser.init(model.parameters)
        self.history: dict[str, list[float]] = {name: [] for name in COLUMNS}
        self.step, self.stopped = 0, ""
        self.tensors: dict[str, Tensor] = {}
        self.gradients: dict[str, Any] = {}

    def run(self) -> dict[str, list[float]]:
        """Train and leave the best parameters in the model; returns the history, a list of each of COLUMNS by epoch."""
        layers.keep_freed()
        best = (np.inf, self.model.parameters)
        start = time.perf_counter()
        self._tell("start")
        bar = tqdm(total=self.epochs, desc="training", unit="epoch", disable=None if self.progress else True)
        try:
            while len(self.history["epoch"]) < self.epochs and not self.stopped:
                record = self._epoch(start)
                best = min(best, (record["validation"], self.model.parameters), key=lambda pair: pair[0])
                self._tell("epoch", record)
                bar.update()
                bar.set_postfix({name: f"{record[name]:.4f}" for name in ("train", "validation")})
        finally:
            bar.close()
            self.model.parameters = best[1]
            self._tell("end")
        return self.history

    def stop(self, why: str) -> None:
        """End the training after this step or epoch; `stopped` says why."""
        self.stopped = why

    def validate(self) -> float:
        """Mean loss in nats per pixel on the held-out images; NaN if there are none."""
        total, count = 0.0, 0
        with no_grad():
            for images, variance, extra in self.feed.validation():
                total += float(self.model.objective(self.model.parameters, images, variance, extra)) * len(images)
                count += len(images)
        return total / count if count else float("nan")

    def _epoch(self, start: float) -> dict[str, float]:
        """Train for an epoch and validate; returns its record, which is now the last of the history."""
        epoch, losses, images = len(self.history["epoch"]) + 1, [], 0
        begin = time.perf_counter()
        order = self.feed.order(self.rng)
        for i, rows in enumerate(order, 1):
            losses.append(self._step(epoch, rows, f"step {i} of {len(order)}"))
            images += len(rows) if np.ndim(rows) else rows
            if self.stopped:
                break
        speed = images / (time.perf_counter() - begin)
        train, validation = float(np.mean(losses)), self.validate()
        if len(self.held_out) or not np.isnan(validation):
            _check(validation, f"the validation of epoch {epoch}", self.held_out)
        else:
            validation = train
        rate = self.schedule(self.step - 1)
        record = dict(
            zip(COLUMNS, (epoch, self.step, train, validation, rate, time.perf_counter() - start, speed), strict=True)
        )
        for name, value in record.items():
            self.history[name].append(value)
        return record

    def _step(self, epoch: int, rows: Any, where: str) -> float:
        images, variance, extra = self.feed.batch(rows, self.rng)
        parameters = self.model.parameters
        self.tensors = {name: Tensor(value) for name, value in parameters.items()}
        with layers.training(self.rng) as mode:
            loss = self.model.objective(self.tensors, images, variance, extra)
        value = float(loss.data)
        _check(value, f"epoch {epoch}, {where}", rows)
        loss.backward()
        self.gradients = mode.gradients(self.tensors)
        updates, self.state = self.optimiser.update(self.gradients, self.state, parameters)
        self.model.parameters = optim.apply(mode.updated(parameters), updates)
        self.step += 1
        if self.callbacks:
            norm = float(np.sqrt(sum(float((g * g).sum(dtype=np.float64)) for g in self.gradients.values())))
            record = {"epoch": epoch, "step": self.step, "loss": value, "rate": self.schedule(self.step - 1)}
            self._tell("step", {**record, "gradient_norm": norm, **mode.notes})
        self.tensors, self.gradients = {}, {}
        return value

    def _tell(self, what: str, *record: dict[str, Any]) -> None:
        for callback in self.callbacks:
            getattr(callback, what)(self, *record)


def _check(loss: float, where: str, rows: Any) -> None:
    """Raise an error that names the place and the images, unless the loss is finite."""
    if not np.isfinite(loss):
        some = f"{rows} drawn images"
        if np.ndim(rows):
            some = "images " + ", ".join(map(str, np.sort(rows)[:10])) + (", ..." if len(rows) > 10 else "")
        raise FloatingPointError(
            f"Trainer got a loss of {loss} in {where}, {some}; the model has the best parameters until then: "
            "look for absurd values in these images, or train with a smaller rate"
        )
