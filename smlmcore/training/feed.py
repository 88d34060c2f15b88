"""Where the batches of a training come from: images in memory, or a source that draws new ones for each step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from .. import backend

Batch = tuple[Any, Any, Any]  # images, variance, and what the objective gets beside them


class Source(Protocol):
    """Draws images to train on, such as a model's own renders."""

    def draw(self, rng: np.random.Generator, n: int) -> Batch:
        """`n` images, their read-noise variance, and what the model's objective gets beside them (labels, or None)."""


class Images:
    """Batches of `images`; the share `held_out` is kept for validation, `turns`: flip and transpose at random."""

    def __init__(
        self, images: Any, variance: Any, batch: int, held_out: float, turns: bool, rng: np.random.Generator
    ) -> None:
        if len(images) == 0:
            raise ValueError("Trainer got no images; expected at least one to train on")
        _check(images)
        self.images, self.variance, self.turns = images, variance, turns
        order = rng.permutation(len(images))
        self.held_out, self.trained = np.split(order, [int(held_out * len(order))])
        self.steps = -(-len(self.trained) // batch)  # of an epoch
        self.validates = len(self.held_out) > 0

    def order(self, rng: np.random.Generator) -> list[np.ndarray]:
        """The numbers of the images of every batch of one epoch."""
        return np.array_split(rng.permutation(self.trained), self.steps)

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        """The images `rows`, their variance, and `rows` itself."""
        images, variance = self._rows(rows)
        if self.turns:
            flips = rng.random(3) < 0.5
            images, variance = _turn(images, *flips), _turn(variance, *flips)
        return images, variance, rows

    def validation(self) -> Iterator[Batch]:
        """The images held out, in blocks that fit into memory."""
        if self.validates:
            for rows in np.array_split(self.held_out, -(-len(self.held_out) // 1024)):
                yield *self._rows(rows), rows

    def _rows(self, rows: np.ndarray) -> tuple[Any, Any]:
        rows = backend.module(self.images).asarray(rows)
        return self.images[rows], self.variance[rows] if self.variance.ndim == self.images.ndim else self.variance


class Drawn:
    """Batches that `source` draws, `steps` in an epoch; validation is on the share `held_out` of as many more."""

    def __init__(self, source: Source, batch: int, steps: int, held_out: float, seed: int) -> None:
        self.images, self.variance = source, None
        self.trained = self.held_out = np.empty(0, int)
        self.steps, self._size, self._seed = steps, batch, seed
        self._validation_steps = max(1, round(held_out * steps)) if held_out else 0
        self.validates = self._validation_steps > 0

    def order(self, rng: np.random.Generator) -> list[int]:
        """The size of every batch of one epoch."""
        return [self._size] * self.steps

    def batch(self, size: int, rng: np.random.Generator) -> Batch:
        """`size` new images."""
        return self.images.draw(rng, size)

    def validation(self) -> Iterator[Batch]:
        """The same images every time, which training does not see: drawn by a generator of their own."""
        rng = np.random.default_rng([self._seed, 1])
        for _ in range(self._validation_steps):
            yield self.images.draw(rng, self._size)


def numbers(rows: np.ndarray) -> str:
    """The first ten of the numbers `rows`, in order."""
    return ", ".join(map(str, np.sort(rows)[:10])) + (", ..." if len(rows) > 10 else "")


def _check(images: Any) -> None:
    """Raise an error that names the images that cannot be trained on; single NaN pixels are masked by the losses."""
    xp = backend.module(images)
    flat = images.reshape(len(images), -1)
    for bad, what in ((xp.isinf(flat).any(1), "infinite pixels"), (xp.isnan(flat).all(1), "nothing but NaN")):
        if rows := np.flatnonzero(backend.to_cpu(bad)).tolist():
            raise ValueError(
                f"Trainer got {what} in images {numbers(rows)}: leave these images out, or correct them; "
                "NaN marks a single pixel that carries no information"
            )


def _turn(a: Any, flip_y: bool, flip_x: bool, transpose: bool) -> Any:
    """Images or a map of variance, flipped and (if square) transposed; a number stays."""
    if a.ndim < 2:
        return a
    a = a[..., ::-1, :] if flip_y else a
    a = a[..., ::-1] if flip_x else a
    return a.swapaxes(-1, -2) if transpose and a.shape[-1] == a.shape[-2] else a
