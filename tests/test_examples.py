"""Every example runs with --quick in a process of its own and ends in a table, a report and a picture.

Those that have much to compile run with `pytest -m slow tests/test_examples.py` only.
"""

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
SLOW = ("dense_emitters", "several_emitters")
NAMES = [
    pytest.param(path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else [])
    for path in sorted(FOLDER.glob("*.py"))
]

# What a report must hold after a short training: path of keys -> lowest and highest value.
LIMITS = {
    "single_gaussian": {("refined", "x", "rmse_over_crlb"): (0.8, 1.2), ("encoder", "fits"): (256, 256)},
    "astigmatic": {("refined", "z", "rmse_over_crlb"): (0.8, 1.2), ("encoder", "fits"): (256, 256)},
    "blind_pupil": {("zernike_error",): (0, 0.02), ("refined", "x", "rmse_over_crlb"): (0.8, 1.2)},
    "spline_psf": {("2-D, noiseless", "R2"): (0.98, 1), ("3-D, noisy", "loss / noise floor"): (0.8, 1.3)},
    "template_tracking": {("MSE / noise floor",): (0.9, 1.2)},
    "deconvolution": {
        ("2-D: blind: a new object, from the kernel found", "dB"): (33, 40),
        ("3-D, confocal: blind: a new object, from the kernel found", "dB"): (39, 45),
    },
    "denoising": {("noisy", "dB"): (17, 20), ("all images, 60 steps", "dB"): (26.5, 32)},
    "dense_emitters": {("60 per frame, network of the package, refined", "jaccard"): (0.97, 1)},
    "several_emitters": {("refined", "jaccard"): (0.98, 1), ("refined", "rmse over CRLB, isolated"): (0.85, 1.15)},
}


@pytest.mark.parametrize("name", NAMES)
def test_example(name, tmp_path):
    command = [sys.executable, FOLDER / f"{name}.py", "--quick", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 1
    report = json.loads((tmp_path / "report.json").read_text())
    numbers = dict(flat(report))
    assert numbers
    assert all(map(math.isfinite, numbers.values()))
    for keys, (low, high) in LIMITS.get(name, {}).items():
        assert low <= numbers[keys] <= high, (keys, numbers[keys])
    assert (tmp_path / "report.png").stat().st_size > 10_000


def flat(report, keys=()):
    """All numbers of a report, by their path of keys."""
    for key, value in report.items():
        if isinstance(value, Mapping):
            yield from flat(value, (*keys, key))
        elif not isinstance(value, str):
            yield (*keys, key), value
