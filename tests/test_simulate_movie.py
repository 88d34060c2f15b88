"""Structures, blinking, drift and background: the laws asked for, and a movie whose mean is its truth."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from scipy import stats

from smlmcore import data, psf, simulate
from smlmcore.camera import Camera
from smlmcore.cli import main

SHAPE = (40, 56)


def test_the_truth_reproduces_the_mean_of_a_thousand_draws():
    rng = np.random.default_rng(0)
    camera = Camera(rng.normal(100, 2, SHAPE), rng.uniform(0.4, 0.6, SHAPE), rng.gamma(4, 0.35, SHAPE), pixel_size=0.1)
    background = simulate.random_field(SHAPE, 5, 20, 8, rng)
    movie = simulate.Movie(
        simulate.points(SHAPE, 300, rng), SHAPE, 2, simulate.Blinking(0.05, 0.3), background=background, camera=camera
    )
    list(movie.chunks(rng))
    truth = movie.truth
    assert len(truth) > 20
    # rendered by the PSF's own code on the whole field, far from patches
    expected = np.zeros((2, *SHAPE)) + background
    for row in truth:
        values = {k: [row[k]] for k in ("x", "y", "photons")}
        expected[row["frame"]] += psf.Gaussian2D(1.3).render({**values, "background": [0.0]}, SHAPE)[0]
    clean = movie.render(truth, 0, 2)
    np.testing.assert_allclose(clean, expected, rtol=1e-4, atol=2e-3)
    draws = np.stack([camera.photoelectrons(camera.expose(clean, rng)) for _ in range(1000)])
    z = (draws.mean(0) - expected) / np.sqrt((expected + camera.variance + camera.gain**2 / 12) / 1000)
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-4


def test_rates_are_those_asked_for():
    law = simulate.Blinking(on_rate=0.02, off_rate=0.25, photons=1000, spread=0.0)
    events = law.events(4000, 0)
    parts = [events.advance(frame) for frame in (50, 51, 200)]  # in pieces of any length
    molecule, frame, photons = (np.concatenate([p[k] for p in parts]) for k in range(3))
    assert frame.max() < 200
    assert (np.diff(frame) >= 0).all()
    assert len(np.unique(frame * 4000 + molecule)) == len(frame)
    assert photons.max() <= 1000 * (1 + 1e-9)
    # the share of time in the bright state: of 4000 molecules, 200 frames, correlated over about 1/0.27 frames
    share = photons.sum() / (1000 * 200 * 4000)
    expected = 0.02 / 0.27
    error = np.sqrt(expected * (1 - expected) * 2 / 0.27 / (200 * 4000))
    assert abs(share - expected) < 5 * error
    # sub-frame on-times: an interval is exponential, so many frames are lit in part
    assert 0.2 < (photons < 999).mean() < 0.8


def test_bleaching_ends_it():
    events = simulate.Blinking(on_rate=0.5, off_rate=0.5, bleach_rate=0.5, equilibrium=False).events(2000, 1)
    first, late = events.advance(20)[0], events.advance(400)[1]
    assert len(np.unique(first)) > 1900
    assert len(late[late > 100]) == 0
    none = simulate.Blinking(on_rate=0.0, equilibrium=False).events(10, 0).advance(100)
    assert all(len(part) == 0 for part in none)
    with pytest.raises(ValueError, match="not possible"):
        simulate.Blinking(off_rate=0)


def test_chunks_do_not_change_the_laws_and_seeds_decide_all(monkeypatch):
    sites = simulate.points(SHAPE, 200, np.random.default_rng(1))

    def run(seed):
        movie = simulate.Movie(sites, SHAPE, 30, simulate.Blinking(0.02), drift=0.05)
        return np.concatenate(list(movie.chunks(np.random.default_rng(seed)))), movie.truth

    (a, truth), (b, again), (c, _) = run(3), run(3), run(4)
    assert np.array_equal(a, b)
    assert np.array_equal(truth, again)
    assert not np.array_equal(a, c)
    monkeypatch.setattr(simulate.movie, "CHUNK_BYTES", 4 * 7 * SHAPE[0] * SHAPE[1])
    pieces, _ = run(3)
    assert pieces.shape == a.shape
    assert np.array_equal(truth["frame"], np.sort(truth["frame"]))


def test_drift_moves_all():
    drift = np.stack([np.linspace(0, 3, 12), np.linspace(0, -2, 12)], 1)
    law = simulate.Blinking(on_rate=5.0, off_rate=1e-9, spread=0.0)
    movie = simulate.Movie(np.array([[20.0, 20.0]]), SHAPE, 12, law, drift=drift)
    list(movie.chunks(np.random.default_rng(0)))
    rows = movie.truth
    np.testing.assert_allclose(rows["x"], 20 + drift[rows["frame"], 0])
    np.testing.assert_allclose(rows["y"], 20 + drift[rows["frame"], 1])


def test_any_psf_and_parameters_of_each_molecule():
    sites = simulate.points(SHAPE, 30, np.random.default_rng(1))
    sigma = np.linspace(1, 2, 30)
    for model, parameters in (
        (psf.Gaussian2D(), {"sigma": sigma}),
        (psf.EllipticGaussian2D(), {"sigma_x": sigma, "sigma_y": 1.4}),
    ):
        movie = simulate.Movie(sites, SHAPE, 4, simulate.Blinking(0.5), model, parameters)
        assert sum(len(c) for c in movie.chunks(np.random.default_rng(0))) == 4
        first = next(iter(parameters))
        assert np.array_equal(movie.truth[first], sigma[movie.truth["molecule"]])
    with pytest.raises(ValueError, match=r"needs \[.sigma.\]"):
        simulate.Movie(sites, SHAPE, 4, psf=psf.Gaussian2D())
    for bad in ({"background": -1.0}, {"drift": np.zeros((3, 2))}, {"frames": 0}):
        with pytest.raises(ValueError, match=r"simulate\.Movie got"):
            simulate.Movie(**{"sites": sites, "shape": SHAPE, "frames": 4, **bad})
    with pytest.raises(TypeError, match="default_rng"):
        next(simulate.Movie(sites, SHAPE, 4).chunks(0))
    empty = simulate.Movie(np.empty((0, 2)), (5, 7), 3)
    assert next(empty.chunks(np.random.default_rng(0))).shape == (3, 5, 7)
    assert len(empty.truth) == 0


PUPIL = psf.Pupil(1.4, 0.68, 1.518, 1.518, 0.1, vectorial=False, samples=64, zernike={(2, 2): 0.8})
Z = np.linspace(-0.3, 0.3, 7)


@pytest.fixture(scope="module")
def models():
    """A pupil, and the spline through its volume."""
    return PUPIL, psf.Spline.from_array(PUPIL.volume(np.linspace(-0.5, 0.5, 11), (33, 33)), dz=0.1)


def test_pupils_and_splines_in_movies_are_drawn_as_by_themselves(models):
    sites = simulate.points(SHAPE, 7, np.random.default_rng(1))
    for model in models:
        movie = simulate.Movie(sites, SHAPE, 3, simulate.Blinking(0.5), model, {"z": Z}, background=0.0, patch=15)
        list(movie.chunks(np.random.default_rng(0)))
        truth = movie.truth
        assert len(truth) > 3
        image = movie.render(truth, 0, 3)
        row = next(r for r in truth if 9 < r["x"] < 46 and 9 < r["y"] < 30)
        left, top = round(row["x"]) - 7, round(row["y"]) - 7
        values = {k: [row[k]] for k in ("z", "photons")} | {"x": [row["x"] - left], "y": [row["y"] - top]}
        alone = model.render({**values, "background": [0.0]}, (15, 15))[0]
        got = movie.render(truth[truth == row], 0, 3)[row["frame"], top : top + 15, left : left + 15]
        np.testing.assert_allclose(got, alone, atol=1e-4 * alone.max())
        assert image[row["frame"]].sum() >= 0.99 * got.sum()


def test_zernikes_of_a_training_set():
    ranges = {"x": (7, 8), "y": (7, 8), "z": (-0.2, 0.2), "photons": (1e6, 2e6), "background": (5, 9)}
    modes = {(2, 2): (-0.5, 0.5), (3, 1): (0.0, 0.4)}
    images, labels = simulate.spots(np.random.default_rng(0), 3, (15, 15), PUPIL, ranges, zernike=modes)
    assert labels["zernike"].shape == (3, 2)
    for i, (a, b) in enumerate(labels["zernike"]):
        model = psf.Pupil(
            1.4, 0.68, 1.518, 1.518, 0.1, vectorial=False, samples=64, zernike={(2, 2): 0.8 + a, (3, 1): b}
        )
        expected = model.render({k: labels[k][i : i + 1] for k in model.names}, (15, 15))[0]
        z = (images[i] - expected) / np.sqrt(expected)
        assert abs((z**2).mean() - 1) < 5 * np.sqrt(2 / z.size)
    gaussian = {k: ranges[k] for k in ("x", "y", "photons", "background")}
    with pytest.raises(ValueError, match=r"only psf\.Pupil"):
        simulate.spots(np.random.default_rng(0), 3, (15, 15), psf.Gaussian2D(1.2), gaussian, zernike=modes)


def test_psfs_by_name_and_file(models, tmp_path):
    for model, kind in zip(models, ("pupil", "spline"), strict=True):
        path = tmp_path / f"{kind}.npz"
        model.save(path)
        movie, _ = simulate.from_config({**CONFIG, "psf": {"kind": kind, "file": str(path), "z": [-0.2, 0.3]}})
        assert type(movie.psf) is type(model)
        assert -0.2 <= movie.parameters["z"].min() < movie.parameters["z"].max() <= 0.3
    given = {"kind": "astigmatic", "sigma0": 1.2, "gamma": 0.25, "depth": 0.4, "z": 0.1}
    movie, rng = simulate.from_config({**CONFIG, "psf": given})
    assert np.isfinite(movie.psf.constants).all()
    assert [c.shape for c in movie.chunks(rng)] == [(5, 32, 40)]
    assert (movie.truth["z"] == 0.1).all()


def test_structures_are_what_they_are_called():
    rng = np.random.default_rng(0)
    ring = simulate.rings((200, 200), 1, 20.0, np.random.default_rng(8))
    centre = np.linalg.lstsq(np.c_[2 * ring, np.ones(len(ring))], (ring**2).sum(1), rcond=None)[0][:2]
    np.testing.assert_allclose(np.hypot(*(ring - centre).T), 20, rtol=1e-9)
    line = simulate.lines((200, 200), 1, np.random.default_rng(3))
    assert np.linalg.svd(line - line.mean(0))[1][1] < 1e-9
    assert np.array_equal(np.unique(simulate.grid((21, 31), 10)[:, 0]), [0, 10, 20, 30])
    pores = simulate.nuclear_pores((500, 500), 5, np.random.default_rng(4))
    assert len(np.unique(pores.round(6), axis=0)) == len(pores) / 4
    star = simulate.siemens_star((100, 100), 6, rng, 6000) - 49.5
    sector = np.floor(np.arctan2(star[:, 1], star[:, 0]) % (2 * np.pi) / (np.pi / 6)).astype(int)
    assert set(sector) == {0, 2, 4, 6, 8, 10}
    image = np.zeros((9, 12))
    image[2, 7], image[5, 1] = 3, 1
    sites = simulate.from_image(image, 4000, rng)
    at = np.rint(sites).astype(int)
    share = ((at == (7, 2)).all(1)).mean()
    assert abs(share - 0.75) < 5 * np.sqrt(0.75 * 0.25 / 4000)
    with pytest.raises(ValueError, match="from_image got"):
        simulate.from_image(np.zeros((3, 3)), 4, rng)
    labels = simulate.label(np.zeros((20_000, 2)), rng, 0.3, linker=0.2)
    assert abs(len(labels) / 20_000 - 0.3) < 5 * np.sqrt(0.21 / 20_000)
    assert abs(labels.std() / 0.2 - 1) < 5 / np.sqrt(2 * labels.size)
    with pytest.raises(ValueError, match="density 2"):
        simulate.label(labels, rng, 2)


def test_training_sets_and_drop_out():
    ranges = {"x": (4, 6), "y": (4, 6), "photons": (500, 900), "background": (5, 9), "sigma": (1, 1.4)}
    rng = np.random.default_rng(0)
    images, labels = simulate.spots(rng, 2000, (11, 11), psf.Gaussian2D(), ranges, Camera(100, 0.5, 1.5), 0.25)
    off = labels["photons"] == 0
    assert abs(off.mean() - 0.25) < 5 * np.sqrt(0.1875 / 2000)
    excess = images.sum((1, 2)) - 121 * labels["background"]
    assert abs(excess[off].mean()) < 5 * excess[off].std() / np.sqrt(off.sum())
    z = (excess - labels["photons"])[~off]
    assert abs(z.mean()) < 5 * z.std() / np.sqrt(len(z)) + 1e-3 * 900  # of the tails outside the image
    with pytest.raises(ValueError, match="ranges for"):
        simulate.spots(rng, 3, (11, 11), psf.Gaussian2D(), {"x": (1, 2)})


CONFIG = {
    "shape": [32, 40], "frames": 5, "seed": 2, "structure": {"kind": "rings", "count": 3, "radius": 5},
    "label": {"density": 0.3, "linker": 0.1}, "blinking": {"on_rate": 0.05}, "psf": {"sigma": 1.2}, "drift": 0.02,
    "background": {"kind": "gradient", "low": 5, "high": 20}, "camera": {"offset": 90, "gain": 0.4, "pixel_size": 0.1},
}  # fmt: skip


def test_the_command_with_a_config_file(tmp_path, capsys):
    config = tmp_path / "a.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    assert main(["simulate", str(tmp_path / "m.tif"), "--config", str(config)]) == 0
    assert "5 of 32 x 40" in capsys.readouterr().out
    with data.open_movie(tmp_path / "m.tif") as movie:
        assert movie.shape == (5, 32, 40)
        assert movie.camera["gain"] == 0.4
    truth, info = data.read_picasso(tmp_path / "m.truth.hdf5")
    assert len(truth) > 3
    assert info["Pixelsize"] == 100


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"colour": 3}, "the setting 'colour'"), ({"structure": {"kind": "cat"}}, "structure kind 'cat'"),
        ({"structure": {"kind": "rings", "count": 3}}, "radius"), ({"background": {"kind": "sea"}}, "background kind"),
        ({"psf": {"kind": "pupil"}}, "file"), ({"psf": {"kind": "cat"}}, "psf of kind 'cat'"),
        ({"blinking": {"speed": 3}}, "speed"),
        ({"camera": {"offset": 1}}, "gain"), ({"camera": "no.npz"}, "no such file"),
        ({"shape": 5}, "shape 5"), ({"frames": "many"}, "frames many"), ({"seed": -1}, "seed -1"),
        ({"structure": {"kind": "rings", "count": 3, "radius": 0}}, "radius 0"),
        ({"structure": {"kind": "grid", "spacing": 0}}, "spacing 0"), ({"drift": float("nan")}, "all finite"),
    ],
)  # fmt: skip
def test_config_mistakes_are_named(tmp_path, capsys, change, text):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({**CONFIG, **change}))
    assert main(["simulate", str(tmp_path / "m.tif"), "--config", str(tmp_path / "a.yaml")]) == 2
    err = capsys.readouterr().err
    assert text in err
    assert err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.yaml"]


@pytest.mark.parametrize("kind", ["points", "lines", "filaments", "nuclear_pores", "siemens_star", "grid"])
def test_every_structure_by_name(kind):
    options = {"grid": {"spacing": 5}, "siemens_star": {"spokes": 5}}.get(kind, {"count": 4})
    movie, rng = simulate.from_config({"shape": [24, 32], "frames": 2, "structure": {"kind": kind, **options}})
    assert next(movie.chunks(rng)).shape == (2, 24, 32)
    assert len(movie.sites) > 0
