"""Learned localization: the mixture loss, lessons, the network, the joint refinement, and `localize --method auto`."""

import numpy as np
import pytest
from scipy.stats import norm

from smlmcore import data, localize, psf
from smlmcore.autograd import Tensor
from smlmcore.camera import Camera
from smlmcore.cli import main
from smlmcore.fit.model import describe
from smlmcore.localize import finder, joint
from smlmcore.localize.believe import believe
from smlmcore.localize.chunks import localize_frames
from smlmcore.localize.learn import learn, prior_of
from smlmcore.localize.learned import fit_learned
from smlmcore.localize.network import CELL, Network, general
from smlmcore.localize.prior import Prior
from smlmcore.localize.run import run
from smlmcore.localize.shape import usual_of, with_shapes
from smlmcore.loss import Mixture
from smlmcore.mapper.mixture import components, peaks
from smlmcore.psf.spline import astigmatic_stack
from smlmcore.simulate.movie import light

CAMERA = Camera(offset=100.0, gain=0.5, read_noise=1.0, pixel_size=0.1)


def frames_of(rng, n, shape, per_frame, sigma=1.3, photons=2000.0, background=10.0):
    """Frames of photons, and their truth."""
    h, w = shape
    frame = np.repeat(np.arange(n), rng.poisson(per_frame, n))
    x, y = rng.uniform(-0.5, w - 0.5, len(frame)), rng.uniform(-0.5, h - 0.5, len(frame))
    values = {"x": x, "y": y, "photons": np.full(len(x), photons), "background": np.full(n, background)}
    mean = psf.Gaussian2D(sigma).render(values, shape, image=frame)
    return rng.poisson(mean).astype(np.float32), data.table(frame=frame, x=x, y=y, photons=values["photons"])


def found(emitters):
    return data.table(frame=emitters.frame, x=emitters.theta[:, 0], y=emitters.theta[:, 1])


# ---------------------------------------------------------------- the loss and its components


def test_mixture_is_what_scipy_says():
    rng = np.random.default_rng(0)
    features, truth = rng.normal(size=(2, 5, 6, 7)), rng.uniform(0, 4, (3, 3))
    nats = Mixture()(features, truth, np.array([1, 1, 1]))
    for i, own in enumerate((truth[:0], truth)):
        p, mean, spread = (a.reshape(*a.shape[:-2], -1) for a in components(features[i]))
        count = norm(p.sum(), np.sqrt((p * (1 - p)).sum() + 1e-4)).logpdf(len(own))
        each = norm.pdf(own[:, :, None], mean, spread).prod(1)
        expected = -count - np.log((p / p.sum() * each).sum(1)).sum()
        assert nats[i] == pytest.approx(expected, rel=1e-10)


def test_gradient_of_the_mixture():
    rng = np.random.default_rng(1)
    features, direction = rng.normal(size=(2, 3, 7, 5, 7))
    truth, image, step = rng.uniform(0, 5, (6, 3)), np.array([0, 0, 0, 2, 2, 2]), 1e-5
    t = Tensor(features)
    Mixture()(t, truth, image).sum().backward()
    ends = [Mixture()(features + s * direction, truth, image).sum() for s in (step, -step)]
    # the third derivative, some hundreds, times step² / 6; and rounding of the values, over the step
    assert (t.grad * direction).sum() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-7, abs=1e-7)


def test_mixture_refuses():
    features, truth = np.zeros((2, 4, 4, 7)), np.zeros((2, 3))
    for bad in ((features[..., :6], truth, [0, 1]), (features, truth, [1, 0]), (features, truth, [0, 2]),
                (features, truth[:, :2], [0, 1])):  # fmt: skip
        with pytest.raises(ValueError, match=r"loss\.Mixture got .*expected"):
            Mixture()(bad[0], bad[1], np.array(bad[2]))


def test_peaks_of_any_number():
    features = np.full((1, 30, 31, 7), -3.0, np.float32)
    features[0, ::2, ::2, 0] = 9
    image, rows = peaks(features)
    assert len(rows) == 15 * 16
    assert (image == 0).all()
    features[0, 4, 4, 0] = features[0, 4, 5, 0] = 4  # two halves of one
    assert len(peaks(features)[1]) == 15 * 16
    assert len(peaks(features[:0])[1]) == 0


# ---------------------------------------------------------------- lessons


def test_lessons_are_what_the_prior_says():
    prior = Prior(
        photons=(900, 900.001), spread=(0, 0), background=(5, 5.001), density=(0.004, 0.004), read_noise=(2, 2)
    )
    a, b = (prior.draw(np.random.default_rng(3), 200, (32, 40)) for _ in range(2))
    assert all(np.array_equal(u, v) for u, v in zip(a, b, strict=True))
    assert a.frames.shape == (200, 32, 40)
    number = 0.004 * 32 * 40
    assert len(a.emitters) / 200 == pytest.approx(number, abs=4 * np.sqrt(number / 200))
    assert np.allclose(np.exp(a.emitters[:, 2]) * 2000, 900, rtol=1e-4)
    assert set(np.unique(a.variance)) == {0.0, 4.0}
    none = Prior(density=(0, 0)).draw(np.random.default_rng(0), 3, (7, 5))
    assert none.emitters.shape == (0, 3)
    assert abs(none.frames / none.background - 1).mean() < 2


def test_learning_is_repeatable_and_lowers_the_loss():
    losses, prior = [], Prior(photons=(2000, 3000), background=(5, 10), density=(0.002, 0.004))
    start = Network(prior, width=8, last=8)
    a = learn(start, 40, progress=False, after=lambda step, nats: losses.append(nats))
    b = learn(start, 40, progress=False)
    assert all(np.array_equal(a.parameters[k], b.parameters[k]) for k in a.parameters)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    with pytest.raises(FloatingPointError, match="step 0"):
        learn(Network(prior, {k: v * np.nan for k, v in start.parameters.items()}, 8, 8), 2, progress=False)


ELLIPSE = psf.EllipticGaussian2D(fixed=(1.8, 1.1, 0.5))
ASTIGMATIC = psf.AstigmaticGaussian(1.3, gamma=0.25, depth=0.4, z_range=(-0.5, 0.5))


def movie_of(model, rng, n, shape, per_frame, background=20.0, **parameters):
    """Frames of emitters of any PSF with 1000 photons and a spread of 0.3, and their truth."""
    frame = np.repeat(np.arange(n), rng.poisson(per_frame, n))
    x, y = (rng.uniform(-0.5, side - 0.5, len(frame)) for side in shape[::-1])
    values = {"x": x, "y": y, "photons": 1000 * np.exp(0.3 * rng.normal(size=len(frame)))}
    values |= {name: rng.uniform(*limits, len(frame)) for name, limits in parameters.items()}
    mean = light(model, values, frame, (n, *shape)) + background
    return rng.poisson(mean).astype(np.float32), data.table(frame=frame, **values)


@pytest.mark.parametrize(
    ("model", "parameters"), [(psf.Gaussian2D(1.5), {}), (ELLIPSE, {}), (ASTIGMATIC, {"z": (-0.4, 0.4)})]
)
def test_prior_of_a_movie(model, parameters):
    rng = np.random.default_rng(0)
    frames, _ = movie_of(model, rng, 50, (64, 72), 8, **parameters)
    prior = prior_of(frames, sigma=1.5)
    assert prior.photons[0] < 1000 < prior.photons[1]
    assert prior.spread[0] < 0.3 < prior.spread[1]
    assert prior.background[0] < 20 < prior.background[1]
    assert prior.density[1] > 8 / (64 * 72)
    assert type(prior.psf) is type(model)
    if model is ELLIPSE:
        assert prior.psf.fixed == pytest.approx(ELLIPSE.fixed, abs=0.05)
    if model is ASTIGMATIC:  # sigma0 and gamma / depth; the unit of z is anyone's guess
        assert prior.psf.constants[:3] == pytest.approx([1.3, 0.25, 0.4], abs=0.04)
        assert prior.shape["z"] == pytest.approx((-0.4, 0.4), abs=0.15)
    lesson = prior.draw(rng, 2, (9, 11))
    assert lesson.frames.shape == (2, 9, 11)
    assert np.isfinite(lesson.frames).all()


def test_prior_of_nothing():
    for frames in (np.empty((0, 20, 20)), np.full((3, 20, 24), 5.0)):
        prior = prior_of(frames)
        assert type(prior.psf) is psf.Gaussian2D
        prior.draw(np.random.default_rng(0), 2, (9, 9))


def test_lessons_of_any_psf(tmp_path):
    exact = {"photons": (900, 900.001), "spread": (0, 0), "background": (1e-3, 1.001e-3), "density": (0.003, 0.003)}
    for model, shape in ((ELLIPSE, {}), (psf.Spline.from_array(astigmatic_stack(), 0.05), {"z": (-0.3, 0.3)})):
        prior = Prior(**exact, read_noise=(0, 0), psf=model, shape=shape)
        lesson = prior.draw(np.random.default_rng(4), 100, (64, 64))
        inner = lesson.emitters[(abs(lesson.emitters[:, :2] - 31.5) < 26).all(1)]
        per_frame = lesson.frames[:, 6:-6, 6:-6].sum() / 100  # what leaves the field and what comes in are equal
        assert per_frame == pytest.approx(900 * len(inner) / 100, rel=0.05)
        Network(prior, width=8, last=8).save(tmp_path / "network.npz")
        again = Network.load(tmp_path / "network.npz").prior
        assert again.shape == shape
        assert again.photons == prior.photons
        assert np.array_equal(again.psf.constants, model.constants)
    hazy = Prior(**exact, read_noise=(0, 0), haze=(0.01, 0.01)).draw(np.random.default_rng(4), 100, (64, 64))
    clear = Prior(**exact, read_noise=(0, 0)).draw(np.random.default_rng(4), 100, (64, 64))
    assert hazy.frames.mean() - clear.frames.mean() == pytest.approx(0.5 * 0.01 * 900, rel=0.2)
    assert len(hazy.emitters) == pytest.approx(len(clear.emitters), rel=0.1)


def test_depth_of_starts():
    rng = np.random.default_rng(9)
    frames, truth = movie_of(ASTIGMATIC, rng, 30, (40, 52), 5, 10.0, z=(-0.4, 0.4))
    behind = np.full((1, 40, 52), 10.0, np.float32)
    table = with_shapes(truth, frames, behind, ASTIGMATIC, {"z": (-0.45, 0.45)}, 0.0, 1.5)
    assert np.median(abs(table["z"] - truth["z"])) < 0.06
    assert (abs(table["z"] - truth["z"]) < 0.25).mean() > 0.9
    assert with_shapes(truth[:0], frames, behind, ASTIGMATIC, {"z": (-0.45, 0.45)}).dtype == table.dtype
    assert with_shapes(truth, frames, behind, ELLIPSE, {}) is truth


def test_joint_fit_of_emitters_in_depth():
    rng = np.random.default_rng(10)
    frames, truth = movie_of(ASTIGMATIC, rng, 30, (40, 52), 8, 10.0, z=(-0.4, 0.4))
    behind = np.full((1, 40, 52), 10.0, np.float32)
    starts = with_shapes(truth, frames, behind, ASTIGMATIC, {"z": (-0.45, 0.45)}, 0.0, 1.5)
    emitters = joint.fit(frames, starts, behind, 0.0, 1.5, ASTIGMATIC, 13)
    table = data.table(frame=emitters.frame, **dict(zip(ASTIGMATIC.names, emitters.theta.T, strict=True)))
    i, j = localize.match(table, truth, 2.5)
    assert len(i) > 0.95 * len(truth)
    error = (table["z"][i] - truth["z"][j]) / emitters.errors[i, 2]
    assert 0.9 < np.quantile(abs(error), 0.6827) < 1.2  # one standard deviation
    assert np.allclose(emitters.snr, emitters.theta[:, 3] / emitters.errors[:, 3])


def test_widths_that_differ_from_molecule_to_molecule():
    rng = np.random.default_rng(11)
    frames, truth = movie_of(psf.Gaussian2D(), rng, 60, (64, 72), 5, 10.0, sigma=(1.0, 1.8))
    usual = usual_of(frames)
    assert usual.sigma == pytest.approx(1.4, abs=0.06)
    assert usual.uneven == pytest.approx(0.8 / np.sqrt(12), abs=0.06)
    for network in (None, general()):
        light = usual.photons, usual.scatter
        table = localize_frames(frames, sigma=usual.sigma, network=network, light=light, uneven=usual.uneven)
        assert localize.score(table, truth, 0.1)["250"]["jaccard"] > 0.97


# ---------------------------------------------------------------- the network that comes with the package


def test_network_finds_what_crowds_hide():
    rng = np.random.default_rng(0)
    frames, truth = frames_of(rng, 12, (96, 80), 28)
    table = general().find(frames, 10.0, sigma=1.3)
    s = localize.score(table, truth, 0.1)["250"]
    assert s["jaccard"] > 0.95
    i, j = localize.match(table, truth, 2.5)
    z = (table["x"][i] - truth["x"][j]) / table["lpx"][i]
    assert 0.6 < 1.4826 * np.median(abs(z)) < 1.4  # it knows how sure it is


def test_network_sees_parts_as_the_whole():
    rng = np.random.default_rng(1)
    frames, _ = frames_of(rng, 2, (150, 270), 100)
    table = general().find(frames, 10.0)
    where = np.zeros((2, -(-150 // CELL), -(-270 // CELL)), bool)
    where[1, 4, 7] = True
    part = general().find(frames, 10.0, where=where)
    cell = (table["frame"] == 1) & (abs(table["y"] - 71.5) < 8) & (abs(table["x"] - 119.5) < 8)
    assert len(part) == cell.sum() > 0
    assert np.allclose(part["x"], table["x"][cell], atol=0.05)
    odd = frames[:, ::3, ::-2]
    assert general().find(odd, 10.0).dtype == table.dtype
    assert len(general().find(frames[:0], 10.0)) == 0
    assert len(general().find(np.full((1, 1, 3), np.nan), 10.0)) == 0
    frames[:, :, 100:] = np.nan
    assert np.isfinite(general().find(frames, 10.0)["x"]).all()


def test_network_files(tmp_path):
    network = Network(Prior(sigma=(1.0, 1.2)), width=8, last=8, rng=np.random.default_rng(5))
    network.save(tmp_path / "a.npz")
    back = Network.load(tmp_path / "a.npz")
    assert describe(vars(back.prior)) == describe(vars(network.prior))
    for name, value in network.parameters.items():
        assert np.allclose(back.parameters[name], value, rtol=1e-3, atol=1e-6)
    (tmp_path / "b.npz").write_bytes(b"no zip file")
    np.savez(tmp_path / "c.npz", a=np.zeros(3))
    for name in ("b.npz", "c.npz"):
        with pytest.raises(data.DataError, match=f"{name}: is no network"):
            Network.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        Network.load(tmp_path / "d.npz")


# ---------------------------------------------------------------- joint fits


def test_refined_errors_are_true_and_single_emitters_stay_single():
    rng, n = np.random.default_rng(2), 400
    x, y = rng.uniform(8, 9, (2, n))
    values = {"x": x, "y": y, "photons": np.full(n, 1500.0), "background": np.full(n, 8.0)}
    frames = rng.poisson(psf.Gaussian2D(1.3).render(values, (17, 19))).astype(np.float32)
    starts = data.table(frame=np.arange(n), x=x + 0.3, y=y - 0.3, photons=np.full(n, 1000.0))
    fitted = joint.fit(frames, starts, np.full((1, 17, 19), 8.0), 0.0, 1.3)
    assert len(fitted) <= n + 1  # one of a thousand is split by chance
    first = fitted.rows(np.unique(fitted.frame, return_index=True)[1])
    for k, true in enumerate((x, y)):
        z = (first.theta[:, k] - true[first.frame]) / first.errors[:, k]
        assert abs(np.sqrt((z**2).mean()) - 1) < 4 / np.sqrt(2 * n)
    assert abs((first.theta[:, 2] - 1500).mean()) < 4 * first.errors[:, 2].mean() / np.sqrt(n)
    chi2 = (first.chi2 / 81).mean()
    assert abs(chi2 - (1 - 4 / 81)) < 4 * np.sqrt(2 / 81 / n)
    # a PSF a tenth wider than thought is not two emitters
    wide = rng.poisson(psf.Gaussian2D(1.43).render(values, (17, 19))).astype(np.float32)
    assert len(joint.fit(wide, starts, np.full((1, 17, 19), 8.0), 0.0, 1.3)) <= 1.02 * n


def test_two_that_were_taken_for_one():
    rng, n = np.random.default_rng(3), 200
    angle, middle = rng.uniform(0, np.pi, n), rng.uniform(8, 9, (2, n))
    half = 0.75 * np.stack([np.cos(angle), np.sin(angle)])
    at = np.stack([middle - half, middle + half], 2)
    values = {"x": at[0], "y": at[1], "photons": np.full((n, 2), 2000.0), "background": np.full(n, 10.0), "sigma": 1.3}
    frames = rng.poisson(psf.Gaussian2D().render(values, (17, 18))).astype(np.float32)
    starts = data.table(frame=np.arange(n), x=middle[0], y=middle[1], photons=np.full(n, 4000.0))
    truth = data.table(frame=np.repeat(np.arange(n), 2), x=at[0].ravel(), y=at[1].ravel())
    fitted = joint.fit(frames, starts, np.full((1, 17, 18), 10.0), 0.0, 1.3)
    table = found(fitted)
    assert localize.score(table, truth, 0.1)["250"]["jaccard"] > 0.97
    # the bound with both unknown
    i, j = localize.match(table, truth, 2.5)
    both = np.isin(fitted.frame[i], np.flatnonzero(np.bincount(fitted.frame) == 2))
    z = ((table["x"][i] - truth["x"][j]) / fitted.errors[i, 0])[both]
    assert 0.8 < np.sqrt((z**2).mean()) < 1.2
    better = found(joint.fit(frames, starts, np.full((1, 17, 18), 10.0), 0.0, 1.3, light=(2000.0, 100.0)))
    assert localize.score(better, truth, 0.1)["250"]["rmse"] < localize.score(table, truth, 0.1)["250"]["rmse"]


def test_joint_fits_of_odd_input():
    rng = np.random.default_rng(4)
    frames, truth = frames_of(rng, 3, (21, 34), 5)
    behind = np.full((1, 21, 34), 10.0)
    assert joint.fit(frames, truth[:0], behind).theta.shape == (0, 5)
    frames[:, 5:9, 7:12] = np.nan
    assert np.isfinite(joint.fit(frames, truth, behind).theta).all()
    beyond = data.table(frame=[1], x=[-40.0], y=[900.0], photons=[100.0])
    assert len(joint.fit(frames, beyond, behind)) <= 1
    bead = {"x": [15.2], "y": [10.1], "photons": [60_000.0], "background": [10.0]}
    bright = rng.poisson(psf.Gaussian2D(1.3).render(bead, (21, 34))).astype(np.float32)
    start = data.table(frame=[0], x=[15.0], y=[10.0], photons=[2000.0])
    one = joint.fit(bright, start, behind, light=(2000.0, 500.0))
    assert len(one) == 1
    assert one.theta[0, 2] == pytest.approx(60_000, rel=0.03)


# ---------------------------------------------------------------- in a run


def test_auto_beats_the_fit_in_a_crowd():
    rng = np.random.default_rng(5)
    frames, truth = frames_of(rng, 20, (64, 72), 17)
    model, behind = psf.Gaussian2D(), np.full((1, 64, 72), 10.0, np.float32)
    scores = {}
    for name, filtered in (("auto", finder.find(frames, behind)), ("network", None)):
        emitters = fit_learned(general(), frames, behind, filtered, model, light=(2000.0, 500.0))
        scores[name] = localize.score(found(emitters), truth, 0.1)["250"]
        assert (np.diff(emitters.frame) >= 0).all()
        assert np.isfinite(emitters.errors[:, :3]).all()
    assert min(s["jaccard"] for s in scores.values()) > 0.97
    assert max(s["rmse_lateral"] for s in scores.values()) < 11


def test_background_that_jumps_from_frame_to_frame():
    rng = np.random.default_rng(8)
    frames, truth = frames_of(rng, 40, (48, 56), 6, background=5.0)
    level = np.tile([0.0, 10.0], 20)[:, None, None]
    frames = frames + rng.poisson(np.broadcast_to(level, frames.shape)).astype(np.float32)
    for network in (None, general()):
        table = localize_frames(frames, network=network)
        assert localize.score(table, truth, 0.1)["250"]["jaccard"] > 0.93
    odd = table["frame"] % 2 == 1
    assert abs(np.median(table["background"][odd]) - 15) < 1
    assert abs(np.median(table["background"][~odd]) - 5) < 1


@pytest.fixture(scope="module")
def movie(tmp_path_factory):
    rng, folder = np.random.default_rng(6), tmp_path_factory.mktemp("movie")
    _, truth = frames_of(rng, 30, (48, 56), 9)
    values = {n: truth[n] for n in ("x", "y", "photons")} | {"background": np.full(30, 10.0)}
    mean = psf.Gaussian2D(1.3).render(values, (48, 56), image=truth["frame"].astype(int))
    data.write_tiff(folder / "movie.tif", [CAMERA.expose(mean, rng)], (30, 48, 56), np.uint16, CAMERA)
    data.write_picasso(folder / "movie.truth.hdf5", truth, (30, 48, 56), 0.1)
    return folder / "movie.tif"


def test_methods_of_a_run(movie, tmp_path, monkeypatch):
    reports = {m: run(movie, tmp_path / m, method=m, quiet=True) for m in ("auto", "network", "fit")}
    jaccard = {m: r["score"]["whole_field"]["250"]["jaccard"] for m, r in reports.items()}
    assert jaccard["auto"] >= max(0.97, jaccard["fit"])
    assert jaccard["network"] > 0.97
    assert reports["auto"]["model"]["believable"]
    assert reports["auto"]["settings"]["network"] == "of the package"
    assert "near the molecules, where" in (tmp_path / "auto" / "report.html").read_text()
    monkeypatch.setattr("smlmcore.localize.learn.LESSONS", 2)
    out = tmp_path / "learned"
    assert main(["localize", str(movie), "--out", str(out), "--learn", "--quiet"]) == 0
    again = tmp_path / "again"
    command = ["localize", str(movie), "--out", str(again), "--model", str(out / "network.npz"), "--quiet"]
    assert main(command) == 0
    tables = [data.read_picasso(p / "localizations.hdf5")[0] for p in (out, again)]
    assert tables[0].tobytes() == tables[1].tobytes()  # NaN, too
    assert not (out / "chunks").exists()


def test_a_run_learns_the_psf_of_its_movie(tmp_path, monkeypatch):
    monkeypatch.setattr("smlmcore.localize.learn.LESSONS", 2)
    rng, shape = np.random.default_rng(13), (40, 48, 56)
    for model, z, given in ((ELLIPSE, {}, False), (ASTIGMATIC, {"z": (-0.4, 0.4)}, True)):
        frame = np.repeat(np.arange(40), rng.poisson(4, 40))
        values = {"photons": np.full(len(frame), 2000.0), **{k: rng.uniform(*v, len(frame)) for k, v in z.items()}}
        values |= {k: rng.uniform(-0.5, side - 0.5, len(frame)) for k, side in zip("yx", shape[1:], strict=True)}
        path = tmp_path / f"{type(model).__name__}.tif"
        counts = CAMERA.expose(light(model, values, frame, shape) + 5, rng)
        data.write_tiff(path, [counts], shape, np.uint16, CAMERA)
        data.write_picasso(path.with_suffix(".truth.hdf5"), data.table(frame=frame, **values), shape, 0.1)
        report = run(path, path.with_suffix(""), psf=model if given else None, learn=True, quiet=True)
        assert report["settings"]["psf"]["name"] == type(model).__name__
        assert report["settings"]["network"] == "learned"
        assert report["model"]["believable"]
        table = data.read_picasso(path.with_suffix("") / "localizations.hdf5")[0]
        assert ("z" in table.dtype.names) == given
    # a PSF from a file, on the command line and again from the settings
    spline = psf.Spline.from_array(astigmatic_stack(), 0.05)
    spline.save(tmp_path / "psf.npz")
    command = ["localize", str(path), "--psf", str(tmp_path / "psf.npz"), "--out", str(tmp_path / "a"), "--quiet"]
    assert main(command) == 0
    again = ["localize", "--settings", str(tmp_path / "a" / "settings.yaml"), "--out", str(tmp_path / "b"), "--quiet"]
    assert main(again) == 0
    tables = [data.read_picasso(tmp_path / name / "localizations.hdf5")[0] for name in "ab"]
    assert tables[0].tobytes() == tables[1].tobytes()
    assert "z" in tables[0].dtype.names
    assert main([*command[:3], str(path), *command[4:], "--overwrite"]) == 2
    wrong = run(tmp_path / "EllipticGaussian2D.tif", tmp_path / "round", quiet=True)
    assert not wrong["model"]["believable"]
    assert any("does not explain" in text for text in wrong["warnings"])


def test_run_refuses_networks_that_do_not_do(movie, tmp_path, capsys):
    for options, text in (
        (["--method", "fit", "--learn"], "learn=True"),
        (["--model", str(movie)], "is no network"),
        (["--model", str(tmp_path / "none.npz")], "none.npz"),
    ):
        assert main(["localize", str(movie), "--out", str(tmp_path / "x"), *options]) == 2
        assert text in capsys.readouterr().err
    Network(Prior(psf=ELLIPSE), width=8, last=8).save(tmp_path / "ellipse.npz")
    with pytest.raises(data.DataError, match="has learned EllipticGaussian2D, not Gaussian2D"):
        run(movie, tmp_path / "x", psf=psf.Gaussian2D(1.3), model=tmp_path / "ellipse.npz", quiet=True)
    other = psf.EllipticGaussian2D()
    with pytest.raises(ValueError, match="expected fit for this PSF, or learn"):
        run(movie, tmp_path / "x", psf=other, method="network", quiet=True)


def test_a_model_that_does_not_fit_is_not_believed(tmp_path):
    rng = np.random.default_rng(7)
    frame = np.repeat(np.arange(20), 6)
    x, y = rng.uniform(6, 42, (2, len(frame)))
    ring = np.linspace(0, 2 * np.pi, 8, endpoint=False)  # of radius 4 pixels: far out of focus
    values = {
        "x": (x[:, None] + 4 * np.cos(ring)).ravel(), "y": (y[:, None] + 4 * np.sin(ring)).ravel(),
        "photons": np.full(8 * len(x), 1500.0), "background": np.full(20, 5.0),
    }  # fmt: skip
    mean = psf.Gaussian2D(2.2).render(values, (48, 48), image=np.repeat(frame, 8))

    class Frames:
        shape, camera = (20, 48, 48), CAMERA
        images = rng.poisson(mean).astype(np.float32)

        def read(self, start, stop):
            return self.images[start:stop], None

    table = data.table(frame=frame, x=x, y=y, photons=np.full(len(x), 12_000.0), sigma_x=np.full(len(x), 4.0))
    result = believe(Frames(), table, psf.Gaussian2D(), 1.3)
    assert not result["believable"]
