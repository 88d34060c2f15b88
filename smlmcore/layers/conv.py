"""Convolution of images and volumes: kernels, op and layers.

Images are channels-last, x[n,h,w,c], volumes x[n,f,h,w,c] (for kernels an image is a volume of one plane, f = 1);
filters are weight[j,k,l,c,d] of any size; the border is filled with `pad` zeros, along axes where the filter is
longer than 1.

    out[n,o,p,q,d] = f(bias[d] + Σ_{j,k,l,c} weight[j,k,l,c,d]
                                 x[n, o·stride + j - pad, p·stride + k - pad, q·stride + l - pad, c])

with an activation f, whose derivative `slope` is kept for the gradient, if there is one.  On the CPU, `winograd`
computes 3x3 filters at stride 1 in float32, `direct` all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cache
from typing import Any

import numpy as np

from .. import backend, kernel
from ..autograd import op, ops
from ..backend import Array
from . import blas, cudnn, direct, winograd
from .activation import code
from .activation import reference as activated
from .recorded import recorded

BLAS_FROM = 1 << 14  # numbers of an image batch on a GPU from which cuBLAS computes the products


# ---------------------------------------------------------------------------------------------- reference
def _windows(x, taps, stride, pad, size):
    """For each tap the pixels x[n,o,p,q,c] that it multiplies, as a view of the padded volume."""
    width = [(pad, pad) if t > 1 else (0, 0) for t in taps]
    padded = np.pad(x.astype(np.float64), ((0, 0), *width, (0, 0)))
    for tap in np.ndindex(*taps):
        steps = (slice(i, i + stride * (s - 1) + 1, stride) for i, s in zip(tap, size, strict=True))
        yield tap, padded[:, *steps]


def _reference(x, weight, bias, stride, pad, activation, out, slope):
    total = np.zeros(out.shape) + bias
    for tap, pixels in _windows(x, weight.shape[:3], stride, pad, out.shape[1:4]):
        total += pixels @ weight[tap].astype(np.float64)
    out[...], derivative = activated(total, activation)
    if slope.size:
        slope[...] = derivative.reshape(-1)


def _sloped(gradient, slope):
    return gradient.astype(np.float64) * (slope.reshape(gradient.shape) if slope.size else 1.0)


def _input_gradient_reference(gradient, slope, weight, stride, pad, out):
    g, taps = _sloped(gradient, slope), weight.shape[:3]
    border = [pad if t > 1 else 0 for t in taps]
    total = np.zeros((len(out), *(s + 2 * b for s, b in zip(out.shape[1:4], border, strict=True)), out.shape[4]))
    for tap in np.ndindex(*taps):
        steps = (slice(i, i + stride * (s - 1) + 1, stride) for i, s in zip(tap, g.shape[1:4], strict=True))
        total[:, *steps] += g @ weight[tap].astype(np.float64).T
    inside = (slice(b, b + s) for s, b in zip(out.shape[1:4], border, strict=True))
    out[...] = total[:, *inside]


def _weight_gradient_reference(x, gradient, slope, stride, pad, weight, bias):
    g = _sloped(gradient, slope)
    for tap, pixels in _windows(x, weight.shape[:3], stride, pad, g.shape[1:4]):
        weight[tap] = np.tensordot(pixels, g, ((0, 1, 2, 3), (0, 1, 2, 3)))
    bias[...] = g.sum((0, 1, 2, 3))


# ---------------------------------------------------------------------------------------------- cpu
def _cpu(x, weight, bias, stride, pad, activation, out, slope):
    if winograd.suits(weight.shape, stride, out.shape, x.dtype):
        winograd.forward(x, weight, bias, pad, activation, out, slope)
    else:
        direct.forward(x, weight, bias, stride, pad, activation, out, slope)


def _input_gradient_cpu(gradient, slope, weight, stride, pad, out):
    if pad >= min((t for t in weight.shape[:3] if t > 1), default=1):
        raise ValueError(f"conv_input_gradient got pad {pad} with a filter {weight.shape[:3]}; expected a smaller pad")
    if winograd.suits(weight.shape, stride, out.shape, out.dtype):
        winograd.input_gradient(gradient, slope, weight, pad, out)
    else:
        direct.input_gradient(gradient, slope, weight, stride, pad, out)


def _weight_gradient_cpu(x, gradient, slope, stride, pad, weight, bias):
    if winograd.suits(weight.shape, stride, gradient.shape, x.dtype):
        winograd.weight_gradient(x, gradient, slope, pad, weight, bias)
    else:
        direct.weight_gradient(x, gradient, slope, stride, pad, weight, bias)


# ---------------------------------------------------------------------------------------------- registration
def _case(n, x, c, d, taps, stride=1, pad=None, activation=None, slope=True):
    """Dimensions of a case; `x` and `taps` are (z, y, x)."""
    pad = min((t for t in taps if t > 1), default=1) // 2 if pad is None else pad
    out = [(s + 2 * pad * (t > 1) - t) // stride + 1 for s, t in zip(x, taps, strict=True)]
    dims = dict(zip("nfhwcjklopqd", (n, *x, c, *taps, *out, d), strict=True))
    s = n * int(np.prod(out)) * d if slope else 0
    return {**dims, "stride": stride, "pad": pad, "activation": code(activation), "s": s}


_CASES = (
    _case(2, (1, 5, 7), 3, 4, (1, 3, 3), activation="gelu"),
    _case(1, (1, 1, 1), 1, 1, (1, 1, 1), slope=False),
    _case(1, (1, 1, 1), 2, 3, (1, 5, 5)),
    _case(0, (1, 4, 4), 2, 2, (1, 3, 3)),
    _case(3, (1, 9, 6), 1, 5, (1, 3, 3), 2),
    _case(2, (1, 7, 10), 2, 33, (1, 2, 2), 3),
    _case(1, (1, 13, 4), 5, 24, (1, 5, 3), 2, activation="silu"),
    _case(2, (1, 4, 5), 3, 8, (1, 1, 1), 3),
    _case(1, (1, 20, 19), 4, 16, (1, 4, 4)),
    _case(2, (1, 41, 30), 2, 9, (1, 3, 3), 2, slope=False),
    _case(1, (1, 6, 6), 2, 3, (1, 3, 3), 1, 0),
    _case(2, (1, 17, 22), 40, 24, (1, 3, 3), activation="gelu"),  # large enough for Winograd's algorithm
    _case(3, (1, 8, 9), 16, 17, (1, 3, 3), pad=2, slope=False),
    _case(1, (4, 9, 10), 16, 20, (3, 3, 3), activation="relu"),
    _case(2, (3, 5, 4), 2, 5, (3, 3, 3)),
    _case(2, (5, 4, 6), 3, 2, (2, 3, 2), 2),
)

_BENCH = _case(256, (1, 32, 32), 32, 32, (1, 3, 3), activation="gelu")


def _sample(**shapes):
    def sample(rng, stride, pad, activation=0, **dims):
        arrays = (rng.normal(size=[dims[d] for d in shape]) for shape in shapes.values())
        return [*arrays, stride, pad, *([activation] if "bias" in shapes else [])]

    return sample


def _blocks(*dims):
    return lambda s: min(-(-int(np.prod([s[d] for d in dims], dtype=np.int64)) // 128), 1 << 30)


def _tolerance(expected, dtype):
    """The error of Winograd's algorithm, 4e-6 of the largest number, and as much of it in a slope (|f''| <= 1)."""
    largest = np.abs(expected[0]).max(initial=0)
    share = 1e-12 if dtype == np.float64 else 4e-6
    return share * largest, share * max(1.0, largest)


conv_kernel = kernel.register(
    "conv",
    "x[n,f,h,w,c] weight[j,k,l,c,d] bias[d] stride:int pad:int activation:int -> out[n,o,p,q,d] slope[s]",
    _reference,
    cpu=_cpu,
    cuda=kernel.Cuda("conv.cu", _blocks(*"nopqd")),
    sample=_sample(x="nfhwc", weight="jklcd", bias="d"),
    cases=_CASES,
    bench=_BENCH,
    tolerance=_tolerance,
)
input_gradient_kernel = kernel.register(
    "conv_input_gradient",
    "gradient[n,o,p,q,d] slope[s] weight[j,k,l,c,d] stride:int pad:int -> out[n,f,h,w,c]",
    _input_gradient_reference,
    cpu=_input_gradient_cpu,
    cuda=kernel.Cuda("conv.cu", _blocks(*"nfhwc")),
    sample=_sample(gradient="nopqd", slope="s", weight="jklcd"),
    cases=_CASES,
    bench=_BENCH,
)
weight_gradient_kernel = kernel.register(
    "conv_weight_gradient",
    "x[n,f,h,w,c] gradient[n,o,p,q,d] slope[s] stride:int pad:int -> weight[j,k,l,c,d] bias[d]",
    _weight_gradient_reference,
    cpu=_weight_gradient_cpu,
    cuda=kernel.Cuda("conv.cu", lambda s: (s["j"] * s["k"] * s["l"] * s["c"] + 1) * -(-s["d"] // 32), threads=256),
    sample=_sample(x="nfhwc", gradient="nopqd", slope="s"),
    cases=_CASES,
    bench=_BENCH,
)


# ---------------------------------------------------------------------------------------------- op
def conv(
    x: Any, weight: Any, bias: Any, *, stride: int = 1, pad: int = 0, dilation: int = 1, activation: str | None = None
) -> Any:
    """Convolution of channels-last images or volumes, f(bias[d] + Σ x[n, p·stride+k-pad, q·stride+l-pad, c]
    weight[k,l,c,d]).

    (The filter is not mirrored, as in all networks.)  x (n, y, x, channel) and weight (k, l, channel, outputs), or
    with z before y; bias (outputs,), all float32 or all float64, arrays or Tensors; `dilation`: distance of the
    filter's taps, its width is then dilation·(k - 1) + 1; `pad` zeros around the image, fewer than that; `activation`
    one of `layers.activation`.  Returns (n, (y + 2·pad - width)//stride + 1, ..., outputs).

    >>> conv(np.ones((1, 3, 3, 1)), np.ones((3, 3, 1, 1)), np.zeros(1), pad=1)[0, :, :, 0]
    array([[4., 6., 4.],
           [6., 9., 6.],
           [4., 6., 4.]])
    """
    record = recorded(x, weight, bias)
    return _conv(x, weight, bias, stride=stride, pad=pad, dilation=dilation, activation=activation, record=record)


@op
def _conv(
    x: Array,
    weight: Array,
    bias: Array,
    *,
    stride: int,
    pad: int,
    dilation: int,
    activation: str | None,
    record: bool,
) -> Any:
    check_shapes("conv", x, weight, "channel", "outputs")
    if dilation < 1:
        raise ValueError(f"conv got dilation {dilation}; expected at least 1")
    size, taps = x.shape[1:-1], tuple(dilation * (t - 1) + 1 for t in weight.shape[:-2])
    border = [pad if t > 1 else 0 for t in taps]
    out_size = [(s + 2 * b - t) // stride + 1 if stride > 0 else 0 for s, b, t in zip(size, border, taps, strict=True)]
    if not 0 <= pad < min((t for t in taps if t > 1), default=1) or min(out_size) < 1:
        raise ValueError(
            f"conv got images of {' x '.join(map(str, size))} pixels, a {' x '.join(map(str, taps))} filter, pad {pad} "
            f"and stride {stride}; expected 0 <= pad < filter <= image + 2 pad, and stride >= 1"
        )
    xp = backend.module(x, weight, name="conv")
    out = xp.empty((len(x), *out_size, weight.shape[-1]), x.dtype)
    slope = xp.empty(out.size if record and activation is not None else 0, x.dtype)
    forward(planes(x), planes(weight, 0), bias, stride, pad, dilation, code(activation), planes(out), slope)
    return out, (x, weight, slope, stride, pad, dilation)


@_conv.vjp
def _(saved: tuple, g: Array) -> tuple:
    x, weight, slope, stride, pad, dilation = saved
    xp, g = backend.module(x), planes(g)

    def images() -> Array:
        out = xp.empty(x.shape, x.dtype)
        input_gradient(g, slope, planes(weight, 0), stride, pad, dilation, planes(out))
        return out

    @cache
    def parameters() -> tuple[Array, Array]:  # both come from one pass over the pixels
        out = xp.empty(weight.shape, x.dtype), xp.empty(weight.shape[-1], x.dtype)
        weight_gradient(planes(x), g, slope, stride, pad, dilation, planes(out[0], 0), out[1])
        return out

    return images, lambda: parameters()[0], lambda: parameters()[1]


def forward(
    x: Array, weight: Array, bias: Array, stride: int, pad: int, dilation: int, activation: int, out: Array,
    slope: Array,
) -> None:  # fmt: skip
    """On a GPU by cuDNN or cuBLAS, where they have enough to do; else by the kernel."""
    gpu = backend.is_gpu(x)
    if gpu and cudnn.forward(x, weight, bias, stride, pad, dilation, activation, out, slope):
        return
    weight = dilated(weight, dilation)
    if gpu and x.size >= BLAS_FROM:
        blas.forward(x, weight, bias, stride, pad, activation, out, slope)
    else:
        conv_kernel(x, weight, bias, stride, pad, activation, out=(out, slope))


def input_gradient(
    gradient: Array, slope: Array, weight: Array, stride: int, pad: int, dilation: int, out: Array
) -> None:
    """As `forward`, for the gradient of x."""
    gpu = backend.is_gpu(gradient)
    if gpu and cudnn.input_gradient(gradient, slope, weight, stride, pad, dilation, out):
        return
    weight = dilated(weight, dilation)
    if gpu and out.size >= BLAS_FROM:
        blas.input_gradient(blas.sloped(gradient, slope), weight, stride, pad, out)
    else:
        input_gradient_kernel(gradient, slope, weight, stride, pad, out=out)


def weight_gradient(
    x: Array, gradient: Array, slope: Array, stride: int, pad: int, dilation: int, weight: Array, bias: Array
) -> None:
    """As `forward`, for the gradients of the filter and the bias."""
    gpu = backend.is_gpu(x)
    if gpu and cudnn.weight_gradient(x, gradient, slope, stride, pad, dilation, weight, bias):
        return
    dense = dilated(weight, dilation)  # for its shape: what it holds is written over
    if gpu and x.size >= BLAS_FROM:
        blas.weight_gradient(x, blas.sloped(gradient, slope), stride, pad, dense, bias)
    else:
        weight_gradient_kernel(x, gradient, slope, stride, pad, out=(dense, bias))
    if dilation > 1:
        weight[...] = dense[_taps(dilation)]


def _taps(dilation: int) -> tuple[slice, ...]:
    return (slice(None, None, dilation),) * 3


def dilated(weight: Array, dilation: int) -> Array:
    """A filter with `dilation` - 1 zeros between its taps along its three axes; itself for 1.

    >>> dilated(np.ones((1, 2, 2, 1, 1)), 2)[0, :, :, 0, 0]
    array([[1., 0., 1.],
           [0., 0., 0.],
           [1., 0., 1.]])
    """
    if dilation == 1:
        return weight
    size = [dilation * (s - 1) + 1 for s in weight.shape[:3]]
    out = backend.module(weight).zeros((*size, *weight.shape[3:]), weight.dtype)
    out[_taps(dilation)] = weight
    return out


def check_shapes(name: str, x: Array, weight: Array, *order: str) -> None:
    """Raise an error unless x and weight, with its last two axes in this `order`, have the same channels and axes."""
    if x.ndim not in (4, 5) or weight.ndim != x.ndim or x.shape[-1] != weight.shape[order.index("channel") - 2]:
        raise ValueError(
            f"{name} got x of shape {x.shape} and weight of shape {weight.shape}; expected x (n, y, x, channel) "
            f"and weight (k, l, {', '.join(order)}) of as many channels, or both with z before y"
        )


def planes(a: Array, axis: int = 1) -> Array:
    """Images as volumes of one plane (axis 1), filters of images as those of volumes (axis 0); volumes as they are."""
    return a if a.ndim == 5 else a[:, None] if axis else a[None]


# ---------------------------------------------------------------------------------------------- layers
@dataclass(frozen=True)
class Conv2d:
    """Convolution of images with `size` x `size` filters and a bias, then an `activation`.

    Images (n, y, x, inputs) -> (n, y', x', outputs).  `padding`: "same" keeps the size at stride 1 (zeros around the
    image), "reflect" does so with mirrored pixels, "valid" keeps only pixels whose filter lies in the image; in
    "same" an even filter looks one pixel farther down and right.  `dilation`: distance of the filter's taps.
    `activation`: a name of `layers.activation`, computed while the result is in cache.  Parameters `weight` (size,
    size, inputs, outputs), drawn normal with variance 2 / (size² inputs) (He et al. 2015, ICCV), and `bias`.

    >>> layer = Conv2d(1, 4, stride=2, activation="gelu")
    >>> layer(layer.init(np.random.default_rng(0)), np.ones((8, 11, 11, 1), np.float32)).shape
    (8, 6, 6, 4)
    """

    inputs: int
    outputs: int
    size: int = 3
    _: KW_ONLY
    stride: int = 1
    dilation: int = 1
    padding: str = "same"
    activation: str | None = None
    AXES = 2

    def __post_init__(self) -> None:
        if min(self.inputs, self.outputs, self.size, self.stride, self.dilation) < 1:
            raise ValueError(f"{self} is not possible; inputs, outputs, size, stride and dilation are at least 1")
        if self.padding not in ("same", "valid", "reflect"):
            raise ValueError(f"{self} is not possible; padding is 'same', 'valid' or 'reflect'")
        code(self.activation)

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> dict[str, np.ndarray]:
        """Draw the parameters."""
        shape = (*[self.size] * self.AXES, self.inputs, self.outputs)
        scale = (2 / (self.size**self.AXES * self.inputs)) ** 0.5
        return {"weight": rng.normal(0, scale, shape).astype(dtype), "bias": np.zeros(self.outputs, dtype)}

    def __call__(self, p: Mapping[str, Any], x: Any) -> Any:
        """Convolve x (n, y, x, inputs), an array or Tensor, with the parameters `p`."""
        if x.ndim != self.AXES + 2 or x.shape[-1] != self.inputs:
            axes = "z, y, x" if self.AXES == 3 else "y, x"
            raise ValueError(f"{self} got x of shape {x.shape}; expected (n, {axes}, {self.inputs})")
        reach = self.dilation * (self.size - 1)
        pad = 0 if self.padding == "valid" else reach // 2
        if self.padding == "reflect":
            x, pad = reflected(x, [(pad, reach - pad)] * self.AXES), 0
        elif reach % 2 and self.padding == "same":
            x, pad = ops.pad(x, [(0, 0), *[(pad, reach - pad)] * self.AXES, (0, 0)]), 0
        settings = {"stride": self.stride, "pad": pad, "dilation": self.dilation, "activation": self.activation}
        return conv(x, p["weight"], p["bias"], **settings)


@dataclass(frozen=True)
class Conv3d(Conv2d):
    """As `Conv2d`, for volumes (n, z, y, x, inputs); `weight` (size, size, size, inputs, outputs).

    >>> layer = Conv3d(1, 4)
    >>> layer(layer.init(np.random.default_rng(0)), np.ones((2, 5, 6, 7, 1), np.float32)).shape
    (2, 5, 6, 7, 4)
    """

    AXES = 3


def reflected(x: Any, width: Sequence[tuple[int, int]]) -> Any:
    """x (n, ..., channel) with a border of mirrored pixels, the outermost one not repeated; `width` per inner axis.

    >>> reflected(np.arange(4.0).reshape(1, 4, 1), [(1, 2)])[0, :, 0]
    array([1., 0., 1., 2., 3., 2., 1.])
    """
    for axis, (before, after) in enumerate(width, 1):
        n = x.shape[axis]
        if max(before, after) >= n:
            raise ValueError(f"a border of {max(before, after)} mirrored pixels does not fit an axis of {n}; pad less")
        if before or after:
            head, tail = ([slice(None)] * axis + [s] for s in (slice(1, before + 1), slice(n - 1 - after, n - 1)))
            x = ops.concatenate([ops.flip(x[tuple(head)], axis), x, ops.flip(x[tuple(tail)], axis)], axis)
    return x
