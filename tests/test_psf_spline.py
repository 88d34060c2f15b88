"""Spline PSFs: the image against an independent one, fits against the bound, beads, and files of others."""

import pickle

import numpy as np
import pytest
from scipy.io import savemat

from smlmcore import fit, psf, testing
from smlmcore.data import DataError
from smlmcore.interpolate import sample
from smlmcore.psf import AstigmaticGaussian, Spline, beads
from smlmcore.psf.spline import astigmatic_stack
from smlmcore.psf.spline_files import samples_of

SHAPE = (13, 13)
TRUE = AstigmaticGaussian(1.15, 0.25, 0.45, z_range=(-1.0, 1.0))  # what astigmatic_stack draws


@pytest.fixture(scope="module")
def model():
    return Spline.from_array(astigmatic_stack(), 0.05)


@pytest.fixture(scope="module")
def spots(model):
    return fit.simulate_spots(
        TRUE, 20_000, SHAPE, np.random.default_rng(0), z=(-0.6, 0.6), photons=2000.0, background=10.0
    )


def test_image_is_that_of_the_function_that_was_sampled(model):
    """On the planes up to the lateral error of a cubic spline; between them as well, as the planes lie close."""
    rng = np.random.default_rng(0)
    n = 50
    values = {"x": rng.uniform(5, 7, n), "y": rng.uniform(5, 7, n), "z": rng.uniform(-0.6, 0.6, n)}
    values |= {"photons": 1000.0, "background": 1.0}
    got, want = model.render(values, SHAPE), TRUE.render(values, SHAPE)
    scale = TRUE.render({**values, "z": 0.25}, SHAPE).max()
    assert np.abs(got - want).max() < 0.01 * scale
    assert np.sqrt(np.mean((got - want) ** 2)) < 0.001 * scale


def test_samples_are_what_the_spline_passes_through(model):
    stack = astigmatic_stack()
    np.testing.assert_allclose(model.samples(), stack / stack.sum((1, 2)).max(), atol=1e-14)


def test_gradients(model):
    rng = np.random.default_rng(1)
    x, y, z, n = (rng.uniform(*ends, (2, 2)) for ends in ((5, 7), (5, 7), (-0.5, 0.5), (500, 900)))

    def render(x, y, z, n, b):
        return model.render({"x": x, "y": y, "z": z, "photons": n, "background": b}, (9, 11))

    testing.check_gradient(render, x, y, z, n, np.array([2.0, 3.0]))


def test_partials_are_derivatives(model):
    theta = np.array([[6.1, 5.7, 0.13, 900.0, 3.0], [5.2, 6.4, -0.41, 700.0, 1.0]])
    value, partials = model.partials(theta, SHAPE)
    for a, step in enumerate((1e-5, 1e-5, 1e-5, 1e-2, 1e-2)):
        e = np.eye(5)[a] * step
        difference = (model.partials(theta + e, SHAPE)[0] - model.partials(theta - e, SHAPE)[0]) / (2 * step)
        np.testing.assert_allclose(partials[:, a], difference, atol=1e-4 * np.abs(partials[:, a]).max())
    assert value.min() > 0


def test_beyond_the_image_and_the_planes(model):
    at = {"x": 6.0, "y": 6.0, "photons": 100.0, "background": 1.0}
    low, high = model.z_range
    np.testing.assert_array_equal(model.render({**at, "z": high + 1}, SHAPE), model.render({**at, "z": high}, SHAPE))
    np.testing.assert_array_equal(model.render({**at, "z": low - 1}, SHAPE), model.render({**at, "z": low}, SHAPE))
    np.testing.assert_array_equal(model.render({**at, "x": 300.0, "z": 0.0}, SHAPE), np.ones((1, *SHAPE)))
    assert np.isnan(model.render({**at, "x": np.nan, "z": 0.0}, SHAPE)).all()
    assert model.render({**at, "z": np.empty(0)}, SHAPE).shape == (0, *SHAPE)


def test_fits_reach_the_bound(model, spots):
    images, truth = spots
    result = fit.mle(images, model)
    assert (result.status == fit.Status.converged).mean() >= 0.99
    ratio = (result.parameters - truth) / TRUE.crlb(truth, SHAPE)
    np.testing.assert_array_less(np.sqrt((ratio**2).mean(0)), 1.05)
    np.testing.assert_allclose(np.median(result.errors / TRUE.crlb(truth, SHAPE), 0), 1, atol=0.02)


def test_the_fast_fit_is_the_general_one(model, spots):
    """Both stop within 0.03 standard errors of the maximum, and mostly much nearer."""
    images, _ = spots
    images = images[:300].copy()
    images[0, 3, 4] = np.nan
    variance = np.random.default_rng(2).gamma(1.0, 4.0, SHAPE)
    noisy = images + np.random.default_rng(3).normal(size=images.shape) * np.sqrt(variance)
    variance[2, 2] = np.inf
    for given, v in ((images, None), (noisy, variance)):
        fast = fit.mle(given, model, variance=v)
        slow = fit.refine(model, given.astype(float), 0.0 if v is None else v, np.asarray(fast.parameters, float))
        assert (fast.status == fit.Status.converged).all()
        assert np.abs((fast.parameters - slow.parameters) / slow.errors).max() < 0.05
        np.testing.assert_allclose(fast.errors, slow.errors, rtol=0.02)
        np.testing.assert_allclose(fast.log_likelihood, slow.log_likelihood, rtol=2e-5, atol=2e-3)
        np.testing.assert_allclose(fast.chi2, slow.chi2, rtol=2e-3)


def test_no_bit_depends_on_neighbours_or_threads(model, spots):
    images = spots[0][:200]
    whole, part = fit.mle(images, model), fit.mle(images[37:71], model, threads=1)
    np.testing.assert_array_equal(whole.parameters[37:71], part.parameters)
    np.testing.assert_array_equal(whole.log_likelihood[37:71], part.log_likelihood)


def test_bounds_fixed_values_and_bad_images(model, spots):
    images = spots[0][:50].copy()
    fixed = fit.mle(images, model, fixed={"z": 0.1})
    assert (fixed.z == np.float32(0.1)).all()
    assert np.isnan(fixed.errors[:, 2]).all()
    bounded = fit.mle(images, model, bounds={"z": (-0.05, 0.05)})
    assert np.abs(bounded.z).max() <= 0.05 + 1e-6
    assert (bounded.status == fit.Status.at_bound).any()
    images[0], images[1, 2, 2], images[2] = np.nan, np.inf, 0
    result = fit.mle(images, model)
    assert result.status[:2].tolist() == [fit.Status.invalid_input] * 2
    assert np.isfinite(result.parameters[3:]).all()
    assert not np.isfinite(result.parameters[result.status == fit.Status.invalid_input]).any()


def test_initial_is_near_the_truth(model, spots):
    images, truth = spots
    guess = model.initial(images[:2000])
    error = guess - truth[:2000]
    assert np.quantile(np.abs(error[:, :2]), 0.99) < 0.8
    assert np.quantile(np.abs(error[:, 2]), 0.99) < 0.25
    holes = images[:5].copy()
    holes[:, 6, 6] = np.nan
    assert np.isfinite(model.initial(holes)).all()


# ---- beads


@pytest.fixture(scope="module")
def bead_stacks():
    """20 beads of 5000 photons in each of 41 slices 50 nm apart, and their places z, y, x."""
    rng = np.random.default_rng(1)
    place = rng.uniform(-1, 1, (20, 3)) * [2, 0.5, 0.5]
    z = (np.arange(41) - 20) * 0.05
    stacks = [
        TRUE.render({"x": 9 + x, "y": 9 + y, "z": z - 0.05 * dz, "photons": 5000.0, "background": 10.0}, (19, 19))
        for dz, y, x in place
    ]
    return rng.poisson(stacks).astype(float), place


def test_noisy_beads_give_a_psf_that_is_as_good_as_the_true_one(bead_stacks, spots):
    stacks, place = bead_stacks
    learned, found = beads.spline(stacks, 0.05)
    assert found.used.all()
    np.testing.assert_array_less(np.std(found.place - place, axis=0), [0.15, 0.02, 0.02])
    images, truth = spots
    result = fit.mle(images, learned)
    good = result.status == fit.Status.converged
    assert good.mean() >= 0.99
    # the mean of the beads is the origin
    error = (result.parameters[:, :3] - truth[:, :3] + place.mean(0)[::-1] * [1, 1, -0.05])[good]
    bound = TRUE.crlb(truth, SHAPE)[good, :3]
    part = np.digitize(truth[good, 2], np.linspace(-0.6, 0.6, 9))
    bias = np.array([error[part == i].mean(0) for i in range(1, 9)])
    spread = np.array([(error[part == i] / bound[part == i]).std(0) for i in range(1, 9)])
    assert spread.mean(0).max() < 1.1
    assert np.abs(bias[:, 2] - bias[:, 2].mean()).max() < 0.005


def test_a_bead_that_is_none_is_left_out(bead_stacks):
    stacks = bead_stacks[0][:6].copy()
    stacks[2] = np.random.default_rng(0).poisson(40.0, stacks[2].shape)
    assert beads.average(stacks)[1].used.tolist() == [True, True, False, True, True, True]


def test_errors_of_beads_and_arrays():
    good = np.ones((2, 5, 7, 7))
    for call, text in [
        (lambda: Spline.from_beads(good[0], 0.05), r"stacks of shape \(5, 7, 7\)"),
        (lambda: Spline.from_beads(good * np.nan, 0.05), "not finite"),
        (lambda: Spline.from_beads(good, 0.0), "dz=0.0"),
        (lambda: Spline.from_beads(good, 0.05, smooth=-1), "smooth=-1"),
        (lambda: Spline.from_array(good[0, :3], 0.05), r"shape \(3, 7, 7\)"),
        (lambda: Spline.from_array(0 * good[0], 0.05), "without light"),
        (lambda: Spline(good[0], 0.05, (9, 3, 3)), r"centre=\(9, 3, 3\)"),
        (lambda: Spline(good[0], -1), "dz=-1"),
    ]:
        with pytest.raises(ValueError, match=text):
            call()


# ---- files


def polynomials(stack, order):
    """The 64 coefficients of each voxel from the spline's values and slopes: what fit3Dcspline stores."""
    model = Spline.from_array(stack, 1.0, normalize=False)
    c = np.pad(model.coefficients, ((1, 1), (0, 0), (0, 0)), mode="reflect")
    t = np.arange(4) / 3
    inverse = np.linalg.inv(t[:, None] ** np.arange(4))
    nz, ny, nx = (n - 1 for n in stack.shape)
    k, j, i, w, v, u = np.ix_(range(nz), range(ny), range(nx), t, t, t)
    shape = (nz, ny, nx, 4, 4, 4)
    points = np.stack([np.broadcast_to(a, shape) for a in (k + w + 1, j + v, i + u)], -1)
    table = np.einsum("kjiwvu,aw,bv,cu->jikbca", sample(c, points, 3, "zero"), inverse, inverse, inverse)
    # axes y, x, z; the power of y runs fastest in fit3Dcspline
    table = table.transpose(0, 1, 2, 5, 4, 3) if order == "F" else table
    return table.reshape(*table.shape[:3], 64)


@pytest.mark.parametrize("order", ["F", "C"])
def test_polynomials_of_voxels_are_resampled(order):
    stack = astigmatic_stack(9, 6, 0.1)
    got = samples_of(polynomials(stack, order)).transpose(2, 0, 1)
    np.testing.assert_allclose(got, stack, atol=1e-12)


def test_files_of_smap(tmp_path):
    stack = astigmatic_stack(9, 8, 0.05)
    c = polynomials(stack, "F")
    cell = np.empty((1, 1), object)
    cell[0, 0] = c
    for name, content in [
        ("plain.mat", {"cspline": {"coeff": c, "dz": 50.0, "z0": 4.0}}),
        ("smap.mat", {"SXY": {"cspline": {"coeff": cell, "dz": 50.0, "z0": 4.0}}}),
    ]:
        savemat(tmp_path / name, content)
        got = Spline.load(tmp_path / name)
        assert got.dz == 0.05
        assert got.centre == (3.0, 4.0, 4.0)
        np.testing.assert_allclose(got.samples(), stack / stack.sum((1, 2)).max(), atol=1e-12)
    savemat(tmp_path / "bare.mat", {"cspline": {"coeff": c}})
    assert Spline.load(tmp_path / "bare.mat", dz=0.02).dz == 0.02
    savemat(tmp_path / "other.mat", {"a": 1})
    savemat(tmp_path / "torn.mat", {"cspline": {"coeff": np.random.default_rng(0).normal(size=c.shape), "dz": 50.0}})
    (tmp_path / "no.mat").write_bytes(b"x" * 500)
    for name, text in [
        ("bare", r"dz=\.\.\."),
        ("other", "no cspline"),
        ("torn", "continuous"),
        ("no", "no MATLAB file"),
    ]:
        with pytest.raises(DataError, match=text):
            Spline.load(tmp_path / f"{name}.mat")


def test_a_matlab_file_of_version_7_3(tmp_path):
    import h5py

    stack = astigmatic_stack(9, 8, 0.05)
    with h5py.File(tmp_path / "new.mat", "w", userblock_size=512) as file:
        group = file.create_group("SXY").create_group("cspline")
        stored = file.create_dataset("#refs#/a", data=polynomials(stack, "F").T)  # columns first
        group.create_dataset("coeff", data=np.array([[stored.ref]], dtype=h5py.ref_dtype))
        group["dz"], group["z0"] = [[50.0]], [[4.0]]
    head = b"MATLAB 7.3 MAT-file".ljust(116) + b"\0" * 8 + b"\x00\x02IM"
    content = (tmp_path / "new.mat").read_bytes()
    (tmp_path / "new.mat").write_bytes(head + content[len(head) :])
    np.testing.assert_allclose(Spline.load(tmp_path / "new.mat").samples(), stack / stack.sum((1, 2)).max(), atol=1e-12)


def test_files_of_storm_analysis_are_read_without_running_code(tmp_path):
    stack = astigmatic_stack(8, 8, 0.05)
    found = {"spline": stack, "coeff": np.zeros((7, 7, 7, 64)), "zmin": -200.0, "zmax": 200.0, "version": 2.0}
    for protocol in (2, 4):
        (tmp_path / "a.spline").write_bytes(pickle.dumps({**found, "type": "3D"}, protocol=protocol))
        got = Spline.load(tmp_path / "a.spline")
        assert got.dz == pytest.approx(0.05)
        np.testing.assert_allclose(got.samples(), stack / stack.sum((1, 2)).max(), atol=1e-12)

    class Evil:
        def __reduce__(self):
            return print, ("code has run",)

    for content, text in [
        ({"spline": Evil()}, "cannot be read safely .*builtins.print.*numpy.save"),
        ({**found, "version": 1.0}, "before version 2"),
        ({"a": 1}, "no 3-D spline"),
    ]:
        (tmp_path / "b.spline").write_bytes(pickle.dumps(content))
        with pytest.raises(DataError, match=text):
            Spline.load(tmp_path / "b.spline")
    (tmp_path / "b.spline").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="cannot be read safely"):
        Spline.load(tmp_path / "b.spline")


def test_own_format(tmp_path, model):
    model.save(tmp_path / "psf.npz")
    got = Spline.load(tmp_path / "psf.npz")
    np.testing.assert_array_equal(got.coefficients, model.coefficients)
    assert (got.dz, got.centre) == (model.dz, model.centre)
    same = psf.Spline(**got.configuration())
    np.testing.assert_array_equal(same.coefficients, model.coefficients)
    np.savez(tmp_path / "other.npz", a=1)
    np.savez(tmp_path / "newer.npz", format="smlmcore spline PSF", version=9)
    (tmp_path / "broken.npz").write_bytes(b"nonsense")
    for name, text in [
        ("other.npz", "holds no spline PSF"),
        ("newer.npz", "version 9"),
        ("broken.npz", "cannot be read"),
        ("none.npz", "no such file"),
        ("psf.txt", "expected one of .npz, .mat, .spline"),
    ]:
        with pytest.raises(DataError, match=text):
            Spline.load(tmp_path / name)
    with pytest.raises(DataError, match=r"written as \.npz"):
        model.save(tmp_path / "psf.mat")
