"""The encoder that looks at no image: numbers learned for each image, or an object learned as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import backend
from ..autograd import op, plain
from ..pictures import sections


class Table:
    """A learned row for each image, `shape` (images, ...), looked up by the index of the image.

    With `window` the table is one object of `shape` and the index is the first corner (axes,) of a sub-volume of that
    size: an object larger than memory allows to render at once is learned piece by piece.  `initial`: where learning
    starts, a number or an array that broadcasts to `shape`; `spread`: standard deviation of what is added to it.

    The gradient of rows or windows that are looked up together adds up.  An image that was never trained on has a row
    that has never learned: train with held_out=0, which is the default of `Trainer` for this encoder.

    >>> table = Table((4, 2), initial=[1.0, 5.0])
    >>> table(table.init(np.random.default_rng(0)), np.array([3, 0]))
    array([[1., 5.],
           [1., 5.]], dtype=float32)
    >>> volume = Table((8, 9), window=(2, 3))
    >>> volume(volume.init(np.random.default_rng(0)), np.array([[0, 0], [6, 6]])).shape
    (2, 2, 3)
    """

    by_index = True  # it is called with the images' indices instead of the images

    def __init__(
        self, shape: Sequence[int], window: Sequence[int] | None = None, initial: Any = 0.0, spread: float = 0.0
    ) -> None:
        self.shape = tuple(int(s) for s in shape)
        self.window = None if window is None else tuple(int(s) for s in window)
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"encoder.Table got shape {shape}; expected (images, ...) of at least 1 each")
        fits = self.window is None or (
            len(self.window) == len(self.shape)
            and all(1 <= w <= n for w, n in zip(self.window, self.shape, strict=True))
        )
        if not fits:
            raise ValueError(f"encoder.Table got window {window} for an object of {self.shape}; expected one that fits")
        self.initial, self.spread = np.asarray(backend.to_cpu(initial), np.float32), float(spread)
        try:
            np.broadcast_to(self.initial, self.shape)
        except ValueError:
            raise ValueError(
                f"encoder.Table got initial values of shape {self.initial.shape}; expected one that broadcasts to "
                f"{self.shape}"
            ) from None

    def configuration(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-ready."""
        return {
            "shape": list(self.shape),
            "window": None if self.window is None else list(self.window),
            "initial": self.initial.tolist(),
            "spread": self.spread,
        }

    def init(self, rng: np.random.Generator) -> dict[str, Any]:
        """The learned parameter at the start: `table`."""
        table = np.broadcast_to(self.initial, self.shape).copy()
        return {"table": table + self.spread * rng.standard_normal(self.shape, np.float32) if self.spread else table}

    def pictures(self, p: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The object of which windows are taken, or the first of the images that the rows are."""
        shown = p["table"] if self.window else p["table"][0]
        while shown.ndim > 2 and len(shown) == 1:  # channels
            shown = shown[0]
        return sections("object" if self.window else "first image", shown) if shown.ndim in (2, 3) else {}

    def __call__(self, p: Mapping[str, Any], index: Any) -> Any:
        """Rows (n, ...) of `index` (n,), or sub-volumes (n, *window) at the corners `index` (n, axes); integers."""
        table = p["table"]
        xp = backend.module(plain(table))
        index = backend.to_cpu(index)
        corners = self.window is not None
        limits = [n - w for n, w in zip(self.shape, self.window, strict=True)] if corners else [self.shape[0] - 1]
        expected = (len(index), len(self.shape)) if corners else (len(index),)
        if index.dtype.kind not in "iu" or index.shape != expected:
            what = f"(n, {len(self.shape)}), corners of windows" if corners else "(n,), numbers of images"
            raise ValueError(
                f"encoder.Table got an index of {index.dtype} and shape {index.shape}; expected integers {what}"
            )
        if index.size and not ((index >= 0).all() and (index <= limits).all()):
            raise ValueError(
                f"encoder.Table got an index from {index.min(0).tolist()} to {index.max(0).tolist()}; expected 0 "
                f"to {limits}: the table is {self.shape}, make a larger one for more images"
            )
        return _gather(table, corners=index, window=self.window) if corners else table[xp.asarray(index)]


@op
def _gather(table, *, corners, window):
    xp = backend.module(table)
    where = [tuple(slice(i, i + w) for i, w in zip(c, window, strict=True)) for c in corners.tolist()]
    out = xp.empty((len(where), *window), table.dtype)
    for i, at in enumerate(where):
        out[i] = table[at]
    return out, (xp, table.shape, where)


@_gather.vjp
def _(saved, gradient):
    xp, shape, where = saved
    out = xp.zeros(shape, gradient.dtype)
    for i, at in enumerate(where):
        out[at] += gradient[i]
    return (out,)
