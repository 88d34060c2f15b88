"""Where the time goes: ops forward and backward, kernels and parts of a model, while `profile` watches.

    with profile() as p:
        loss = model.objective(tensors, images)
        loss.backward()
    print(p.table(10))
    p.chrome("trace.json")  # for chrome://tracing or ui.perfetto.dev

Ops (`autograd.op`), the walk back, kernels (`kernel.Kernel`) and the parts of a model ask `active` on every call: one
comparison with None while nobody watches.  What happens inside a call is drawn beneath it: a kernel beneath its op,
an op beneath its part of the model.

Memory is what a call leaves behind: the bytes of new arrays in its result, and of those that it saves for the walk
back; arrays that it makes and drops are not counted.  On a GPU, calls are timed there, by a pair of CUDA events in the
current stream, and the time on the CPU is that of the launch.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from . import backend
from .files import atomic

active: Any = None  # who watches: a `profile`, or anything with `watch` and `span`
_NOBODY = nullcontext()


def span(name: str) -> AbstractContextManager[None]:
    """Within `with span(name):` what is called belongs to the part `name`.

    >>> with profile() as p, span("encoder"):
    ...     pass
    >>> p.events[0].name, p.events[0].kind
    ('encoder', 'part')
    """
    return _NOBODY if active is None else active.span(name)


@dataclass
class Event:
    """One call: its `kind` "forward", "backward", "kernel" or "part"; times in seconds from the start of the profile.

    `seconds` on the CPU, all that it called included; `own` without that; `memory`: bytes left behind, counted
    at the outermost op; `gpu`: (start, seconds) there, or None; `parent`: the event in which it happened.
    """

    name: str
    kind: str
    start: float
    seconds: float = 0.0
    own: float = 0.0
    memory: int = 0
    gpu: tuple[float, float] | None = None
    thread: int = 0
    parent: Event | None = field(default=None, repr=False)
    marks: Any = field(default=None, repr=False)  # CUDA events before and after


class profile:
    """Records every op, kernel and part of a model within `with profile() as p:`, in all threads; see the module.

    Of two that are nested, the inner one watches.

    >>> from smlmcore.autograd import Tensor, ops
    >>> x = Tensor([1.0, 2.0])
    >>> with profile() as p:
    ...     ops.exp(x).sum().backward()
    >>> [(e.name, e.kind) for e in p.events]
    [('exp', 'forward'), ('sum', 'forward'), ('sum', 'backward'), ('exp', 'backward')]
    >>> print(p.table(1).splitlines()[0].split())
    ['call', 'kind', 'calls', 'ms', 'own', 'ms', 'own', '%', 'MiB']
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.seconds = 0.0
        self._local = threading.local()

    def __enter__(self) -> profile:
        global active
        self._outer, active = active, self
        self._gpu = _cuda()
        self._zero = None if self._gpu is None else _mark(self._gpu)
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: Any) -> None:
        global active
        active = self._outer
        if self._gpu is not None:
            self._gpu.Device().synchronize()
        self.seconds = time.perf_counter() - self._start
        for event in self.events:
            if event.marks is not None:
                first, last = event.marks
                elapsed = self._gpu.get_elapsed_time
                event.gpu = elapsed(self._zero, first) / 1e3, elapsed(first, last) / 1e3
                event.marks = None

    def watch(self, name: str, kind: str, function: Callable) -> Callable:
        """`function`, with each call recorded."""

        def watched(*inputs: Any, **settings: Any) -> Any:
            with self._record(name, kind, inputs) as event:
                result = function(*inputs, **settings)
                if not any(e.kind in ("forward", "backward") for e in _ancestors(event)):
                    event.memory = _new_bytes(result, inputs)
            return result

        return watched

    def span(self, name: str) -> AbstractContextManager[Any]:
        """A part of a model, in which calls happen."""
        return self._record(name, "part", ())

    @contextmanager
    def _record(self, name: str, kind: str, inputs: Any) -> Iterator[Event]:
        parent = getattr(self._local, "event", None)
        event = Event(name, kind, 0.0, thread=threading.get_native_id(), parent=parent)
        self.events.append(event)
        self._local.event = event
        on_gpu = self._gpu is not None and (kind == "part" or any(map(backend.is_gpu, arrays_in(inputs))))
        first = _mark(self._gpu) if on_gpu else None
        event.start = time.perf_counter() - self._start
        try:
            yield event
        finally:
            event.seconds = time.perf_counter() - self._start - event.start
            if on_gpu:
                event.marks = first, _mark(self._gpu)
            event.own += event.seconds
            if parent is not None:
                parent.own -= event.seconds
            self._local.event = parent

    def rows(self) -> list[dict[str, Any]]:
        """Calls summed by name and kind, those with most own time first: `name`, `kind`, `calls`, `seconds`, `own`,
        `memory`, and `gpu` seconds or None.

        `own` adds up to `seconds` of the profile, with what happens outside of all calls as the kind "rest"; of a
        name that calls itself, only the outer call counts in `seconds`.
        """
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for e in self.events:
            empty = {"name": e.name, "kind": e.kind, "calls": 0, "seconds": 0.0, "own": 0.0, "memory": 0, "gpu": None}
            row = found.setdefault((e.name, e.kind), empty)
            row["calls"] += 1
            row["own"] += e.own
            row["memory"] += e.memory
            if not any((a.name, a.kind) == (e.name, e.kind) for a in _ancestors(e)):
                row["seconds"] += e.seconds
                if e.gpu is not None:
                    row["gpu"] = (row["gpu"] or 0.0) + e.gpu[1]
        main = threading.get_native_id()
        rest = self.seconds - sum(e.seconds for e in self.events if e.parent is None and e.thread == main)
        rows = [*found.values(), {**_REST, "seconds": rest, "own": rest}]
        return sorted(rows, key=lambda row: -(row["gpu"] or row["own"]))

    def table(self, top: int = 10) -> str:
        """The `top` rows as text, and their sum."""
        rows = self.rows()
        gpu = any(row["gpu"] is not None for row in rows)
        head = ["call", "kind", "calls", "ms", "own ms", "own %", "MiB", *(["GPU ms"] if gpu else [])]
        lines = [head]
        for r in rows[:top]:
            lines.append([r["name"], r["kind"], f"{r['calls']:,}", *_numbers(r, self.seconds)])
            if gpu:
                lines[-1].append("" if r["gpu"] is None else f"{1e3 * r['gpu']:.2f}")
        if rows[top:]:
            other = {key: sum(r[key] for r in rows[top:]) for key in ("calls", "own", "memory")}
            cells = _numbers({**other, "seconds": 0.0}, self.seconds)
            lines.append([f"{len(rows) - top} more", "", f"{other['calls']:,}", "", *cells[1:], *([""] if gpu else [])])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
            for line in lines
        ]
        text.append(f"{1e3 * self.seconds:,.1f} ms in all, {len(self.events):,} calls")
        return "\n".join(line.rstrip() for line in text)

    def chrome(self, path: str | PathLike[str]) -> None:
        """Write a trace in Chrome's format, which chrome://tracing and ui.perfetto.dev open.

        One complete event ("ph": "X") for each call, times in microseconds; CPU and GPU are two processes, and the
        memory left behind a counter.  ("Trace Event Format", Google 2016.)
        """
        process = os.getpid()
        trace = [{"name": "process_name", "ph": "M", "pid": process, "tid": 0, "args": {"name": "CPU"}}]
        if any(e.gpu for e in self.events):
            trace.append({"name": "process_name", "ph": "M", "pid": process + 1, "tid": 0, "args": {"name": "GPU"}})
        total = 0
        for e in sorted(self.events, key=lambda e: e.start):
            about = {"name": e.name, "cat": e.kind, "ph": "X", "args": {"bytes": e.memory}}
            trace.append({**about, "ts": 1e6 * e.start, "dur": 1e6 * e.seconds, "pid": process, "tid": e.thread})
            if e.gpu is not None:
                start, seconds = e.gpu
                trace.append({**about, "ts": 1e6 * start, "dur": 1e6 * seconds, "pid": process + 1, "tid": 0})
        for e in sorted(self.events, key=lambda e: e.start + e.seconds):
            total += e.memory
            counter = {"name": "memory left behind", "ph": "C", "pid": process, "tid": 0}
            trace.append({**counter, "ts": 1e6 * (e.start + e.seconds), "args": {"bytes": total}})
        with atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            json.dump({"traceEvents": trace, "displayTimeUnit": "ms"}, file)


_REST = {"name": "outside of all calls", "kind": "rest", "calls": 0, "memory": 0, "gpu": None}


def _numbers(row: dict[str, Any], total: float) -> list[str]:
    share = row["own"] / total if total else 0.0
    return [
        f"{1e3 * row['seconds']:.2f}",
        f"{1e3 * row['own']:.2f}",
        f"{100 * share:.1f}",
        f"{row['memory'] / 2**20:.2f}",
    ]


def _ancestors(event: Event) -> Iterator[Event]:
    while event.parent is not None:
        event = event.parent
        yield event


def _new_bytes(result: Any, inputs: Any) -> int:
    """Bytes of the arrays in `result`, in tuples and lists as well, that share no memory with `inputs`."""
    old = {id(owner(a)) for a in arrays_in(inputs)}
    new = {id(a): a.nbytes for a in map(owner, arrays_in(result)) if id(a) not in old}
    return sum(new.values())


def arrays_in(value: Any) -> Iterator[Any]:
    """The arrays in `value`: itself, or those in tuples and lists."""
    if backend.is_array(value):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from arrays_in(item)


def owner(array: Any) -> Any:
    """The array that owns the memory of `array`."""
    while backend.is_array(array.base):
        array = array.base
    return array


def _cuda() -> Any:
    """`cupy.cuda`, if CuPy is in use and finds a GPU."""
    cupy = sys.modules.get("cupy")
    return cupy.cuda if cupy is not None and cupy.cuda.is_available() else None


def _mark(cuda: Any) -> Any:
    """A CUDA event, recorded in the current stream."""
    event = cuda.Event()
    event.record()
    return event
