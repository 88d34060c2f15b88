"""What the renderer has learned, shown to the encoder."""

import numpy as np
import pytest

from smlmcore import encoder, fit, mapper
from smlmcore.autograd import Tensor, ops
from smlmcore.encoder import Conv, Feedback, UNet


def make(kind):
    inner = {"dense": Conv((6, 6), 2, width=8, hidden=4), "difference": UNet(2, depth=1, width=8)}
    return Feedback(inner.get(kind, UNet(2, inputs=2, depth=1, width=8)), kind, (6, 6), outputs=3)


@pytest.mark.parametrize("kind", encoder.feedback.KINDS)
def test_the_state_matters_and_gets_no_gradient(kind):
    net = make(kind)
    p, rng = net.init(np.random.default_rng(0)), np.random.default_rng(1)
    images, state = rng.poisson(10.0, (3, 6, 6)).astype(np.float32), rng.random((6, 6)).astype(np.float32)
    out = net(p, images, state)
    assert out.shape == ((3, 5) if kind == "dense" else (3, 2, 6, 6))
    assert not np.array_equal(net(p, images, state[::-1]), out)
    t, s = {k: Tensor(v) for k, v in p.items()}, Tensor(state)
    net(t, images, s).sum().backward()
    assert s.grad is None
    assert all(v.grad is not None for v in t.values())


def test_what_is_seen():
    seen = []

    class Eye:
        def init(self, rng, dtype):
            return {}

        def __call__(self, p, images):
            seen.append(images)
            return images

    images = np.arange(32.0).reshape(2, 4, 4)
    Feedback(Eye(), "concatenate")({}, images, np.ones((4, 4)))
    Feedback(Eye(), "crop")({}, images, np.arange(24.0).reshape(6, 4))
    Feedback(Eye(), "crop")({}, images, np.ones((2, 4)))
    Feedback(Eye(), "difference")({}, images, images[0])
    np.testing.assert_array_equal(seen[0][:, 1], np.ones((2, 4, 4)))
    np.testing.assert_array_equal(seen[1][0, 1], np.arange(24.0).reshape(6, 4)[1:5])
    np.testing.assert_array_equal(seen[2][0, 1], [[0] * 4, [1] * 4, [1] * 4, [0] * 4])
    np.testing.assert_allclose(seen[3][0], 0, atol=1e-13)
    np.testing.assert_allclose((seen[3][1] * images[0]).sum(), 0, atol=1e-9)


def test_a_model_hands_the_state_on():
    class Template:
        shape = (6, 6)

        def init(self, rng):
            return {"image": np.ones((6, 6), np.float32)}

        def state(self, p):
            return p["image"]

        def __call__(self, p, values):
            return ops.softplus(values["height"].reshape((-1, 1, 1)) * p["image"])

    net = Feedback(Conv((6, 6), 1, width=8, hidden=4), "difference")
    model = fit.FitModel(net, mapper.Direct({"height": mapper.Parameter()}), Template()).init(np.random.default_rng(0))
    images = np.random.default_rng(1).poisson(5.0, (4, 6, 6)).astype(np.float32)
    t = {k: Tensor(v) for k, v in model.parameters.items()}
    model.objective(t, images).backward()
    assert all(v.grad is not None for v in t.values())


def test_errors():
    with pytest.raises(ValueError, match="kind 'some'"):
        Feedback(UNet(1), "some")
    with pytest.raises(ValueError, match="for 'dense' the shape"):
        Feedback(UNet(1), "dense")
    net = make("concatenate")
    with pytest.raises(ValueError, match=r"state of shape \(5, 6\)"):
        net(net.init(np.random.default_rng(0)), np.ones((1, 6, 6)), np.ones((5, 6)))
