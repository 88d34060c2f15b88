"""The U-Net: any size and batch, tiles, precision, training mode, and memory that stays as it is."""

import gc
import sys

import numba
import numpy as np
import pytest

from smlmcore import fit, layers, optim
from smlmcore.autograd import Tensor, check_gradient
from smlmcore.encoder import UNet, tiled

PLAIN = {"root": False, "centre": 0.0, "spread": 1.0}


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (7, 9), (16, 8)])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_any_size_and_batch(size, n):
    net = UNet(3, depth=2, width=8)
    p = net.init(rng())
    images = rng(1).poisson(10.0, (n, *size))
    out = net(p, images)
    assert out.shape == (n, 3, *size)
    assert out.dtype == np.float32
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(net(p, images[:, None]), out)
    np.testing.assert_array_equal(net(p, np.repeat(images, 2, axis=2)[..., ::2]), out)
    np.testing.assert_array_equal(net(p, images.astype(np.uint16)), out)


def test_gradient_with_cropping_and_norms():
    for settings in ({"norm": "batch"}, {"norm": "layer", "skip": "add"}, {"skip": "none", "activation": "silu"}):
        net = UNet(2, depth=1, width=2, **settings)
        p = {k: v + 0.1 for k, v in net.init(rng(1), np.float64).items()}
        images = rng(1).poisson(10.0, (2, 3, 5)).astype(float)
        learned = [k for k in p if not k.endswith(("mean", "variance"))]

        def run(*values, net=net, p=p, images=images, learned=learned):
            with layers.training():
                return net({**p, **dict(zip(learned, values, strict=True))}, images)

        check_gradient(run, *(p[k] for k in learned))


def test_float32_equals_float64():
    """After a whole U-Net, forward and all gradients, within 1e-4 of the largest number of each."""
    net = UNet(2, depth=2, width=16, **PLAIN)
    p = net.init(rng(), np.float64)
    x, g = rng(1).normal(size=(2, 1, 36, 40)), rng(2).normal(size=(2, 2, 36, 40))
    results = []
    for dtype in (np.float64, np.float32):
        t = {k: Tensor(v.astype(dtype)) for k, v in p.items()}
        y = net(t, x)
        y.backward(g.astype(dtype))
        results.append({"y": y.data, **{k: v.grad for k, v in t.items()}})
    for k, exact in results[0].items():
        assert results[1][k].dtype == np.float32
        assert np.abs(results[1][k] - exact).max() <= 1e-4 * np.abs(exact).max(), k


@pytest.mark.parametrize("size", [(70, 50), (31, 64)])
def test_tiles_show_no_seam(size):
    net = UNet(2, depth=2, width=8)
    p = net.init(rng())
    images = rng(1).poisson(10.0, (2, *size))
    whole = net(p, images)
    np.testing.assert_allclose(tiled(net, p, images, tile=16, batch=3), whole, atol=1e-4 * np.abs(whole).max())


def test_tiles_without_signal_are_skipped():
    net = UNet(2, depth=1, width=8, root=False, centre=10.0, spread=1.0)
    p = net.init(rng())
    images = np.full((1, 96, 96), 10.0)
    images[0, 80, 80] = 60.0
    calls, network = [], net.network
    net.network = lambda p, x: calls.append(x.shape) or network(p, x)
    got, whole = tiled(net, p, images, tile=16, skip=5.0), network(p, (images - 10).astype(np.float32)[..., None])
    assert sum(shape[0] for shape in calls) < 12  # of 36 tiles, and one for the background
    inside = (slice(None), slice(None), slice(16, 80), slice(16, 80))
    np.testing.assert_allclose(got[inside], np.moveaxis(whole, -1, 1)[inside], atol=1e-5)
    np.testing.assert_allclose(got[..., 64:, 64:], np.moveaxis(whole, -1, 1)[..., 64:, 64:], atol=1e-5)


def test_reach_is_half_the_receptive_field():
    net = UNet(1, depth=2, width=4, **PLAIN)
    p = net.init(rng(), np.float64)
    size = 4 * net.reach
    one = np.zeros((1, size, size))
    one[0, size // 2, size // 2] = 1.0
    rows = np.nonzero((net(p, one) != net(p, 0 * one))[0, 0].any(1))[0]
    assert size // 2 - net.reach <= rows.min() < rows.max() <= size // 2 + net.reach


def test_bad_pixels_count_as_the_median():
    net = UNet(2, depth=1, width=4)
    p = net.init(rng())
    images = rng(1).poisson(10.0, (2, 6, 6)).astype(np.float32)
    repaired = images.copy()
    images[0, 2, 3], images[1, 0, 0] = np.nan, np.inf
    for image, broken in zip(repaired, images, strict=True):
        image[~np.isfinite(broken)] = np.median(broken[np.isfinite(broken)])
    np.testing.assert_array_equal(net(p, images), net(p, repaired))


def test_dropout_and_running_means():
    net = UNet(1, depth=1, width=4, norm="batch", dropout=0.5)
    p = net.init(rng())
    images = rng(1).poisson(10.0, (4, 8, 8))
    np.testing.assert_array_equal(net(p, images), net(p, images))
    with layers.training(rng(2)) as mode:
        first = net(p, images)
    with layers.training(rng(2)):
        np.testing.assert_array_equal(net(p, images), first)
    with layers.training(rng(3)):
        assert not np.array_equal(net(p, images), first)
    new = mode.updated(p)
    changed = {k for k in p if not np.array_equal(p[k], new[k])}
    assert changed == {k for k in p if k.endswith(("mean", "variance"))}
    with pytest.raises(ValueError, match="random numbers"), layers.training():
        net(p, images)


def test_running_means_are_those_of_the_batches():
    layer = layers.BatchNorm(3)
    p = layer.init(rng(), np.float64)
    x = rng(1).normal(2.0, 3.0, size=(50, 4, 4, 3))
    for _ in range(200):
        with layers.training() as mode:
            layer(p, x)
        p = mode.updated(p)
    np.testing.assert_allclose(p["mean"], x.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(p["variance"], x.var((0, 1, 2), ddof=1), rtol=1e-6)
    out = layer(p, x)
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-6)


@pytest.fixture
def one_thread():
    """Threads that wait for each other are slow on a busy machine, and of no use for tiny images."""
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_learning_keeps_no_memory():
    """1000 steps whose losses are stored: nothing of any graph stays."""
    parts = layers.Conv2d(1, 2, activation="gelu"), layers.MaxPool(), layers.Upsample(), layers.Conv2d(2, 1)
    net = layers.chain(*parts)
    p, o = net.init(rng()), optim.adam(1e-3)
    state, x = o.init(p), rng(1).normal(size=(1, 8, 8, 1)).astype(np.float32)
    losses, kept = [], {}
    for step in range(1000):
        t = {k: Tensor(v) for k, v in p.items()}
        error = net(t, x) - x
        losses.append((error * error).mean())
        if step == 999:
            graph = sys.getallocatedblocks()
        losses[-1].backward()
        u, state = o.update({k: v.grad for k, v in t.items()}, state, p)
        p = optim.apply(p, u)
        if step in (49, 999):
            del t, error, u
            gc.collect()
            kept[step] = sys.getallocatedblocks()
    assert float(losses[-1].data) < float(losses[0].data)
    # Every object takes a block of memory or more: a stored loss a handful (a Tensor and its number), a graph hundreds.
    assert graph - kept[999] > 100
    assert kept[999] - kept[49] < 950 * 10


def test_configuration_makes_the_same_again():
    net = UNet(2, depth=1, width=4, axes=3, skip="add", last=6)
    again = fit.model.build(fit.model.describe(net))
    assert repr(again) == repr(net)
    assert {k: v.shape for k, v in again.init(rng()).items()} == {k: v.shape for k, v in net.init(rng()).items()}


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"depth": -1}, "depth"), ({"width": 0}, "width"), ({"axes": 4}, "axes"), ({"skip": "over"}, "skip"),
     ({"norm": "some"}, "norm"), ({"activation": "bent"}, "bent")],
)  # fmt: skip
def test_impossible_networks(settings, message):
    with pytest.raises(ValueError, match=message):
        UNet(1, **settings)


@pytest.mark.parametrize("shape", [(8, 8), (2, 3, 8, 8), (2, 1, 0, 8)])
def test_wrong_images(shape):
    net = UNet(1, depth=1, width=4)
    with pytest.raises(ValueError, match=r"UNet.*got images of shape"):
        net(net.init(rng()), np.ones(shape))


def test_a_layer_names_itself_when_the_image_is_smaller_than_its_filter():
    layer = layers.Conv2d(1, 2, 5, padding="valid")
    with pytest.raises(ValueError, match="images of 3 x 3 pixels, a 5 x 5 filter"):
        layer(layer.init(rng()), np.ones((1, 3, 3, 1), np.float32))
    with pytest.raises(ValueError, match=r"Conv2d\(inputs=1.*got x of shape \(1, 9, 9, 2\)"):
        layer(layer.init(rng()), np.ones((1, 9, 9, 2), np.float32))
