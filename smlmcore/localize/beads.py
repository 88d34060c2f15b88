"""Bead stacks: the beads in them, cut out, and the calibration behind `smlmcore calibrate`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from .. import __version__, data
from ..psf import retrieve
from .pipeline import known_camera

OUTPUTS = ("pupil.npz", "report.json", "report.png")


def find_beads(stack: np.ndarray, box: int, most: int = 20, least: float = 0.2) -> np.ndarray:
    """Rows (n, 2) = y, x of the beads in `stack` (nz, h, w): whole pixels, at least `box` // 2 from the border.

    A bead is the highest point of the smoothed stack's maximum over z within a box around it, at least ten times the
    noise and `least` of the brightest.  Of two beads in one box the brighter stays.  The brightest `most` are returned.

    >>> stack = np.random.default_rng(0).poisson(10.0, (5, 40, 60)).astype(float)
    >>> stack[2, 20, [15, 40]] += 5000.0
    >>> find_beads(stack, 15).tolist()
    [[20, 15], [20, 40]]
    """
    smooth = ndimage.gaussian_filter(np.nan_to_num(stack, nan=np.nanmax(stack)), (0, 1, 1))
    light = (smooth - np.median(smooth, (1, 2), keepdims=True)).max(0)
    noise = 1.4826 * np.median(np.abs(light - np.median(light))) + 1e-9
    half = box // 2
    peaks = (ndimage.maximum_filter(light, box | 1) == light) & (light > max(10 * noise, least * light.max()))
    peaks[:half] = peaks[peaks.shape[0] - half :] = False
    peaks[:, :half] = peaks[:, peaks.shape[1] - half :] = False
    found = np.argwhere(peaks)
    order = np.argsort(-light[tuple(found.T)], kind="stable")[:most]
    return found[np.sort(order)]


def calibrate_pupil(
    stacks: Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    camera: Mapping[str, float | None],
    z_step: float,
    box: int = 33,
    beads: int = 5,
    overwrite: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Retrieve the pupil behind the beads in the files `stacks` (nz slices `z_step` um apart) and write it to `out`.

    Finds up to `beads` beads in each file, cuts `box` x `box` pixels around each, and gives them all to `psf.retrieve`
    with `settings`.  `camera`: see `localize.pipeline.known_camera`.  Writes pupil.npz (`psf.Pupil.load` reads it),
    report.json and report.png, all or none; returns the report.
    """
    folder = Path(out)
    data.refuse_existing(*(folder / name for name in OUTPUTS), overwrite=overwrite)
    cuts, places = [], []
    for path in stacks:
        with data.open_movie(path) as movie:
            known = known_camera(movie, camera)
            counts = movie.read()
        electrons = known.photoelectrons(counts).astype(float)
        if counts.dtype.kind == "u":
            electrons[counts == np.iinfo(counts.dtype).max] = np.nan
        half = box // 2
        found = find_beads(electrons, box, beads)
        if not len(found):
            raise data.DataError(
                f"{path}: no bead above ten times the noise and {half} pixels inside the field; lower --box, and check "
                "--offset and --gain"
            )
        cuts += [electrons[:, y - half : y + half + 1, x - half : x + half + 1] for y, x in found]
        places += [{"file": Path(path).name, "y": int(y), "x": int(x)} for y, x in found]
    if len({len(cut) for cut in cuts}) > 1:
        raise data.DataError("the stacks differ in their number of slices; calibrate them one by one")
    pupil = retrieve(
        np.stack(cuts), z_step, pixel_size=known.pixel_size, variance=known.variance, progress=not quiet, **settings
    )
    report = {
        "smlmcore": __version__,
        "z_step": z_step,
        "camera": {"offset": known.offset, "gain": known.gain, "read_noise": known.read_noise},
        "cut_at": places,
        **pupil.report.summary(),
    }
    with data.atomic_folder(folder) as temporary:
        pupil.save(temporary / OUTPUTS[0])
        (temporary / OUTPUTS[1]).write_text(json.dumps(report, indent=2) + "\n")
        pupil.report.figure().savefig(temporary / OUTPUTS[2], dpi=110)
    return report
