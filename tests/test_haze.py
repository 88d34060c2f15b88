"""Light of molecules out of focus is background, and what lies in it is told from molecules that are dim."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from smlmcore import camera, data, localize, psf
from smlmcore.localize.background import background
from smlmcore.localize.believe import HAZY, believe
from smlmcore.localize.chunks import localize_frames
from smlmcore.localize.crowd import fit_peaks
from smlmcore.localize.emitters import Emitters
from smlmcore.localize.finder import find
from smlmcore.localize.haze import drifting, fog_over, haze
from smlmcore.localize.network import general
from smlmcore.localize.shape import usual_of
from smlmcore.simulate.movie import light

SHAPE = (60, 64, 72)
MODEL = psf.Gaussian2D()


def emitters(rng, per_frame, width, photons, margin=0.0):
    """Frame and parameters of molecules: `photons` is a function of their number."""
    frame = np.repeat(np.arange(SHAPE[0]), rng.poisson(per_frame, SHAPE[0]))
    x, y = (rng.uniform(-0.5 - margin, side - 0.5 + margin, len(frame)) for side in SHAPE[:0:-1])
    sigma = rng.uniform(*np.broadcast_to(width, 2), len(frame))
    return frame, {"x": x, "y": y, "photons": photons(len(frame)), "sigma": sigma}


def movie(rng, blobs, photons, per_frame=12):
    """Frames, the truth, and the mean light of so many blobs in a frame."""
    frame, values = emitters(rng, per_frame, 1.3, photons)
    far, wide = emitters(rng, blobs, (4, 7), lambda n: np.full(n, 2000.0), margin=8)
    hidden = light(MODEL, wide, far, SHAPE)
    mean = light(MODEL, values, frame, SHAPE) + hidden + 10
    return rng.poisson(mean).astype(np.float32), data.table(frame=frame, **values), hidden


def alike(rng):
    return lambda n: 2000 * np.exp(0.3 * rng.normal(size=n))


def broad(rng):
    return lambda n: 150 + rng.exponential(1500, n)


def jaccard(frames, truth, network):
    usual = usual_of(frames)
    table = localize_frames(frames, sigma=usual.sigma, network=network, light=(usual.photons, usual.scatter))
    return localize.score(table, truth, 0.1)["250"]["jaccard"]


@pytest.mark.parametrize("kind", [alike, broad])
@pytest.mark.parametrize("way", ["fit", "auto"])
def test_blobs_are_no_molecules(kind, way, monkeypatch):
    network = general() if way == "auto" else None
    rng = np.random.default_rng(0)
    frames, truth, _ = movie(rng, 3, kind(rng))
    rng = np.random.default_rng(0)
    clear, same, _ = movie(rng, 0, kind(rng))
    assert np.array_equal(truth, same)
    cleared, best = jaccard(frames, truth, network), jaccard(clear, truth, network)
    assert cleared > 0.97 * best
    monkeypatch.setattr("smlmcore.localize.chunks.haze", lambda *given: None)
    assert jaccard(frames, truth, network) < 0.9 * best
    assert jaccard(clear, truth, network) == best  # where there is no haze nothing has changed


def fitted(frames, **more):
    behind = background(frames)
    return behind, fit_peaks(frames, behind, find(frames, behind), MODEL, **more)


def test_haze_is_found_again():
    rng = np.random.default_rng(1)
    frames, _, hidden = movie(rng, 3, alike(rng))
    behind, found = fitted(frames)
    fog = haze(frames, behind, found, MODEL, photons=2000.0)
    assert fog.shape == frames.shape
    assert (fog - 10 - hidden).std() < 0.35 * hidden.std()
    dark = frames.copy()
    dark[:, 20:23, 30:34] = np.nan
    seen = np.isfinite(dark)
    again = haze(dark, behind, found, MODEL, photons=2000.0)
    assert np.isfinite(again).all()
    assert abs(again - fog)[seen].mean() < 0.02 * fog.mean()


def test_chunks_side_by_side_render_in_turn(monkeypatch):
    """For numba's threads may not be for two at a time: with some of its layers the process would abort."""
    rng = np.random.default_rng(1)
    frames, _, _ = movie(rng, 3, alike(rng))
    behind, found = fitted(frames)
    at_work, most = [], []

    def slow(*given):
        at_work.append(1)
        most.append(len(at_work))
        time.sleep(0.01)
        at_work.pop()
        return light(*given)

    monkeypatch.setattr("smlmcore.localize.haze.light", slow)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(haze, frames, behind, found, MODEL, photons=2000.0) for _ in range(2)]
    assert np.array_equal(*(b.result() for b in both))
    assert len(most) > 2
    assert max(most) == 1


def test_dim_molecules_are_no_haze():
    rng = np.random.default_rng(2)
    frames, _, _ = movie(rng, 0, broad(rng))
    behind, found = fitted(frames)
    assert (found.theta[:, 2] < 500).mean() > 0.1
    assert haze(frames, behind, found, MODEL, photons=2000.0) is None


def test_nothing_to_clear():
    frames, flat = np.full((3, 16, 20), 5.0), np.full((1, 16, 20), 5.0)
    none = Emitters(np.empty(0, int), np.empty((0, 5)), np.empty((0, 5)), *[np.empty(0)] * 5)
    assert haze(frames, flat, none, MODEL, photons=2000.0) is None
    assert haze(frames[:0], flat, none, MODEL, photons=2000.0) is None
    assert haze(frames, flat, none, MODEL) is None  # nobody knows what a molecule is
    lost = Emitters(np.zeros(2, int), np.full((2, 5), np.nan), np.full((2, 5), np.nan), *[np.zeros(2)] * 5)
    assert haze(frames, flat, lost, MODEL, photons=2000.0) is None


@pytest.mark.parametrize("sigma", [1.0, 1.6])
def test_noise_drifts_as_much_as_is_said(sigma):
    rng = np.random.default_rng(3)
    variance = np.broadcast_to(rng.uniform(5, 50, SHAPE[1:]).astype(np.float32), SHAPE).copy()
    frames = (rng.normal(size=SHAPE) * np.sqrt(variance)).astype(np.float32)
    fog = fog_over(frames, np.zeros(SHAPE, np.float32), variance, sigma)
    inside = np.zeros(SHAPE, bool)
    inside[:, 16:-16, 16:-16] = True
    light, noise = drifting(fog, variance, inside, sigma)
    assert light == pytest.approx(noise, rel=0.04)
    assert drifting(fog[:1], variance[:1], inside[:1], sigma) == (0.0, 0.0)  # of one frame nothing can be said


@pytest.mark.parametrize("blobs", [0, 3])
def test_the_report_tells_of_haze(blobs):
    rng = np.random.default_rng(4)
    frames, truth, _ = movie(rng, blobs, alike(rng))

    class Frames:
        shape, camera = SHAPE, camera.Camera(0.0, 1.0)

        def read(self, start, stop):
            return frames[start:stop], None

    table = data.table(**{n: truth[n] for n in ("frame", "x", "y", "photons")}, sigma_x=truth["sigma"])
    told = believe(Frames(), table, MODEL, 1.3)
    assert told["believable"]
    assert told["elsewhere"]["chi2_per_pixel"] == pytest.approx(1, abs=0.08)  # haze has become background
    assert told["haze"]["hazy"] == (blobs > 0)
    assert (told["haze"]["photons"] > HAZY * told["haze"]["of_noise"]) == (blobs > 0)
