"""Compile CUDA sources for real GPUs with NVRTC, on machines without one: NVRTC needs no driver.

For tests and for tuning: `compile_source` returns the registers, spills and shared memory of every kernel in a source.
The library comes from the wheel `nvidia-cuda-nvrtc`, from CuPy's CUDA wheels or from an installed CUDA toolkit.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

from . import kernel

ARCHITECTURES = (75, 80, 90, 120)


@dataclass(frozen=True)
class Usage:
    """What one compiled kernel takes: registers per thread, spilled, stack and shared bytes."""

    registers: int
    spill: int
    stack: int
    shared: int


class NvrtcError(RuntimeError):
    """NVRTC is absent, or a source does not compile."""


def compile_source(
    source: str, architecture: int, options: Sequence[str] = (), name: str = "kernel.cu"
) -> dict[str, Usage]:
    """Compile CUDA C to machine code for `sm_ARCHITECTURE`; returns the `Usage` of each kernel by name.

    `options` as for nvcc, e.g. from `kernel.options(dtype, constants)`.  Raises `NvrtcError` with the compiler's log.

    >>> list(compile_source('extern "C" __global__ void zero(float* x) { x[0] = 0; }', 90))
    ['zero']
    """
    return dict(_compile(source, architecture, tuple(options), name))


def compile_kernel(k: kernel.Kernel, architecture: int, dtype: Any) -> Usage:
    """Compile the CUDA body of a kernel; compile-time constants are those of its largest registered case.

    >>> from smlmcore import testing
    >>> compile_kernel(testing.all_kernels()["activation"], 80, "float32").spill
    0
    """
    sizes = [tuple(case[c] for c in k.cuda.constants) for case in k.cases]
    constants = tuple(zip(k.cuda.constants, max(sizes, key=prod), strict=True))
    source, options = kernel.source(k.cuda.file), kernel.options(dtype, constants)
    usages = _compile(source, architecture, options, k.cuda.file)
    if k.name not in usages:
        raise NvrtcError(f'{k.cuda.file} has no extern "C" __global__ void {k.name}(...)')
    return usages[k.name]


@lru_cache
def _compile(source: str, architecture: int, options: tuple[str, ...], name: str) -> dict[str, Usage]:
    nvrtc, program = _library(), ctypes.c_void_p()
    flags = [f"--gpu-architecture=sm_{architecture}", "--ptxas-options=-v", *options]
    pointers = (ctypes.c_char_p * len(flags))(*(f.encode() for f in flags))
    created = nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None)
    if created:
        raise NvrtcError(f"nvrtcCreateProgram returned {created}")
    try:
        failed, size = nvrtc.nvrtcCompileProgram(program, len(flags), pointers), ctypes.c_size_t()
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, text)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    log = text.value.decode()
    if failed:
        raise NvrtcError(f"{name} does not compile with {' '.join(flags)}:\n{log}")
    return _usages(log)


def _usages(log: str) -> dict[str, Usage]:
    """Read the report of `ptxas -v`: an 'entry function' line, then spills, then registers and shared memory."""
    usages = {}
    for name, report in re.findall(r"entry function '(\w+)'.*?\n(.*?)(?=Compiling entry|\Z)", log, re.DOTALL):
        numbers = [re.search(p, report) for p in (r"Used (\d+) reg", r"(\d+) bytes spill st", r"(\d+) bytes stack")]
        shared = re.search(r"(\d+) bytes smem", report)
        usages[name] = Usage(*(int(n[1]) for n in numbers), shared=int(shared[1]) if shared else 0)
    return usages


@lru_cache
def _library() -> ctypes.CDLL:
    tried = []
    spec = find_spec("nvidia")
    for folder in spec.submodule_search_locations if spec else ():
        tried += sorted(map(str, Path(folder).glob("*/lib/libnvrtc.so*")), reverse=True)
        tried += map(str, Path(folder).glob("*/bin/**/nvrtc64_*_0.dll"))
    tried += [n for n in (ctypes.util.find_library("nvrtc"), "libnvrtc.so.13", "libnvrtc.so.12") if n]
    for path in tried:
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    raise NvrtcError("NVRTC is not installed; pip install nvidia-cuda-nvrtc")
