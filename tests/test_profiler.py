"""The profiler: what it records is complete and adds up, and it leaves no trace when off."""

import json
import threading

import numpy as np
import pytest

from smlmcore import backend, fit, profiler
from smlmcore.autograd import Tensor, op, ops
from smlmcore.autograd.tensor import Node
from smlmcore.profiler import profile

SHAPE = (9, 9)


@pytest.fixture(scope="module")
def step():
    """A profile of a training step of a model."""
    model = fit.gaussian2d(SHAPE, width=8, hidden=32).init(np.random.default_rng(0))
    images = np.random.default_rng(1).poisson(10.0, (16, *SHAPE)).astype(np.float32)
    p = {name: Tensor(v) for name, v in model.parameters.items()}
    with profile() as found:
        first = next(Node.counter)
        loss = model.objective(p, images)
        recorded = next(Node.counter) - first - 1
        loss.backward()
    return found, recorded


def test_every_recorded_op_is_walked_back_once(step):
    found, recorded = step
    forward = [e.name for e in found.events if e.kind == "forward"]
    backward = [e.name for e in found.events if e.kind == "backward"]
    assert len(backward) == recorded <= len(forward)
    assert set(backward) <= set(forward)


def test_kernels_lie_within_ops_and_ops_within_parts(step):
    found, _ = step
    kernels = [e for e in found.events if e.kind == "kernel"]
    assert kernels
    assert all(e.parent.kind in ("forward", "backward") for e in kernels)
    parts = {e.name for e in found.events if e.kind == "part"}
    assert parts == {"encoder", "mapper", "renderer", "loss"}
    convolutions = [e for e in found.events if e.kind == "forward" and "conv" in e.name]
    assert convolutions
    assert {e.parent.name for e in convolutions} == {"encoder"}
    for e in found.events:
        if e.parent is not None:
            assert e.parent.start <= e.start
            assert e.start + e.seconds <= e.parent.start + e.parent.seconds


def test_own_times_add_up_to_the_wall_time(step):
    found, _ = step
    rows = found.rows()
    assert sum(row["own"] for row in rows) == pytest.approx(found.seconds, rel=1e-9)
    assert all(row["own"] >= 0 for row in rows)
    assert all(row["own"] <= row["seconds"] * (1 + 1e-9) for row in rows)
    assert sum(row["calls"] for row in rows) == len(found.events)


def test_the_table_has_the_rows_and_their_rest(step):
    found, _ = step
    lines = found.table(3).splitlines()
    rows = found.rows()
    assert [line.split()[0] for line in lines[1:4]] == [row["name"].split()[0] for row in rows[:3]]
    assert lines[4].startswith(f"{len(rows) - 3} more")
    assert f"{len(found.events):,} calls" in lines[5]


def test_a_trace_that_chrome_and_perfetto_read(step, tmp_path):
    found, _ = step
    found.chrome(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    calls = [e for e in trace if e["ph"] == "X"]
    assert len(calls) == len(found.events)
    assert {e["ph"] for e in trace} == {"X", "M", "C"}
    for event in trace:
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert isinstance(event["name"], str)
    for event, call in zip(calls, sorted(found.events, key=lambda e: e.start), strict=True):
        assert event["name"] == call.name
        assert event["ts"] == pytest.approx(1e6 * call.start)
        assert event["dur"] == pytest.approx(1e6 * call.seconds)
        assert event["dur"] >= 0
    counter = [e["args"]["bytes"] for e in trace if e["ph"] == "C"]
    assert counter[-1] == sum(e.memory for e in found.events)


def test_memory_is_that_of_new_arrays():
    x = Tensor(np.ones((10, 100), np.float32))
    with profile() as found:
        y = ops.exp(x)  # saves its value: counted once
        z = y.reshape(1000)  # a view
        z.sum().backward()
    memory = {(e.name, e.kind): e.memory for e in found.events}
    assert memory["exp", "forward"] == 4000
    assert memory["reshape", "forward"] == 0
    assert memory["exp", "backward"] == 4000


def test_off_means_off():
    assert profiler.active is None
    with profile() as outer:
        with profile() as inner:
            ops.exp(np.zeros(3))
        ops.tanh(np.zeros(3))
    assert profiler.active is None
    assert [e.name for e in inner.events] == ["exp"]
    assert [e.name for e in outer.events] == ["tanh"]
    ops.exp(np.zeros(3))
    assert len(inner.events) == len(outer.events) == 1


def test_an_op_that_fails_is_recorded_and_forgotten():
    @op
    def broken(x):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), profile():
        broken(Tensor([1.0]))
    assert profiler.active is None
    with profile() as found:
        with pytest.raises(ValueError, match="no"):
            broken(Tensor([1.0]))
        ops.exp(np.zeros(1))
    assert [(e.name, e.parent) for e in found.events] == [("broken", None), ("exp", None)]


def test_results_do_not_change():
    x = np.linspace(-1, 1, 50)
    gradients = []
    for watch in (False, True):
        t = Tensor(x)
        with profile() if watch else profiler.span("nobody watches"):
            (ops.exp(t) * ops.tanh(t)).sum().backward()
        gradients.append(t.grad)
    np.testing.assert_array_equal(*gradients)


def test_threads_have_their_own_calls():
    def work():
        for _ in range(50):
            ops.exp(np.zeros(10))

    threads = [threading.Thread(target=work) for _ in range(3)]
    with profile() as found, profiler.span("main"):
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    calls = [e for e in found.events if e.name == "exp"]
    assert len(calls) == 150
    assert all(e.parent is None for e in calls)
    assert {e.thread for e in calls}.isdisjoint({found.events[0].thread})


class FakeCuda:
    """A GPU whose clock, in ms, ticks with every event recorded."""

    clock = 0

    class Event:
        def record(self):
            FakeCuda.clock += 2
            self.at = FakeCuda.clock

    class Device:
        def synchronize(self):
            pass

    @staticmethod
    def get_elapsed_time(first, last):
        return last.at - first.at


def test_calls_on_a_gpu_are_timed_by_its_events(monkeypatch, tmp_path):
    monkeypatch.setattr(profiler, "_cuda", lambda: FakeCuda)
    on_gpu = np.zeros(3)
    monkeypatch.setattr(backend, "is_gpu", lambda x: x is on_gpu)
    with profile() as found:
        found.watch("there", "forward", lambda x: x)(on_gpu)
        found.watch("here", "forward", lambda x: x)(np.zeros(3))
    there, here = found.events
    assert there.gpu == pytest.approx((2e-3, 2e-3))
    assert here.gpu is None
    assert found.table().splitlines()[0].endswith("GPU ms")
    assert found.table().splitlines()[1].endswith("2.00")
    found.chrome(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [e["args"]["name"] for e in trace if e["ph"] == "M"] == ["CPU", "GPU"]
    (mine,) = (e for e in trace if e["ph"] == "X" and e["pid"] == trace[1]["pid"])
    assert (mine["name"], mine["ts"], mine["dur"]) == ("there", pytest.approx(2000), pytest.approx(2000))
