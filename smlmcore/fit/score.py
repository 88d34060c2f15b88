"""How good fits are against the truth: errors by parameter, and how far they are from the Cramér–Rao bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import backend
from ..psf.base import PSF
from .result import Result


@dataclass(frozen=True)
class Score:
    """Errors of n fits, in arrays (p,) in the order of `names`; `print` shows them as a table.

    `rmse`: root-mean-square error, `bias`: mean error, `crlb`: root-mean-square bound, `ratio`: root mean square of
    `deviation` (n, p), which is error / CRLB of each fit: 1 at the bound, known to 1 / sqrt(2 n).  `failed`: fits that
    found no finite parameters, or that have no finite bound; no number counts them.
    """

    names: tuple[str, ...]
    rmse: np.ndarray
    bias: np.ndarray
    crlb: np.ndarray
    deviation: np.ndarray = field(repr=False)
    failed: int = 0

    @property
    def ratio(self) -> np.ndarray:
        """RMSE / CRLB (p,), each fit by its own bound."""
        return _rms(self.deviation)

    def to_dict(self) -> dict[str, Any]:
        """The numbers by parameter, and how many fits they come from, JSON-ready."""
        columns = {"rmse": self.rmse, "bias": self.bias, "crlb": self.crlb, "rmse_over_crlb": self.ratio}
        numbers = {n: {k: float(v[i]) for k, v in columns.items()} for i, n in enumerate(self.names)}
        return {**numbers, "fits": len(self.deviation), "failed": self.failed}

    def __str__(self) -> str:
        rows = {"RMSE": self.rmse, "bias": self.bias, "CRLB": self.crlb, "RMSE / CRLB": self.ratio}
        lines = [f"{f'{len(self.deviation)} fits':<14}" + "".join(f"{name:>12}" for name in self.names)]
        lines += [f"{row:<14}" + "".join(f"{v:12.4g}" for v in values) for row, values in rows.items()]
        return "\n".join(lines + [f"{self.failed} failed"] * bool(self.failed))


def score(
    psf: PSF, found: Mapping[str, Any] | Result | Any, truth: Any, shape: tuple[int, int], variance: Any = 0.0
) -> Score:
    """Compare `found` with the `truth` (n, p), columns `psf.names`, of images of `shape` (h, w) with read noise.

    `found`: parameters by name as `FitModel.predict` gives them, a `Result`, or an array (n, p).  `variance`:
    read-noise variance in squared photoelectrons, a number, (h, w) or (n, h, w).

    >>> from smlmcore import fit, psf
    >>> spot, rng = psf.Gaussian2D(), np.random.default_rng(0)
    >>> images, truth = fit.simulate_spots(spot, 2000, (9, 9), rng)
    >>> result = score(spot, fit.mle(images, spot), truth, (9, 9))
    >>> result.ratio.round(1).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    true = backend.to_cpu(psf.check(truth)).astype(float)
    if isinstance(found, Result):
        found = found.parameters
    elif isinstance(found, Mapping):
        if missing := [name for name in psf.names if name not in found]:
            raise ValueError(f"fit.score got no {', '.join(missing)} in what was found, {', '.join(found)}")
        found = np.stack([backend.to_cpu(found[name]) for name in psf.names], 1)
    values = backend.to_cpu(found).astype(float)
    if values.shape != true.shape:
        raise ValueError(f"fit.score got {values.shape} found for a truth of {true.shape}; expected one row each")
    bound = psf.crlb(true, shape, backend.to_cpu(variance))
    good = np.isfinite(values).all(1) & np.isfinite(bound).all(1)
    error, bound = (values - true)[good], bound[good]
    bias = error.mean(0) if len(error) else np.full(len(psf.names), np.nan)
    return Score(psf.names, _rms(error), bias, _rms(bound), error / bound, int((~good).sum()))


def _rms(values: np.ndarray) -> np.ndarray:
    """Root mean square (p,) of the rows; NaN if there are none."""
    return np.sqrt((values**2).mean(0)) if len(values) else np.full(values.shape[1], np.nan)
