"""The training loop: it learns, it is reproducible, and it never looks at held-out images."""

import numpy as np
import pytest

from smlmcore import fit, layers, psf
from smlmcore.training import Trainer

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
