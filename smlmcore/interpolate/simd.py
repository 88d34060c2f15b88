"""The inner loops of cubic splines as vector IR: four neighbours along the last axis are one vector.

numba's own loops check every index for a negative one, which keeps LLVM from seeing the rows of four: they take three
times as long.  All arrays are flat and of one type, float32 or float64; `o` is the first of the 4 x 4 (x 4) neighbours,
`sz` and `sy` how far apart planes and rows are, `wz`, `wy`, `wx` the weights and `dz`, `dy`, `dx` the slopes, each a
tuple of four.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


class Rows:
    """What a function needs while its code is made: rows of `lanes` numbers of an array, and arithmetic on them."""

    def __init__(self, context, b, array_type, array, offset, lanes=4):
        self.b = b
        self.real = context.get_value_type(array_type.dtype)
        self.lanes = lanes
        self.vector = ir.VectorType(self.real, lanes)
        self.zero = ir.Constant(self.vector, None)
        self.size = context.get_abi_sizeof(self.real)
        self.start = b.gep(context.make_array(array_type)(context, b, value=array).data, [offset])
        name = f"llvm.fmuladd.v{lanes}f{8 * self.size}"
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        self._fma = cgutils.get_or_insert_function(b.module, kind, name)

    def pointer(self, *offsets):
        """Pointer to the row that is `count` times `stride` further, for each pair of `offsets`."""
        p = self.start
        for stride, count in offsets:
            p = self.b.gep(p, [self.b.mul(stride, ir.Constant(stride.type, count))])
        return self.b.bitcast(p, self.vector.as_pointer())

    def load(self, *offsets):
        return self.b.load(self.pointer(*offsets), align=self.size)

    def load_where(self, lanes, *offsets):
        """The row with 0 in place of what `lanes` (a vector of bits) leaves out, which is not read."""
        bits = ir.VectorType(ir.IntType(1), self.lanes)
        kind = ir.FunctionType(self.vector, [self.vector.as_pointer(), ir.IntType(32), bits, self.vector])
        name = f"llvm.masked.load.v{self.lanes}f{8 * self.size}.p0"
        load = cgutils.get_or_insert_function(self.b.module, kind, name)
        return self.b.call(load, [self.pointer(*offsets), ir.Constant(ir.IntType(32), self.size), lanes, self.zero])

    def numbers(self, tuple_):
        return [self.b.extract_value(tuple_, i) for i in range(4)]

    def spread(self, number):
        one = self.b.insert_element(ir.Constant(self.vector, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
        return self.b.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), None))

    def join(self, tuple_):
        v = ir.Constant(self.vector, ir.Undefined)
        for i, number in enumerate(self.numbers(tuple_)):
            v = self.b.insert_element(v, number, ir.Constant(ir.IntType(32), i))
        return v

    def fma(self, x, y, z):
        return self.b.call(self._fma, [x, y, z])

    def sum(self, v):
        parts = [self.b.extract_element(v, ir.Constant(ir.IntType(32), i)) for i in range(4)]
        return self.b.fadd(self.b.fadd(parts[0], parts[1]), self.b.fadd(parts[2], parts[3]))

    def dot(self, v, tuple_):
        return self.sum(self.b.fmul(v, self.join(tuple_)))


def combine(r, rows, *weights):
    """For each of `weights`, the sum of the four vectors `rows` with it."""
    sums = [r.zero] * len(weights)
    for row, *each in zip(rows, *map(r.numbers, weights), strict=True):
        sums = [r.fma(row, r.spread(w), s) for w, s in zip(each, sums, strict=True)]
    return sums


@intrinsic
def value2(typing, c, o, sy, wy, wx):
    """sum over j, k of wy[j] wx[k] c[o + j sy + k]"""

    def codegen(context, b, signature, args):
        array, offset, sy, wy, wx = args
        r = Rows(context, b, signature.args[0], array, offset)
        return r.dot(combine(r, [r.load((sy, j)) for j in range(4)], wy)[0], wx)

    return c.dtype(c, types.int64, types.int64, wy, wx), codegen


@intrinsic
def value3(typing, c, o, sz, sy, wz, wy, wx):
    """sum over i, j, k of wz[i] wy[j] wx[k] c[o + i sz + j sy + k]"""

    def codegen(context, b, signature, args):
        array, offset, sz, sy, wz, wy, wx = args
        r = Rows(context, b, signature.args[0], array, offset)
        planes = [combine(r, [r.load((sz, i), (sy, j)) for j in range(4)], wy)[0] for i in range(4)]
        return r.dot(combine(r, planes, wz)[0], wx)

    return c.dtype(c, types.int64, types.int64, types.int64, wz, wy, wx), codegen


@intrinsic
def slopes2(typing, c, o, sy, wy, wx, dy, dx):
    """The value, its derivative along y and that along x."""

    def codegen(context, b, signature, args):
        array, offset, sy, wy, wx, dy, dx = args
        r = Rows(context, b, signature.args[0], array, offset)
        row, row_y = combine(r, [r.load((sy, j)) for j in range(4)], wy, dy)
        found = [r.dot(row, wx), r.dot(row_y, wx), r.dot(row, dx)]
        return context.make_tuple(b, signature.return_type, found)

    return types.UniTuple(c.dtype, 3)(c, types.int64, types.int64, wy, wx, dy, dx), codegen


@intrinsic
def slopes3(typing, c, o, sz, sy, wz, wy, wx, dz, dy, dx):
    """The value, and its derivatives along z, y and x."""

    def codegen(context, b, signature, args):
        array, offset, sz, sy, wz, wy, wx, dz, dy, dx = args
        r = Rows(context, b, signature.args[0], array, offset)
        both = [combine(r, [r.load((sz, i), (sy, j)) for j in range(4)], wy, dy) for i in range(4)]
        row, row_z = combine(r, [p for p, _ in both], wz, dz)
        (row_y,) = combine(r, [p for _, p in both], wz)
        found = [r.dot(row, wx), r.dot(row_z, wx), r.dot(row_y, wx), r.dot(row, dx)]
        return context.make_tuple(b, signature.return_type, found)

    return types.UniTuple(c.dtype, 4)(c, types.int64, types.int64, types.int64, wz, wy, wx, dz, dy, dx), codegen


@intrinsic
def add_row(typing, c, o, weight, wx):
    """c[o + k] += weight wx[k]"""

    def codegen(context, b, signature, args):
        array, offset, weight, wx = args
        r = Rows(context, b, signature.args[0], array, offset)
        b.store(r.fma(r.join(wx), r.spread(weight), r.load()), r.pointer(), align=r.size)
        return context.get_dummy_value()

    return types.void(c, types.int64, weight, wx), codegen
