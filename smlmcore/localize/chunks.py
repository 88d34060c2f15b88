"""The chunks of a run: what decides about them, and how each is localized.

The frames are cut into chunks that do not know of each other.  Each goes through background, `find` and `fit_peaks` or
`fit_learned`, and becomes a file in the folder `chunks`, written once, by rename; so a run that was stopped, however
roughly, goes on where it was, workers of a cluster need nothing but the folder, and the table depends on neither.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from .. import __version__, data
from ..psf import Gaussian2D
from ..psf.base import PSF
from ..threads import with_threads
from . import finder
from .background import BLOCK, background, flickering
from .crowd import fit_peaks
from .emitters import as_table
from .finder import find
from .haze import haze
from .shape import SIGMA, usual_of
from .source import Source

if TYPE_CHECKING:  # the package's network loads layers, optimisers and more, which fits do without
    from .network import Network

PIXELS = 1 << 22  # of a chunk: 16 MB, in the cache of many a processor
FEWEST = 8  # frames of a chunk
CLEARED = 2  # times at most that haze is taken off the frames
CHUNKS = "chunks"
NETWORK = "network.npz"
Chunk = tuple[np.ndarray, np.ndarray | None]  # frames, and where they are saturated


@dataclass(frozen=True)
class Plan:
    """All that decides what is in the table of a chunk, and nothing else."""

    movies: tuple[str, ...]
    files: tuple[tuple[int, int], ...]  # size and time of change of each
    camera: tuple[tuple[str, Any], ...]
    psf: PSF | None
    sigma: float | None
    box: int | None
    threshold: float | None
    false_positives: float
    shape: tuple[int, int, int]
    size: int  # frames of a chunk
    folder: str
    method: str = "fit"
    model: tuple[str, int] | None = None  # a network's file and when it changed, if it is not the package's
    learn: bool = False

    @property
    def chunks(self) -> list[tuple[int, int]]:
        """First frame and end of each chunk."""
        return [(a, min(a + self.size, self.shape[0])) for a in range(0, self.shape[0], self.size)]

    def file(self, number: int) -> Path:
        return Path(self.folder) / CHUNKS / f"{number:06d}.npy"

    @property
    def mark(self) -> Path:
        """The file that says to which plan the chunks belong."""
        return self.file(0).with_name("plan.txt")

    @property
    def usual(self) -> Path:
        """Where that lies which holds for all chunks, see `usual`."""
        return self.file(0).with_name("usual.npy")

    @property
    def width(self) -> float | None:
        """Of the PSF, if it is given."""
        return self.sigma or (self.psf.sigma if isinstance(self.psf, Gaussian2D) else None)

    @property
    def network(self) -> Path:
        """Where the network lies that is learned for this movie."""
        return self.file(0).with_name(NETWORK)

    @property
    def fingerprint(self) -> str:
        """Changes with whatever may change a chunk."""
        text = {**asdict(self), "folder": "", "psf": describe(self.psf), "version": __version__, "format": 2}
        return hashlib.sha256(json.dumps(text, default=str, sort_keys=True).encode()).hexdigest()


def chunk_size(shape: tuple[int, int, int]) -> int:
    """Frames of a chunk: whole blocks of background, where frames are small.

    >>> chunk_size((10_000, 128, 128)), chunk_size((10_000, 2048, 2048))
    (256, 8)
    """
    size = max(FEWEST, PIXELS // max(shape[1] * shape[2], 1))
    return size // BLOCK * BLOCK if size >= BLOCK else size


def begun(plan: Plan) -> bool:
    """Whether a run with the same plan was stopped before its chunks were cleared away."""
    return plan.mark.exists() and plan.mark.read_text() == plan.fingerprint


def prepare(plan: Plan) -> list[int]:
    """Numbers of the chunks that are yet to be done; those of a run with other settings are removed first.

    Raises `DataError` for a folder `chunks` of somebody else's.
    """
    chunks, mark = plan.mark.parent, plan.mark
    if mark.exists() and not begun(plan):
        shutil.rmtree(chunks)
    chunks.mkdir(parents=True, exist_ok=True)
    if not mark.exists() and (foreign := [p for p in chunks.iterdir() if p.suffix != ".part"]):
        raise data.DataError(f"{chunks}: holds {foreign[0].name}, not of a run; choose another folder for the results")
    if not mark.exists():
        with data.atomic(mark) as temporary:
            temporary.write_text(plan.fingerprint)
    for left in chunks.parent.glob(f".{chunks.parent.name}.*.part"):  # results half-written when a run was killed
        shutil.rmtree(left, ignore_errors=True)
    return [n for n in range(len(plan.chunks)) if not plan.file(n).exists()]


def clear(plan: Plan) -> None:
    """Remove the chunks of a run that is done, but a network that was learned; the mark last, lest they be nobody's."""
    if plan.learn:
        os.replace(plan.network, Path(plan.folder) / NETWORK)
    for path in plan.mark.parent.iterdir():
        if path != plan.mark:
            path.unlink(missing_ok=True)
    shutil.rmtree(plan.mark.parent, ignore_errors=True)


def compiled_before() -> bool:
    """Whether numba has in its cache what a chunk needs, of which this is the first."""
    first = finder._seek
    return any(Path(first.stats.cache_path).glob(f"finder.{first.__name__}-*.nbi"))


def compute(
    plan: Plan, source: Source, todo: Sequence[int], workers: int | None, scheduler: str | None
) -> Iterator[int]:
    """Do the chunks `todo`, here or by Dask; yields the number of each that is done."""
    _save(plan.usual, usual(plan, source))
    if workers is not None or scheduler is not None:
        from .cluster import spread_out

        yield from spread_out(plan, todo, workers, scheduler)
    elif network_of(plan) is None:
        yield from side_by_side(plan, source, todo)
    else:  # whose layers use all threads
        for number, chunk in read_ahead(plan, source, todo):
            do(plan, number, source, chunk)
            yield number


def side_by_side(plan: Plan, source: Source, todo: Sequence[int]) -> Iterator[int]:
    """Do the chunks one per thread, or with several threads each if there are few; yields the number of each."""
    threads = numba.get_num_threads()

    def work(number: int) -> int:
        with with_threads(max(1, threads // len(todo))):
            do(plan, number, source)
        return number

    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(work, todo)


def read_ahead(plan: Plan, source: Source, todo: Sequence[int]) -> Iterator[tuple[int, Chunk]]:
    """Number and frames of each chunk; the next is being read while the one before is worked on."""
    with ThreadPoolExecutor(1) as reader:
        chunks = [partial(reader.submit, source.read, *plan.chunks[number]) for number in todo]
        ahead = chunks[0]() if todo else None
        for number, following in zip_longest(todo, chunks[1:]):
            now = ahead.result()
            ahead = following() if following else None
            yield number, now


def do(plan: Plan, number: int, source: Source, chunk: Chunk | None = None) -> None:
    """Localize one chunk, which may have been read already, and write its table."""
    first, last = plan.chunks[number]
    frames, full = source.read(first, last) if chunk is None else chunk
    width, centre, scale, uneven = np.load(plan.usual).tolist()
    table = localize_frames(
        frames, source.camera.variance, psf_of(plan), width, plan.box or box_of(width),
        plan.threshold, plan.false_positives, full, network_of(plan), plan.method == "network",
        (centre, scale), uneven,
    )  # fmt: skip
    table["frame"] += first
    _save(plan.file(number), table)


def localize_frames(
    frames: np.ndarray,
    variance: Any = 0.0,
    psf: PSF | None = None,
    sigma: float = SIGMA,
    box: int | None = None,
    threshold: float | None = None,
    false_positives: float = 0.01,
    saturated: np.ndarray | None = None,
    network: Network | None = None,
    everywhere: bool = False,
    light: tuple[float, float] | None = None,
    uneven: float = 0.0,
) -> np.ndarray:
    """All molecules in `frames` (n, h, w) of photoelectrons: a table, sorted by frame, y, x.

    With a `network`, it is asked about what one emitter does not explain, or `everywhere`; `light`: see `joint`,
    `uneven`: see `crowd`.

    >>> rng = np.random.default_rng(0)
    >>> one = {"x": [9.3], "y": [7.6], "photons": [3000.0], "background": [5.0], "sigma": [1.3]}
    >>> image = Gaussian2D().render(one, (16, 20))
    >>> table = localize_frames(rng.poisson(image))
    >>> len(table), abs(table["x"][0] - 9.3) < 5 * table["lpx"][0]
    (1, np.True_)
    """
    psf = Gaussian2D() if psf is None else psf
    frames = np.ascontiguousarray(frames, np.float32)
    behind = flickering(frames, background(frames, variance, sigma), variance, sigma)
    # what is saturated is bright enough to be found, but no measure of brightness
    measured = frames if saturated is None else np.where(saturated, np.float32(np.nan), frames)
    box, ground = box or box_of(sigma), behind
    for cleared in range(CLEARED + 1):
        peaks = None if everywhere else find(frames, ground, variance, sigma, threshold, false_positives)
        if network is not None:
            from .learned import fit_learned

            found = fit_learned(network, measured, ground, peaks, psf, variance, sigma, box, light, uneven)
        else:
            found = fit_peaks(measured, ground, peaks, psf, variance, sigma, box, uneven)
        fog = haze(measured, behind, found, psf, variance, sigma, light[0] if light else 0.0)
        if fog is None or cleared == CLEARED:
            break
        ground = fog
    return as_table(found, psf)


def network_of(plan: Plan) -> Network | None:
    """The network that helps, if one does."""
    if plan.method == "fit":
        return None
    from .network import general

    if plan.learn:
        return _loaded(str(plan.network), plan.network.stat().st_mtime_ns)
    return general() if plan.model is None else _loaded(*plan.model)


@lru_cache(2)
def _loaded(path: str, _changed: int) -> Network:
    from .network import Network

    return Network.load(path)


def psf_of(plan: Plan) -> PSF:
    """The PSF that is fitted: the one given, or that of the movie for which the network was taught."""
    if plan.psf is not None:
        return plan.psf
    network = network_of(plan)
    return Gaussian2D() if network is None else network.prior.psf


def teach(plan: Plan, source: Source, progress: bool = True) -> None:
    """Give the package's network lessons on what frames from all over the movie suggest, unless this is done."""
    if plan.network.exists():
        return
    from .learn import LESSONS, learn, prior_of
    from .network import Network, general

    few, read = some_frames(source), source.camera.variance
    width = usual_of(few, read, None, plan.width, plan.threshold).sigma
    prior = prior_of(few, read, width, plan.psf, plan.threshold)
    learn(Network(prior, general().parameters), LESSONS, rate=1e-3, progress=progress).save(plan.network)


def usual(plan: Plan, source: Source) -> np.ndarray:
    """What isolated molecules are in frames from all over the movie: see `shape.Usual`."""
    psf, sigma = psf_of(plan), plan.width
    if sigma is None and not isinstance(psf, Gaussian2D) and (network := network_of(plan)) is not None:
        sigma = round(sum(network.prior.sigma) / 2, 2)
    return np.array(usual_of(some_frames(source), source.camera.variance, psf, sigma, plan.threshold))


def some_frames(source: Source) -> np.ndarray:
    """Up to eight times six frames from all over the movie."""
    frames = source.shape[0]
    step = max(1, frames // 8)
    few = [source.read(a, min(a + 6, frames))[0] for a in range(0, frames, step)][:8]
    return np.concatenate(few) if few else np.empty(source.shape, np.float32)


def gather(plan: Plan) -> list[np.ndarray]:
    """The tables of all chunks, at least one."""
    return [np.load(plan.file(n)) for n in range(len(plan.chunks))] or [as_table(None, psf_of(plan))]


def describe(psf: PSF | None) -> dict[str, Any] | None:
    """Name and parameters of a PSF, for reports."""
    return None if psf is None else {"name": type(psf).__name__, **_numbers(psf.configuration())}


def box_of(sigma: float) -> int:
    """Side of the images that are fitted, pixels."""
    return int(np.clip(2 * int(np.ceil(3 * sigma)) + 1, 7, 31))


def _save(path: Path, array: Any) -> None:
    with data.atomic(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON can hold: maps by their median."""
    out = {}
    for name, value in values.items():
        array = isinstance(value, np.ndarray) and value.ndim > 0
        out[name] = (
            float(np.median(value)) if array else value if isinstance(value, str | int | float | None) else str(value)
        )
    return out
