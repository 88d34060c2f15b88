"""The PSF behind a pupil: images against quadrature and other packages, energy, gradients, sampling, fits, files."""

import json
import math

import numpy as np
import pytest
from scipy.special import j0, j1

from smlmcore import data, fit, plot, psf
from smlmcore.autograd import Tensor
from smlmcore.psf import zernike
from smlmcore.testing import check_gradient

OIL = {"na": 1.4, "wavelength": 0.68, "n_immersion": 1.518, "n_medium": 1.518, "pixel_size": 0.1}
ABERRATED = {(2, 2): 0.6, (2, -2): -0.2, (3, 1): 0.2, (3, -1): 0.1, (4, 0): -0.2}


def radii(size, pixel):
    return np.hypot(*np.meshgrid(*[(np.arange(size) - (size - 1) / 2) * pixel] * 2))


def quadrature(r, z, na, wavelength, n_immersion, n_medium, pixel_size, depth=0.0, nodes=2000):
    """Photons per pixel of a free dipole by Gauss-Legendre quadrature over the angle: (len(z), *r.shape).

    Below the critical angle over theta, sin(theta) = s / n_medium, above it over t, cosh(t) = s / n_medium: nothing is
    singular.  s = n sin(theta); J0, J1, J2 integrals of Richards and Wolf; in the paraxial focus of `depth`.
    """
    k0, x, w = 2 * np.pi / wavelength, *np.polynomial.legendre.leggauss(nodes)
    top = math.asin(min(na / n_medium, 1))
    theta = top * (x + 1) / 2
    s, c_med, ds = n_medium * np.sin(theta), np.cos(theta) + 0j, w * top / 2 * n_medium * np.cos(theta)
    if na > n_medium:
        t = math.acosh(na / n_medium) * (x + 1) / 2
        s = np.r_[s, n_medium * np.cosh(t)]
        c_med = np.r_[c_med, 1j * np.sinh(t)]
        ds = np.r_[ds, w * math.acosh(na / n_medium) / 2 * n_medium * np.sinh(t)]
    c_imm = np.sqrt(1 - (s / n_immersion) ** 2)
    t_p = 2 * n_medium * c_med / (n_immersion * c_med + n_medium * c_imm)
    t_s = 2 * n_medium * c_med / (n_medium * c_med + n_immersion * c_imm)
    a_p, a_s = (t * np.sqrt(c_imm) / c_med for t in (t_p, t_s))
    fields = [a_p * c_med + a_s, a_p * s / n_medium, a_p * c_med - a_s]
    distinct, index = np.unique(r.ravel().round(9), return_inverse=True)
    v = k0 * np.outer(s, distinct) + 1e-12
    bessel = [j0(v), j1(v), 2 * j1(v) / v - j0(v)]
    images = []
    for one in z:
        focus = depth * n_immersion / n_medium
        wave = np.exp(1j * k0 * (n_medium * c_med * (depth + one) - n_immersion * c_imm * focus))
        i0, i1, i2 = ((f * wave * s * ds) @ b for f, b in zip(fields, bessel, strict=True))
        energy = (abs(a_p * c_med * wave) ** 2 + abs(a_s * wave) ** 2 + abs(a_p * s / n_medium * wave) ** 2) @ (s * ds)
        intensity = 2 * np.pi**2 * (abs(i0) ** 2 + 2 * abs(i1) ** 2 + abs(i2) ** 2)
        images.append(intensity * pixel_size**2 * (k0 / (2 * np.pi)) ** 2 / (2 * np.pi * energy))
    return np.array(images)[:, index].reshape(len(z), *r.shape)


@pytest.mark.parametrize("na", [1.4, 1.2])
def test_images_against_quadrature(na):
    optics = {**OIL, "na": na}
    z = np.linspace(0, 1, 5)
    expected = quadrature(radii(25, 0.1), z, **optics)
    error = np.abs(psf.Pupil(**optics, samples=256).volume(z, (25, 25)) - expected).max() / expected.max()
    assert error < 1e-4, error
    coarse = np.abs(psf.Pupil(**optics, samples=64).volume(z, (25, 25)) - expected).max() / expected.max()
    assert coarse < 1e-3, coarse  # what the default is good for


@pytest.mark.parametrize("na", [1.4, 1.2])
@pytest.mark.parametrize("depth", [0.0, 1.0, 2.0])
def test_index_mismatch_against_quadrature(na, depth):
    optics = {**OIL, "na": na, "n_medium": 1.33}
    z = np.array([0.0, 0.4])
    expected = quadrature(radii(25, 0.1), z, **optics, depth=depth)
    image = psf.Pupil(**optics, samples=320 if depth < 2 else 768, depth=depth).volume(z, (25, 25))
    error = np.abs(image - expected).max() / expected.max()
    assert error < 1e-4, error


def test_airy_pattern():
    p = psf.Pupil(0.3, 0.6, 1.0, 1.0, 0.2, vectorial=False, apodization=False, samples=256)
    v = 2 * np.pi * 0.3 / 0.6 * radii(31, 0.2)
    airy = np.where(v > 0, 2 * j1(v) / np.where(v > 0, v, 1), 1) ** 2
    image = p.volume([0.0], (31, 31))[0]
    np.testing.assert_allclose(image / image.max(), airy, rtol=0, atol=1e-4)
    np.testing.assert_allclose(image.max(), np.pi * (0.3 / 0.6) ** 2 * 0.2**2, rtol=1e-4)  # pi (NA / wavelength)^2


def test_against_psf_generator():
    torch = pytest.importorskip("torch")
    pytest.importorskip("psf_generator")
    from psf_generator.propagators import ScalarSphericalPropagator, VectorialSphericalPropagator

    n, planes, pixel, step = 33, 5, 0.1, 0.25
    about = {
        "n_pix_pupil": 513, "n_pix_psf": n, "device": "cpu", "wavelength": 680, "na": 1.4, "n_i": 1.518, "n_i0": 1.518,
        "n_s": 1.518, "pix_size": 1000 * pixel * (n - 1) / n, "defocus_step": 1000 * step * (planes - 1) / planes,
        "n_defocus": planes, "apod_factor": True,
    }  # fmt: skip
    z = (np.arange(planes) - 2) * step
    for vectorial in (False, True):
        p = psf.Pupil(**{**OIL, "pixel_size": pixel}, vectorial=vectorial, samples=640)
        ours = p.volume(z, (n, n))
        if vectorial:
            fields = [
                VectorialSphericalPropagator(**about, e0x=e[0], e0y=e[1]).compute_focus_field()
                for e in ((1, 0), (0, 1))
            ]
            theirs = sum((f.abs() ** 2).sum(1) for f in fields)
        else:
            theirs = (ScalarSphericalPropagator(**about).compute_focus_field().abs() ** 2).sum(1)
        theirs = np.asarray(theirs.to(torch.float64)).reshape(planes, n, n)
        theirs = theirs * (ours * theirs).sum() / (theirs**2).sum()
        error = np.abs(ours - theirs).max() / theirs.max()
        assert error < 1e-5, (vectorial, error)


def test_against_psfmodels():
    psfmodels = pytest.importorskip("psfmodels")
    n, px = 25, 0.1
    for medium, depth in ((1.518, 0.0), (1.33, 1.0)):
        optics = {**OIL, "na": 1.2, "n_medium": medium}
        ours = psf.Pupil(**optics, samples=256, depth=depth).volume([0.0], (n, n))[0]
        theirs = psfmodels.vectorial_psf(
            zv=np.array([depth]),  # paraxial focus, as ours
             dxy=px / 11, nx=(n - 1) * 11 + 1, pz=depth, wvl=0.68,
            params={"NA": 1.2, "ni0": 1.518, "ni": 1.518, "ns": medium, "tg": 170, "tg0": 170, "ti0": 150, "ng": 1.518,
                    "ng0": 1.518}, normalize=False,
        )[0, ::11, ::11]  # fmt: skip
        theirs = theirs * (ours * theirs).sum() / (theirs**2).sum()
        error = np.abs(ours - theirs).max() / theirs.max()
        assert error < 2e-4, (medium, error)


# ---------------------------------------------------------------- energy


@pytest.mark.parametrize("medium", [1.518, 1.33])
def test_parseval_over_the_full_period(medium, monkeypatch):
    """One period of the discrete image holds sum w^2 |P|^2 exactly, which goes to sum w |P|^2 = 1 as 1 / m."""
    monkeypatch.setattr(psf.Pupil, "check_sampling", lambda *_: None)  # the period is just what it warns of
    missing = []
    for m in (24, 48, 96):
        p = psf.Pupil(**{**OIL, "n_medium": medium, "pixel_size": 0.68 / 2.8}, samples=m, depth=0.1, zernike=ABERRATED)
        total = p.volume([-0.3, 0.0, 0.5], (m, m)).sum((1, 2))
        fields = p._fields(np, np.float64)[0]
        if medium == 1.518:
            np.testing.assert_allclose(total, (fields**2).sum() * (2 * np.pi / p.step) ** 2, rtol=1e-12)
        missing.append(1 - total[1])
    assert missing[0] < 0.06, missing
    np.testing.assert_allclose(np.divide(missing[:2], missing[1:]), 2, rtol=0.15)


def test_free_dipole_is_the_mean_of_fixed_ones():
    optics = {**OIL, "n_medium": 1.33, "depth": 0.1, "zernike": ABERRATED}
    free = psf.Pupil(**optics).volume([0.2], (15, 15))
    total, energy = 0, 0
    for dipole in ((np.pi / 2, 0), (np.pi / 2, np.pi / 2), (0, 0)):
        p = psf.Pupil(**optics, dipole=dipole)
        # collected light by orientation, from the fields before they are normalised
        a = psf.aperture.aperture(p.optics)
        decayed = np.abs(a.fields * np.exp(-a.axial.imag * 0.2)) ** 2
        light = (a.weight * decayed).sum()
        total, energy = total + light * p.volume([0.2], (15, 15)), energy + light
    np.testing.assert_allclose(total / energy, free, rtol=1e-10)


# ---------------------------------------------------------------- conventions


def test_centre_shape_and_shift():
    p = psf.Pupil(**OIL, zernike={(3, 1): 0.5})
    even, odd = p.volume([0.1], (16, 20))[0], p.volume([0.1], (15, 19))[0]
    assert even.shape == (16, 20)
    plain = psf.Pupil(**OIL)
    for shape in ((16, 20), (15, 19), (1, 1), (2, 7)):
        image = plain.volume([0.1], shape)[0]
        np.testing.assert_allclose(image, image[::-1, ::-1], atol=1e-12)
    shifted = p.render(9.0 + 2, 7.0 - 1, 0.1, 1.0, 0.0, shape=(15, 19))[0]  # an emitter two columns right, one row up
    np.testing.assert_allclose(shifted[:14, 2:], odd[1:, :17], atol=1e-12)
    assert not np.allclose(odd, odd[:, ::-1], atol=1e-4)  # coma along x
    np.testing.assert_allclose(odd, odd[::-1], atol=1e-12)
    np.testing.assert_allclose(p.volume([0.1], (15, 19), photons=500.0, background=3.0)[0], 500 * odd + 3)


def test_tip_moves_the_image_and_defocus_is_z():
    """A phase +a u moves the image to -x: u (k0 NA x + a) = 0; z > 0 is beyond the focus, away from the objective."""
    turn = 2 * np.pi / 0.68 * 1.4 * 0.1  # radians at the rim for one pixel
    p, tipped = psf.Pupil(**OIL), psf.Pupil(**OIL, zernike={(1, 1): turn / 2})
    np.testing.assert_allclose(
        tipped.render(7.0, 7.0, 0.2, 1.0, 0.0, shape=(15, 15)),
        p.render(6.0, 7.0, 0.2, 1.0, 0.0, shape=(15, 15)),
        atol=2e-4,
    )
    kz = 2 * np.pi / 0.68 * np.sqrt(1.518**2 - (1.4 * psf.aperture.aperture(p.optics).rho) ** 2)
    np.testing.assert_allclose(p.replace(phase=0.3 * kz).volume([0.0], (15, 15)), p.volume([0.3], (15, 15)), atol=1e-10)
    mean = (kz * p.weight).sum() / p.weight.sum()
    assert ((kz - mean) * p.polynomials([(2, 0)])[0] * p.weight).sum() < 0  # z > 0 is negative defocus


def test_tip_tilt_defocus_are_moves(rng):
    p = psf.Pupil(
        **OIL, zernike={**ABERRATED, (1, 1): 0.7, (1, -1): -0.4, (2, 0): 0.5}, phase=rng.normal(0, 0.1, (64, 64))
    )
    q, shift = p.remove_tip_tilt_defocus()
    assert abs(shift["z"]) > 0.05
    place = {"x": 7.2, "y": 6.9, "z": 0.1}
    moved = {k: v + shift[k] for k, v in place.items()}
    rest = {"photons": 1.0, "background": 0.0}
    np.testing.assert_allclose(p.render({**place, **rest}, (15, 15)), q.render({**moved, **rest}, (15, 15)), atol=1e-12)
    assert max(map(abs, q.remove_tip_tilt_defocus()[1].values())) < 1e-9
    u = (np.arange(64) + 0.5) / 32 - 1
    kz = psf.aperture.aperture(q.optics).axial.real
    for function in (np.ones((64, 64)), *np.meshgrid(u, u), kz):  # nothing of them is left: they are fitted together
        assert abs((function * q.aberration() * q.weight).sum()) < 1e-7 * np.abs(function).max()


def test_stage_and_emitter_differ_by_the_index():
    optics = {**OIL, "n_medium": 1.33, "depth": 0.3}
    emitter, stage = (psf.Pupil(**optics, moves=moves) for moves in ("emitter", "stage"))
    np.testing.assert_allclose(emitter.volume([0.0], (15, 15)), stage.volume([0.0], (15, 15)))
    focused = psf.Pupil(**optics, focus=0.3 * 1.518 / 1.33 - 0.2).volume([0.0], (15, 15))
    np.testing.assert_allclose(stage.volume([0.2], (15, 15)), focused, atol=1e-12)
    assert np.abs(emitter.volume([0.2], (15, 15)) - focused).max() > 1e-3


def test_blur_is_the_mean_over_shifts():
    z, shape = np.array([0.3]), (9, 11)
    for pixel in (0.1, 0.16):  # the second is too coarse for a filter on its own points
        p = psf.Pupil(**{**OIL, "pixel_size": pixel}, zernike=ABERRATED)
        x, w = np.polynomial.legendre.leggauss(8)
        expected = sum(
            a * b / 4 * p.render(5 + u / 2, 4 + v / 2, z, 1.0, 0.0, shape=shape)
            for u, a in zip(x, w, strict=True)
            for v, b in zip(x, w, strict=True)
        )
        got = psf.Pupil(**{**OIL, "pixel_size": pixel}, zernike=ABERRATED, integrate=True).volume(z, shape)
        assert np.abs(got - expected).max() / expected.max() < 1e-4
        x, w = np.polynomial.hermite_e.hermegauss(12)
        expected = sum(
            a * b / (2 * np.pi) * p.render(5 + 0.6 * u, 4 + 0.6 * v, z, 1.0, 0.0, shape=shape)
            for u, a in zip(x, w, strict=True)
            for v, b in zip(x, w, strict=True)
        )
        got = psf.Pupil(**{**OIL, "pixel_size": pixel}, zernike=ABERRATED, blur=0.6).volume(z, shape)
        assert np.abs(got - expected).max() / expected.max() < 1e-4


def test_several_emitters_and_both_ways_to_call():
    p = psf.Pupil(**OIL, samples=32)
    x, y, z = np.array([[3.0, 6.0], [4.0, 5.0]]), 4.0, 0.1
    both = p.render(x, y, z, np.array([100.0, 200.0])[:, None], [1.0, 2.0], shape=(9, 9))
    one = [p.render(x[:, i], y, z, [100.0, 200.0], 0.0, shape=(9, 9)) for i in (0, 1)]
    np.testing.assert_allclose(both, one[0] + one[1] + np.array([1.0, 2.0])[:, None, None], rtol=1e-12)
    named = {"x": x, "y": y, "z": z, "photons": np.array([[100.0], [200.0]]), "background": np.array([1.0, 2.0])}
    np.testing.assert_array_equal(p.render(named, (9, 9)), both)
    assert p.render(np.zeros(0), 4.0, 0.1, 100.0, 1.0, shape=(9, 9)).shape[0] == 0
    with pytest.raises(TypeError, match="expected render"):
        p.render(x, y, shape=(9, 9))


# ---------------------------------------------------------------- gradients


VARIANTS = [
    {},
    {"n_medium": 1.33, "depth": 0.3},
    {"n_medium": 1.33, "depth": 0.3, "moves": "stage"},
    {"vectorial": False},
    {"dipole": (0.5, 1.0)},
    {"blur": 0.7, "integrate": True},
]


def drawn(rng, m, n=2):
    """x, y, z, photons, background, nine Zernike coefficients, phase and magnitude of every sample."""
    per_image = [rng.uniform(*ends, n) for ends in ((3, 4), (3, 4), (-0.2, 0.2), (500, 900), (1, 3))]
    return [*per_image, rng.normal(0, 0.2, 9), rng.normal(0, 0.1, (m, m)), rng.uniform(0.8, 1.2, (m, m))]


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_to_every_parameter(variant, rng):
    """One random direction over all parameters together: 1e-8 of the derivative, by extrapolated differences."""
    p = psf.Pupil(**{**OIL, **variant}, samples=40)

    def image(x, y, z, photons, background, zernikes, phase, magnitude):
        pupil = p.replace(zernike=zernikes, modes=zernike.noll(9), phase=phase, magnitude=magnitude)
        return pupil.render(x, y, z, photons, background, shape=(7, 8))

    values = drawn(rng, 40)
    check_gradient(image, *values)
    for only in [range(8), *([i] for i in range(8))]:
        tensors = [Tensor(v) if i in only else v for i, v in enumerate(values)]
        directions = [rng.normal(size=v.shape) * np.abs(v).mean() for v in values]
        out = image(*tensors)
        w = rng.normal(size=out.shape)
        out.backward(w)
        analytic = sum((tensors[i].grad * directions[i]).sum() for i in only)

        def along(h, only=only, directions=directions, w=w):
            pairs = enumerate(zip(values, directions, strict=True))
            return (image(*(v + h * d if i in only else v for i, (v, d) in pairs)) * w).sum()

        h = 4e-3 / 2 ** np.arange(4)
        rows = np.array([(along(s) - along(-s)) / (2 * s) for s in h])
        for order in (4, 16, 64):
            rows = (order * rows[1:] - rows[:-1]) / (order - 1)
        assert abs(rows[-1] - analytic) < 1e-8 * abs(analytic), (list(only), rows, analytic)


@pytest.mark.parametrize("variant", VARIANTS[1::4])
def test_partials_of_images_and_of_the_fitter(variant, rng):
    *columns, zernikes, phase, magnitude = drawn(rng, 40)
    p = psf.Pupil(**{**OIL, **variant}, samples=40, zernike=zernikes, phase=phase, magnitude=magnitude)
    theta = np.stack(columns, 1)
    value, partials = p.partials(theta, (7, 8))
    np.testing.assert_allclose(value, p.render(*columns, shape=(7, 8)), rtol=1e-12)
    for i in range(5):
        h = 1e-4 * np.abs(theta[:, i]).max()
        ends = [p.render(*(theta + s * h * np.eye(5)[i]).T, shape=(7, 8)) for s in (1, -1)]
        numeric = (ends[0] - ends[1]) / (2 * h)
        np.testing.assert_allclose(partials[:, i], numeric, atol=1e-5 * np.abs(numeric).max())
    one, derivatives = np.empty((7, 8)), np.empty((5, 7, 8))
    p.numba_partials(theta[0], p.constants, one, derivatives, np.empty(1))
    np.testing.assert_allclose(one, value[0], rtol=1e-10)
    assert (np.abs(derivatives - partials[0]) < 1e-10 * np.abs(partials[0]).max((1, 2), keepdims=True)).all()


def test_float32_learned_from_float64_coefficients():
    c = Tensor(np.array([0.1, -0.2]))
    p = psf.Pupil(**OIL, zernike=np.zeros(2), modes=[(2, 2), (4, 0)], samples=32).replace(zernike=c)
    image = p.render(np.float32([4.0]), 4.0, 0.1, 100.0, 1.0, shape=(9, 9))
    assert image.dtype == np.float32
    image[0, 4, 4].backward()
    assert c.grad.dtype == np.float64
    assert (c.grad != 0).all()


# ---------------------------------------------------------------- sampling and wrong input


def test_sampling_rule_is_what_keeps_copies_out():
    """Where the rule is kept, finer samples change little; below it, copies of the image come in, and it says so."""
    z, shape = [-1.0, 1.0], (25, 25)
    needed = psf.Pupil(**OIL).samples_needed(shape, z)
    fine = psf.Pupil(**OIL, samples=256).volume(z, shape)
    at = psf.Pupil(**OIL, samples=needed + 1).volume(z, shape)
    assert np.abs(at - fine).max() < 0.03 * fine.max()
    coarse = psf.Pupil(**OIL, samples=needed // 3)
    with pytest.raises(
        ValueError,
        match=rf"too coarse for images of \(25, 25\).*give samples={coarse.samples_needed(shape, z)} or more",
    ):
        coarse.volume(z, shape)
    coarse.check_sampling = lambda *_: None
    assert np.abs(coarse.volume(z, shape) - fine).max() > 0.1 * fine.max()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"na": 1.6}, r"na=1.6 with n_immersion=1.518.*below"),
        ({"na": 1.518}, "na=1.518 with n_immersion=1.518"),
        ({"wavelength": -0.68}, r"wavelength=-0.68; expected a number > 0 in um"),
        ({"pixel_size": 0}, "pixel_size=0"),
        ({"n_medium": 0.9}, "refractive indices"),
        ({"samples": 2}, "samples=2"),
        ({"dipole": (1.0,)}, r"dipole=\(1.0,\)"),
        ({"dipole": (1.0, 0.0), "vectorial": False}, "vectorial=True"),
        ({"moves": "up"}, "moves='up'"),
        ({"depth": -1.0}, "depth=-1.0"),
        ({"z_range": (1, 1)}, "z_range"),
        ({"zernike": {(2, 1): 0.1}}, r"mode \(2, 1\)"),
        ({"zernike": np.zeros((2, 2))}, r"zernike of shape \(2, 2\)"),
        ({"zernike": [0.1], "modes": [(1, 1), (2, 0)]}, "1 zernike coefficients for 2 modes"),
        ({"phase": np.zeros((5, 5))}, r"phase of shape \(5, 5\); expected \(64, 64\)"),
        ({"magnitude": np.zeros(5)}, r"magnitude of shape \(5,\)"),
    ],
)
def test_wrong_optics_name_what_came(change, words):
    with pytest.raises(ValueError, match=words):
        psf.Pupil(**{**OIL, **change})


def test_one_plane_odd_and_even_sizes_and_nan():
    p = psf.Pupil(**OIL, samples=32)
    assert p.volume(0.0, (5, 6)).shape == (1, 5, 6)
    assert p.volume([], (5, 6)).shape == (0, 5, 6)
    broken = p.render([2.0, np.nan], 2.0, [0.1, 0.1], 100.0, 1.0, shape=(5, 6))
    assert np.isfinite(broken[0]).all()
    assert np.isnan(broken[1]).all()


# ---------------------------------------------------------------- fits and files


def test_depth_at_the_bound(rng):
    """Direct fits in three dimensions from the PSF's own first guess."""
    n, shape = 4000, (15, 15)
    p = psf.Pupil(**OIL, samples=32, zernike=ABERRATED, z_range=(-0.8, 0.8))
    images, truth = fit.simulate_spots(p, n, shape, rng, z=(-0.6, 0.6))
    result = fit.mle(images, p)
    good = result.status == fit.Status.converged
    assert good.mean() > 0.99
    bound = p.crlb(truth, shape)
    error = (result.parameters - truth)[good] / bound[good]
    assert (np.abs(error[:, 2]) < 6).mean() > 0.995
    ratio = np.sqrt((error[np.abs(error[:, 2]) < 6] ** 2).mean(0))
    assert (ratio < 1.05).all(), ratio
    assert (ratio > 0.95).all(), ratio
    np.testing.assert_allclose(np.median(result.errors / bound, 0), 1, atol=0.03)


def test_files_there_and_back(tmp_path, rng):
    p = psf.Pupil(
        **{**OIL, "n_medium": 1.33, "depth": 0.2, "focus": 0.1, "blur": 0.4, "z_range": (-0.5, 0.7)},
        zernike=ABERRATED, phase=rng.normal(0, 0.1, (48, 48)), magnitude={(2, 0): 0.1}, samples=48, dipole=(0.3, 0.2),
    )  # fmt: skip
    image = p.volume([0.1], (9, 9))
    p.save(tmp_path / "psf.npz")
    for twin in (psf.Pupil.load(tmp_path / "psf.npz"), psf.Pupil(**json.loads(json.dumps(p.configuration())))):
        np.testing.assert_array_equal(twin.volume([0.1], (9, 9)), image)
        assert twin.z_range == (-0.5, 0.7)
    (tmp_path / "other.npz").write_bytes(b"no")
    with pytest.raises(data.DataError, match="no Pupil of this library"):
        psf.Pupil.load(tmp_path / "other.npz")


def test_picture(tmp_path):
    coefficients = Tensor(np.array([0.2, -0.4]))
    p = psf.Pupil(**OIL, zernike=coefficients, modes=[(2, 2), (4, 0)], magnitude={(2, 0): -0.1}, samples=32)
    figure = plot.pupil(p, (15, 17))
    figure.savefig(tmp_path / "pupil.png", dpi=60)
    bars = figure.axes[2].patches
    assert [b.get_width() for b in bars] == [0.2, -0.4]
    np.testing.assert_array_equal(figure.axes[3 + 2 + 2].images[0].get_array(), p.detach().volume([0.0], (15, 17))[0])
