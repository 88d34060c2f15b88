"""Training of a model on images alone."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import backend, layers, optim
from ..autograd import Tensor, no_grad
from ..fit.model import FitModel


class Trainer:
    """Fit the learned parameters of `model` to `images` (n, h, w) in photoelectrons; `run()` returns the history.

    AdamW with warm-up and cosine decay to zero, clipped gradients and, with a `symmetric` renderer, flips and
    transposes of the images, which the physics does not change.  A share `held_out` of the images is never trained on
    (default 0.2; 0 for an encoder `by_index`, which knows only images that it was trained on); after every epoch the
    loss there, or else that of training, decides which parameters are best, and these the model has in the end.
    A loss that is not finite ends the training: `run` raises a `FloatingPointError` that names epoch, step and images,
    and the model has the best parameters until then.  Training lets the process keep freed memory
    (`layers.keep_freed`).

    `variance`: read-noise variance in squared photoelectrons, scalar, (h, w) or (n, h, w).  `epochs`: passes over the
    training images, `batch`: images in a step, `rate`: the highest learning rate, `decay`: weight decay, `clip`:
    largest gradient norm, `progress`: show a bar if the output is a terminal.  Same seed, same result.

    >>> import smlmcore as sc
    >>> model = sc.fit.gaussian2d((7, 7), width=8, hidden=16)
    >>> images = np.random.default_rng(0).poisson(5.0, (40, 7, 7))
    >>> history = Trainer(model, images, epochs=2, batch=16).run()
    >>> len(history["validation"])
    2
    """

    def __init__(
        self,
        model: FitModel,
        images: Any,
        variance: Any = 0.0,
        *,
        epochs: int = 20,
        batch: int = 256,
        rate: float = 2e-3,
        warmup: int = 200,
        decay: float = 1e-3,
        clip: float = 1.0,
        held_out: float | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        held_out = (0.0 if model.by_index else 0.2) if held_out is None else held_out
        if epochs < 1 or batch < 1 or not 0 <= held_out < 1:
            raise ValueError(
                f"Trainer got epochs={epochs}, batch={batch}, held_out={held_out}; "
                "expected epochs >= 1, batch >= 1, 0 <= held_out < 1"
            )
        self.model, self.epochs, self.batch, self.progress = model, epochs, batch, progress
        self.rng = np.random.default_rng(seed)
        if not model.parameters:
            model.init(self.rng)
        self.images, self.variance = model.check(images, variance)
        self.turns = not model.by_index and getattr(model.renderer, "symmetric", False)
        if len(self.images) == 0:
            raise ValueError("Trainer got no images; expected at least one to train on")
        order = self.rng.permutation(len(self.images))
        self.held_out, self.trained = np.split(order, [int(held_out * len(order))])
        steps = epochs * -(-len(self.trained) // batch)
        schedule = optim.cosine(rate, steps, warmup=min(warmup, steps // 5))
        self.optimiser = optim.chain(optim.clip_global_norm(clip), optim.adamw(schedule, decay))

    def run(self) -> dict[str, list[float]]:
        """Train, leave the best parameters in the model; returns `epoch`, `train`, `validation`, `seconds` by epoch."""
        history: dict[str, list[float]] = {"epoch": [], "train": [], "validation": [], "seconds": []}
        layers.keep_freed()
        state = self.optimiser.init(self.model.parameters)
        best = (np.inf, self.model.parameters)
        start = time.perf_counter()
        bar = tqdm(range(self.epochs), desc="training", unit="epoch", disable=None if self.progress else True)
        try:
            for epoch in bar:
                losses = []
                batches = np.array_split(self.rng.permutation(self.trained), -(-len(self.trained) // self.batch))
                for step, rows in enumerate(batches, 1):
                    loss, state = self._step(rows, state)
                    _check(loss, f"epoch {epoch + 1}, step {step} of {len(batches)}", rows)
                    losses.append(loss)
                train = float(np.mean(losses))
                validation = self.validate() if len(self.held_out) else train
                _check(validation, f"the validation of epoch {epoch + 1}", self.held_out)
                best = min(best, (validation, self.model.parameters), key=lambda pair: pair[0])
                seconds = time.perf_counter() - start
                for name, value in zip(history, (epoch + 1, train, validation, seconds), strict=True):
                    history[name].append(value)
                bar.set_postfix(train=f"{train:.4f}", validation=f"{validation:.4f}")
        finally:
            self.model.parameters = best[1]
        return history

    def validate(self) -> float:
        """Mean loss in nats per pixel on the held-out images."""
        with no_grad():
            blocks = np.array_split(self.held_out, -(-len(self.held_out) // 1024))
            sums = [
                float(self.model.objective(self.model.parameters, *self._rows(rows), rows)) * len(rows)
                for rows in blocks
            ]
        return sum(sums) / len(self.held_out)

    def _step(self, rows: np.ndarray, state: Any) -> tuple[float, Any]:
        images, variance = self._augmented(rows) if self.turns else self._rows(rows)
        tensors = {name: Tensor(value) for name, value in self.model.parameters.items()}
        with layers.training(self.rng) as mode:
            loss = self.model.objective(tensors, images, variance, rows)
        loss.backward()
        updates, state = self.optimiser.update(mode.gradients(tensors), state, self.model.parameters)
        self.model.parameters = optim.apply(mode.updated(self.model.parameters), updates)
        return float(loss.data), state

    def _rows(self, rows: np.ndarray) -> tuple[Any, Any]:
        rows = backend.module(self.images).asarray(rows)
        return self.images[rows], self.variance[rows] if self.variance.ndim == self.images.ndim else self.variance

    def _augmented(self, rows: np.ndarray) -> tuple[Any, Any]:
        """Images and variance of `rows`, all flipped and (if square) transposed in one random way."""
        images, variance = self._rows(rows)
        flip_y, flip_x, transpose = self.rng.random(3) < 0.5

        def turn(a: Any) -> Any:
            if a.ndim < 2:
                return a
            a = a[..., ::-1, :] if flip_y else a
            a = a[..., ::-1] if flip_x else a
            return a.swapaxes(-1, -2) if transpose and a.shape[-1] == a.shape[-2] else a

        return turn(images), turn(variance)


def _check(loss: float, where: str, rows: np.ndarray) -> None:
    """Raise an error that names the place and the images, unless the loss is finite."""
    if not np.isfinite(loss):
        some = ", ".join(map(str, np.sort(rows)[:10])) + (", ..." if len(rows) > 10 else "")
        raise FloatingPointError(
            f"Trainer got a loss of {loss} in {where}, images {some}; the model has the best parameters until then: "
            "look for absurd values in these images, or train with a smaller rate"
        )
