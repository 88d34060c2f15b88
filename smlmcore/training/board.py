"""A training on TensorBoard, and the same numbers as a plain dictionary."""

from __future__ import annotations

import json
import platform
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__, backend, config
from ..autograd import no_grad
from ..fit.model import PARTS, FitModel, describe, rows
from ..layers.chain import part
from ..pictures import limits, middle, residual
from .callback import Callback
from .errors import errors
from .profiling import Profiler

if TYPE_CHECKING:
    from .trainer import Trainer

FEW = 512  # images on which errors are measured
VERSIONS = ("numpy", "scipy", "numba", "cupy-cuda12x", "cupy-cuda13x")


class Board(Callback):
    """Writes what a `Trainer` does for TensorBoard: `tensorboard --logdir FOLDER`.  Needs tensorboardX.

    Every `every` steps: loss, gradient norm, learning rate and what parts of the model noted.  Every epoch: losses and
    images per second.  At the end, and after as many epochs as keep the time of all logging below `share` of that of
    training (0: only at the end): errors against the `truth`, pictures of `count` images not trained on (data,
    prediction, residual / σ, reference), those of the parts (`smlmcore.pictures`), histograms of parameters and
    gradients.  Once: configuration, command line and versions, summary and graph of the model, hyperparameters, and a
    profile of three steps as a table, besides trace.json for chrome://tracing or Perfetto.

    `folder`: default a new one, named by date and time, in the folder `[LOG_PATH] run` of config.ini.  `truth`: true
    parameters by name of all images of the trainer, see `training.errors`; a source that draws images gives them with
    the images.  `hyperparameters`: more of them, beside those that the parts are configured with.

    `history` has all numbers again, {name: ([step, ...], [value, ...])}: `plot.history` draws it.  `seconds`: the time
    that logging took.  Nothing is drawn from the trainer's generator: results are the same with a Board.

    >>> import tempfile
    >>> import smlmcore as sc
    >>> model = sc.fit.gaussian2d((7, 7), width=8, hidden=16)
    >>> images = np.random.default_rng(0).poisson(5.0, (40, 7, 7))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     board = Board(folder)
    ...     history = sc.training.Trainer(model, images, epochs=2, batch=16, callbacks=[board]).run()
    >>> board.history["loss/validation"] == (history["step"], history["validation"])
    True
    """

    def __init__(
        self,
        folder: str | PathLike[str] | None = None,
        truth: Mapping[str, Any] | None = None,
        *,
        every: int = 10,
        share: float = 0.01,
        count: int = 8,
        hyperparameters: Mapping[str, Any] | None = None,
    ) -> None:
        if every < 1 or not share >= 0 or count < 1:
            raise ValueError(
                f"Board got every={every}, share={share}, count={count}; expected every and count >= 1, share >= 0"
            )
        try:
            import tensorboardX  # noqa: F401
        except ImportError:
            raise ImportError("Board needs tensorboardX; pip install 'smlmcore[board]'") from None
        self.folder = _new_folder() if folder is None else Path(folder)
        self.truth = None if truth is None else dict(truth)
        self.every, self.share, self.count = every, share, count
        self.hyperparameters = dict(hyperparameters or {})
        self.history: dict[str, tuple[list[int], list[float]]] = {}
        self.seconds = 0.0
        self.writer: Any = None  # of tensorboardX, while a training runs
        self._gradients: Mapping[str, Any] = {}
        self._sample: tuple[Any, Any, Any] | None = None
        self.profiler = Profiler(self.folder / "trace.json")

    def start(self, trainer: Trainer) -> None:
        """Open the file and write what does not change."""
        for name, values in (self.truth or {}).items():
            if len(trainer.held_out) + len(trainer.trained) != len(values):
                raise ValueError(
                    f"Board got {len(values)} true values of {name} for {len(trainer.held_out) + len(trainer.trained)} "
                    "images; expected one for each image that the Trainer got"
                )
        with self._timed():
            from tensorboardX import SummaryWriter

            self.writer = SummaryWriter(str(self.folder), purge_step=trainer.step + 1 if trainer.step else None)
            model = trainer.model
            self._text("command line", " ".join(sys.argv))
            self._text("versions", "\n".join(_versions()))
            if isinstance(model, FitModel):
                from .graph import graph

                described = {name: describe(getattr(model, name)) for name in PARTS}
                self._text("configuration", json.dumps(described, indent=2))
                self._text("summary", model.summary())
                self._event(graph_def=graph(model).SerializeToString())
                self.hyperparameters = _scalars(described) | self.hyperparameters
            self.hyperparameters = {"epochs": trainer.epochs, **self.hyperparameters}

    def step(self, trainer: Trainer, record: Mapping[str, Any]) -> None:
        """Numbers of a step, and the profile."""
        self._gradients = trainer.gradients
        with self._timed():
            if record["step"] % self.every == 0:
                for name, value in record.items():
                    if name not in ("epoch", "step"):
                        self._scalar(f"step/{name}", value, record["step"])
            before = self.profiler.result
            self.profiler.step(trainer, record)
            if self.profiler.result is not before:
                self._text("profile", self.profiler.result.table(30))

    def epoch(self, trainer: Trainer, record: Mapping[str, Any]) -> None:
        """Numbers of an epoch; pictures, histograms and errors if there has been time enough."""
        with self._timed():
            step = record["step"]
            for name in ("train", "validation"):
                if not np.isnan(record[name]):  # an epoch without a validation
                    self._scalar(f"loss/{name}", record[name], step)
            self._scalar("training/learning_rate", record["rate"], step)
            self._scalar("training/images_per_second", record["images_per_second"], step)
        if self.seconds < self.share * record["seconds"]:
            self._look(trainer)

    def end(self, trainer: Trainer) -> None:
        """Everything once more, of the best parameters; then the file is closed."""
        if self.writer is None:  # it did not start
            return
        self.profiler.end(trainer)
        if trainer.history["epoch"]:
            self._look(trainer, last=True)
        with self._timed():
            from tensorboardX.summary import hparams

            metrics = {name: values[-1] for name, (_, values) in self.history.items() if not name.startswith("step/")}
            for summary in hparams(self.hyperparameters, metrics):
                self.writer.file_writer.add_summary(summary)
            self.writer.close()
            self.writer = None

    def _look(self, trainer: Trainer, last: bool = False) -> None:
        """Histograms of parameters and gradients, pictures and errors."""
        with self._timed():
            step, model = trainer.step, trainer.model
            for kind, arrays in (("parameters", model.parameters), ("gradients", self._gradients)):
                for name, values in arrays.items():
                    values = backend.to_cpu(values)
                    if values.size and np.isfinite(values).all():
                        self.writer.add_histogram(f"{kind}/{name}", values.ravel(), step, bins=64)
            self._pictures(model.pictures() if hasattr(model, "pictures") else {}, step)
            if last and hasattr(model, "renderer") and _is_pupil(psf := _psf(model)):
                from .. import plot

                self._figure("figures/pupil", plot.pupil(psf), step)
            if self._sample is None:
                self._sample = _sample(trainer, self.truth)
            if isinstance(model, FitModel) and self._sample is not None:
                self._compare(model, step, *self._sample)

    def _compare(self, model: FitModel, step: int, images: Any, variance: Any, extra: Any, truth: Any) -> None:
        """Errors against the truth, and pictures of data, prediction, residual and reference."""
        with no_grad():
            values, prediction = model(model.parameters, images, variance, extra)
        few = slice(self.count)
        data, drawn = (middle(v[few]) for v in (images, prediction))
        noise = middle(rows(variance, few, images.ndim)) if variance.ndim == images.ndim else variance
        shown = {"data": data, "prediction": drawn, "residual": residual(data, drawn, noise)}
        if truth:
            for name, value in errors(values, truth, _psf(model), model.renderer.shape, variance).items():
                self._scalar(name, value, step)
            reference = _reference(model, {k: v[few] for k, v in truth.items()}, values)
            if reference is not None:
                shown["reference"] = middle(reference)
        for name, pictures in shown.items():
            scale = ("RdBu_r", -4, 4) if name == "residual" else ("viridis", *limits(data))
            self.writer.add_image(f"images/{name}", _strip(pictures, *scale), step, dataformats="HWC")

    def _pictures(self, pictures: Mapping[str, Any], step: int) -> None:
        for name, values in pictures.items():
            if isinstance(values, Mapping):
                from matplotlib.figure import Figure

                from .. import plot

                figure = Figure(figsize=(5, 0.6 + 0.2 * len(values)), layout="constrained")
                plot.supplementary(figure.subplots(), name, values)
                self._figure(f"figures/{_tag(name)}", figure, step)
            else:
                low, high = limits(values)
                most = max(-low, high)
                strip = _strip(values[None], *(("RdBu_r", -most, most) if low < 0 else ("viridis", low, high)))
                self.writer.add_image(f"pictures/{_tag(name)}", strip, step, dataformats="HWC")

    def _figure(self, name: str, figure: Any, step: int) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        self.writer.add_image(name, np.asarray(canvas.buffer_rgba())[..., :3], step, dataformats="HWC")

    def _scalar(self, name: str, value: Any, step: int) -> None:
        value = float(value)
        self.writer.add_scalar(name, value, step)
        steps, values = self.history.setdefault(name, ([], []))
        steps.append(int(step))
        values.append(value)

    def _text(self, name: str, text: str) -> None:
        self.writer.add_text(name, "\n".join(f"    {line}" for line in text.splitlines()))  # a block of code

    def _event(self, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self.writer.file_writer.add_event(Event(**content))

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start


def _new_folder() -> Path:
    """A folder that does not exist, named by the time, where config.ini has the runs."""
    at = Path(config.get("LOG_PATH", "run")).expanduser() / time.strftime("%Y%m%d-%H%M%S")
    return next(p for p in (at, *(at.with_name(f"{at.name}-{i}") for i in range(2, 1000))) if not p.exists())


def _versions() -> Iterator[str]:
    yield f"smlmcore {__version__}"
    yield f"python {platform.python_version()} on {platform.system()} {platform.machine()}"
    for name in VERSIONS:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue


def _scalars(described: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Numbers and words of a configuration, by their path; lists and what is not set are left out."""
    found = {}
    for name, value in described.items():
        if isinstance(value, Mapping):
            found |= _scalars(value, f"{prefix}{name}.")
        elif isinstance(value, (bool, int, float, str)):
            found[prefix + name] = value.rpartition(":")[2] if name == "class" else value
    return found


def _sample(trainer: Trainer, truth: Mapping[str, Any] | None) -> tuple[Any, Any, Any, Any] | None:
    """Up to FEW images not trained on, or else trained on, their variance, numbers and truth."""
    block = next(trainer.feed.validation(), None)
    if block is None:
        if not len(trainer.trained):
            return None
        which = np.sort(trainer.trained[:FEW])
        images, variance = trainer.images[which], rows(trainer.variance, which, trainer.images.ndim)
    else:
        images, variance, which = block
        images = images[:FEW]
        variance = backend.module(images).asarray(variance)
        variance = rows(variance, slice(FEW), images.ndim)
    if isinstance(which, Mapping):  # a source gave the truth with the images
        return images, variance, None, {k: backend.to_cpu(v)[:FEW] for k, v in which.items()}
    which = None if which is None else backend.to_cpu(which)[:FEW]
    known = None if truth is None or which is None else {k: backend.to_cpu(v)[which] for k, v in truth.items()}
    return images, variance, which, known


def _tag(name: str) -> str:
    """`name` of letters that TensorBoard keeps."""
    return re.sub(r"\W+", "_", name).strip("_")


def _psf(model: FitModel) -> Any:
    """The PSF that the model draws with, in NumPy arrays, or None."""
    psf = model.psf if hasattr(model.renderer, "model") else getattr(model.renderer, "psf", None)
    return psf.detach() if hasattr(psf, "detach") else psf


def _is_pupil(psf: Any) -> bool:
    from ..psf import Pupil

    return isinstance(psf, Pupil)


def _reference(model: FitModel, truth: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
    """What the model draws from the truth, if that has all that is needed."""
    if not set(values) - {"p"} <= set(truth):
        return None
    xp = backend.module(*values.values())
    clean = {k: xp.asarray(truth[k], values[k].dtype) for k in values if k != "p"}
    if all(bool(xp.isfinite(v).all()) for v in clean.values()):
        with no_grad():
            return model.renderer(part(model.parameters, "renderer"), clean)
    return None


def _strip(images: np.ndarray, colors: str, low: float, high: float) -> np.ndarray:
    """Images (n, h, w) side by side as colours (h, w, 3), uint8, enlarged to 64 pixels or more."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    zoom = max(1, 64 // images.shape[1])
    colored = colormaps[colors](Normalize(low, max(high, low + 1e-30))(np.ma.masked_invalid(images)), bytes=True)
    colored = colored[..., :3].repeat(zoom, 1).repeat(zoom, 2)
    framed = np.pad(colored, ((0, 0), (0, 0), (0, 2), (0, 0)), constant_values=255)
    return np.concatenate(list(framed), axis=1)[:, :-2]
