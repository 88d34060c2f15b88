"""A network that sees all emitters of a frame at once, however crowded, and knows how sure it is of each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

import numba
import numpy as np

from .. import data
from ..encoder import UNet
from ..fit.model import build, describe
from ..mapper.mixture import CHANNELS, COLUMNS, peaks
from .prior import Prior

INPUTS = 4
CELL = 16  # pixels: where only some of a frame is looked at, it is in such squares
BLOCK = 128  # pixels: larger frames are seen in squares of this size
AROUND = 8  # pixels around cells and blocks that the network sees as well
FEW = 1 / 5  # share of a block's cells up to which these are looked at one by one
FORMAT = 1  # of the file
ROWS = np.dtype([("frame", np.uint32), *((name, np.float32) for name in COLUMNS)])


class Network:
    """A U-Net that turns frames into a table of emitters, with its weights and what it has learned from.

    `parameters`: the weights, default drawn from `rng`; `prior`: the conditions it knows; `width`, `last`: channels of
    the U-Net, which has `depth` 2.

    >>> network = Network(Prior(), width=8, rng=np.random.default_rng(0))
    >>> found = network.find(np.random.default_rng(1).poisson(5.0, (2, 30, 40)), background=5.0, sigma=1.3)
    >>> found.dtype.names
    ('frame', 'x', 'y', 'photons', 'lpx', 'lpy', 'photons_error', 'p')
    """

    def __init__(
        self,
        prior: Prior,
        parameters: Mapping[str, Any] | None = None,
        width: int = 16,
        last: int = 16,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.prior, self.width, self.last = prior, width, last
        self.encoder = UNet(
            CHANNELS, inputs=INPUTS, depth=2, width=width, last=last, root=False, centre=0.0, spread=1.0
        )
        self.parameters = self.encoder.init(rng or np.random.default_rng(0)) if parameters is None else parameters

    def find(
        self,
        frames: np.ndarray,
        background: Any,
        variance: Any = 0.0,
        sigma: float = 1.3,
        threshold: float = 0.3,
        where: np.ndarray | None = None,
    ) -> np.ndarray:
        """Table of the emitters in `frames` (n, h, w) of photoelectrons, sorted by frame.

        `background`: photons per pixel, for all or (m, h, w) for m equal parts of the frames; `variance`: of the read
        noise, for all or each pixel.  `sigma`: width of the PSF, pixels.  `threshold`: least probability of an emitter.
        `where` (n, ceil(h / CELL), ceil(w / CELL)) of bool: squares to look at, default all.  `lpx`, `lpy`,
        `photons_error` are what the network thinks its standard errors to be.
        """
        n, h, w = frames.shape
        frames = np.asarray(frames, np.float32)
        behind = np.asarray(background, np.float32)
        behind = behind if behind.ndim == 3 else np.broadcast_to(behind, (1, h, w))
        read = np.broadcast_to(np.asarray(variance, np.float32), (h, w))
        cells = -(-h // CELL), -(-w // CELL)
        where = np.ones((n, *cells), bool) if where is None else whole(where)
        found = [np.empty(0, ROWS)]
        for group in _groups(where, h, w):
            size = group[0][2]
            pieces = np.empty((len(group), *size, INPUTS), np.float32)
            for piece, (frame, corner, _, _) in zip(pieces, group, strict=True):
                at = tuple(slice(a, a + s) for a, s in zip(corner, size, strict=True))
                part = frame * len(behind) // n
                _inputs(frames[frame][at], behind[part][at], read[at], np.float32(sigma), piece)
            image, rows = peaks(self.encoder.network(self.parameters, pieces), threshold)
            table = np.empty(len(rows), ROWS)
            frame, y, x = np.array([(frame, *corner) for frame, corner, _, _ in group])[image].T
            table["frame"] = frame
            for name, column in zip(COLUMNS, rows.T, strict=True):
                table[name] = column
            table["y"] += y
            table["x"] += x
            # each emitter where it is in the middle of what was seen, and only there
            inner = np.array([(*top, *bottom) for _, _, _, (top, bottom) in group])[image].T
            inside = (table["y"] >= inner[0] - 0.5) & (table["x"] >= inner[1] - 0.5)
            found.append(table[inside & (table["y"] < inner[2] - 0.5) & (table["x"] < inner[3] - 0.5)])
        table = np.concatenate(found)
        return table[np.lexsort((table["x"], table["y"], table["frame"]))]

    def save(self, path: str | PathLike[str]) -> None:
        """Write an .npz of the weights, in half precision, with the settings as JSON: no pickle."""
        about = {"format": FORMAT, "width": self.width, "last": self.last, "prior": describe(vars(self.prior))}
        weights = {name: np.asarray(value, np.float16) for name, value in self.parameters.items()}
        with data.atomic(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, about=np.array(json.dumps(about)), **weights)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Network:
        """The network in a file of `save`.  Raises `DataError` for a file that is no such one."""
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                weights = {name: file[name].astype(np.float32) for name in file.files if name != "about"}
            if about["format"] != FORMAT:
                raise data.DataError(f"{path}: is of format {about['format']}; this version reads format {FORMAT}")
            prior = Prior(**_tuples(build(about["prior"])))
            network = cls(prior, weights, about["width"], about["last"])
        except (AttributeError, ImportError, KeyError, TypeError, ValueError, OSError) as error:
            if isinstance(error, data.DataError | FileNotFoundError):
                raise
            raise data.DataError(f"{path}: is no network of `smlmcore localize --learn` ({error})") from None
        expected = network.encoder.init(np.random.default_rng(0))
        if {k: v.shape for k, v in expected.items()} != {k: v.shape for k, v in weights.items()}:
            raise data.DataError(f"{path}: its weights are not those of a network of width {about['width']}")
        return network


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON made lists, as tuples again."""
    kinds = {list: tuple, dict: _tuples}
    return {k: kinds.get(type(v), lambda v: v)(v) for k, v in values.items()}


@cache
def general() -> Network:
    """The network that comes with the package: see `docs/localize.md` for the conditions that it knows."""
    return Network.load(Path(__file__).with_name("general.npz"))


def whole(where: np.ndarray) -> np.ndarray:
    """`where` with all squares of a block as soon as more than FEW of them are to be looked at: it costs no more.

    >>> where = np.zeros((1, 8, 8), bool); where[0, :4, :4] = True
    >>> whole(where).all()
    np.True_
    """
    out, per = where.copy(), BLOCK // CELL
    for i in range(0, where.shape[1], per):
        for j in range(0, where.shape[2], per):
            block = out[:, i : i + per, j : j + per]
            block[block.mean((1, 2)) > FEW] = True
    return out


def _groups(where: np.ndarray, h: int, w: int) -> Iterator[list]:
    """What to look at, in lists of equal size: (frame, corner, size, (top left, bottom right) of its middle)."""
    waiting: dict[tuple, list] = {}
    per = BLOCK // CELL
    for frame, cells in enumerate(where):
        for i in range(0, cells.shape[0], per):
            for j in range(0, cells.shape[1], per):
                block = cells[i : i + per, j : j + per]
                if not block.any():
                    continue
                if block.all():
                    middles = [(i * CELL, j * CELL, (i + per) * CELL, (j + per) * CELL)]
                else:
                    middles = [
                        ((i + r) * CELL, (j + c) * CELL, (i + r + 1) * CELL, (j + c + 1) * CELL)
                        for r, c in zip(*np.nonzero(block), strict=True)
                    ]
                for top, left, bottom, right in middles:
                    middle = (top, left), (min(bottom, h), min(right, w))
                    # at the border the view is moved inside, so that most views are of one size
                    size = min(bottom - top + 2 * AROUND, h), min(right - left + 2 * AROUND, w)
                    corner = tuple(
                        int(np.clip(a - AROUND, 0, m - s)) for a, m, s in zip((top, left), (h, w), size, strict=True)
                    )
                    group = waiting.setdefault(size, [])
                    group.append((frame, corner, size, middle))
                    if len(group) * size[0] * size[1] >= BLOCK * BLOCK:
                        yield waiting.pop(size)
    yield from waiting.values()


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _inputs(frame, background, variance, sigma, out):
    """What the network sees, (h, w, 4): the signal on two scales, its noise, and the width of the PSF.

    With r = sqrt(counts + variance + 3/8), whose noise is 1/2 everywhere, and r0 the same of the background: (r - r0)
    / 3, log(1 + max(r - r0, 0)), log(r0) - 1, 3 log(sigma) - 1.  A pixel that is NaN shows the background.
    """
    h, w = frame.shape
    zero, one, root = np.float32(0), np.float32(1), np.float32(0.375)
    width = np.float32(3) * np.log(sigma) - one
    for i in numba.prange(h):
        for j in range(w):
            quiet = np.sqrt(max(background[i, j], zero) + variance[i, j] + root)
            signal = np.sqrt(max(frame[i, j] + variance[i, j], zero) + root) - quiet
            if not np.isfinite(signal):
                signal = zero
            out[i, j, 0] = signal / np.float32(3)
            out[i, j, 1] = np.log(one + max(signal, zero))
            out[i, j, 2] = np.log(quiet) - one
            out[i, j, 3] = width


def inputs(frames: np.ndarray, background: Any, variance: Any, sigma: Any) -> np.ndarray:
    """What the network sees of `frames` (n, h, w); `sigma` for all or each."""
    frames = np.asarray(frames, np.float32)
    background, variance = (np.broadcast_to(np.asarray(v, np.float32), frames.shape) for v in (background, variance))
    out = np.empty((*frames.shape, INPUTS), np.float32)
    for i, s in enumerate(np.broadcast_to(np.asarray(sigma, np.float32), len(frames))):
        _inputs(frames[i], background[i], variance[i], s, out[i])
    return out
