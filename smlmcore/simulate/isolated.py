"""Movies of isolated molecules, each lit in one frame: what a single-emitter fit is measured with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import psf
from ..camera import Camera
from ..data import table

CHUNK_BYTES = 32 * 2**20  # of expected photons in float64
TRIES = 1000  # draws per molecule before a frame counts as full


def blinking_movie(
    rng: np.random.Generator,
    shape: tuple[int, int] = (128, 128),
    frames: int = 1000,
    *,
    spots_per_frame: int = 30,
    photons: float = 2000.0,
    photons_spread: float = 0.3,
    background: tuple[float, float] = (5.0, 15.0),
    sigma: tuple[float, float] = (1.1, 1.5),
    min_distance: float = 14.0,
    sites: np.ndarray | None = None,
    camera: Camera | None = None,
    dtype: Any = np.uint16,
) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """Frames of isolated molecules, each lit in one frame only: the truth at once, the counts chunk by chunk.

    Per frame: `spots_per_frame` molecules uniform over the field of `shape` (height, width), or over the `sites`
    (m, 2), x and y in pixels, of a labelled structure (see `filaments`), no two closer than `min_distance` pixels; one
    background, uniform in `background` (photons per pixel).  Per molecule: photons log-normal with median `photons`
    and logarithmic standard deviation `photons_spread`; sigma uniform in `sigma` (pixels).  The image is
    `psf.Gaussian2D`, integrated over the pixels, seen by `camera` (default: offset 100,
    0.5 electrons per count, read noise 1.5, pixels of 0.1 µm).

    Returns the truth, a table of frame, x, y, photons, background, sigma_x, sigma_y in float64, and an iterator over
    counts (frames, height, width) of `dtype`.  The same `rng` state gives the same movie.
    Raises `ValueError` for impossible arguments, such as molecules that do not fit at `min_distance`.

    >>> truth, chunks = blinking_movie(np.random.default_rng(1), (32, 48), frames=3, spots_per_frame=2)
    >>> len(truth), [c.shape for c in chunks]
    (6, [(3, 32, 48)])
    """
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"blinking_movie got rng of {type(rng).__name__}; give numpy.random.default_rng(seed)")
    if len(shape) != 2 or min(shape) < 1 or frames < 1 or spots_per_frame < 0:
        raise ValueError(
            f"blinking_movie got shape {tuple(shape)}, frames {frames}, spots_per_frame {spots_per_frame}; "
            "expected (height, width) and frames of at least 1, and no negative number of spots"
        )
    for name, (low, high), least in (("background", background, 0.0), ("sigma", sigma, 0.05)):
        if not (np.isfinite(high) and least <= low <= high):
            raise ValueError(f"blinking_movie got {name} from {low} to {high}; expected {least:g} <= low <= high")
    if not (np.isfinite(photons) and photons > 0 and np.isfinite(photons_spread) and photons_spread >= 0):
        raise ValueError(
            f"blinking_movie got photons {photons} and photons_spread {photons_spread}; "
            "expected a positive median and a spread of at least 0"
        )
    if not 0 <= min_distance < np.inf:
        raise ValueError(f"blinking_movie got min_distance {min_distance}; expected a number of pixels, 0 or more")
    camera = Camera(offset=100.0, gain=0.5, read_noise=1.5, pixel_size=0.1) if camera is None else camera
    x, y = _isolated(rng, shape, frames, spots_per_frame, min_distance, sites)
    each = (frames, spots_per_frame)
    parameters = {
        "x": x,
        "y": y,
        "photons": photons * np.exp(photons_spread * rng.standard_normal(each)),
        "sigma": rng.uniform(*sigma, each),
        "background": rng.uniform(*background, frames),
    }
    truth = table(
        frame=np.repeat(np.arange(frames), spots_per_frame),
        x=x.ravel(),
        y=y.ravel(),
        photons=parameters["photons"].ravel(),
        background=np.repeat(parameters["background"], spots_per_frame),
        sigma_x=parameters["sigma"].ravel(),
        sigma_y=parameters["sigma"].ravel(),
    )
    return truth, _expose(rng.spawn(1)[0], shape, frames, parameters, camera, dtype)


def filaments(
    rng: np.random.Generator, shape: tuple[int, int], count: int = 20, width: float = 0.15, bending: float = 0.04
) -> np.ndarray:
    """Sites (m, 2), x and y in pixels, along `count` random filaments through a field of `shape` (height, width).

    Each is a worm-like chain in steps of 0.05 pixels that starts in the field, in a random direction which changes by
    a normal angle of standard deviation `bending` per square root of a pixel; the labels lie to either side of it with
    standard deviation `width` pixels.

    >>> filaments(np.random.default_rng(0), (32, 48)).shape[1]
    2
    """
    h, w = shape
    step, steps = 0.05, int(20 * 1.5 * (h + w))
    turns = rng.normal(0, bending * step**0.5, (count, steps))
    angle = rng.uniform(0, 2 * np.pi, (count, 1)) + np.cumsum(turns, axis=1)
    start = rng.uniform(0, 1, (count, 1, 2)) * (w - 1, h - 1)
    path = start + step * np.cumsum(np.stack([np.cos(angle), np.sin(angle)], -1), axis=1)
    sites = (path + rng.normal(0, width, path.shape)).reshape(-1, 2)
    return sites[((sites > -0.5) & (sites < (w - 0.5, h - 0.5))).all(1)]


def _isolated(
    rng: np.random.Generator,
    shape: tuple[int, int],
    frames: int,
    spots: int,
    distance: float,
    sites: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """x, y (frames, spots), uniform over the field or the sites where no two of a frame are too close."""
    h, w = shape
    x, y = np.empty((2, frames, spots))
    for k in range(spots):  # all frames at once, one molecule after another
        bad = np.arange(frames)
        for _ in range(TRIES):
            if sites is None:
                x[bad, k] = rng.uniform(-0.5, w - 0.5, len(bad))
                y[bad, k] = rng.uniform(-0.5, h - 0.5, len(bad))
            else:
                x[bad, k], y[bad, k] = rng.choice(sites, len(bad)).T
            squared = (x[bad, :k] - x[bad, k, None]) ** 2 + (y[bad, :k] - y[bad, k, None]) ** 2
            bad = bad[(squared < distance**2).any(1)]
            if not len(bad):
                break
        else:
            raise ValueError(
                f"blinking_movie cannot place {spots} molecules at least {distance:g} pixels apart in a frame of "
                f"{h} x {w}; {k} fit: lower spots_per_frame or min_distance, or enlarge the frame"
            )
    return x, y


def _expose(
    rng: np.random.Generator,
    shape: tuple[int, int],
    frames: int,
    parameters: dict[str, np.ndarray],
    camera: Camera,
    dtype: Any,
) -> Iterator[np.ndarray]:
    model = psf.Gaussian2D()
    size = max(1, CHUNK_BYTES // (8 * shape[0] * shape[1]))
    for start in range(0, frames, size):
        expected = model.render({name: v[start : start + size] for name, v in parameters.items()}, shape)
        yield camera.expose(expected, rng, dtype)
