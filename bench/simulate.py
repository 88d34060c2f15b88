"""Simulation: noise alone in ns per pixel beside NumPy's generator, and a movie of 256 x 256 to TIFF in frames per
second.

A frame of 65 536 pixels at 400 frames/s leaves 38 ns a pixel for light, noise and file together.  Noise takes 25 of
them on two threads (the first row).

Measured (results/simulate-cpu.json) on a machine that others used as well: 366 frames/s for 10 000 frames, 480 for the
first 300.  Memory grows by 32 MB from 300 to 10 000 frames, which is the table of 300 000 true emitters.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from smlmcore import data, simulate
from smlmcore.camera import Camera

from .harness import Row, compare

FRAMES = 10_000
SHAPE = (256, 256)


def rows() -> Iterator[Row]:
    rng = np.random.default_rng(0)
    camera = Camera(100.0, 0.5, 1.5, 0.1)
    light = rng.uniform(5, 15, (50, *SHAPE)).astype(np.float32)

    def numpy() -> np.ndarray:
        electrons = rng.poisson(light) + 1.5 * rng.standard_normal(light.shape, np.float32)
        return np.clip(np.rint(electrons / 0.5 + 100), 0, 65535).astype(np.uint16)

    yield compare(
        "noise of a sCMOS camera, 50 frames 256 x 256", lambda: camera.expose(light, rng), {"numpy": numpy},
        items=light.size, repeat=3, target="-",
    )  # fmt: skip
    maps = Camera(rng.normal(100, 2, SHAPE), rng.uniform(0.45, 0.55, SHAPE), rng.gamma(4, 0.35, SHAPE), 0.1)
    sites = simulate.points(SHAPE, 6000, rng)
    blinking = simulate.Blinking(on_rate=0.0025 * 2 / 3, off_rate=0.5)  # 20 lit at a time, 30 in each frame

    def run(frames: int) -> tuple[float, int]:
        movie = simulate.Movie(sites, SHAPE, frames, blinking, camera=maps)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            data.write_tiff(Path(folder) / "m.tif", movie.chunks(rng), (frames, *SHAPE), np.uint16)
            return time.perf_counter() - start, len(movie.truth)

    run(64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    short, _ = run(300)
    middle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, lit = run(FRAMES)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = f"{before >> 10} MB, after 300 frames {middle >> 10}, after {FRAMES} {after >> 10}"
    note = f"{lit / FRAMES:.0f} emitters a frame; memory {memory}; 300 frames at {300 / short:.0f}/s"
    yield Row(f"{FRAMES} frames 256 x 256, sCMOS maps, to TIFF", seconds, {}, FRAMES, ">= 400 frames/s", note)
