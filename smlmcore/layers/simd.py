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

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic, overload

AVX512 = "+avx512f" in cpu_target.target_context.codegen().magic_tuple()[2]  # of the machine numba compiles for
VECTOR = 16 if AVX512 else 8  # floats of a vector
# Rows of a block of output columns, by its width: as many sums as registers hold, 24 of 32 with AVX-512, else 12 of 16.
HEIGHTS = {32: 12, 16: 12, 8: 12} if AVX512 else {24: 4, 16: 6, 8: 12}
WIDE, MIDDLE, NARROW = WIDTHS = tuple(HEIGHTS)

_FLOAT, _INT = ir.FloatType(), ir.IntType(64)


def blocks(columns: int) -> np.ndarray:
    """Widths of the blocks that `columns` output columns are cut into; the last one may reach beyond the last column.

    >>> int(blocks(37).sum())
    40
    """
    widths, left = [], columns
    while left > 0:
        widths.append(next(v for v in WIDTHS if v - 8 < left))
        left -= widths[-1]
    return np.array(widths, np.int64)


@intrinsic
def copy(typing, source, s, target, t, count):
    """Copy `count` numbers from source[s:] to target[t:], flat arrays of one type that do not overlap.

    As one memcpy: numba's own loop checks each index for a negative one, and copies number by number.
    """

    def codegen(context, b, signature, args):
        pointers = [
            b.gep(context.make_array(signature.args[i])(context, b, value=args[i]).data, [args[i + 1]]) for i in (0, 2)
        ]
        size = context.get_abi_sizeof(context.get_data_type(signature.args[0].dtype))
        cgutils.raw_memcpy(b, pointers[1], pointers[0], args[4], size)
        return context.get_dummy_value()

    return types.void(source, types.int64, target, types.int64, types.int64), codegen


def pack(matrix: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """matrix[rows, columns] cut into blocks of columns, each contiguous, the last one filled up with zeros; flat."""
    return _pack(frozen(np.ascontiguousarray(matrix)), widths)


def frozen(a: np.ndarray) -> np.ndarray:
    """The array as a read-only one: the tape locks arrays now and then, and numba would compile anew for each kind."""
    a = a.view()
    a.flags.writeable = False
    return a


@njit(cache=True, nogil=True)
def _pack(matrix, widths):
    rows, columns = matrix.shape
    packed = np.zeros(rows * widths.sum(), matrix.dtype)
    flat, start, w = matrix.reshape(-1), 0, 0
    for width in widths:
        for r in range(rows):
            copy(flat, r * columns + start, packed, w, min(width, columns - start))
            w += width
        start += width
    return packed


def _tile(rows: int, width: int):
    """The intrinsic for `rows` rows by `width` columns: the arguments of `product` without the first and last."""
    lanes = min(width, VECTOR)
    if width % lanes:
        raise ValueError(f"a tile of {width} columns is no whole number of vectors of {lanes}; it would write beyond")
    vector = ir.VectorType(_FLOAT, lanes)

    def codegen(context, b, signature, args):
        def data(index):  # pointer to element args[index + 1] of the array args[index]
            array = context.make_array(signature.args[index])(context, b, value=args[index])
            return b.gep(array.data, [args[index + 1]])

        def constant(value):
            return ir.Constant(_INT, value)

        def as_vector(pointer, *offset):
            for o in offset:
                pointer = b.gep(pointer, [o])
            return b.bitcast(pointer, vector.as_pointer())

        def broadcast(value):
            one = b.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
            return b.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))

        x, weight, out, init = (data(i) for i in (0, 2, 4, 6))
        length, row, step, weight_step, out_row, init_row = args[9:]
        table = context.make_array(signature.args[8])(context, b, value=args[8])
        count = b.extract_value(table.shape, 0)
        fma = cgutils.get_or_insert_function(
            b.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{lanes}f32"
        )
        columns = [constant(n) for n in range(0, width, lanes)]
        sums = {}  # stack slots, which LLVM turns into registers
        for m in range(rows):
            for n in columns:
                start = b.load(as_vector(init, b.mul(init_row, constant(m)), n), align=4)
                sums[m, n] = cgutils.alloca_once_value(b, start)
        with cgutils.for_range(b, count) as segment:
            xs = b.gep(x, [b.load(b.gep(table.data, [segment.index]))])
            ws = b.gep(weight, [b.mul(b.mul(segment.index, length), weight_step)])
            with cgutils.for_range(b, length) as k:
                # An empty convergent asm: else LLVM unrolls this loop, hoists the broadcasts and spills the sums.
                b.asm(ir.FunctionType(ir.VoidType(), []), "", "", [], True).attributes.add("convergent")
                xk = b.gep(xs, [b.mul(k.index, step)])
                wk = b.gep(ws, [b.mul(k.index, weight_step)])
                weights = [b.load(as_vector(wk, n), align=4) for n in columns]
                for m in range(rows):
                    value = broadcast(b.load(b.gep(xk, [b.mul(row, constant(m))])))
                    for n, w in zip(columns, weights, strict=True):
                        b.store(b.call(fma, [value, w, b.load(sums[m, n])]), sums[m, n])
        for (m, n), slot in sums.items():
            b.store(b.load(slot), as_vector(out, b.mul(out_row, constant(m)), n), align=4)
        return context.get_dummy_value()

    @intrinsic
    def tile(typing, x, x0, weight, w, out, o, init, i, segments, length, row, step, weight_step, out_row, init_row):
        integer = types.int64
        arrays = (t for a in (x, weight, out, init) for t in (a, integer))
        return types.void(*arrays, segments, *[integer] * 6), codegen

    return tile


def _strip(width: int):
    """`product` for one width, many rows: tiles as high as registers allow, then of 3 rows, then of 1."""
    height = HEIGHTS[width]
    high, three, one = _tile(height, width), _tile(3, width), _tile(1, width)

    @njit(nogil=True, inline="always")  # compiled where it is used: one compilation less
    def strip(x, x0, weight, w, out, o, init, i, table, length, row, step, weight_step, out_row, init_row, rows):
        m = 0
        while m < rows:
            left = rows - m
            if init_row == 0:  # nothing is summed up in `out`: rather do some rows twice than few at a time
                if height // 2 < left < height <= rows:
                    left = height
                elif left < 3 <= rows:
                    left = 3
                m = rows - left
            a, b, c = x0 + m * row, o + m * out_row, i + m * init_row
            if left >= height:
                high(x, a, weight, w, out, b, init, c, table, length, row, step, weight_step, out_row, init_row)
                m += height
            elif left >= 3:
                three(x, a, weight, w, out, b, init, c, table, length, row, step, weight_step, out_row, init_row)
                m += 3
            else:
                one(x, a, weight, w, out, b, init, c, table, length, row, step, weight_step, out_row, init_row)
                m += 1

    return strip


_wide, _middle, _narrow = _strip(WIDE), _strip(MIDDLE), _strip(NARROW)


def vectors(width, x, x0, weight, w, out, o, init, i, table, length, row, step, weight_step, out_row, init_row, rows):
    """`product` in vector IR, for float32."""
    if width == WIDE:
        _wide(x, x0, weight, w, out, o, init, i, table, length, row, step, weight_step, out_row, init_row, rows)
    elif width == MIDDLE:
        _middle(x, x0, weight, w, out, o, init, i, table, length, row, step, weight_step, out_row, init_row, rows)
    else:
        _narrow(x, x0, weight, w, out, o, init, i, table, length, row, step, weight_step, out_row, init_row, rows)


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
