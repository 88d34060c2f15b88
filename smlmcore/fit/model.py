"""The model that links encoder, mapper, renderer and loss: images in, images out, no labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from os import PathLike
from typing import Any

import numpy as np

from .. import backend, profiler
from ..autograd import no_grad
from ..data import DataError, atomic
from ..encoder import Feedback
from ..layers.chain import part
from ..loss import PoissonGaussian
from ..pictures import Picture
from .refine import refine
from .result import Result
from .summary import summary

FORMAT = 2
PARTS = ("encoder", "mapper", "renderer", "loss")


class FitModel:
    """encoder -> mapper -> renderer, compared with the images by `loss`; the parameters found are physical.

    `encoder(p, images)` gives features (n, ...), `mapper(p, features, ...)` named parameters, (n,) each or images,
    `renderer(p, parameters)` images (n, *shape), `loss(prediction, images, variance)` nats per pixel.  What is learned
    lies in `parameters`, one flat mapping of named arrays ("encoder.0.weight"); `init` draws it.  An encoder that is
    `by_index`, as `encoder.Table`, gets the images' index instead of the images: their number (n,) in the data set.

    >>> import smlmcore as sc
    >>> model = sc.fit.gaussian2d((11, 11), sigma=1.3).init(np.random.default_rng(0))
    >>> images = np.random.default_rng(1).poisson(10.0, (2, 11, 11))
    >>> sorted(model.predict(images))
    ['background', 'photons', 'sigma', 'x', 'y']
    """

    def __init__(self, encoder: Any, mapper: Any, renderer: Any, loss: Any | None = None) -> None:
        self.encoder, self.mapper, self.renderer = encoder, mapper, renderer
        self.loss = PoissonGaussian(exact=False) if loss is None else loss
        self.parameters: dict[str, Any] = {}

    def init(self, rng: np.random.Generator) -> FitModel:
        """Draw the learned parameters at the start from `rng`; returns the model."""
        own = {part: getattr(self, part).init(rng) for part in (PARTS if self._learned_loss else PARTS[:3])}
        self.parameters = {f"{part}.{name}": value for part, values in own.items() for name, value in values.items()}
        return self

    @property
    def by_index(self) -> bool:
        """Whether the encoder gets the index of the images instead of the images."""
        return getattr(self.encoder, "by_index", False)

    def __call__(
        self, p: Mapping[str, Any], images: Any, variance: Any = 0.0, index: Any = None
    ) -> tuple[dict[str, Any], Any]:
        """Named parameters and rendered images for `images` (n, *shape), with the learned parameters `p`.

        `index`: for an encoder `by_index`, what it looks up for each image; default 0, 1, ...
        """

        def draw(values: Mapping[str, Any]) -> Any:
            with profiler.span("renderer"):
                return self.renderer(part(p, "renderer"), values)

        features = self.features(p, images, index)
        with profiler.span("mapper"):
            values = self.mapper(part(p, "mapper"), features, images, variance, draw)
        return values, draw(values)

    def features(self, p: Mapping[str, Any], images: Any, index: Any = None) -> Any:
        """What the encoder makes of `images`, or of their `index`."""
        source = images
        if self.by_index:
            source = np.arange(len(images)) if index is None else index
        seen = [self.renderer.state(part(p, "renderer"))] if isinstance(self.encoder, Feedback) else []
        with profiler.span("encoder"):
            return self.encoder(part(p, "encoder"), source, *seen)

    def objective(self, p: Mapping[str, Any], images: Any, variance: Any = 0.0, index: Any = None) -> Any:
        """Mean loss in nats per pixel: the number that training makes small."""
        prediction = self(p, images, variance, index)[1]
        with profiler.span("loss"):
            return self.nats(p, prediction, images, variance).mean()

    def nats(self, p: Mapping[str, Any], prediction: Any, images: Any, variance: Any = 0.0) -> Any:
        """Loss of every pixel of rendered images; a loss that learns, as `loss.SelfLimiting`, has its part of `p`."""
        return self.loss(*([part(p, "loss")] if self._learned_loss else []), prediction, images, variance)

    @property
    def _learned_loss(self) -> bool:
        return getattr(self.loss, "learned", False)

    def predict(self, images: Any, variance: Any = 0.0, batch: int = 1024, index: Any = None) -> dict[str, Any]:
        """Named parameters, (n,) each or images, from the encoder alone, for `images` (n, *shape) in photoelectrons.

        `variance`: read-noise variance in squared photoelectrons, scalar, (*shape) or (n, *shape); `index`: as for a
        call.
        """
        images, variance = self.check(images, variance)
        index = np.arange(len(images)) if index is None else np.asarray(index)
        blocks = [slice(i, i + batch) for i in range(0, max(len(images), 1), batch)]
        with no_grad():
            found = [self(self.parameters, images[b], rows(variance, b, images.ndim), index[b])[0] for b in blocks]
        xp = backend.module(images)
        return {name: xp.concatenate([block[name] for block in found]) for name in found[0]}

    def refine(
        self, images: Any, variance: Any = 0.0, initial: Mapping[str, Any] | None = None, **settings: Any
    ) -> Result:
        """Polish the encoder's prediction (or `initial`) to the likelihood's maximum; see `fit.refine`."""
        if not hasattr(self.renderer, "psf"):
            raise TypeError(
                f"FitModel.refine needs a renderer with a PSF; renderer.{type(self.renderer).__name__} has none: "
                "train for longer instead"
            )
        images, variance = self.check(images, variance)
        start = self.predict(images, variance) if initial is None else initial
        names = self.renderer.psf.names
        table = backend.module(images).stack([start[name] for name in names], 1)
        loss = self.loss.loss if self._learned_loss else self.loss
        return refine(self.psf, images, variance, table, loss=loss, **settings)

    def summary(self) -> str:
        """Parts, what comes out of each, their parameters and memory, as text; see `fit.summary`."""
        return summary(self)

    def pictures(self) -> dict[str, Picture]:
        """What the parts have to show, by name (`smlmcore.pictures`): a template, a kernel, a pupil, its coefficients.

        >>> import smlmcore as sc
        >>> model = sc.fit.gaussian2d((11, 11))
        >>> model.renderer = sc.renderer.Template(np.ones((11, 11)), (11, 11))
        >>> list(model.init(np.random.default_rng(0)).pictures())
        ['template']
        """
        shown: dict[str, Picture] = {}
        for name in PARTS:
            if hasattr(getattr(self, name), "pictures"):
                own = {k: backend.to_cpu(v) for k, v in part(self.parameters, name).items()}
                shown |= getattr(self, name).pictures(own)
        return shown

    @property
    def psf(self) -> Any:
        """The PSF that draws the images, as it has been learned."""
        return self.renderer.model(part(self.parameters, "renderer"))

    def to_gpu(self) -> FitModel:
        """Move the learned parameters to the GPU, for images that live there; returns the model."""
        self.parameters = {name: backend.to_gpu(value) for name, value in self.parameters.items()}
        return self

    def check(self, images: Any, variance: Any) -> tuple[Any, Any]:
        """`images` as float32 (n, *shape) of the renderer's shape, `variance` as float32, or an error."""
        if not self.parameters:
            raise ValueError("FitModel has no learned parameters yet; call init(rng) or load(path) first")
        images = backend.asarray(images).astype(np.float32)
        shape = tuple(self.renderer.shape)
        if images.ndim == len(shape) + 2 and images.shape[1] == 1:
            images = images[:, 0]
        if images.ndim != len(shape) + 1 or images.shape[1:] != shape:
            raise ValueError(
                f"FitModel got images of shape {images.shape}; expected (n, {', '.join(map(str, shape))}) or (n, 1, "
                "...): cut the images to the size that the model was made for"
            )
        return images, check_variance(variance, images)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the learned parameters and the configuration of all parts to `path` (.npz, no pickle)."""
        parts = {name: describe(getattr(self, name)) for name in PARTS}
        header = json.dumps({"format": FORMAT, "parts": parts})
        arrays = {name: backend.to_cpu(value) for name, value in self.parameters.items()}
        with atomic(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, header=np.array(header), **arrays)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> FitModel:
        """The model that `save` wrote; raises `DataError` for any other file."""
        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(str(file["header"]))
                arrays = {name: file[name] for name in file.files if name != "header"}
            if header["format"] != FORMAT:
                raise ValueError(f"format {header['format']}")
            model = cls(*(build(header["parts"][name]) for name in PARTS))
        except (ValueError, KeyError, EOFError) as error:
            raise DataError(f"{path} is no model of this library, format {FORMAT} ({error})") from None
        model.parameters = arrays
        return model


def describe(value: Any) -> Any:
    """Class and configuration of a part, and of the parts in that, JSON-ready; `build` makes it again."""
    if hasattr(value, "configuration"):
        return {"class": f"{type(value).__module__}:{type(value).__name__}", **describe(value.configuration())}
    return {k: describe(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def build(description: Any) -> Any:
    """The part that `describe` described; only classes of this package are accepted."""
    if not isinstance(description, Mapping):
        return description
    settings = {k: build(v) for k, v in description.items()}
    if "class" not in settings:
        return settings
    module, _, name = settings.pop("class").partition(":")
    if not module.startswith(f"{__package__.partition('.')[0]}."):
        raise ValueError(f"unknown part {module}:{name}")
    return getattr(import_module(module), name)(**settings)


def check_variance(variance: Any, images: Any) -> Any:
    """`variance` as a non-negative number or an array of the images' dtype that broadcasts to them, or an error."""
    xp = backend.module(images, variance, name="fit")
    v = xp.asarray(variance, images.dtype)
    if v.shape not in ((), images.shape[1:], images.shape):
        raise ValueError(
            f"got variance of shape {v.shape} for images {images.shape}; expected a number, {images.shape[1:]} or "
            f"{images.shape}, in squared photoelectrons"
        )
    if not bool((v >= 0).all()):
        raise ValueError("got a negative or NaN variance; expected read noise squared, in photoelectrons, >= 0")
    return v


def rows(variance: Any, which: Any, ndim: int) -> Any:
    """The variance of the images `which`: those if there is one for each image, of `ndim` axes, else all of it."""
    return variance[which] if variance.ndim == ndim else variance
