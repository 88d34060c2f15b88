"""Activations: one kernel for all, used alone or at the end of a convolution while its result is in cache.

| name | y | derivative |
|---|---|---|
| `relu` | max(x, 0) | 1 where x > 0 |
| `gelu` | x Φ(x), Φ the normal distribution function (Hendrycks & Gimpel 2016) | Φ(x) + x φ(x) |
| `silu` | x s(x), s(x) = 1 / (1 + e⁻ˣ) | s + x s (1 - s) |
| `leaky` | x, but 0.01 x where x < 0 | 1, 0.01 |
| `elu` | x, but eˣ - 1 where x < 0 | 1, eˣ |

`ops.sigmoid`, `ops.tanh` and `ops.softplus` are ops already; here they are layers too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import scipy
from numba import types
from numba.extending import overload

from .. import backend, kernel
from ..autograd import op, ops
from ..backend import Array
from .compiled import SINGLE, WHOLE, at, link, njit, shared
from .recorded import recorded

BLOCK = 1 << 14  # elements that one thread takes at a time
F, I = np.float32, np.int32  # noqa: E741 - types of literals: a bare 0.5 would turn float32 code into float64
ROOT_HALF, DENSITY, LEAK = math.sqrt(0.5), 1 / math.sqrt(2 * math.pi), 0.01
CODES = {None: 0, "relu": 1, "gelu": 2, "silu": 3, "leaky": 4, "elu": 5}
NONE, RELU, GELU, SILU, LEAKY, ELU = CODES.values()


def code(name: str | None) -> int:
    """The number by which kernels know the activation `name`.

    >>> code("gelu")
    2
    """
    if name not in CODES:
        raise ValueError(f"got activation {name!r}; expected one of {', '.join(map(repr, CODES))}")
    return CODES[name]


def reference(x: np.ndarray, activation: int) -> tuple[np.ndarray, np.ndarray]:
    """Value and derivative, in NumPy."""
    below, density, s = scipy.special.ndtr(x), np.exp(-0.5 * x**2) * DENSITY, scipy.special.expit(x)
    fall = np.exp(np.minimum(x, 0))
    return [
        lambda: (x, np.ones_like(x)),
        lambda: (np.maximum(x, 0), (x > 0) * 1.0),
        lambda: (x * below, below + x * density),
        lambda: (x * s, s + x * s * (1 - s)),
        lambda: (np.where(x > 0, x, LEAK * x), np.where(x > 0, 1, LEAK)),
        lambda: (np.where(x > 0, x, np.expm1(np.minimum(x, 0))), np.where(x > 0, 1, fall)),
    ][activation]()


def _reference(x, activation, y, slope):
    y[...], derivative = reference(x, activation)
    if slope.size:
        slope[...] = derivative


# ---------------------------------------------------------------------------------------------- cpu
def _loops(function):
    """(y, slope) -> None: y[i], slope[i] = function(y[i]) in place; without slope if that is empty."""
    one = numba.njit(inline="always")(function)

    @numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
    def run(y, slope):
        if slope.size:
            for i in range(y.size):
                y[i], slope[i] = one(y[i])
        else:
            for i in range(y.size):
                y[i] = one(y[i])[0]

    return run


@numba.njit(inline="always")
def _exp2(z):
    """2^z in float32 to 1.4 ε for |z| <= 126: the exponent's bits make the whole part, a polynomial the rest."""
    z = min(max(z, F(-126)), F(126))
    whole = I(math.floor(z + F(0.5)))
    f = z - F(whole)
    e = F(0.00015461445) * f + F(0.0013400428)
    e = e * f + F(0.009618057)
    e = e * f + F(0.055503272)
    e = e * f + F(0.24022651)
    e = e * f + F(0.6931472)
    return (e * f + F(1)) * I((whole + I(127)) << I(23)).view(F)


def _gelu_single(v):
    """Φ(−|x|) = exp(−x²/2) t P(t), t = 1 / (1 + 0.28 |x|), as Abramowitz and Stegun 7.1.26, but with nine coefficients
    fitted to a relative error of 1.7e-7; the exponential is that of the slope.
    """
    t = F(1) / (F(1) + F(0.28) * abs(v))
    p = F(0.024758816) * t - F(0.09374569)
    p = p * t + F(0.09267254)
    p = p * t - F(0.0066547127)
    p = p * t + F(0.07287223)
    p = p * t + F(0.08360507)
    p = p * t + F(0.10308822)
    p = p * t + F(0.11169959)
    p = p * t + F(0.11170386)
    e = _exp2(F(-0.5 * 1.4426950408889634) * v * v)
    tail = e * p * t
    below = tail if v < F(0) else F(1) - tail
    return v * below, below + v * (e * F(DENSITY))


def _silu_single(v):
    s = F(1) / (F(1) + _exp2(F(-1.4426950408889634) * v))
    return v * s, s + v * s * (F(1) - s)


def _elu_single(v):
    e = _exp2(F(1.4426950408889634) * min(v, F(0)))
    return (v if v > F(0) else e - F(1)), (F(1) if v > F(0) else e)


def _relu_single(v):
    return (v if not v <= F(0) else F(0)), (F(1) if v > F(0) else F(0))  # NaN stays


def _leaky_single(v):
    return (v if v > F(0) else F(LEAK) * v), (F(1) if v > F(0) else F(LEAK))


def _double(v, activation):
    if activation == GELU:
        below = 0.5 * math.erfc(-ROOT_HALF * v)
        return v * below, below + v * math.exp(-0.5 * v * v) * DENSITY
    if activation == SILU:
        s = 1 / (1 + math.exp(-v))
        return v * s, s + v * s * (1 - s)
    if activation == RELU:
        return (v if not v <= 0 else 0.0), (1.0 if v > 0 else 0.0)
    if v > 0 or activation == NONE:
        return v, 1.0
    if activation == LEAKY:
        return LEAK * v, LEAK
    return math.expm1(v), math.exp(v)


_relu, _gelu, _silu, _leaky, _elu = map(_loops, (_relu_single, _gelu_single, _silu_single, _leaky_single, _elu_single))
_one_double = numba.njit(_double)


@shared(types.void(WHOLE, SINGLE, SINGLE, WHOLE, WHOLE))
def activate_single(activation, values, slopes, count, with_slope):
    y, s = numba.carray(values, (count,)), numba.carray(slopes, (count if with_slope else 0,))
    if activation == RELU:
        _relu(y, s)
    elif activation == GELU:
        _gelu(y, s)
    elif activation == SILU:
        _silu(y, s)
    elif activation == LEAKY:
        _leaky(y, s)
    elif activation == ELU:
        _elu(y, s)
    else:
        s[:] = F(1)


def activate(activation, values, slope, start, count):
    """Apply an activation in place to values[start : start + count]; the derivative into `slope`, unless it is empty.

    Both are flat; called from numba only.
    """
    raise NotImplementedError("activate is called from numba functions only")


@overload(activate)
def _activate(activation, values, slope, start, count):
    def single(activation, values, slope, start, count):
        activate_single(activation, at(values, start), at(slope, start), count, slope.size)

    def double(activation, values, slope, start, count):
        for i in range(start, start + count):
            values[i], derivative = _one_double(values[i], activation)
            if slope.size:
                slope[i] = derivative

    return single if values.dtype == types.float32 else double


def _cpu(x, activation, y, slope):
    link()
    _blocks(x, activation, y, slope)


@njit(parallel=True)
def _blocks(x, activation, y, slope):
    for block in numba.prange((x.size + BLOCK - 1) // BLOCK):
        start = block * BLOCK
        count = min(BLOCK, x.size - start)
        y[start : start + count] = x[start : start + count]
        activate(activation, y, slope, start, count)


def _sample(rng, n, s, activation):
    return [rng.uniform(-9, 9, n), activation]


activation_kernel = kernel.register(
    "activation",
    "x[n] activation:int -> y[n] slope[s]",
    _reference,
    cpu=_cpu,
    cuda=kernel.Cuda("activation.cu", lambda dims: -(-dims["n"] // 128)),
    sample=_sample,
    cases=(
        *({"n": n, "s": n, "activation": GELU} for n in (0, 1, 127, 2 * 128, BLOCK + 3)),
        *({"n": 301, "s": 301 * (a % 2), "activation": a} for a in CODES.values()),
    ),
    bench={"n": 8_000_000, "s": 8_000_000, "activation": GELU},
)


# ---------------------------------------------------------------------------------------------- ops and layers
@op
def _activation(x: Array, *, name: str, record: bool) -> Any:
    x = backend.asarray(x)
    xp = backend.module(x)
    y, slope = xp.empty(x.shape, x.dtype), xp.empty(x.size if record else 0, x.dtype)
    activation_kernel(x.reshape(-1), code(name), out=(y.reshape(-1), slope))
    return y, slope


@_activation.vjp
def _(slope: Array, g: Array) -> tuple[Array]:
    return (g * slope.reshape(g.shape),)


def activation(x: Any, name: str) -> Any:
    """One of the module's activations by name, for an array or Tensor of any shape.

    >>> activation(np.array([-1.0, 0.0, 1.0]), "elu").round(3)
    array([-0.632,  0.   ,  1.   ])
    """
    return _activation(x, name=name, record=recorded(x))


def gelu(x: Any) -> Any:
    """y = x Φ(x) for an array or Tensor of any shape; the derivative Φ(x) + x φ(x) comes from the same pass.

    >>> gelu(np.array([-1.0, 0.0, 1.0])).round(3)
    array([-0.159,  0.   ,  0.841])
    """
    return activation(x, "gelu")


@dataclass(frozen=True)
class Activation:
    """An activation as a layer; it has no parameters.  `name`: one of the module's, or sigmoid, tanh, softplus.

    >>> Activation("relu")({}, np.array([-1.0, 1.0]))
    array([0., 1.])
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in CODES and self.name not in ("sigmoid", "tanh", "softplus"):
            code(self.name)

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> dict[str, Array]:
        """No parameters."""
        return {}

    def __call__(self, p: Mapping[str, Any], x: Any) -> Any:
        """Apply to x, an array or Tensor."""
        return activation(x, self.name) if self.name in CODES else getattr(ops, self.name)(x)


def Relu() -> Activation:
    """max(x, 0) as a layer."""
    return Activation("relu")


def LeakyRelu() -> Activation:
    """x, but 0.01 x below 0, as a layer."""
    return Activation("leaky")


def Gelu() -> Activation:
    """The Gaussian error linear unit as a layer.

    >>> Gelu()({}, np.array([1.0])).round(3)
    array([0.841])
    """
    return Activation("gelu")


def Silu() -> Activation:
    """x / (1 + e⁻ˣ) as a layer."""
    return Activation("silu")


def Elu() -> Activation:
    """x, but eˣ - 1 below 0, as a layer."""
    return Activation("elu")


def Softplus() -> Activation:
    """log(1 + eˣ) as a layer."""
    return Activation("softplus")


def Sigmoid() -> Activation:
    """1 / (1 + e⁻ˣ) as a layer."""
    return Activation("sigmoid")


def Tanh() -> Activation:
    """tanh x as a layer."""
    return Activation("tanh")
