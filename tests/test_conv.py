"""Convolution kernels against scipy, torch, the adjoint identity and numerical gradients."""

import numba
import numpy as np
import pytest
from scipy.signal import correlate

from smlmcore import kernel
from smlmcore.autograd import Tensor, check_gradient
from smlmcore.layers import Conv2d, conv, conv2d, simd

# n, h, w, c, d, k, stride
SHAPES = [
    (3, 11, 11, 1, 16, 3, 1),
    (2, 11, 11, 16, 16, 3, 1),
    (2, 11, 13, 16, 32, 3, 2),
    (2, 6, 6, 24, 40, 3, 1),
    (5, 1, 1, 3, 5, 3, 1),
    (2, 7, 8, 2, 5, 2, 1),
    (2, 9, 7, 3, 4, 5, 3),
    (1, 33, 40, 5, 8, 3, 1),  # several strips
    (1, 37, 40, 2, 9, 3, 2),
    (2, 5, 6, 4, 7, 1, 2),
]


def draw(n, h, w, c, d, k, stride, dtype):
    """x, weight, bias, gradient."""
    rng = np.random.default_rng(1)
    p, q = (h + 2 * (k // 2) - k) // stride + 1, (w + 2 * (k // 2) - k) // stride + 1
    return [rng.normal(size=s).astype(dtype) for s in ((n, h, w, c), (k, k, c, d), (d,), (n, p, q, d))]


def gradients(x, weight, gradient, stride, pad):
    dx = conv.conv2d_input_gradient_kernel(gradient, weight, stride, pad, out=np.full_like(x, np.nan))
    out = np.full_like(weight, np.nan), np.full_like(weight[0, 0, 0], np.nan)
    return dx, *conv.conv2d_weight_gradient_kernel(x, gradient, stride, pad, out=out)


def rounding(terms, dtype):
    """Bound on the error of a sum of `terms` products of standard normal numbers: √terms grows, eps per step."""
    return 8 * terms * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_is_a_correlation(shape, dtype):
    n, _, _, c, d, k, stride = shape
    x, weight, bias, _ = draw(*shape, dtype)
    got = conv2d(x, weight, bias, stride=stride, pad=k // 2)
    padded = np.pad(x.astype(float), ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    for i in range(n):
        for m in range(d):
            want = (
                correlate(padded[i], weight[..., m].astype(float), "valid", "direct")[::stride, ::stride, 0] + bias[m]
            )
            np.testing.assert_allclose(got[i, :, :, m], want, rtol=0, atol=rounding(k * k * c + 1, dtype))


@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_gradients_equal_torch(shape):
    torch = pytest.importorskip("torch")
    k, stride = shape[5:]
    x, weight, bias, gradient = draw(*shape, np.float32)
    inputs = [torch.tensor(np.ascontiguousarray(a), dtype=torch.float64, requires_grad=True) for a in (x, weight, bias)]
    out = torch.nn.functional.conv2d(
        inputs[0].permute(0, 3, 1, 2), inputs[1].permute(3, 2, 0, 1), inputs[2], stride=stride, padding=k // 2
    ).permute(0, 2, 3, 1)
    out.backward(torch.tensor(gradient, dtype=torch.float64))
    got = conv2d(x, weight, bias, stride=stride, pad=k // 2), *gradients(x, weight, gradient, stride, k // 2)
    terms = [weight[..., 0].size + 1, k * k * gradient.shape[3], gradient[..., 0].size, gradient[..., 0].size]
    for a, b, m in zip(got, (out, *(i.grad for i in inputs)), terms, strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=0, atol=rounding(m, np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradients_are_adjoint_to_the_forward(shape, dtype):
    x, weight, bias, gradient = draw(*shape, dtype)
    k, stride = shape[5:]
    out = conv2d(x, weight, np.zeros_like(bias), stride=stride, pad=k // 2).astype(float)
    dx, dw, db = (a.astype(float) for a in gradients(x, weight, gradient, stride, k // 2))
    left = (out * gradient).sum()
    limit = rounding(1, dtype) * (np.abs(out * gradient).sum() + np.abs(dx * x).sum() + np.abs(dw * weight).sum())
    assert abs(left - (dx * x).sum()) < limit
    assert abs(left - (dw * weight).sum()) < limit
    np.testing.assert_allclose(db, gradient.sum((0, 1, 2), dtype=float), rtol=0, atol=rounding(out[..., 0].size, dtype))


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (2, 1), (3, 1), (3, 2), (5, 3), (2, 3)])
def test_layer_gradient_in_float64(size, stride):
    rng = np.random.default_rng(2)
    layer = Conv2d(2, 3, size, stride)
    p = layer.init(rng, np.float64)
    x = rng.normal(size=(2, 5, 7, 2))
    check_gradient(lambda x, weight, bias: layer({"weight": weight, "bias": bias}, x), x, p["weight"], p["bias"])


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[2], SHAPES[7]])
def test_results_do_not_depend_on_the_number_of_threads(shape):
    x, weight, bias, gradient = draw(40 * shape[0], *shape[1:], np.float32)
    k, stride = shape[5:]
    results, threads = [], numba.get_num_threads()
    try:
        for count in {1, threads}:
            numba.set_num_threads(count)
            out = conv2d(x, weight, bias, stride=stride, pad=k // 2)
            results.append((out, *gradients(x, weight, gradient, stride, k // 2)))
    finally:
        numba.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_narrow_vectors_give_the_same(monkeypatch):
    """Blocks of 8 columns only, as on a machine with short vectors: each sum has the same terms in the same order."""
    x, weight, bias, gradient = draw(*SHAPES[3], np.float32)

    def run():
        return conv2d(x, weight, bias, stride=1, pad=1), *gradients(x, weight, gradient, 1, 1)

    wide = run()
    monkeypatch.setattr(simd, "WIDTHS", (8,))
    assert simd.blocks(40).tolist() == [8] * 5
    for a, b in zip(wide, run(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("vector", "rows", "width"), [(8, 1, 8), (8, 3, 16), (8, 4, 24), (8, 12, 16), (16, 1, 8), (16, 3, 16), (16, 12, 32)]
)
@pytest.mark.parametrize("accumulate", [False, True])
def test_vector_code_equals_plain_loops(monkeypatch, vector, rows, width, accumulate):
    monkeypatch.setattr(simd, "VECTOR", vector)
    tile = simd._tile(rows, width)

    @numba.njit
    def run(x, weight, out, init, table, length, row, step, init_row):
        tile(x, 1, weight, 0, out, 0, init, 0, table, length, row, step, width, width, init_row)

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


def test_a_tile_that_is_no_whole_number_of_vectors_is_refused(monkeypatch):
    monkeypatch.setattr(simd, "VECTOR", 16)
    with pytest.raises(ValueError, match="24 columns"):
        simd._tile(4, 24)


def test_input_gradient_of_plain_images_is_not_computed(monkeypatch):
    called = []
    monkeypatch.setattr(conv, "conv2d_input_gradient_kernel", lambda *a, **k: called.append(a))
    layer = Conv2d(1, 2)
    p = {name: Tensor(value) for name, value in layer.init(np.random.default_rng(0)).items()}
    layer(p, np.ones((2, 4, 4, 1), np.float32)).sum().backward()
    assert not called
    assert p["weight"].grad.shape == (3, 3, 1, 2)
    assert p["bias"].grad.tolist() == [32, 32]


def test_read_only_and_strided_inputs():
    x, weight, bias, gradient = draw(2, 5, 6, 2, 3, 3, 1, np.float32)
    want = conv2d(x, weight, bias, pad=1), *gradients(x, weight, gradient, 1, 1)
    strided = [np.repeat(a, 2, axis=-1)[..., ::2] for a in (x, weight, bias, gradient)]
    for a in strided:
        a.flags.writeable = False
    x, weight, bias, gradient = strided
    out = [np.empty(a.shape, a.dtype) for a in strided[:3]]
    conv.conv2d_input_gradient_kernel(gradient, weight, 1, 1, out=out[0])
    conv.conv2d_weight_gradient_kernel(x, gradient, 1, 1, out=(out[1], out[2]))
    for a, b in zip((conv2d(x, weight, bias, pad=1), *out), want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_empty_batch():
    x, weight, bias, gradient = draw(0, 5, 6, 2, 3, 3, 2, np.float32)
    assert conv2d(x, weight, bias, stride=2, pad=1).shape == (0, 3, 3, 3)
    dx, dw, db = gradients(x, weight, gradient, 2, 1)
    assert dx.shape == x.shape
    assert not dw.any()
    assert not db.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.ones((2, 5, 5))}, "conv2d got x of shape"),
        ({"x": np.ones((2, 5, 5, 3))}, "as many channels"),
        ({"pad": 3}, "pad"),
        ({"stride": 0}, "stride"),
        ({"x": np.ones((2, 2, 2, 2)), "pad": 0}, "image"),
        ({"bias": np.ones(4)}, "bias"),
    ],
)
def test_wrong_shapes(change, message):
    a = {
        "x": np.ones((2, 5, 5, 2)),
        "weight": np.ones((3, 3, 2, 3)),
        "bias": np.zeros(3),
        "stride": 1,
        "pad": 1,
    } | change
    with pytest.raises(ValueError, match=message):
        conv2d(a["x"], a["weight"], a["bias"], stride=a["stride"], pad=a["pad"])


def test_mixed_dtypes():
    with pytest.raises(TypeError, match=r"float32.*float64|float64.*float32"):
        conv2d(np.ones((1, 3, 3, 1)), np.ones((3, 3, 1, 1), np.float32), np.zeros(1), pad=1)


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (1, 1, 0), (1, 1, 1, 0)])
def test_impossible_layers(sizes):
    with pytest.raises(ValueError, match="at least 1"):
        Conv2d(*sizes)


def test_initial_parameters_keep_the_variance():
    p = Conv2d(32, 64).init(np.random.default_rng(0))
    assert p["weight"].dtype == np.float32
    size = p["weight"].size
    # the variance of a sample variance is 2 / size
    assert abs(p["weight"].var() / (2 / 288) - 1) < 5 * (2 / size) ** 0.5
    assert not p["bias"].any()


def test_the_kernels_are_registered():
    assert {"conv2d", "conv2d_input_gradient", "conv2d_weight_gradient"} <= kernel.registry.keys()
