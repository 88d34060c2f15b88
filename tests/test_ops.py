"""Every op: its values against NumPy or SciPy, its gradient against central differences, its precision."""

import numpy as np
import pytest
import scipy.fft
import scipy.special

from smlmcore.autograd import Tensor, check_adjoint, check_gradient, ops

RNG = np.random.default_rng(1)
UNARY = {  # op: (oracle, a range where it is smooth)
    ops.negative: (np.negative, (-2, 2)),
    ops.square: (np.square, (-2, 2)),
    ops.exp: (np.exp, (-2, 2)),
    ops.log: (np.log, (0.1, 3)),
    ops.log1p: (np.log1p, (-0.5, 3)),
    ops.sqrt: (np.sqrt, (0.1, 3)),
    ops.tanh: (np.tanh, (-2, 2)),
    ops.sigmoid: (scipy.special.expit, (-5, 5)),
    ops.softplus: (lambda x: np.log(1 + np.exp(x)), (-5, 5)),
    ops.erf: (scipy.special.erf, (-2, 2)),
    ops.sin: (np.sin, (-4, 4)),
    ops.cos: (np.cos, (-4, 4)),
    ops.absolute: (np.abs, (0.1, 2)),
    ops.abs2: (lambda x: np.abs(x) ** 2, (-2, 2)),
    ops.conjugate: (np.conj, (-2, 2)),
    ops.real: (np.real, (-2, 2)),
}
BINARY = {
    ops.add: np.add,
    ops.subtract: np.subtract,
    ops.multiply: np.multiply,
    ops.divide: np.divide,
    ops.power: np.power,
    ops.maximum: np.maximum,
    ops.minimum: np.minimum,
}
HOLOMORPHIC = [ops.negative, ops.square, ops.exp, ops.log, ops.sqrt, ops.sin, ops.cos, ops.tanh]
SHAPES = [(), (1,), (0, 3), (5, 3), (2, 1, 7)]


def name(f):
    return getattr(f, "__name__", None)


def complex_normal(*shape):
    return RNG.standard_normal(shape) + 1j * RNG.standard_normal(shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("f", UNARY, ids=name)
def test_unary(f, shape):
    oracle, (low, high) = UNARY[f]
    x = RNG.uniform(low, high, shape)
    np.testing.assert_allclose(f(x), oracle(x), rtol=1e-14, atol=1e-15)
    np.testing.assert_array_equal(f(Tensor(x)).data, f(x))
    check_gradient(f, x)
    check_gradient(f, np.broadcast_to(x, (2, *shape))[::-1])


def test_absolute_of_negative_numbers_and_zero():
    check_gradient(ops.absolute, np.array([-1.0, 2.0]))
    x = Tensor([0.0, -2.0])
    abs(x).sum().backward()
    np.testing.assert_array_equal(x.grad, [0, -1])


@pytest.mark.parametrize("f", [*UNARY, ops.imag, ops.mean, ops.sum, ops.max, ops.logsumexp], ids=name)
def test_float32_stays(f):
    x = Tensor(np.full(3, 0.5, np.float32))
    y = f(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == f(x.data).dtype == np.float32


@pytest.mark.parametrize(
    ("a", "b"), [((3,), (3,)), ((4, 1), (3,)), ((2, 1, 5), (1, 3, 1)), ((0, 3), (3,)), ((), (2, 2)), ((7, 1), ())]
)
@pytest.mark.parametrize("f", BINARY, ids=name)
def test_binary(f, a, b):
    x, y = RNG.uniform(0.5, 2, a), RNG.uniform(2.1, 3, b)
    for u, v in ((x, y), (y, x)):
        np.testing.assert_array_equal(f(u, v), BINARY[f](u, v))
        check_gradient(f, u, v)
    check_gradient(lambda u: f(u, 1.5), y)
    check_gradient(lambda u: f(1.5, u), y)


@pytest.mark.parametrize("f", HOLOMORPHIC, ids=name)
def test_holomorphic(f):
    z = complex_normal(3, 2)
    z.real = np.abs(z.real) + 0.5  # away from the branch cut
    check_gradient(f, z)


@pytest.mark.parametrize("f", [ops.add, ops.subtract, ops.multiply, ops.divide], ids=name)
def test_binary_complex_and_mixed(f):
    z, u, r = complex_normal(3, 2), complex_normal(2), RNG.uniform(0.5, 1, (3, 1))
    check_gradient(f, z, u)
    check_gradient(f, z, r)
    check_gradient(f, r, z)
    check_gradient(lambda v: f(2j, v), r)


@pytest.mark.parametrize("f", [ops.real, ops.imag, ops.conjugate, ops.absolute, ops.abs2], ids=name)
def test_complex_parts(f):
    z = complex_normal(4, 3)
    check_gradient(f, z)
    assert f(z.astype(np.complex64)).dtype.itemsize <= 8
    assert f(z[:0]).shape == (0, 3)


def test_imag_of_real_is_zero():
    x = Tensor([1.0, 2.0])
    y = ops.imag(x)
    y.sum().backward()
    np.testing.assert_array_equal(np.stack([y.data, x.grad]), 0)


def test_to_complex():
    a, b = RNG.standard_normal((2, 3)), RNG.standard_normal(3)
    np.testing.assert_array_equal(ops.to_complex(a, b), a + 1j * b)
    check_gradient(ops.to_complex, a, b)
    assert ops.to_complex(np.float32([1]), np.float32([2])).dtype == np.complex64


def test_complex_gradient_is_the_direction_of_steepest_ascent():
    z = Tensor(np.array([1 + 2j, -3j]))
    ops.abs2(z).sum().backward()
    np.testing.assert_allclose(z.grad, 2 * z.data)  # d|z|²/dRe + i d|z|²/dIm


def test_power_at_zero():
    for exponent in (0, 1, 2, 3.5):
        x = Tensor([0.0, 2.0])
        (x**exponent).sum().backward()
        np.testing.assert_allclose(x.grad, [exponent == 1, exponent * 2.0 ** (exponent - 1)])
    y = Tensor([2.0, 3.0])
    (0.0**y).sum().backward()
    np.testing.assert_array_equal(y.grad, 0)


def test_functions_without_overflow():
    x = np.array([-1000.0, 0.0, 1000.0])
    np.testing.assert_allclose(ops.sigmoid(x), [0, 0.5, 1])
    np.testing.assert_allclose(ops.softplus(x), [0, np.log(2), 1000])
    t = Tensor(x)
    ops.softplus(t).sum().backward()
    np.testing.assert_allclose(t.grad, [0, 0.5, 1])


def test_ties_go_to_the_first():
    x, y = Tensor([1.0]), Tensor([1.0])
    (ops.maximum(x, y) + ops.minimum(x, y)).backward()
    assert (x.grad, y.grad) == (2, 0)


def test_where():
    mask = RNG.random((4, 3)) > 0.5
    x, y = RNG.standard_normal((4, 3)), RNG.standard_normal(3)
    np.testing.assert_array_equal(ops.where(mask, x, y), np.where(mask, x, y))
    check_gradient(ops.where, mask, x, y)
    check_gradient(lambda x: ops.where(mask, x, 0.0), x)
    check_gradient(ops.where, mask, x + 1j, y)
    check_gradient(ops.where, mask[:0], x[:0], y)
    t = Tensor([1.0, 2.0])
    ops.where([True, False], t, 0.0).backward(np.array([1.0, np.nan]))
    np.testing.assert_array_equal(t.grad, [1, 0])  # a NaN beyond the mask does not come back


def test_clip():
    x = np.array([-2.0, -0.3, 0.4, 3.0])
    np.testing.assert_array_equal(ops.clip(x, -1, 1), np.clip(x, -1, 1))
    check_gradient(lambda x: ops.clip(x, -1, 1), x)
    check_gradient(lambda x, low: ops.clip(x, low, None), x, np.array([0.1]))
    check_gradient(lambda x: ops.clip(x, high=1), x)
    assert ops.clip(x) is x


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), (1, -1), ()])
@pytest.mark.parametrize("f", [ops.sum, ops.mean, ops.max, ops.min, ops.logsumexp], ids=name)
def test_reduce(f, axis, keepdims):
    x = RNG.permutation(24).reshape(2, 3, 4) / 5.0
    oracle = scipy.special.logsumexp if f is ops.logsumexp else getattr(np, f.__name__)
    if axis != () or f is not ops.logsumexp:
        np.testing.assert_allclose(f(x, axis=axis, keepdims=keepdims), oracle(x, axis=axis, keepdims=keepdims), 1e-14)
    check_gradient(lambda x: f(x, axis=axis, keepdims=keepdims), x)
    check_gradient(lambda x: f(x, axis, keepdims), x)
    if axis is not None and axis not in (0, (0, 2)):
        check_gradient(lambda x: f(x, axis=axis, keepdims=keepdims), x[:0])
    assert f(np.float32(x), axis=axis).dtype == np.float32


def test_reduce_complex_and_empty():
    z = complex_normal(3, 2)
    check_gradient(lambda z: ops.sum(z, axis=0), z)
    check_gradient(lambda z: ops.mean(z, axis=1), z)
    x = Tensor(np.empty((0, 3)))
    x.sum().backward()
    assert x.grad.shape == (0, 3)


def test_ties_in_max_share_the_gradient():
    x = Tensor([[1.0, 3.0, 3.0]])
    x.max(axis=1).sum().backward()
    np.testing.assert_array_equal(x.grad, [[0, 0.5, 0.5]])


def test_logsumexp_of_extremes():
    x = np.array([[-np.inf, -np.inf], [1000.0, 1000.0], [-1000.0, -np.inf], [np.inf, 0.0]])
    np.testing.assert_array_equal(ops.logsumexp(x, axis=1), [-np.inf, 1000 + np.log(2), -1000, np.inf])
    t = Tensor(x[:3])
    ops.logsumexp(t, axis=1).sum().backward()
    np.testing.assert_array_equal(t.grad, [[0, 0], [0.5, 0.5], [1, 0]])
    assert np.isnan(ops.logsumexp(np.array([np.nan, 1.0])))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((2, 3), (3, 4)),
        ((5, 2, 3), (3, 4)),
        ((5, 2, 3), (5, 3, 4)),
        ((2, 3), (5, 3, 4)),
        ((6, 1, 2, 3), (5, 3, 4)),
        ((3,), (3,)),
        ((3,), (3, 4)),
        ((2, 3), (3,)),
        ((5, 2, 3), (3,)),
        ((3,), (5, 3, 4)),
        ((0, 3), (3, 4)),
        ((0, 2, 3), (3, 4)),
        ((0, 2, 3), (0, 3, 4)),
    ],
)
def test_matmul(a, b):
    for draw in (RNG.standard_normal, lambda shape: complex_normal(*shape)):
        x, y = draw(a), draw(b)
        np.testing.assert_array_equal(ops.matmul(x, y), x @ y)
        check_gradient(ops.matmul, x, y)
    check_gradient(lambda y: x @ y, y)  # an array on the left
    assert ops.matmul(Tensor(np.float32(x.real)), np.float32(y.real)).dtype == np.float32


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 3), (3,)),
        ((3, 3), (3, 2)),
        ((4, 3, 3), (4, 3)),
        ((4, 3, 3), (4, 3, 2)),
        ((4, 3, 3), (1, 3, 2)),
        ((4, 3, 3), (1, 3)),
        ((0, 2, 2), (0, 2)),
        ((5, 1, 1), (5, 1)),
    ],
)
def test_solve(a, b):
    for draw in (RNG.standard_normal, lambda shape: complex_normal(*shape)):
        x, y = draw(a) + 4 * np.eye(a[-1]), draw(b)
        out = ops.solve(x, y)
        residual = (x @ out[..., None])[..., 0] - y if len(b) < len(a) else x @ out - y
        np.testing.assert_allclose(residual, 0, atol=1e-13)
        check_gradient(ops.solve, x, y)
    out = ops.solve(Tensor(np.float32(x.real)), np.float32(y.real))
    assert out.dtype == np.float32


@pytest.mark.parametrize(
    ("subscripts", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)]),
        ("nij,nj->ni", [(5, 2, 3), (5, 3)]),
        ("ny,nx->nyx", [(2, 3), (2, 5)]),
        ("i,i->", [(3,), (3,)]),
        ("ijk->j", [(2, 3, 4)]),
        ("ij,k->", [(2, 3), (4,)]),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)]),
        ("nij,nj->ni", [(0, 2, 3), (0, 3)]),
    ],
)
def test_einsum(subscripts, shapes):
    for draw in (RNG.standard_normal, lambda shape: complex_normal(*shape)):
        arrays = [draw(s) for s in shapes]
        np.testing.assert_allclose(ops.einsum(subscripts, *arrays), np.einsum(subscripts, *arrays), 1e-12)
        check_gradient(lambda *a: ops.einsum(subscripts, *a), *arrays)


@pytest.mark.parametrize("subscripts", ["ii->i", "...i->i", "ij", "ij,j->i"])
def test_einsum_refuses_what_it_cannot_differentiate(subscripts):
    with pytest.raises(ValueError, match="write one term for each"):
        ops.einsum(subscripts, np.ones((2, 2)))


X = RNG.standard_normal((3, 4, 5))


@pytest.mark.parametrize(
    ("f", "oracle"),
    [
        (lambda x: ops.reshape(x, (4, -1)), lambda x: x.reshape(4, -1)),
        (lambda x: ops.transpose(x), lambda x: x.T),
        (lambda x: ops.transpose(x, (1, -1, 0)), lambda x: x.transpose(1, 2, 0)),
        (lambda x: ops.moveaxis(x, 0, -1), lambda x: np.moveaxis(x, 0, -1)),
        (lambda x: ops.moveaxis(x, (0, 1), (2, 0)), lambda x: np.moveaxis(x, (0, 1), (2, 0))),
        (lambda x: ops.pad(x, 2), lambda x: np.pad(x, 2)),
        (lambda x: ops.pad(x, (1, 0), value=3.0), lambda x: np.pad(x, (1, 0), constant_values=3)),
        (lambda x: ops.pad(x, ((0, 0), (1, 2), (0, 3))), lambda x: np.pad(x, ((0, 0), (1, 2), (0, 3)))),
        (lambda x: ops.broadcast_to(x, (2, 3, 4, 5)), lambda x: np.broadcast_to(x, (2, 3, 4, 5))),
        (lambda x: ops.broadcast_to(x[:, :1], (3, 6, 5)), lambda x: np.broadcast_to(x[:, :1], (3, 6, 5))),
        (lambda x: ops.flip(x), np.flip),
        (lambda x: ops.flip(x, (0, -1)), lambda x: np.flip(x, (0, -1))),
        (lambda x: ops.concatenate([x, 2 * x, x[:1]]), lambda x: np.concatenate([x, 2 * x, x[:1]])),
        (lambda x: ops.concatenate([x, x[..., :2]], axis=-1), lambda x: np.concatenate([x, x[..., :2]], axis=-1)),
        (lambda x: ops.stack([x, 2 * x], axis=1), lambda x: np.stack([x, 2 * x], axis=1)),
        (lambda x: ops.stack([x, 2 * x], axis=-1), lambda x: np.stack([x, 2 * x], axis=-1)),
    ],
)
def test_shape(f, oracle):
    np.testing.assert_array_equal(f(X), oracle(X))
    np.testing.assert_array_equal(f(Tensor(X)).data, oracle(X))
    check_gradient(f, X)
    check_gradient(f, X + 1j)
    assert f(X.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize(
    "index",
    [
        0,
        -1,
        slice(1, None),
        (slice(None), slice(None, None, -2)),
        (..., None, 1),
        None,
        [0, 0, 2],
        np.array([2, 2, 2]),
        (slice(None), np.array([[0, 1], [1, 1]])),
        (np.array([0, 0]), np.array([1, 1])),
        (np.array([0, 0, 1]), slice(None), np.array([1, 1, 2])),
        X > 0,
        (slice(None), np.array([True, False, True, True])),
        np.array([], int),
        slice(0, 0),
    ],
    ids=str,
)
def test_getitem(index):
    np.testing.assert_array_equal(ops.getitem(X, index), X[index])
    check_gradient(lambda x: x[index], X)
    check_gradient(lambda x: ops.getitem(x, index), X + 2j)


def test_concatenate_with_an_empty_array():
    check_gradient(lambda x, e: ops.concatenate([x, e], axis=1), X, X[:, :0])


def test_getitem_out_of_range():
    with pytest.raises(IndexError):
        Tensor(X)[7]


def test_shape_ops_of_empty_batches():
    e = np.empty((0, 4, 5))
    for f in (
        lambda x: ops.reshape(x, (0, 20)),
        lambda x: ops.pad(x, ((0, 0), (1, 1), (0, 0))),
        lambda x: ops.stack([x, x]),
        lambda x: x[:, 1:],
        lambda x: ops.flip(x, 1),
    ):
        check_gradient(f, e)


def test_methods_of_tensor():
    x = Tensor(X)
    assert x.reshape(4, 15).shape == x.reshape((4, 15)).shape == (4, 15)
    assert x.reshape(-1).shape == (60,)
    assert x.transpose().shape == x.T.shape == (5, 4, 3)
    assert x.transpose(0, 2, 1).shape == x.transpose((0, 2, 1)).shape == (3, 5, 4)
    np.testing.assert_allclose(x.clip(0, 1).exp().mean(axis=(0, 1)).data, np.exp(X.clip(0, 1)).mean((0, 1)), 1e-14)
    assert (x.real.data == X).all()
    assert (x.imag.data == 0).all()


@pytest.mark.parametrize("norm", [None, "backward", "ortho", "forward"])
@pytest.mark.parametrize("axes", [None, (0,), (-2, -1), (1,)])
@pytest.mark.parametrize("f", [ops.fftn, ops.ifftn], ids=name)
def test_fft(f, axes, norm):
    z = complex_normal(3, 4, 5)
    np.testing.assert_array_equal(f(z, axes=axes, norm=norm), getattr(scipy.fft, f.__name__)(z, axes=axes, norm=norm))
    check_gradient(lambda x: f(x, axes=axes, norm=norm), z)
    check_gradient(lambda x: f(x, axes=axes, norm=norm), z.real.copy())
    inverse = ops.ifftn if f is ops.fftn else ops.fftn
    opposite = {"backward": "forward", "forward": "backward", "ortho": "ortho"}[norm or "backward"]
    check_adjoint(
        lambda x: f(x, axes=axes, norm=norm), lambda y: inverse(y, axes=axes, norm=opposite), z.shape, complex
    )


def test_fft_precision_and_empty_batch():
    x = Tensor(np.ones((2, 4), np.float32))
    y = ops.fftn(x, axes=(1,))
    ops.abs2(y).sum().backward()
    assert (y.dtype, x.grad.dtype) == (np.complex64, np.float32)
    np.testing.assert_allclose(x.grad, 2 * 4 * x.data, rtol=1e-6)  # Parseval
    check_gradient(lambda x: ops.fftn(x, axes=(1,)), np.empty((0, 4)))


def test_a_convolution_by_fft():
    kernel = RNG.standard_normal((5, 5))
    check_gradient(lambda x, k: ops.real(ops.ifftn(ops.fftn(x) * ops.fftn(k))), RNG.standard_normal((5, 5)), kernel)
