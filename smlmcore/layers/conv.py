"""Two-dimensional convolution: kernels and layer.

Images are channels-last, x[n,h,w,c]; filters are weight[k,l,c,d] of any size; the border is filled with `pad` zeros.

    out[n,p,q,d] = bias[d] + Σ_{k,l,c} x[n, p·stride + k - pad, q·stride + l - pad, c] · weight[k,l,c,d]

How the CPU bodies work.  Each image (or a strip of its rows) is copied into a small scratch with a border of zeros,
where one filter row of an output pixel is one run of floats, and where output pixels, counted through the rows, lie at
equal distances: a whole strip is then one call of the matrix product in `simd`.  Three things make that so:

- one column of zeros serves as the right border of a row and as the left border of the next;
- with a stride, the rows are sorted by row modulo stride, and the row pitch is a multiple of the stride;
- the pixels that the count meets in the border are computed too, and thrown away (one in twelve for 11x11 pixels).

The input gradient is the same with the gradient as input, one product per residue of the pixel modulo stride, each
with the taps that reach it, in reverse.  The weight gradient is the product with the sum over the pixels; strips go
into a number of partial sums that does not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numba import get_num_threads, njit, prange

from .. import backend, kernel
from ..autograd import op
from ..backend import Array
from .simd import blocks, copy, frozen, pack, product

STRIP = 200_000  # bytes of scratch per strip: input and output stay in the second-level cache
SHORT_STRIP = 60_000  # the same where the scratch is read many times
PARTS = 32  # partial sums of a weight gradient


# ---------------------------------------------------------------------------------------------- reference
def _windows(x, ky, kx, stride, pad, p, q):
    """For each tap (i, j) the pixels x[n,p,q,c] that it multiplies, as a view of the padded image."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    for i in range(ky):
        for j in range(kx):
            yield i, j, padded[:, i : i + stride * (p - 1) + 1 : stride, j : j + stride * (q - 1) + 1 : stride]


def _conv2d_reference(x, weight, bias, stride, pad, out):
    total = np.zeros(out.shape) + bias
    for i, j, pixels in _windows(x, *weight.shape[:2], stride, pad, *out.shape[1:3]):
        total += pixels @ weight[i, j].astype(np.float64)
    out[...] = total


def _input_gradient_reference(gradient, weight, stride, pad, out):
    n, h, w, c = out.shape
    p, q = gradient.shape[1:3]
    total = np.zeros((n, h + 2 * pad, w + 2 * pad, c))
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            pixels = total[:, i : i + stride * (p - 1) + 1 : stride, j : j + stride * (q - 1) + 1 : stride]
            pixels += gradient.astype(np.float64) @ weight[i, j].astype(np.float64).T
    out[...] = total[:, pad : pad + h, pad : pad + w]


def _weight_gradient_reference(x, gradient, stride, pad, weight, bias):
    for i, j, pixels in _windows(x, *weight.shape[:2], stride, pad, *gradient.shape[1:3]):
        weight[i, j] = np.tensordot(pixels, gradient.astype(np.float64), ((0, 1, 2), (0, 1, 2)))
    bias[...] = gradient.sum((0, 1, 2), dtype=np.float64)


# ---------------------------------------------------------------------------------------------- cpu: helpers
@njit(nogil=True)
def _ceil(a, b):
    return -(-a // b)


@njit(nogil=True)
def _strip_rows(images, rows, pixels, row_bytes, limit):
    """Rows of a strip: within `limit` bytes, and about 16 strips in all unless they become shorter than 128 pixels."""
    fits = max(1, limit // row_bytes)
    shared_out = max(_ceil(images * rows, 16), _ceil(128, pixels))
    return min(rows, fits, shared_out)


@njit(nogil=True)
def _move(source, s, source_step, target, t, target_step, floats, pixels):
    """Copy `pixels` runs of `floats` numbers, `source_step` apart, to places `target_step` apart."""
    if source_step == floats == target_step:
        floats, pixels = floats * pixels, 1
    for _ in range(pixels):
        copy(source, s, target, t, floats)
        s += source_step
        t += target_step


@njit(nogil=True)
def _fill(image, start, height, line, scratch, first, count, stride, pitch, left):
    """Copy the image rows first ... first + count - 1 into the scratch, sorted by row modulo `stride`.

    `start` is the offset of the image, `line` the floats of its row; a scratch row has `pitch` floats, the first `left`
    of them border.  Rows outside of the image become zeros; all else in the scratch is zero and stays so.
    """
    for y in range(count):
        place = (y % stride * _ceil(count, stride) + y // stride) * pitch + left
        if 0 <= first + y < height:
            copy(image, start + (first + y) * line, scratch, place, line)
        else:
            scratch[place : place + line] = 0


@njit(nogil=True)
def _multiply(scratch, packed, w, init, table, length, step, widths, columns, result, pixels):
    """result[pixels, columns] = init[columns] + the sum over taps and channels; `packed` by `pack`, from `w` on."""
    column = 0
    for width in widths:
        product(
            width, scratch, 0, packed, w, result, column, init, column,
            table, length, step, 1, width, columns, 0, pixels,
        )  # fmt: skip
        w += table.size * length * width
        column += width


# ---------------------------------------------------------------------------------------------- cpu: forward
@njit(nogil=True)
def _forward_strips(strips, strip_rows, x, packed, bias, ky, kx, stride, pad, pitch, widths, out):
    _, h, w, c = x.shape
    _, p, q, d = out.shape
    images, results, columns, line = x.reshape(-1), out.reshape(-1), bias.size, pitch // stride
    scratch_rows = (strip_rows - 1) * stride + ky
    scratch = np.zeros((_ceil(scratch_rows, stride) * stride * pitch + pad) * c, x.dtype)
    result = np.empty(strip_rows * line * columns, x.dtype)
    table = np.empty(ky, np.int64)
    per_image = _ceil(p, strip_rows)
    for strip in strips:
        image, first = strip // per_image, strip % per_image * strip_rows
        rows = min(strip_rows, p - first)
        count = (rows - 1) * stride + ky
        _fill(images, image * h * w * c, h, w * c, scratch, first * stride - pad, count, stride, pitch * c, pad * c)
        for i in range(ky):
            table[i] = (i % stride * _ceil(count, stride) + i // stride) * pitch * c
        _multiply(scratch, packed, 0, bias, table, kx * c, stride * c, widths, columns, result, (rows - 1) * line + q)
        for r in range(rows):
            _move(result, r * line * columns, columns, results, ((image * p + first + r) * q) * d, d, d, q)


@njit(parallel=True, cache=True, nogil=True)
def _forward(x, packed, bias, ky, kx, stride, pad, widths, threads, out):
    n, _, w, c = x.shape
    _, p, q, _ = out.shape
    pitch = stride * max(_ceil(w + pad, stride), q)
    rows = _strip_rows(n, p, q, x.itemsize * pitch * (stride * c + bias.size // stride), STRIP)
    total = n * _ceil(p, rows)
    chunks = min(total, 4 * threads)
    for chunk in prange(chunks):
        strips = range(total * chunk // chunks, total * (chunk + 1) // chunks)
        _forward_strips(strips, rows, x, packed, bias, ky, kx, stride, pad, pitch, widths, out)


def _conv2d_cpu(x, weight, bias, stride, pad, out):
    widths = blocks(bias.size)
    filled_bias = np.zeros(widths.sum(), x.dtype)
    filled_bias[: bias.size] = bias
    packed = pack(weight.reshape(-1, bias.size), widths)
    _forward(frozen(x), packed, filled_bias, *weight.shape[:2], stride, pad, widths, get_num_threads(), out)


# ---------------------------------------------------------------------------------------------- cpu: input gradient
@njit(nogil=True)
def _input_strips(strips, strip_rows, gradient, packed, ky, kx, stride, pad, pitch, widths, out):
    """Row stride*u + residue - pad of `out` gets row u - t of the gradient times filter row residue + stride*t."""
    _, p, q, d = gradient.shape
    _, h, w, c = out.shape
    images, results, columns = gradient.reshape(-1), out.reshape(-1), widths.sum()
    low = pad // stride  # the first u and v in use
    top, left = (ky - 1) // stride - low, (kx - 1) // stride - low
    us, vs = (h - 1 + pad) // stride + 1 - low, (w - 1 + pad) // stride + 1 - low
    scratch = np.zeros(((strip_rows + (ky - 1) // stride) * pitch + (kx - 1) // stride) * d, gradient.dtype)
    result, zero = np.empty(strip_rows * pitch * columns, gradient.dtype), np.zeros(columns, gradient.dtype)
    per_image = _ceil(us, strip_rows)
    for strip in strips:
        image, first = strip // per_image, strip % per_image * strip_rows
        rows = min(strip_rows, us - first)
        _fill(
            images, image * p * q * d, p, q * d, scratch, first - top, rows + (ky - 1) // stride, 1, pitch * d, left * d
        )
        packed_start = 0
        for residue in range(stride * stride):
            ry, rx = residue // stride, residue % stride
            taps_y, taps_x = max(0, _ceil(ky - ry, stride)), max(0, _ceil(kx - rx, stride))
            table = np.empty(taps_y, np.int64)
            for t in range(taps_y):
                table[t] = (((ky - 1) // stride - t) * pitch + (kx - 1) // stride - taps_x + 1) * d
            pixels = (rows - 1) * pitch + vs
            _multiply(scratch, packed, packed_start, zero, table, taps_x * d, d, widths, columns, result, pixels)
            packed_start += taps_y * taps_x * d * columns
            v = max(0, _ceil(pad - rx, stride) - low)  # the first column inside the image
            x = (v + low) * stride + rx - pad
            for r in range(rows):
                y = (first + r + low) * stride + ry - pad
                if 0 <= y < h and x < w:
                    source, target = (r * pitch + v) * columns, ((image * h + y) * w + x) * c
                    _move(result, source, columns, results, target, stride * c, c, _ceil(w - x, stride))


@njit(parallel=True, cache=True, nogil=True)
def _input_gradient(gradient, packed, ky, kx, stride, pad, widths, threads, out):
    n, _, q, d = gradient.shape
    _, h, w, _ = out.shape
    low = pad // stride
    us, vs = (h - 1 + pad) // stride + 1 - low, (w - 1 + pad) // stride + 1 - low
    pitch = max(q + (kx - 1) // stride - low, vs)
    rows = _strip_rows(n, us, vs, gradient.itemsize * pitch * (d + widths.sum()), STRIP)
    total = n * _ceil(us, rows)
    chunks = min(total, 4 * threads)
    for chunk in prange(chunks):
        strips = range(total * chunk // chunks, total * (chunk + 1) // chunks)
        _input_strips(strips, rows, gradient, packed, ky, kx, stride, pad, pitch, widths, out)


def _input_gradient_cpu(gradient, weight, stride, pad, out):
    ky, kx, c, _ = weight.shape
    if pad >= min(ky, kx):
        raise ValueError(f"conv2d_input_gradient got pad {pad} with a {ky}x{kx} filter; expected a smaller pad")
    widths = blocks(c)
    residues = (weight[y::stride, x::stride][:, ::-1] for y in range(stride) for x in range(stride))
    packed = [pack(np.ascontiguousarray(f.transpose(0, 1, 3, 2)).reshape(-1, c), widths) for f in residues]
    _input_gradient(frozen(gradient), np.concatenate(packed), ky, kx, stride, pad, widths, get_num_threads(), out)


# ---------------------------------------------------------------------------------------------- cpu: weight gradient
@njit(nogil=True)
def _weight_strips(strips, strip_rows, x, gradient, ky, kx, stride, pad, pitch, widths, total, start):
    """Add these strips to the flat partial sum total[start:], [ky*kx*c + 1, columns]; its last row is the bias."""
    _, h, w, c = x.shape
    _, p, q, d = gradient.shape
    images, gradients, columns, line = x.reshape(-1), gradient.reshape(-1), widths.sum(), pitch // stride
    scratch_rows = (strip_rows - 1) * stride + ky
    scratch = np.zeros((_ceil(scratch_rows, stride) * stride * pitch + pad) * c, x.dtype)
    spread = np.zeros(strip_rows * line * columns, x.dtype)
    one, whole = np.ones(1, x.dtype), np.zeros(1, np.int64)
    per_image = _ceil(p, strip_rows)
    for strip in strips:
        image, first = strip // per_image, strip % per_image * strip_rows
        rows = min(strip_rows, p - first)
        count, pixels = (rows - 1) * stride + ky, (rows - 1) * line + q
        _fill(images, image * h * w * c, h, w * c, scratch, first * stride - pad, count, stride, pitch * c, pad * c)
        for r in range(rows):
            _move(gradients, (image * p + first + r) * q * d, d, spread, r * line * columns, columns, d, q)
        column = 0
        for width in widths:
            o = start + column
            for i in range(ky):
                row = (i % stride * _ceil(count, stride) + i // stride) * pitch * c
                product(
                    width, scratch, row, spread, column, total, o, total, o,
                    whole, pixels, 1, stride * c, columns, columns, columns, kx * c,
                )  # fmt: skip
                o += kx * c * columns
            product(
                width, one, 0, spread, column, total, o, total, o, whole, pixels, 0, 0, columns, columns, columns, 1
            )
            column += width


@njit(parallel=True, cache=True, nogil=True)
def _weight_gradient(x, gradient, stride, pad, widths, weight, bias):
    n, _, w, c = x.shape
    _, p, q, d = gradient.shape
    ky, kx = weight.shape[:2]
    columns = widths.sum()
    pitch = stride * max(_ceil(w + pad, stride), q)
    rows = _strip_rows(n, p, q, x.itemsize * pitch * (stride * c + columns // stride), SHORT_STRIP)
    strips = n * _ceil(p, rows)
    parts, size = min(strips, PARTS), (ky * kx * c + 1) * columns
    total = np.zeros(parts * size, x.dtype)
    for part in prange(parts):
        own = range(strips * part // parts, strips * (part + 1) // parts)
        _weight_strips(own, rows, x, gradient, ky, kx, stride, pad, pitch, widths, total, part * size)
    flat = weight.reshape(-1)
    for row in prange(ky * kx * c + 1):
        for column in range(d):
            value = x.dtype.type(0)
            for part in range(parts):
                value += total[part * size + row * columns + column]
            if row < ky * kx * c:
                flat[row * d + column] = value
            else:
                bias[column] = value


def _weight_gradient_cpu(x, gradient, stride, pad, weight, bias):
    _weight_gradient(frozen(x), frozen(gradient), stride, pad, blocks(bias.size), weight, bias)


# ---------------------------------------------------------------------------------------------- registration
def _case(n, h, w, c, d, ky, kx, stride=1, pad=None):
    pad = min(ky, kx) // 2 if pad is None else pad
    p, q = (h + 2 * pad - ky) // stride + 1, (w + 2 * pad - kx) // stride + 1
    return {"n": n, "h": h, "w": w, "c": c, "d": d, "k": ky, "l": kx, "p": p, "q": q, "stride": stride, "pad": pad}


_CASES = (
    _case(2, 5, 7, 3, 4, 3, 3),
    _case(1, 1, 1, 1, 1, 1, 1),
    _case(1, 1, 1, 2, 3, 5, 5),
    _case(0, 4, 4, 2, 2, 3, 3),
    _case(3, 9, 6, 1, 5, 3, 3, 2),
    _case(2, 7, 10, 2, 33, 2, 2, 3),
    _case(1, 13, 4, 5, 24, 5, 3, 2),
    _case(2, 4, 5, 3, 8, 1, 1, 3),
    _case(1, 20, 19, 4, 16, 4, 4),
    _case(2, 41, 30, 2, 9, 3, 3, 2),
    _case(1, 6, 6, 2, 3, 3, 3, 1, 0),
)

_BENCH = _case(256, 32, 32, 32, 32, 3, 3)


def _sample(**shapes):
    def sample(rng, stride, pad, **dims):
        return [*(rng.normal(size=[dims[d] for d in shape]) for shape in shapes.values()), stride, pad]

    return sample


conv2d_kernel = kernel.register(
    "conv2d",
    "x[n,h,w,c] weight[k,l,c,d] bias[d] stride:int pad:int -> out[n,p,q,d]",
    _conv2d_reference,
    cpu=_conv2d_cpu,
    cuda=kernel.Cuda("conv2d.cu", lambda s: -(-s["n"] * s["p"] * s["q"] * s["d"] // 128)),
    sample=_sample(x="nhwc", weight="klcd", bias="d"),
    cases=_CASES,
    bench=_BENCH,
)
conv2d_input_gradient_kernel = kernel.register(
    "conv2d_input_gradient",
    "gradient[n,p,q,d] weight[k,l,c,d] stride:int pad:int -> out[n,h,w,c]",
    _input_gradient_reference,
    cpu=_input_gradient_cpu,
    cuda=kernel.Cuda("conv2d.cu", lambda s: -(-s["n"] * s["h"] * s["w"] * s["c"] // 128)),
    sample=_sample(gradient="npqd", weight="klcd"),
    cases=_CASES,
    bench=_BENCH,
)
conv2d_weight_gradient_kernel = kernel.register(
    "conv2d_weight_gradient",
    "x[n,h,w,c] gradient[n,p,q,d] stride:int pad:int -> weight[k,l,c,d] bias[d]",
    _weight_gradient_reference,
    cpu=_weight_gradient_cpu,
    cuda=kernel.Cuda("conv2d.cu", lambda s: (s["k"] * s["l"] * s["c"] + 1) * -(-s["d"] // 32), threads=256),
    sample=_sample(x="nhwc", gradient="npqd"),
    cases=_CASES,
    bench=_BENCH,
)


# ---------------------------------------------------------------------------------------------- op and layer
@op
def conv2d(x: Array, weight: Array, bias: Array, *, stride: int = 1, pad: int = 0) -> Array:
    """Convolution of channels-last images, bias[d] + Σ x[n, p·stride+k-pad, q·stride+l-pad, c] weight[k,l,c,d].

    (The filter is not mirrored, as in all networks.)  x (n, y, x, channel), weight (k, l, channel, outputs), bias
    (outputs,), all float32 or all float64; `pad` zeros around the image, fewer than the filter is wide; returns
    (n, (y + 2·pad - k)//stride + 1, (x + 2·pad - l)//stride + 1, outputs).

    >>> conv2d(np.ones((1, 3, 3, 1)), np.ones((3, 3, 1, 1)), np.zeros(1), pad=1)[0, :, :, 0]
    array([[4., 6., 4.],
           [6., 9., 6.],
           [4., 6., 4.]])
    """
    if x.ndim != 4 or weight.ndim != 4 or x.shape[3] != weight.shape[2]:
        raise ValueError(
            f"conv2d got x of shape {x.shape} and weight of shape {weight.shape}; "
            "expected x (n, y, x, channel) and weight (k, l, channel, outputs) of as many channels"
        )
    n, h, w, _ = x.shape
    ky, kx, _, d = weight.shape
    if stride < 1 or not 0 <= pad < min(ky, kx) or min(h + 2 * pad - ky, w + 2 * pad - kx) < 0:
        raise ValueError(
            f"conv2d got images of {h} x {w} pixels, a {ky} x {kx} filter, pad {pad} and stride {stride}; "
            "expected 0 <= pad < filter <= image + 2 pad, and stride >= 1"
        )
    shape = (n, (h + 2 * pad - ky) // stride + 1, (w + 2 * pad - kx) // stride + 1, d)
    out = backend.module(x, weight, name="conv2d").empty(shape, x.dtype)
    return conv2d_kernel(x, weight, bias, stride, pad, out=out), (x, weight, stride, pad)


@conv2d.vjp
def _(saved: tuple, g: Array) -> tuple:
    x, weight, stride, pad = saved
    xp = backend.module(x)

    def input_gradient() -> Array:
        return conv2d_input_gradient_kernel(g, weight, stride, pad, out=xp.empty(x.shape, x.dtype))

    @cache
    def parameters() -> tuple[Array, Array]:  # both come from one pass over the pixels
        out = xp.empty(weight.shape, x.dtype), xp.empty(weight.shape[3], x.dtype)
        return conv2d_weight_gradient_kernel(x, g, stride, pad, out=out)

    return input_gradient, lambda: parameters()[0], lambda: parameters()[1]


@dataclass(frozen=True)
class Conv2d:
    """Convolution with `size` x `size` filters, zeros around the image ('same' for odd sizes at stride 1), and a bias.

    Images (n, y, x, inputs) -> (n, (y + 2·(size//2) - size)//stride + 1, ..., outputs); parameters `weight`
    (size, size, inputs, outputs), drawn normal with variance 2 / (size² inputs) (He et al. 2015, ICCV), and `bias`.

    >>> layer = Conv2d(1, 4, stride=2)
    >>> layer(layer.init(np.random.default_rng(0)), np.ones((8, 11, 11, 1), np.float32)).shape
    (8, 6, 6, 4)
    """

    inputs: int
    outputs: int
    size: int = 3
    stride: int = 1

    def __post_init__(self) -> None:
        if min(self.inputs, self.outputs, self.size, self.stride) < 1:
            raise ValueError(f"{self} is not possible; inputs, outputs, size and stride are at least 1")

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> dict[str, np.ndarray]:
        """Draw the parameters."""
        shape = (self.size, self.size, self.inputs, self.outputs)
        scale = (2 / (self.size**2 * self.inputs)) ** 0.5
        return {"weight": rng.normal(0, scale, shape).astype(dtype), "bias": np.zeros(self.outputs, dtype)}

    def __call__(self, p: Mapping[str, Any], x: Any) -> Any:
        """Convolve x (n, y, x, inputs), an array or Tensor, with the parameters `p`."""
        return conv2d(x, p["weight"], p["bias"], stride=self.stride, pad=self.size // 2)
