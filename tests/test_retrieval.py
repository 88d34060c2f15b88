"""Pupils from bead stacks: at the Cramer-Rao bound, whatever is in the way; figures of more seeds: bench retrieval."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile

from smlmcore import cli, psf

OPTICS = {
    "na": 1.2, "wavelength": 0.6, "n_immersion": 1.33, "n_medium": 1.33, "pixel_size": 0.1, "vectorial": False
}  # fmt: skip
MODES = [(2, 2), (2, -2), (3, 1), (3, -1), (4, 0)]
Z = np.linspace(-0.8, 0.8, 9)
SHAPE = (21, 20)


def stack(seed, x=9.5, y=10.0, z=0.1, photons=5000.0, **more):
    rng = np.random.default_rng(seed)
    truth = dict(zip(MODES, rng.normal(0, 0.4, len(MODES)), strict=True))
    images = psf.Pupil(**OPTICS, moves="stage", zernike=truth, **more).render(x, y, Z + z, photons, 5.0, shape=SHAPE)
    return truth, rng.poisson(images).astype(float)


def found(data, **more):
    return psf.retrieve(data, **{"z_step": 0.2, "zernike": 15, "progress": False, **OPTICS, **more})


def deviation(pupil, truth):
    """Errors in units of the report's standard errors."""
    difference = [c - truth.get(m, 0.0) for m, c in zip(pupil.modes, pupil.zernike, strict=True)]
    return np.array(difference) / pupil.report.errors


@pytest.mark.parametrize("seed", [0, 1])
def test_error_and_residual_are_those_of_noise(seed):
    truth, data = stack(seed, x=8.3, y=11.6, z=-0.2)
    pupil = found(data)
    report = pupil.report
    # chi2 of 11 coefficients in units of their errors: 99.9 % of the draws are below 31.3
    assert (deviation(pupil, truth) ** 2).sum() < 31.3
    assert abs(report.residual - 1) < 4 * report.residual_error < 0.15
    assert (round(report.x[0], 1), round(report.y[0], 1), round(report.z[0], 1)) == (8.3, 11.6, -0.2)
    assert not set(pupil.modes) & {(0, 0), (1, 1), (1, -1), (2, 0)}
    assert report.masked == 0


def test_off_centre_with_a_neighbour_and_saturated_pixels():
    truth, data = stack(2, x=13.0, y=6.0)
    neighbour = psf.Pupil(**OPTICS, moves="stage", zernike=truth).render(0.5, 19.0, Z, 6000.0, 0.0, shape=SHAPE)
    data += np.random.default_rng(5).poisson(neighbour)
    top = np.quantile(data, 0.998)
    pupil = found(np.minimum(data, top))  # eight pixels or so at the top: not a measure of brightness
    assert 0 < pupil.report.masked < 0.4
    assert np.abs(pupil.zernike - [truth.get(m, 0) for m in pupil.modes]).max() < 0.1


def test_several_beads_with_drift_say_more_than_one():
    truth, one = stack(3)
    rng = np.random.default_rng(9)
    p = psf.Pupil(**OPTICS, moves="stage", zernike=truth)
    other = rng.poisson(p.render(8.0 + 0.2 * np.arange(9), 10.4, Z - 0.15, 2000.0, 5.0, shape=SHAPE))
    pupil = found(np.stack([one, other]), drift=True)
    assert (deviation(pupil, truth) ** 2).sum() < 31.3
    assert np.allclose(pupil.report.z, [0.1, -0.15], atol=0.05)
    assert (pupil.report.errors < found(one).report.errors).all()


def test_magnitude_and_optics_are_fitted_on_request():
    truth, data = stack(4, photons=50_000.0, magnitude={(2, 0): 0.15})
    pupil = found(data, na=1.15, optics=["na"], magnitude=[(2, 0)])
    report = pupil.report
    assert abs(report.optics["na"] - 1.2) < 5 * report.optics_errors["na"] < 0.05
    assert abs(report.magnitude[2, 0] - 0.15) < 5 * report.magnitude_errors[0]
    assert (deviation(pupil, truth) ** 2).sum() < 31.3
    assert pupil.optics.na == report.optics["na"]


def test_pixels_take_what_few_modes_cannot():
    truth, data = stack(6, photons=50_000.0)
    few = {"zernike": [m for m in MODES if m != (3, 1)], "samples": 40, "starts": 5}
    modes, both = found(data, **few), found(data, pixels=0.1, **few)
    assert modes.report.residual > 3
    assert both.report.residual < 0.5 * modes.report.residual
    p = psf.Pupil(**OPTICS, moves="stage", zernike=truth, samples=40)
    modes, both = (
        (q.remove_tip_tilt_defocus()[0].aberration() - p.remove_tip_tilt_defocus()[0].aberration())[p.inside].std()
        for q in (modes, both)
    )
    assert both < 0.6 * modes


def test_wrong_input_gets_one_clear_error():
    data = np.ones((5, 11, 11))
    for wrong, says in (
        ({"stack": data[:1]}, "3 slices"),
        ({"stack": data[:, :, :5]}, "7 x 7"),
        ({"stack": data * 1j}, "photoelectrons"),
        ({"stack": data * np.nan}, "finite pixel"),
        ({"stack": data, "z_step": 0.0}, "z_step=0"),
        ({"stack": data, "z": Z}, "one of them"),
        ({"stack": data, "z_step": None, "z": Z}, "5 finite numbers"),
        ({"stack": data, "variance": -1.0}, "variance"),
        ({"stack": data, "variance": np.ones(7)}, "variance"),
        ({"stack": data, "optics": ["colour"]}, "colour"),
        ({"stack": data, "na": 1.4}, "n_immersion"),
    ):
        given = {"z_step": 0.2, **OPTICS, **wrong}
        with pytest.raises(ValueError, match=says):
            psf.retrieve(given.pop("stack"), **given)


def test_calibrate_from_the_command_line(tmp_path, capsys):
    truth = {(2, 2): 0.5, (3, 1): -0.3}
    p = psf.Pupil(**OPTICS, moves="stage", zernike=truth)
    expected = np.full((9, 40, 60), 5.0)
    for y, x in ((14.2, 15.0), (22.0, 43.6)):
        expected += p.render(x, y, Z, 20_000.0, 0.0, shape=(40, 60))
    electrons = np.random.default_rng(0).poisson(expected)
    tifffile.imwrite(tmp_path / "beads.tif", (electrons * 2 + 100).astype(np.uint16))
    argv = ["calibrate", tmp_path / "beads.tif", "--psf", "pupil", "--na", 1.2, "--wavelength", 0.6, "--z-step", 0.2]
    argv += ["--n-immersion", 1.33, "--pixel-size", 0.1, "--offset", 100, "--gain", 0.5, "--box", 21, "--zernike", 10]
    argv += ["--scalar", "--quiet"]
    assert cli.main([str(a) for a in [*argv, "--out", tmp_path / "psf"]]) == 0
    report = json.loads((tmp_path / "psf" / "report.json").read_text())
    assert [(round(b["y"], 1), round(b["x"], 1)) for b in report["beads"]] == [(14.2, 15.0), (22.0, 43.6)]
    assert report["residual"] < 1.2
    pupil = psf.Pupil.load(tmp_path / "psf" / "psf.npz")
    assert np.allclose(pupil.zernike, [truth.get(m, 0) for m in pupil.modes], atol=0.05)
    assert (tmp_path / "psf" / "report.png").stat().st_size > 10_000
    assert cli.main([str(a) for a in [*argv, "--out", tmp_path / "psf"]]) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_measured_stack_is_described_by_a_pupil():
    folder = Path(os.environ.get("SMLMCORE_DATA", "../shared/data")) / "bead_stack"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set SMLMCORE_DATA")
    counts = tifffile.imread(next(folder.glob("*.tif"))).astype(float)[4:16, 48:77, 47:76]
    # offset, gain and read noise as the stack's own variance over mean says; pixel from the file's bounding box
    data = 0.46 * (counts - 100)
    optics = {"na": 1.0, "wavelength": 0.6, "n_immersion": 1.33, "n_medium": 1.33, "pixel_size": 0.08666}
    settings = {"variance": 1.4**2, "zernike": 11, "optics": ["na", "wavelength"], "vectorial": False, "starts": 2}
    pupil = psf.retrieve(data, 0.3, **optics, **settings, progress=False)
    assert pupil.report.residual < 5  # of which noise is 1: with thousands of photons a per cent of misfit shows
    model, mean = pupil.report.model[0], data.mean((1, 2), keepdims=True)
    assert np.corrcoef((model - mean).ravel(), (data - mean).ravel())[0, 1] > 0.95
