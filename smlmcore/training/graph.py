"""The graph of a model for TensorBoard: its ops by part and layer, as recorded on the tape of one image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import profiler
from ..autograd import Tensor
from ..autograd.tensor import Node
from ..fit.summary import drawn, tape, trial

DATA = "images"


class _Parts:
    """Watches in which part of the model nodes are made: (first, last, name) for every visit of a part."""

    def __init__(self) -> None:
        self.visits: list[tuple[int, int, str]] = []

    def watch(self, name: str, kind: str, function: Callable) -> Callable:
        return function

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        first = next(Node.counter)
        try:
            yield
        finally:
            self.visits.append((first, next(Node.counter), name))

    def of(self, node: Node) -> str:
        """The innermost part that made the node."""
        return next((name for first, last, name in self.visits if first < node.index < last), "model")


def graph(model: Any) -> Any:
    """A TensorFlow `GraphDef` of a `fit.FitModel`: parameters, ops, their shapes, and what flows where.

    Names are paths, "encoder/features.0/conv": TensorBoard folds them.  An op that reads a parameter is put beside it;
    what is computed from images alone is not recorded, so ops that begin with it read from "images".

    >>> import smlmcore as sc
    >>> nodes = graph(sc.fit.gaussian2d((9, 9))).node
    >>> [n.name for n in nodes if n.op == "Parameter"][:2]
    ['encoder/features.0/weight', 'encoder/features.0/bias']
    """
    from tensorboardX.proto.graph_pb2 import GraphDef
    from tensorboardX.proto.versions_pb2 import VersionDef

    model = drawn(model)
    parts = _Parts()
    before, profiler.active = profiler.active, parts
    try:
        nats, leaves = _loss(model)
    finally:
        profiler.active = before
    result = [_entry(DATA, "Images", [], (1, *model.renderer.shape), np.dtype("float32"))]
    result += [_entry(_path(name), "Parameter", [], leaf.shape, leaf.dtype) for name, leaf in leaves.items()]
    layers = {id(leaf): _path(name).rpartition("/")[0] for name, leaf in leaves.items()}
    paths = {id(leaf): _path(name) for name, leaf in leaves.items()}
    used, met = Counter(paths.values()), set()
    for node in tape(nats):
        scope = next((layers[id(p)] for p in node.parents if id(p) in layers), parts.of(node))
        used[name := f"{scope}/{node.name}"] += 1
        paths[id(node)] = name if used[name] == 1 else f"{name}_{used[name] - 1}"
        inputs = [paths[id(p)] for p in node.parents if p is not None]
        begins = any(p is None for p in node.parents) and not any(isinstance(p, Node) for p in node.parents)
        if begins or (scope == "loss" and "loss" not in met):
            inputs.append(DATA)
        met.add(scope)
        result.append(_entry(paths[id(node)], node.name, inputs, node.shape, node.dtype))
    return GraphDef(node=result, versions=VersionDef(producer=22))


def _loss(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss per pixel of one image, and the parameters as the leaves of its tape."""
    p = {name: Tensor(value) for name, value in model.parameters.items()}
    return trial(model, p)[-1], p


def _path(name: str) -> str:
    """ "encoder.features.0.weight" as "encoder/features.0/weight"."""
    part, _, rest = name.partition(".")
    layer, _, last = rest.rpartition(".")
    return "/".join(filter(None, (part, layer, last)))


def _entry(name: str, op: str, inputs: list[str], shape: tuple[int, ...], dtype: np.dtype) -> Any:
    from tensorboardX.proto.attr_value_pb2 import AttrValue
    from tensorboardX.proto.node_def_pb2 import NodeDef
    from tensorboardX.proto.tensor_shape_pb2 import TensorShapeProto

    sizes = TensorShapeProto(dim=[TensorShapeProto.Dim(size=s) for s in shape])
    attributes = {
        "_output_shapes": AttrValue(list=AttrValue.ListValue(shape=[sizes])),
        "dtype": AttrValue(s=str(dtype).encode()),
    }
    return NodeDef(name=name, op=op, input=list(dict.fromkeys(inputs)), attr=attributes)
