"""Functions of vectors of float32 numbers, along runs and grids of them, written as vector LLVM IR.

`elementwise` and `separable` turn a Python function of `Vector`s into code for numba; see `simd` for why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .compiled import njit
from .simd import FLOAT, INT, VECTOR


class Vector:
    """A vector value in LLVM IR, with the operators + - and * by a number or another vector.

    Multiplications and additions may be contracted to one instruction.
    """

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def _apply(self, name: str, other: Vector | float) -> Vector:
        kind = self.value.type
        right = other.value if isinstance(other, Vector) else ir.Constant(kind, [float(other)] * kind.count)
        return Vector(self.builder, getattr(self.builder, name)(self.value, right, flags=("contract", "nsz")))

    def __add__(self, other: Vector | float) -> Vector:
        return self._apply("fadd", other)

    def __sub__(self, other: Vector | float) -> Vector:
        return self._apply("fsub", other)

    def __mul__(self, other: Vector | float) -> Vector:
        return self._apply("fmul", other)

    __rmul__ = __mul__

    def max(self, other: Vector) -> Vector:
        """The larger one; NaN if either is."""
        b = self.builder
        left = b.fcmp_unordered(">", self.value, other.value)  # true also for NaN
        left = b.or_(left, b.fcmp_unordered("!=", self.value, self.value))
        right = b.fcmp_unordered("!=", other.value, other.value)
        return Vector(b, b.select(b.and_(left, b.not_(right)), self.value, other.value))

    def where_equal(self, one: Vector, two: Vector) -> Vector:
        """This value where `one` equals `two`, else 0."""
        b = self.builder
        zero = ir.Constant(self.value.type, [0.0] * self.value.type.count)
        return Vector(b, b.select(b.fcmp_ordered("==", one.value, two.value), self.value, zero))


def _in_lanes(context, b, count, body):
    """Emit body(first, lanes) over `count` numbers, a multiple of 8."""
    size = ir.Constant(INT, VECTOR)
    with cgutils.for_range(b, b.udiv(count, size)) as loop:
        body(b.mul(loop.index, size), VECTOR)
    if VECTOR == 16:
        eight = ir.Constant(INT, 8)
        with b.if_then(b.icmp_unsigned("!=", b.and_(count, eight), ir.Constant(INT, 0))):
            body(b.sub(count, eight), 8)
    return context.get_dummy_value()


def _vector_at(b, pointer, first, kind):
    return b.bitcast(b.gep(pointer, [first]), kind.as_pointer())


def separable(function: Callable[..., Sequence[Vector]], inputs: int):
    """The intrinsic that applies `function`, `inputs` vectors to some others, along both axes of a grid of vectors.

    It is called as (source, source_row, source_column, target, target_row, target_column, count): of addresses of
    float32 numbers, source[i·source_row + j·source_column + k] is element (i, j) of the grid number k < count, a
    multiple of 8, and the result goes to `target` likewise.
    """

    def codegen(context, b, signature, args):
        source, *source_steps, target, target_row, target_column, total = args

        def element(pointer, first, row, column, i, j, kind):
            for step, times in ((row, i), (column, j)):
                pointer = b.gep(pointer, [b.mul(step, ir.Constant(INT, times))])
            return _vector_at(b, pointer, first, kind)

        def body(first, lanes):
            kind, every = ir.VectorType(FLOAT, lanes), range(inputs)
            grid = [
                [Vector(b, b.load(element(source, first, *source_steps, i, j, kind), align=4)) for i in every]
                for j in every
            ]
            grid = list(zip(*(function(*column) for column in grid), strict=True))
            for i, row in enumerate(grid):
                for j, vector in enumerate(function(*row)):
                    b.store(vector.value, element(target, first, target_row, target_column, i, j, kind), align=4)

        return _in_lanes(context, b, total, body)

    @intrinsic
    def transform(typing, source, source_row, source_column, target, target_row, target_column, count):
        integer = types.int64
        return types.void(source, integer, integer, target, *[integer] * 3), codegen

    return transform


def elementwise(function: Callable[..., Sequence[Vector]]):
    """The intrinsic that applies `function` to vectors from three places of float32 numbers.

    It is called as (address, offsets, address, offsets, address, offsets, target, offsets, count), each `offsets` a
    tuple of the places after the address where a run of `count` numbers, a multiple of 8, begins; `function` receives
    one vector for each place of the first three, and returns one for each in `target`.
    """

    def codegen(context, b, signature, args):
        places = [[b.gep(args[i], [offset]) for offset in cgutils.unpack_tuple(b, args[i + 1])] for i in (0, 2, 4, 6)]

        def body(first, lanes):
            kind = ir.VectorType(FLOAT, lanes)
            values = [Vector(b, b.load(_vector_at(b, p, first, kind), align=4)) for a in places[:3] for p in a]
            for p, v in zip(places[3], function(*values), strict=True):
                b.store(v.value, _vector_at(b, p, first, kind), align=4)

        return _in_lanes(context, b, args[8], body)

    @intrinsic
    def apply(typing, a, i, b, j, c, k, target, t, count):
        return types.void(a, i, b, j, c, k, target, t, types.int64), codegen

    return apply


@njit()
def corners(first, row, column):
    """Places of 2x2 elements, the first one at `first`, `row` and `column` apart."""
    return first, first + column, first + row, first + row + column
