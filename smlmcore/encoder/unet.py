"""The U-Net: features for every pixel, from the pixel's surroundings at several scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import layers
from ..autograd import ops
from ..backend import Array
from ..layers.chain import part
from .prepare import prepare

NORMS = {None: None, "batch": layers.BatchNorm, "group": layers.GroupNorm, "layer": layers.LayerNorm}
SKIPS = ("concatenate", "add", "none")


class UNet:
    """Images (n, y, x) or (n, inputs, y, x) -> features (n, outputs, y, x) (Ronneberger et al. 2015, MICCAI).

    Level i has `width` 2^i channels: a block of two 3x3 convolutions, then 2x2 maximum pooling, down to level `depth`.
    On the way back pixels are doubled, joined with the level's features on the way down by `skip` ("concatenate", "add"
    after a 1x1 convolution, "none"), and pass a block again; a 1x1 convolution ends it.  Images of any size are padded
    with zeros to a multiple of 2^depth, after the input transform, and the result is cropped.

    `last`: channels of the last, full-resolution block, where more than half of the time goes (default `width`);
    `axes` 3: volumes (n, z, y, x) or (n, inputs, z, y, x); `norm`: None, "batch", "group" or "layer", between
    convolution and activation; `dropout`: probability to lose a channel after each block, in training; `activation`:
    see `layers.activation`.  `root`: the input is (√(max(a, 0) + 3/8) - `centre`) / `spread`, else (a - `centre`) /
    `spread`; where these two are None they are mean and standard deviation of each image.

    >>> net = UNet(2, depth=2, width=8)
    >>> net(net.init(np.random.default_rng(0)), np.ones((3, 13, 10))).shape
    (3, 2, 13, 10)
    """

    def __init__(
        self,
        outputs: int,
        *,
        inputs: int = 1,
        depth: int = 3,
        width: int = 32,
        last: int | None = None,
        axes: int = 2,
        skip: str = "concatenate",
        norm: str | None = None,
        dropout: float = 0.0,
        activation: str = "gelu",
        root: bool = True,
        centre: float | None = None,
        spread: float | None = None,
    ) -> None:
        last = width if last is None else last
        if min(outputs, inputs, width, last) < 1 or depth < 0 or axes not in (2, 3):
            raise ValueError(
                f"encoder.UNet got outputs {outputs}, inputs {inputs}, depth {depth}, width {width}, last {last}, axes "
                f"{axes}; expected depth >= 0, axes 2 or 3, and at least 1 of all others"
            )
        if skip not in SKIPS or norm not in NORMS:
            raise ValueError(
                f"encoder.UNet got skip {skip!r} and norm {norm!r}; expected skip one of {', '.join(SKIPS)} and norm "
                "None, 'batch', 'group' or 'layer'"
            )
        self.settings = {
            "outputs": outputs, "inputs": inputs, "depth": depth, "width": width, "last": last, "axes": axes, "skip":
            skip, "norm": norm, "dropout": dropout, "activation": activation, "root": root, "centre": centre,
            "spread": spread,
        }  # fmt: skip
        self.outputs, self.inputs, self.depth, self.axes, self.skip = outputs, inputs, depth, axes, skip
        self.root, self.centre, self.spread = root, centre, spread
        conv = layers.Conv2d if axes == 2 else layers.Conv3d

        def block(source: int, target: int) -> layers.chain:
            parts = []
            for channels in (source, target):
                if norm is None:
                    parts.append(conv(channels, target, activation=activation))
                else:
                    parts += [conv(channels, target), NORMS[norm](target), layers.Activation(activation)]
            return layers.chain(*parts, *([layers.Dropout(dropout, whole=True)] if dropout else []))

        sizes = [width << level for level in range(depth + 1)]
        ends = [last, *sizes[1:]] if depth else [last]  # channels of each level on the way back
        self.down = [block(inputs if level == 0 else sizes[level - 1], sizes[level]) for level in range(depth + 1)]
        self.reduce = [conv(ends[level + 1], sizes[level], 1) for level in range(depth)] if skip == "add" else []
        extra = {"concatenate": [c + s for c, s in zip(ends[1:], sizes, strict=False)], "add": sizes, "none": ends[1:]}
        self.up = [block(extra[skip][level], ends[level]) for level in range(depth)]
        self.head = conv(ends[0] if depth else width, outputs, 1)
        self.parts = {
            **{f"down.{i}": layer for i, layer in enumerate(self.down)},
            **{f"reduce.{i}": layer for i, layer in enumerate(self.reduce)},
            **{f"up.{i}": layer for i, layer in enumerate(self.up)},
            "head": self.head,
        }

    def __repr__(self) -> str:
        return f"UNet({', '.join(f'{k}={v!r}' for k, v in self.settings.items())})"

    def configuration(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-ready."""
        return dict(self.settings)

    @property
    def reach(self) -> int:
        """How many pixels away a pixel of the input can matter for a feature: half the receptive field."""
        own = 2  # two 3x3 convolutions
        down = sum(own << level for level in range(self.depth + 1)) + sum(1 << level for level in range(self.depth))
        return down + sum(own << level for level in range(self.depth)) + (1 << self.depth)

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> dict[str, np.ndarray]:
        """Draw the parameters: "down.0.0.weight" ... "head.bias"; the head starts at a tenth."""
        p = {
            f"{name}.{key}": value
            for name, layer in self.parts.items()
            for key, value in layer.init(rng, dtype).items()
        }
        p["head.weight"] *= p["head.weight"].dtype.type(0.1)
        return p

    def __call__(self, p: Mapping[str, Any], images: Array) -> Any:
        """Features (n, outputs, y, x) of `images` (n, y, x) or (n, inputs, y, x), a plain array of any real dtype.

        Pixels that are NaN or infinite count as their image's median.
        """
        x = prepare(self, images, p["head.bias"].dtype)
        return ops.moveaxis(self.network(p, x), -1, 1)

    def network(self, p: Mapping[str, Any], x: Any) -> Any:
        """The network alone: x (n, y, x, inputs), array or Tensor -> (n, y, x, outputs)."""
        size = x.shape[1:-1]
        short = [-s % (1 << self.depth) for s in size]
        if any(short):
            x = ops.pad(x, [(0, 0), *((0, s) for s in short), (0, 0)])
        kept = []
        for level, block in enumerate(self.down):
            x = block(part(p, f"down.{level}"), x)
            if level < self.depth:
                kept.append(x)
                x = layers.max_pool(x)
        for level in reversed(range(self.depth)):
            if self.skip == "concatenate":
                x = layers.upsample(x, kept[level])
            elif self.skip == "add":
                x = layers.upsample(self.reduce[level](part(p, f"reduce.{level}"), x)) + kept[level]
            else:
                x = layers.upsample(x)
            x = self.up[level](part(p, f"up.{level}"), x)
        x = self.head(part(p, "head"), x)
        return x[(slice(None), *(slice(0, s) for s in size))] if any(short) else x
