"""Data sets of images to learn from: where they come from, how they are split, batched and augmented.

`images` are (n, h, w), `targets` clean or corresponding images of the same shape, `labels` named columns (n,), of which
`x` and `y` are positions in pixels that every augmentation moves along.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..files import DataError
from .movie import open_movie

Augment = Callable[["ImageSet", np.random.Generator], "ImageSet"]


@dataclass
class ImageSet:
    """Images with what belongs to each of them.

    >>> images = np.arange(24.0).reshape(2, 3, 4)
    >>> one = ImageSet(images, labels={"x": np.array([1.0, 2.0])})[[1]]
    >>> one.images.shape, one.labels["x"]
    ((1, 3, 4), array([2.]))
    """

    images: np.ndarray
    targets: np.ndarray | None = None
    labels: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.images.ndim not in (3, 4):
            raise ValueError(f"ImageSet got images of shape {self.images.shape}; expected (n, h, w) or (n, d, h, w)")
        if self.targets is not None and self.targets.shape != self.images.shape:
            raise ValueError(
                f"ImageSet got images {self.images.shape}, targets {self.targets.shape}; expected one shape"
            )
        for name, column in self.labels.items():
            if len(column) != len(self.images):
                raise ValueError(f"ImageSet got {len(column)} labels {name} of {len(self.images)} images")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Any) -> ImageSet:
        """The images of a slice, a mask or an array of numbers."""
        labels = {name: column[rows] for name, column in self.labels.items()}
        return ImageSet(self.images[rows], None if self.targets is None else self.targets[rows], labels)

    def split(self, *fractions: float, seed: int = 0) -> list[ImageSet]:
        """Disjoint random parts of the given fractions, the last of the rest: `train, test = images.split(0.8)`.

        >>> [len(part) for part in ImageSet(np.zeros((10, 2, 2))).split(0.6, 0.2)]
        [6, 2, 2]
        """
        if not fractions or min(fractions) < 0 or sum(fractions) > 1:
            raise ValueError(f"ImageSet.split got fractions {fractions}; expected positive ones, 1 or less together")
        order = np.random.default_rng(seed).permutation(len(self))
        edges = np.rint(np.cumsum([0, *fractions]) * len(self)).astype(int)
        return [self[np.sort(part)] for part in np.split(order, edges[1:])]

    def batches(
        self, size: int, seed: int = 0, augment: Sequence[Augment] = (), prefetch: int = 2
    ) -> Iterator[ImageSet]:
        """One pass over all images in random order, `size` at a time, `prefetch` batches made ahead in a thread.

        Augmentations are applied in order; the same `seed` gives the same batches.

        >>> [len(b) for b in ImageSet(np.zeros((5, 2, 2))).batches(2, augment=[flips])]
        [2, 2, 1]
        """
        if size < 1 or prefetch < 1:
            raise ValueError(f"ImageSet.batches got size {size} and prefetch {prefetch}; expected at least 1 of each")
        order = np.random.default_rng(seed).permutation(len(self))
        seeds = np.random.SeedSequence(seed).spawn(-(-len(self) // size))

        def make(k: int) -> ImageSet:
            batch, rng = self[order[k * size : (k + 1) * size]], np.random.default_rng(seeds[k])
            for change in augment:
                batch = change(batch, rng)
            return batch

        with ThreadPoolExecutor(1) as pool:
            ahead = [pool.submit(make, k) for k in range(min(prefetch, len(seeds)))]
            for k in range(len(seeds)):
                batch = ahead.pop(0).result()
                if k + prefetch < len(seeds):
                    ahead.append(pool.submit(make, k + prefetch))
                yield batch


# ---------------------------------------------------------------- where they come from


def from_file(path: str | os.PathLike) -> ImageSet:
    """All frames of a movie file, label `frame`."""
    with open_movie(path) as movie:
        return ImageSet(movie.read(), labels={"frame": np.arange(len(movie))})


def from_image(image: Any, count: int, rng: np.random.Generator, shift: float = 1.0) -> ImageSet:
    """One image (h, w) resampled `count` times under sub-pixel shifts uniform in ±`shift` pixels, labels `x`, `y`.

    The image is moved by (x, y) by the Fourier shift theorem, so it counts as periodic.

    >>> moved = from_image(np.eye(8), 3, np.random.default_rng(0))
    >>> moved.images.shape, sorted(moved.labels)
    ((3, 8, 8), ['x', 'y'])
    """
    image = np.asarray(image, float)
    if image.ndim != 2:
        raise ValueError(f"from_image got an image of shape {image.shape}; expected (h, w)")
    x, y = rng.uniform(-shift, shift, (2, count))
    spectrum = np.fft.fft2(image)
    factors = []
    for size, move in ((image.shape[0], y), (image.shape[1], x)):
        frequency = np.fft.fftfreq(size)
        phase = np.exp(-2j * np.pi * frequency * move[:, None])
        if size % 2 == 0:  # the Nyquist term of a real signal
            phase[:, size // 2] = np.cos(np.pi * move)
        factors.append(phase)
    images = np.fft.ifft2(spectrum * factors[0][:, :, None] * factors[1][:, None, :]).real
    return ImageSet(images.astype(np.float32), labels={"x": x, "y": y})


def pairs(folder: str | os.PathLike, noisy: str = "low", clean: str = "high") -> ImageSet:
    """Noisy images and clean targets from two sub-folders with the same file names, label `frame` in each file.

    The layout of Hagen et al. 2021 (GigaScience 10, giab032): a folder for each structure, in which pairs of files or
    stacks have equal names under a folder of low and one of high signal.  Files without a partner are an error.
    """
    folder = Path(folder)
    names = [{p.name for p in (folder / part).glob("*") if p.is_file()} for part in (noisy, clean)]
    if not names[0] or names[0] != names[1]:
        alone = ", ".join(sorted(names[0] ^ names[1])[:3]) or "no files"
        raise DataError(f"{folder}: {noisy}/ and {clean}/ differ ({alone}); expected the same file names in both")
    found = {part: [from_file(folder / part / name) for name in sorted(names[0])] for part in (noisy, clean)}
    shapes = {one.images.shape[1:] for part in found.values() for one in part}
    if len(shapes) > 1:
        raise DataError(f"{folder}: holds images of shapes {sorted(shapes)}; expected one")
    images, targets = (np.concatenate([one.images for one in found[part]]) for part in (noisy, clean))
    if images.shape != targets.shape:
        raise DataError(f"{folder}: has {len(images)} noisy and {len(targets)} clean images; expected pairs")
    return ImageSet(images, targets, {"frame": np.concatenate([one.labels["frame"] for one in found[noisy]])})


def sub_volumes(
    stack: Any, count: int, shape: tuple[int, int, int], rng: np.random.Generator, target: Any = None
) -> ImageSet:
    """`count` random boxes (d, h, w) of a stack (z, y, x), an array or a `Movie`, labels `z`, `y`, `x` of their corner.

    The EPFL deconvolution sets are one stack of data and one of truth: give the second as `target`.

    >>> boxes = sub_volumes(np.zeros((9, 16, 16)), 5, (4, 8, 8), np.random.default_rng(0))
    >>> boxes.images.shape
    (5, 4, 8, 8)
    """
    sizes = stack.shape
    if len(sizes) != 3 or any(n > m for n, m in zip(shape, sizes, strict=True)) or min(shape) < 1:
        raise ValueError(f"sub_volumes got boxes {shape} of a stack {tuple(sizes)}; expected (z, y, x), not larger")
    corners = np.stack([rng.integers(0, m - n + 1, count) for n, m in zip(shape, sizes, strict=True)], 1)

    def cut(source: Any) -> np.ndarray:
        boxes = []
        for z, y, x in corners:
            planes = source[z : z + shape[0]] if isinstance(source, np.ndarray) else source.read(z, z + shape[0])
            boxes.append(planes[:, y : y + shape[1], x : x + shape[2]])
        return np.stack(boxes) if boxes else np.empty((0, *shape))

    return ImageSet(cut(stack), None if target is None else cut(target), dict(zip("zyx", corners.T, strict=True)))


# ---------------------------------------------------------------- augmentation


def flips(batch: ImageSet, rng: np.random.Generator) -> ImageSet:
    """Each image is flipped left to right, and top to bottom, with chance ½; `x`, `y` follow."""
    for axis, name in ((-1, "x"), (-2, "y")):
        chosen = rng.random(len(batch)) < 0.5
        batch = _apply(batch, chosen, lambda a, axis=axis: np.flip(a, axis))
        if name in batch.labels:
            last = batch.images.shape[axis] - 1
            batch.labels[name] = np.where(chosen, last - batch.labels[name], batch.labels[name])
    return batch


def rotations(batch: ImageSet, rng: np.random.Generator) -> ImageSet:
    """Each image is turned by 0, 90, 180 or 270 degrees, square images only; `x`, `y` follow."""
    h, w = batch.images.shape[-2:]
    if h != w:
        raise ValueError(f"rotations got images of {h} x {w}; expected square ones, or use flips")
    turns = rng.integers(0, 4, len(batch))
    for k in (1, 2, 3):
        batch = _apply(batch, turns == k, lambda a, k=k: np.rot90(a, k, (-2, -1)))
    if {"x", "y"} <= set(batch.labels):
        x, y = batch.labels["x"], batch.labels["y"]
        batch.labels["x"] = np.choose(turns, [x, y, w - 1 - x, w - 1 - y])
        batch.labels["y"] = np.choose(turns, [y, w - 1 - x, w - 1 - y, x])
    return batch


def pixel_shift(most: int) -> Augment:
    """Each image is moved by whole pixels, up to `most` along x and y, its edge repeated; `x`, `y` follow.

    >>> moved = pixel_shift(2)(ImageSet(np.eye(5)[None], labels={"x": np.array([2.0])}), np.random.default_rng(0))
    >>> moved.images.shape
    (1, 5, 5)
    """

    def change(batch: ImageSet, rng: np.random.Generator) -> ImageSet:
        moves = rng.integers(-most, most + 1, (len(batch), 2))
        h, w = batch.images.shape[-2:]
        rows = np.clip(np.arange(h) - moves[:, 1:], 0, h - 1)
        columns = np.clip(np.arange(w) - moves[:, :1], 0, w - 1)

        def moved(a: np.ndarray) -> np.ndarray:
            lead = (1,) * (a.ndim - 3)
            down = np.take_along_axis(a, rows.reshape(-1, *lead, h, 1), -2)
            return np.take_along_axis(down, columns.reshape(-1, *lead, 1, w), -1)

        labels = dict(batch.labels)
        labels |= {k: labels[k] + moves[:, i] for i, k in enumerate("xy") if k in labels}
        return ImageSet(moved(batch.images), None if batch.targets is None else moved(batch.targets), labels)

    return change


def noise(camera: Any) -> Augment:
    """Each image, taken as expected photons, is exposed by `camera`; where there is no target, it becomes one."""

    def change(batch: ImageSet, rng: np.random.Generator) -> ImageSet:
        exposed = camera.photoelectrons(camera.expose(np.maximum(batch.images, 0), rng, np.float32))
        return ImageSet(exposed, batch.images if batch.targets is None else batch.targets, dict(batch.labels))

    return change


def _apply(batch: ImageSet, chosen: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> ImageSet:
    def some(a: np.ndarray) -> np.ndarray:
        out = a.copy()
        out[chosen] = change(a[chosen])
        return out

    targets = None if batch.targets is None else some(batch.targets)
    return ImageSet(some(batch.images), targets, dict(batch.labels))


def show(images: ImageSet, count: int = 8) -> Any:
    """A figure (matplotlib) of the first `count` images, their targets below, positions `x`, `y` marked.

    >>> show(ImageSet(np.zeros((3, 8, 8)), labels={"x": np.ones(3), "y": np.ones(3)})).get_axes()[0].get_title()
    '0'
    """
    from ..plot import dataset

    return dataset(images, count)
