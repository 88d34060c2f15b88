"""The pupil from molecules alone, and models that learn it; figures of more seeds: bench retrieval."""

import numpy as np
import pytest

from smlmcore import fit, psf, renderer
from smlmcore.testing import check_gradient

SHAPE = (15, 15)
OPTICS = psf.Pupil(1.2, 0.6, 1.33, 1.33, 0.12, vectorial=False, samples=32, z_range=(-0.6, 0.6))
TRUTH = {(2, 2): 0.7, (2, -2): -0.4, (3, 1): 0.3, (4, 0): -0.3}


def molecules(n, seed=0):
    return fit.simulate_spots(
        OPTICS.replace(zernike=TRUTH), n, SHAPE, np.random.default_rng(seed), z=(-0.6, 0.6), x=(6, 8), y=(6, 8),
        photons=(2000, 6000), background=(2, 6),
    )  # fmt: skip


def test_the_pupil_comes_from_molecules_alone_up_to_its_twin():
    images, truth = molecules(200)
    images[0, 3:6, 3:6] += 500.0  # no molecule looks like this
    found = fit.learn_pupil(images, OPTICS, modes=11, progress=False)
    report = found.report
    assert not report.used[0]
    assert report.used.sum() > 190
    expected = [TRUTH.get(m, 0.0) for m in found.modes]
    best = min((found, fit.twin(found)), key=lambda p: np.abs(p.zernike - expected).max())
    # chi2 of 7 coefficients in units of their errors: 99.9 % of the draws are below 24.3
    assert (((best.zernike - expected) / report.errors) ** 2).sum() < 24.3
    assert report.residual < 1 + 5 * report.residual_error
    sign = 1 if best is found else -1
    z = sign * report.parameters[report.used, 2] - truth[report.used, 2]
    bound = OPTICS.replace(zernike=TRUTH).crlb(truth[report.used], SHAPE)[:, 2]
    assert np.median(np.abs(z / bound)) < 0.6745 * 1.3  # of a normal distribution, plus what 200 draws may do


def test_twins_look_alike():
    p = OPTICS.replace(zernike=TRUTH)
    np.testing.assert_allclose(
        p.render(7.2, 6.9, 0.3, 100.0, 1.0, shape=SHAPE), fit.twin(p).render(7.2, 6.9, -0.3, 100.0, 1.0, shape=SHAPE)
    )


def test_the_likeliest_end_counts_at_the_ends_of_the_range_too():
    p = OPTICS.replace(zernike=TRUTH)
    rng = np.random.default_rng(3)
    z = np.repeat([-0.59, 0.59], 150)  # noise drives half of them to the bound
    images, truth = fit.simulate_spots(p, 300, SHAPE, rng, z=z, photons=(2000, 6000), background=(2, 6))
    result = fit.locate(images, p, progress=False)
    assert (result.status == fit.Status.at_bound).sum() > 30
    assert (result.log_likelihood > fit.mle(images, p, initial=truth, progress=False).log_likelihood - 0.01).all()
    assert np.abs((result.parameters - truth) / p.crlb(truth, SHAPE))[:, :3].max() < 5  # 1 in 10^6 draws is beyond


def test_wrong_input_gets_one_clear_error():
    images = np.ones((20, *SHAPE))
    with pytest.raises(TypeError, match="Pupil"):
        fit.learn_pupil(images, psf.Gaussian2D())
    for wrong in (images[:3], images[0], images[:, :5], images * 1j):
        with pytest.raises(ValueError, match="photoelectrons"):
            fit.learn_pupil(wrong, OPTICS)
    with pytest.raises(ValueError, match="variance"):
        fit.learn_pupil(images, OPTICS, variance=-1.0)


def test_renderer_is_differentiable_in_the_pupil():
    draw = renderer.Pupil(OPTICS.replace(zernike=TRUTH), (7, 8), pixels=True)
    theta = {"x": np.array([3.2]), "y": np.array([3.6]), "z": np.array([0.2]), "photons": [90.0], "background": [1.0]}
    phase = np.random.default_rng(0).normal(0, 0.02, (32, 32)) * OPTICS.inside
    check_gradient(lambda c, pixels: draw({"zernike": c, "phase": pixels}, theta), np.array([0.1, 0, 0.1, 0]), phase)


def test_a_model_learns_pupil_and_encoder_together(tmp_path):
    from smlmcore.training import Trainer

    images, _ = molecules(256)
    start = OPTICS.replace(zernike={**TRUTH, (2, 2): 0.5})
    model = fit.pupil3d(start, SHAPE, width=8, hidden=16)
    trainer = Trainer(model, images, epochs=2, batch=64, progress=False)
    before = trainer.validate()
    history = trainer.run()
    assert history["validation"][-1] < before
    assert not np.array_equal(model.psf.zernike, start.zernike)
    assert sorted(model.predict(images[:3])) == ["background", "photons", "x", "y", "z"]
    model.save(tmp_path / "model.npz")
    again = fit.FitModel.load(tmp_path / "model.npz")
    np.testing.assert_array_equal(again.psf.zernike, model.psf.zernike)
    assert len(again.refine(images[:3])) == 3
