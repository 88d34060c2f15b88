"""Template and spline renderers, the table encoder, image and centroid mappers, and models that link them."""

import json
from functools import partial

import numpy as np
import pytest

from smlmcore import encoder, fit, mapper, psf, renderer
from smlmcore.autograd import Tensor
from smlmcore.loss import PoissonGaussian
from smlmcore.testing import check_gradient
from smlmcore.training import Trainer

# ---- Template


def spot(shape, x, y, sigma=1.6):
    values = {"x": [x], "y": [y], "photons": 100.0, "background": 0.0, "sigma": sigma}
    return psf.Gaussian2D().render(values, shape)[0]


@pytest.mark.parametrize("method", ["fourier", "spline"])
def test_a_moved_template_is_the_object_at_another_place(method):
    draw = renderer.Template(spot((21, 24), 11.5, 10.0), (15, 16), method, learned=False)
    dx, dy = np.array([0.0, 0.37, -2.6]), np.array([0.0, -1.45, 1.9])
    images = draw({}, {"x": dx, "y": dy})
    expected = np.stack([spot((15, 16), 7.5 + a, 7.0 + b) for a, b in zip(dx, dy, strict=True)])
    # a Gaussian of sigma 1.6 is band-limited up to exp(-(pi sigma)^2 / 2) = 3e-6; the error of the cubic spline follows
    # the fourth power of the frequency: 1e-3 of the peak for this width
    np.testing.assert_allclose(images, expected, atol=expected.max() * (3e-5 if method == "fourier" else 3e-3))


@pytest.mark.parametrize("method", ["fourier", "spline"])
def test_gradients_of_a_template(method, rng):
    draw = renderer.Template(rng.uniform(1, 2, (7, 6)), (5, 6), method, blur=0.8)
    names = ("x", "y", "photons", "background")

    def images(template, log_blur, *values):
        return draw({"template": template, "log_blur": log_blur}, dict(zip(names, values, strict=True)))

    values = [rng.uniform(0.2, 0.7, 3) for _ in names]
    check_gradient(images, rng.uniform(1, 2, (7, 6)), np.array([-0.2]), *values)


def test_a_template_keeps_its_photons_and_its_blur_is_a_gaussian():
    draw = renderer.Template(spot((25, 25), 12, 12, 1.5), (25, 25), blur=2.0)
    p = draw.init(np.random.default_rng(0))
    values = {"x": np.array([0.3]), "y": np.array([0.0]), "photons": np.array([700.0]), "background": np.array([1.0])}
    assert abs(draw(p, values).sum() - 700 - 625) < 1e-2
    blurred = draw.template_of(p)
    expected = spot((25, 25), 12, 12, np.sqrt(1.5**2 + 2.0**2))  # widths add in squares, of the pixels but once
    assert np.abs(blurred - expected).max() < 0.05 * expected.max()


def test_volumes_have_a_shift_in_z():
    stack = np.zeros((4, 5, 6))
    stack[1, 2, 3] = 1
    draw = renderer.Template(stack, stack.shape, learned=False)
    moved = draw({}, {"z": np.array([1.0]), "y": np.array([2.0]), "x": np.array([-1.0])})[0]
    assert moved.shape == (4, 5, 6)
    assert np.unravel_index(moved.argmax(), moved.shape) == (2, 4, 2)


@pytest.mark.parametrize(
    ("template", "settings", "words"),
    [
        (np.ones((4, 9)), {}, "at least as large"),
        (np.ones(9), {}, "expected \\(y, x\\)"),
        (np.full((9, 9), np.nan), {}, "finite"),
        (np.ones((9, 9)), {"method": "linear"}, "method 'linear'"),
        (np.ones((9, 9)), {"blur": 0.0}, "blur=0.0"),
    ],
)
def test_templates_that_make_no_sense(template, settings, words):
    with pytest.raises(ValueError, match=words):
        renderer.Template(template, (5, 5), **settings)


def test_a_template_without_a_shift():
    with pytest.raises(ValueError, match="without y"):
        renderer.Template(np.ones((5, 5)), (5, 5))({}, {"x": np.zeros(1)})


# ---- Spline


def test_a_spline_through_an_image_draws_it_at_any_place():
    draw = renderer.Spline((17, 19), (11, 13))
    p = draw.fit_image(spot((17, 19), 9.0, 8.0) + 3.0)  # the level of the background is taken off
    x, y = np.array([6.0, 6.4, 4.9]), np.array([5.0, 4.3, 5.75])
    images = draw(p, {"x": x, "y": y, "photons": np.full(3, 100.0), "background": np.array([0.0, 0.0, 2.0])})
    expected = np.stack([spot((11, 13), a, b) for a, b in zip(x, y, strict=True)]) + np.array([0, 0, 2])[:, None, None]
    np.testing.assert_allclose(images, expected, atol=3e-3 * expected[0].max())
    np.testing.assert_allclose(draw.render(p), spot((17, 19), 9.0, 8.0) / 100, atol=1e-5)
    assert abs(draw.render(p, 3).sum() / 9 - 1) < 1e-3


def test_a_spline_in_three_dimensions_against_the_stack_it_was_made_from():
    model = psf.AstigmaticGaussian(sigma0=1.3, gamma=0.2, depth=0.4, z_range=(-0.8, 0.8))
    z = np.linspace(-0.6, 0.6, 13)
    values = {"x": np.full(13, 9.0), "y": np.full(13, 8.0), "photons": 1.0, "background": 0.0}
    draw = renderer.Spline((13, 17, 19), (11, 13), z_step=0.1)
    p = draw.fit_image(model.render({**values, "z": z}, (17, 19)))
    there = {"x": np.array([6.2, 5.7]), "y": np.array([5.1, 4.8]), "z": np.array([0.13, -0.27])}
    light = {"photons": np.full(2, 500.0), "background": np.zeros(2)}
    expected = model.render({**there, **light}, (11, 13))
    images = draw(p, {**there, **light})
    np.testing.assert_allclose(images, expected, atol=8e-3 * expected.max())
    np.testing.assert_allclose(images.sum((1, 2)), expected.sum((1, 2)), rtol=5e-3)  # photons do not follow z
    ends = {"x": np.array([6.0, 6.0]), "y": np.array([5.0, 5.0]), "z": np.array([0.6, 5.0])}
    first, last = draw(p, {**ends, **light})  # beyond the last plane: the last plane
    np.testing.assert_allclose(first, last)


@pytest.mark.parametrize("grid", [(9, 8), (3, 9, 8), (1, 9, 8)])
def test_gradients_of_a_spline(grid, rng):
    draw = renderer.Spline(grid, (5, 6), z_step=0.2)
    values = {"x": rng.uniform(2, 3, 2), "y": rng.uniform(2, 3, 2), "photons": rng.uniform(5, 9, 2)}
    values |= {"background": rng.uniform(1, 2, 2)}
    if len(grid) == 3:
        values["z"] = rng.uniform(0.02, 0.05, 2)

    def images(coefficients, *v):
        return draw({"coefficients": coefficients}, dict(zip(values, v, strict=True)))

    check_gradient(images, rng.uniform(0.5, 1, grid), *values.values())


@pytest.mark.parametrize("grid", [(13, 13), (3, 13, 13)])
def test_a_spline_below_zero_is_dark(grid, rng):
    """Where noise has been learned no photon arrives, so that a Poisson likelihood and its gradient stay finite."""
    draw = renderer.Spline(grid, (9, 9))
    coefficients = draw.init(rng)["coefficients"] + rng.normal(0, 0.2, grid).astype(np.float32)
    p = {"coefficients": Tensor(coefficients)}
    values = dict.fromkeys("xyz", np.full(2, 4.2, np.float32)) | {"photons": np.full(2, 3000, np.float32)}
    values["z"] = np.array([0.0, 0.6], np.float32)
    values["background"] = np.full(2, 0.5, np.float32)
    images = draw(p, values)
    assert images.data.min() == 0.5
    loss = PoissonGaussian()(images, np.full((2, 9, 9), 3, np.float32), 0.0).mean()
    loss.backward()
    assert np.isfinite(loss.data)
    assert np.isfinite(p["coefficients"].grad).all()
    assert abs(draw.render({"coefficients": coefficients}).sum() / (grid[0] if len(grid) == 3 else 1) - 1) < 1e-5


def test_splines_that_make_no_sense():
    with pytest.raises(ValueError, match="grid"):
        renderer.Spline((5,), (5, 5))
    with pytest.raises(ValueError, match="finite values"):
        renderer.Spline((5, 5), (5, 5)).fit_image(np.ones((5, 4)))
    with pytest.raises(ValueError, match="not brighter inside"):
        renderer.Spline((5, 5), (5, 5)).fit_image(np.ones((5, 5)))
    with pytest.raises(ValueError, match="without photons, background"):
        renderer.Spline((5, 5), (5, 5))({"coefficients": np.ones((5, 5))}, {"x": np.ones(1), "y": np.ones(1)})


# ---- Table


def test_rows_and_windows_and_their_gradients(rng):
    table = encoder.Table((5, 3), initial=[1.0, 2.0, 3.0], spread=0.1)
    p = {"table": Tensor(table.init(rng)["table"])}
    assert 0.05 < (p["table"].data - [1, 2, 3]).std() < 0.2
    index = np.array([4, 0, 4])
    (table(p, index) * np.array([[1.0], [10.0], [100.0]], np.float32)).sum().backward()
    np.testing.assert_array_equal(p["table"].grad[:, 0], [10, 0, 0, 0, 101])  # image 4 twice

    volume, whole = encoder.Table((4, 5, 6), window=(2, 3, 6)), rng.normal(size=(4, 5, 6))
    corners = np.array([[0, 0, 0], [2, 2, 0], [1, 1, 0]])
    np.testing.assert_array_equal(volume({"table": whole}, corners)[1], whole[2:, 2:])
    check_gradient(lambda t: volume({"table": t}, corners), whole)  # the windows overlap


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: encoder.Table((0, 2)), r"shape \(0, 2\)"),
        (lambda: encoder.Table((3, 2), window=(4, 1)), r"window \(4, 1\)"),
        (lambda: encoder.Table((3, 2), initial=np.ones(5)), r"initial values of shape \(5,\)"),
        (lambda: encoder.Table((3, 2))({"table": np.ones((3, 2))}, np.array([0, 3])), "from 0 to 3; expected 0 to"),
        (lambda: encoder.Table((3, 2))({"table": np.ones((3, 2))}, np.array([-1])), "from -1"),
        (lambda: encoder.Table((3, 2))({"table": np.ones((3, 2))}, np.array([0.0])), "index of float64"),
        (lambda: encoder.Table((3, 2), (1, 1))({"table": np.ones((3, 2))}, np.array([0])), "corners of windows"),
    ],
)
def test_tables_and_indices_that_make_no_sense(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# ---- mappers


def test_the_centroid_of_a_map(rng):
    m = mapper.Centroid(2, {"z": mapper.Parameter("linear"), "background": mapper.Parameter("exp", 2.0)}, 3.0)
    assert m.features == 5
    features = rng.normal(size=(3, 5, 7, 9))
    values = m({}, features)
    weights = np.log1p(np.exp(features[:, :2]))
    np.testing.assert_allclose(values["photons"], 3 * weights.sum((2, 3)), rtol=1e-5)
    np.testing.assert_allclose(values["x"], (weights.sum(2) @ np.arange(9)) / weights.sum((2, 3)), rtol=1e-6)
    np.testing.assert_allclose(values["y"], (weights.sum(3) @ np.arange(7)) / weights.sum((2, 3)), rtol=1e-6)
    np.testing.assert_allclose(values["z"], features[:, 2:4].mean((2, 3)))
    np.testing.assert_allclose(values["background"], 2 * np.exp(features[:, 4].mean((1, 2))))
    names = sorted(values)
    check_gradient(lambda f: sum(m({}, f)[k].sum() * (i + 1) for i, k in enumerate(names)), features)
    empty = m({}, np.full((1, 5, 7, 9), -200.0))  # exp(-200): the middle, not 0 / 0
    assert (float(empty["x"][0, 0]), float(empty["y"][0, 0])) == pytest.approx((4.0, 3.0))
    drawn = renderer.Emitters(psf.Gaussian2D(sigma=1.0), (7, 9))({}, {k: v for k, v in values.items() if k != "z"})
    assert drawn.shape == (3, 7, 9)


def test_a_centroid_with_photons_and_background_in_closed_form(rng):
    m = mapper.Centroid(1, {"sigma": mapper.Parameter("exp", 1.2, 0.1)}, solve=("photons", "background"))
    model = psf.Gaussian2D()
    draw = partial(model.render, shape=(11, 13))
    true = {"x": 5.0, "y": 4.0, "photons": np.array([900.0, 400.0]), "background": 3.0, "sigma": 1.2}
    maps = np.full((2, 2, 11, 13), -60.0)
    maps[:, 0, 4, 5], maps[:, 1] = 20.0, 0.0
    values = m({}, maps, draw(true), 2.0, draw)
    for name, value in true.items():
        np.testing.assert_allclose(values[name], np.broadcast_to(value, 2), rtol=1e-5)
    images = rng.poisson(draw(true)).astype(float)
    found = fit.FitModel(encoder.UNet(m.features, depth=1, width=4), m, renderer.PSF(model, (11, 13))).init(rng)
    assert {k: v.shape for k, v in found.predict(images).items()} == dict.fromkeys(model.names, (2,))
    for wrong in ({"emitters": 2}, {"parameters": {"photons": mapper.Parameter()}}):
        with pytest.raises(ValueError, match="expected one emitter, and names that have no channel"):
            mapper.Centroid(**({"emitters": 1, "solve": ("photons",)} | wrong))
    with pytest.raises(ValueError, match="needs the images"):
        m({}, maps)


def test_mappers_honour_how_parameters_are_specified(rng):
    parameters = {
        "sigma": mapper.Parameter(offset=1.3, fitted=False),
        "angle": mapper.Parameter("tanh", per="image"),
        "z": mapper.Parameter("linear"),
        "background": mapper.Parameter(offset=2.0, fitted=False),
    }
    features = rng.normal(size=(3, 5, 7, 9))
    m = mapper.Centroid(2, parameters)
    assert m.features == 5  # two maps, one channel for the angle, two for z
    values = m({}, features)
    np.testing.assert_array_equal(values["sigma"], np.full((3, 2), 1.3))
    np.testing.assert_allclose(values["angle"], np.tanh(features[:, 2].mean((1, 2))))
    np.testing.assert_allclose(values["z"], features[:, 3:].mean((2, 3)))
    np.testing.assert_array_equal(values["background"], [2.0] * 3)
    images = mapper.Image({"flat": parameters["sigma"], "image": parameters["z"]})({}, features[:, :1])
    np.testing.assert_array_equal(images["flat"], np.full((3, 7, 9), 1.3))
    np.testing.assert_array_equal(images["image"], features[:, 0])


@pytest.mark.parametrize(
    "part",
    [
        mapper.Direct({"x": mapper.Parameter.between(0, 9)}, solve=("photons", "background")),
        mapper.Image({"image": mapper.Parameter("softplus", scale=2.0)}),
        mapper.Centroid(2, {"z": mapper.Parameter("linear", per="image")}, 3.0),
        mapper.Centroid(1, solve=("photons", "background")),
        renderer.PSF(psf.EllipticGaussian2D(rotated=True), (7, 9)),
    ],
    ids=lambda part: type(part).__name__,
)
def test_parts_are_made_again_from_their_description(part):
    description = json.loads(json.dumps(fit.model.describe(part)))
    again = fit.model.build(description)
    assert type(again) is type(part)
    assert fit.model.describe(again) == fit.model.describe(part)


def test_channels_as_images():
    m = mapper.Image({"image": mapper.Parameter("softplus"), "offset": mapper.Parameter("linear", 1.0)})
    values = m({}, np.zeros((2, 2, 3, 4, 5)))
    assert values["image"].shape == values["offset"].shape == (2, 3, 4, 5)
    assert (values["offset"] == 1).all()
    with pytest.raises(ValueError, match=r"expected \(n, 2, \.\.\.\)"):
        m({}, np.zeros((2, 3, 4, 5)))
    with pytest.raises(ValueError, match=r"expected \(n, 2, y, x\)"):
        mapper.Centroid(2)({}, np.zeros((2, 3, 4, 5)))
    with pytest.raises(ValueError, match="emitters=0"):
        mapper.Centroid(0)


# ---- models


def shifted(n, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-1.5, 1.5, (2, n))
    images = np.stack([20 * spot((13, 14), 6.5 + a, 6.0 + b, 1.2) for a, b in zip(x, y, strict=True)])
    return images + 5.0, x, y


def test_a_template_and_the_shift_of_every_image_are_learned_together(tmp_path):
    images, x, y = shifted(48)
    columns = {name: mapper.Parameter("linear") for name in ("x", "y")}
    model = fit.FitModel(encoder.Table((48, 2)), mapper.Direct(columns), renderer.Template(images.mean(0), (13, 14)))
    trainer = Trainer(model, images, epochs=200, batch=48, rate=3e-2, decay=0.0, progress=False)
    assert len(trainer.held_out) == 0
    assert not trainer.feed.turns
    trainer.run()
    found = model.predict(images)
    assert (found["x"] - x).std() < 0.02
    assert (found["y"] - y).std() < 0.02
    np.testing.assert_array_equal(model.predict(images[[7]], index=[7])["x"], found["x"][[7]])
    model.save(tmp_path / "model.npz")
    again = fit.FitModel.load(tmp_path / "model.npz").predict(images)
    np.testing.assert_array_equal(again["x"], found["x"])
    with pytest.raises(TypeError, match=r"renderer\.Template has none"):
        model.refine(images)


def test_an_object_is_learned_through_a_known_kernel_in_three_dimensions(tmp_path, rng):
    truth = np.zeros((1, 5, 8, 9))
    truth[0, 2, 2:6, 4] = 200
    kernel = np.ones((3, 3, 3))
    images = renderer.convolve(truth, kernel / 27, "periodic") + 1.0
    draw = renderer.Convolution(kernel, (5, 8, 9), "periodic", background=1.0)
    to_image = mapper.Image({"image": mapper.Parameter("softplus", scale=20.0)})
    model = fit.FitModel(encoder.Table((1, 1, 5, 8, 9)), to_image, draw)
    start = float(model.init(rng).objective(model.parameters, images.astype(np.float32)))
    history = Trainer(model, images[:, None], epochs=200, rate=0.2, decay=0.0, progress=False).run()
    best = float(model.loss(images.astype(np.float32), images.astype(np.float32)).mean())
    assert history["train"][-1] - best < 0.02 * (start - best)
    model.save(tmp_path / "model.npz")
    again = fit.FitModel.load(tmp_path / "model.npz")
    np.testing.assert_array_equal(again.predict(images)["image"], model.predict(images)["image"])


def test_an_encoder_of_images_draws_many_emitters(rng):
    class Guess:  # the layout that an encoder with several emitters has: values (n, emitters)
        features = 3

        def init(self, rng):
            return {}

        def configuration(self):
            return {}

        def __call__(self, p, features, images=None, variance=0.0, draw=None):
            return {"x": features[:, :1] + 2.0, "y": features[:, 1:2] + 3.0, "photons": 50.0, "background": 1.0}

    model = fit.FitModel(encoder.Conv((9, 9), 3, width=8), Guess(), renderer.Emitters(psf.Gaussian2D(1.0), (9, 9)))
    images = rng.poisson(3.0, (6, 9, 9))
    trainer = Trainer(model, images, epochs=1, batch=3, progress=False)
    assert trainer.feed.turns
    assert np.isfinite(trainer.run()["train"][0])
