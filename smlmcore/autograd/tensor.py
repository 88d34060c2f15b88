"""Tensor and tape: an array that remembers how it was made, and the walk back along that memory.

A recorded op leaves a `Node`: the op's name and vjp rule, what the forward saved, and its parents.  A `Tensor` owns
its array and its node; nodes own their parents, never the other way round.  So no reference cycle exists: a tape
that nobody needs vanishes at once, without the garbage collector, and `backward` frees every node as it passes.

Gradients of complex arrays are dL/dRe + i dL/dIm, the direction of steepest ascent; so a linear op y = A x sends the
gradient g back as Aᴴ g, and a real array that meets a complex gradient receives its real part.

What backward will read, the arrays saved by an op, is read-only until the tape lets go: an in-place change fails at
once instead of falsifying a gradient.  (This holds for the array and for the memory it is a view of, not for other
views made before.  CuPy has no such flag: there, do not change in place what has gone into an op.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from heapq import heappop, heappush
from itertools import count
from typing import Any
from weakref import ref

import numpy as np

from .. import backend, profiler
from ..backend import Array

recording: ContextVar[bool] = ContextVar("recording", default=True)


@contextmanager
def no_grad() -> Iterator[None]:
    """Within `with no_grad():`, or in a function under `@no_grad()`, nothing is recorded.

    >>> with no_grad():
    ...     (Tensor([1.0]) * 2).requires_grad
    False
    """
    token = recording.set(False)
    try:
        yield
    finally:
        recording.reset(token)


class Lock:
    """Keeps the memory of a NumPy array read-only for as long as somebody holds the lock."""

    __slots__ = ("__weakref__", "arrays", "owner")
    held: dict[int, ref[Lock]] = {}  # noqa: RUF012 - by id of the array that owns the memory

    def __init__(self, owner: np.ndarray) -> None:
        self.owner, self.arrays = owner, []
        self.add(owner)
        self.held[id(owner)] = ref(self)

    def add(self, array: np.ndarray) -> None:
        """Make the owner or a view of it read-only."""
        if array.flags.writeable:
            array.setflags(write=False)
            self.arrays.append(array)

    def __del__(self) -> None:
        self.held.pop(id(self.owner), None)
        for array in self.arrays:  # the owner is the first: NumPy wants this order
            try:
                array.setflags(write=True)
            except ValueError:  # a view whose owner others have made read-only
                continue


def lock(saved: Any, locks: list[Lock]) -> list[Lock]:
    """Append to `locks` one for each NumPy array in `saved`: an array, or tuples and lists of such."""
    if isinstance(saved, np.ndarray):
        owner = saved
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        if owner.base is None:  # else it is memory of another library, which NumPy could not unlock again
            held = Lock.held.get(id(owner))
            locks.append((held and held()) or Lock(owner))
            while saved is not owner:
                locks[-1].add(saved)
                saved = saved.base
    elif isinstance(saved, (tuple, list)):
        for item in saved:
            lock(item, locks)
    return locks


class Node:
    """One recorded op; `parents` has, for each input, its Node, the leaf Tensor itself, or None (no gradient)."""

    __slots__ = ("dtype", "index", "locks", "name", "parents", "rule", "saved", "shape")
    counter = count()

    def __init__(self, name: str, rule: Callable, parents: list, saved: Any, value: Array) -> None:
        self.name, self.rule, self.parents, self.saved, self.locks = name, rule, parents, saved, lock(saved, [])
        self.shape, self.dtype = value.shape, value.dtype
        self.index = next(Node.counter)  # a node is always younger than its parents

    def pull(self, gradient: Array) -> Iterator[tuple[Node | Tensor, Array]]:
        """Free this node and yield (parent, gradient) for each input that needs one."""
        if self.parents is None:
            raise RuntimeError(
                f"backward came to {self.name!r} a second time, but the first one freed what it had saved; "
                "add the losses and call backward once, or run the forward again"
            )
        parents, saved = self.parents, self.saved
        self.parents = self.saved = self.locks = None
        entries = self.rule(saved, gradient)
        if len(entries) < len(parents):
            raise TypeError(f"the vjp of {self.name!r} returned {len(entries)} gradients for {len(parents)} inputs")
        for parent, entry in zip(parents, entries, strict=False):
            if parent is not None and entry is not None:
                yield parent, _fit(entry() if callable(entry) else entry, parent, self.name)


class Tensor:
    """An array whose history is recorded: `data`, `grad` (filled by `backward` in Tensors you make) and operators.

    `data` is an array, list or number; integers become floats.  The array is used as it is, not copied, and is
    read-only while a tape has to remember it.  Operators and methods are those of `smlmcore.autograd.ops`.

    >>> x = Tensor([1.0, 2.0])
    >>> (x * x).sum().backward()
    >>> x.grad
    array([2., 4.])
    """

    __slots__ = ("__weakref__", "data", "grad", "node", "requires_grad")
    __array_ufunc__ = None  # array + Tensor is ours
    __array_priority__ = 1000  # the same for CuPy

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        self.data = backend.asarray(data.data if isinstance(data, Tensor) else data)
        self.grad: Array | None = None
        self.node: Node | None = None
        self.requires_grad = requires_grad

    def backward(self, gradient: Array | None = None) -> None:
        """Add the gradient of this Tensor, or of the sum of `gradient` times it, to the `grad` of every leaf.

        `gradient` has the shape of the Tensor and may be left out for one element.  The tape is freed on the way: a
        second call raises `RuntimeError`.
        """
        if not self.requires_grad:
            raise RuntimeError(
                "backward was called on a Tensor that no Tensor with requires_grad=True has led to; "
                "make the parameters Tensors, and leave no_grad() and detach()"
            )
        xp = backend.module(self.data, gradient, name="backward")
        gradient = xp.ones_like(self.data) if gradient is None and self.size == 1 else gradient
        if np.shape(gradient) != self.shape:
            raise ValueError(
                f"backward was called on a Tensor of shape {self.shape} with "
                f"{'no gradient' if gradient is None else f'a gradient of shape {np.shape(gradient)}'}; reduce the "
                "Tensor to one number, for example by .sum(), or give the gradient of your loss in the Tensor's shape"
            )
        start = self if self.node is None else self.node
        gradients = {start: _fit(xp.asarray(gradient), start, "backward")}
        heap = [(-start.index, start)] if start is self.node else []
        while heap:  # youngest first: all gradients of a node have arrived when its turn comes
            node = heappop(heap)[1]
            pull = node.pull
            if profiler.active is not None:
                pull = profiler.active.watch(node.name, "backward", lambda g, node=node: list(node.pull(g)))
            for parent, part in pull(gradients.pop(node)):
                if parent in gradients:
                    gradients[parent] = gradients[parent] + part
                else:
                    gradients[parent] = part
                    if isinstance(parent, Node):
                        heappush(heap, (-parent.index, parent))
        for leaf, total in gradients.items():  # `total` may be a view, or shared with another leaf: copy
            leaf.grad = xp.array(total, order="C") if leaf.grad is None else leaf.grad + total

    def detach(self) -> Tensor:
        """The same array without history."""
        return made(self.data)

    shape = property(lambda self: self.data.shape)
    dtype = property(lambda self: self.data.dtype)
    ndim = property(lambda self: self.data.ndim)
    size = property(lambda self: self.data.size)

    def item(self) -> float:
        """The only element as a Python number."""
        return self.data.item()

    __float__ = item

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return f"Tensor({self.data!r}{'' if self.node is None else f', from {self.node.name!r}'})"

    def __bool__(self) -> bool:
        if self.data.size != 1:
            raise ValueError(f"a Tensor of shape {self.shape} is neither true nor false; use .all() or .any() of .data")
        return bool(self.data)

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("a NumPy function got a Tensor; use smlmcore.autograd.ops, or .data to leave the tape")

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(
            "a Tensor cannot be changed in place, its gradient would be lost; build a new one with "
            "ops.where(mask, value, t) or ops.concatenate, or change .data before it is used"
        )


def plain(x: Any) -> Any:
    """The array of a Tensor; anything else as it is.

    >>> plain(Tensor([1.0])), plain(2.0)
    (array([1.]), 2.0)
    """
    return x.data if isinstance(x, Tensor) else x


def made(value: Any) -> Tensor:
    """A Tensor without history around `value`."""
    self = Tensor.__new__(Tensor)
    self.data = value if backend.is_array(value) else np.asarray(value)
    self.grad, self.node, self.requires_grad = None, None, False
    return self


def _fit(gradient: Array, to: Node | Tensor, name: str) -> Array:
    """`gradient` summed over the axes along which an input of `to.shape` was broadcast, in its dtype."""
    shape, dtype = to.shape, to.dtype
    if gradient.shape != shape:
        extra = gradient.ndim - len(shape)
        inner = gradient.shape[max(extra, 0) :]
        if extra < 0 or any(s not in (1, g) for s, g in zip(shape, inner, strict=True)):
            raise ValueError(
                f"the vjp of {name!r} returned a gradient of shape {gradient.shape} for an array of shape {shape}; "
                "they must be equal, up to broadcasting in the forward"
            )
        ones = [extra + i for i, (s, g) in enumerate(zip(shape, inner, strict=True)) if s != g]
        gradient = gradient.sum(axis=(*range(extra), *ones), keepdims=True).reshape(shape)
    if gradient.dtype != dtype:
        if gradient.dtype.kind == "c" and dtype.kind != "c":
            gradient = gradient.real
        gradient = gradient.astype(dtype, copy=False)
    return gradient
