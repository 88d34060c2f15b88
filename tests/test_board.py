"""TensorBoard: what was logged is read back with TensorBoard's own reader, and is true."""

import io
import json
import sys

import numpy as np
import pytest

from smlmcore import config, encoder, fit, layers, mapper, plot, psf, renderer
from smlmcore.training import Board, Trainer, errors

pytest.importorskip("tensorboardX")
SHAPE, COUNT = (9, 9), 300


def make(**settings):
    rng = np.random.default_rng(0)
    truth = {
        "x": 4 + rng.uniform(-1, 1, COUNT),
        "y": 4 + rng.uniform(-1, 1, COUNT),
        "photons": np.full(COUNT, 2000.0),
        "background": np.full(COUNT, 10.0),
        "sigma": rng.uniform(1.1, 1.5, COUNT),
    }
    images = rng.poisson(psf.Gaussian2D().render(truth, SHAPE))
    model = fit.gaussian2d(SHAPE, width=8, hidden=32)
    return truth, Trainer(model, images, epochs=3, batch=32, **settings)


def read(folder):
    """TensorBoard's own reader of the folder."""
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = module.EventAccumulator(str(folder), size_guidance=dict.fromkeys(module.DEFAULT_SIZE_GUIDANCE, 0))
    return reader.Reload()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training that was logged after every epoch, and what was read back."""
    folder = tmp_path_factory.mktemp("board")
    truth, _ = make()
    board = Board(folder, truth, every=5, share=np.inf, count=4, hyperparameters={"author": "me"})
    _, trainer = make(callbacks=[board])
    history = trainer.run()
    return truth, trainer, board, history, read(folder)


def scalars(reader, name):
    return [(e.step, e.value) for e in reader.Scalars(name)]


def test_scalars_are_those_of_the_history(run):
    _, trainer, board, history, reader = run
    assert set(reader.Tags()["scalars"]) == set(board.history)
    for name, (steps, values) in board.history.items():
        found = scalars(reader, name)
        assert [step for step, _ in found] == steps
        np.testing.assert_array_equal([v for _, v in found], np.float32(values))
    assert board.history["loss/validation"] == (history["step"], history["validation"])
    assert board.history["training/images_per_second"][1] == history["images_per_second"]
    assert board.history["step/loss"][0] == list(range(5, trainer.step + 1, 5))
    assert {"step/rate", "step/gradient_norm"} <= set(board.history)


def test_errors_are_those_on_images_not_trained_on(run):
    truth, trainer, board, _, _ = run
    found = trainer.model.predict(trainer.images[trainer.held_out])
    own = {k: v[trainer.held_out] for k, v in truth.items()}
    difference = found["x"] - own["x"]
    assert board.history["RMSE/x"][1][-1] == pytest.approx(np.sqrt((difference**2).mean()))
    assert board.history["bias/x"][1][-1] == pytest.approx(difference.mean())
    model = psf.Gaussian2D()
    bound = model.crlb(np.stack([own[k] for k in model.names], 1), SHAPE)
    ratio = np.sqrt(((difference / bound[:, 0]) ** 2).mean())
    assert board.history["RMSE_over_CRLB/x"][1][-1] == pytest.approx(ratio)
    assert len(board.history["score/Jaccard"][1]) == 4  # after each epoch, and at the end
    assert board.history["score/Jaccard"][1][-1] == 1


def test_images(run):
    from PIL import Image

    _, trainer, _, _, reader = run
    names = {f"images/{name}" for name in ("data", "prediction", "residual", "reference")}
    assert names == set(reader.Tags()["images"])
    data = trainer.images[trainer.held_out[:4]]
    strip = np.asarray(Image.open(io.BytesIO(reader.Images("images/data")[-1].encoded_image_string)))
    zoom = 64 // 9
    assert strip.shape == (9 * zoom, 4 * 9 * zoom + 3 * 2, 3)
    inner = strip[zoom // 2 :: zoom, zoom // 2 : 9 * zoom : zoom].astype(int)
    green = inner[..., 1].ravel()  # grows with the value in viridis
    assert (np.diff(green[np.argsort(data[0].ravel(), kind="stable")]) >= 0).all()


def test_histograms_hold_every_parameter_and_gradient(run):
    _, trainer, _, _, reader = run
    names = set(trainer.model.parameters)
    assert set(reader.Tags()["histograms"]) == {f"{k}/{n}" for n in names for k in ("parameters", "gradients")}
    for name, values in trainer.model.parameters.items():
        last = reader.Histograms(f"parameters/{name}")[-1].histogram_value
        assert sum(last.bucket) == last.num == values.size
        assert last.sum == pytest.approx(float(values.sum(dtype=float)), abs=1e-6)


def test_text_and_hyperparameters(run):
    _, trainer, board, _, reader = run
    texts = {
        name: reader.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()
        for name in ("configuration", "command line", "versions", "summary", "profile")
    }
    assert json.loads(texts["configuration"])["encoder"]["width"] == 8
    assert f"numpy {np.__version__}" in texts["versions"]
    assert texts["summary"].split() == trainer.model.summary().split()
    assert sys.argv[0] in texts["command line"]
    assert "encoder" in texts["profile"]

    from tensorboard.plugins.hparams import plugin_data_pb2

    content = reader.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert start.hparams["encoder.width"].number_value == 8
    assert start.hparams["author"].string_value == "me"
    assert start.hparams["epochs"].number_value == 3
    content = reader.SummaryMetadata("_hparams_/experiment").plugin_data.content
    metrics = plugin_data_pb2.HParamsPluginData.FromString(content).experiment.metric_infos
    assert {m.name.tag for m in metrics} == {name for name in board.history if not name.startswith("step/")}


def test_graph_leads_from_images_and_parameters_to_the_loss(run):
    _, trainer, _, _, reader = run
    nodes = {node.name: node for node in reader.Graph().node}
    assert all(name in nodes for node in nodes.values() for name in node.input)
    shapes = {
        name: tuple(d.size for d in node.attr["_output_shapes"].list.shape[0].dim)
        for name, node in nodes.items()
        if node.op == "Parameter"
    }
    assert sorted(shapes.values()) == sorted(v.shape for v in trainer.model.parameters.values())
    assert shapes["encoder/features.0/weight"] == trainer.model.parameters["encoder.features.0.weight"].shape
    last = [n for n in nodes if not any(n in other.input for other in nodes.values())]
    assert len(last) == 1
    assert last[0].startswith("loss/")
    reached, ahead = set(), [last[0]]
    while ahead:
        name = ahead.pop()
        if name not in reached:
            reached.add(name)
            ahead += nodes[name].input
    assert reached == set(nodes)
    assert {name.partition("/")[0] for name in nodes} == {"images", "encoder", "mapper", "renderer", "loss"}


def test_profile_of_three_steps(run):
    _, _, board, _, _ = run
    trace = json.loads((board.folder / "trace.json").read_text())["traceEvents"]
    assert sum(e["name"] == "encoder" for e in trace if e["ph"] == "X") == 3
    assert {e["cat"] for e in trace if e["ph"] == "X"} == {"part", "forward", "backward", "kernel"}


def test_the_history_as_a_picture(run):
    _, _, board, history, _ = run
    figure = plot.history(board.history)
    assert {axis.get_title() for axis in figure.axes} == {name.partition("/")[0] for name in board.history}
    line = next(axis for axis in figure.axes if axis.get_title() == "loss").lines[0]
    np.testing.assert_array_equal(line.get_ydata(), history["train"])
    assert [axis.get_title() for axis in plot.history(history).axes] == ["loss", "learning rate", "speed"]


def test_a_board_changes_nothing_and_looks_rarely(run, tmp_path):
    _, trainer, _, history, _ = run
    board = Board(tmp_path, share=0)
    _, other = make(callbacks=[board])
    again = other.run()
    assert again["validation"] == history["validation"]
    for name, value in trainer.model.parameters.items():
        np.testing.assert_array_equal(other.model.parameters[name], value)
    reader = read(tmp_path)
    assert len(reader.Images("images/data")) == 1
    assert "images/reference" not in reader.Tags()["images"]
    assert board.seconds > 0


def test_notes_of_parts_and_pictures_of_a_learned_kernel(tmp_path, rng):
    class Loss:
        def __call__(self, prediction, images, variance):
            layers.note(weight_of_something=0.25)
            return (prediction - images) ** 2

        def configuration(self):
            return {}

    table = encoder.Table((6, 1, 8, 8), initial=1.0)
    model = fit.FitModel(table, mapper.Image(), renderer.Convolution(np.ones((3, 3)), (8, 8), learned=True), Loss())
    clean = rng.uniform(1, 5, (6, 8, 8))
    board = Board(tmp_path, {"image": clean}, every=1)
    Trainer(model, clean, epochs=2, batch=3, callbacks=[board]).run()
    assert board.history["step/weight_of_something"][1] == [0.25] * 4
    found = model.predict(clean)["image"]
    mse = ((found - clean) ** 2).mean()
    assert board.history["score/PSNR_dB"][1][-1] == pytest.approx(10 * np.log10(clean.max() ** 2 / mse))
    assert {"pictures/kernel", "pictures/first_image", "images/reference"} <= set(read(tmp_path).Tags()["images"])


def test_images_that_a_source_draws_come_with_their_truth(tmp_path):
    truth, _ = make()
    drawing = psf.Gaussian2D()

    class Source:
        def draw(self, rng, n):
            values = {k: v[:n] for k, v in truth.items()}
            return rng.poisson(drawing.render(values, SHAPE)).astype(np.float32), np.float32(0), values

    board = Board(tmp_path)
    model = fit.gaussian2d(SHAPE, width=8, hidden=32)
    Trainer(model, Source(), epochs=1, batch=32, steps=4, callbacks=[board]).run()
    assert {"RMSE/x", "RMSE_over_CRLB/y", "score/Jaccard"} <= set(board.history)


def test_a_model_that_is_no_fit_model(tmp_path):
    class Mean:
        def __init__(self):
            self.parameters = {"mean": np.zeros(1, np.float32)}

        def check(self, images, variance):
            return images, np.asarray(variance)

        def objective(self, p, images, variance, rows):
            return ((p["mean"] - images) ** 2).mean()

    board = Board(tmp_path)
    Trainer(Mean(), np.ones((8, 2, 2), np.float32), epochs=2, batch=4, callbacks=[board]).run()
    assert read(tmp_path).Tags()["histograms"] == ["parameters/mean", "gradients/mean"]


def test_folder_from_the_configuration(tmp_path, monkeypatch):
    monkeypatch.setenv("SMLMCORE_LOG_PATH_RUN", str(tmp_path / "runs"))
    assert config.get("LOG_PATH", "run") == str(tmp_path / "runs")
    first = Board().folder
    assert first.parent == tmp_path / "runs"
    first.mkdir(parents=True)
    assert Board().folder != first


def test_truth_of_other_images(tmp_path):
    _, trainer = make(callbacks=[Board(tmp_path, {"x": np.zeros(7)})])
    with pytest.raises(ValueError, match="7 true values of x for 300 images"):
        trainer.run()


def test_bad_settings_and_no_tensorboardx(monkeypatch):
    with pytest.raises(ValueError, match="every=0"):
        Board(every=0)
    with pytest.raises(ValueError, match="share=-1"):
        Board(share=-1)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"pip install 'smlmcore\[board\]'"):
        Board()


def test_errors_at_the_bound_are_one(rng):
    n, model = 20000, psf.Gaussian2D(1.3)
    truth = {"x": rng.uniform(3, 5, n), "y": rng.uniform(3, 5, n), "photons": np.full(n, 900.0)}
    truth["background"] = np.full(n, 5.0)
    bound = model.crlb(np.stack([truth[k] for k in model.names], 1), SHAPE, 4.0)
    found = {k: v + bound[:, i] * rng.normal(size=n) for i, (k, v) in enumerate(truth.items())}
    numbers = errors(found, truth, model, SHAPE, np.full(SHAPE, 4.0))
    for name in model.names:
        assert numbers[f"RMSE_over_CRLB/{name}"] == pytest.approx(1, abs=4 / np.sqrt(2 * n))


def test_several_emitters_are_paired_by_assignment():
    nan = np.nan
    truth = {"x": np.array([[2.0, 6.0], [4.0, nan], [nan, nan]]), "y": np.array([[2.0, 6.0], [4.0, 1.0], [nan, nan]])}
    truth["background"] = np.array([1.0, 2.0, 3.0])
    found = {
        "x": np.array([[6.1, 2.1, 8.0], [4.1, 0.0, 0.0], [5.0, 0.0, 0.0]]),  # another order, and one too many
        "y": np.array([[6.0, 2.0, 0.0], [4.0, 0.0, 0.0], [5.0, 0.0, 0.0]]),
        "p": np.array([[1.0, 0.9, 0.8], [0.7, 0.1, 0.2], [0.3, 0.5, 0.0]]),  # so the last image has none
        "background": np.array([1.5, 2.5, 3.5]),
    }
    numbers = errors(found, truth)
    assert numbers["score/Jaccard"] == 3 / 4
    assert numbers["bias/x"] == pytest.approx(0.1)
    assert numbers["RMSE/y"] == 0
    assert numbers["bias/background"] == pytest.approx(0.5)
    far = {**found, "x": found["x"] + 3}
    assert "RMSE/x" not in errors(far, truth, radius=1.0)
    assert errors(far, truth, radius=1.0)["score/Jaccard"] == 0


def test_one_emitter_is_compared_however_far_away():
    truth = {"x": np.array([2.0, 3.0]), "y": np.zeros(2)}
    numbers = errors({"x": np.array([2.0, 9.0]), "y": np.zeros(2)}, truth)
    assert numbers["RMSE/x"] == pytest.approx(6 / np.sqrt(2))
    assert numbers["score/Jaccard"] == 1 / 3
    assert errors({}, {}) == {}
    assert errors({"z": np.ones(3)}, {"z": np.zeros(3)}) == {"RMSE/z": 1.0, "bias/z": 1.0}
    empty = {"x": np.empty(0), "y": np.empty(0)}
    assert errors(empty, empty) == {"score/Jaccard": 0.0}
