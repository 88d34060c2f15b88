"""The training loop: it learns, it is reproducible, and it never looks at held-out images."""

import numpy as np
import pytest

from smlmcore import fit, psf
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
