"""The kernel registry: signatures, checks before a launch, sources, and what a CUDA launch is given."""

from types import SimpleNamespace

import numpy as np
import pytest

from smlmcore import backend, kernel


def scaled_sum(x, index, power, y, total):
    y[...] = x[index] ** power
    total[...] = x.sum(1, keepdims=True)


def make(**bodies):
    return kernel.Kernel("scaled_sum", "x[n,w] index[k]:int32 power:int -> y[k,w] total[n,1]", scaled_sum, **bodies)


def arguments(n=3, w=2, k=5, dtype=np.float64):
    x = np.arange(n * w, dtype=dtype).reshape(n, w)
    return [x, np.arange(k, dtype=np.int32) % max(n, 1), 2], (np.empty((k, w), dtype), np.empty((n, 1), dtype))


def test_signature():
    k = make()
    assert k.dims == ("n", "w", "k")
    assert [a.name for a in k.inputs + k.outputs] == ["x", "index", "power", "y", "total"]
    assert [a.dtype for a in k.inputs] == ["real", "int32", "int"]
    assert k.inputs[2].dims is None
    assert k.outputs[1].dims == ("n", 1)


@pytest.mark.parametrize("text", ["x[n", "x(n)", "x[n]:double", "x:float"])
def test_bad_signature(text):
    with pytest.raises(ValueError, match="bad kernel argument"):
        kernel.Kernel("bad", f"{text} -> y[n]", scaled_sum)


def test_a_name_is_registered_once(monkeypatch):
    monkeypatch.setattr(kernel, "registry", {})
    k = kernel.register("one", "x[n] -> y[n]", scaled_sum)
    assert kernel.registry == {"one": k}
    with pytest.raises(ValueError, match="'one' is registered already"):
        kernel.register("one", "x[n] -> y[n]", scaled_sum)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_call_writes_out_and_returns_it(dtype):
    inputs, out = arguments(dtype=dtype)
    assert make()(*inputs, out=out) is out
    np.testing.assert_array_equal(out[0], (inputs[0] ** 2)[[0, 1, 2, 0, 1]])
    np.testing.assert_array_equal(out[1][:, 0], [1, 5, 9])


def test_call_prefers_cpu():
    def cpu(x, index, power, y, total):
        y[...] = total[...] = -1

    inputs, out = arguments()
    make(cpu=cpu)(*inputs, out=out)
    assert (out[0] == -1).all()


def test_call_takes_strided_inputs_and_numpy_integers():
    inputs, out = arguments()
    expected = [a.copy() for a in make()(*inputs, out=out)]
    inputs = [np.repeat(inputs[0], 2, 1)[:, ::2], np.repeat(inputs[1], 3)[::3], np.int64(2)]
    assert not inputs[0].flags.c_contiguous
    for got, want in zip(make()(*inputs, out=out), expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_nothing_to_write_runs_nothing():
    def never(*arguments):
        raise AssertionError

    inputs, out = arguments(n=0, k=0)
    make(cpu=never)(*inputs, out=out)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda i, o: (i[:2], o), TypeError, "scaled_sum got 2 inputs and 2 outputs; its signature is x"),
        (lambda i, o: ([i[0].astype("f4"), *i[1:]], o), TypeError, "got x of float32; expected float64"),
        (lambda i, o: ([i[0].tolist(), *i[1:]], o), TypeError, "got x of list; expected float64"),
        (lambda i, o: ([i[0], i[1].astype("i8"), 2], o), TypeError, "got index of int64; expected int32"),
        (lambda i, o: ([*i[:2], 2.5], o), TypeError, "got power = 2.5; expected an integer"),
        (lambda i, o: ([i[0].ravel(), *i[1:]], o), ValueError, r"got x of shape \(6,\); expected \['n', 'w'\]"),
        (lambda i, o: (i, (o[0][:, :1].copy(), o[1])), ValueError, r"got y of shape \(5, 1\); expected \['k', 'w'\]"),
        (lambda i, o: (i, (o[0], np.empty((3, 2)))), ValueError, r"got total of shape \(3, 2\)"),
        (lambda i, o: (i, (np.empty((5, 4))[:, ::2], o[1])), ValueError, "got y not C-contiguous"),
        (lambda i, o: (i, (o[0].astype(int), o[1])), TypeError, "expected .*float32 or float64"),
        (lambda i, o: (i, (None, o[1])), TypeError, "got y of NoneType; expected float64"),
    ],
)
def test_wrong_arguments(change, error, text):
    inputs, out = change(*arguments())
    with pytest.raises(error, match=text):
        make()(*inputs, out=out)


def test_source_expands_each_include_once_and_keeps_line_numbers(monkeypatch, tmp_path):
    monkeypatch.setattr(kernel, "source_folder", lambda: tmp_path)
    (tmp_path / "a.cu").write_text('#include "b.cuh"\n#include "c.cuh"\nmain\n')
    (tmp_path / "b.cuh").write_text('#include "c.cuh"\nb\n')
    (tmp_path / "c.cuh").write_text("c\n")
    lines = kernel.source("a.cu").split("\n")
    assert [s for s in lines if s and s[0] != "#"] == ["c", "b", "main"]
    for text, place in [("c", '#line 1 "c.cuh"'), ("b", '#line 2 "b.cuh"'), ("main", '#line 3 "a.cu"')]:
        assert lines[lines.index(text) - 1] == place


def test_options():
    assert kernel.options("float32", (("h", 3), ("w", 5))) == ("-std=c++17", "-DREAL=float", "-DH=3", "-DW=5")


class OnGpu(np.ndarray):
    """Stands for cupy.ndarray."""


def test_cuda_launch(monkeypatch):
    launched = []
    function = SimpleNamespace(get_function=lambda name: lambda *launch: launched.append((name, *launch)))
    compiled = []
    cupy = SimpleNamespace(
        ndarray=OnGpu,
        ascontiguousarray=lambda a: np.ascontiguousarray(a).view(OnGpu),
        RawModule=lambda code, options: compiled.append((code, options)) or function,
    )
    monkeypatch.setitem(__import__("sys").modules, "cupy", cupy)
    monkeypatch.setattr(kernel, "source", lambda file: f"source of {file}")
    kernel._compile.cache_clear()
    inputs, out = arguments(dtype=np.float32)
    inputs, out = [v.view(OnGpu) if backend.is_array(v) else v for v in inputs], tuple(o.view(OnGpu) for o in out)

    with pytest.raises(NotImplementedError, match=r"scaled_sum has no CUDA body; use backend\.to_cpu"):
        make()(*inputs, out=out)
    k = make(cuda=kernel.Cuda("some.cu", lambda dims: dims["n"] * dims["power"], 96, ("w",)))
    for _ in range(2):
        k(*inputs, out=out)
    kernel._compile.cache_clear()

    assert compiled == [("source of some.cu", ("-std=c++17", "-DREAL=float", "-DW=2"))]
    name, grid, block, values = launched[0]
    assert (len(launched), name, grid, block) == (2, "scaled_sum", (6,), (96,))
    assert values[3] is out[0]
    assert values[4] is out[1]
    assert values[2] == 2
    assert values[5:] == (3, 5)  # n and k; w is a constant
    assert all(isinstance(v, OnGpu | np.int32) for v in values)
