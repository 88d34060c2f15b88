"""A network for pixels on large images: tile by tile, each with the surroundings that matter for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .. import backend
from ..autograd import no_grad
from ..backend import Array
from .prepare import prepare


def tiled(
    encoder: Any,
    p: Mapping[str, Any],
    images: Array,
    tile: int = 128,
    skip: Callable[[Array], Array] | float | None = None,
    batch: int = 8,
) -> Array:
    """encoder(p, images) for a `UNet` of 2 axes, in tiles of `tile` pixels: the same numbers, but for rounding.

    Every tile is computed with a border of `encoder.reach` pixels (rounded up to the network's grid), so no seam is
    seen. `tile` is rounded up to a multiple of 2^depth.  `skip` leaves tiles without signal out: their features are
    those of an image without any (the network's answer to zeros, at its centre).  It is a number, the largest value
    that the prepared input of such a tile, border included, reaches; or a function of prepared tiles (k, y, x,
    inputs) -> bool (k,), True to leave out.  `batch`: tiles at a time.

    >>> import numpy as np
    >>> from smlmcore.encoder import UNet
    >>> net = UNet(2, depth=1, width=8)
    >>> p, images = net.init(np.random.default_rng(0)), np.random.default_rng(1).poisson(5.0, (1, 40, 50))
    >>> bool(np.allclose(tiled(net, p, images, tile=16), net(p, images), atol=1e-4))
    True
    """
    if encoder.axes != 2 or tile < 1 or batch < 1:
        raise ValueError(f"tiled got {encoder}, tile {tile}, batch {batch}; expected 2 axes and at least 1 of both")
    x = prepare(encoder, images, p["head.bias"].dtype)
    xp, step = backend.module(x), 1 << encoder.depth
    tile, border = (-(-v // step) * step for v in (tile, encoder.reach))
    n, h, w, inputs = x.shape
    rows, columns = -(-h // tile), -(-w // tile)
    out = xp.empty((n, encoder.outputs, h, w), x.dtype)
    corners = [(i, r * tile, c * tile) for i in range(n) for r in range(rows) for c in range(columns)]
    # the padding up to the network's grid counts as image, as it does for the whole image
    high, wide = (-(-s // step) * step for s in (h, w))

    def window(i: int, y: int, left: int) -> tuple:
        """The tile with its border, cut at the edges of the padded image, and where the tile begins in it."""
        top, start = max(0, y - border), max(0, left - border)
        bottom, stop = min(high, y + tile + border), min(wide, left + tile + border)
        piece = xp.zeros((bottom - top, stop - start, inputs), x.dtype)
        inside = x[i, top : min(bottom, h), start : min(stop, w)]
        piece[: inside.shape[0], : inside.shape[1]] = inside
        return piece, y - top, left - start

    with no_grad():
        quiet = None
        if skip is not None:
            middle = -(-border // step) * step
            quiet = encoder.network(p, xp.zeros((1, 2 * middle + step, 2 * middle + step, inputs), x.dtype))
            quiet = quiet[0, middle, middle]
        groups: dict[tuple[int, int], list] = {}
        for corner in corners:
            piece, y0, x0 = window(*corner)
            if skip is not None:
                empty = (skip(piece[None])[0]) if callable(skip) else bool(piece.max() <= skip)
                if empty:
                    i, y, left = corner
                    out[i, :, y : y + tile, left : left + tile] = quiet[:, None, None]
                    continue
            groups.setdefault(piece.shape[:2], []).append((corner, piece, y0, x0))
            if len(groups[piece.shape[:2]]) == batch:
                _place(encoder, p, groups.pop(piece.shape[:2]), tile, out)
        for group in groups.values():
            _place(encoder, p, group, tile, out)
    return out


def _place(encoder: Any, p: Mapping[str, Any], group: list, tile: int, out: Array) -> None:
    """Compute the pieces of `group`, of one size, and write their tiles."""
    xp = backend.module(out)
    features = encoder.network(p, xp.stack([piece for _, piece, _, _ in group]))
    for ((i, y, left), _, y0, x0), f in zip(group, features, strict=True):
        target = out[i, :, y : y + tile, left : left + tile]
        target[...] = xp.moveaxis(f[y0 : y0 + target.shape[1], x0 : x0 + target.shape[2]], -1, 0)
