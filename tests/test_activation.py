"""The Gaussian error linear unit."""

import numpy as np
import pytest
from scipy.special import ndtr

from smlmcore.autograd import Tensor, check_gradient
from smlmcore.layers.activation import Gelu, gelu


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_value_and_slope(dtype):
    x = np.linspace(-30, 30, 6001).astype(dtype)
    t = Tensor(x, requires_grad=True)
    y = gelu(t)
    y.sum().backward()
    assert y.dtype == t.grad.dtype == dtype
    wide = x.astype(float)
    # relative to |x|: Φ is rounded near 1; 6 roundings between, and a fit of 1.7e-7 = 1.4 ε in float32
    room = 8 * np.finfo(dtype).eps
    np.testing.assert_allclose(y.data, wide * ndtr(wide), atol=room, rtol=room)
    density = np.exp(-0.5 * wide**2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(t.grad, ndtr(wide) + wide * density, atol=room, rtol=room)


def test_gradient(rng):
    check_gradient(gelu, rng.standard_normal((2, 3, 4)))


def test_layer(rng):
    x = rng.standard_normal((2, 3, 4, 5))
    layer = Gelu()
    assert layer.init(rng) == {}
    np.testing.assert_array_equal(layer({}, x), gelu(x))
    np.testing.assert_array_equal(layer({}, x[:, ::2].T), gelu(x)[:, ::2].T)
    assert layer({}, x[:0]).shape == (0, 3, 4, 5)
    assert layer({}, np.arange(3)).dtype == np.float64
    assert np.isnan(gelu(np.array([np.nan, 1.0], np.float32))[0])
