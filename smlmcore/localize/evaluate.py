"""Numbers that say how good a fit is: against the truth where it is known, and against the noise floor always."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import fit, loss
from ..psf import Gaussian2D
from .match import match

RADIUS = 2.0  # pixels: a spot and a true molecule further apart are not the same


def evaluate(
    spots: Any,
    predicted: Mapping[str, np.ndarray],
    result: fit.Result,
    held_out: np.ndarray,
    truth: np.ndarray | None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Numbers and position errors of a fit on its `held_out` spots (all spots, if none were held out).

    The numbers: `loss` against its noise floor and, with `truth`, the accuracy of `encoder` and `refined`.  The noise
    floor is the loss of the true parameters or, where they are unknown, that of the refined fit plus the p / 2 nats
    that p fitted parameters gain on average (Wilks 1938, Ann. Math. Stat. 9, 60).

    The errors, for a histogram, are in units of the CRLB by stage or, without truth,
    `{"uncertainty": lateral uncertainty in pixels}`.
    """
    psf = Gaussian2D()

    def of(rows: np.ndarray) -> Any:
        return spots.variance[rows] if np.ndim(spots.variance) else spots.variance

    rows = held_out if len(held_out) else np.arange(len(spots.images))
    rows = rows[np.isfinite(result.parameters[rows]).all(1)]
    encoder = np.stack([predicted[name] for name in psf.names], 1).astype(float)
    if truth is None:
        lateral = np.sqrt((result.errors[:, :2] ** 2).mean(1))
        scores, errors = {}, {"uncertainty": lateral[np.isfinite(lateral)]}
        floor, gained, source = result.parameters[rows], len(psf.names), "refined fit + p/2"
    else:
        rows, true = true_parameters(spots, rows, truth)
        good = result.status[rows] == fit.Status.converged
        size = spots.images.shape[1:]
        score = {
            "encoder": fit.score(psf, encoder[rows], true, size, of(rows)),
            "refined": fit.score(psf, result.parameters[rows][good], true[good], size, of(rows[good])),
        }
        scores = {stage: _relative(s) for stage, s in score.items()}
        scores["refined"]["converged_fraction"] = float(good.mean()) if len(good) else 0.0
        errors = {stage: s.deviation[:, :2].ravel() for stage, s in score.items()}
        floor, gained, source = true, 0, "truth"

    images, variance = spots.images[rows].astype(float), of(rows)
    pixels = max(int(np.isfinite(images).sum()), 1)
    nats, deviance = {}, {}
    for stage, parameters in {
        "encoder": encoder[rows],
        "refined": result.parameters[rows],
        "noise_floor": floor,
    }.items():
        mu = psf.partials(parameters, images.shape[1:])[0]
        share = gained * len(rows) / pixels if stage == "noise_floor" else 0.0
        nats[stage] = float(loss.poisson_gaussian(mu, images, variance, exact=False).sum()) / pixels + share / 2
        deviance[stage] = float(loss.deviance(mu, images, variance).sum()) / pixels + share
    numbers = {**nats, "noise_floor_from": source, "unseen_spots": len(rows), "deviance": deviance}
    if len(rows):
        numbers["deviance_ratio"] = deviance["encoder"] / deviance["noise_floor"]
    return {"loss": numbers, **scores}, errors


def true_parameters(spots: Any, rows: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those of the spots `rows` that match a true molecule, and its parameters (n, 5) in the spot's coordinates."""
    seen, true = match(spots.peaks[rows], truth, RADIUS)
    rows, known = rows[seen], truth[true]
    x, y = spots.corner[rows].T
    columns = [known["x"] - x, known["y"] - y, known["photons"], known["background"], known["sigma_x"]]
    return rows, np.stack(columns, 1).astype(float)


def _relative(score: fit.Score) -> dict[str, dict[str, float]]:
    """Root mean square and mean of (found - true) / CRLB, for each parameter."""
    bias = score.deviation.mean(0) if len(score.deviation) else np.full(len(score.names), np.nan)
    return {
        name: {parameter: round(float(v), 4) for parameter, v in zip(score.names, values, strict=True)}
        for name, values in (("rmse_over_crlb", score.ratio), ("bias_over_crlb", bias))
    }
