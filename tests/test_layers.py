"""Dense layers, chains and Flatten against NumPy, torch and numerical gradients."""

import numba
import numpy as np
import pytest

from smlmcore.autograd import Tensor, check_gradient
from smlmcore.layers import Conv2d, Flatten, Gelu, Linear, chain, linear
from smlmcore.layers.linear import matmul


@pytest.mark.parametrize(("n", "k", "m"), [(1, 1, 1), (5, 3, 2), (12, 7, 8), (50, 20, 33), (3, 40, 130), (100, 9, 5)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matmul(n, k, m, dtype):
    rng = np.random.default_rng(0)
    a, b, bias = (rng.normal(size=s).astype(dtype) for s in ((n, k), (k, m), (m,)))
    limit = 8 * (k + 1) * np.finfo(dtype).eps
    want = a.astype(float) @ b.astype(float)
    np.testing.assert_allclose(matmul(a, b, bias), want + bias, rtol=0, atol=limit)
    for left in (np.asfortranarray(a), np.repeat(a, 2, axis=1)[:, ::2], a.T.copy().T):
        np.testing.assert_allclose(matmul(left, np.asfortranarray(b)), want, rtol=0, atol=limit)


def test_matmul_of_nothing():
    for n, k, m in ((0, 3, 2), (2, 0, 3)):
        out = matmul(np.ones((n, k), np.float32), np.ones((k, m), np.float32), np.ones(m, np.float32))
        assert out.shape == (n, m)
        assert (out == 1).all()


def test_matmul_does_not_depend_on_threads():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=s).astype(np.float32) for s in ((200, 30), (30, 40)))
    threads = numba.get_num_threads()
    want = matmul(a, b)
    try:
        numba.set_num_threads(1)
        np.testing.assert_array_equal(matmul(a, b), want)
    finally:
        numba.set_num_threads(threads)


def test_linear_gradient_in_float64():
    rng = np.random.default_rng(1)
    check_gradient(linear, rng.normal(size=(4, 3)), rng.normal(size=(3, 5)), rng.normal(size=5))


def test_linear_equals_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    arrays = [rng.normal(size=s).astype(np.float32) for s in ((30, 20), (20, 13), (13,))]
    gradient = rng.normal(size=(30, 13)).astype(np.float32)
    ours = [Tensor(a) for a in arrays]
    linear(*ours).backward(gradient)
    theirs = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in arrays]
    (theirs[0] @ theirs[1] + theirs[2]).backward(torch.tensor(gradient, dtype=torch.float64))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.grad, b.grad.numpy(), rtol=0, atol=8 * 31 * np.finfo(np.float32).eps)


@pytest.mark.parametrize(
    ("x", "weight", "bias"), [((2, 4), (3, 5), (5,)), ((2, 3), (3, 5), (4,)), ((2, 3, 3), (3, 5), (5,))]
)
def test_linear_of_wrong_shapes(x, weight, bias):
    with pytest.raises(ValueError, match="linear got x of shape"):
        linear(np.ones(x), np.ones(weight), np.ones(bias))


def test_linear_of_mixed_dtypes():
    with pytest.raises(TypeError, match="one dtype"):
        linear(np.ones((2, 3)), np.ones((3, 5), np.float32), np.ones(5, np.float32))


def test_chain_of_everything():
    net = chain(chain(Conv2d(1, 3), Gelu()), Conv2d(3, 4, 2, stride=2), Flatten(), Linear(4 * 3 * 3, 2))
    p = net.init(np.random.default_rng(3), np.float64)
    assert list(p) == ["0.0.weight", "0.0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]
    assert all(v.dtype == np.float64 for v in p.values())
    x = np.random.default_rng(4).normal(size=(2, 5, 6, 1))
    assert net(p, x).shape == (2, 2)
    check_gradient(lambda x, *values: net(dict(zip(p, values, strict=True)), x), x, *p.values())


def test_flatten_keeps_the_order():
    x = np.arange(24.0).reshape(2, 3, 2, 2)
    np.testing.assert_array_equal(Flatten()({}, x), x.reshape(2, 12))
    assert Flatten()({}, x[:0]).shape == (0, 12)
    assert Flatten()({}, Tensor(x)).shape == (2, 12)


def test_same_seed_same_parameters():
    net = chain(Conv2d(1, 2), Linear(3, 4))
    a, b = (net.init(np.random.default_rng(7)) for _ in range(2))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not np.array_equal(a["0.weight"], net.init(np.random.default_rng(8))["0.weight"])


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0)])
def test_impossible_layers(sizes):
    with pytest.raises(ValueError, match="at least 1"):
        Linear(*sizes)
