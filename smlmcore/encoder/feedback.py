"""Feedback: the encoder also sees what the renderer has learned so far, a template, a kernel or a pupil."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import backend, layers
from ..autograd import Tensor, ops
from ..backend import Array
from ..layers.chain import part

KINDS = ("concatenate", "crop", "dense", "difference")


class Feedback:
    """An encoder whose input or output is joined with the renderer's `state`, a learned image (h, w), without gradient.

    `kind`: "concatenate" gives the state to `encoder` (of one more input channel) as a channel of every image, "crop"
    does so with its central part, of the images' size; "difference" gives it the images minus the state, scaled to each
    image by least squares; "dense" appends `outputs` numbers, a dense layer of the state of `shape`, to its features
    (n, c).
    `fit.FitModel` asks its renderer for `state(p)`.

    >>> from smlmcore.encoder import UNet
    >>> encoder = Feedback(UNet(3, inputs=2, depth=1, width=8), "crop")
    >>> p = encoder.init(np.random.default_rng(0))
    >>> encoder(p, np.ones((4, 10, 10)), np.ones((14, 12))).shape
    (4, 3, 10, 10)
    """

    def __init__(self, encoder: Any, kind: str, shape: tuple[int, int] | None = None, outputs: int = 8) -> None:
        if kind not in KINDS or outputs < 1 or (kind == "dense" and shape is None):
            raise ValueError(
                f"encoder.Feedback got kind {kind!r}, shape {shape}, outputs {outputs}; expected kind one of "
                f"{', '.join(KINDS)}, outputs >= 1, and for 'dense' the shape of the state"
            )
        self.encoder, self.kind, self.outputs = encoder, kind, outputs
        self.shape = None if shape is None else tuple(int(s) for s in shape)
        self.dense = layers.Linear(int(np.prod(self.shape)), outputs) if kind == "dense" else None

    def __repr__(self) -> str:
        return f"Feedback({self.encoder!r}, {self.kind!r})"

    def configuration(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"encoder": self.encoder, "kind": self.kind, "shape": self.shape, "outputs": self.outputs}

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> dict[str, np.ndarray]:
        """Draw the parameters: "encoder...." and, for "dense", "dense.weight", "dense.bias"."""
        p = {f"encoder.{k}": v for k, v in self.encoder.init(rng, dtype).items()}
        return p if self.dense is None else p | {f"dense.{k}": v for k, v in self.dense.init(rng, dtype).items()}

    def __call__(self, p: Mapping[str, Any], images: Array, state: Any) -> Any:
        """Features of `images` (n, y, x) or (n, channel, y, x), with the `state` (h, w)."""
        state = state.data if isinstance(state, Tensor) else state
        xp = backend.module(images, state, name="encoder.Feedback")
        inner = part(p, "encoder")
        if self.kind == "dense":
            if state.shape != self.shape:
                raise ValueError(f"{self} got a state of shape {state.shape}; expected {self.shape}")
            features = self.encoder(inner, images)
            own = self.dense(part(p, "dense"), state.reshape(1, -1).astype(features.dtype))
            return ops.concatenate([features, ops.broadcast_to(own, (features.shape[0], self.outputs))], axis=1)
        images = images[:, None] if images.ndim == 3 else images
        if self.kind == "crop":
            state = _central(state, images.shape[2:])
        if state.shape != images.shape[2:]:
            raise ValueError(
                f"{self} got a state of shape {state.shape} for images {images.shape}; expected equal ones"
            )
        if self.kind == "difference":
            share = (images * state).sum((2, 3), keepdims=True) / xp.maximum((state * state).sum(), 1e-12)
            return self.encoder(inner, images - share * state)
        channel = xp.broadcast_to(state.astype(images.dtype), (len(images), 1, *state.shape))
        return self.encoder(inner, xp.concatenate([images, channel], axis=1))


def _central(state: Array, shape: tuple[int, int]) -> Array:
    """The central part of `state` of `shape`, with zeros around where it is smaller."""
    xp = backend.module(state)
    short = [max(0, s - t) for s, t in zip(shape, state.shape, strict=True)]
    state = xp.pad(state, [(s // 2, s - s // 2) for s in short])
    return state[tuple(slice((t - s) // 2, (t - s) // 2 + s) for s, t in zip(shape, state.shape, strict=True))]
