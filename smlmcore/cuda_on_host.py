"""Run the CUDA bodies of kernels without a GPU: g++ compiles each `.cu` as it is, behind `cuda_on_host.h`.

For tests, not for speed.  Beyond the result, a run checks what a GPU would let pass: arrays are copied between guard
bands, so that a write outside is found and a read outside yields NaN; outputs start as NaN, so that an element never
written is found; inputs must come back unchanged; a barrier that not all threads reach is an error, not a hang.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from . import kernel as kernels

HEADER = Path(__file__).with_suffix(".h")
GUARD = 1 << 16  # bytes before and after each array
UNWRITTEN = {4: 0x7FA5A5A5, 8: 0x7FF5A5A5A5A5A5A5}  # NaNs of a pattern that no calculation yields
# hidden: libraries of one process must not share symbols
FLAGS = ("-O1", "-fPIC", "-fvisibility=hidden", "-w", "-fno-strict-aliasing", "-fsanitize=bounds")
_lock = Lock()  # the fibres of a library are one set


class CudaError(RuntimeError):
    """A kernel that would fail, hang or corrupt memory on a GPU, or does not compile."""


def run(kernel: kernels.Kernel, inputs: Sequence[Any], outputs: Sequence[np.ndarray], reverse: bool = False) -> None:
    """Run the CUDA body of `kernel` on NumPy arrays, writing `outputs`; `reverse` runs threads and blocks backwards.

    Raises `CudaError` for whatever a GPU would not forgive.

    >>> from smlmcore import testing
    >>> y, slope = np.empty(2), np.empty(2)
    >>> run(testing.all_kernels()["activation"], [np.array([0.0, 1.0]), 2], [y, slope])
    >>> y.round(3)
    array([0.   , 0.841])
    """
    inputs = [np.ascontiguousarray(v) if isinstance(v, np.ndarray) else v for v in inputs]
    dims = kernel.check(inputs, outputs)
    if kernel.cuda is None:
        raise NotImplementedError(f"{kernel.name} has no CUDA body")
    if all(a.size == 0 for a in outputs):
        return
    blocks, flags, arguments = kernel.launch(inputs, outputs, dims)
    library = _compile(kernels.source(kernel.cuda.file), flags)
    _check_types(kernel, library)

    guarded = [_Guarded(v, i >= len(inputs)) if isinstance(v, np.ndarray) else None for i, v in enumerate(arguments)]
    values = [ctypes.c_int(v) if g is None else g.pointer for v, g in zip(arguments, guarded, strict=True)]
    pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
    with _lock:
        function = getattr(library, f"host_{kernel.name}")
        function.restype = ctypes.c_char_p
        error = function(pointers, blocks, kernel.cuda.threads, int(reverse)).decode()
    if error:
        raise CudaError(f"{kernel.name} with {dims}: {error}")
    for spec, g in zip(kernel.inputs + kernel.outputs, guarded[: len(inputs) + len(outputs)], strict=True):
        if g is not None and (complaint := g.finish()):
            raise CudaError(f"{kernel.name} with {dims}: {spec.name} {complaint}")


class _Guarded:
    """A copy of an array between two guard bands of NaN; an output starts as `UNWRITTEN`."""

    def __init__(self, array: np.ndarray, output: bool) -> None:
        self.array, self.output = array, output
        self.buffer = np.full(GUARD + array.nbytes + GUARD, 0xFF, np.uint8)
        self.inside = self.buffer[GUARD : GUARD + array.nbytes]
        self.inside.view(f"u{array.itemsize}")[:] = UNWRITTEN[array.itemsize] if output else _bits(array)
        self.pointer = ctypes.c_void_p(self.inside.ctypes.data)

    def finish(self) -> str:
        """Copy an output back; returns what the kernel did wrong, or an empty text."""
        size, inside = self.array.itemsize, self.inside.view(f"u{self.array.itemsize}")
        outside = np.flatnonzero(np.r_[self.buffer[:GUARD], self.buffer[GUARD + self.array.nbytes :]] != 0xFF)
        if outside.size:
            at = int(outside[0]) - GUARD
            at += self.array.nbytes if at >= 0 else 0
            return f"was written outside its bounds, at element {at // size} of {self.array.size}"
        if not self.output:
            return "" if np.array_equal(inside, _bits(self.array)) else "is an input and was overwritten"
        _bits(self.array)[:] = inside
        missing = np.flatnonzero(inside == UNWRITTEN[size])
        if missing.size:
            return f"has {missing.size} of {self.array.size} elements never written, the first is {missing[0]}"
        return ""


def _bits(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(f"u{array.itemsize}")


def _check_types(kernel: kernels.Kernel, library: ctypes.CDLL) -> None:
    """Compare the C arguments with the signature: r, i inputs of REAL, int; R, I outputs; n an int by value."""
    try:
        types = getattr(library, f"types_{kernel.name}")
    except AttributeError:
        raise CudaError(f'{kernel.cuda.file} has no extern "C" __global__ void {kernel.name}(...)') from None
    types.restype = ctypes.c_char_p
    letters = [
        "n" if a.dims is None else (a.dtype[0].upper() if a in kernel.outputs else a.dtype[0])
        for a in kernel.inputs + kernel.outputs
    ]
    expected = "".join(letters) + "n" * sum(d not in kernel.cuda.constants for d in kernel.dims)
    if (got := types().decode()) != expected:
        raise CudaError(
            f"{kernel.name} in {kernel.cuda.file} takes ({got}); {kernel.signature} expects ({expected}): "
            "r const REAL*, i const int*, R REAL*, I int*, n int"
        )


@lru_cache
def _compile(source: str, options: tuple[str, ...]) -> ctypes.CDLL:
    names = re.findall(r"__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(", source)
    exports = "".join(f"CUDA_ON_HOST({name})\n" for name in names)
    # the unnamed namespace keeps the kernel's names apart from those of the header and of libc
    text = f'#include "{HEADER}"\nnamespace {{\n{source}}}\n{exports}'
    key = hashlib.sha256("\0".join([HEADER.read_text(), text, *options, *FLAGS]).encode()).hexdigest()[:24]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smlmcore" / "cuda_on_host"
    library = cache / f"{key}.so"
    if not library.exists():
        _build(text, options, library)
    return ctypes.CDLL(str(library))


def _build(text: str, options: tuple[str, ...], library: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        raise CudaError("g++ is not installed; it compiles the CUDA sources for runs on the host")
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        code, object_, made = (str(Path(folder) / name) for name in ("kernel.cpp", "kernel.o", "kernel.so"))
        Path(code).write_text(text)
        # two steps: linked in one, g++ would add its own handler library for -fsanitize
        for command in ([*FLAGS, *options, "-c", code, "-o", object_], ["-shared", object_, "-o", made]):
            done = subprocess.run([compiler, *command], capture_output=True, text=True)
            if done.returncode:
                raise CudaError(f"g++ {' '.join(options)} failed:\n{done.stderr}")
        os.replace(made, library)
