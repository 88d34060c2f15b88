"""A model as text: its parts, what comes out of each, their parameters and memory."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backend, profiler
from ..autograd import Tensor, plain
from ..autograd.tensor import Node
from ..profiler import arrays_in, owner

if TYPE_CHECKING:
    from .model import FitModel


def summary(model: FitModel) -> str:
    """Lines for parts, with the shapes that come out for n images, and for their parameters; then memory.

    Memory of a training step is that of parameters, gradients and the two moments of Adam, and of what is kept of each
    image for the walk back.  A model that has no parameters yet is shown as `init` would make it.

    >>> import smlmcore as sc
    >>> table = sc.encoder.Table((50, 2))
    >>> shift = sc.mapper.Direct({name: sc.mapper.Parameter() for name in "xy"})
    >>> print(sc.fit.FitModel(table, shift, sc.renderer.Template(np.ones((7, 7)), (5, 5))).summary())
    part         of                     shape           parameters        KiB
    encoder      Table                  (n, 2)                 100        0.4
      table      float32                (50, 2)                100        0.4
    mapper       Direct                 x (n), y (n)
    renderer     Template               (n, 5, 5)               49        0.2
      template   float32                (7, 7)                  49        0.2
    loss         PoissonGaussian        (n, 5, 5)
    149 parameters, 0.6 KiB; a training step: 2.3 KiB and ... KiB for each image
    """
    model = drawn(model)
    p = {name: Tensor(value) for name, value in model.parameters.items()}
    features, values, prediction, nats = trial(model, p)
    shapes = {
        "encoder": _shape(features),
        "mapper": ", ".join(f"{name} {_shape(value)}" for name, value in values.items()),
        "renderer": _shape(prediction),
        "loss": _shape(nats),
    }
    lines = [("part", "of", "shape", "parameters", "KiB")]
    for name, shape in shapes.items():
        own = {k: v for k, v in model.parameters.items() if k.startswith(f"{name}.")}
        lines.append((name, type(getattr(model, name)).__name__, shape, *_size(own.values())))
        for key, value in own.items():
            lines.append((f"  {key[len(name) + 1 :]}", str(value.dtype), str(value.shape), *_size([value])))
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    text = [
        "  ".join(c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    count = sum(v.size for v in model.parameters.values())
    size = sum(v.nbytes for v in model.parameters.values()) / 1024
    text.append(
        f"{count:,} parameters, {size:,.1f} KiB; a training step: {4 * size:,.1f} KiB and "
        f"{kept(nats, model.parameters.values()) / 1024:,.1f} KiB for each image"
    )
    return "\n".join(line.rstrip() for line in text)


def drawn(model: FitModel) -> FitModel:
    """The model, or one like it with parameters at the start if it has none."""
    return model if model.parameters else copy.copy(model).init(np.random.default_rng(0))


def trial(model: FitModel, p: Mapping[str, Tensor]) -> tuple[Any, Mapping[str, Any], Any, Any]:
    """Features, values, prediction and loss per pixel of one image of 10 photoelectrons, recorded for the walk back."""
    xp = backend.module(*model.parameters.values())
    image = xp.full((1, *model.renderer.shape), 10.0, np.float32)
    index = None
    if getattr(model.encoder, "window", None):
        index = np.zeros((1, len(model.encoder.window)), int)
    features = model.features(p, image, index)
    values, prediction = model(p, image, 0.0, index)
    with profiler.span("loss"):
        return features, values, prediction, model.nats(p, prediction, image, 0.0)


def tape(result: Tensor) -> list[Node]:
    """All recorded ops that led to `result`, oldest first."""
    found: dict[int, Node] = {}
    ahead = [result.node]
    while ahead:
        node = ahead.pop()
        if isinstance(node, Node) and node.index not in found:
            found[node.index] = node
            ahead += node.parents
    return [found[i] for i in sorted(found)]


def kept(result: Any, parameters: Iterable[Any]) -> int:
    """Bytes that the tape of `result` keeps, other than those of the `parameters`."""
    known = {id(owner(a)) for a in parameters}
    saved = {id(owner(a)): owner(a).nbytes for node in tape(result) for a in arrays_in(node.saved)}
    return sum(size for which, size in saved.items() if which not in known)


def _shape(value: Any) -> str:
    return f"({', '.join(['n', *map(str, plain(value).shape[1:])])})"


def _size(values: Iterable[Any]) -> tuple[str, str]:
    values = list(values)
    if not values:
        return "", ""
    return f"{sum(v.size for v in values):,}", f"{sum(v.nbytes for v in values) / 1024:,.1f}"
