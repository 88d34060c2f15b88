"""One kernel name, up to three bodies that compute the same thing: reference, cpu, cuda.

*reference* is NumPy in float64 and readable: the definition.  *cpu* is numba.  *cuda* is a function of the same
name in `kernels/FILE.cu`.  NumPy arrays take cpu, else reference; CuPy arrays take cuda, else an error.

A kernel is declared by its signature, from which everything else follows: the checks before a launch, the order
of the C arguments, and the parity test.

    "x[n,e] photons[n,e] stride:int -> image[n,h,w]"

`name[dims]` is a C-contiguous array of REAL (float32 or float64, one for the whole call), `name[dims]:int32` one of
int32, `name:int` a scalar.  A body is called as `body(*inputs, *outputs)`; the CUDA function receives in addition
every dimension, in order of first appearance, as `int`.  Dimensions named in `constants` are compile-time constants
of the CUDA source instead (upper case: `H`, `W`).  Kernels write into `out`; they do not allocate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from . import backend, numba_cache, profiler  # noqa: F401 - the cache is made safe on import

registry: dict[str, Kernel] = {}
C_REAL = {np.dtype("float32"): "float", np.dtype("float64"): "double"}


@dataclass(frozen=True)
class Argument:
    """One argument of a kernel: an array with named dimensions, or (`dims is None`) an integer scalar."""

    name: str
    dims: tuple[str | int, ...] | None
    dtype: str = "real"


@dataclass(frozen=True)
class Cuda:
    """The CUDA body: `file` in `kernels/`, `blocks(dims)` blocks of `threads` threads, compile-time `constants`."""

    file: str
    blocks: Callable[[Mapping[str, int]], int]
    threads: int = 128
    constants: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kernel:
    """A named kernel; call it as `kernel(*inputs, out=array or tuple of arrays)`.  See the module's text."""

    name: str
    signature: str
    reference: Callable[..., None]
    cpu: Callable[..., None] | None = None
    cuda: Cuda | None = None
    sample: Callable[..., Sequence[Any]] | None = None  # sample(rng, **dims) -> valid inputs, for tests and benchmarks
    cases: tuple[Mapping[str, int], ...] = ()  # dims to test
    bench: Mapping[str, int] = field(default_factory=dict)  # dims to measure
    # tolerance(expected outputs, dtype) -> largest difference for each output, in place of the one that
    # `testing.tolerance` derives from rounding: for kernels that iterate, and stop when they are near enough
    tolerance: Callable[..., Sequence[Any]] | None = None
    inputs: tuple[Argument, ...] = field(init=False)
    outputs: tuple[Argument, ...] = field(init=False)

    def __post_init__(self) -> None:
        left, right = self.signature.split("->")
        object.__setattr__(self, "inputs", tuple(map(_parse, left.split())))
        object.__setattr__(self, "outputs", tuple(map(_parse, right.split())))

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of all dimensions in order of first appearance, as the CUDA function receives them."""
        names = [d for a in self.inputs + self.outputs if a.dims is not None for d in a.dims if isinstance(d, str)]
        return tuple(dict.fromkeys(names))

    def output_shapes(self, dims: Mapping[str, int]) -> list[tuple[int, ...]]:
        """Shapes of the outputs for given dimensions."""
        return [tuple(d if isinstance(d, int) else dims[d] for d in a.dims) for a in self.outputs]

    def __call__(self, *inputs: Any, out: Any) -> Any:
        """Run the body that fits the arrays, write into `out` and return it."""
        outputs = out if isinstance(out, tuple) else (out,)
        run = self._run if profiler.active is None else profiler.active.watch(self.name, "kernel", self._run)
        xp = backend.module(*inputs, *outputs, name=self.name)
        inputs = tuple(xp.ascontiguousarray(v) if backend.is_array(v) else v for v in inputs)
        dims = self.check(inputs, outputs)
        if all(a.size == 0 for a in outputs):
            return out
        run(inputs, outputs, dims)
        return out

    def _run(self, inputs: Sequence[Any], outputs: Sequence[Any], dims: Mapping[str, int]) -> None:
        if not backend.is_gpu(outputs[0]):
            (self.cpu or self.reference)(*map(_read_only, inputs), *outputs)
        elif self.cuda is None:
            raise NotImplementedError(f"{self.name} has no CUDA body; use backend.to_cpu(...) to run it on the CPU")
        else:
            blocks, flags, arguments = self.launch(inputs, outputs, dims)
            function = _compile(self.cuda.file, flags).get_function(self.name)
            function((blocks,), (self.cuda.threads,), arguments)

    def launch(
        self, inputs: Sequence[Any], outputs: Sequence[Any], dims: Mapping[str, int]
    ) -> tuple[int, tuple, tuple]:
        """Number of blocks, compiler options and arguments with which the CUDA function is called."""
        flags = options(self._real(inputs, outputs), [(c, dims[c]) for c in self.cuda.constants])
        values = (v if backend.is_array(v) else np.int32(v) for v in (*inputs, *outputs))
        sizes = (np.int32(dims[d]) for d in self.dims if d not in self.cuda.constants)
        return max(1, int(self.cuda.blocks(dims))), flags, (*values, *sizes)

    def check(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> dict[str, int]:
        """Check count, dtype, shape and contiguity of the arguments; returns every dimension and scalar by name."""
        if (len(inputs), len(outputs)) != (len(self.inputs), len(self.outputs)):
            raise TypeError(
                f"{self.name} got {len(inputs)} inputs and {len(outputs)} outputs; its signature is {self.signature}"
            )
        dims: dict[str, int] = {}
        real = self._real(inputs, outputs)
        for spec, value in zip(self.inputs + self.outputs, (*inputs, *outputs), strict=True):
            if spec.dims is None:
                if not isinstance(value, Integral):
                    raise TypeError(f"{self.name} got {spec.name} = {value!r}; expected an integer")
                dims[spec.name] = int(value)
                continue
            expected = real if spec.dtype == "real" else np.dtype(spec.dtype)
            if not backend.is_array(value) or value.dtype != expected or real not in backend.REAL:
                got = value.dtype if backend.is_array(value) else type(value).__name__
                raise TypeError(
                    f"{self.name} got {spec.name} of {got}; expected {expected}: "
                    "all real arguments are of one dtype, float32 or float64; convert with .astype(...)"
                )
            sizes = [
                d if isinstance(d, int) else dims.setdefault(d, s) for d, s in zip(spec.dims, value.shape, strict=False)
            ]
            if value.ndim != len(spec.dims) or list(value.shape) != sizes:
                raise ValueError(
                    f"{self.name} got {spec.name} of shape {value.shape}; expected {list(spec.dims)} with {dims}"
                )
            if not value.flags.c_contiguous:
                raise ValueError(f"{self.name} got {spec.name} not C-contiguous; allocate it with empty(shape, dtype)")
        return dims

    def _real(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> np.dtype | None:
        """The dtype that REAL stands for: that of the first real output, or else input."""
        pairs = zip(self.outputs + self.inputs, (*outputs, *inputs), strict=True)
        found = (v.dtype for spec, v in pairs if spec.dtype == "real" and backend.is_array(v))
        return next(found, None)


def register(name: str, signature: str, reference: Callable[..., None], **bodies: Any) -> Kernel:
    """Declare a kernel and return it; `bodies` are the fields of `Kernel`.  The name must be new.

    >>> def double(x, y): y[...] = 2 * x
    >>> twice = Kernel("twice", "x[n] -> y[n]", double)
    >>> twice(np.ones(2), out=np.empty(2))
    array([2., 2.])
    """
    if name in registry:
        raise ValueError(f"a kernel named {name!r} is registered already; choose another name")
    registry[name] = kernel = Kernel(name, signature, reference, **bodies)
    return kernel


def _read_only(value: Any) -> Any:
    """A read-only view: numba compiles one version for it, whether or not a tape has locked the array."""
    if isinstance(value, np.ndarray):
        value = value.view()
        value.flags.writeable = False
    return value


def _parse(text: str) -> Argument:
    match = re.fullmatch(r"(\w+)(?:\[([\w,]*)\])?(?::(int|int32))?", text)
    if match is None:
        raise ValueError(f"bad kernel argument {text!r}; expected name[dims], name[dims]:int32 or name:int")
    name, dims, dtype = match.groups()
    if dims is None:
        return Argument(name, None, "int")
    return Argument(name, tuple(int(d) if d.isdigit() else d for d in dims.split(",")), dtype or "real")


def source_folder() -> Path:
    """The folder of the CUDA sources: inside an installed package, beside it in a checkout."""
    here = Path(__file__).parent
    return next(p for p in (here / "kernels", here.parent / "kernels") if p.is_dir())


def source(file: str) -> str:
    """CUDA source of `kernels/file` with `#include "..."` expanded, once each, and `#line` kept.

    Expanded here because CuPy's disk cache does not hash the headers, and would keep stale binaries.
    """
    seen: set[str] = set()

    def expand(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        lines = [f'#line 1 "{name}"']
        for number, line in enumerate((source_folder() / name).read_text().splitlines(), 2):
            include = re.match(r'\s*#include "(.+)"', line)
            lines += [expand(include[1]), f'#line {number} "{name}"'] if include else [line]
        return "\n".join(lines) + "\n"

    return expand(file)


def options(dtype: np.dtype, constants: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    """Compiler options that fix the dtype and the compile-time constants of a CUDA source."""
    return ("-std=c++17", f"-DREAL={C_REAL[np.dtype(dtype)]}", *(f"-D{c.upper()}={v}" for c, v in constants))


@lru_cache
def _compile(file: str, flags: tuple[str, ...]) -> Any:
    import cupy

    return cupy.RawModule(code=source(file), options=flags)
