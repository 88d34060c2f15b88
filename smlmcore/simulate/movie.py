"""A movie from its parts, drawn and exposed chunk by chunk: memory does not grow with its length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from inspect import signature
from typing import Any

import numba
import numpy as np

from ..camera import Camera
from ..data import table
from ..psf import Gaussian2D
from ..psf.base import PSF
from .blinking import Blinking

CHUNK_BYTES = 32 * 2**20  # of expected photons in float32


class Movie:
    """Molecules at `sites` (m, 2), x and y in pixels, seen in `frames` frames of `shape` (height, width).

    `blinking`: when and how brightly they are lit.  `psf`: any of `smlmcore.psf`; what it has beside x, y, photons and
    background is in `parameters`, a number for all or one for each site (sigma, z, ...).  `background`: photons per
    pixel, a number or a map (h, w), see `random_field`.  `drift`: (frames, 2) in pixels, or its random-walk standard
    deviation per √frame.  `camera`: default sCMOS of offset 100, 0.5 electrons per count and read noise 1.5.  `patch`:
    odd side of the square around an emitter, pixels (default 31, for a Gaussian 10 sigma): one farther from the field
    is left out, and a PSF that cannot draw each emitter where it is in a large image is drawn in such squares.

    `chunks(rng)` yields counts and fills `truth`, a table of frame, x, y, photons, background, molecule and the
    parameters, of everything lit at least `least` photons; emitters outside the field but within the patch shine in
    as well, and are in it.
    """

    def __init__(
        self,
        sites: np.ndarray,
        shape: tuple[int, int],
        frames: int,
        blinking: Blinking | None = None,
        psf: PSF | None = None,
        parameters: Mapping[str, Any] | None = None,
        background: Any = 10.0,
        drift: Any = 0.0,
        camera: Camera | None = None,
        patch: int | None = None,
        least: float = 1.0,
    ) -> None:
        self.sites = np.asarray(sites, float).reshape(-1, 2)
        self.shape, self.frames, self.least = (int(shape[0]), int(shape[1])), int(frames), least
        self.blinking = Blinking() if blinking is None else blinking
        self.psf = Gaussian2D(sigma=1.3) if psf is None else psf
        self.camera = Camera(offset=100.0, gain=0.5, read_noise=1.5, pixel_size=0.1) if camera is None else camera
        own = [name for name in self.psf.names if name not in ("x", "y", "photons", "background")]
        self.parameters = {
            k: np.broadcast_to(np.asarray(v, float), len(self.sites)) for k, v in (parameters or {}).items()
        }
        if sorted(self.parameters) != sorted(own):
            raise ValueError(f"simulate.Movie got parameters {sorted(self.parameters)}; this PSF needs {sorted(own)}")
        self.background = np.broadcast_to(np.asarray(background, np.float32), self.shape)
        if min(self.shape) < 1 or self.frames < 1 or not (self.background >= 0).all():
            raise ValueError(
                f"simulate.Movie got shape {self.shape}, {self.frames} frames and a background from "
                f"{self.background.min(initial=0)}; expected a pixel and a frame at least, none negative"
            )
        self.drift = np.asarray(drift, float)
        if self.drift.shape not in ((), (self.frames, 2)) or not np.isfinite(self.drift).all():
            raise ValueError(
                f"simulate.Movie got drift of shape {self.drift.shape}; expected a number or ({frames}, 2), all finite"
            )
        sigma = [v.max(initial=0.5) for k, v in self.parameters.items() if k.startswith("sigma")]
        sigma = max([*sigma, *getattr(self.psf, "constants", np.empty(0))[:1], 0.5])
        gaussian = isinstance(self.psf, Gaussian2D)
        self.patch = int(patch or (2 * int(np.ceil(5 * sigma)) + 1 if gaussian else 31))
        self.truth: np.ndarray = table(frame=[], x=[], y=[])

    def chunks(self, rng: np.random.Generator, dtype: Any = np.uint16) -> Iterator[np.ndarray]:
        """Counts (frames, height, width), chunk by chunk; the same `rng` state gives the same movie."""
        if not isinstance(rng, np.random.Generator):
            raise TypeError(f"simulate.Movie got rng of {type(rng).__name__}; give numpy.random.default_rng(seed)")
        events, found = self.blinking.events(len(self.sites), rng.spawn(1)[0]), []
        size = max(1, CHUNK_BYTES // (4 * self.shape[0] * self.shape[1]))
        at = np.zeros(2)
        for start in range(0, self.frames, size):
            stop = min(start + size, self.frames)
            if self.drift.ndim:
                moved = self.drift[start:stop]
            else:
                moved = at + np.cumsum(self.drift * rng.standard_normal((stop - start, 2)), 0)
                at = moved[-1]
            rows = self.emitters(*events.advance(stop), moved, start)
            found.append(rows)
            yield self.camera.expose(self.render(rows, start, stop), rng, dtype)
        self.truth = np.concatenate(found)

    def emitters(
        self, molecule: np.ndarray, frame: np.ndarray, photons: np.ndarray, moved: np.ndarray, start: int
    ) -> np.ndarray:
        """The truth of some frames: those lit and near enough to be seen."""
        place = self.sites[molecule] + moved[frame - start]
        h, w = self.shape
        edge = self.patch // 2
        seen = (
            (photons >= self.least) & (place > -edge - 0.5).all(1) & (place < (w + edge - 0.5, h + edge - 0.5)).all(1)
        )
        molecule, frame, photons, place = molecule[seen], frame[seen], photons[seen], place[seen]
        row, column = (np.clip(np.rint(place[:, k]).astype(int), 0, n - 1) for k, n in ((1, h), (0, w)))
        return table(
            frame=frame,
            x=place[:, 0],
            y=place[:, 1],
            photons=photons,
            background=self.background[row, column].astype(float),
            **{name: values[molecule] for name, values in self.parameters.items()},
            molecule=molecule.astype(np.uint32),
        )

    def render(self, rows: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Expected photons, float32 (frames, height, width), of the emitters `rows` in frames `start` to `stop`."""
        values = {k: rows[k] for k in ("x", "y", "photons", *self.parameters)}
        shape = stop - start, *self.shape
        out = light(self.psf, values, rows["frame"].astype(np.int64) - start, shape, self.patch)
        return np.add(out, self.background, out=out)


def light(
    psf: PSF, values: Mapping[str, np.ndarray], frame: np.ndarray, shape: tuple[int, int, int], patch: int = 31
) -> np.ndarray:
    """Expected photons, float32 of `shape` (n, h, w), of emitters in those of n frames that `frame` (e,) tells.

    `values`: parameters of `psf` by name, (e,) each, without the background.  A PSF that cannot draw each emitter where
    it is in a large image is drawn in squares of side `patch`.

    >>> from smlmcore import psf
    >>> ellipse = {"x": [4.0], "y": [5.0], "photons": [900.0], "sigma_x": [1.0], "sigma_y": [1.5], "angle": [0.3]}
    >>> round(float(light(psf.EllipticGaussian2D(rotated=True), ellipse, np.array([1]), (2, 16, 16))[1].sum()))
    900
    """
    n, h, w = shape
    values = {k: np.asarray(v, np.float32) for k, v in values.items()}
    if "image" in signature(psf.render).parameters and not getattr(psf, "rotated", False):
        return psf.render({**values, "background": np.zeros(n, np.float32)}, (h, w), image=frame)
    out, half = np.zeros(shape, np.float32), patch // 2
    left, top = (np.rint(values[k]).astype(np.int64) - half for k in "xy")
    values |= {"x": values["x"] - left.astype(np.float32), "y": values["y"] - top.astype(np.float32)}
    step = max(1, CHUNK_BYTES // (4 * patch**2))
    for i in range(0, len(frame), step):
        part = {k: v[i : i + step] for k, v in values.items()}
        patches = psf.render({**part, "background": np.float32(0)}, (patch, patch))
        add_patches(patches, frame[i : i + step], top[i : i + step], left[i : i + step], out)
    return out


@numba.njit(cache=True)
def add_patches(patches, frame, top, left, out):
    """Add `patches` (n, p, p) to the frames at their places; what lies outside is cut off."""
    for n in range(len(patches)):
        for i in range(max(0, -top[n]), min(patches.shape[1], out.shape[1] - top[n])):
            for j in range(max(0, -left[n]), min(patches.shape[2], out.shape[2] - left[n])):
                out[frame[n], top[n] + i, left[n] + j] += patches[n, i, j]


def random_field(shape: tuple[int, int], low: float, high: float, scale: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth random background (h, w) from `low` to `high` photons, its hills about `scale` pixels wide.

    >>> field = random_field((32, 40), 5.0, 20.0, 8.0, np.random.default_rng(0))
    >>> float(field.min()), float(field.max())
    (5.0, 20.0)
    """
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(rng.standard_normal(shape), scale, mode="wrap")
    span = np.ptp(noise)
    return low + (high - low) * (noise - noise.min()) / (span if span > 0 else 1.0)


def spots(
    rng: np.random.Generator,
    count: int,
    shape: tuple[int, int],
    psf: PSF,
    ranges: Mapping[str, tuple[float, float]],
    camera: Camera | None = None,
    drop_out: float = 0.0,
    zernike: Mapping[tuple[int, int], tuple[float, float]] | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A training set of single emitters: images (count, h, w), and their parameters (count,) each as labels.

    Every parameter of `psf` is uniform in its range (low, high) of `ranges`.  With chance `drop_out` the emitter is
    off: its photons, in the image and in the labels, are 0.  Images are photoelectrons after an exposure by `camera`,
    or with Poisson noise alone where it is None.  `zernike`, for `psf.Pupil`: {(n, m): (low, high)}, radians, drawn
    for each image and added to the pupil's phase; the labels have them under "zernike", (count, modes).

    >>> from smlmcore import psf
    >>> ranges = {"x": (4, 6), "y": (4, 6), "photons": (500, 900), "background": (5, 9), "sigma": (1, 1.4)}
    >>> images, labels = spots(np.random.default_rng(0), 7, (11, 11), psf.Gaussian2D(), ranges, drop_out=0.3)
    >>> images.shape, sorted(labels)
    ((7, 11, 11), ['background', 'photons', 'sigma', 'x', 'y'])
    """
    if sorted(ranges) != sorted(psf.names):
        raise ValueError(f"spots got ranges for {sorted(ranges)}; this PSF has {sorted(psf.names)}")
    labels = {name: rng.uniform(*ranges[name], count) for name in psf.names}
    labels["photons"] = np.where(rng.random(count) < drop_out, 0.0, labels["photons"])
    if zernike:
        from ..psf import Pupil

        if not isinstance(psf, Pupil):
            raise ValueError(f"spots got zernike and a PSF of {type(psf).__name__}; only psf.Pupil has them")
        labels["zernike"] = np.stack([rng.uniform(*limits, count) for limits in zernike.values()], 1)
        each = ({name: labels[name][i : i + 1] for name in psf.names} for i in range(count))
        aberrated = (psf.aberrated(dict(zip(zernike, c, strict=True))) for c in labels["zernike"].tolist())
        expected = np.empty((count, *shape))
        for image, model, values in zip(expected, aberrated, each, strict=True):
            image[...] = model.render(values, shape)[0]
    else:
        expected = psf.render(labels, shape)
    camera = Camera(0.0, 1.0) if camera is None else camera
    return camera.photoelectrons(camera.expose(expected, rng, np.float32)), labels
