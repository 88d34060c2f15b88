"""Every layer, both encoders and a training against torch's values and gradients, float64; see reference_layers.py."""

import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from smlmcore import optim
from smlmcore.autograd import Tensor
from smlmcore.layers import training

sys.path.insert(0, str(Path(__file__).parent))
from reference_layers import ENCODERS, FILE, LAYERS, RATE, STEPS, TRAINED, draw, training_data

CASES = LAYERS | ENCODERS


@pytest.fixture(scope="module")
def reference():
    with np.load(FILE) as file:
        return dict(file)


def close(got, want, limit):
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= limit * max(1, np.abs(want).max())


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients(name, reference):
    layer, shape = CASES[name]
    p, x, _ = draw(name, layer, shape)
    t, source = {k: Tensor(v) for k, v in p.items()}, Tensor(x)
    with training(np.random.default_rng(0)):
        y = layer(t, source if name in LAYERS else x)
    y.backward(reference[f"{name}/g"])
    close(y.data, reference[f"{name}/y"], 1e-10)
    if name in LAYERS:
        close(source.grad, reference[f"{name}/dx"], 1e-10)
    gradients = {k: v.grad for k, v in t.items() if v.grad is not None}
    assert {f"{name}/d{k}" for k in gradients} == {k for k in reference if k.startswith(f"{name}/d")} - {f"{name}/dx"}
    for k, g in gradients.items():
        close(g, reference[f"{name}/d{k}"], 1e-10)


@pytest.fixture
def one_thread():
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")  # small images: two would wait for each other
def test_training_curve(reference):
    """200 steps of a U-Net with Adam: what rounding makes of it grows to 2e-12 in float64."""
    p, x, target = training_data()
    adam = optim.adam(RATE)
    state, losses = adam.init(p), []
    for _ in range(STEPS):
        t = {k: Tensor(v) for k, v in p.items()}
        error = TRAINED.network(t, x) - target
        loss = (error * error).mean()
        loss.backward()
        updates, state = adam.update({k: v.grad for k, v in t.items()}, state, p)
        p = optim.apply(p, updates)
        losses.append(float(loss.data))
    np.testing.assert_allclose(losses, reference["losses"], rtol=0, atol=1e-9)
    assert losses[-1] < 0.1 * losses[0]
