"""What logging costs: the same training with a `training.Board` at its defaults, and what a profile costs.

The share of a Board is held by itself: after an epoch it looks (errors, pictures, histograms) only if all logging so
far took less than 1 % of the training.  A scalar costs 30 us, three of them every tenth step.  What remains is the
writing thread of tensorboardX, and the look at the end.  Both trainings run in turn; the median of their ratios counts.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator

import numpy as np

from smlmcore import fit, psf
from smlmcore.autograd import ops
from smlmcore.profiler import profile
from smlmcore.training import Board, Trainer

from .harness import Row, compare

SHAPE, COUNT, EPOCHS, PAIRS = (11, 11), 6000, 24, 5


def rows() -> Iterator[Row]:
    yield logging()
    x = np.zeros(1)

    def off():
        for _ in range(10_000):
            ops.exp(x)

    def on():
        with profile():
            off()

    yield compare("10,000 ops of one element, nobody watches", off, {"watched": on}, items=10_000)


def logging() -> Row:
    """Seconds of training with a Board beside those without, in turn."""
    rng = np.random.default_rng(1)
    images, truth = spots(rng)
    ours, peers, own, looks = [], [], [], 0
    Trainer(fit.gaussian2d(SHAPE), images[:600], epochs=1, progress=False).run()
    for _ in range(PAIRS):
        peers.append(seconds(images))
        with tempfile.TemporaryDirectory() as folder:
            board = Board(folder, truth)
            ours.append(seconds(images, [board]))
            own.append(board.seconds / ours[-1])
            looks = len(board.history["RMSE/x"][0])
    ratio = statistics.median(a / b for a, b in zip(ours, peers, strict=True))
    note = f"{100 * (ratio - 1):+.1f} % of wall time, {100 * statistics.median(own):.1f} % in the Board; {looks} looks"
    plain = {"without logging": statistics.median(peers)}
    return Row(f"training of an encoder, {EPOCHS} epochs, logged", statistics.median(ours), plain, 1, "<= +3 %", note)


def spots(rng):
    truth = {
        "x": 5 + rng.uniform(-1, 1, COUNT),
        "y": 5 + rng.uniform(-1, 1, COUNT),
        "photons": 2000 * np.exp(0.3 * rng.normal(size=COUNT)),
        "background": rng.uniform(5, 15, COUNT),
        "sigma": rng.uniform(1.1, 1.5, COUNT),
    }
    return rng.poisson(psf.Gaussian2D().render(truth, SHAPE)).astype(np.float32), truth


def seconds(images, callbacks=()):
    start = time.perf_counter()
    Trainer(fit.gaussian2d(SHAPE), images, epochs=EPOCHS, callbacks=callbacks, progress=False).run()
    return time.perf_counter() - start
