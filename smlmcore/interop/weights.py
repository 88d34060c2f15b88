"""Weights from and for PyTorch, as files of its `state_dict`: .npz or .safetensors.  PyTorch itself is not needed.

In PyTorch a state is written by `numpy.savez(path, **{k: v.numpy() for k, v in net.state_dict().items()})` or
`safetensors.torch.save_file(net.state_dict(), path)`.  `names` says which of its arrays is which of ours:

    names = {"down.0.0": "enc1.conv1", "head": "out"}        # layer by layer; weight and bias follow

What is called differently or lies in memory differently:

| ours | PyTorch |
|---|---|
| convolution `weight` (k, l, inputs, outputs) | `weight` (outputs, inputs, k, l) |
| transposed convolution `weight` (k, l, outputs, inputs) | `weight` (inputs, outputs, k, l) |
| dense `weight` (inputs, outputs) | `weight` (outputs, inputs) |
| norm `scale`, `shift`, `mean`, `variance` | `weight`, `bias`, `running_mean`, `running_var` |
| `bias` | `bias` |

All of the first three are one rule: the last two axes come first, exchanged.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from .. import backend
from ..data import DataError, atomic

KEYS = {"scale": "weight", "shift": "bias", "mean": "running_mean", "variance": "running_var"}
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4"}


def from_torch(
    path: str | PathLike[str], like: Mapping[str, Any], names: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """Parameters named and shaped as in `like` (an encoder's `init(rng)`), from a `state_dict` in a file.

    `names`: our layer -> PyTorch's layer, where they differ.  Raises `DataError` naming what is missing or misshapen.

    >>> import tempfile
    >>> like = {"0.weight": np.zeros((3, 2), np.float32), "0.bias": np.zeros(2, np.float32)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_torch(f"{folder}/a.npz", {k: v + 1 for k, v in like.items()}, {"0": "fc"})
    ...     from_torch(f"{folder}/a.npz", like, {"0": "fc"})["0.bias"]
    array([1., 1.], dtype=float32)
    """
    state = _read(Path(path))
    found = {}
    for name, value in like.items():
        theirs = _their_name(name, names or {})
        if theirs not in state:
            raise DataError(f"{path} has no {theirs!r} for {name!r}; it has {', '.join(sorted(state)) or 'nothing'}")
        a = state[theirs]
        if value.ndim > 1:
            a = np.moveaxis(a, (0, 1), (-1, -2))
        if a.shape != value.shape:
            raise DataError(f"{path}: {theirs!r} gives {name!r} the shape {a.shape}; expected {value.shape}")
        found[name] = np.ascontiguousarray(a, value.dtype)
    return found


def to_torch(path: str | PathLike[str], parameters: Mapping[str, Any], names: Mapping[str, str] | None = None) -> None:
    """Write `parameters` as a `state_dict`, .npz or .safetensors; the inverse of `from_torch`.

    In PyTorch: `net.load_state_dict({k: torch.tensor(v) for k, v in numpy.load(path).items()})`, or
    `safetensors.torch.load_file(path)`.
    """
    state = {}
    for name, value in parameters.items():
        a = backend.to_cpu(value)
        a = np.moveaxis(a, (-1, -2), (0, 1)) if a.ndim > 1 else a
        state[_their_name(name, names or {})] = np.ascontiguousarray(a)
    with atomic(path) as temporary, open(temporary, "wb") as file:
        if Path(path).suffix == ".safetensors":
            file.write(_safetensors(state))
        else:
            np.savez(file, **state)


def _their_name(name: str, names: Mapping[str, str]) -> str:
    layer, _, key = name.rpartition(".")
    return ".".join(filter(None, (names.get(layer, layer), KEYS.get(key, key))))


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        data = path.read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
        header.pop("__metadata__", None)
        state = {}
        for name, entry in header.items():
            start, stop = (8 + size + offset for offset in entry["data_offsets"])
            state[name] = np.frombuffer(data[start:stop], DTYPES[entry["dtype"]]).reshape(entry["shape"])
        return state
    except (ValueError, KeyError, EOFError, struct.error) as error:
        raise DataError(f"{path} is no .npz or .safetensors file of arrays ({error})") from None


def _safetensors(state: Mapping[str, np.ndarray]) -> bytes:
    header, start = {}, 0
    for name, a in state.items():
        kind = next((k for k, v in DTYPES.items() if np.dtype(v) == a.dtype), None)
        if kind is None:
            raise DataError(f"{name!r} is of {a.dtype}, which .safetensors files of this library do not hold")
        header[name] = {"dtype": kind, "shape": list(a.shape), "data_offsets": [start, start + a.nbytes]}
        start += a.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in state.values())
