"""Supplementary pictures: what the parts of a model have to show.

A part that has something to show (a learned template, a kernel, a pupil) has a method `pictures(p)` of its learned
parameters `p`, or a PSF one without arguments, that returns pictures by name: images (y, x), and bars, mappings of
labels to numbers.  `fit.FitModel.pictures` gathers them for `fit.check_model`, `training.Board` and reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .autograd import plain
from .backend import to_cpu

Picture = np.ndarray | Mapping[str, float]


def sections(name: str, values: Any) -> dict[str, np.ndarray]:
    """`values` (y, x) as a picture, or those (z, y, x) as two, xy and xz through the middle.

    >>> list(sections("kernel", np.ones((3, 5, 5))))
    ['kernel xy', 'kernel xz']
    """
    values = to_cpu(plain(values))
    if values.ndim == 2:
        return {name: values}
    return {f"{name} xy": values[len(values) // 2], f"{name} xz": values[:, values.shape[1] // 2]}


def middle(images: Any) -> np.ndarray:
    """Images (n, y, x) as they are, and the middle planes (n, y, x) of volumes (n, z, y, x).

    >>> middle(np.arange(3.0).reshape(1, 3, 1, 1)).ravel()
    array([1.])
    """
    images = to_cpu(plain(images))
    return images if images.ndim == 3 else images[:, images.shape[1] // 2]


def residual(images: np.ndarray, prediction: np.ndarray, variance: Any = 0.0) -> np.ndarray:
    """(images - prediction) / σ with σ² = prediction + `variance`, 1 where that is not positive.

    >>> residual(np.array([6.0]), np.array([4.0]))
    array([1.])
    """
    squared = np.maximum(prediction, 0) + to_cpu(variance)
    return (images - prediction) / np.sqrt(np.where(squared > 0, squared, 1))


def limits(image: np.ndarray) -> tuple[float, float]:
    """Smallest and largest finite value of `image`; 0 and 1 if there is none.

    >>> limits(np.array([1.0, np.nan, 3.0]))
    (1.0, 3.0)
    """
    finite = image[np.isfinite(image)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
