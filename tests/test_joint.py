"""Emitters and pupil fitted together: derivatives against independent ones, steps against the dense system."""

import numpy as np
import pytest

from smlmcore import psf
from smlmcore.psf.joint import Joint, derivatives

OPTICS = {"na": 1.4, "wavelength": 0.68, "n_immersion": 1.518, "pixel_size": 0.1, "samples": 32}
MODES = [(2, 2), (3, 1), (4, 0)]
INNER = [(2, 0), (1, 1)]
THETA = np.array([[5.3, 6.1, 0.2, 1000.0, 5.0], [6.0, 6.0, -0.35, 2000.0, 3.0]])
SHAPE = (11, 12)


@pytest.mark.parametrize(
    "more",
    [
        {"n_medium": 1.518, "vectorial": False},
        {"n_medium": 1.33, "depth": 0.3},  # evanescent waves, one emitter at the glass
        {"n_medium": 1.33, "blur": 0.5, "integrate": True},
    ],
    ids=["scalar", "evanescent", "blurred"],
)
def test_derivatives_agree_with_the_kernels_and_with_differences(more):
    c, b = np.array([0.5, 0.2, -0.3]), np.array([0.1, -0.05])

    def pupil(c, b):
        return psf.Pupil(**OPTICS, **more, zernike=c, modes=MODES, magnitude=dict(zip(INNER, b, strict=True)))

    p = pupil(c, b)
    phase, magnitude = (p.polynomials(modes) * p.inside for modes in (MODES, INNER))
    value, partials = derivatives(p, THETA, SHAPE, phase, magnitude)
    expected, own = p.partials(THETA, SHAPE)
    np.testing.assert_allclose(value, expected, rtol=1e-11)
    np.testing.assert_allclose(partials[:, :5], own, rtol=0, atol=1e-10 * np.abs(own).max())
    h = 1e-4  # central differences are wrong by h^2 / 6 of the third derivative, here about 1e-8
    for i in range(5):
        step = h * np.eye(5)[i]
        high, low = (pupil(c + s * step[:3], b + s * step[3:]).partials(THETA, SHAPE)[0] for s in (1, -1))
        np.testing.assert_allclose(partials[:, 5 + i], (high - low) / (2 * h), atol=1e-6 * np.abs(partials).max())


@pytest.mark.parametrize("how", ["own", "bead", "drift"])
def test_a_step_solves_the_whole_system(how):
    rng = np.random.default_rng(0)
    p = psf.Pupil(**OPTICS, n_medium=1.518, vectorial=False, zernike=[0.3, 0.1, 0.2], modes=MODES)
    theta = np.array([[5, 5.5, z, 2000, 5.0] for z in (-0.4, 0.0, 0.4, -0.2, 0.3)])
    bead = None if how == "own" else np.array([0, 0, 0, 1, 1])
    images = rng.poisson(p.partials(theta, SHAPE)[0]).astype(float)
    joint = Joint(p, images, theta, 0.5, MODES, bead=bead, own_xy=how == "drift", prior=2.0)
    normal = joint.normal(joint.psf, joint.theta, joint.shared)
    move, change, promise = joint.step(normal, 0.0)

    # one matrix: the own parameters of each image, those of each bead, the shared ones
    names = [(i, k) for i in range(5) for k in joint.own] + [("bead", b, k) for b in range(2) for k in joint.common]
    number = {name: j for j, name in enumerate(names)}
    size = len(names) + 3
    f, g = np.zeros((size, size)), np.zeros(size)
    for i in range(5):
        where = [number[i, k] if k in joint.own else number["bead", bead[i], k] for k in range(5)]
        where += range(len(names), size)
        f[np.ix_(where, where)] += normal.information[i]
        g[where] += normal.gradient[i]
    f[-3:, -3:] += np.eye(3) / 2.0**2
    g[-3:] -= joint.shared / 2.0**2
    whole = np.linalg.solve(f, g)
    np.testing.assert_allclose(change, whole[-3:], rtol=1e-5)
    np.testing.assert_allclose(move[:, 3], [whole[number[i, 3]] for i in range(5)], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(joint.covariance(normal), np.linalg.inv(f)[-3:, -3:], rtol=1e-6)
    assert promise > 0


def test_nan_pixels_carry_nothing():
    p = psf.Pupil(**OPTICS, n_medium=1.518, vectorial=False, zernike=[0.3, 0.1, 0.2], modes=MODES)
    images = p.partials(THETA, SHAPE)[0]
    spoiled = images.copy()
    spoiled[:, 0] = 1e9
    masked = np.where(spoiled > 1e8, np.nan, spoiled)
    variance = np.where(spoiled > 1e8, np.inf, 0.0)
    a, b = (Joint(p, d, THETA, v, MODES) for d, v in ((masked, 0.0), (spoiled, variance)))
    for x, y in zip(
        vars(a.normal(p, THETA, a.shared)).values(), vars(b.normal(p, THETA, b.shared)).values(), strict=True
    ):
        assert np.isfinite(x).all()
        np.testing.assert_array_equal(x, y)
