"""Draw tables of localizations as images: density, colour by a column, several channels; save them with a scale bar."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
import scipy

from ..files import atomic
from ..threads import share

BANDS = 32  # of rows of the image: threads never write to the same one, and the order of additions is always the same
FARTHEST = 4.0  # standard deviations at which a Gaussian ends
COLOURS = 255  # of a density in a PNG; the last of 256 is white, for the scale bar
INFERNO = (  # every sixteenth colour of it
    "000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754 "
    "d24644 e45a31 f1731d f98e09 fcac11 f9cb35 f2ea69 fcffa4"
)
Region = tuple[float, float, float, float]


def render(
    table: np.ndarray,
    shape: tuple[int, int],
    zoom: float = 8,
    blur: float | str | None = None,
    region: Region | None = None,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Image float32 of `table` (x, y), of `zoom` pixels per pixel of the camera, for a field of `shape` (h, w).

    Each localization inside adds one, or its number of `weights` (n,), to the image, spread by `blur`:

        number      a Gaussian of so many pixels of the camera, one for all; 0 draws the plain histogram
        None        the same, of the median of lpx and lpy (0 where the table has none)
        "own"       a Gaussian of its own lpx and lpy, at least half a pixel of the image
        "shifted"   averaged shifted histogram (Scott 1985, Ann. Stat. 13, 1024), of infinitely many shifts:
                    a triangle of one pixel of the image to either side

    `region`: (x0, y0, x1, y1), edges in pixels of the camera, default the whole field (-0.5, -0.5, w - 0.5, h - 0.5).
    Rows outside or with a NaN are left out.  Raises `ValueError` for values that make no image.

    >>> rows = np.array([(1.0, 0.0)], [("x", float), ("y", float)])
    >>> render(rows, (2, 3), zoom=1)
    array([[0., 1., 0.], [0., 0., 0.]], dtype=float32)
    """
    number = blur is None or (not isinstance(blur, str) and 0 <= blur < np.inf)
    if not (0 < zoom < np.inf and len(shape) == 2 and min(shape) > 0 and (number or blur in ("own", "shifted"))):
        raise ValueError(
            f"render got shape {tuple(shape)}, zoom {zoom}, blur {blur}; expected (height, width), a positive zoom and "
            'a blur of at least 0, "own" or "shifted"'
        )
    x0, y0, x1, y1 = (-0.5, -0.5, shape[1] - 0.5, shape[0] - 0.5) if region is None else region
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"render got region {region}; expected x0, y0, x1, y1 with x0 < x1 and y0 < y1")
    h, w = (math.ceil(n * zoom) for n in (y1 - y0, x1 - x0))
    x, y = ((np.asarray(table[name], float) - low) * zoom for name, low in (("x", x0), ("y", y0)))
    inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)  # False for NaN
    weights = None if weights is None else np.asarray(weights, np.float32)[inside]
    if isinstance(blur, str):
        errors = [table[name][inside] for name in ("lpx", "lpy") if name in table.dtype.names]
        return _spread(x[inside], y[inside], errors, (h, w), zoom, blur, weights)
    index = y[inside].astype(np.int64) * w + x[inside].astype(np.int64)
    image = np.bincount(index, weights, minlength=h * w).reshape(h, w).astype(np.float32)
    if blur is None:
        errors = np.concatenate([table[name] for name in ("lpx", "lpy") if name in table.dtype.names] or [[]])
        errors = errors[np.isfinite(errors)]
        blur = float(np.median(errors)) if errors.size else 0.0
    # "reflect" keeps the sum: what leaves the field at the border comes back in.
    return scipy.ndimage.gaussian_filter(image, blur * zoom, mode="reflect") if blur > 0 else image


def colour(
    table: np.ndarray,
    shape: tuple[int, int],
    zoom: float = 8,
    by: str = "z",
    limits: tuple[float, float] | None = None,
    colormap: str = "turbo",
    **options: Any,
) -> np.ndarray:
    """RGB image (h, w, 3) uint8: brightness is the density of `render(..., **options)`, hue the mean of column `by`.

    `by`: "z", "frame" (time) or any other column; `limits`: the values at both ends of `colormap`, default its 1 % and
    99 % quantiles.
    """
    from matplotlib import colormaps

    if by not in (table.dtype.names or ()):
        raise ValueError(f"colour got by={by!r}; the table has {', '.join(table.dtype.names or ())}")
    values = table[by].astype(np.float64)
    rows, values = table[np.isfinite(values)], values[np.isfinite(values)]
    low, high = limits or (np.quantile(values, (0.01, 0.99)) if len(values) else (0, 1))
    place = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    density = render(rows, shape, zoom, **options)
    mean = render(rows, shape, zoom, weights=place, **options) / np.maximum(density, 1e-12)
    return _eight_bits(colormaps[colormap](mean)[..., :3] * stretch(density)[..., None])


def composite(images: Sequence[np.ndarray], colours: Sequence[str] = ("cyan", "magenta", "yellow")) -> np.ndarray:
    """RGB image (h, w, 3) uint8 of several channels, densities (h, w) each, in one colour each, added.

    >>> composite([np.eye(2), 1 - np.eye(2)], ["red", "lime"])[0].tolist()
    [[255, 0, 0], [0, 255, 0]]
    """
    from matplotlib.colors import to_rgb

    if len(images) > len(colours):
        raise ValueError(f"composite got {len(images)} images and {len(colours)} colours; give one for each")
    return _eight_bits(sum(stretch(i)[..., None] * to_rgb(c) for i, c in zip(images, colours, strict=False)))


def stretch(image: np.ndarray, quantile: float = 0.99) -> np.ndarray:
    """`image` from 0 to 1, where 1 is the `quantile` of its pixels that are not zero."""
    bright = image[image > 0]
    if bright.size > 1_000_000:  # a sample does
        bright = bright[:: bright.size // 1_000_000]
    top = float(np.quantile(bright, quantile)) if bright.size else 1.0
    return np.clip(image / max(top, 1e-30), 0, 1)


def save_image(
    path: str | os.PathLike[str],
    image: np.ndarray,
    pixel_size: float | None = None,
    bar: bool = True,
    colormap: str = "inferno",
) -> None:
    """Write an image as `.png`, to look at, or as `.tif`, to measure in; `pixel_size` of this image in µm.

    PNG: a density (h, w) is stretched to `colormap`, RGB (h, w, 3) is kept; with `bar` and a `pixel_size`, a scale bar
    of a round length, about a fifth of the width, lies in the lower right corner (its length is in the file's text
    "Scale bar").  TIFF: the values as they are, with the resolution in its tags and no bar.
    """
    path = Path(path)
    if path.suffix.lower() in (".tif", ".tiff"):
        import tifffile

        tags: dict[str, Any] = {"photometric": "rgb" if image.ndim == 3 else "minisblack"}
        if pixel_size:
            tags |= {"resolution": (1e4 / pixel_size, 1e4 / pixel_size), "resolutionunit": "CENTIMETER"}
        with atomic(path) as temporary:
            tifffile.imwrite(temporary, image, **tags)
        return
    if path.suffix.lower() != ".png":
        raise ValueError(f"save_image got {path.name}; expected a name that ends in .png or .tif")
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    if image.ndim == 3:
        pixels, white = image.copy(), 255
    else:  # a byte for each pixel, and a palette whose last colour is the bar's
        pixels, white = (stretch(image) * (COLOURS - 1) + 0.5).astype(np.uint8), COLOURS
    text = PngInfo()
    text.add_text("Software", "smlmcore")
    if bar and pixel_size:
        length = scale_bar(pixels.shape[1] * pixel_size)
        h, w = pixels.shape[:2]
        thick, margin = max(1, h // 100), max(2, min(h, w) // 40)
        columns = slice(w - margin - round(length / pixel_size), w - margin)
        pixels[h - margin - thick : h - margin, columns] = white
        text.add_text("Scale bar", f"{length:g} µm")
    picture = Image.fromarray(pixels)
    if image.ndim == 2:
        picture.putpalette([*palette(colormap).ravel().tolist(), 255, 255, 255])
    with atomic(path) as temporary:
        picture.save(temporary, "png", pnginfo=text)


def palette(colormap: str) -> np.ndarray:
    """`COLOURS` colours (n, 3) uint8 of a colour map of matplotlib's, which loads slowly and so serves all but one."""
    at = np.linspace(0, 1, COLOURS)
    if colormap == "inferno":
        known = np.array([list(bytes.fromhex(c)) for c in INFERNO.split()])
        return np.stack([np.interp(at, np.linspace(0, 1, len(known)), c) for c in known.T], 1).round().astype(np.uint8)
    from matplotlib import colormaps

    return _eight_bits(colormaps[colormap](at)[:, :3])


def scale_bar(width: float) -> float:
    """A round length, 1, 2 or 5 times a power of ten, of at most a quarter of `width`.

    >>> scale_bar(12.8), scale_bar(100)
    (2.0, 20.0)
    """
    power = 10.0 ** math.floor(math.log10(width / 4))
    return max(n * power for n in (1.0, 2.0, 5.0) if n * power <= width / 4 * (1 + 1e-9))


def _eight_bits(values: np.ndarray) -> np.ndarray:
    return (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)


def _spread(x, y, errors, shape, zoom, blur, weights) -> np.ndarray:
    """Image of spots of their own width, or of triangles."""
    image = np.zeros(shape, np.float32)
    x, y = x.astype(np.float32) - np.float32(0.5), y.astype(np.float32) - np.float32(0.5)
    band = np.clip(y * (BANDS / shape[0]), 0, BANDS - 1).astype(np.uint16)
    order = np.argsort(band, kind="stable")
    starts = np.searchsorted(band[order], np.arange(BANDS + 1))
    weights = np.ones(1, np.float32) if weights is None else weights[order]
    if blur == "shifted":
        share(partial(_triangles, x[order], y[order], weights, starts, image), BANDS, part=1)
        return image
    if len(errors) < 2:
        raise ValueError('render got blur "own" for a table without lpx, lpy; give a number of pixels instead')
    sigma = []
    for error in errors:
        own = error.astype(np.float32) * np.float32(zoom)
        known = np.isfinite(own)
        usual = float(np.median(own[known])) if known.any() else 1.0
        # what is not known at all would cover the image: it has the usual width, and none more than ten times it
        own[~known] = usual
        sigma.append(np.clip(own, 0.5, max(0.5, 10 * usual)).astype(np.float32)[order])
    farthest = int(FARTHEST * float(sigma[1].max(initial=0.5))) + 1
    share(partial(_gaussians, x[order], y[order], *sigma, weights, starts, farthest, image), BANDS, part=1)
    return image


@numba.njit(cache=True)
def _bands_near(first, last, farthest, h):
    """First and end of the bands whose localizations reach into the rows `first` to `last` from `farthest` away."""
    return max(0, int((first - farthest) * BANDS / h) - 1), min(BANDS, int((last + farthest) * BANDS / h) + 2)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _gaussians(x, y, sigma_x, sigma_y, weights, starts, farthest, image, begin, end):
    """Add Gaussians; a band of rows has one owner, who takes all that reach into it."""
    h, w = image.shape
    one, half = np.float32(1), np.float32(0.5)
    for band in range(begin, end):
        first, last = -(-h * band // BANDS), -(-h * (band + 1) // BANDS)
        column, line = np.empty(w, np.float32), np.empty(2 * farthest + 1)
        low, high = _bands_near(first, last, farthest, h)
        for k in range(starts[low], starts[high]):
            reach = int(np.float32(FARTHEST) * sigma_y[k])
            top, bottom = max(first, int(y[k] + half) - reach), min(last, int(y[k] + half) + reach + 1)
            if top >= bottom:
                continue
            ax, ay = half / (sigma_x[k] * sigma_x[k]), half / (sigma_y[k] * sigma_y[k])
            wide = int(np.float32(FARTHEST) * sigma_x[k])
            left, right = int(x[k] + half) - wide, int(x[k] + half) + wide + 1
            # weights beyond the image count for the norm, so that a spot at the border is cut, not squeezed
            norm = np.float32(0)
            for j in range(left, right):
                d = j - x[k]
                e = np.exp(-ax * d * d)
                norm += e
                if 0 <= j < w:
                    column[j] = e
            total, start = np.float32(0), int(y[k] + half) - reach
            for i in range(2 * reach + 1):
                d = start + i - y[k]
                line[i] = np.exp(-ay * d * d)
                total += line[i]
            scale = (weights[k] if len(weights) > 1 else weights[0]) * one / (norm * total)
            for i in range(top, bottom):
                e = scale * line[i - start]
                for j in range(max(left, 0), min(right, w)):
                    image[i, j] += e * column[j]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _triangles(x, y, weights, starts, image, begin, end):
    h, w = image.shape
    for band in range(begin, end):
        first, last = -(-h * band // BANDS), -(-h * (band + 1) // BANDS)
        low, high = _bands_near(first, last, 1, h)
        for k in range(starts[low], starts[high]):
            i, j = int(np.floor(y[k])), int(np.floor(x[k]))
            t, s = y[k] - np.float32(i), x[k] - np.float32(j)
            value = weights[k] if len(weights) > 1 else weights[0]
            for a in range(2):
                for b in range(2):
                    # beyond the border the pixel next to it takes the share
                    row, column = min(max(i + a, 0), h - 1), min(max(j + b, 0), w - 1)
                    if first <= row < last:
                        share = (t if a else np.float32(1) - t) * (s if b else np.float32(1) - s)
                        image[row, column] += value * share
