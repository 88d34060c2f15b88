"""Checkpoints: what is written comes back, and a training that was killed goes on as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import smlmcore
from smlmcore import fit, layers
from smlmcore.autograd import ops
from smlmcore.files import DataError
from smlmcore.training import Callback, Trainer, checkpoint

HERE = Path(smlmcore.__file__).parents[1]
NAMES = ("w", "v")


class Curve:
    """A small model with dropout: all that training draws comes from the trainer's generator."""

    def __init__(self):
        self.parameters = {"w": np.linspace(-1, 1, 8), "v": np.linspace(1, 2, 8)}

    def check(self, images, variance):
        return np.asarray(images, float), np.asarray(variance, float)

    def objective(self, p, images, variance, rows):
        hidden = layers.Dropout(0.2)({}, ops.tanh(images[:, None] * p["w"]))
        return ops.square((hidden * p["v"]).sum(1) - np.sin(3 * images)).mean()


IMAGES = np.random.default_rng(0).uniform(-1, 1, 100)


class Losses(Callback):
    def __init__(self, stop_after=None):
        self.losses, self.stop_after = [], stop_after

    def step(self, trainer, record):
        self.losses.append(record["loss"])
        if record["step"] == self.stop_after:
            raise RuntimeError("power is gone")


def curve(folder=None, stop_after=None, **settings):
    watch = Losses(stop_after)
    settings = {"epochs": 6, "batch": 16, "rate": 0.05, "save_every": 1, "callbacks": [watch], **settings}
    return Trainer(Curve(), IMAGES, folder=folder, **settings), watch


def test_what_is_written_comes_back(tmp_path):
    a = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    state = np.random.default_rng(5).bit_generator.state
    values = {
        "parameters": {"encoder.0.weight": a, "b": np.zeros((0, 2))},
        "state": ((), {"count": 3, "m": {"encoder.0.weight": a.T}}, []),
        "same": a,
        "best": (np.inf, {}),
        "losses": [0.1, 1 / 3, np.nan],
        "rng": state,
        "nothing": None,
        "scalar": np.float32(0.1),
    }
    checkpoint.write(tmp_path / "a.npz", values)
    back = checkpoint.read(tmp_path / "a.npz")
    assert back["rng"] == state
    assert back["losses"][:2] == [0.1, 1 / 3]
    assert np.isnan(back["losses"][2])
    assert back["best"] == (np.inf, {})
    assert back["state"][::2] == ((), [])
    assert back["state"][1]["count"] == 3
    assert back["nothing"] is None
    assert back["scalar"] == np.float32(0.1)
    np.testing.assert_array_equal(back["state"][1]["m"]["encoder.0.weight"], a.T)
    assert back["parameters"]["encoder.0.weight"] is back["same"]  # an array is kept once
    assert back["same"].dtype == np.float32
    assert back["parameters"]["b"].shape == (0, 2)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:  # readable without this library
        assert json.loads(str(file["header"]))["format"] == checkpoint.FORMAT


def test_other_files_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.savez(tmp_path / "newer.npz", header=np.array(json.dumps({"format": 99, "values": {}})))
    (tmp_path / "text.npz").write_text("hello")
    checkpoint.write(tmp_path / "half.npz", {"a": np.zeros(1000)})
    (tmp_path / "half.npz").write_bytes((tmp_path / "half.npz").read_bytes()[:2000])
    for name in ("other", "newer", "text", "half", "absent"):
        with pytest.raises(DataError, match=name):
            checkpoint.read(tmp_path / f"{name}.npz")


SETTINGS = [
    {},
    {"average": 0.9, "schedule": "plateau", "validate_every": 2},
    {"rates": {"w": 0.1}, "schedule": "one_cycle", "held_out": 0.0},
    {"schedule": "constant", "patience": 3, "epochs": 20},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("after", [1, 5, 7, 13])  # 5 steps in an epoch of 80 images, 7 in one of 100
def test_resume_is_exact(tmp_path, settings, after):
    whole, all_losses = curve(tmp_path / "whole", **settings)
    history = whole.run()
    first, before = curve(tmp_path / "a", stop_after=after + 1, **settings)
    with pytest.raises(RuntimeError, match="power"):
        first.run()
    second, rest = curve(tmp_path / "a", resume=True, **settings)
    assert second.step == after
    again = second.run()
    assert before.losses[:after] + rest.losses == all_losses.losses
    for name in ("epoch", "step", "train", "validation", "rate"):
        np.testing.assert_array_equal(again[name], history[name])
    for name in NAMES:
        np.testing.assert_array_equal(second.model.parameters[name], whole.model.parameters[name])
        np.testing.assert_array_equal(second.parameters[name], whole.parameters[name])
    assert second.best[0] == whole.best[0]
    assert second.stopped == whole.stopped
    best = checkpoint.read(tmp_path / "a" / "best.npz")["parameters"]
    np.testing.assert_array_equal(best["w"], whole.model.parameters["w"])


def test_a_finished_training_can_be_made_longer(tmp_path):
    first, _ = curve(tmp_path, epochs=2, schedule="constant", warmup=0)
    first.run()
    longer, rest = curve(tmp_path, epochs=4, schedule="constant", warmup=0, resume=True)
    longer.run()
    whole, losses = curve(None, epochs=4, schedule="constant", warmup=0)
    whole.run()
    assert rest.losses == losses.losses[10:]
    done, rest = curve(tmp_path, epochs=4, schedule="constant", warmup=0, resume=True)
    assert done.run()["epoch"] == [1, 2, 3, 4]
    assert rest.losses == []


def test_another_training_is_not_resumed(tmp_path):
    curve(tmp_path, epochs=1)[0].run()
    with pytest.raises(DataError, match="resume=True"):
        curve(tmp_path)
    for settings, message in (({"batch": 8}, "batch was 16, is 8"), ({"seed": 1}, "seed was 0, is 1")):
        with pytest.raises(DataError, match=message):
            curve(tmp_path, resume=True, **settings)
    other = IMAGES.copy()
    other[3] += 1
    with pytest.raises(DataError, match="images"):
        Trainer(Curve(), other, batch=16, folder=tmp_path, resume=True)
    checkpoint.write(tmp_path / "last.npz", {"parameters": {}})
    with pytest.raises(DataError, match="no checkpoint of a training"):
        curve(tmp_path, resume=True)


def test_best_is_a_model_that_loads(tmp_path):
    images = np.random.default_rng(0).poisson(5.0, (40, 7, 7))
    model = fit.gaussian2d((7, 7), width=8, hidden=16)
    Trainer(model, images, epochs=2, batch=16, folder=tmp_path).run()
    loaded = fit.FitModel.load(tmp_path / "best.npz")
    for name, value in loaded.predict(images).items():
        np.testing.assert_array_equal(value, model.predict(images)[name])


def test_ctrl_c_finishes_the_step_and_saves(tmp_path):
    class Press(Callback):
        def step(self, trainer, record):
            if record["step"] == 8:
                signal.raise_signal(signal.SIGINT)

    watch = Losses()
    run = Trainer(Curve(), IMAGES, epochs=6, batch=16, rate=0.05, folder=tmp_path, callbacks=[Press(), watch])
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"after 8 steps and saved in .*resume=True goes on"):
        run.run()
    assert signal.getsignal(signal.SIGINT) is before
    assert len(watch.losses) == 8
    whole, losses = curve()
    whole.run()
    second, rest = curve(tmp_path, resume=True)
    second.run()
    assert watch.losses + rest.losses == losses.losses
    alone = Trainer(Curve(), IMAGES, epochs=6, batch=16, rate=0.05, callbacks=[Press(), watch])
    with pytest.raises(KeyboardInterrupt, match=r"another run\(\) goes on"):
        alone.run()
    np.testing.assert_array_equal(alone.run()["train"], whole.history["train"])


CHILD = """
import sys
import numpy as np
from smlmcore import fit
from smlmcore.training import Callback, Trainer

class Write(Callback):
    def step(self, trainer, record):
        with open(sys.argv[2], "a") as file:
            file.write(f"{record['step']} {record['loss']!r}\\n")

rng = np.random.default_rng(0)
images = rng.poisson(5.0 + 50.0 * rng.random((300, 1, 1)) * np.hanning(9) * np.hanning(9)[:, None])
model = fit.gaussian2d((9, 9), width=8, hidden=32)
settings = {"epochs": 6, "batch": 16, "average": 0.9, "save_every": 4, "resume": True, "callbacks": [Write()]}
Trainer(model, images, folder=sys.argv[1], **settings).run()
"""


def losses_of(file):
    lines = file.read_text().splitlines() if file.exists() else []
    return {int(step): float(loss) for step, loss in map(str.split, lines)}


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_and_resumed(tmp_path):
    """kill -9 in the midst of an epoch, at whatever step it comes; one thread: bit for bit the same."""
    one = {**os.environ, **{f"{name}_NUM_THREADS": "1" for name in ("NUMBA", "OPENBLAS", "OMP", "MKL")}}
    command = [sys.executable, "-c", CHILD]
    options = {"env": {**one, "PYTHONPATH": str(HERE)}, "cwd": tmp_path}
    subprocess.run([*command, "whole", "whole.txt"], check=True, **options)
    with subprocess.Popen([*command, "killed", "killed.txt"], **options) as process:
        while len(losses_of(tmp_path / "killed.txt")) < 23:
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
    killed = losses_of(tmp_path / "killed.txt")
    subprocess.run([*command, "killed", "resumed.txt"], check=True, **options)
    whole, resumed = losses_of(tmp_path / "whole.txt"), losses_of(tmp_path / "resumed.txt")
    assert len(whole) == 6 * 15
    assert process.returncode == -signal.SIGKILL
    assert 20 < min(resumed) <= len(killed) + 1 < 90
    assert {**killed, **resumed} == whole
    assert all(whole[step] == loss for step, loss in killed.items())
    with np.load(tmp_path / "whole/best.npz") as a, np.load(tmp_path / "killed/best.npz") as b:
        assert all(np.array_equal(a[name], b[name]) for name in a.files)


def test_a_source_is_resumed_exactly(tmp_path):
    class Draws:
        def draw(self, rng, n):
            return rng.uniform(-1, 1, n), 0.0, None

    def train(folder, stop_after=None, **settings):
        watch = Losses(stop_after)
        settings = {"epochs": 3, "steps": 5, "batch": 16, "save_every": 1, "callbacks": [watch], **settings}
        return Trainer(Curve(), Draws(), folder=folder, **settings), watch

    whole, losses = train(None)
    whole.run()
    first, _ = train(tmp_path, stop_after=8)
    with pytest.raises(RuntimeError, match="power"):
        first.run()
    second, rest = train(tmp_path, resume=True)
    np.testing.assert_array_equal(second.run()["validation"], whole.history["validation"])
    assert rest.losses == losses.losses[7:]
