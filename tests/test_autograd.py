"""The tape: recording, walking back, freeing, locking, and errors that teach; and the checks themselves."""

import gc
import os
import pathlib
import weakref

import numpy as np
import pytest

from smlmcore import backend, optim
from smlmcore.autograd import Tensor, check_adjoint, check_gradient, no_grad, op, ops


def test_plain_arrays_pass_unrecorded():
    x = np.arange(3.0)
    assert type(ops.exp(x)) is np.ndarray
    assert x.flags.writeable
    assert type(ops.concatenate([x, x])) is np.ndarray


def test_tensor_attributes_and_conversion():
    x = Tensor([[1, 2, 3]])
    assert (x.shape, x.dtype, x.ndim, x.size, len(x)) == ((1, 3), np.float64, 2, 3, 1)
    assert Tensor(np.arange(3, dtype=np.uint16)).dtype == np.float32
    assert Tensor(2.5).item() == float(Tensor([2.5])) == 2.5
    assert "exp" in repr(ops.exp(x))
    a = np.ones(2, np.float32)
    assert Tensor(a).data is a
    with pytest.raises(TypeError, match="numbers"):
        Tensor(["a"])


def test_only_paths_from_leaves_that_require_grad_are_recorded():
    x, c = Tensor([1.0, 2.0]), Tensor([3.0, 4.0], requires_grad=False)
    assert not (c * c).requires_grad
    (x * c).sum().backward()
    assert c.grad is None
    np.testing.assert_array_equal(x.grad, [3, 4])
    assert not x.detach().requires_grad
    assert x.detach().data is x.data


def test_no_grad_as_context_and_as_decorator():
    x = Tensor([1.0])
    with no_grad():
        with no_grad():
            pass
        assert not (x * x).requires_grad
    assert (x * x).requires_grad

    @no_grad()
    def f():
        return x * x

    assert not f().requires_grad
    with pytest.raises(ZeroDivisionError), no_grad():
        _ = 1 / 0
    assert (x * x).requires_grad


def test_gradients_accumulate_in_leaves_and_are_their_own_arrays():
    x, y = Tensor(np.ones(3)), Tensor(np.ones(3))
    (x + y).sum().backward()
    (x + y).sum().backward()
    np.testing.assert_array_equal(x.grad, [2, 2, 2])
    z = Tensor(np.ones((2, 3)))
    z.sum().backward()
    z.grad *= 0  # a view made by broadcast_to could not be changed
    x.grad *= 0
    np.testing.assert_array_equal(y.grad, [2, 2, 2])
    leaf = Tensor(3.0)
    leaf.backward()
    assert leaf.grad == 1


def test_diamond_graph_waits_for_all_gradients():
    x = Tensor(2.0)
    a = x * x
    b = a * x  # x³
    (a * b + b).backward()  # x⁵ + x³
    assert x.grad == 5 * 2**4 + 3 * 2**2


def test_the_same_input_twice():
    x = Tensor([3.0])
    ops.multiply(x, x).backward()
    assert x.grad == 6


def test_unbroadcasting():
    a, b, c = Tensor(np.ones((4, 1, 3))), Tensor(np.ones((2, 1))), Tensor(1.0)
    w = np.arange(24.0).reshape(4, 2, 3)
    ((a * b * c) * w).sum().backward()
    np.testing.assert_array_equal(a.grad, w.sum(1, keepdims=True))
    np.testing.assert_array_equal(b.grad, w.sum((0, 2))[:, None])
    assert c.grad.shape == ()
    assert c.grad == w.sum()


def test_dtype_is_kept():
    x = Tensor(np.ones(3, np.float32))
    for y in (2.0 * x + 1, x**2.0, x / 3, 1 / x, -x, x - 1.5, ops.where(x.data > 0, x, 0.0), ops.clip(x, 0.0, 2.0)):
        assert y.dtype == np.float32
    (x * np.ones(3)).sum().backward()
    assert x.grad.dtype == np.float32


def test_real_input_receives_the_real_part():
    x = Tensor([1.0, 2.0])
    z = x * np.array([1 + 2j, 3 - 1j])
    z.backward(np.array([1 + 1j, 2j]))
    # Re[g conj(c)]
    np.testing.assert_allclose(x.grad, [3.0, -2.0])
    assert x.grad.dtype == np.float64


def test_numpy_on_the_left_and_comparisons():
    x = Tensor([1.0, 2.0])
    assert isinstance(np.ones(2) * x, Tensor)
    assert isinstance(np.float64(2) - x, Tensor)
    assert isinstance(np.ones((2, 2)) @ x, Tensor)
    assert (x > 1).tolist() == [False, True]
    assert (x == x.detach()).all()
    assert x in {x: 1}
    assert [part.item() for part in x] == [1, 2]


def test_long_chains_need_no_recursion():
    x = Tensor(1.0)
    y = x
    for _ in range(10_000):
        y = y + 1e-4
    y.backward()
    assert x.grad == 1
    y = x
    for _ in range(100_000):
        y = y + 1e-4
    del y  # freeing must not recurse either


def test_tape_frees_itself_without_the_garbage_collector():
    class Mark:
        pass

    @op
    def marked(x):
        mark = Mark()
        marks.append(weakref.ref(mark))
        return x * 1, mark

    @marked.vjp
    def _(mark, g):
        alive.append([m() is not None for m in marks])
        return (g,)

    marks, alive = [], []
    gc.disable()
    try:
        x = Tensor(np.ones(2))
        y = marked(marked(x)).sum()
        y.backward()
        assert alive == [[True, True], [True, False]]  # the later op was freed before the earlier one ran
        z = marked(x)
        del z
        assert marks[2]() is None
        loss = (Tensor(np.ones(2)) * 2).sum()
        seen = weakref.ref(loss)
        loss.backward()
        del loss
        assert seen() is None
    finally:
        gc.enable()


def test_unsaved_intermediates_are_not_pinned():
    x = Tensor(np.ones(3))
    y = x + 1
    seen = weakref.ref(y.data)
    z = (2.0 * y) + 1
    del y
    assert seen() is None
    z.sum().backward()
    np.testing.assert_array_equal(x.grad, [2, 2, 2])


def resident_bytes():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="needs /proc")
def test_training_does_not_grow_memory_and_learns():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 32)).astype(np.float32)
    target = np.tanh(x[:, :4])
    p = {
        "w0": (rng.standard_normal((32, 64)) / 6).astype(np.float32),
        "b0": np.zeros(64, np.float32),
        "w1": (rng.standard_normal((64, 4)) / 8).astype(np.float32),
    }
    optimiser = optim.adam(1e-3)
    state = optimiser.init(p)
    losses = []
    gc.disable()
    try:
        for step in range(1000):
            t = {name: Tensor(a) for name, a in p.items()}
            loss = ops.square(ops.tanh(x @ t["w0"] + t["b0"]) @ t["w1"] - target).mean()
            loss.backward()
            updates, state = optimiser.update({name: v.grad for name, v in t.items()}, state, p)
            p = optim.apply(p, updates)
            losses.append(loss.item())
            if step == 199:
                start = resident_bytes()
        # one step saves some 50 kB on its tape, so 800 leaked tapes would be 40 MB
        assert resident_bytes() - start < 8e6
    finally:
        gc.enable()
    assert losses[-1] < 0.1 * losses[0]


def test_saved_arrays_are_locked_until_backward():
    a = np.arange(3.0)
    x = Tensor(a)
    y = x * x
    z = y * x
    with pytest.raises(ValueError, match="read-only"):
        a[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        y.data[0] = 1
    z.sum().backward()
    a[0] = y.data[0] = 1


def test_locks_are_counted_and_freed_with_the_tape():
    a = np.arange(3.0)
    first, second = Tensor(a) * Tensor(a), ops.square(Tensor(a))
    del first
    assert not a.flags.writeable
    del second
    assert a.flags.writeable


def test_views_lock_the_memory_they_share():
    base = np.zeros((4, 4))
    view = base[1:]
    y = ops.square(Tensor(view.T))
    with pytest.raises(ValueError, match="read-only"):
        base[2, 2] = 1
    row = ops.square(Tensor(base[0]))
    del y
    assert not base.flags.writeable  # the row still needs it
    del row
    base[0, 0] = view[0, 0] = 1  # all is as it was


def test_read_only_arrays_stay_read_only_and_foreign_memory_is_left_alone():
    a = np.arange(3.0)
    a.flags.writeable = False
    ops.square(Tensor(a)).sum().backward()
    assert not a.flags.writeable
    b = np.frombuffer(bytearray(24))
    ops.square(Tensor(b)).sum().backward()
    assert b.flags.writeable


def test_constants_are_locked_too():
    x, c = Tensor(np.ones(2)), np.ones(2)
    y = x * c
    assert not c.flags.writeable
    del y
    assert c.flags.writeable


def test_second_backward_raises():
    x = Tensor(2.0)
    y = ops.exp(x)
    loss, other = y * 2, y * 3
    loss.backward()
    with pytest.raises(RuntimeError, match="'multiply' a second time"):
        loss.backward()
    kept = x.grad.copy()
    with pytest.raises(RuntimeError, match="'exp' a second time"):
        other.backward()
    assert x.grad == kept  # a failing backward leaves the leaves alone


def test_errors_teach():
    x = Tensor(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"shape \(2, 3\) with no gradient"):
        (x * 2).backward()
    with pytest.raises(ValueError, match=r"a gradient of shape \(3,\)"):
        (x * 2).backward(np.ones(3))
    with pytest.raises(RuntimeError, match="requires_grad=True"):
        Tensor(1.0, requires_grad=False).backward()
    with no_grad(), pytest.raises(RuntimeError, match="no_grad"):
        x.sum().backward()
    with pytest.raises(TypeError, match=r"ops\.where"):
        x[0] = 1
    with pytest.raises(ValueError, match=r"shape \(2, 3\) is neither"):
        bool(x)
    assert bool(Tensor(1.0))
    assert not Tensor([0.0])
    with pytest.raises(TypeError, match=r"\.data"):
        np.concatenate([x, x])
    with pytest.raises(TypeError, match="does not support ufuncs"):
        np.exp(x)
    with pytest.raises(TypeError, match="by keyword"):
        ops.sum(np.ones(2), axis=x)
    with pytest.raises(TypeError, match="by keyword"):
        ops.add(x, y=x)


class FakeCuPy:
    """Stands for the module and the array class of CuPy."""

    class ndarray:
        pass


def test_mixed_backends_raise(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cupy", FakeCuPy)
    gpu = FakeCuPy.ndarray()
    assert backend.is_gpu(gpu)
    for f in (ops.multiply, ops.add, ops.matmul, ops.subtract, ops.maximum):
        with pytest.raises(TypeError, match=f"{f.__name__} got NumPy and CuPy arrays"):
            f(Tensor(np.ones(2)), gpu)


def test_wrong_rules_are_named():
    @op
    def bad(x, y):
        return x + y, None

    with pytest.raises(NotImplementedError, match=r"@bad\.vjp"):
        bad(Tensor([1.0]), 1.0).backward()
    bad.vjp(lambda saved, g: (g,))
    bad(Tensor([1.0]), 1.0).backward()  # y is no Tensor: nothing is missing
    with pytest.raises(TypeError, match="'bad' returned 1 gradients for 2"):
        bad(1.0, Tensor([1.0])).backward()
    bad.vjp(lambda saved, g: (np.ones(7), None))
    with pytest.raises(ValueError, match=r"'bad' returned a gradient of shape \(7,\) for an array of shape \(3,\)"):
        bad(Tensor(np.ones(3)), 1.0).sum().backward()
    bad.vjp(lambda saved, g: (np.ones(()), None))
    with pytest.raises(ValueError, match=r"shape \(\) for an array of shape \(3,\)"):
        bad(Tensor(np.ones(3)), 1.0).sum().backward()


def test_callable_entries_are_called_only_if_needed():
    @op
    def product(x, y):
        return x * y, (x, y)

    @product.vjp
    def _(saved, g):
        def never():
            raise AssertionError("not needed")

        return lambda: g * saved[1], never

    x = Tensor(2.0)
    product(x, 3.0).backward()
    product(x, Tensor(3.0, requires_grad=False)).backward()
    assert x.grad == 6


def test_none_means_no_gradient():
    @op
    def ceil(x):
        return np.ceil(x), None

    ceil.vjp(lambda saved, g: (None,))
    x = Tensor([0.5])
    (ceil(x) + 2 * x).sum().backward()
    assert x.grad == 2


def test_check_gradient_finds_wrong_ones():
    @op
    def wrong(x):
        return np.exp(x), x

    wrong.vjp(lambda x, g: (g * np.exp(x) * (1 + 1e-5),))
    with pytest.raises(AssertionError, match=r"(?s)along v is .* central differences give .*input 0: .*direction v: "):
        check_gradient(wrong, np.ones(3))
    with pytest.raises(AssertionError, match="not smooth"):
        check_gradient(lambda x: ops.absolute(x - 1.0), np.ones(3))
    with pytest.raises(TypeError, match="at least one"):
        check_gradient(lambda n: n, 3)
    with pytest.raises(TypeError, match="return a Tensor"):
        check_gradient(lambda x: x.data, np.ones(3))


def test_check_gradient_passes_other_inputs_on():
    check_gradient(lambda x, n, i: ops.getitem(x, i) * n, np.ones(3), 2, np.array([0, 0, 2]))
    check_gradient(lambda x: x * 0.0, np.ones(3))  # a gradient of zero is one
    check_gradient(ops.exp, np.empty((0, 3)))
    check_gradient(ops.square, np.zeros(3))
    check_gradient(ops.log, np.array([1e-9, 1.0, 1e9]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
def test_check_adjoint(dtype):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((4, 3)).astype(dtype)
    check_adjoint(lambda x: a @ x, lambda y: a.conj().T @ y, (3, 2), dtype)
    with pytest.raises(AssertionError, match="differ by more than"):
        check_adjoint(lambda x: a @ x, lambda y: a.conj().T @ y * (1 + 1e-3), (3, 2), dtype)
    with pytest.raises(AssertionError, match="maps back"):
        check_adjoint(lambda x: a @ x, lambda y: y, (3,), dtype)


def test_check_adjoint_real_to_complex():
    check_adjoint(lambda x: np.fft.fft(x), lambda y: np.fft.ifft(y, norm="forward").real, (5,))
