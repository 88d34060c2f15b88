"""Where labels can bind: structures as sites (m, 2), x and y in pixels, and labels on them.

Curves are dense rows of sites, `STEP` pixels apart; `label` takes some of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

STEP = 0.05


def points(shape: tuple[int, int], count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` sites, uniform over the field of `shape` (height, width).

    >>> points((32, 48), 5, np.random.default_rng(0)).shape
    (5, 2)
    """
    return rng.uniform(-0.5, (shape[1] - 0.5, shape[0] - 0.5), (count, 2))


def lines(shape: tuple[int, int], count: int, rng: np.random.Generator, length: float | None = None) -> np.ndarray:
    """Sites along `count` straight lines of random place and direction, `length` pixels (default: half the field).

    >>> lines((32, 48), 2, np.random.default_rng(0)).shape[1]
    2
    """
    length = 0.5 * min(shape) if length is None else length
    along = np.arange(-length / 2, length / 2, STEP)[:, None]
    angle = rng.uniform(0, np.pi, count)
    direction = np.stack([np.cos(angle), np.sin(angle)], 1)
    return inside((points(shape, count, rng)[:, None] + along * direction[:, None]).reshape(-1, 2), shape)


def rings(shape: tuple[int, int], count: int, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Sites on `count` circles of `radius` pixels at random places.

    >>> site = rings((64, 64), 1, 6.0, np.random.default_rng(0))
    >>> site.shape[1]
    2
    """
    if not 0 < radius < np.inf:
        raise ValueError(f"rings got radius {radius}; expected a number of pixels above 0")
    angle = np.arange(0, 2 * np.pi, STEP / radius)
    circle = radius * np.stack([np.cos(angle), np.sin(angle)], 1)
    return inside((points(shape, count, rng)[:, None] + circle).reshape(-1, 2), shape)


def grid(shape: tuple[int, int], spacing: float) -> np.ndarray:
    """Sites on a square grid, centred in the field, `spacing` pixels apart.

    >>> grid((20, 30), 10.0).shape
    (6, 2)
    """
    if not 0 < spacing < np.inf:
        raise ValueError(f"grid got spacing {spacing}; expected a number of pixels above 0")
    x, y = (np.arange((n - 1) % spacing / 2, n - 0.5, spacing) for n in (shape[1], shape[0]))
    return np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)


def nuclear_pores(
    shape: tuple[int, int],
    count: int,
    rng: np.random.Generator,
    radius: float = 0.55,
    corners: int = 8,
    labels: int = 4,
) -> np.ndarray:
    """Sites of `count` nuclear pores: `labels` at each of `corners` corners of a ring of `radius` pixels.

    Nup96 lies on a ring of 107 nm across with four copies a corner: 0.535 pixels of 0.1 µm (Thevathasan et al. 2019,
    Nature Methods 16, 1045).

    >>> nuclear_pores((64, 64), 3, np.random.default_rng(0)).shape[0] <= 96
    True
    """
    start = rng.uniform(0, 2 * np.pi, count)
    angle = start[:, None] + 2 * np.pi * np.arange(corners) / corners
    corner = points(shape, count, rng)[:, None] + radius * np.stack([np.cos(angle), np.sin(angle)], -1)
    return inside(np.repeat(corner.reshape(-1, 2), labels, axis=0), shape)


def siemens_star(shape: tuple[int, int], spokes: int, rng: np.random.Generator, count: int = 20_000) -> np.ndarray:
    """`count` sites, uniform over the bright sectors of a star of `spokes` spokes that fills the field.

    >>> star = siemens_star((64, 64), 8, np.random.default_rng(0), 1000)
    >>> len(star)
    1000
    """
    if spokes < 1:
        raise ValueError(f"siemens_star got {spokes} spokes; expected 1 or more")
    radius = 0.45 * min(shape) * np.sqrt(rng.uniform(0, 1, count))
    angle = (rng.integers(0, spokes, count) + 0.5 * rng.uniform(0, 1, count)) * 2 * np.pi / spokes
    centre = (np.array([shape[1], shape[0]]) - 1) / 2
    return centre + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


def from_table(rows: np.ndarray) -> np.ndarray:
    """Sites at the x, y of a table of localizations.

    >>> from smlmcore.data import table
    >>> from_table(table(frame=[0, 0], x=[1.0, 2.0], y=[3.0, 4.0]))
    array([[1., 3.],
           [2., 4.]])
    """
    return np.stack([rows["x"], rows["y"]], 1).astype(float)


def from_image(image: Any, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` sites with the density of a non-negative `image` (h, w), uniform within a pixel.

    Raises `ValueError` for an image that is empty, negative or all zero.

    >>> np.rint(from_image(np.eye(3), 4, np.random.default_rng(0))[:, 0]).max() <= 2
    np.True_
    """
    density = np.asarray(image, float)
    if density.ndim != 2 or not density.sum() > 0 or density.min() < 0:
        raise ValueError(f"from_image got an image of shape {density.shape}; expected (h, w), not negative, not all 0")
    pixel = rng.choice(density.size, count, p=density.ravel() / density.sum())
    y, x = np.divmod(pixel, density.shape[1])
    return np.stack([x, y], 1) + rng.uniform(-0.5, 0.5, (count, 2))


def label(sites: np.ndarray, rng: np.random.Generator, density: float = 1.0, linker: float = 0.0) -> np.ndarray:
    """Labels (k, 2): each site has one with chance `density`, off by a normal distance `linker` (pixels) on each axis.

    >>> label(np.zeros((1000, 2)), np.random.default_rng(0), density=0.5).shape[0] < 600
    True
    """
    if not 0 <= density <= 1 or not 0 <= linker < np.inf:
        raise ValueError(f"label got density {density} and linker {linker}; expected a chance and a number of pixels")
    taken = sites[rng.random(len(sites)) < density]
    return taken + linker * rng.standard_normal(taken.shape)


def inside(sites: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The sites that lie within the field."""
    return sites[((sites > -0.5) & (sites < (shape[1] - 0.5, shape[0] - 0.5))).all(1)]
