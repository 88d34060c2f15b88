"""Learned localization from end to end: `localize.run` on a movie file, nothing given but the camera's settings.

Movies of 128², some 12 000 molecules anywhere in the field, photons with a logarithmic spread of 0.3.

`conditions`: the network of the package in five conditions that differ in photons, background, width and density.
`mismatch`: movies that are not what the package's network knows, before and after `--learn`, beside the matched movie.

    python -m bench.learned [NAME ...]

runs some of the rows and puts them in their place in the results.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from smlmcore import data, psf
from smlmcore.camera import Camera
from smlmcore.localize.run import run
from smlmcore.psf.spline import astigmatic_stack
from smlmcore.simulate.movie import light

from .harness import Row

SIDE, MOLECULES, SEEDS, SPREAD = 128, 12_000, (0, 1), 0.3
CAMERA = Camera(offset=100.0, gain=0.5, read_noise=1.0, pixel_size=0.1)


@dataclass(frozen=True)
class Scene:
    """What a movie shows: `shape` are parameters of the PSF, a number or (low, high); `haze`: molecules in a frame."""

    per_frame: float
    photons: float = 2000.0
    background: float | tuple[float, float] = 10.0
    psf: Any = field(default_factory=psf.Gaussian2D)
    shape: dict[str, Any] = field(default_factory=lambda: {"sigma": 1.3})
    haze: float = 0.0
    given: bool = False  # whether the run is told the PSF
    name: str = ""

    def write(self, path: Path, seed: int) -> Path:
        """Movie and truth."""
        rng = np.random.default_rng((seed, int(self.per_frame)))
        n = round(MOLECULES / self.per_frame)
        frame = np.repeat(np.arange(n), rng.poisson(self.per_frame, n))
        x, y = rng.uniform(-0.5, SIDE - 0.5, (2, len(frame)))
        photons = self.photons * np.exp(SPREAD * rng.normal(size=len(frame)))
        shape = {name: rng.uniform(*np.broadcast_to(v, 2), len(frame)) for name, v in self.shape.items()}
        mean = light(self.psf, {"x": x, "y": y, "photons": photons, **shape}, frame, (n, SIDE, SIDE))
        mean += np.linspace(*np.broadcast_to(self.background, 2), SIDE)
        if self.haze:  # molecules far out of focus
            far = np.repeat(np.arange(n), rng.poisson(self.haze, n))
            at = rng.uniform(-8, SIDE + 8, (2, len(far)))
            values = {"x": at[0], "y": at[1], "photons": np.full(len(far), self.photons)}
            values["sigma"] = rng.uniform(4, 7, len(far))
            mean += light(psf.Gaussian2D(), values, far, (n, SIDE, SIDE))
        data.write_tiff(path, [CAMERA.expose(mean, rng)], (n, SIDE, SIDE), np.uint16, CAMERA)
        truth = data.table(frame=frame, x=x, y=y, photons=photons)
        data.write_picasso(path.with_name(f"{path.stem}.truth.hdf5"), truth, (n, SIDE, SIDE), 0.1)
        return path


CONDITIONS = tuple(
    Scene(k, n, b, shape={"sigma": s}, name=f"{n} photons, background {b}, sigma {s}, {k} per frame")
    for n, b, s, k in (
        (500, 20, 1.6, 30), (1000, 10, 1.3, 60), (2000, 5, 1.0, 164), (3000, 20, 1.6, 60), (5000, 10, 1.3, 164),
    )
)  # fmt: skip
ASTIGMATIC = psf.AstigmaticGaussian(1.3, gamma=0.25, depth=0.4, z_range=(-0.5, 0.5))
ELLIPSE = {"sigma_x": 1.8, "sigma_y": 1.1, "angle": 0.5}
SPLINE = psf.Spline.from_array(astigmatic_stack(), 0.05)
MISMATCHES = (
    Scene(60, name="matched"),
    Scene(60, background=(2.0, 40.0), name="gradient"),
    Scene(60, haze=10.0, name="haze"),
    Scene(60, psf=psf.EllipticGaussian2D(rotated=True), shape=ELLIPSE, name="ellipse"),
    Scene(60, psf=ASTIGMATIC, shape={"z": (-0.4, 0.4)}, name="astigmatic"),
    Scene(60, psf=SPLINE, shape={"z": (-0.4, 0.4)}, given=True, name="spline, PSF given"),
    Scene(30, shape={"sigma": (1.0, 1.8)}, name="widths that differ"),
)


def measure(scene: Scene, seeds: tuple[int, ...] = SEEDS, **settings: Any) -> tuple[float, int, dict[str, Any]]:
    """Seconds, frames, and over all seeds Jaccard, lateral RMSE (nm), localizations and whether the model fits."""
    seconds, frames, scores, fits, learning = 0.0, 0, [], [], 0.0
    given = {"psf": scene.psf} if scene.given else {}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as name:
            movie = scene.write(Path(name) / "movie.tif", seed)
            start = time.perf_counter()
            report = run(movie, Path(name) / "out", quiet=True, undrift=False, **given, **settings)
            seconds += time.perf_counter() - start
        frames += report["movie"]["frames"]
        scores.append(report["score"]["whole_field"]["250"])
        fits.append(report["model"].get("believable"))
        learning += report["seconds"].get("learn", 0.0)
    pairs, extra, missed = (sum(s[k] for s in scores) for k in ("pairs", "false_positives", "missed"))
    rmse = np.sqrt(sum(s["pairs"] * s["rmse_lateral"] ** 2 for s in scores) / max(pairs, 1))
    numbers = {"jaccard": pairs / max(pairs + extra + missed, 1), "rmse": float(rmse), "truth": pairs + missed}
    return seconds, frames, {**numbers, "fits": fits, "learning": learning / len(seeds)}


def text(found: dict[str, Any]) -> str:
    told = "" if all(found["fits"]) else ", reported as not explained"
    learning = f", learned in {found['learning']:.0f} s" if found["learning"] else ""
    return f"Jaccard {found['jaccard']:.4f}, lateral RMSE {found['rmse']:.1f} nm{told}{learning}"


def conditions(scene: Scene) -> Row:
    """The network of the package in one condition."""
    seconds, frames, found = measure(scene)
    note = f"{found['truth']} molecules: {text(found)}"
    return Row(f"auto: {scene.name}", seconds, {}, frames, "Jaccard >= 0.975", note)


def mismatch(scene: Scene) -> Row:
    """One movie without and with learning; seconds are those with it."""
    before = measure(scene, SEEDS[:1])[2]
    seconds, frames, after = measure(scene, SEEDS[:1], learn=True)
    note = f"{after['truth']} molecules: {text(before)}; after --learn {text(after)}"
    return Row(f"learn: {scene.name}", seconds, {}, frames, ">= 0.95 of the matched, or reported", note)


WORK = {s.name: (conditions, s) for s in CONDITIONS} | {s.name: (mismatch, s) for s in MISMATCHES}


def rows() -> Iterator[Row]:
    """All rows."""
    for make, scene in WORK.values():
        yield make(scene)


def main() -> None:
    """Some of the rows, by a part of their name."""
    parser = argparse.ArgumentParser(prog="python -m bench.learned")
    parser.add_argument("names", nargs="*", default=[""], help=f"parts of {'; '.join(WORK)}")
    names = parser.parse_args().names
    path = Path(__file__).parent / "results/learned-cpu.json"
    for key, (make, scene) in WORK.items():
        if any(name in key for name in names):
            row = make(scene)
            print(row.text(), flush=True)
            results = json.loads(path.read_text()) if path.exists() else {"rows": []}
            kept = {r["work"]: r for r in results["rows"]} | {row.work: asdict(row)}
            path.write_text(json.dumps({**results, "rows": list(kept.values())}, indent=2) + "\n")


if __name__ == "__main__":
    main()
