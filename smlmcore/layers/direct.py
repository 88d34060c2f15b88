"""Convolutions of any size, stride and border on the CPU, as matrix products.

Each image plane (or a strip of its rows) is copied into a small scratch with a border of zeros, where one filter row of
an output pixel is one run of floats, and where output pixels, counted through the rows, lie at equal distances: a whole
strip is then one call of the matrix product in `simd`.  Three things make that so:

- one column of zeros serves as the right border of a row and as the left border of the next;
- with a stride, the rows are sorted by row modulo stride, and the row pitch is a multiple of the stride;
- the pixels that the count meets in the border are computed too, and thrown away (one in twelve for 11x11 pixels).

The input gradient is the same with the gradient as input, one product per residue of the pixel modulo stride, each
with the taps that reach it, in reverse.  The weight gradient is the product with the sum over the pixels; strips go
into a number of partial sums that does not depend on the number of threads.

An image has planes z (one for 2-D).  The filter's planes are so many more segments of the product; along an axis where
the filter is 1 long, there is no border.
"""

from __future__ import annotations

import numpy as np
from numba import get_num_threads, prange

from .activation import activate
from .compiled import copy, frozen, link, njit
from .simd import blocks, pack, product

STRIP = 200_000  # bytes of scratch per strip: input and output stay in the second-level cache
SHORT_STRIP = 60_000  # the same where the scratch is read many times
PARTS = 32  # partial sums of a weight gradient


@njit()
def ceil(a, b):
    return -(-a // b)


@njit()
def border(pad, taps):
    """Zeros on either side along an axis where the filter has `taps` taps."""
    return pad if taps > 1 else 0


@njit()
def unravel(line, planes, rows):
    """Image, plane and row of a line, counted through all images of so many planes of so many rows."""
    return line // rows // planes, line // rows % planes, line % rows


@njit()
def _strip_rows(planes, rows, pixels, row_bytes, limit):
    """Rows of a strip: within `limit` bytes, and about 16 strips in all unless they become shorter than 128 pixels."""
    fits = max(1, limit // row_bytes)
    shared_out = max(ceil(planes * rows, 16), ceil(128, pixels))
    return min(rows, fits, shared_out)


@njit()
def move(source, s, source_step, target, t, target_step, floats, pixels):
    """Copy `pixels` runs of `floats` numbers, `source_step` apart, to places `target_step` apart."""
    if source_step == floats == target_step:
        floats, pixels = floats * pixels, 1
    for _ in range(pixels):
        copy(source, s, target, t, floats)
        s += source_step
        t += target_step


@njit()
def scale(values, factors, start, count, v):
    """Multiply values[v:] by factors[start:], if there are factors."""
    if factors.size:
        line, by = values[v : v + count], factors[start : start + count]
        for i in range(count):
            line[i] *= by[i]


@njit()
def fill(image, factors, start, height, line, inside, scratch, place, first, count, stride, pitch, left):
    """Copy the image rows first ... first + count - 1 into the scratch from `place` on, sorted by row modulo `stride`.

    `start` is the offset of the image plane, `line` the floats of its row; a scratch row has `pitch` floats, the first
    `left` of them border.  Rows outside of the image, and all if not `inside`, become zeros; all else in the scratch is
    zero and stays so.  The numbers are multiplied by `factors`, unless these are empty.
    """
    for y in range(count):
        t = place + (y % stride * ceil(count, stride) + y // stride) * pitch + left
        if inside and 0 <= first + y < height:
            copy(image, start + (first + y) * line, scratch, t, line)
            scale(scratch, factors, start + (first + y) * line, line, t)
        else:
            scratch[t : t + line] = 0


@njit()
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


# ---------------------------------------------------------------------------------------------- forward
@njit()
def _forward_strips(
    strips, strip_rows, x, none, packed, bias, taps, stride, pad, activation, pitch, widths, out, slope
):
    _, f, h, w, c = x.shape
    _, o, p, q, d = out.shape
    kz, ky, kx = taps
    images, results, columns, line = x.reshape(-1), out.reshape(-1), bias.size, pitch // stride
    top, left = border(pad, ky), border(pad, kx)
    plane = ceil((strip_rows - 1) * stride + ky, stride) * stride * pitch * c
    scratch = np.zeros(kz * plane + left * c, x.dtype)
    result = np.empty(strip_rows * line * columns, x.dtype)
    table = np.empty(kz * ky, np.int64)
    per_plane = ceil(p, strip_rows)
    for strip in strips:
        target, first = strip // per_plane, strip % per_plane * strip_rows
        rows = min(strip_rows, p - first)
        count = (rows - 1) * stride + ky
        for i in range(kz):
            z = target % o * stride + i - border(pad, kz)
            start = (target // o * f + z) * h * w * c
            fill(
                images, none, start, h, w * c, 0 <= z < f, scratch, i * plane,
                first * stride - top, count, stride, pitch * c, left * c,
            )  # fmt: skip
            for y in range(ky):
                table[i * ky + y] = i * plane + (y % stride * ceil(count, stride) + y // stride) * pitch * c
        _multiply(scratch, packed, 0, bias, table, kx * c, stride * c, widths, columns, result, (rows - 1) * line + q)
        start = (target * p + first) * q * d
        for r in range(rows):
            move(result, r * line * columns, columns, results, start + r * q * d, d, d, q)
        activate(activation, results, slope, start, rows * q * d)


@njit(parallel=True)
def _forward(x, none, packed, bias, taps, stride, pad, activation, widths, threads, out, slope):
    n, _, _, w, c = x.shape
    _, o, p, q, _ = out.shape
    kz, _, kx = taps
    pitch = stride * max(ceil(w + border(pad, kx), stride), q)
    rows = _strip_rows(n * o, p, q, x.itemsize * pitch * (stride * kz * c + bias.size // stride), STRIP)
    total = n * o * ceil(p, rows)
    chunks = min(total, 4 * threads)
    for chunk in prange(chunks):
        strips = range(total * chunk // chunks, total * (chunk + 1) // chunks)
        _forward_strips(strips, rows, x, none, packed, bias, taps, stride, pad, activation, pitch, widths, out, slope)


def forward(x, weight, bias, stride, pad, activation, out, slope):
    """`conv` of the module `conv`."""
    link()
    widths = blocks(bias.size)
    filled_bias = np.zeros(widths.sum(), x.dtype)
    filled_bias[: bias.size] = bias
    packed = pack(weight.reshape(-1, bias.size), widths)
    _forward(
        frozen(x),
        frozen(np.empty(0, x.dtype)),
        packed,
        filled_bias,
        weight.shape[:3],
        stride,
        pad,
        activation,
        widths,
        get_num_threads(),
        out,
        slope,
    )


# ---------------------------------------------------------------------------------------------- input gradient
@njit()
def _input_strips(strips, strip_rows, gradient, slope, packed, taps, stride, pad, pitch, widths, out):
    """Row stride*u + residue - pad of `out` gets row u - t of the gradient times filter row residue + stride*t.

    So for the planes, with uz and tz, and the columns.
    """
    _, o, p, q, d = gradient.shape
    _, f, h, w, c = out.shape
    kz, ky, kx = taps
    pz, py, px = border(pad, kz), border(pad, ky), border(pad, kx)
    images, results, columns = gradient.reshape(-1), out.reshape(-1), widths.sum()
    low_z, low_y, low_x = pz // stride, py // stride, px // stride  # the first u in use, along each axis
    planes, top, left = (kz - 1) // stride + 1, (ky - 1) // stride - low_y, (kx - 1) // stride - low_x
    uz, uy, ux = (
        (f - 1 + pz) // stride + 1 - low_z,
        (h - 1 + py) // stride + 1 - low_y,
        (w - 1 + px) // stride + 1 - low_x,
    )
    plane = ((strip_rows + (ky - 1) // stride) * pitch) * d
    scratch = np.zeros(planes * plane + (kx - 1) // stride * d, gradient.dtype)
    result, zero = np.empty(strip_rows * pitch * columns, gradient.dtype), np.zeros(columns, gradient.dtype)
    per_plane = ceil(uy, strip_rows)
    for strip in strips:
        image, u, first = strip // per_plane // uz, strip // per_plane % uz, strip % per_plane * strip_rows
        rows = min(strip_rows, uy - first)
        for t in range(planes):
            z = u + low_z - t
            start = (image * o + z) * p * q * d
            fill(
                images, slope, start, p, q * d, 0 <= z < o, scratch, t * plane,
                first - top, rows + (ky - 1) // stride, 1, pitch * d, left * d,
            )  # fmt: skip
        packed_start = 0
        for residue in range(stride * stride * stride):
            rz, ry, rx = residue // stride // stride, residue // stride % stride, residue % stride
            taps_z, taps_y, taps_x = (
                ceil(max(0, kz - rz), stride),
                ceil(max(0, ky - ry), stride),
                ceil(max(0, kx - rx), stride),
            )
            table = np.empty(taps_z * taps_y, np.int64)
            for i in range(taps_z):
                for t in range(taps_y):
                    table[i * taps_y + t] = (
                        i * plane + (((ky - 1) // stride - t) * pitch + (kx - 1) // stride - taps_x + 1) * d
                    )
            z = (u + low_z) * stride + rz - pz
            if 0 <= z < f:
                pixels = (rows - 1) * pitch + ux
                _multiply(scratch, packed, packed_start, zero, table, taps_x * d, d, widths, columns, result, pixels)
                v = max(0, ceil(px - rx, stride) - low_x)  # the first column inside the image
                x = (v + low_x) * stride + rx - px
                for r in range(rows):
                    y = (first + r + low_y) * stride + ry - py
                    if 0 <= y < h and x < w:
                        source, target = (r * pitch + v) * columns, (((image * f + z) * h + y) * w + x) * c
                        move(result, source, columns, results, target, stride * c, c, ceil(w - x, stride))
            packed_start += taps_z * taps_y * taps_x * d * columns


@njit(parallel=True)
def _input_gradient(gradient, slope, packed, taps, stride, pad, widths, threads, out):
    n, _, _, q, d = gradient.shape
    _, f, h, w, _ = out.shape
    kz, ky, kx = taps
    pz, py, px = border(pad, kz), border(pad, ky), border(pad, kx)
    uz, uy, ux = ((f - 1 + pz) // stride + 1 - pz // stride, (h - 1 + py) // stride + 1 - py // stride,
                  (w - 1 + px) // stride + 1 - px // stride)  # fmt: skip
    pitch = max(q + (kx - 1) // stride - px // stride, ux)
    rows = _strip_rows(n * uz, uy, ux, gradient.itemsize * pitch * (((kz - 1) // stride + 1) * d + widths.sum()), STRIP)
    total = n * uz * ceil(uy, rows)
    chunks = min(total, 4 * threads)
    for chunk in prange(chunks):
        strips = range(total * chunk // chunks, total * (chunk + 1) // chunks)
        _input_strips(strips, rows, gradient, slope, packed, taps, stride, pad, pitch, widths, out)


def input_gradient(gradient, slope, weight, stride, pad, out):
    """`conv_input_gradient` of the module `conv`."""
    link()
    c, spans = weight.shape[3], {t for t in weight.shape[:3] if t > 1}
    if stride == 1 and slope.size == 0 and len(spans) <= 1:  # a convolution: the filter mirrored and transposed
        mirrored = np.ascontiguousarray(weight[::-1, ::-1, ::-1].swapaxes(3, 4))
        zero = np.zeros(c, out.dtype)
        forward(gradient, mirrored, zero, 1, max(spans, default=1) - 1 - pad, 0, out, zero[:0])
        return
    widths, steps = blocks(c), range(stride)
    residues = (weight[z::stride, y::stride, x::stride][:, :, ::-1] for z in steps for y in steps for x in steps)
    packed = [pack(np.ascontiguousarray(f.swapaxes(3, 4)).reshape(-1, c), widths) for f in residues]
    _input_gradient(
        frozen(gradient),
        frozen(slope),
        np.concatenate(packed),
        weight.shape[:3],
        stride,
        pad,
        widths,
        get_num_threads(),
        out,
    )


# ---------------------------------------------------------------------------------------------- weight gradient
@njit()
def _weight_strips(
    strips, strip_rows, x, none, gradient, slope, taps, stride, pad, pitch, widths, columns, total, start
):
    """Add these strips to the flat partial sum total[start:], [kz*ky*kx*c + 1, columns]; its last row is the bias."""
    _, f, h, w, c = x.shape
    _, o, p, q, d = gradient.shape
    kz, ky, kx = taps
    images, gradients, line = x.reshape(-1), gradient.reshape(-1), pitch // stride
    top, left = border(pad, ky), border(pad, kx)
    plane = ceil((strip_rows - 1) * stride + ky, stride) * stride * pitch * c
    scratch = np.zeros(kz * plane + left * c, x.dtype)
    spread, tight = np.zeros(strip_rows * line * columns, x.dtype), np.empty(strip_rows * q * d, x.dtype)
    one, whole = np.empty(1, x.dtype), np.zeros(1, np.int64)
    one[0] = 1
    per_plane = ceil(p, strip_rows)
    for strip in strips:
        source, first = strip // per_plane, strip % per_plane * strip_rows
        rows = min(strip_rows, p - first)
        count, pixels = (rows - 1) * stride + ky, (rows - 1) * line + q
        at = (source * p + first) * q * d
        copy(gradients, at, tight, 0, rows * q * d)
        scale(tight, slope, at, rows * q * d, 0)
        for r in range(rows):
            move(tight, r * q * d, d, spread, r * line * columns, columns, d, q)
        for i in range(kz):
            z = source % o * stride + i - border(pad, kz)
            fill(
                images, none, (source // o * f + z) * h * w * c, h, w * c, 0 <= z < f, scratch, i * plane,
                first * stride - top, count, stride, pitch * c, left * c,
            )  # fmt: skip
        column = 0
        for width in widths:
            t = start + column
            for i in range(kz):
                for y in range(ky):
                    row = i * plane + (y % stride * ceil(count, stride) + y // stride) * pitch * c
                    product(
                        width, scratch, row, spread, column, total, t, total, t,
                        whole, pixels, 1, stride * c, columns, columns, columns, kx * c,
                    )  # fmt: skip
                    t += kx * c * columns
            product(
                width, one, 0, spread, column, total, t, total, t, whole, pixels, 0, 0, columns, columns, columns, 1
            )
            column += width


@njit(parallel=True)
def _weight_gradient(x, none, gradient, slope, stride, pad, widths, columns, weight, bias):
    n, _, _, w, c = x.shape
    _, o, p, q, d = gradient.shape
    kz, ky, kx = taps = weight.shape[:3]
    pitch = stride * max(ceil(w + border(pad, kx), stride), q)
    rows = _strip_rows(n * o, p, q, x.itemsize * pitch * (stride * kz * c + columns // stride), SHORT_STRIP)
    strips = n * o * ceil(p, rows)
    parts, size = min(strips, PARTS), (kz * ky * kx * c + 1) * columns
    total = np.zeros(parts * size, x.dtype)
    for part in prange(parts):
        own = range(strips * part // parts, strips * (part + 1) // parts)
        _weight_strips(
            own, rows, x, none, gradient, slope, taps, stride, pad, pitch, widths, columns, total, part * size
        )
    flat = weight.reshape(-1)
    for row in prange(kz * ky * kx * c + 1):
        for column in range(d):
            value = x.dtype.type(0)
            for part in range(parts):
                value += total[part * size + row * columns + column]
            if row < kz * ky * kx * c:
                flat[row * d + column] = value
            else:
                bias[column] = value


def weight_gradient(x, gradient, slope, stride, pad, weight, bias):
    """`conv_weight_gradient` of the module `conv`."""
    link()
    none = frozen(np.empty(0, x.dtype))
    widths = blocks(bias.size)
    _weight_gradient(frozen(x), none, frozen(gradient), frozen(slope), stride, pad, widths, widths.sum(), weight, bias)
