"""Checks of gradients and adjoints along one random direction, to be used in tests of your own ops and models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import backend
from ..backend import Array
from .tensor import Tensor

ULPS = 64  # rounding errors granted to one evaluation, in units of eps times the sum of the magnitudes added up


def check_gradient(f: Callable[..., Any], *inputs: Any, seed: int = 0) -> None:
    """Compare the gradient of `f(*inputs)` with central differences: ⟨w, J v⟩ = ⟨Jᴴ w, v⟩ for random v and w.

    Float and complex arrays among `inputs` are taken in double precision, made Tensors and varied by about 1e-3 of
    each element; all other inputs are passed on as they are.  `f` returns one array of any shape.  From the steps h and
    h/2 follow D(h), D(h/2) and their Richardson extrapolation, of error O(h⁴); the tolerance is |D(h) - D(h/2)|, the
    O(h²) error of the worse estimate, plus what rounding can do.  Raises `AssertionError` with inputs, direction and
    both numbers if they differ, and also if `f` is not smooth within h, for then nothing was checked.

    >>> from smlmcore.autograd import ops
    >>> check_gradient(lambda x: ops.exp(x) * 2, np.array([0.5, 1.0]))
    """
    rng = np.random.default_rng(seed)
    inputs = tuple(_double(x) for x in inputs)
    varied = [i for i, x in enumerate(inputs) if _is_float(x)]
    if not varied:
        raise TypeError("check_gradient got no array of floats among its inputs; give at least one")
    tensors = [Tensor(x) if i in varied else x for i, x in enumerate(inputs)]
    result = f(*tensors)
    if not isinstance(result, Tensor):
        raise TypeError(f"check_gradient expects f to return a Tensor when given Tensors; it returned {type(result)}")
    value = result.data
    w = _random(rng, value, np.ones(value.shape))
    v = {i: _random(rng, inputs[i], _scale(inputs[i])) for i in varied}
    if value.size:
        result.backward(w)
    analytic = sum(_dot(t.grad, v[i]) for i, t in enumerate(tensors) if i in v and t.grad is not None)

    def along(step: float) -> Array:
        return backend.to_cpu(f(*(x + step * v[i] if i in v else x for i, x in enumerate(inputs))))

    w = backend.to_cpu(w)
    h = 1e-3
    slopes = [(along(s) - along(-s)) / (2 * s) for s in (h, h / 2)]
    coarse, fine = (_dot(w, s) for s in slopes)
    numeric = (4 * fine - coarse) / 3
    size = float(np.abs(w * slopes[1]).sum())  # the derivative without cancellation
    rounding = ULPS * np.finfo(float).eps * (float(np.abs(w * backend.to_cpu(value)).sum()) / h + size)
    truncation = abs(coarse - fine)
    if truncation > 0.01 * size + rounding:
        raise AssertionError(
            f"check_gradient: f is not smooth here: step {h} gives {coarse!r}, half of it {fine!r}; "
            f"choose inputs farther from its kinks and poles{_dump(inputs, v)}"
        )
    if not abs(numeric - analytic) <= truncation + rounding:
        raise AssertionError(
            f"check_gradient: the gradient along v is {analytic!r}, central differences give {numeric!r}; they differ "
            f"by {abs(numeric - analytic):.3g}, more than {truncation + rounding:.3g}{_dump(inputs, v)}"
        )


def check_adjoint(
    forward: Callable[[Array], Array],
    adjoint: Callable[[Array], Array],
    shape: Sequence[int],
    dtype: Any = np.float64,
    seed: int = 0,
) -> None:
    """Check that two linear functions are adjoint: ⟨y, A x⟩ = ⟨Aᴴ y, x⟩ for random x of `shape` and `dtype`, and y.

    y has the shape and the dtype of A x; if x or y is real, the real parts are compared.  The tolerance is what
    rounding can do in the precision of `dtype`.  Raises `AssertionError` with both numbers.

    >>> from smlmcore.autograd import ops
    >>> check_adjoint(lambda x: ops.fftn(x), lambda y: ops.ifftn(y, norm="forward"), (4, 3), complex)
    """
    rng = np.random.default_rng(seed)
    x = _random(rng, np.empty(shape, dtype), np.ones(shape))
    image = forward(x)
    y = _random(rng, image, np.ones(image.shape))
    back = adjoint(y)
    if back.shape != x.shape:
        raise AssertionError(
            f"check_adjoint: forward maps {x.shape} to {y.shape}, but adjoint maps back to {back.shape}"
        )
    left, right = np.vdot(y, image), np.vdot(back, x)
    if "c" not in (x.dtype.kind, y.dtype.kind) or x.dtype.kind != y.dtype.kind:
        left, right = left.real, right.real
    tolerance = ULPS * np.finfo(x.dtype).eps * float(np.abs(y * image).sum() + np.abs(back * x).sum())
    if not abs(left - right) <= tolerance:
        raise AssertionError(
            f"check_adjoint: <y, A x> = {left!r} but <Aᴴ y, x> = {right!r}; they differ by more than {tolerance:.3g}"
        )


def _is_float(x: Any) -> bool:
    return backend.is_array(x) and x.dtype.kind in "fc"


def _double(x: Any) -> Any:
    x = np.asarray(x) if isinstance(x, (float, complex)) else x
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64) if _is_float(x) else x


def _scale(x: Array) -> np.ndarray:
    """How far to vary each element: by its own magnitude, so that signs hold; where it is 0, by the typical one."""
    size = np.abs(backend.to_cpu(x))
    typical = float(np.sqrt(np.mean(size**2))) if size.size else 0.0
    return np.where(size > 0, size, typical or 1.0)


def _random(rng: np.random.Generator, like: Array, scale: np.ndarray) -> Array:
    """Normal deviates times `scale`, of the kind, precision and library of `like`."""
    draw = rng.standard_normal(like.shape)
    if like.dtype.kind == "c":
        draw = draw + 1j * rng.standard_normal(like.shape)
    return backend.module(like).asarray(draw * scale).astype(like.dtype)


def _dot(a: Array, b: Array) -> float:
    """Real inner product Re Σ a* b."""
    return float(np.vdot(backend.to_cpu(a), backend.to_cpu(b)).real)


def _dump(inputs: Sequence[Any], v: dict[int, Array]) -> str:
    with np.printoptions(threshold=50, precision=6):
        lines = [f"\ninput {i}: {x!r}" + (f"\ndirection v: {v[i]!r}" if i in v else "") for i, x in enumerate(inputs)]
    return "".join(lines)
