"""Dropout (Srivastava et al. 2014, JMLR)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import backend
from ..autograd import Tensor
from .mode import current


@dataclass(frozen=True)
class Dropout:
    """In training, each number becomes 0 with probability `rate`, and the others grow by 1 / (1 - rate).

    With `whole`, whole channels of an image are dropped: for convolutions, whose neighbouring pixels are alike.  In
    inference nothing changes.  The draws come from `with layers.training(rng):`.

    >>> Dropout(0.5)({}, np.ones(3))
    array([1., 1., 1.])
    """

    rate: float = 0.5
    whole: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ValueError(f"{self} is not possible; rate is at least 0 and below 1")

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> dict[str, np.ndarray]:
        """No parameters."""
        return {}

    def __call__(self, p: Mapping[str, Any], x: Any) -> Any:
        """Apply to x, an array or Tensor (n, ..., channel)."""
        mode = current()
        if mode is None or self.rate == 0:
            return x
        if mode.rng is None:
            raise ValueError(f"{self} needs random numbers in training; use layers.training(np.random.default_rng(0))")
        shape = (x.shape[0], *(1 for _ in x.shape[1:-1]), x.shape[-1]) if self.whole else x.shape
        keep = mode.rng.random(shape, np.float32) >= self.rate
        xp = backend.module(x.data if isinstance(x, Tensor) else x)
        return x * xp.asarray(keep * (1 / (1 - self.rate)), x.dtype)
