"""Public checks: every body of a kernel against its reference, gradients against differences, adjoints.

    check_kernel("activation", "cuda-on-host", "float32")      # raises AssertionError naming the worst element

A kernel brings its own `sample` and `cases`, so one added in any of these packages (FOLDERS) or in `optim` is found and
tested by itself.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numba
import numpy as np

from . import backend, cuda_on_host, kernel
from .autograd.checks import check_adjoint, check_gradient

__all__ = ["all_kernels", "bodies", "check_adjoint", "check_gradient", "check_kernel", "tolerance"]

# the packages whose modules register kernels
FOLDERS = ("camera", "psf", "interpolate", "loss", "layers", "renderer", "localize", "fit")


def all_kernels() -> dict[str, kernel.Kernel]:
    """Every kernel of the package by name; imports the modules that register them.

    >>> "activation" in all_kernels()
    True
    """
    import_module(f"{__package__}.optim")
    for folder in FOLDERS:
        package = import_module(f"{__package__}.{folder}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            import_module(module.name)
    return dict(kernel.registry)


def bodies() -> tuple[str, ...]:
    """The bodies that can run here: `cpu`, `cuda-on-host`, and `cuda` where CuPy finds a GPU.

    >>> bodies()[:2]
    ('cpu', 'cuda-on-host')
    """
    try:
        backend.to_gpu(np.zeros(1))
    except RuntimeError:
        return "cpu", "cuda-on-host"
    return "cpu", "cuda-on-host", "cuda"


def check_kernel(name: str | kernel.Kernel, body: str, dtype: Any, seed: int = 0) -> None:
    """Compare one body of a kernel with its reference in one dtype, over all registered cases.

    The reference sees the same rounded inputs in float64.  Outputs must agree within `tolerance`, non-finite elements
    exactly.  Besides: the `cpu` body must give the same bits from strided inputs on one thread; `cuda-on-host` must
    stay within the tolerance with its threads run backwards; `cuda` must take strided inputs.

    Raises `AssertionError` that names kernel, body, dtype, sizes and the worst element.

    >>> check_kernel("activation", "cpu", "float64")
    """
    k = all_kernels()[name] if isinstance(name, str) else name
    if k.sample is None or not k.cases:
        raise AssertionError(f"{k.name} is registered without sample=... or cases=..., so it cannot be tested")
    for dims in k.cases:
        values = k.sample(np.random.default_rng(seed), **dims)
        inputs = [_cast(v, spec, dtype) for v, spec in zip(values, k.inputs, strict=True)]
        what = f"{k.name} [{body}, {np.dtype(dtype)}] with {dict(dims)}"
        expected = _reference(k, inputs, dims)
        allowed = tolerance(k, inputs, dims, expected, dtype)
        results = _run(k, body, inputs, dims, dtype)
        for label, outputs in results.items():
            for spec, got, want, limit in zip(k.outputs, outputs, expected, allowed, strict=True):
                _compare(f"{what}, {label}: {spec.name}", got, want, limit)
        if body == "cpu":
            for spec, a, b in zip(k.outputs, *results.values(), strict=True):
                if not np.array_equal(a, b, equal_nan=True):
                    raise AssertionError(f"{what}: {spec.name} depends on the number of threads or on the strides")


def tolerance(
    k: kernel.Kernel, inputs: Sequence[Any], dims: Any, expected: Sequence[np.ndarray], dtype: Any
) -> list[Any]:
    """Largest error that rounding explains, one number or array per output.

    float64: 1e-12 of the output's scale, max |reference|.
    float32: 8 ε (scale + change), ε = 2⁻²³ and `change` the first-order change of each element of the float64
    reference, per unit, when the elements of one input move by random relative ±1, summed over the inputs (the largest
    of three draws, and at least the median over the elements, as single ones may cancel).  A body that rounds its
    inputs, its result, and a few steps between cannot do better than some ε of either term; 8 is the room for these
    steps.  A sum of m terms with random signs changes by √m, as its rounding errors do.

    A kernel that iterates until it is near enough states its own with `tolerance=` instead: how near, and why.
    """
    if k.tolerance is not None:
        return list(k.tolerance(expected, np.dtype(dtype)))
    scales = [_scale(e) for e in expected]
    if np.dtype(dtype) == np.float64:
        return [1e-12 * s for s in scales]
    step, rng, exact = 1e-7, np.random.default_rng(1), _double(inputs)
    changes = [np.zeros((3, *e.shape)) for e in expected]
    for draw in range(3):
        for i, v in enumerate(exact):
            if _is_real(v):
                moved = v * (1 + step * rng.choice([-1.0, 1.0], v.shape))
                for c, m, e in zip(
                    changes, _reference(k, [*exact[:i], moved, *exact[i + 1 :]], dims), expected, strict=True
                ):
                    finite = np.isfinite(m) & np.isfinite(e)
                    c[draw][finite] += np.abs(m[finite] - e[finite]) / step
    largest = [c.max(0) for c in changes]
    return [
        8 * 2.0**-23 * (s + np.maximum(c, np.median(c) if c.size else 0)) for s, c in zip(scales, largest, strict=True)
    ]


def _is_real(v: Any) -> bool:
    return isinstance(v, np.ndarray) and v.dtype.kind == "f"


def _double(inputs: Sequence[Any]) -> list[Any]:
    return [v.astype(np.float64) if _is_real(v) else v for v in inputs]


def _scale(a: np.ndarray) -> float:
    return float(np.abs(a[np.isfinite(a)]).max(initial=0.0))


def _cast(v: Any, spec: kernel.Argument, dtype: Any) -> Any:
    if spec.dims is None:
        return int(v)
    return np.ascontiguousarray(v, dtype if spec.dtype == "real" else spec.dtype)


def _outputs(k: kernel.Kernel, inputs: Sequence[Any], dims: Any, dtype: Any) -> tuple[np.ndarray, ...]:
    """Output arrays, filled with values that no kernel gives: NaN, or -77."""
    shapes = k.output_shapes(dims)
    dtypes = [np.dtype(dtype if a.dtype == "real" else a.dtype) for a in k.outputs]
    return tuple(np.full(s, np.nan if t.kind == "f" else -77, t) for s, t in zip(shapes, dtypes, strict=True))


def _reference(k: kernel.Kernel, inputs: Sequence[Any], dims: Any) -> tuple[np.ndarray, ...]:
    outputs = _outputs(k, inputs, dims, np.float64)
    k.reference(*_double(inputs), *outputs)
    return outputs


def _strided(v: Any) -> Any:
    """The same array, every second element of a larger one."""
    if not isinstance(v, np.ndarray):
        return v
    large = np.repeat(v, 2, axis=-1)
    return large[..., ::2]


def _run(k: kernel.Kernel, body: str, inputs: list, dims: Any, dtype: Any) -> dict[str, tuple[np.ndarray, ...]]:
    """Outputs of the body in each of the ways it is to be tried."""
    first, second = _outputs(k, inputs, dims, dtype), _outputs(k, inputs, dims, dtype)
    if body == "cuda-on-host":
        cuda_on_host.run(k, inputs, first)
        cuda_on_host.run(k, inputs, second, reverse=True)
        return {"threads in order": first, "threads in reverse order": second}
    if body == "cuda":
        for source, outputs in ((inputs, first), ([*map(_strided, inputs)], second)):
            on_gpu = tuple(map(backend.to_gpu, outputs))
            k(*(backend.to_gpu(v) if isinstance(v, np.ndarray) else v for v in source), out=on_gpu)
            for o, g in zip(outputs, on_gpu, strict=True):
                o[...] = backend.to_cpu(g)
        return {"contiguous": first, "strided": second}
    if body != "cpu":
        raise ValueError(f"check_kernel got body {body!r}; expected one of {bodies()}")
    k(*inputs, out=first)
    threads = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        k(*map(_strided, inputs), out=second)
    finally:
        numba.set_num_threads(threads)
    return {"all threads": first, "strided inputs, one thread": second}


def _compare(what: str, got: np.ndarray, want: np.ndarray, limit: Any) -> None:
    got, limit = got.astype(np.float64), np.broadcast_to(limit, want.shape)
    with np.errstate(invalid="ignore"):
        error = np.abs(got - want)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    error = np.where(same, 0.0, np.where(np.isnan(error), np.inf, error))
    excess = error - limit
    if error.size and excess.max() > 0:
        worst = np.unravel_index(excess.argmax(), error.shape)
        raise AssertionError(
            f"{what}{list(map(int, worst))} is {got[worst]!r}, the reference gives {want[worst]!r}: "
            f"off by {error[worst]:.3g}, rounding explains {limit[worst]:.3g}; "
            f"so are {(excess > 0).sum()} of {error.size}"
        )
