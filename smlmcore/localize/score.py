"""How good a table of localizations is against the truth, in the measures of the 2016 SMLM challenge."""

from __future__ import annotations

from typing import Any

import numpy as np

from .match import match

RADII = (250.0, 500.0)  # nm, laterally; axially twice as much
WEIGHT = {"lateral": 1.0, "axial": 0.5}  # alpha of the challenge, 1 / nm
AXIAL = 500.0  # nm: the challenge's limit in depth


def score(
    found: np.ndarray,
    truth: np.ndarray,
    pixel_size: float,
    radii: tuple[float, ...] = RADII,
    margin: float = 0.0,
    shape: tuple[int, int] | None = None,
) -> dict[str, dict[str, Any]]:
    """Scores of `found` against `truth` (frame, x, y; z in µm where both have it), by radius in nm.

    In each frame the assignment with the most pairs within the radius, and of these the one of the least sum of
    squares, is taken (`match`); where there is z, pairs further apart than 500 nm in it do not count.

        jaccard = TP / (TP + FP + FN)        precision = TP / (TP + FP)        recall = TP / (TP + FN)
        rmse_lateral = sqrt(mean((dx² + dy²)))     rmse_axial = sqrt(mean(dz²))      in nm
        efficiency = 100 - sqrt((100 - 100 jaccard)² + alpha² rmse²)                 alpha 1 / nm, 0.5 / nm in z

    (Sage et al. 2019, Nat. Methods 16, 387.)  `rmse` is the lateral root mean square error per axis, dx or dy.
    `margin`: rows within so many pixels of the border of `shape` count neither as found nor as missed.
    `pixel_size` in µm.

    >>> truth = np.array([(0, 5.0, 5.0), (0, 9.0, 5.0)], [("frame", int), ("x", float), ("y", float)])
    >>> result = score(truth[:1], truth, pixel_size=0.1)["250"]
    >>> result["jaccard"], result["rmse_lateral"]
    (0.5, 0.0)
    """
    if not (np.isfinite(pixel_size) and pixel_size > 0):
        raise ValueError(f"score got pixel_size {pixel_size}; expected µm above 0")
    nm = 1000 * pixel_size
    deep = all("z" in t.dtype.names for t in (found, truth))
    out = {}
    for radius in radii:
        i, j = match(found, truth, radius / nm)
        if deep:
            near = abs(found["z"][i] - truth["z"][j]) * 1000 <= AXIAL
            i, j = i[near], j[near]
        false, missed = np.ones(len(found), bool), np.ones(len(truth), bool)
        false[i], missed[j] = False, False
        if margin:
            if shape is None:
                raise ValueError("score got a margin without the shape of the field; give shape=(h, w)")
            keep = _inside(truth[j], margin, shape)
            i, j = i[keep], j[keep]
            false &= _inside(found, margin, shape)
            missed &= _inside(truth, margin, shape)
        pairs, extra, lost = len(i), int(false.sum()), int(missed.sum())
        dx, dy = ((found[n][i].astype(float) - truth[n][j]) * nm for n in ("x", "y"))
        lateral = _rms(np.hypot(dx, dy))
        jaccard = pairs / max(pairs + extra + lost, 1)
        numbers = {
            "jaccard": jaccard,
            "precision": pairs / max(pairs + extra, 1),
            "recall": pairs / max(pairs + lost, 1),
            "pairs": pairs,
            "false_positives": extra,
            "missed": lost,
            "rmse_lateral": lateral,
            "rmse": lateral / np.sqrt(2),
            "bias": [float(np.mean(dx)), float(np.mean(dy))] if pairs else [np.nan, np.nan],
            "efficiency": _efficiency(jaccard, lateral, WEIGHT["lateral"]),
        }
        if deep:
            axial = _rms((found["z"][i].astype(float) - truth["z"][j]) * 1000)
            numbers |= {"rmse_axial": axial, "efficiency_axial": _efficiency(jaccard, axial, WEIGHT["axial"])}
            numbers["efficiency_3d"] = (numbers["efficiency"] + numbers["efficiency_axial"]) / 2
        out[f"{radius:g}"] = numbers
    return out


def _inside(table: np.ndarray, margin: float, shape: tuple[int, int]) -> np.ndarray:
    h, w = shape
    x, y = table["x"], table["y"]
    return (x >= margin - 0.5) & (x < w - 0.5 - margin) & (y >= margin - 0.5) & (y < h - 0.5 - margin)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2))) if len(values) else float("nan")


def _efficiency(jaccard: float, rmse: float, weight: float) -> float:
    return float(100 - np.hypot(100 - 100 * jaccard, weight * rmse))
