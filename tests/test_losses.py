"""Squared, Gaussian and EMCCD losses, trainable cameras, the noise floor and the limit to learning noise."""

import numpy as np
import pytest
from scipy import ndimage, special, stats

from smlmcore import encoder, fit, loss, mapper, renderer, simulate, training
from smlmcore.autograd import Tensor, check_gradient
from smlmcore.camera import Camera

LOSSES = [loss.L2(), loss.MSE(), loss.PoissonWeighted(), loss.GaussianNLL(), loss.GaussianNLL(False), loss.EMCCD()]


def images(rng, v=2.0, shape=(2, 3, 4)):
    mu = rng.uniform(0.5, 60, shape)
    return mu, rng.poisson(mu) + np.sqrt(v) * rng.standard_normal(shape)


def test_gaussian_losses_are_scipys(rng):
    mu, d = images(rng)
    v = rng.uniform(0.5, 3, mu.shape)
    np.testing.assert_allclose(loss.GaussianNLL()(mu, d, v), -stats.norm.logpdf(d, mu, np.sqrt(mu + v)), rtol=1e-12)
    np.testing.assert_allclose(loss.GaussianNLL(False)(mu, d, v), -stats.norm.logpdf(d, mu, np.sqrt(v)), rtol=1e-12)
    np.testing.assert_allclose(loss.PoissonWeighted()(mu, d, v), 0.5 * (d - mu) ** 2 / (mu + v), rtol=1e-12)
    np.testing.assert_allclose(loss.MSE()(mu, d), (d - mu) ** 2, rtol=1e-12)


@pytest.mark.parametrize("part", LOSSES, ids=repr)
def test_gradient_and_edges(part, rng):
    mu, d = images(rng)
    d[0, 1, 2], v = np.nan, np.full((3, 4), 1.5)
    v[2, 2] = np.inf
    value, slope = part.value_and_slope(mu, d, v)
    np.testing.assert_array_equal(value, part(mu, d, v))
    for a in (value, slope):
        assert a[0, 1, 2] == 0
        assert (a[:, 2, 2] == 0).all()
        assert np.isfinite(a).all()
    if not isinstance(part, loss.PoissonWeighted):  # whose weights are held
        check_gradient(lambda m: part(m, d.tolist(), v), mu)
    for shape in ((0, 3, 4), (1, 1), ()):
        assert part(np.ones(shape), np.ones(shape), 1.0).shape == shape
    assert part(np.float32(mu), np.float32(d), v).dtype == np.float32
    np.testing.assert_allclose(part(np.float32(mu), np.float32(d), v), value, rtol=2e-4, atol=1e-5)
    assert type(part)(**part.configuration()) == part
    with pytest.raises(ValueError, match=type(part).__name__):
        part(np.ones((2, 3)), np.ones((3, 2)))


def test_weighted_least_squares_are_unbiased(rng):
    """Zero slope in the mean at the truth, as for the likelihood; 1 % is seen with 5 standard errors."""
    mu = np.full(400_000, 20.0)
    d = rng.poisson(mu) + 1.5 * rng.standard_normal(mu.size)
    for part in (loss.PoissonWeighted(), loss.PoissonGaussian(), loss.PoissonGaussian(False), loss.GaussianNLL()):
        slope = part.value_and_slope(mu, d, 2.25)[1]
        assert abs(slope.mean()) < 5 * slope.std() / np.sqrt(mu.size)


# ---------------------------------------------------------------- EMCCD


@pytest.mark.parametrize(("mu", "v"), [(0.2, 0.03), (3.0, 0.03), (60.0, 0.3), (2000.0, 0.03), (1.0, 4.0)])
def test_emccd_probability_is_one_and_the_mean_score_zero(mu, v):
    part = loss.EMCCD()
    low, high = -9 * np.sqrt(v), mu + 9 * np.sqrt(2 * mu + v) + 45
    edges = np.unique(np.r_[np.linspace(low, 9 * np.sqrt(v), 40), np.linspace(9 * np.sqrt(v), high, 60)])
    x, w = np.polynomial.legendre.leggauss(20)
    half = np.diff(edges)[:, None] / 2
    d, w = (edges[:-1, None] + half * (x + 1)).ravel(), (half * w).ravel()
    nll, slope = part.value_and_slope(np.full(d.shape, mu), d, v)
    p = np.exp(-nll) * w
    np.testing.assert_allclose(p.sum(), 1, atol=1e-9)
    np.testing.assert_allclose((p * slope).sum(), 0, atol=1e-8)
    np.testing.assert_allclose((p * d).sum(), mu, rtol=1e-8)
    np.testing.assert_allclose((p * (d - mu) ** 2).sum(), 2 * mu + v, rtol=1e-7)


def test_emccd_is_the_sum_over_electrons(rng):
    """Poisson times gamma, convolved with the normal density by scipy's quadrature in the cumulative."""
    mu, v, k = 2.5, 0.04, np.arange(1, 60)
    y = np.linspace(1e-9, 60, 600_001)
    density = sum(stats.poisson.pmf(i, mu) * stats.gamma.pdf(y, i) for i in k)
    for d in (-0.3, 0.4, 2.0, 9.0):
        integrand = density * stats.norm.pdf(d - y, scale=np.sqrt(v))
        likelihood = np.exp(-mu) * stats.norm.pdf(d, scale=np.sqrt(v)) + np.trapezoid(integrand, y)
        np.testing.assert_allclose(loss.EMCCD()(np.array([mu]), np.array([d]), v), -np.log(likelihood), atol=1e-7)
    d = np.array([0.3, 4.0, 700.0])  # no read noise: the closed form, through both branches of the Bessel function
    z = 2 * np.sqrt(mu * d)
    expected = -np.log(special.i1e(z) * np.sqrt(mu / d)) + (np.sqrt(d) - np.sqrt(mu)) ** 2
    np.testing.assert_allclose(loss.EMCCD()(np.full(3, mu), d), expected, rtol=1e-12)


# ---------------------------------------------------------------- counts


@pytest.mark.parametrize("part", [loss.PoissonGaussian(), loss.PoissonGaussian(False), loss.GaussianNLL()], ids=repr)
def test_gradients_to_gain_and_offset(part, rng):
    mu, d = images(rng)
    counts = d / 0.6 + 100
    trained = loss.Counts(part, read_noise=2.4)
    check_gradient(lambda m, g, o: trained({"log_gain": g, "offset": o}, m, counts), mu, np.array(-0.5), np.array(99.0))
    maps = np.full((3, 4), -0.5), np.full((3, 4), 99.0)
    check_gradient(lambda g, o: trained({"log_gain": g, "offset": o}, mu, counts), *maps)


def test_the_likelihood_of_counts_is_best_at_the_true_camera(rng):
    """The mean slope to gain and offset is zero there, and only with the Jacobian; likelihoods beside it are worse."""
    camera, n = Camera(100, 0.5, 1.5), 30_000
    mu = rng.uniform(20, 200, n)
    counts = camera.expose(mu, rng, np.float64)
    part = loss.Counts(loss.PoissonGaussian(), read_noise=3.0)
    truth = part.init(gain=0.5, offset=100.0)
    tensors = {k: Tensor(np.full(n, v)) for k, v in truth.items()}
    part(tensors, mu, counts).sum().backward()
    for tensor in tensors.values():
        assert abs(tensor.grad.mean()) < 5 * tensor.grad.std() / np.sqrt(n)
    best = part(truth, mu, counts).mean()
    for other in ((0.48, 100.0), (0.52, 100.0), (0.5, 98.0), (0.5, 102.0)):
        assert part(part.init(*other), mu, counts).mean() > best
    with pytest.raises(ValueError, match="above 0"):
        part.init(gain=-1)


def test_noise_floor():
    camera, truth = Camera(100, 0.5, 2.0, qe=np.full((8, 9), 0.8)), np.full((5, 8, 9), 50.0)
    floor = loss.noise_floor(truth, camera, loss.MSE(), draws=200)
    assert abs(floor.value - (40 + 4)) < 5 * floor.error
    assert floor.error < 1
    emccd = Camera(200, 12.0, 50.0, em_gain=300.0)
    floor = loss.noise_floor(truth, emccd, draws=40)
    worse = np.mean([loss.EMCCD()(np.full(360, m), np.full(360, 50.0), 0.03).mean() for m in (30.0, 80.0)])
    assert floor.value < worse + 1
    with pytest.raises(ValueError, match="at least 2"):
        loss.noise_floor(truth, camera, draws=1)


# ---------------------------------------------------------------- self-limiting


def test_a_pixel_is_blind_to_itself(rng):
    limited = loss.SelfLimiting(width=4)
    p = limited.init(rng)
    data = rng.poisson(20.0, (1, 9, 11)).astype(np.float32)
    mean, w = limited.blind(p, data)
    moved = data.copy()
    moved[0, 4, 5] += 7
    moved[0, 0, 0] -= 7  # the image's level, which scales the input, stays
    other = limited.blind(p, moved)
    np.testing.assert_allclose(other[0][0, 4, 5], mean[0, 4, 5], rtol=1e-6)
    np.testing.assert_allclose(other[1][0, 4, 5], w[0, 4, 5], rtol=1e-6)
    assert abs(other[0][0, 4, 6] - mean[0, 4, 6]) > 1e-4


def test_the_limit_stops_a_model_that_copies_its_images(rng):
    """A free image per image: with the plain loss it becomes the data, with the limit it does not."""
    truth = 30 + 20 * np.sin(np.arange(16) / 3)[:, None] * np.ones((3, 16, 16))
    data = rng.poisson(truth).astype(np.float32)
    kept = {}
    for name, part in (("plain", None), ("limited", loss.SelfLimiting(width=8))):
        p = part.init(np.random.default_rng(0)) if part else {}
        free = np.full(data.shape, 30.0, np.float32)
        for _ in range(80):
            image, tensors = Tensor(free), {k: Tensor(v) for k, v in p.items()}
            value = part(tensors, image, data) if part else loss.poisson_gaussian(image, data, exact=False)
            value.sum().backward()
            free = np.maximum(free - 3.0 * image.grad, 1)
            p = {k: v - 3e-5 * np.clip(tensors[k].grad, -300, 300) for k, v in p.items()}
        kept[name] = np.mean((free - data) ** 2) / np.mean((truth - data) ** 2)
    assert kept["plain"] < 0.15  # nearly all of the noise is in the model
    assert kept["limited"] > 0.5


def test_the_limit_in_a_denoising_unet(tmp_path):
    """Four noisy images of filaments: a U-Net that may learns the noise itself, with the limit it does not."""
    rng, shape = np.random.default_rng(0), (32, 32)
    light = [np.histogram2d(*simulate.filaments(rng, shape, count=3).T, 32, [(0, 32), (0, 32)])[0] for _ in range(4)]
    truth = ndimage.gaussian_filter(np.array(light), (0, 1.3, 1.3))
    truth = 5 + 30 * truth / truth.max((1, 2), keepdims=True)
    data = rng.poisson(truth).astype(np.float32)
    off = {}
    for part in (loss.PoissonGaussian(exact=False), loss.SelfLimiting()):
        model = fit.FitModel(encoder.UNet(1, depth=1, width=16), mapper.Image(), renderer.Image(shape), part)
        model.init(np.random.default_rng(1))
        settings = {"batch": 4, "rate": 4e-3, "warmup": 20, "held_out": 0.0, "progress": False}
        training.Trainer(model, data, epochs=300, **settings).run()
        image = model.predict(data)["image"]
        noise = ((data - truth) ** 2).mean()
        off[type(part).__name__] = ((image - data) ** 2).mean() / noise, ((image - truth) ** 2).mean() / noise
    from_data, from_truth = off["PoissonGaussian"]
    assert from_data < 0.2  # a perfect model: 1 from the data, 0 from the truth
    assert from_truth > 0.8
    from_data, from_truth = off["SelfLimiting"]
    assert from_data > 0.8
    assert from_truth < 0.75
    model.save(tmp_path / "model.npz")
    np.testing.assert_array_equal(fit.FitModel.load(tmp_path / "model.npz").predict(data)["image"], image)
