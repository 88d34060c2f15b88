"""From localizations to a picture, and from a movie to localizations, beside Picasso.

In process: 10⁶ localizations of 20 000 sites in 10 000 frames of 256², precision 8 nm, events of 4 frames on average, a
drift of 1 nm per frame as random walk; pixels of 100 nm.

Floors, two cores: the table's seven columns are 28 MB, 3 ms to read; drift deposits and reads 16 cells for each
localization in each of four rounds, 1.3e8 random accesses into a grid in the second cache, 0.1 s; linking
visits 4 cells of a hash for each localization, in order of frames and so on one core, 0.04 s.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from smlmcore import data, localize, psf
from smlmcore.camera import Camera

from .harness import Row, compare

N, FRAMES, FIELD, SITES, ERROR, ON, STEP = 1_000_000, 10_000, 256, 20_000, 0.08, 4.0, 0.01
CAMERA = Camera(offset=100.0, gain=0.5, read_noise=1.0, pixel_size=0.1)


def rows() -> Iterator[Row]:
    """The rows of the in-process comparison, then those of whole processes."""
    yield from postprocessing()


def events(seed: int = 0) -> tuple[np.ndarray, np.ndarray, int]:
    """The table, the drift (frames, 2), and how many events there are."""
    rng = np.random.default_rng(seed)
    site, many = rng.uniform(4, FIELD - 4, (SITES, 2)), int(N / ON)
    start, length, which = rng.integers(0, FRAMES, many), rng.geometric(1 / ON, many), rng.integers(0, SITES, many)
    event = np.repeat(np.arange(many), length)
    frame = start[event] + np.arange(len(event)) - np.repeat(np.cumsum(length) - length, length)
    event, frame = event[frame < FRAMES], frame[frame < FRAMES]
    order = np.argsort(frame, kind="stable")
    event, frame = event[order], frame[order]
    walk = np.cumsum(rng.normal(0, STEP, (FRAMES, 2)), 0)
    at = site[which[event]] + rng.normal(0, ERROR, (len(event), 2)) + walk[frame]
    columns = {"photons": 1000.0, "background": 10.0, "sigma_x": 1.3, "sigma_y": 1.3, "lpx": ERROR, "lpy": ERROR}
    columns = {name: np.float32(v) for name, v in columns.items()}
    table = data.table(frame=frame, x=at[:, 0].astype(np.float32), y=at[:, 1].astype(np.float32), **columns)
    # where a molecule goes on at the site at which another has just gone off, nobody can tell two from one
    key = which[event].astype(np.int64) * (FRAMES + 1) + frame
    return table, walk, int((np.diff(np.sort(key)) > 1).sum()) + 1


def nanometres(x: np.ndarray, y: np.ndarray, walk: np.ndarray) -> float:
    """Root mean square error of a drift per axis, without a constant shift."""
    error = np.stack([x, y], 1) - walk
    return 100 * float(np.sqrt(((error - error.mean(0)) ** 2).mean()))


def postprocessing() -> Iterator[Row]:
    """Drift, linking, rendering, resolution in process, warm."""
    table, walk, number = events()
    size = (FIELD, FIELD)
    found = localize.drift(table, FRAMES)
    corrected = localize.correct(table, found)
    peers, notes = picasso(table, corrected, walk, number)
    z = (np.stack([found.x, found.y], 1) - walk + walk.mean(0)) / np.stack([found.x_error, found.y_error], 1)
    mine = f"{nanometres(found.x, found.y, walk):.2f} nm RMS, error / stated error {z.std():.2f}"
    yield compare(
        f"drift, {len(table)} localizations",
        lambda: localize.drift(table, FRAMES),
        {"Picasso AIM": peers.get("aim")},
        repeat=3,
        target="<= 0.4 s, <= 1.5 nm",
        note=mine + notes.get("aim", ""),
    )
    _, check = localize.cross_correlation(table, FRAMES)
    yield compare(
        "redundant cross-correlation, 16 segments",
        lambda: localize.cross_correlation(table, FRAMES),
        {},
        repeat=3,
        note=f"{nanometres(check.x, check.y, walk):.1f} nm RMS",
    )
    linked = len(localize.link(corrected, gap=0)[0])
    yield compare(
        "link",
        lambda: localize.link(corrected, gap=0),
        {"Picasso link": peers.get("link")},
        repeat=3,
        target="<= 0.15 s, events within 0.5 %",
        note=f"{100 * (linked / number - 1):+.2f} % events" + notes.get("link", ""),
    )
    for blur, theirs in (("own", "gaussian"), (0, "histogram"), ("shifted", "smooth")):
        yield compare(
            f"render {FIELD * 8}², blur {blur}",
            lambda blur=blur: localize.render(corrected, size, 8, blur),
            {f"Picasso {theirs}": peers.get(theirs)},
            repeat=3,
            target="<= 0.3 s",
        )
    resolution = localize.frc(corrected, size)
    yield compare(
        "FRC",
        lambda: localize.frc(corrected, size),
        {"Picasso frc": peers.get("frc")},
        repeat=3,
        target="<= 1 s",
        note=f"{100 * resolution.resolution:.1f} ± {100 * resolution.error:.1f} nm" + notes.get("frc", ""),
    )


def picasso(table, corrected, walk, number):
    """Picasso's functions on the same tables, and what they find."""
    try:
        import pandas as pd
        from picasso import aim, postprocess, render
    except ImportError:
        return {}, {}
    names = {"background": "bg", "sigma_x": "sx", "sigma_y": "sy"}

    def frame(rows):
        return pd.DataFrame({names.get(n, n): rows[n].copy() for n in rows.dtype.names})

    raw, locs = frame(table), frame(corrected)
    info = [{"Frames": FRAMES, "Width": FIELD, "Height": FIELD, "Pixelsize": 100.0}]
    field = ((0, 0), (FIELD, FIELD))
    runs = {
        "aim": lambda: aim.aim(raw.copy(), info),
        "link": lambda: postprocess.link(locs.copy(), info, r_max=4 * 2**0.5 * ERROR, max_dark_time=1),
        "gaussian": lambda: render.render(locs, info, disp_px_size=12.5, viewport=field, blur_method="gaussian"),
        "histogram": lambda: render.render(locs, info, disp_px_size=12.5, viewport=field),
        "smooth": lambda: render.render(locs, info, disp_px_size=12.5, viewport=field, blur_method="smooth"),
        "frc": lambda: postprocess.frc(locs, info),
    }
    kept, notes = {}, {}
    for name, run in runs.items():
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                done = run()
        except Exception as error:  # a peer that fails is named, not timed
            notes[name] = f"; Picasso failed: {type(error).__name__}: {error}"
            continue
        kept[name] = run
        if name == "aim":
            drift = done[-1]
            notes[name] = f"; Picasso {nanometres(drift['x'].to_numpy(), drift['y'].to_numpy(), walk):.2f} nm"
        elif name == "link":
            notes[name] = f"; Picasso {100 * (len(done) / number - 1):+.2f} %"
    return kept, notes
