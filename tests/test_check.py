"""A model looked at: pictures of its parts, one figure of it and its data, and its summary."""

import numpy as np
import pytest

from smlmcore import encoder, fit, mapper, psf, renderer
from smlmcore.autograd import Tensor, ops
from smlmcore.fit.check import random_parameters
from smlmcore.fit.summary import kept, tape
from smlmcore.layers.chain import part
from smlmcore.pictures import middle, residual, sections

SHAPE = (9, 9)


def gaussian(rng):
    return fit.gaussian2d(SHAPE, width=8, hidden=32).init(rng)


def volume_model(rng):
    """Deconvolution of one volume with a learned kernel."""
    table = encoder.Table((1, 1, 4, 6, 7), initial=1.0)
    kernel = rng.uniform(1, 2, (3, 3, 3))
    draw = renderer.Convolution(kernel, (4, 6, 7), learned=True)
    return fit.FitModel(table, mapper.Image(), draw).init(rng), kernel


def test_pictures_of_a_kernel_are_its_middle_planes(rng):
    model, kernel = volume_model(rng)
    pictures = model.pictures()
    kernel = kernel / kernel.sum()
    np.testing.assert_allclose(pictures["kernel xy"], kernel[1], rtol=1e-5)
    np.testing.assert_allclose(pictures["kernel xz"], kernel[:, 1], rtol=1e-5)


def test_pictures_of_other_parts(rng):
    optics = psf.Pupil(1.2, 0.6, 1.33, 1.33, 0.1, zernike={(2, 2): 0.5, (3, 1): -0.2}, samples=32)
    p = {"zernike": np.array([0.2, 0.0], np.float32)}
    shown = renderer.Pupil(optics, SHAPE).pictures(p)
    assert shown["Zernike coefficients (rad)"] == {"astigmatism": pytest.approx(1.0), "coma x": 0.0}
    phase = shown["pupil phase (rad)"]
    np.testing.assert_array_equal(np.isnan(phase), ~optics.inside)
    expected = optics.replace(zernike=[1.0, 0.0]).aberration()
    np.testing.assert_allclose(phase[optics.inside], expected[optics.inside], atol=1e-6)
    assert set(renderer.PSF(optics, SHAPE).pictures({})) == set(shown)
    assert renderer.PSF(psf.Gaussian2D(1.0), SHAPE).pictures({}) == {}

    template = rng.uniform(size=(7, 8)).astype(np.float32)
    draw = renderer.Template(template, (5, 5))
    np.testing.assert_allclose(draw.pictures(draw.init(rng))["template"], template, rtol=1e-6)
    spline = renderer.Spline((7, 7), (5, 5))
    assert spline.pictures(spline.init(rng))["spline"].shape == (28, 28)
    table = encoder.Table((6, 7), window=(2, 2))
    np.testing.assert_array_equal(table.pictures({"table": template})["object"], template)
    assert encoder.Table((6, 2)).pictures({"table": np.zeros((6, 2))}) == {}


def test_sections_middle_and_residual():
    volume = np.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(sections("a", Tensor(volume))["a xy"], volume[1])
    np.testing.assert_array_equal(sections("a", volume)["a xz"], volume[:, 1])
    np.testing.assert_array_equal(middle(volume[None])[0], volume[1])
    assert middle(volume) is volume
    np.testing.assert_array_equal(residual(np.array([3.0, 1.0]), np.array([3.0, -1.0]), 6.0), [0, 2 / np.sqrt(6)])


def test_check_model_shows_data_prediction_residual_pictures_and_renders(rng):
    model = gaussian(rng)
    images = rng.poisson(20.0, (5, *SHAPE)).astype(float)
    images[0, 2, 3] = np.nan
    images[1] = np.nan
    shown = [axis.images[0].get_array() for axis in fit.check_model(model, images, count=4).axes]
    data, prediction, spread, renders = (shown[4 * i : 4 * i + 4] for i in range(4))
    np.testing.assert_allclose(np.ma.filled(data[2], np.nan), images[2])
    values = model.predict(images[:4])
    expected = model.renderer({}, values)
    np.testing.assert_allclose(prediction[2], expected[2], rtol=1e-5)
    np.testing.assert_allclose(spread[2], (images[2] - expected[2]) / np.sqrt(expected[2]), rtol=1e-3, atol=1e-4)
    assert not any(np.allclose(r, p) for r, p in zip(renders, prediction, strict=True))
    again = fit.check_model(model, images, count=4).axes[12].images[0].get_array()
    np.testing.assert_array_equal(again, renders[0])


def test_check_model_of_a_volume_and_of_one_image(rng):
    model, _ = volume_model(rng)
    figure = fit.check_model(model, np.ones((1, 4, 6, 7)), variance=2.0)
    titles = [axis.get_title() for axis in figure.axes]
    assert {"kernel xy", "kernel xz", "first image xy", "first image xz"} >= {t for t in titles if t}
    assert "kernel xz" in titles
    figure.savefig("/dev/null", format="png")


def test_check_model_says_what_is_wrong(rng):
    with pytest.raises(ValueError, match="no images"):
        fit.check_model(gaussian(rng), np.ones((0, *SHAPE)))
    with pytest.raises(ValueError, match=r"expected \(n, 9, 9\)"):
        fit.check_model(gaussian(rng), np.ones((2, 5, 5)))
    with pytest.raises(ValueError, match="init"):
        fit.check_model(fit.gaussian2d(SHAPE), np.ones((2, *SHAPE)))


def test_random_parameters_follow_the_specification(rng):
    to = {
        "x": mapper.Parameter.between(2.0, 6.0),
        "photons": mapper.Parameter("exp", 500.0),
        "z": mapper.Parameter(offset=0.3, fitted=False),
    }
    model = fit.FitModel(None, mapper.Direct(to), None)
    values = {"x": np.full(500, 4.0), "z": np.full(500, 0.3), "photons": np.ones(500), "background": np.arange(500.0)}
    found = random_parameters(model, values, rng)
    assert 2 < found["x"].min() < 2.5 < 5.5 < found["x"].max() < 6
    assert np.log(found["photons"] / 500).std() == pytest.approx(1, abs=4 / np.sqrt(2 * 500))
    np.testing.assert_array_equal(found["z"], values["z"])
    np.testing.assert_array_equal(np.sort(found["background"]), values["background"])
    assert not np.array_equal(found["background"], values["background"])


def test_summary_counts(rng):
    model = gaussian(rng)
    text = model.summary()
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines()[1:-1] if not line.startswith(" ")}
    count = {name: sum(v.size for v in part(model.parameters, name).values()) for name in ("encoder", "mapper")}
    assert int(lines["encoder"][-2].replace(",", "")) == count["encoder"]
    own = [line.split() for line in text.splitlines() if line.startswith("  ")]
    assert len(own) == len(model.parameters)
    assert sum(int(line[-2].replace(",", "")) for line in own) == count["encoder"] + count["mapper"]
    total, size = (sum(getattr(v, what) for v in model.parameters.values()) for what in ("size", "nbytes"))
    assert text.splitlines()[-1].startswith(f"{total:,} parameters, {size / 1024:,.1f} KiB")
    assert "(n, 9, 9)" in text
    assert fit.gaussian2d(SHAPE, width=8, hidden=32).summary().splitlines()[-1] == text.splitlines()[-1]
    assert volume_model(rng)[0].summary().count("  (n, 4, 6, 7)") == 2


def test_what_a_tape_keeps():
    x, w = Tensor(np.ones(100)), Tensor(np.ones(100))
    y = ops.exp(x * w)  # the product keeps x and w, exp its value
    assert [node.name for node in tape(y)] == ["multiply", "exp"]
    assert kept(y, [x.data, w.data]) == 800
    assert kept(y, []) == 2400
