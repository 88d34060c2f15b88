"""Convolutions by 3x3 filters at stride 1 in float32 with a quarter of the multiplications (Winograd 1980; Lavin & Gray
2016, CVPR), on the CPU.

A tile of 4x4 output pixels needs 6x6 input pixels d.  Taken as polynomials, their product with the filter g is found
from its values at six points p = 0, ±a, ±b, ∞ along each axis:

    y = A' [ (G g G') ⊙ (B' d B) ] A        ⊙ by element: 36 products for 16 pixels, where 144 are

and with channels each of the 36 is a matrix product, (tiles, inputs) @ (inputs, outputs).  The input gradient is the
same with the filter mirrored and transposed.  The weight gradient is the adjoint: G' [ (B' d B) ⊙ (A g A') ] G,
summed over tiles.

What rounding costs depends on the points.  With a = 5/8 and b = 3/2, exact in binary, the error is twice that of the
direct sum (root mean square; a search over sixteenths found none better by more than 2 %), with the usual 1 and 2 it is
twice as much again.  Half of it is rounding in the sum over channels, or tiles: the weight gradient sums each group of
tiles from zero, then the groups.  A pixel that is NaN spoils its whole tile.

Tiles are worked on one group at a time, such that everything stays in the second-level cache.
"""

from __future__ import annotations

import numpy as np
from numba import get_num_threads, prange, types

from .activation import activate
from .compiled import SINGLE, WHOLE, at, frozen, link, njit, shared
from .direct import border, ceil, fill, move
from .simd import WIDEST, blocks, product
from .vectors import separable

A, B = 5 / 8, 3 / 2  # the points; 0 and infinity besides
AA, BB = A * A, B * B
TILE, TAPS = 4, 36
CACHE = 400_000  # bytes of transformed input per group of tiles
# Partial sums of a weight gradient: so many at most, so many tiles in each at least; enough for so many workers.
PARTS, PART_TILES, WORKERS = 32, 256, 4
NONE = frozen(np.empty(0, np.float32))


# ---------------------------------------------------------------------------------------------- transforms, 1-D
def _input(d0, d1, d2, d3, d4, d5):
    """B': the coefficients of Π_{q≠p} (x - q) for each point p; for infinity of all five factors."""
    even_a, odd_a = d4 - BB * d2, A * (d3 - BB * d1)
    even_b, odd_b = d4 - AA * d2, B * (d3 - AA * d1)
    return (
        d4 + (AA * BB) * d0 - (AA + BB) * d2,
        even_a + odd_a,
        even_a - odd_a,
        even_b + odd_b,
        even_b - odd_b,
        d5 + (AA * BB) * d1 - (AA + BB) * d3,
    )


def _output(m0, m1, m2, m3, m4, m5):
    """A': Σ_p p^k m_p for the four pixels k."""
    even_a, odd_a, even_b, odd_b = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return (
        m0 + even_a + even_b,
        A * odd_a + B * odd_b,
        AA * even_a + BB * even_b,
        (A * AA) * odd_a + (B * BB) * odd_b + m5,
    )


def _spread(g0, g1, g2, g3):
    """A: the polynomial with these coefficients at each point."""
    even_a, odd_a = g0 + AA * g2, A * g1 + (A * AA) * g3
    even_b, odd_b = g0 + BB * g2, B * g1 + (B * BB) * g3
    return g0, even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, g3


FA, FB = 1 / (2 * AA * (AA - BB)), 1 / (2 * BB * (BB - AA))  # 1 / Π_{q≠p} (p - q) for the points ±a, ±b


def _filter(w0, w1, w2):
    """G: the filter's polynomial at each point, divided by Π_{q≠p} (p - q)."""
    even_a, odd_a = FA * (w0 + AA * w2), (FA * A) * w1
    even_b, odd_b = FB * (w0 + BB * w2), (FB * B) * w1
    return (1 / (AA * BB)) * w0, even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, w2


def _collect(m0, m1, m2, m3, m4, m5):
    """G', the adjoint of `_filter`."""
    even_a, odd_a, even_b, odd_b = FA * (m1 + m2), (FA * A) * (m1 - m2), FB * (m3 + m4), (FB * B) * (m3 - m4)
    return (1 / (AA * BB)) * m0 + even_a + even_b, odd_a + odd_b, AA * even_a + BB * even_b + m5


INPUT, OUTPUT, SPREAD, FILTER, COLLECT = range(5)
_input_grid, _output_grid, _spread_grid = separable(_input, 6), separable(_output, 6), separable(_spread, 4)
_filter_grid, _collect_grid = separable(_filter, 3), separable(_collect, 6)


@shared(types.void(WHOLE, *[SINGLE, WHOLE, WHOLE, WHOLE] * 2, WHOLE, WHOLE))
def transform(which, source, source_row, source_column, source_step, target, row, column, step, count, tiles):
    """One of the transforms along both axes of `tiles` grids, whose first elements are `step` numbers apart."""
    for tile in range(tiles):
        a, b = at(source, tile * source_step), at(target, tile * step)
        if which == INPUT:
            _input_grid(a, source_row, source_column, b, row, column, count)
        elif which == OUTPUT:
            _output_grid(a, source_row, source_column, b, row, column, count)
        elif which == SPREAD:
            _spread_grid(a, source_row, source_column, b, row, column, count)
        elif which == FILTER:
            _filter_grid(a, source_row, source_column, b, row, column, count)
        else:
            _collect_grid(a, source_row, source_column, b, row, column, count)


# The values at the points of a polynomial whose coefficients are all 1: what a bias adds before the output transform.
_ONES = np.linalg.pinv(np.array(_output(*np.eye(6)))) @ np.ones(4)
BIAS = np.outer(_ONES, _ONES).ravel().astype(np.float32)


def suits(taps: tuple[int, ...], stride: int, shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether this module computes (and does so faster than `direct`) a convolution with filters of the shape `taps`
    (j, k, l, inputs, outputs), for images or volumes whose `shape` (n, planes, rows, columns, any) has as many pixels.
    """
    _, ky, kx, c, d = taps
    n, o, p, q, _ = shape
    if (ky, kx, stride) != (3, 3, 1) or c % 8 or d % 8 or dtype != np.float32:
        return False
    tiles = n * o * ceil(p, TILE) * ceil(q, TILE)
    return 36 * (tiles * (c * d + 10 * (c + d)) + 10 * c * d) < 9 * n * o * p * q * c * d


# ---------------------------------------------------------------------------------------------- forward
@njit(parallel=True)
def _filters(weight, back, widths):
    """Transformed filters: for each block of output channels [36, planes · inputs, width].

    `back`: those of the input gradient, mirrored, with inputs and outputs exchanged.
    """
    kz = weight.shape[0]
    c, d = (weight.shape[4], weight.shape[3]) if back else (weight.shape[3], weight.shape[4])
    packed, flat = np.empty(TAPS * kz * c * d, weight.dtype), weight.reshape(-1)
    for row in prange(kz * c):
        z, channel = row // c, row % c
        taps = np.empty(9 * WIDEST, weight.dtype)
        column = 0
        for width in widths:
            plane = kz * c * width
            target = at(packed, column * TAPS * kz * c + row * width)
            if back:
                for tap in range(9):
                    y, x = tap // 3, tap % 3
                    for i in range(width):
                        taps[tap * width + i] = weight[kz - 1 - z, 2 - y, 2 - x, column + i, channel]
                transform(FILTER, at(taps, 0), 3 * width, width, 0, target, 6 * plane, plane, 0, width, 1)
            else:
                source = at(flat, (z * 9 * c + channel) * d + column)
                transform(FILTER, source, 3 * c * d, c * d, 0, target, 6 * plane, plane, 0, width, 1)
            column += width
    return packed


@njit()
def _group(n, o, down, across, kz, c, d, row_bytes, workers):
    """Planes and rows of tiles of a group, such that the worker with most groups is done first.

    A group is within `CACHE` bytes, or has 24 tiles; its first and last planes are transformed for its neighbours too.
    The cost is in multiply-adds: ten for each number transformed, eight to fetch one of the filters.
    """
    fits = max(CACHE // row_bytes, ceil(24, across) + kz - 1)  # rows of tiles
    best, choice = np.inf, (1, 1)
    for deep in range(1, min(o, fits - kz + 1) + 1):
        for high in range(1, min(down, max(1, fits // (deep + kz - 1))) + 1):
            sums, values = deep * high * across, (deep + kz - 1) * high * across
            cost = (sums + 8) * kz * c * d + 10 * (values * c + sums * d)
            cost *= ceil(n * ceil(o, deep) * ceil(down, high), workers)
            if cost < best:
                best, choice = cost, (deep, high)
    return choice


@njit()
def _plane(numbers):
    """Distance of the planes of transformed tiles: an odd number of cache lines, so that they do not share one set."""
    return ceil(numbers, 32) * 32 + 16


@njit()
def _place(group, deep, high, o, down):
    """Image, first plane, first row of tiles, and how many of both, of a group of `deep` planes by `high` rows."""
    per_plane, per_image = ceil(down, high), ceil(o, deep) * ceil(down, high)
    z, row = group % per_image // per_plane * deep, group % per_plane * high
    return group // per_image, z, row, min(deep, o - z), min(high, down - row)


@njit()
def _transformed(images, shape, factors, pad, image, first, planes, row, rows, across, scratch, values, plane):
    """Transform `rows` rows of tiles in each of `planes` image planes, tile by tile into values[36, plane]."""
    _, f, h, w, c = shape
    pitch = TILE * across + 2
    for line in range(planes * rows):
        z, top = first + line // rows, (row + line % rows) * TILE - pad
        start = (image * f + z) * h * w * c
        fill(images, factors, start, h, w * c, 0 <= z < f, scratch, 0, top, 6, 1, pitch * c, pad * c)
        transform(
            INPUT, at(scratch, 0), pitch * c, c, TILE * c, at(values, line * across * c), 6 * plane, plane, c, c, across
        )


@njit()
def _forward_groups(groups, deep, high, x, factors, packed, init, kz, pz, pad, activation, widths, out, slope):
    """Groups of `deep` planes by `high` rows of tiles.

    A plane is transformed once for all planes of the filter: seen from the next one, it is the plane before.
    """
    c = x.shape[4]
    _, o, p, q, d = out.shape
    images, results = x.reshape(-1), out.reshape(-1)
    down, across = ceil(p, TILE), ceil(q, TILE)
    scratch, tile_out = np.zeros(6 * (TILE * across + 2) * c, x.dtype), np.empty(16 * WIDEST, x.dtype)
    plane_in = _plane((deep + kz - 1) * high * across * c)
    most, table = deep * high * across, np.empty(kz, np.int64)
    values, sums = np.empty(TAPS * plane_in, x.dtype), np.empty(TAPS * _plane(most * WIDEST), x.dtype)
    for group in groups:
        image, first, row, planes, rows = _place(group, deep, high, o, down)
        _transformed(
            images, x.shape, factors, pad, image, first - pz, planes + kz - 1, row, rows, across, scratch,
            values, plane_in,
        )  # fmt: skip
        for i in range(kz):
            table[i] = i * rows * across * c
        column = 0
        for width in widths:
            weights, plane = column * TAPS * kz * c, _plane(most * width)
            for k in range(TAPS):
                product(
                    width, values, k * plane_in, packed, weights + k * kz * c * width, sums, k * plane,
                    init, k * d + column, table, c, c, 1, width, width, 0, planes * rows * across,
                )  # fmt: skip
            for line in range(planes * rows):
                target, y = image * o + first + line // rows, (row + line % rows) * TILE
                start, sums_at = ((target * p + y) * q) * d + column, at(sums, line * across * width)
                whole = q // TILE if y + TILE <= p else 0  # tiles that lie in the image: written to their place
                transform(
                    OUTPUT, sums_at, 6 * plane, plane, width, at(results, start), q * d, d, TILE * d, width, whole
                )
                for tile in range(whole, across):
                    source = at(sums_at, tile * width)
                    transform(OUTPUT, source, 6 * plane, plane, 0, at(tile_out, 0), TILE * width, width, 0, width, 1)
                    for r in range(min(TILE, p - y)):
                        to, pixels = start + r * q * d + TILE * tile * d, min(TILE, q - TILE * tile)
                        move(tile_out, r * TILE * width, width, results, to, d, width, pixels)
            column += width
        for line in range(planes * rows):
            target, y = image * o + first + line // rows, (row + line % rows) * TILE
            activate(activation, results, slope, (target * p + y) * q * d, min(TILE, p - y) * q * d)


@njit(parallel=True)
def _forward(x, factors, packed, init, kz, pz, pad, activation, widths, threads, out, slope):
    c = x.shape[4]
    n, o, p, q, d = out.shape
    down, across = ceil(p, TILE), ceil(q, TILE)
    deep, high = _group(n, o, down, across, kz, c, d, TAPS * across * c * x.itemsize, threads)
    groups = n * ceil(o, deep) * ceil(down, high)
    chunks = min(groups, 2 * threads)
    for chunk in prange(chunks):
        own = range(groups * chunk // chunks, groups * (chunk + 1) // chunks)
        _forward_groups(own, deep, high, x, factors, packed, init, kz, pz, pad, activation, widths, out, slope)


def _one_volume(a: np.ndarray, kz: int) -> np.ndarray:
    """Images whose planes a filter does not join as the planes of one volume: then groups may span images."""
    return a.reshape(1, -1, *a.shape[2:]) if kz == 1 else a


def _run(x, factors, weight, back, bias, pz, pad, activation, out, slope):
    link()
    widths, kz = blocks(out.shape[4]), weight.shape[0]
    packed = _filters(frozen(weight), back, widths)
    x, out = _one_volume(frozen(x), kz), _one_volume(out, kz)
    init = np.outer(BIAS, bias).ravel()
    _forward(x, frozen(factors), packed, init, kz, pz, pad, activation, widths, get_num_threads(), out, slope)


def forward(x, weight, bias, pad, activation, out, slope):
    """`conv` of the module `conv`."""
    _run(x, NONE, weight, False, bias, border(pad, weight.shape[0]), pad, activation, out, slope)


def input_gradient(gradient, slope, weight, pad, out):
    """`conv_input_gradient` of the module `conv`."""
    kz = weight.shape[0]
    zero = np.zeros(weight.shape[3], np.float32)
    _run(gradient, slope, weight, True, zero, kz - 1 - border(pad, kz), 2 - pad, 0, out, np.empty(0, np.float32))


# ---------------------------------------------------------------------------------------------- weight gradient
@njit()
def _add(values, total, start):
    """total[start:] += values."""
    line = total[start : start + values.size]
    for i in range(values.size):
        line[i] += values[i]


@njit()
def _weight_part(groups, deep, high, x, none, gradient, slope, kz, pz, pad, column, width, total, start, bias, b):
    """Add the groups to total[start:], [kz, 36, inputs, width], and to bias[b:]."""
    c = x.shape[4]
    _, o, p, q, d = gradient.shape
    images, gradients = x.reshape(-1), gradient.reshape(-1)
    one, whole = np.empty(1, x.dtype), np.zeros(1, np.int64)
    one[0] = 1
    down, across = ceil(p, TILE), ceil(q, TILE)
    plane_in, plane = _plane((deep + kz - 1) * high * across * c), _plane(deep * high * across * width)
    scratch = np.zeros(6 * (TILE * across + 2) * c, x.dtype)
    lines = np.zeros(TILE * TILE * across * width, x.dtype)
    values, spread = np.empty(TAPS * plane_in, x.dtype), np.empty(TAPS * plane, x.dtype)
    sums, zero = np.empty(c * width, x.dtype), np.zeros(width, x.dtype)
    for group in groups:
        image, first, row, planes, rows = _place(group, deep, high, o, down)
        for line in range(planes * rows):
            target, y = image * o + first + line // rows, (row + line % rows) * TILE
            for r in range(TILE):
                to = r * TILE * across * width
                if y + r < p:
                    source = ((target * p + y + r) * q) * d + column
                    move(gradients, source, d, lines, to, width, width, q)
                    if slope.size:
                        for i in range(q):
                            for k in range(width):
                                lines[to + i * width + k] *= slope[source + i * d + k]
                else:
                    lines[to : to + q * width] = 0
            product(
                width, one, 0, lines, 0, bias, b, bias, b, whole, TILE * TILE * across, 0, 0, width, width, width, 1
            )
            transform(
                SPREAD, at(lines, 0), TILE * across * width, width, TILE * width,
                at(spread, line * across * width), 6 * plane, plane, width, width, across,
            )  # fmt: skip
        _transformed(
            images, x.shape, none, pad, image, first - pz, planes + kz - 1, row, rows, across, scratch, values, plane_in
        )
        for i in range(kz):
            for k in range(TAPS):
                product(
                    width, values, k * plane_in + i * rows * across * c, spread, k * plane, sums, 0, zero, 0,
                    whole, planes * rows * across, 1, c, width, width, 0, c,
                )  # fmt: skip
                _add(sums, total, start + (i * TAPS + k) * c * width)


@njit(parallel=True)
def _weight_gradient(x, none, gradient, slope, pad, widths, columns, widest, workers, weight, bias):
    c = x.shape[4]
    n, o, p, q, d = gradient.shape
    kz = weight.shape[0]
    down, across = ceil(p, TILE), ceil(q, TILE)
    row_bytes = TAPS * across * (c + widest) * x.itemsize
    deep, high = _group(n, o, down, across, kz, c, d, row_bytes, workers)
    groups = n * ceil(o, deep) * ceil(down, high)
    block = kz * TAPS * c * d
    parts = min(groups, PARTS, max(n * o * down * across // PART_TILES, ceil(workers, widths.size)))
    total, biases = np.zeros(parts * block, x.dtype), np.zeros(parts * d, x.dtype)
    for task in prange(parts * widths.size):
        part, which = task // widths.size, task % widths.size
        column, width = columns[which], widths[which]
        own = range(groups * part // parts, groups * (part + 1) // parts)
        _weight_part(
            own, deep, high, x, none, gradient, slope, kz, border(pad, kz), pad, column, width,
            total, part * block + column * kz * TAPS * c, biases, part * d + column,
        )  # fmt: skip
    flat = weight.reshape(-1)
    for row in prange(kz * c):
        z, channel = row // c, row % c
        sums = np.empty(TAPS * WIDEST, x.dtype)
        for which in range(widths.size):
            column, width = columns[which], widths[which]
            for k in range(TAPS):
                start = column * kz * TAPS * c + ((z * TAPS + k) * c + channel) * width
                for i in range(width):
                    value = 0.0
                    for part in range(parts):
                        value += total[part * block + start + i]
                    sums[k * width + i] = value
            target = (z * 9 * c + channel) * d + column
            transform(COLLECT, at(sums, 0), 6 * width, width, 0, at(flat, target), 3 * c * d, c * d, 0, width, 1)
    for i in range(d):
        value = 0.0
        for part in range(parts):
            value += biases[part * d + i]
        bias[i] = value


def weight_gradient(x, gradient, slope, pad, weight, bias):
    """`conv_weight_gradient` of the module `conv`."""
    link()
    x, gradient = (_one_volume(frozen(a), len(weight)) for a in (x, gradient))
    widths = blocks(bias.size)
    columns = np.cumsum(widths) - widths  # where each block begins
    _weight_gradient(x, NONE, gradient, frozen(slope), pad, widths, columns, widths.max(), WORKERS, weight, bias)
