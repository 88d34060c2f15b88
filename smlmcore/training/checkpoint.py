"""Checkpoints: nested dicts, lists and tuples of arrays and plain values in one `.npz`, without pickle.

The arrays lie in the file under their path in the nest ("state/1/m/encoder.0.weight"), the rest is JSON under "header".
An array that occurs twice is kept once.  A file appears whole or not at all (`files.atomic`).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np

from .. import backend
from ..files import DataError, atomic

FORMAT = 1


def write(path: str | PathLike[str], values: Mapping[str, Any]) -> None:
    """Write `values` to `path`; arrays of the GPU as arrays of the CPU.

    >>> import tempfile, os
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(os.path.join(folder, "a.npz"), {"state": ({"m": np.zeros(2)}, 7), "losses": [0.1, 0.2]})
    ...     read(os.path.join(folder, "a.npz"))
    {'state': ({'m': array([0., 0.])}, 7), 'losses': [0.1, 0.2]}
    """
    arrays: dict[str, np.ndarray] = {}
    names: dict[int, str] = {}

    def pack(value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            return {"dict": {key: pack(v, f"{name}/{key}") for key, v in value.items()}}
        if isinstance(value, list | tuple):
            return {type(value).__name__: [pack(v, f"{name}/{i}") for i, v in enumerate(value)]}
        if backend.is_array(value) or isinstance(value, np.generic):
            if id(value) not in names:
                names[id(value)], arrays[name] = name, backend.to_cpu(value)
            return {"array": names[id(value)]}
        return value

    header = {"format": FORMAT, "values": {key: pack(value, key) for key, value in values.items()}}
    text = np.array(json.dumps(header))
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, header=text, **arrays)


def read(path: str | PathLike[str], gpu: bool = False) -> dict[str, Any]:
    """What `write` wrote, with its arrays on the `gpu` or on the CPU; raises `DataError` for any other file."""

    def unpack(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((kind, inner),) = value.items()
        if kind == "array":
            return backend.to_gpu(arrays[inner]) if gpu else arrays[inner]
        if kind == "dict":
            return {key: unpack(v) for key, v in inner.items()}
        return {"list": list, "tuple": tuple}[kind](map(unpack, inner))

    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(str(arrays.pop("header")))
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']}")
        return {key: unpack(value) for key, value in header["values"].items()}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the name and the folder") from None
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no checkpoint of this library, format {FORMAT} ({error})") from None
