"""`smlmcore calibrate`: beads are found, a PSF is learned, mistakes are named."""

import json

import numpy as np
import pytest
import tifffile

from smlmcore import calibrate, cli, psf
from smlmcore.data import DataError

TRUE = psf.AstigmaticGaussian(1.15, 0.25, 0.45, z_range=(-1.0, 1.0))
CAMERA = ["--offset", "100", "--gain", "0.5"]


@pytest.fixture(scope="module")
def stack():
    """21 slices 80 nm apart of 9 beads, one near the border, two near to one another; the places of the rest."""
    rng = np.random.default_rng(0)
    z = (np.arange(21) - 10) * 0.08
    image = np.full((21, 90, 80), 5.0)
    places = [(12, 13), (40, 12), (66, 14), (14, 40), (41, 42), (67, 39), (3, 70), (40, 70), (46, 74)]
    for x, y in places:
        at = {"x": x + rng.uniform(-0.3, 0.3), "y": y + rng.uniform(-0.3, 0.3), "z": z - rng.uniform(-0.05, 0.05)}
        image += TRUE.render({**at, "photons": 5000.0, "background": 0.0}, (90, 80))
    return rng.poisson(image), places[:6]


def test_find_beads(stack):
    images, places = stack
    found, where = calibrate.find_beads(images, box=19)
    assert found.shape == (6, 21, 19, 19)
    assert np.abs(where[np.lexsort(where.T)] - np.array(places)[np.lexsort(np.array(places).T)]).max() <= 1
    images = images.astype(float)
    images[5, 12, 13] = np.nan  # (x, y) = (13, 12) is in the box of the first bead
    assert len(calibrate.find_beads(images, box=19)[0]) == 5


def test_command(stack, tmp_path, capsys):
    counts = (stack[0] / 0.5 + 100).astype(np.uint16)
    tifffile.imwrite(tmp_path / "beads.tif", counts)
    arguments = ["calibrate", str(tmp_path / "beads.tif"), "--z-step", "0.08", "--box", "19", *CAMERA]
    assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert "6 used of 6 found" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(calibrate.OUTPUTS)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["rms_z_error"] < 0.03
    assert report["slices_fitted"] > 60
    learned = psf.Spline.load(tmp_path / "out/psf.npz")
    values = {"x": 6.0, "y": 6.0, "z": np.array([-0.3, 0.0, 0.3]), "photons": 1.0, "background": 0.0}
    got, want = learned.render(values, (13, 13)), TRUE.render(values, (13, 13))
    assert np.corrcoef(got.ravel(), want.ravel())[0, 1] > 0.995
    assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_mistakes(stack, tmp_path, capsys):
    tifffile.imwrite(tmp_path / "flat.tif", np.random.default_rng(0).poisson(50, (8, 40, 40)).astype(np.uint16))
    step = ["--z-step", "0.1"]
    assert cli.main(["calibrate", str(tmp_path / "flat.tif"), *step]) == 2
    assert "offset and gain; pass --offset" in capsys.readouterr().err
    assert cli.main(["calibrate", str(tmp_path / "flat.tif"), *step, "--offset", "0", "--gain", "1"]) == 2
    assert "no beads" in capsys.readouterr().err
    for call, error, text in [
        (lambda: calibrate.find_beads(np.ones((3, 9, 9))), ValueError, r"shape \(3, 9, 9\)"),
        (lambda: calibrate.find_beads(np.ones((5, 9, 9)), box=8), ValueError, "box = 8"),
        (lambda: calibrate.calibrate(["a.tif"], tmp_path, 0.1, psf="moon"), ValueError, "psf='moon'"),
        (lambda: calibrate.calibrate(["a.tif"], tmp_path / "flat.tif", 0.1), DataError, "is a file"),
    ]:
        with pytest.raises(error, match=text):
            call()
