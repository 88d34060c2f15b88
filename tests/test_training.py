"""The training loop: it learns, it is reproducible, and it never looks at held-out images."""

import numpy as np
import pytest

from smlmcore import fit, layers, psf
from smlmcore.autograd import ops
from smlmcore.training import Callback, Trainer

SHAPE = (9, 9)


def images(n, seed=0):
    rng = np.random.default_rng(seed)
    truth = {
        "x": 4 + rng.uniform(-1, 1, n),
        "y": 4 + rng.uniform(-1, 1, n),
        "photons": np.full(n, 2000.0),
        "background": np.full(n, 10.0),
        "sigma": rng.uniform(1.1, 1.5, n),
    }
    return rng.poisson(psf.Gaussian2D().render(truth, SHAPE)), truth


def trainer(data, **settings):
    model = fit.gaussian2d(SHAPE, width=8, hidden=32)
    return Trainer(model, data, **{"epochs": 3, "batch": 64, **settings})


def test_training_on_images_alone_finds_the_positions():
    data, truth = images(2000)
    run = trainer(data, epochs=12)
    at_start = {k: v[run.held_out] for k, v in run.model.predict(data).items()}
    history = run.run()
    found = {k: v[run.held_out] for k, v in run.model.predict(data).items()}
    assert history["validation"][-1] < history["validation"][0]
    for name in ("x", "y"):
        before, after = (np.std(p[name] - truth[name][run.held_out]) for p in (at_start, found))
        assert after < before / 5


def test_same_seed_same_bits_other_seed_other_bits():
    data, _ = images(200)
    runs = [trainer(data, seed=s) for s in (0, 0, 1)]
    for run in runs:
        run.run()
    a, b, c = (run.model.parameters for run in runs)
    assert all(np.array_equal(a[k], b[k]) for k in a)
    assert any(not np.array_equal(a[k], c[k]) for k in a)


def test_held_out_images_do_not_change_what_is_learned():
    data, _ = images(200)
    first = trainer(data, epochs=1)
    other = data.copy()
    other[first.held_out] = 7
    second = trainer(other, epochs=1)
    first.run()
    second.run()
    assert all(np.array_equal(first.model.parameters[k], second.model.parameters[k]) for k in first.model.parameters)


def test_the_best_epoch_wins():
    data, _ = images(300)
    run = trainer(data, epochs=4, rate=0.05)  # so high that the loss goes up and down
    history = run.run()
    assert run.validate() == min(history["validation"])


@pytest.mark.parametrize("n", [1, 2, 7])
def test_very_few_images(n):
    data, _ = images(n)
    history = trainer(data, epochs=2).run()
    assert np.isfinite(history["train"]).all()


def test_masked_pixels_and_variance_maps():
    data, _ = images(60)
    data = data.astype(float)
    data[3, 2, 1] = np.nan
    history = trainer(data, variance=np.random.default_rng(0).uniform(0, 4, data.shape)).run()
    assert np.isfinite(history["validation"]).all()


def test_bad_settings():
    data, _ = images(5)
    with pytest.raises(ValueError, match="epochs=0"):
        trainer(data, epochs=0)
    with pytest.raises(ValueError, match="no images"):
        trainer(data[:0])


def test_norms_and_dropout_train():
    """The running means follow the batches, dropout draws in training, and neither does in prediction."""
    data, _ = images(200)
    plain = fit.gaussian2d(SHAPE)
    learned = []
    for rate in (0.0, 0.3):
        net = layers.chain(
            layers.Flatten(), layers.Linear(81, 8), layers.BatchNorm(8), layers.Dropout(rate), layers.Linear(8, 3)
        )
        model = fit.FitModel(net, plain.mapper, plain.renderer, plain.loss)
        history = Trainer(model, data, epochs=3, batch=50).run()
        assert np.isfinite(history["validation"]).all()
        p = model.parameters
        inner = data.reshape(200, 81) @ p["encoder.1.weight"] + p["encoder.1.bias"]
        means = inner.mean(0)
        assert np.corrcoef(p["encoder.2.mean"], means)[0, 1] > 0.99  # of weights that hardly moved in 12 steps
        np.testing.assert_array_equal(model.predict(data)["x"], model.predict(data)["x"])
        learned.append(p["encoder.1.weight"])
    assert not np.array_equal(*learned)


def test_a_loss_that_is_not_finite_ends_training_with_the_best_parameters():
    data, _ = images(200)
    run = trainer(data)
    steps, objective = [], run.model.objective

    def broken(p, images, variance, rows):
        steps.append(rows)
        return objective(p, images, variance, rows) * (np.nan if len(steps) == 6 else 1.0)

    run.model.objective = broken
    with pytest.raises(FloatingPointError, match="loss of nan in epoch 2, step 2 of 3, images ") as error:
        run.run()
    assert ", ".join(map(str, np.sort(steps[-1])[:10])) in str(error.value)
    assert run.validate() == trainer(data).run()["validation"][0]


class Watch(Callback):
    """Writes down all that it is told."""

    def __init__(self):
        self.told = []

    def start(self, trainer):
        self.told.append("start")

    def step(self, trainer, record):
        norm = np.sqrt(sum((g.astype(float) ** 2).sum() for g in trainer.gradients.values()))
        assert np.isclose(norm, record["gradient_norm"])
        assert trainer.tensors.keys() == trainer.gradients.keys() == trainer.model.parameters.keys()
        self.told.append(dict(record))

    def epoch(self, trainer, record):
        assert not trainer.tensors  # no graph is kept
        self.told.append(dict(record))

    def end(self, trainer):
        self.told.append("end")


def test_callbacks_are_told_and_change_nothing():
    data, _ = images(200)
    watch = Watch()
    watched, alone = trainer(data, callbacks=[watch]), trainer(data)
    history, other = watched.run(), alone.run()
    assert history["train"] == other["train"]
    assert watch.told[0] == "start"
    assert watch.told[-1] == "end"
    steps = [r for r in watch.told[1:-1] if "loss" in r]
    epochs = [r for r in watch.told[1:-1] if "train" in r]
    assert [r["step"] for r in steps] == list(range(1, 10))
    assert [r["epoch"] for r in steps] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [r["rate"] for r in steps] == [watched.schedule(i) for i in range(9)]
    for i, record in enumerate(epochs):
        assert record == {name: values[i] for name, values in history.items()}
        assert record["train"] == np.mean([r["loss"] for r in steps[3 * i : 3 * i + 3]])


def test_a_callback_stops_the_training():
    class Stop(Callback):
        def step(self, trainer, record):
            if record["step"] == 4:
                trainer.stop("enough")

    data, _ = images(200)
    run = trainer(data, callbacks=[Stop()])
    history = run.run()
    assert (run.step, run.stopped, history["step"]) == (4, "enough", [3, 4])
    assert run.validate() == min(history["validation"])


class Line:
    """The least a model needs: a line through points that a source draws, with the truth beside them."""

    def __init__(self):
        self.parameters = {"slope": np.zeros(1)}

    def objective(self, p, images, variance, truth):
        layers.note(largest=float(images.max()))
        return ops.square(p["slope"] * images - truth).mean()


class Points:
    def draw(self, rng, n):
        x = rng.uniform(0, 1, n)
        return x, 0.0, 3 * x


def test_a_source_draws_new_images_for_every_step():
    watch = Watch()
    model = Line()
    run = Trainer(model, Points(), epochs=8, steps=25, batch=32, rate=0.1, decay=0.0, callbacks=[watch])
    history = run.run()
    assert history["step"] == list(range(25, 201, 25))
    assert abs(model.parameters["slope"][0] - 3) < 0.01
    assert run.validate() == run.validate() == min(history["validation"])
    largest = [r["largest"] for r in watch.told[1:-1] if "loss" in r]
    assert len(set(largest)) == 200
    again = Trainer(Line(), Points(), epochs=8, steps=25, batch=32, rate=0.1, decay=0.0)
    assert again.run()["train"] == history["train"]
