"""Convolutions by cuDNN: every call is executed by a stand-in for NVIDIA's package, on memory of the host.

The stand-in takes what `nvidia-cudnn-frontend` documents, insists on the order of its calls, and computes a graph from
the shapes, strides, paddings and addresses alone that it was given.  With a GPU and the package, the same is compared
with the real one.
"""

import ctypes
import importlib
import importlib.util
import logging
import sys
import threading
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from smlmcore import backend, layers, testing
from smlmcore.autograd import Tensor
from smlmcore.layers import conv, cudnn

module = importlib.import_module("smlmcore.layers.conv")

# n, size, c, d, k, stride, pad, dilation, activation
SHAPES = [
    (2, (9, 11), 3, 5, 3, 1, 1, 1, "relu"),
    (3, (8, 7), 4, 6, 3, 2, 1, 1, None),
    (1, (12, 13), 2, 3, 3, 1, 2, 2, "relu"),
    (2, (10, 9), 1, 4, 2, 3, 0, 1, None),
    (2, (11, 14), 3, 2, 5, 2, 4, 3, None),
    (1, (5, 6, 7), 2, 3, 3, 1, 1, 1, "relu"),
    (2, (1, 6, 7), 2, 3, 3, 2, 2, 1, None),  # a volume of one plane is no image, if its filter has three
    (1, (7, 5, 6), 3, 2, 3, 2, 2, 2, None),
]
ADDRESS = {"FLOAT": np.float32, "HALF": np.float16}


class NotSupported(Exception):
    """The package's `cudnnGraphNotSupportedError`, which is no RuntimeError."""


class Operand:
    def __init__(self, dim=None, stride=None, data_type=None):
        self.dim, self.stride, self.data_type, self.is_output = dim, stride, data_type, False

    def set_output(self, value):
        self.is_output = value
        return self

    def set_data_type(self, value):
        self.data_type = value
        return self

    def set_dim(self, value):
        self.dim = value
        return self

    def set_stride(self, value):
        self.stride = value
        return self

    def array(self, address):
        """The numbers at an address, (n, channel, *size)."""
        assert address % 16 == 0
        dtype = np.dtype(ADDRESS[self.data_type])
        last = sum((n - 1) * s for n, s in zip(self.dim, self.stride, strict=True))
        memory = (ctypes.c_char * ((last + 1) * dtype.itemsize)).from_address(address)
        flat = np.frombuffer(memory, dtype)
        return np.lib.stride_tricks.as_strided(flat, self.dim, [s * dtype.itemsize for s in self.stride])


class Graph:
    """`cudnn.pygraph` for one convolution, by its definition and in float64."""

    ORDER = ("validate", "build_operation_graph", "create_execution_plans", "check_support", "build_plans")

    def __init__(self, package, io_data_type, intermediate_data_type, compute_data_type, handle):
        assert (intermediate_data_type, compute_data_type) == ("FLOAT", "FLOAT")
        self.package, self.handle, self.done, self.barred = package, handle, [], []
        package.graphs.append(self)

    def tensor(self, dim, stride, data_type, name):
        return Operand(dim, stride, data_type)

    def _operation(kind):
        def operation(self, a, b, padding, stride, dilation, compute_data_type):
            assert len(padding) == len(stride) == len(dilation) == len(a.dim) - 2
            self.kind, self.factors, self.settings, self.out = kind, (a, b), (padding, stride, dilation), Operand()
            return self.out

        return operation

    conv_fprop, conv_dgrad, conv_wgrad = map(_operation, ("fprop", "dgrad", "wgrad"))

    def __getattr__(self, name):
        assert name == self.ORDER[len(self.done)], f"{name} after {self.done}"
        self.done.append(name)
        if name == "check_support" and self.package.refuses:
            raise NotSupported("no engine\nand much more")
        return lambda *modes: None

    def deselect_numeric_notes(self, notes):
        assert self.done[-1] == "create_execution_plans"  # earlier it would be lost
        self.barred += notes

    def deselect_workspace_greater_than(self, limit):
        assert self.done[-1] == "create_execution_plans"

    def get_workspace_size(self):
        return self.package.workspace

    def execute(self, addresses, workspace, handle):
        assert len(self.done) == len(self.ORDER)
        assert self.out.is_output
        assert handle is self.handle
        assert handle.stream == 7
        ctypes.memset(workspace, 255, self.package.workspace)
        a, b = (f.array(addresses[f]).astype(np.float64) for f in self.factors)
        out = self.out.array(addresses[self.out])
        total = np.zeros(out.shape)
        image, filters, loss = {"fprop": (a, b, total), "dgrad": (total, b, a), "wgrad": (a, total, b)}[self.kind]
        padding, stride, dilation = self.settings
        wide = [(0, 0), (0, 0), *((p, p) for p in padding)]
        padded = np.pad(image, wide)
        back = np.zeros_like(padded)
        for tap in np.ndindex(*filters.shape[2:]):
            steps = tuple(
                slice(t * d, t * d + s * (n - 1) + 1, s)
                for t, d, s, n in zip(tap, dilation, stride, loss.shape[2:], strict=True)
            )
            seen, weight = padded[:, :, *steps], filters[:, :, *tap]
            if self.kind == "fprop":
                total += np.einsum("nc...,kc->nk...", seen, weight)
            elif self.kind == "dgrad":
                back[:, :, *steps] += np.einsum("nk...,kc->nc...", loss, weight)
            else:
                total[:, :, *tap] = np.einsum("ncp,nkp->kc", *(a.reshape(*a.shape[:2], -1) for a in (seen, loss)))
        if self.kind == "dgrad":
            total = back[:, :, *(slice(p, p + n) for p, n in zip(padding, out.shape[2:], strict=True))]
        with np.errstate(over="ignore"):
            out[...] = total


@pytest.fixture
def package(monkeypatch):
    """The stand-in, as what a GPU's arrays meet in `smlmcore.layers.conv`; every convolution has enough to do."""
    stand_in = ModuleType("cudnn")
    stand_in.graphs, stand_in.refuses, stand_in.workspace, stand_in.handles = [], False, 1000, []
    stand_in.data_type = SimpleNamespace(FLOAT="FLOAT", HALF="HALF")
    stand_in.heur_mode = SimpleNamespace(A="A", FALLBACK="FALLBACK")
    notes = ("NONDETERMINISTIC", "REDUCED_PRECISION_REDUCTION", "TENSOR_CORE", "DOWN_CONVERT_INPUTS")
    stand_in.numerical_note = SimpleNamespace(**{n: n for n in notes})
    stand_in.cudnnGraphNotSupportedError = NotSupported

    def create_handle():
        stand_in.handles.append(SimpleNamespace(stream=0))
        return stand_in.handles[-1]

    def set_stream(handle, stream):
        handle.stream = stream

    stand_in.create_handle, stand_in.set_stream = create_handle, set_stream
    stand_in.pygraph = lambda **settings: Graph(stand_in, **settings)
    cupy = ModuleType("cupy")
    cupy.ndarray = type("ndarray", (), {})
    cupy.cuda = SimpleNamespace(
        runtime=SimpleNamespace(getDevice=lambda: 0), get_current_stream=lambda: SimpleNamespace(ptr=7)
    )
    monkeypatch.setitem(sys.modules, "cudnn", stand_in)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(module, "backend", SimpleNamespace(is_gpu=lambda a: True, module=backend.module))
    monkeypatch.setattr(cudnn, "FROM", 1)
    forget()
    yield stand_in
    forget()


def forget():
    cudnn.planned.cache_clear()
    cudnn.library.cache_clear()


def draw(n, size, c, d, k, stride, pad, dilation, activation, dtype=np.float32):
    """x, weight, bias and gradient, whole numbers, whose sums float32 has exactly; and the settings."""
    rng = np.random.default_rng(3)
    out = [(s + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for s in size]
    shapes = (n, *size, c), (*(k for _ in size), c, d), (d,), (n, *out, d)
    arrays = [rng.integers(-4, 5, s).astype(dtype) for s in shapes]
    return arrays, {"stride": stride, "pad": pad, "dilation": dilation, "activation": activation}


def run(arrays, settings):
    """Value and the three gradients."""
    *inputs, gradient = arrays
    tensors = [Tensor(a) for a in inputs]
    out = conv(*tensors, **settings)
    out.backward(gradient)
    return out.data, *(t.grad for t in tensors)


def on_cpu(arrays, settings):
    """The same in float64 by the library's own body."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "backend", backend)
        return run([a.astype(np.float64) for a in arrays], settings)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_cudnn_is_told_computes_the_convolution(shape, package):
    arrays, settings = draw(*shape)
    for got, want in zip(run(arrays, settings), on_cpu(arrays, settings), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, want)
    assert [g.kind for g in package.graphs] == ["fprop", "dgrad", "wgrad"]
    assert len(package.graphs[0].out.dim) == len(shape[1]) + 2  # no axis that is not there
    for graph in package.graphs:
        assert {"TENSOR_CORE", "DOWN_CONVERT_INPUTS", "NONDETERMINISTIC"} < set(graph.barred)  # no TF32


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[4], SHAPES[7]], ids=str)
@pytest.mark.parametrize("size", [2.0**-30, 1.0, 2.0**30])
def test_half_precision(shape, size, package):
    """float16 has such factors exactly, and of a result 11 bits."""
    (x, weight, bias, gradient), settings = draw(*shape)
    arrays = x * np.float32(size), weight, bias * np.float32(size), gradient * np.float32(size)
    with layers.half():
        got = run(arrays, settings)
    for a, b in zip(got, on_cpu(arrays, settings), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2**-11 * np.abs(b).max())
    assert {f.data_type for g in package.graphs for f in (*g.factors, g.out)} == {"HALF"}
    assert "TENSOR_CORE" not in package.graphs[0].barred


def test_sums_of_half_precision_do_not_overflow(package):
    """All products of one sign and 128 x 128 x 3 terms: 2e5 times the factors, more than float16 has."""
    arrays, settings = draw(3, (128, 128), 1, 1, 3, 1, 1, 1, None)
    arrays = [np.full_like(a, 1.9) for a in arrays]
    with layers.half():
        got = run(arrays, settings)
    for a, b in zip(got, on_cpu(arrays, settings), strict=True):
        np.testing.assert_allclose(a, b, rtol=2**-9)


def test_plans_are_kept(package):
    arrays, settings = draw(*SHAPES[0])
    for _ in range(3):
        run(arrays, settings)
    assert len(package.graphs) == 3
    run(*draw(*SHAPES[1]))
    assert len(package.graphs) == 6
    with layers.half():
        run(arrays, settings)
    assert len(package.graphs) == 9
    assert len(package.handles) == 1
    other = threading.Thread(target=run, args=(arrays, settings))  # a handle belongs to one thread
    other.start()
    other.join()
    assert len(package.handles) == 2
    assert len(package.graphs) == 12


def test_views_that_begin_anywhere(package):
    """cuDNN takes addresses to be multiples of 16 bytes; a part of a batch need not begin there."""
    (x, weight, bias, gradient), settings = draw(*SHAPES[0])
    memory = np.zeros(x.size + 1, np.float32)
    memory[1:] = x.ravel()
    moved = memory[1:].reshape(x.shape)
    assert moved.ctypes.data % 16
    arrays = (moved, weight, bias, gradient)
    for got, want in zip(run(arrays, settings), on_cpu(arrays, settings), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("what", ["little to do", "one tap", "float64"])
def test_left_to_other_bodies(what, package, monkeypatch):
    shape, dtype = SHAPES[0], np.float32
    if what == "little to do":
        monkeypatch.setattr(cudnn, "FROM", 2 * 9 * 11 * 5 * 9 * 3 + 1)  # multiply-adds of this shape, and one
    elif what == "one tap":
        shape = (2, (9, 11), 3, 5, 1, 1, 0, 1, "relu")
    else:
        dtype = np.float64
    arrays, settings = draw(*shape, dtype)
    for got, want in zip(run(arrays, settings), on_cpu(arrays, settings), strict=True):
        np.testing.assert_array_equal(got, want)
    assert not package.graphs


def test_without_the_package_one_line_says_so(package, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "cudnn", None)
    with caplog.at_level(logging.INFO, "smlmcore"):
        for shape in (SHAPES[0], SHAPES[2], SHAPES[0]):
            arrays, settings = draw(*shape)
            for got, want in zip(run(arrays, settings), on_cpu(arrays, settings), strict=True):
                np.testing.assert_array_equal(got, want)
    assert [r.levelname for r in caplog.records] == ["INFO"]
    assert "smlmcore[cudnn-cuda13]" in caplog.text


def test_what_cudnn_refuses_runs_otherwise(package, caplog):
    package.refuses = True
    arrays, settings = draw(*SHAPES[2])
    for _ in range(2):
        for got, want in zip(run(arrays, settings), on_cpu(arrays, settings), strict=True):
            np.testing.assert_array_equal(got, want)
    assert len(caplog.records) == 3  # once for each of the three graphs
    assert "conv_fprop of (1, 12, 13, 2)" in caplog.text
    assert "much more" not in caplog.text


def test_transposed_convolution_and_networks(package):
    """Layers reach cuDNN by themselves, whatever their padding."""
    rng = np.random.default_rng(5)
    for layer in (
        layers.ConvTranspose(3, 4, 4),
        layers.Conv2d(3, 4, 4, dilation=2),
        layers.Conv2d(3, 4, padding="reflect"),
    ):
        p = layer.init(rng)
        x = rng.normal(size=(2, 9, 10, 3)).astype(np.float32)
        package.graphs.clear()
        tensors = {k: Tensor(v) for k, v in p.items()}
        image = Tensor(x)
        layer(tensors, image).sum().backward()
        assert sorted(g.kind for g in package.graphs) == ["dgrad", "fprop", "wgrad"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "backend", backend)
            expected = {k: Tensor(v.astype(np.float64)) for k, v in p.items()}
            twin = Tensor(x.astype(np.float64))
            layer(expected, twin).sum().backward()
        for got, want in ((image, twin), *((tensors[k], expected[k]) for k in p)):
            np.testing.assert_allclose(got.grad, want.grad, rtol=0, atol=1e-5 * np.abs(want.grad).max())


@pytest.mark.skipif("cuda" not in testing.bodies(), reason="no GPU with CuPy here")
@pytest.mark.skipif(importlib.util.find_spec("cudnn") is None, reason="nvidia-cudnn-frontend is not installed")
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES, (4, (40, 37), 32, 48, 3, 1, 1, 1, "gelu")], ids=str)
def test_on_a_device(shape, half, monkeypatch, caplog):
    """The real cuDNN: it has a plan for every shape, and float32 is float32."""
    monkeypatch.setattr(cudnn, "FROM", 1)
    forget()
    arrays, settings = draw(*shape)
    with layers.half() if half else nullcontext():
        got = run([backend.to_gpu(a) for a in arrays], settings)
    assert cudnn.planned.cache_info().currsize == 3
    assert not caplog.records
    for a, b in zip(got, on_cpu(arrays, settings), strict=True):
        np.testing.assert_allclose(backend.to_cpu(a), b, rtol=0, atol=(2**-10 if half else 1e-5) * np.abs(b).max())
