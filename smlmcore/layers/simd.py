"""The register-blocked matrix product under convolutions and dense layers, written as vector LLVM IR.

`product` multiplies rows of `x` with a block of `width` output columns and keeps all sums in registers:

    out[o + m*out_row + n] = init[i + m*init_row + n]
                           + Σ_s Σ_k x[x0 + segments[s] + m*row + k*step] · weight[w + (s*length + k)*weight_step + n]

for n < width.  The strides are arguments, so that one compiled kernel serves them all: in a convolution m is a pixel,
a segment is a row of the filter and k runs over its taps and channels; in a weight gradient m is a tap and channel
and k runs over the pixels.

float32 takes the IR (`_tile`), any other type the plain loops (`plain`), which define what the IR computes.  The IR
names no instruction set: LLVM cuts its vectors to the registers there are.  Why IR and not numba's own loops: those
check each index and keep the sums in memory; they reach 2.5 GFLOP/s on a core on which the IR reaches 116.
"""

from __future__ import annotations

from functools import cache

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic, overload

from .compiled import SINGLE, WHOLE, at, copy, frozen, njit, shared

AVX512 = "+avx512f" in cpu_target.target_context.codegen().magic_tuple()[2]  # of the machine numba compiles for
VECTOR = 16 if AVX512 else 8  # floats of a vector
# Rows of a block of output columns, by its width: as many sums as registers hold, 24 of 32 with AVX-512, else 12 of 16.
HEIGHTS = {48: 8, 32: 12, 24: 12, 16: 12, 8: 12} if AVX512 else {24: 4, 16: 6, 8: 12}
# Time of one step of a block for one row, in vectors: narrow blocks share each number they load among fewer products.
COSTS = {48: 3.0, 32: 2.0, 24: 1.55, 16: 1.15, 8: 0.7} if AVX512 else {24: 3.0, 16: 2.05, 8: 1.2}
WIDEST = max(HEIGHTS)

FLOAT, INT, SHORT = ir.FloatType(), ir.IntType(64), ir.IntType(32)


def blocks(columns: int) -> np.ndarray:
    """Widths of the blocks that `columns` output columns are cut into; the last one may reach beyond the last column.

    >>> int(blocks(37).sum())
    40
    """
    eights, widest = -(-columns // 8), max(COSTS)
    many = max(0, 8 * eights // widest - 8)  # of the widest at once: only what is left needs thought
    return np.array([widest] * many + list(_cut(eights - many * widest // 8)[1]), np.int64)


@cache
def _cut(eights: int) -> tuple[float, tuple[int, ...]]:
    """The cheapest cut of eight times `eights` columns, as (cost, widths)."""
    if eights == 0:
        return 0.0, ()
    rest = {width: _cut(eights - width // 8) for width in COSTS if width <= 8 * eights}
    return min((COSTS[width] + cost, (width, *widths)) for width, (cost, widths) in rest.items())


def pack(matrix: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """matrix[rows, columns] cut into blocks of columns, each contiguous, the last one filled up with zeros; flat."""
    packed = np.zeros(len(matrix) * widths.sum(), matrix.dtype)
    _pack(frozen(np.ascontiguousarray(matrix)), widths, packed)
    return packed


@njit()
def _pack(matrix, widths, packed):
    rows, columns = matrix.shape
    flat, start, w = matrix.reshape(-1), 0, 0
    for width in widths:
        for r in range(rows):
            copy(flat, r * columns + start, packed, w, min(width, columns - start))
            w += width
        start += width


def _tile(rows: int, width: int):
    """The intrinsic for `rows` rows by `width` columns: (x, weight, out, init, table, count, strides), as in `product`,
    but with addresses for an array and its offset.

    The columns are cut into vectors.  A half vector at the end holds two neighbouring rows, if there is an even number
    of them: 24 columns then take three registers for two rows, not four.
    """
    if width % 8 or (width % VECTOR and VECTOR != 16):
        raise ValueError(f"a tile of {width} columns is no whole number of vectors of {VECTOR}; it would write beyond")
    lanes = [VECTOR] * (width // VECTOR) + [8] * (width % VECTOR // 8)
    columns = [(8 * sum(n // 8 for n in lanes[:i]), n, n < VECTOR and rows % 2 == 0) for i, n in enumerate(lanes)]

    def codegen(context, b, signature, args):
        def constant(value):
            return ir.Constant(INT, value)

        def offset(pointer, *offsets):
            for o in offsets:
                pointer = b.gep(pointer, [constant(o) if isinstance(o, int) else o])
            return pointer

        def load(pointer, n):
            return b.load(b.bitcast(pointer, ir.VectorType(FLOAT, n).as_pointer()), align=4)

        def store(value, pointer):
            b.store(value, b.bitcast(pointer, value.type.as_pointer()), align=4)

        def shuffle(one, two, order):
            return b.shuffle_vector(one, two, ir.Constant(ir.VectorType(SHORT, len(order)), list(order)))

        def broadcast(value, n):
            one = b.insert_element(ir.Constant(ir.VectorType(FLOAT, n), ir.Undefined), value, ir.Constant(SHORT, 0))
            return shuffle(one, one, [0] * n)

        def fma(x, y, z):
            kind = ir.FunctionType(x.type, [x.type] * 3)
            return b.call(cgutils.get_or_insert_function(b.module, kind, f"llvm.fmuladd.v{x.type.count}f32"), [x, y, z])

        x, weight, out, init, table, count, length, row, step, weight_step, out_row, init_row = args
        if any(paired for *_, paired in columns):
            # Lanes of the second row.  Opaque: of a constant mask LLVM makes a permutation, which takes a multiplier.
            half = ir.IntType(16)
            mask = b.asm(ir.FunctionType(half, [half]), "", "=r,0", [ir.Constant(half, 0xFF00 - 0x10000)], False)
            second = b.bitcast(mask, ir.VectorType(ir.IntType(1), 16))
        sums = {}  # stack slots, which LLVM turns into registers
        for m in range(rows):
            for n, size, paired in columns:
                if paired and m % 2:
                    continue
                start = load(offset(init, b.mul(init_row, constant(m)), n), size)
                if paired:
                    start = shuffle(start, load(offset(init, b.mul(init_row, constant(m + 1)), n), size), range(16))
                sums[m, n] = cgutils.alloca_once_value(b, start)
        with cgutils.for_range(b, count) as segment:
            xs = offset(x, b.load(offset(table, segment.index)))
            ws = offset(weight, b.mul(b.mul(segment.index, length), weight_step))
            with cgutils.for_range(b, length) as k:
                # An empty convergent asm: else LLVM unrolls this loop, hoists the broadcasts and spills the sums.
                b.asm(ir.FunctionType(ir.VoidType(), []), "", "", [], True).attributes.add("convergent")
                xk, wk = offset(xs, b.mul(k.index, step)), offset(ws, b.mul(k.index, weight_step))
                weights = {n: load(offset(wk, n), size) for n, size, _ in columns}
                for n, _, paired in columns:
                    if paired:
                        weights[n] = shuffle(weights[n], weights[n], [*range(8), *range(8)])
                pair = 2 if any(paired for *_, paired in columns) else 1
                for m in range(0, rows, pair):
                    scalars = [b.load(offset(xk, b.mul(row, constant(m + i)))) for i in range(pair)]
                    wide = [broadcast(v, VECTOR) for v in scalars]
                    for n, size, paired in columns:
                        if paired:
                            values = [b.select(second, wide[1], wide[0])]
                        else:
                            values = [
                                v if size == VECTOR else broadcast(s, size) for v, s in zip(wide, scalars, strict=True)
                            ]
                        for i, v in enumerate(values):
                            b.store(fma(v, weights[n], b.load(sums[m + i, n])), sums[m + i, n])
        for n, _, paired in columns:
            for m in range(0, rows, 2 if paired else 1):
                total = b.load(sums[m, n])
                if paired:
                    store(shuffle(total, total, range(8, 16)), offset(out, b.mul(out_row, constant(m + 1)), n))
                    total = shuffle(total, total, range(8))
                store(total, offset(out, b.mul(out_row, constant(m)), n))
        return context.get_dummy_value()

    @intrinsic
    def tile(typing, x, weight, out, init, table, count, length, row, step, weight_step, out_row, init_row):
        return types.void(x, weight, out, init, table, *[types.int64] * 7), codegen

    return tile


def _strip(width: int):
    """`product` for one width, many rows: tiles as high as registers allow, then of 4 rows, then of 1."""
    height = HEIGHTS[width]
    high, four, one = _tile(height, width), _tile(4, width), _tile(1, width)

    @numba.njit
    def strip(x, weight, out, init, table, count, length, row, step, weight_step, out_row, init_row, rows):
        m = 0
        while m < rows:
            left = rows - m
            if init_row == 0:  # nothing is summed up in `out`: rather do some rows twice than few at a time
                if height // 2 < left < height <= rows:
                    left = height
                elif left < 4 <= rows:
                    left = 4
                m = rows - left
            a, b, c = at(x, m * row), at(out, m * out_row), at(init, m * init_row)
            if left >= height:
                high(a, weight, b, c, table, count, length, row, step, weight_step, out_row, init_row)
                m += height
            elif left >= 4:
                four(a, weight, b, c, table, count, length, row, step, weight_step, out_row, init_row)
                m += 4
            else:
                one(a, weight, b, c, table, count, length, row, step, weight_step, out_row, init_row)
                m += 1

    return strip


def _choice(widths: tuple[int, ...]):
    """`product` in vector IR for blocks of any of `widths`."""
    own, strip = widths[0], _strip(widths[0])
    if len(widths) == 1:
        return numba.njit(lambda width, *arguments: strip(*arguments))
    other = _choice(widths[1:])

    @numba.njit
    def choice(width, *arguments):
        if width == own:
            strip(*arguments)
        else:
            other(width, *arguments)

    return choice


_any_width = _choice(tuple(HEIGHTS))


@shared(types.void(WHOLE, *[SINGLE] * 4, types.CPointer(WHOLE), *[WHOLE] * 8))
def matrix_product(width, x, weight, out, init, table, count, length, row, step, weight_step, out_row, init_row, rows):
    _any_width(width, x, weight, out, init, table, count, length, row, step, weight_step, out_row, init_row, rows)


def vectors(width, x, x0, weight, w, out, o, init, i, table, length, row, step, weight_step, out_row, init_row, rows):
    """`product` in vector IR, for float32."""
    matrix_product(
        width, at(x, x0), at(weight, w), at(out, o), at(init, i), at(table, 0), table.size,
        length, row, step, weight_step, out_row, init_row, rows,
    )  # fmt: skip


def plain(width, x, x0, weight, w, out, o, init, i, table, length, row, step, weight_step, out_row, init_row, rows):
    """`product` in plain loops, for every type: the definition."""
    for m in range(rows):
        a, b, c = x0 + m * row, o + m * out_row, i + m * init_row
        for n in range(width):
            out[b + n] = init[c + n]
        for s in range(table.size):
            for k in range(length):
                value, line = x[a + table[s] + k * step], w + (s * length + k) * weight_step
                for n in range(width):
                    out[b + n] += value * weight[line + n]


def product(width, x, x0, weight, w, out, o, init, i, table, length, row, step, weight_step, out_row, init_row, rows):
    """Multiply `rows` rows of `x` with a block of `width` columns; see the module's text.  Called from numba only.

    All arrays are flat and of one type; `x0`, `w`, `o`, `i` are the offsets of the first element in each, `table`
    (int64) those of the segments.  `init` may be `out`, then `init_row` must be `out_row`; or one row, `init_row` 0.
    """
    raise NotImplementedError("product is called from numba functions only")


@overload(product)
def _product(width, x, x0, weight, w, out, o, init, i, table, length, row, step, weight_step, out_row, init_row, rows):
    return vectors if x.dtype == types.float32 else plain
