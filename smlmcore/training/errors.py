"""How far predicted parameters are from the truth, for whom the truth is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..backend import to_cpu
from ..localize.match import match


def errors(
    found: Mapping[str, Any],
    truth: Mapping[str, Any],
    psf: Any = None,
    shape: tuple[int, int] = (0, 0),
    variance: Any = 0.0,
    radius: float = 2.5,
) -> dict[str, float]:
    """Numbers by name: "RMSE/x", "bias/x", "RMSE_over_CRLB/x" for every parameter in both, and "score/Jaccard".

    Parameters are (n,), one emitter in each of n images, or (n, emitters) with NaN where there is none; an emitter
    found with presence `p` up to 1/2 counts as none.  One in each image is compared with one, whatever their distance;
    several are paired by optimal assignment within `radius` pixels (`localize.match`), and pairs count.  Jaccard =
    TP / (TP + FP + FN) within `radius`.  The bound is that of isolated emitters of `psf` in images of `shape` with
    read-noise `variance`, where `truth` has all parameters of the PSF.  Images (n, ..., h, w) give RMSE, bias, and
    "score/PSNR_dB" against the largest true value.

    >>> truth = {"x": np.array([3.0, 4.0]), "y": np.array([3.0, 3.0])}
    >>> round(errors({"x": np.array([3.1, 4.1]), "y": np.array([3.0, 3.0])}, truth)["bias/x"], 6)
    0.1
    """
    found, truth = ({k: to_cpu(v) for k, v in values.items()} for values in (found, truth))
    names = [k for k in truth if k in found]
    out = {}
    for name in [k for k in names if truth[k].ndim > 2]:
        names.remove(name)
        difference = found[name] - truth[name]
        out |= _moments(name, difference)
        peak, squared = float(np.nanmax(truth[name])), float(np.nanmean(difference**2))
        if peak > 0 and squared > 0:
            out["score/PSNR_dB"] = float(10 * np.log10(peak**2 / squared))
    if "x" not in names or "y" not in names:
        return out | {k: v for name in names for k, v in _moments(name, found[name] - truth[name]).items()}
    a, b = _table(found, names), _table(truth, list(truth))
    pairs = match(a, b, radius)
    hits = len(pairs[0])
    out["score/Jaccard"] = hits / max(len(a) + len(b) - hits, 1)
    if found["x"].size == len(found["x"]) and truth["x"].size == len(truth["x"]):
        pairs = np.intersect1d(a["frame"], b["frame"], return_indices=True)[1:]
    a, b = a[pairs[0]], b[pairs[1]]
    for name in names:
        out |= _moments(name, a[name] - b[name])
    if psf is not None and set(psf.names) <= set(truth) and len(b):
        v = np.asarray(to_cpu(variance))
        theta = np.stack([b[name] for name in psf.names], 1)
        bound = psf.crlb(theta, shape, v[b["frame"]] if v.ndim > len(shape) else v)
        for name, sigma in zip(psf.names, bound.T, strict=True):
            ratio = (a[name] - b[name]) / sigma if name in names else np.empty(0)
            if np.isfinite(ratio).any():
                out[f"RMSE_over_CRLB/{name}"] = float(np.sqrt(np.nanmean(ratio**2)))
    return out


def _moments(name: str, difference: np.ndarray) -> dict[str, float]:
    difference = difference[np.isfinite(difference)].astype(float)
    if difference.size == 0:
        return {}
    return {f"RMSE/{name}": float(np.sqrt((difference**2).mean())), f"bias/{name}": float(difference.mean())}


def _table(values: Mapping[str, np.ndarray], names: list[str]) -> np.ndarray:
    """One row for each emitter that is there: frame, and its own parameters or those of its image."""
    flat = {k: v if v.ndim == 2 else v[:, None] for k, v in values.items() if k in names and v.ndim in (1, 2)}
    present = np.isfinite(flat["x"]) & np.isfinite(flat["y"])
    if "p" in values:
        present &= values["p"].reshape(present.shape) > 0.5
    out = np.empty(int(present.sum()), [("frame", int), *((k, float) for k in flat)])
    out["frame"] = np.nonzero(present)[0]
    for name, column in flat.items():
        out[name] = np.broadcast_to(column, present.shape)[present]
    return out
