"""The public functions on CuPy arrays give what they give on NumPy arrays, and stay on the GPU.

Each function below is called with a `move` that puts arrays on one side.  Without a GPU the CuPy half is skipped, and
the NumPy half shows that the calls themselves are right; `make gpu-check` runs both.
"""

import numpy as np
import pytest

from smlmcore import backend, encoder, fit, layers, localize, loss, optim, psf, renderer, testing
from smlmcore.autograd import Tensor, ops, plain
from smlmcore.deconvolution import deconvolve
from smlmcore.training import Trainer

SHAPE = (9, 11)


def spots(n=64):
    rng = np.random.default_rng(0)
    p = {
        "x": rng.uniform(4, 6, n),
        "y": rng.uniform(3, 5, n),
        "photons": rng.uniform(800, 3000, n),
        "background": rng.uniform(5, 15, n),
        "sigma": rng.uniform(1.1, 1.5, n),
    }
    return p, rng.poisson(psf.Gaussian2D().render(p, SHAPE)).astype(float)


def render(move):
    p, _ = spots()
    return psf.Gaussian2D().render({k: move(v) for k, v in p.items()}, SHAPE)


def render_gradient(move):
    p, images = spots()
    tensors = {k: Tensor(move(v)) for k, v in p.items()}
    loss.poisson_gaussian(psf.Gaussian2D().render(tensors, SHAPE), move(images), 2.0).sum().backward()
    return ops.stack([t.grad for t in tensors.values()])


def crlb(move):
    p, _ = spots()
    return psf.Gaussian2D().crlb(move(np.stack([p[k] for k in psf.Gaussian2D().names], 1)), SHAPE, 1.0)


def refined(move):
    p, images = spots()
    start = np.stack([p[k] for k in psf.Gaussian2D().names], 1)
    result = fit.refine(psf.Gaussian2D(), move(images), 0.0, move(start), loss.PoissonGaussian())
    return result.parameters


def convolution(move):
    rng = np.random.default_rng(1)
    layer = layers.Conv2d(3, 5, stride=2)
    p = {k: Tensor(move(v)) for k, v in layer.init(rng, np.float64).items()}
    x = Tensor(move(rng.normal(size=(4, 7, 9, 3))))
    layers.gelu(layer(p, x)).sum().backward()
    return ops.concatenate([x.grad.reshape(-1), p["weight"].grad.reshape(-1), p["bias"].grad])


def one_adam_step(move):
    rng = np.random.default_rng(2)
    p, g = ({"a": move(rng.normal(size=(3, 4))), "b": move(rng.normal(size=5))} for _ in range(2))
    optimiser = optim.chain(optim.clip_global_norm(1.0), optim.adamw(1e-2, 1e-3))
    updates, _ = optimiser.update(g, optimiser.init(p), p)
    return ops.concatenate([v.reshape(-1) for v in optim.apply(p, updates).values()])


def fourier(move):
    return ops.abs2(ops.fftn(move(np.random.default_rng(3).normal(size=(3, 8, 5))), axes=(1, 2)))


def solved(move):
    rng = np.random.default_rng(4)
    return ops.solve(move(rng.normal(size=(6, 3, 3)) + 3 * np.eye(3)), move(rng.normal(size=(6, 3))))


def many_emitters(move):
    rng = np.random.default_rng(5)
    values = {k: Tensor(move(rng.uniform(0, 30, 50))) for k in ("x", "y", "photons")}
    draw = renderer.Emitters(psf.Gaussian2D(sigma=1.2), (33, 40))
    images = draw({}, {**values, "background": move(np.ones(2)), "image": rng.integers(0, 2, 50)})
    images.sum().backward()
    return ops.concatenate([plain(images).ravel(), values["x"].grad, values["photons"].grad])


def blurred(move):
    rng = np.random.default_rng(6)
    image = Tensor(move(rng.uniform(size=(2, 20, 23))))
    draw = renderer.Convolution(rng.uniform(size=(9, 8)), (20, 23), "periodic")
    direct = renderer.convolve(image, move(rng.uniform(size=(3, 2))))
    (draw({}, {"image": image}) * direct).sum().backward()
    return image.grad


def moved_and_looked_up(move):
    rng = np.random.default_rng(7)
    table = encoder.Table((6, 2))({"table": move(rng.uniform(size=(6, 2)))}, np.array([4, 0]))
    return renderer.Template(rng.uniform(size=(8, 9)), (7, 8), learned=False)({}, {"x": table[:, 0], "y": table[:, 1]})


def deconvolved(move):
    rng = np.random.default_rng(8)
    return deconvolve(move(rng.uniform(1, 2, (12, 13))), move(rng.uniform(size=(4, 5))), 12, refine=4).object


CALLS = [render, render_gradient, crlb, refined, convolution, one_adam_step, fourier, solved]
CALLS += [many_emitters, blurred, moved_and_looked_up, deconvolved]


@pytest.mark.parametrize("side", ["numpy", "cupy"])
@pytest.mark.parametrize("call", CALLS, ids=lambda c: c.__name__)
def test_same_result_on_both_sides(call, side):
    if side == "cupy" and "cuda" not in testing.bodies():
        pytest.skip("no GPU with CuPy here")
    move = backend.to_gpu if side == "cupy" else np.asarray
    result = call(move)
    assert backend.is_gpu(result) == (side == "cupy")
    expected = call(np.asarray)
    scale = np.abs(expected).max()
    # two implementations of float64 sums of a few hundred terms; `refined` stops within 1e-3 standard errors
    tolerance = 1e-3 if call is refined else 1e-9
    np.testing.assert_allclose(backend.to_cpu(result), expected, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("side", ["numpy", "cupy"])
def test_training_and_detection(side, tmp_path):
    if side == "cupy" and "cuda" not in testing.bodies():
        pytest.skip("no GPU with CuPy here")
    move = backend.to_gpu if side == "cupy" else np.asarray
    _, images = spots()
    model = fit.gaussian2d(SHAPE, width=8, hidden=16).init(np.random.default_rng(0))
    if side == "cupy":
        model.to_gpu()
    settings = {"batch": 16, "folder": tmp_path, "average": 0.9, "resume": True}
    Trainer(model, move(images), epochs=1, **settings).run()
    history = Trainer(model, move(images), epochs=2, **settings).run()
    assert len(history["validation"]) == 2
    assert np.isfinite(history["validation"]).all()
    assert all(backend.is_gpu(p) == (side == "cupy") for p in model.parameters.values())
    result = model.refine(move(images))
    assert backend.is_gpu(result.parameters) == (side == "cupy")
    frames = np.full((2, 32, 32), 10.0)
    frames[1, 10:19, 8:19] += images[0] - 10
    found = localize.detect(move(frames), 0.0, 1.3, 6.0)
    assert found["frame"].tolist() == [1]
    cut, _ = localize.cut(move(frames), found, 7)
    assert backend.is_gpu(cut) == (side == "cupy")


@pytest.mark.parametrize("side", ["numpy", "cupy"])
def test_half_precision(side):
    """Exact on the CPU, which does not use it; on the GPU every factor has 11 bits."""
    if side == "cupy" and "cuda" not in testing.bodies():
        pytest.skip("no GPU with CuPy here")
    move = backend.to_gpu if side == "cupy" else np.asarray
    rng = np.random.default_rng(5)
    layer, x = layers.Conv2d(16, 24, activation="gelu"), rng.normal(size=(4, 20, 19, 16))
    p = layer.init(rng, np.float64)

    def gradients(move, dtype):
        t = {k: Tensor(move(v.astype(dtype))) for k, v in p.items()}
        layer(t, move(x.astype(dtype))).sum().backward()
        return [backend.to_cpu(v.grad) for v in t.values()]

    with layers.half():
        found = gradients(move, np.float32)
    for a, b in zip(found, gradients(np.asarray, np.float64), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=(1e-5 if side == "numpy" else 2e-3) * np.abs(b).max())
