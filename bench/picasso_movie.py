"""The movie of Picasso's own tests, found again: 100 frames of 32² pixels of simulated DNA-PAINT, σ 0.82 pixels.

Beside Picasso's table of these frames; what it has and we do not, and what we have and it does not, is drawn with the
pixels around it.  The simulation's file names the binding sites: an extra one at a site is a molecule, bound for a part
of the frame perhaps; others are the noise peaks that the rate of false positives allows, 1 in 100 frames.

    python -m bench.picasso_movie FIGURE.png       draws; needs movie_dna_paint below SMLMCORE_DATA
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from smlmcore import data, localize
from smlmcore.camera import Camera
from smlmcore.localize.chunks import localize_frames

from .harness import Row, compare

FOLDER = Path(os.environ.get("SMLMCORE_DATA", "../shared/data")) / "movie_dna_paint"
NEAR, SIGMA, PIXEL = 0.5, 0.82, 160  # pixels, pixels, nm
MOST = 6  # pictures of what is missing or extra


def rows() -> Iterator[Row]:
    """One row: the time, and how much of Picasso's table is found again."""
    if not FOLDER.is_dir():
        yield Row(f"Picasso's movie: {FOLDER} is not there", 0.0, {}, note="set SMLMCORE_DATA")
        return
    frames, theirs, sites = read()
    camera = Camera(offset=0.0, gain=1.0)
    row = compare("Picasso's movie, 100 frames", lambda: localize_frames(frames, camera.variance, sigma=SIGMA), {})
    table = localize_frames(frames, camera.variance, sigma=SIGMA)
    i, j = localize.match(table, theirs, NEAR)
    apart = PIXEL * np.hypot(table["x"][i] - theirs["x"][j], table["y"][i] - theirs["y"][j])
    extra = np.setdiff1d(np.arange(len(table)), i)
    row.target = f">= 97 % within {NEAR} pixels"
    row.note = (
        f"{len(j)} of {len(theirs)} found again, median distance {np.median(apart):.2f} nm; {len(extra)} extra, of "
        f"{', '.join(f'{p:.0f}' for p in table['photons'][extra])} photons, "
        f"{', '.join(f'{PIXEL * d:.0f}' for d in to_site(table[extra], sites))} nm from a binding site"
    )
    yield row


def read() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames in photons, Picasso's table of them, and the binding sites (site, xy) in pixels."""
    with data.open_movie(FOLDER / "testdata.raw") as movie:
        frames = movie.read().astype(np.float32)
        theirs = data.read_picasso(FOLDER / "testdata_locs.hdf5")[0]
    info = data.read_yaml(FOLDER / "testdata.yaml")
    sites = [[float(v) for v in info[f"Structure.Handle{axis}"].split(",")] for axis in "XY"]
    return frames, theirs[theirs["frame"] < len(frames)], np.stack(sites, 1) - 0.5  # Picasso's pixels begin at -0.5


def to_site(table: np.ndarray, sites: np.ndarray) -> np.ndarray:
    """Distance of each localization to the nearest site, pixels."""
    at = np.stack([table["x"], table["y"]], 1)
    return np.sqrt(((at[:, None] - sites) ** 2).sum(2)).min(1)


def draw(path: Path) -> None:
    """Both tables over the field, and the pixels around what only one of them has."""
    frames, theirs, sites = read()
    table = localize_frames(frames, 0.0, sigma=SIGMA)
    i, j = localize.match(table, theirs, NEAR)
    alone = [("only here", r) for r in table[np.setdiff1d(np.arange(len(table)), i)]]
    alone += [("only Picasso", r) for r in theirs[np.setdiff1d(np.arange(len(theirs)), j)]]
    figure = Figure((3.4 + 2.2 * len(alone[:MOST]), 3.4), layout="constrained")
    field, *others = figure.subplots(1, 1 + len(alone[:MOST]), width_ratios=[3.4, *[2.2] * len(alone[:MOST])])
    field.imshow(frames.mean(0), cmap="gray")
    field.plot(*sites.T, ",", color="#74c0fc")
    field.plot(theirs["x"], theirs["y"], "o", mfc="none", color="#ff922b", label=f"Picasso, {len(theirs)}")
    field.plot(table["x"], table["y"], "+", color="#69db7c", label=f"here, {len(table)}")
    field.set_title(f"{len(j)} of {len(theirs)} within {NEAR} pixels", fontsize=9)
    field.legend(fontsize=7, loc="lower left")
    for axes, (whose, row) in zip(others, alone[:MOST], strict=True):
        image, (x, y) = frames[row["frame"]], (round(float(row[n])) for n in "xy")
        shown = slice(max(y - 6, 0), y + 7), slice(max(x - 6, 0), x + 7)
        axes.imshow(image, cmap="gray", vmin=image[shown].min(), vmax=image[shown].max())
        axes.plot(row["x"], row["y"], "+", color="#69db7c", ms=12)
        away = PIXEL * to_site(np.atleast_1d(row), sites)[0]
        axes.set_title(
            f"{whose}: frame {row['frame']}\n{row['photons']:.0f} photons, {away:.0f} nm from a site", fontsize=8
        )
        axes.set(xlim=(x - 6.5, x + 6.5), ylim=(y + 6.5, y - 6.5))
    for axes in (field, *others):
        axes.set(xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
