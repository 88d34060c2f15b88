"""train, predict, denoise and deconvolve on the command line: from files to files, with a status that tells."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile

import smlmcore
from smlmcore import cli, data, denoising, fit, psf, testing, training
from smlmcore.camera import Camera
from smlmcore.training import checkpoint

HERE = Path(smlmcore.__file__).parents[1]
SHAPE = (9, 9)
CAMERA = Camera(100, 0.5, 1.5, 0.1)
CONFIG = """
images: spots.tif
model: {preset: gaussian2d, width: 8, hidden: 32}
training: {epochs: 2, batch: 64}
"""


def run(capsys, *argv):
    try:
        status = cli.main([str(a) for a in argv])
    except SystemExit as stop:  # argparse leaves this way
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err


def one_line(text):
    return text.count("\n") == 1 and "Traceback" not in text


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture(scope="module")
def spots():
    """Counts of isolated molecules, and their x."""
    rng = np.random.default_rng(0)
    n = 300
    truth = {"x": 4 + rng.uniform(-1, 1, n), "y": 4 + rng.uniform(-1, 1, n), "photons": np.full(n, 2000.0)}
    truth |= {"background": np.full(n, 10.0), "sigma": rng.uniform(1.1, 1.5, n)}
    return CAMERA.expose(psf.Gaussian2D().render(truth, SHAPE), rng), truth["x"]


@pytest.fixture
def config(tmp_path, spots):
    data.write_tiff(tmp_path / "spots.tif", [spots[0]], spots[0].shape, np.uint16, CAMERA)
    (tmp_path / "spots.yaml").write_text(CONFIG)
    return tmp_path / "spots.yaml"


def test_from_images_to_numbers(config, spots, capsys):
    pytest.importorskip("tensorboardX")
    folder = config.parent
    status, out, err = run(capsys, "train", config, "--log", folder / "log")
    assert (status, err) == (0, "")
    assert list((folder / "log").glob("events.*"))
    assert "240 trained on, 60 held out" in out
    results = folder / "spots.train"
    assert names(results) == ["best.npz", "camera.npz", "history.json", "last.npz", "settings.yaml"]
    assert json.loads((results / "history.json").read_text())["epoch"] == [1, 2]

    # the same in Python
    model = fit.gaussian2d(SHAPE, width=8, hidden=32)
    electrons = CAMERA.photoelectrons(spots[0])
    training.Trainer(model, electrons, CAMERA.variance, epochs=2, batch=64).run()
    expected = model.predict(electrons, CAMERA.variance)

    status, out, err = run(capsys, "predict", results, folder / "spots.tif", "-o", folder / "found.csv")
    assert (status, err) == (0, "")
    table = np.genfromtxt(folder / "found.csv", delimiter=",", names=True)
    assert table.dtype.names == ("image", *expected)
    for name, values in expected.items():
        np.testing.assert_allclose(table[name], values, rtol=1e-6)

    status, _, err = run(
        capsys, "predict", results / "best.npz", folder / "spots.tif", "-o", folder / "found.npz", "--refine",
        "--rendered", folder / "model.tif", "--quiet",
    )  # fmt: skip
    assert (status, err) == (0, "")
    with np.load(folder / "found.npz") as found:
        good = found["status"] == 0
        assert good.mean() > 0.9
        pulls = (found["x"] - spots[1])[good] / found["x_error"][good]
        assert 0.8 < np.sqrt(np.mean(pulls**2)) < 1.2
    rendered = tifffile.imread(folder / "model.tif")
    assert rendered.shape == electrons.shape
    assert abs((electrons - rendered).mean()) < 0.1


def test_images_without_metadata_are_of_the_camera_of_the_training(config, spots, capsys):
    folder = config.parent
    run(capsys, "train", config, "--quiet")
    np.save(folder / "bare.npy", spots[0])
    for images in ("spots.tif", "bare.npy"):
        run(capsys, "predict", folder / "spots.train", folder / images, "-o", folder / f"{images}.npz", "--quiet")
    with np.load(folder / "spots.tif.npz") as a, np.load(folder / "bare.npy.npz") as b:
        assert all(np.array_equal(a[name], b[name]) for name in a.files)


def test_trained_again_it_goes_on_or_refuses(config, capsys):
    assert run(capsys, "train", config, "--quiet")[0] == 0
    results = config.with_suffix(".train")
    first = json.loads((results / "history.json").read_text())["train"]
    config.write_text(CONFIG.replace("epochs: 2", "epochs: 3"))
    assert run(capsys, "train", config, "--quiet")[0] == 0
    history = json.loads((results / "history.json").read_text())
    assert history["epoch"] == [1, 2, 3]
    assert history["train"][:2] == first
    config.write_text(CONFIG.replace("batch: 64", "batch: 32"))
    before = (results / "last.npz").read_bytes()
    status, _, err = run(capsys, "train", config)
    assert status == 2
    assert "other settings" in err
    assert one_line(err)
    assert (results / "last.npz").read_bytes() == before
    assert run(capsys, "train", config, "--quiet", "--overwrite")[0] == 0
    assert json.loads((results / "history.json").read_text())["epoch"] == [1, 2]


def test_parts_of_a_model(config, capsys):
    config.write_text(
        """
images: spots.tif
model:
  encoder: {class: Conv, width: 8, hidden: 32}
  mapper:
    class: Direct
    solve: [photons, background]
    parameters: {x: {activation: tanh, offset: 4, scale: 2.7}, y: {activation: tanh, offset: 4, scale: 2.7}}
  renderer: {class: PSF, psf: {class: Gaussian2D, sigma: 1.3}}
  loss: {class: PoissonGaussian, exact: false}
training: {epochs: 1, batch: 64}
"""
    )
    assert run(capsys, "train", config, "--quiet") == (0, "", "")
    model = fit.FitModel.load(config.parent / "spots.train" / "best.npz")
    assert model.encoder.outputs == 2
    assert model.psf.configuration()["sigma"] == 1.3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("spots.tif", "absent.tif"), "no such file"),
        (("epochs: 2", "epochs: 0"), "epochs=0"),
        (("epochs: 2", "epoch: 2"), "the setting 'epoch'"),
        (("gaussian2d", "gaussian9d"), "preset 'gaussian9d'"),
        (("width: 8", "girth: 8"), "girth"),
        (("preset: gaussian2d, width: 8, hidden: 32", "encoder: {class: Conv}"), "lacks mapper and renderer"),
        (("model:", "modell:"), "'model' is missing"),
        (("{preset: gaussian2d, width: 8, hidden: 32}", "gaussian2d"), "names and values"),
        (("training:", "camera: {offset: 100}\ntraining:"), "no error"),
        (("training:", "camera: {offset: 100, again: 2}\ntraining:"), "'again'"),
        (("training:", "camera: absent.npz\ntraining:"), "absent.npz"),
        (("training: {", "training: {schedule: jazz, "), "schedule='jazz'"),
        (("images:", "images: ["), "no valid YAML"),
    ],
)
def test_mistakes_in_the_file(config, capsys, change, message):
    config.write_text(CONFIG.replace(*change))
    status, out, err = run(capsys, "train", config, "--quiet")
    if message == "no error":  # the gain is in the file's metadata
        assert (status, out, err) == (0, "", "")
        return
    assert (status, out) == (2, "")
    assert message in err
    assert one_line(err)
    assert not list(config.parent.glob("spots.train/*"))


@pytest.mark.skipif("cuda" in testing.bodies(), reason="there is a GPU here")
def test_without_a_gpu_one_line_says_so(config, capsys):
    status, out, err = run(capsys, "train", config, "--device", "gpu")
    assert (status, out) == (2, "")
    assert "CuPy" in err
    assert one_line(err)


def test_a_file_in_the_place_of_the_folder(config, capsys):
    status, _, err = run(capsys, "train", config, "--out", config, "--quiet")
    assert status == 2
    assert "is a file" in err
    assert config.read_text() == CONFIG


def test_data_without_information_are_named_at_the_start(config, spots, capsys):
    images = CAMERA.photoelectrons(spots[0])
    images[7, 2, 2] = np.nan  # one masked pixel is fine
    images[11, 0, 0] = np.inf
    images[240] = np.nan
    np.save(config.parent / "spots.npy", images)
    config.write_text(CONFIG.replace("spots.tif", "spots.npy"))
    status, _, err = run(capsys, "train", config, "--quiet")
    assert status == 2
    assert "infinite pixels in images 11:" in err
    images[11] = 1
    np.save(config.parent / "spots.npy", images)
    status, _, err = run(capsys, "train", config, "--quiet")
    assert status == 2
    assert "nothing but NaN in images 240:" in err
    assert one_line(err)


def test_a_loss_that_explodes_has_status_3_and_keeps_the_best(config, spots, capsys, monkeypatch):
    objective, calls = fit.FitModel.objective, []

    def explode(self, p, images, variance, rows):
        calls.append(rows)
        return objective(self, p, images, variance, rows) * (np.inf if len(calls) == 7 else 1)

    monkeypatch.setattr(fit.FitModel, "objective", explode)  # 4 steps and a validation in an epoch
    status, out, err = run(capsys, "train", config, "--quiet")
    assert (status, out) == (3, "")
    assert "loss of inf in epoch 2, step 2 of 4, images " + str(min(calls[6])) in err
    assert one_line(err)
    monkeypatch.undo()
    kept = {}

    class Keep(training.Callback):
        def epoch(self, trainer, record):
            kept.setdefault("first", trainer.model.parameters)

    model = fit.gaussian2d(SHAPE, width=8, hidden=32)
    electrons = CAMERA.photoelectrons(spots[0])
    training.Trainer(model, electrons, CAMERA.variance, epochs=2, batch=64, callbacks=[Keep()]).run()
    best = fit.FitModel.load(config.parent / "spots.train" / "best.npz").parameters
    assert all(np.array_equal(best[name], value) for name, value in kept["first"].items())


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_what_was_learned(config, capsys, number, status):
    config.write_text(CONFIG.replace("epochs: 2", "epochs: 500, schedule: constant, save_every: 1"))
    command = [sys.executable, "-m", "smlmcore", "train", config]
    results = config.with_suffix(".train")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=HERE) as process:
        while not (results / "last.npz").exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        err = process.communicate()[1]
    assert process.returncode == status
    assert "Traceback" not in err
    if number == signal.SIGINT:
        assert "the same command goes on" in err
        assert one_line(err)
    steps = checkpoint.read(results / "last.npz")["step"]
    assert steps > 0
    config.write_text(config.read_text().replace("epochs: 500", f"epochs: {steps // 4 + 1}"))
    assert run(capsys, "train", config, "--quiet") == (0, "", "")
    assert names(results) == ["best.npz", "camera.npz", "history.json", "last.npz", "settings.yaml"]


def test_predict_names_mistakes(config, capsys):
    folder = config.parent
    np.savez(folder / "other.npz", a=np.zeros(2))
    (folder / "text.npz").write_text("hello")
    fit.gaussian2d((7, 7), width=8, hidden=16).init(np.random.default_rng(0)).save(folder / "small.npz")
    before = names(folder)
    for model, out, message in (
        ("absent.npz", "a.csv", "absent.npz: no such file"),
        ("other.npz", "a.csv", "is no model"),
        ("text.npz", "a.csv", "text.npz"),
        ("small.npz", "a.csv", "(n, 7, 7)"),
        ("small.npz", "a.txt", "end its name in .csv or .npz"),
        ("small.npz", "other.npz", "exists already"),
    ):
        status, text, err = run(capsys, "predict", folder / model, folder / "spots.tif", "-o", folder / out)
        assert (status, text) == (2, "")
        assert message in err
        assert one_line(err)
    assert names(folder) == before


def blurred(shape, kernel_shape, rng):
    from smlmcore.renderer import convolve

    sharp = np.zeros(shape)
    sharp[tuple(n // 2 for n in shape)] = 5000
    axes = [np.exp(-0.5 * ((np.arange(k) - k // 2) / 1.2) ** 2) for k in kernel_shape]
    kernel = np.multiply.outer(np.multiply.outer(*axes[:2]), axes[2]) if len(axes) == 3 else np.outer(*axes)
    return rng.poisson(convolve(sharp, kernel / kernel.sum(), "same") + 2.0), kernel


def test_deconvolve(tmp_path, capsys, rng):
    image, kernel = blurred((24, 20), (7, 7), rng)
    np.save(tmp_path / "image.npy", np.stack([image, image]))
    np.save(tmp_path / "kernel.npy", kernel)
    volume, thick = blurred((9, 16, 18), (5, 5, 5), rng)
    np.save(tmp_path / "volume.npy", volume)
    np.save(tmp_path / "thick.npy", thick)
    for name, by, source in (("image", "kernel", image), ("volume", "thick", volume)):
        status, out, err = run(
            capsys, "deconvolve", tmp_path / f"{name}.npy", tmp_path / f"{by}.npy", "--out", tmp_path / f"{name}.tif",
            "--iterations", 50, "--background", 2,
        )  # fmt: skip
        assert (status, err) == (0, "")
        assert "nats per pixel" in out
        found = tifffile.imread(tmp_path / f"{name}.tif")
        assert found.dtype == np.float32
        one = found[0] if name == "image" else found
        assert one.shape == source.shape
        assert one.max() > 3 * source.max()
        assert np.unravel_index(one.argmax(), one.shape) == tuple(n // 2 for n in source.shape)


def test_deconvolve_blind_writes_the_kernel(tmp_path, capsys, rng):
    image, kernel = blurred((24, 20), (7, 7), rng)
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "kernel.npy", kernel**0.5)  # too wide
    arguments = ["deconvolve", tmp_path / "image.npy", tmp_path / "kernel.npy", "-o", tmp_path / "object.tif"]
    arguments += ["--kernel-out", tmp_path / "found.tif", "--refine", 20, "--symmetric", "--background", 2, "--quiet"]
    assert run(capsys, *arguments) == (0, "", "")
    found, true = tifffile.imread(tmp_path / "found.tif"), kernel / kernel.sum()
    start = kernel**0.5 / (kernel**0.5).sum()
    assert np.abs(found - true).sum() < 0.5 * np.abs(start - true).sum()
    before = (tmp_path / "object.tif").read_bytes()
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert "exists already" in err
    assert (tmp_path / "object.tif").read_bytes() == before


def test_denoise(tmp_path, capsys, rng, monkeypatch):
    """The camera's maps, the kernel and the numbers reach `denoising.denoise`, whose images are written."""
    seen = {}

    def denoise(images, variance, **settings):
        seen.update(images=images, variance=variance, **settings)
        return denoising.Denoised(images - 1, None, {})

    monkeypatch.setattr(denoising, "denoise", denoise)
    maps = Camera(np.full((8, 10), 100.0), 0.5, rng.uniform(1, 4, (8, 10)), pixel_size=0.2)
    counts = maps.expose(np.full((3, 8, 10), 50.0), rng)
    maps.save(tmp_path / "camera.npz")
    np.save(tmp_path / "noisy.npy", counts)
    np.save(tmp_path / "psf.npy", np.ones((3, 3)))
    arguments = ["denoise", tmp_path / "noisy.npy", "--camera", tmp_path / "camera.npz", "--steps", 20, "--seed", 3]
    status, out, err = run(capsys, *arguments, "--psf", tmp_path / "psf.npy", "-o", tmp_path / "clean.tif")
    assert (status, err) == (0, "")
    assert "removed noise" in out
    np.testing.assert_array_equal(seen["images"], maps.photoelectrons(counts))
    np.testing.assert_array_equal(seen["variance"], maps.variance)
    np.testing.assert_array_equal(seen["psf"], np.ones((3, 3)))
    assert (seen["steps"], seen["seed"]) == (20, 3)
    with data.open_movie(tmp_path / "clean.tif") as movie:
        np.testing.assert_array_equal(movie.read(), maps.photoelectrons(counts) - 1)
        assert movie.camera["pixel_size"] == 0.2
    status, _, err = run(capsys, *arguments, "-o", tmp_path / "clean.png")
    assert status == 2
    assert "end its name in .tif" in err
    assert names(tmp_path) == ["camera.npz", "clean.tif", "noisy.npy", "psf.npy"]
