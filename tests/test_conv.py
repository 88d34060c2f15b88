"""Convolutions against scipy, torch, the adjoint identity and numerical gradients: direct, and Winograd's."""

import ctypes
import importlib
import os
import subprocess
import sys
from types import SimpleNamespace

import numba
import numpy as np
import pytest
from scipy.signal import correlate

from smlmcore import kernel, layers
from smlmcore.autograd import Tensor, check_gradient
from smlmcore.layers import Conv2d, blas, compiled, conv, simd, vectors, winograd
from smlmcore.layers.compiled import at

half = importlib.import_module("smlmcore.layers.half")
module = importlib.import_module("smlmcore.layers.conv")

# n, size, c, d, k, stride, pad, activation
SHAPES = [
    (3, (11, 11), 1, 16, 3, 1, 1, None),
    (2, (11, 11), 16, 16, 3, 1, 1, "gelu"),
    (2, (11, 13), 16, 32, 3, 2, 1, "relu"),
    (2, (6, 6), 24, 40, 3, 1, 1, None),
    (5, (1, 1), 3, 5, 3, 1, 1, "gelu"),
    (2, (7, 8), 2, 5, 2, 1, 1, None),
    (2, (9, 7), 3, 4, 5, 3, 2, None),
    (1, (33, 40), 5, 8, 3, 1, 1, "silu"),  # several strips
    (1, (37, 40), 2, 9, 3, 2, 1, None),
    (2, (5, 6), 4, 7, 1, 2, 0, None),
    (2, (30, 41), 48, 24, 3, 1, 1, "gelu"),  # Winograd, incomplete tiles
    (3, (8, 8), 24, 32, 3, 1, 2, None),
    (1, (3, 9, 12), 16, 24, 3, 1, 1, "gelu"),
    (2, (4, 5, 3), 3, 5, 3, 2, 1, None),
]


def draw(n, size, c, d, k, stride, pad, activation, dtype):
    """x, weight, bias, gradient."""
    rng = np.random.default_rng(1)
    out = [(s + 2 * pad - k) // stride + 1 for s in size]
    shapes = (n, *size, c), (*(k for _ in size), c, d), (d,), (n, *out, d)
    return [rng.normal(size=s).astype(dtype) for s in shapes]


def run(x, weight, bias, gradient, **settings):
    """Value and the three gradients."""
    tensors = [Tensor(a) for a in (x, weight, bias)]
    out = conv(*tensors, **settings)
    out.backward(gradient)
    return out.data, *(t.grad for t in tensors)


def settings(shape):
    return {"stride": shape[5], "pad": shape[6], "activation": shape[7]}


def rounding(terms, dtype):
    """Bound on the error of a sum of `terms` products of standard normal numbers: √terms grows, eps per step."""
    return 8 * terms * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[7] is None and len(s[1]) == 2])
def test_forward_is_a_correlation(shape, dtype):
    n, _, c, d, k, stride, pad, _ = shape
    x, weight, bias, _ = draw(*shape, dtype)
    got = conv(x, weight, bias, stride=stride, pad=pad)
    padded = np.pad(x.astype(float), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    for i in range(n):
        for m in range(d):
            want = (
                correlate(padded[i], weight[..., m].astype(float), "valid", "direct")[::stride, ::stride, 0] + bias[m]
            )
            np.testing.assert_allclose(got[i, :, :, m], want, rtol=0, atol=rounding(k * k * c + 1, dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradients_equal_torch(shape, dtype):
    torch = pytest.importorskip("torch")
    x, weight, bias, gradient = draw(*shape, dtype)
    space = len(shape[1])
    inputs = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (x, weight, bias)]
    first = (0, space + 1, *range(1, space + 1))
    out = getattr(torch.nn.functional, f"conv{space}d")(
        inputs[0].permute(first), inputs[1].permute(space + 1, space, *range(space)), inputs[2], stride=shape[5],
        padding=shape[6],
    ).permute(0, *range(2, space + 2), 1)  # fmt: skip
    out = getattr(torch.nn.functional, shape[7])(out) if shape[7] else out
    out.backward(torch.tensor(gradient, dtype=torch.float64))
    taps = shape[4] ** space
    terms = [taps * shape[2] + 1, taps * shape[3], gradient[..., 0].size, gradient[..., 0].size]
    for a, b, m in zip(
        run(x, weight, bias, gradient, **settings(shape)), (out, *(i.grad for i in inputs)), terms, strict=True
    ):
        b = b.detach().numpy()
        assert a.dtype == dtype
        # what an error of the value does to the derivative of the activation adds to the rounding of the sum
        limit = 1e-11 if dtype == np.float64 else 1e-5
        limit = limit * np.abs(b).max(initial=1) + rounding(m, dtype)
        np.testing.assert_allclose(a, b, rtol=0, atol=limit)


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (2, 1), (3, 1), (3, 2), (5, 3), (2, 3)])
def test_layer_gradient_in_float64(size, stride):
    rng = np.random.default_rng(2)
    layer = Conv2d(2, 3, size, stride=stride, activation="gelu")
    p = layer.init(rng, np.float64)
    x = rng.normal(size=(2, 5, 7, 2))
    check_gradient(lambda x, weight, bias: layer({"weight": weight, "bias": bias}, x), x, p["weight"], p["bias"])


@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[7], SHAPES[10], SHAPES[12]])
def test_results_do_not_depend_on_the_number_of_threads(shape):
    x, weight, bias, gradient = draw(20, *shape[1:], np.float32)
    results, threads = [], numba.get_num_threads()
    try:
        for count in {1, threads}:
            numba.set_num_threads(count)
            results.append(run(x, weight, bias, gradient, **settings(shape)))
    finally:
        numba.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_winograd_is_taken_where_it_pays_and_its_error_is_small(report):
    """Ten times the error of the direct sum, as the module says, and never more than 3e-6 of the largest number."""
    rng = np.random.default_rng(3)
    x, weight = rng.normal(size=(2, 40, 40, 64)), rng.normal(size=(3, 3, 64, 64)) / 24
    bias, gradient = rng.normal(size=64), rng.normal(size=(2, 40, 40, 64))
    assert winograd.suits((1, 3, 3, 64, 64), 1, (2, 1, 40, 40, 64), np.dtype("float32"))
    assert not winograd.suits((1, 3, 3, 64, 64), 1, (2, 1, 40, 40, 64), np.dtype("float64"))
    exact = run(x, weight, bias, gradient, pad=1)
    single = run(*(a.astype(np.float32) for a in (x, weight, bias, gradient)), pad=1)
    errors = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(single, exact, strict=True)]
    report.append("Winograd, 64 channels: error / largest number " + " ".join(f"{e:.1e}" for e in errors))
    assert max(errors) < 3e-6


def test_narrow_vectors_give_the_same(monkeypatch):
    """Blocks of 8 columns only, as on a machine with short vectors: each sum has the same terms in the same order."""
    x, weight, bias, gradient = draw(*SHAPES[2], np.float32)
    wide = run(x, weight, bias, gradient, **settings(SHAPES[2]))
    simd._cut.cache_clear()
    monkeypatch.setattr(simd, "COSTS", {8: 1.0})
    try:
        assert simd.blocks(40).tolist() == [8] * 5
        narrow = run(x, weight, bias, gradient, **settings(SHAPES[2]))
    finally:
        simd._cut.cache_clear()
    for a, b in zip(wide, narrow, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("vector", "rows", "width"),
    [(8, 1, 8), (8, 4, 16), (8, 4, 24), (8, 12, 16), (16, 1, 24), (16, 4, 8), (16, 12, 24), (16, 12, 32), (16, 8, 48)],
)
@pytest.mark.parametrize("accumulate", [False, True])
def test_vector_code_equals_plain_loops(monkeypatch, vector, rows, width, accumulate):
    monkeypatch.setattr(simd, "VECTOR", vector)
    tile = simd._tile(rows, width)

    @numba.njit
    def run(x, weight, out, init, table, length, row, step, init_row):
        tile(
            at(x, 1), at(weight, 0), at(out, 0), at(init, 0), at(table, 0), table.size,
            length, row, step, width, width, init_row,
        )  # fmt: skip

    rng = np.random.default_rng(3)
    table, length, row, step = np.array([0, 40]), 7, 3, 2
    x = rng.normal(size=120).astype(np.float32)
    weight = rng.normal(size=2 * length * width).astype(np.float32)
    init = rng.normal(size=rows * width if accumulate else width).astype(np.float32)
    init_row = width if accumulate else 0
    want, got = np.zeros(rows * width), np.zeros(rows * width, np.float32)
    double = [a.astype(float) for a in (x, weight, init)]
    simd.plain(
        width, double[0], 1, double[1], 0, want, 0, double[2], 0, table, length, row, step, width, width, init_row, rows
    )
    run(x, weight, got, init, table, length, row, step, init_row)
    np.testing.assert_allclose(got, want, rtol=0, atol=rounding(2 * length + 1, np.float32))


@pytest.mark.parametrize("vector", [8, 16])
def test_transforms_of_grids_equal_numpy(monkeypatch, vector):
    """`separable` is function ⊗ function on each channel, also for counts that are no whole number of vectors."""
    monkeypatch.setattr(vectors, "VECTOR", vector)
    transform = vectors.separable(winograd._input, 6)

    @numba.njit
    def run(source, target, count):
        transform(at(source, 2), 200, 30, at(target, 1), 180, 30, count)

    matrix = np.array(winograd._input(*np.eye(6)))
    x, y = np.random.default_rng(4).normal(size=1400).astype(np.float32), np.zeros(1100, np.float32)
    for count in (8, 24):
        run(x, y, count)
        for k in range(count):
            grid = [[x[2 + 200 * i + 30 * j + k] for j in range(6)] for i in range(6)]
            got = [[y[1 + 180 * i + 30 * j + k] for j in range(6)] for i in range(6)]
            np.testing.assert_allclose(got, matrix @ np.array(grid, float) @ matrix.T, atol=1e-4)


def test_winograd_matrices_multiply_polynomials():
    """A' [(G g) ⊙ (B' d)] is the correlation, exactly; and the adjoints are transposes."""
    sizes = {winograd._output: 6, winograd._filter: 3, winograd._input: 6}
    out, points, data = (np.array(function(*np.eye(n))) for function, n in sizes.items())
    rng = np.random.default_rng(5)
    d, g = rng.normal(size=6), rng.normal(size=3)
    np.testing.assert_allclose(out @ ((points @ g) * (data @ d)), np.correlate(d, g), atol=1e-13)
    np.testing.assert_allclose(np.array(winograd._spread(*np.eye(4))), out.T, atol=1e-15)
    np.testing.assert_allclose(np.array(winograd._collect(*np.eye(6))), points.T, atol=1e-15)
    np.testing.assert_allclose(out @ winograd._ONES, 1, atol=1e-14)


OTHER_MACHINE = """
import numpy as np
from smlmcore.layers import conv, simd
from smlmcore.autograd import Tensor
assert {vector} == simd.VECTOR and not simd.AVX512, simd.VECTOR
data = np.load({path!r})
tensors = [Tensor(data[k]) for k in ("x", "weight", "bias")]
out = conv(*tensors, pad=1, activation="gelu")
out.backward(data["gradient"])
for got, name in zip((out.data, *(t.grad for t in tensors)), ("out", "dx", "dw", "db")):
    np.testing.assert_allclose(got, data[name], rtol=0, atol=1e-5 * np.abs(data[name]).max())
"""


@pytest.mark.parametrize("processor", ["haswell", "x86-64"])
def test_machines_with_shorter_vectors(processor, tmp_path):
    """AVX2, and neither: numba compiles for them in a process of its own, the results are those of this machine."""
    if not os.uname().machine.startswith("x86"):
        pytest.skip("numba is told to compile for x86 processors")
    x, weight, bias, gradient = draw(*SHAPES[10], np.float32)
    results = run(x, weight, bias, gradient, pad=1, activation="gelu")
    arrays = dict(
        zip(
            ("x", "weight", "bias", "gradient", "out", "dx", "dw", "db"),
            (x, weight, bias, gradient, *results),
            strict=True,
        )
    )
    np.savez(tmp_path / "data.npz", **arrays)
    code = OTHER_MACHINE.format(vector=8, path=str(tmp_path / "data.npz"))
    cpu = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": "+avx2,+fma" if processor == "haswell" else ""}
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **cpu})


def test_input_gradient_of_plain_images_is_not_computed(monkeypatch):
    called = []
    monkeypatch.setattr(module, "input_gradient_kernel", lambda *a, **k: called.append(a))
    layer = Conv2d(1, 2)
    p = {name: Tensor(value) for name, value in layer.init(np.random.default_rng(0)).items()}
    layer(p, np.ones((2, 4, 4, 1), np.float32)).sum().backward()
    assert not called
    assert p["weight"].grad.shape == (3, 3, 1, 2)
    assert p["bias"].grad.tolist() == [32, 32]


def products(shape, x, weight, bias, gradient):
    """What runs on a GPU through cuBLAS, here with NumPy's: value and the three gradients."""
    x, gradient, weight = module.planes(x), module.planes(gradient), module.planes(weight, 0)
    out, slope = np.empty_like(gradient), np.empty(gradient.size, x.dtype)
    blas.forward(x, weight, bias, shape[5], shape[6], module.code(shape[7]), out, slope)
    g = blas.sloped(gradient, slope)
    dx, dw, db = np.empty_like(x), np.empty_like(weight), np.empty_like(bias)
    blas.input_gradient(g, weight, shape[5], shape[6], dx)
    blas.weight_gradient(x, g, shape[5], shape[6], dw, db)
    return out, dx, dw, db


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[2], SHAPES[6], SHAPES[9], SHAPES[12], SHAPES[13]])
def test_products_of_a_blas_give_the_same(shape):
    arrays = draw(*shape, np.float64)
    for a, b in zip(products(shape, *arrays), run(*arrays, **settings(shape)), strict=True):
        np.testing.assert_allclose(a.reshape(b.shape), b, rtol=0, atol=1e-11 * np.abs(b).max())


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[6], SHAPES[13]])
def test_half_precision_neither_overflows_nor_vanishes(shape, size):
    """Factors of 11 bits: each product is off by 2^-11 of it at most, and these errors add up like random ones."""
    x, weight, bias, gradient = draw(*shape, np.float32)
    arrays = x * np.float32(size), weight, bias, gradient * np.float32(size)
    with layers.half():
        got, on_cpu = products(shape, *arrays), run(*arrays, **settings(shape))
    for a, b in zip(on_cpu, run(*arrays, **settings(shape)), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(got, on_cpu, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a.reshape(b.shape), b, rtol=0, atol=2**-11 * np.abs(b).max())
    with layers.half():  # float64 stays as it is
        for a, b in zip(products(shape, *draw(*shape, np.float64)), run(*draw(*shape, np.float64), **settings(shape)),
                        strict=True):  # fmt: skip
            np.testing.assert_allclose(a.reshape(b.shape), b, rtol=0, atol=1e-11 * np.abs(b).max())


class FakeCublas:
    """`gemmEx` as NVIDIA documents it, on memory of the host: columns first, C = alpha op(A) op(B) + beta C."""

    CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT = 0, 1, 68, -1

    def gemmEx(self, handle, ta, tb, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, kind, algo):
        assert (a_type, b_type, c_type, kind, algo) == (2, 2, 0, 68, -1)

        def columns(address, count, leading, dtype, rows):
            assert leading >= rows
            memory = (ctypes.c_char * (np.dtype(dtype).itemsize * leading * count)).from_address(address)
            return np.frombuffer(memory, dtype).reshape(count, leading)[:, :rows].T

        one, two = (ctypes.c_float.from_address(p).value for p in (alpha, beta))
        left = columns(a, m, lda, np.float16, k).T if ta else columns(a, k, lda, np.float16, m)
        right = columns(b, k, ldb, np.float16, n).T if tb else columns(b, n, ldb, np.float16, k)
        result = columns(c, n, ldc, np.float32, m)
        result[...] = one * left.astype(np.float32) @ right.astype(np.float32) + two * result


@pytest.mark.parametrize("transposed", [False, True])
def test_call_of_cublas(transposed):
    class Array(np.ndarray):
        data = property(lambda self: SimpleNamespace(ptr=self.ctypes.data))

    rng = np.random.default_rng(4)
    a, b = (
        rng.normal(size=(7, 3)).astype(np.float16).view(Array),
        rng.normal(size=(3, 5)).astype(np.float16).view(Array),
    )
    if transposed:
        a = np.ascontiguousarray(a.T).view(Array).T
    out = rng.normal(size=(7, 5)).astype(np.float32).view(Array)
    want = out.copy()
    half.add_product(want.view(np.ndarray), a.view(np.ndarray), b.view(np.ndarray))
    half._gemm(FakeCublas(), 0, out, a, b)
    np.testing.assert_allclose(out.view(np.ndarray), want.view(np.ndarray), rtol=1e-5)


@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[10]])
def test_read_only_and_strided_inputs(shape):
    arrays = draw(*shape, np.float32)
    want = run(*arrays, **settings(shape))
    strided = [np.repeat(a, 2, axis=-1)[..., ::2] for a in arrays]
    for a in strided:
        a.flags.writeable = False
    for a, b in zip(run(*strided, **settings(shape)), want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_empty_batch():
    x, weight, bias, gradient = draw(0, (5, 6), 2, 3, 3, 2, 1, None, np.float32)
    out, dx, dw, db = run(x, weight, bias, gradient, stride=2, pad=1)
    assert out.shape == (0, 3, 3, 3)
    assert dx.shape == x.shape
    assert not dw.any()
    assert not db.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.ones((2, 5, 5))}, "conv got x of shape"),
        ({"x": np.ones((2, 5, 5, 3))}, "as many channels"),
        ({"pad": 3}, "pad"),
        ({"stride": 0}, "stride"),
        ({"x": np.ones((2, 2, 2, 2)), "pad": 0}, "image"),
        ({"bias": np.ones(4)}, "bias"),
        ({"activation": "bent"}, "activation 'bent'"),
    ],
)
def test_wrong_shapes(change, message):
    a = {
        "x": np.ones((2, 5, 5, 2)),
        "weight": np.ones((3, 3, 2, 3)),
        "bias": np.zeros(3),
        "stride": 1,
        "pad": 1,
        "activation": None,
    } | change
    with pytest.raises(ValueError, match=message):
        conv(a["x"], a["weight"], a["bias"], **{k: a[k] for k in ("stride", "pad", "activation")})


def test_mixed_dtypes():
    with pytest.raises(TypeError, match=r"float32.*float64|float64.*float32"):
        conv(np.ones((1, 3, 3, 1)), np.ones((3, 3, 1, 1), np.float32), np.zeros(1), pad=1)


def test_a_change_of_the_sources_changes_the_names_in_numbas_cache():
    for function in (module.direct._forward, winograd._forward, simd._pack):
        assert function.py_func.__qualname__.endswith(compiled.DIGEST)


def test_every_kernel_is_registered():
    assert {"conv", "conv_input_gradient", "conv_weight_gradient"} <= kernel.registry.keys()


@pytest.mark.parametrize(
    ("sizes", "options"),
    [((0, 1), {}), ((1, 0), {}), ((1, 1, 0), {}), ((1, 1, 1), {"stride": 0}), ((1, 1), {"padding": "some"})],
)
def test_impossible_layers(sizes, options):
    with pytest.raises(ValueError, match=r"at least 1|padding is"):
        Conv2d(*sizes, **options)


def test_initial_parameters_keep_the_variance():
    p = Conv2d(32, 64).init(np.random.default_rng(0))
    assert p["weight"].dtype == np.float32
    size = p["weight"].size
    # the variance of a sample variance is 2 / size
    assert abs(p["weight"].var() / (2 / 288) - 1) < 5 * (2 / size) ** 0.5
    assert not p["bias"].any()
