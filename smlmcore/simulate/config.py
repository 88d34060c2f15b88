"""A movie from a mapping, as it stands in a YAML file.

shape: [256, 256]
frames: 10000
seed: 1
structure: {kind: filaments, count: 20}     # points, lines, rings, filaments, grid, nuclear_pores, siemens_star,
label: {density: 0.1, linker: 0.05}         # or {kind: table, file: ...}, {kind: image, file: ..., count: ...}
blinking: {on_rate: 0.001, off_rate: 0.5, bleach_rate: 0.0, photons: 2000, spread: 0.3}
psf: {kind: gaussian, sigma: 1.3}   # or {kind: astigmatic, sigma0: 1.2, gamma: 0.25, depth: 0.4, z: [-0.5, 0.5]}, or
                                    # {kind: pupil, file: ..., z: 0.2}, {kind: spline, file: ..., z: ...}; z in um, one
                                    # number, or uniform between two
background: {kind: field, low: 5, high: 20, scale: 30}   # or a number, or {kind: gradient, low: ..., high: ...}
drift: 0.01
camera: {offset: 100, gain: 0.5, read_noise: 1.5, pixel_size: 0.1}   # or a file that Camera.save wrote
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np

from ..camera import Camera
from ..psf import PSF, AstigmaticGaussian, Gaussian2D, Pupil, Spline
from . import structures
from .blinking import Blinking
from .isolated import filaments
from .movie import Movie, random_field

KEYS = ("shape", "frames", "seed", "structure", "label", "blinking", "psf", "background", "drift", "camera")
KINDS = ("points", "lines", "rings", "filaments", "grid", "nuclear_pores", "siemens_star", "table", "image")


def from_config(settings: Mapping[str, Any]) -> tuple[Movie, np.random.Generator]:
    """The movie that `settings` describe (see the module's text), and the generator to draw it with.

    Raises `ValueError` that names what is wrong.

    >>> movie, rng = from_config({"shape": [16, 24], "frames": 3, "structure": {"kind": "grid", "spacing": 8}})
    >>> next(movie.chunks(rng)).shape
    (3, 16, 24)
    """
    unknown = set(settings) - set(KEYS)
    if unknown:
        raise ValueError(f"simulate got the setting {sorted(unknown)[0]!r}; expected some of {', '.join(KEYS)}")
    try:
        shape, frames, seed = (settings.get(k, v) for k, v in (("shape", (128, 128)), ("frames", 1000), ("seed", 0)))
        whole = [*np.atleast_1d(np.asarray(shape, object)), frames, seed]
        if len(whole) != 4 or not all(isinstance(n, Integral) and n >= 0 for n in whole):
            raise ValueError(
                f"simulate got shape {shape}, frames {frames}, seed {seed}; expected [height, width], whole numbers"
            )
        rng = np.random.default_rng(seed)
        sites = _sites(dict(settings.get("structure", {"kind": "filaments"})), shape, rng)
        sites = structures.label(sites, rng, **settings.get("label", {}))
        psf, parameters = _psf(dict(settings.get("psf", {})), len(sites), rng)
        camera = settings.get("camera")
        return (
            Movie(
                sites,
                shape,
                frames,
                Blinking(**settings.get("blinking", {})),
                psf,
                parameters,
                background=_background(settings.get("background", 10.0), shape, rng),
                drift=settings.get("drift", 0.0),
                camera=Camera.load(camera) if isinstance(camera, str) else None if camera is None else Camera(**camera),
            ),
            rng,
        )
    except (TypeError, KeyError) as error:
        raise ValueError(f"simulate got settings that do not fit: {' '.join(str(error).split())}") from None


def _sites(options: dict[str, Any], shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    kind = options.pop("kind", None)
    if kind not in KINDS:
        raise ValueError(f"simulate got structure kind {kind!r}; expected one of {', '.join(KINDS)}")
    if kind == "table":
        from ..data import Localizations

        return structures.from_table(Localizations.load(**{"path": options.pop("file"), **options}).rows)
    if kind == "image":
        from ..data import open_movie

        with open_movie(options.pop("file")) as image:
            return structures.from_image(image.read(0, 1)[0], rng=rng, **options)
    if kind == "filaments":
        return filaments(rng, shape, **options)
    if kind == "grid":
        return structures.grid(shape, **options)
    return getattr(structures, kind)(shape, rng=rng, **options)


def _psf(options: dict[str, Any], sites: int, rng: np.random.Generator) -> tuple[PSF, dict[str, np.ndarray]]:
    """The PSF, and what it has beside x, y, photons and background, of each site."""
    kind = options.pop("kind", "gaussian")
    if kind == "gaussian":
        return Gaussian2D(sigma=float(options.pop("sigma", 1.3)), **options), {}
    z = np.broadcast_to(np.asarray(options.pop("z", 0.0), float), 2)
    parameters = {"z": rng.uniform(*z, sites)}
    if kind == "astigmatic":
        return AstigmaticGaussian(**options), parameters
    if kind in ("pupil", "spline"):
        return (Pupil if kind == "pupil" else Spline).load(options.pop("file"), **options), parameters
    raise ValueError(f"simulate got psf of kind {kind!r}; expected gaussian, astigmatic, pupil or spline")


def _background(given: Any, shape: tuple[int, int], rng: np.random.Generator) -> Any:
    if not isinstance(given, Mapping):
        return float(given)
    options = dict(given)
    kind = options.pop("kind", None)
    if kind == "gradient":
        return np.linspace(options["low"], options["high"], shape[1]) * np.ones(shape)
    if kind == "field":
        return random_field(shape, rng=rng, **options)
    raise ValueError(f"simulate got background kind {kind!r}; expected gradient, field, or a number")
