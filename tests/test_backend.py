"""The backend follows the data."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from smlmcore import backend


class OnGpu(np.ndarray):
    """Stands for cupy.ndarray."""

    def get(self):
        return np.array(self)


@pytest.fixture
def cupy(monkeypatch):
    module = SimpleNamespace(ndarray=OnGpu, asarray=lambda x, dtype=None: np.asarray(x, dtype).view(OnGpu))
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def test_numpy_and_scalars_take_numpy():
    assert backend.module() is np
    assert backend.module(1.0, [2], np.zeros(2), None) is np
    assert not backend.is_gpu(np.zeros(1))
    assert backend.is_array(np.zeros(()))
    assert not backend.is_array(np.float64(1))
    assert not backend.is_array([1])


def test_gpu_arrays_take_cupy(cupy):
    a = np.zeros(2).view(OnGpu)
    assert backend.module(a, 3, [1]) is cupy
    assert backend.is_gpu(a)
    assert backend.is_array(a)
    assert type(backend.to_cpu(a)) is np.ndarray
    assert type(backend.to_gpu(np.zeros(2))) is OnGpu
    assert backend.scipy_module(np, "special").__name__ == "scipy.special"


def test_a_mix_names_caller_kinds_and_remedy(cupy):
    with pytest.raises(TypeError, match=r"render got NumPy and CuPy arrays together; .*to_gpu\(\.\.\.\) or to_cpu"):
        backend.module(np.zeros(2), np.zeros(2).view(OnGpu), name="render")


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (bool, np.float32),
        (np.int8, np.float32),
        (np.uint16, np.float32),
        (np.int32, np.float64),
        (np.int64, np.float64),
        (np.float16, np.float32),
        (np.float32, np.float32),
        (np.float64, np.float64),
        (np.complex64, np.complex64),
    ],
)
def test_asarray_rounds_no_count(dtype, expected):
    a = np.array([0, 1], dtype)
    assert backend.asarray(a).dtype == expected
    np.testing.assert_array_equal(backend.asarray(a), a)
    assert backend.asarray(a, np.complex128).dtype == np.complex128


def test_asarray_keeps_a_float_array_itself_and_refuses_text():
    a = np.zeros(3)
    assert backend.asarray(a) is a
    with pytest.raises(TypeError, match="expected numbers"):
        backend.asarray(["a"])


def test_asarray_follows_like(cupy):
    assert backend.asarray([1.0, 2.0], like=np.zeros(1)).__class__ is np.ndarray
    assert backend.asarray([1.0, 2.0], like=np.zeros(1).view(OnGpu)).__class__ is OnGpu
    with pytest.raises(TypeError, match="asarray got NumPy and CuPy"):
        backend.asarray(np.zeros(1), like=np.zeros(1).view(OnGpu))


def test_to_gpu_without_cupy_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # import fails
    with pytest.raises(RuntimeError, match=r"CuPy is not installed; pip install 'smlmcore\[gpu"):
        backend.to_gpu(np.zeros(1))


def test_to_gpu_without_a_gpu_says_so(cupy):
    class Failed(Exception):
        pass

    def fail(x):
        raise Failed("no device")

    cupy.cuda = SimpleNamespace(runtime=SimpleNamespace(CUDARuntimeError=Failed))
    cupy.asarray = fail
    with pytest.raises(RuntimeError, match=r"CuPy finds no usable GPU \(no device\)"):
        backend.to_gpu(np.zeros(1))
