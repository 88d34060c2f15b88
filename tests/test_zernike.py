"""Zernike polynomials: indices of every school, exact values to high order, orthonormality over the sampled disc."""

from fractions import Fraction
from math import factorial

import numpy as np
import pytest

from smlmcore.psf import Pupil, zernike

# the first modes as the schools print them
NOLL = [(0, 0), (1, 1), (1, -1), (2, 0), (2, -2), (2, 2), (3, -1), (3, 1), (3, -3), (3, 3), (4, 0), (4, 2), (4, -2),
        (4, 4), (4, -4), (5, 1), (5, -1), (5, 3), (5, -3), (5, 5), (5, -5), (6, 0), (6, -2), (6, 2)]  # fmt: skip
ANSI = [(0, 0), (1, -1), (1, 1), (2, -2), (2, 0), (2, 2), (3, -3), (3, -1), (3, 1), (3, 3), (4, -4), (4, -2), (4, 0)]
FRINGE = [(0, 0), (1, 1), (1, -1), (2, 0), (2, 2), (2, -2), (3, 1), (3, -1), (4, 0), (3, 3), (3, -3), (4, 2), (4, -2),
          (5, 1), (5, -1), (6, 0), (4, 4), (4, -4)]  # fmt: skip


def test_indices_as_printed():
    assert [zernike.from_noll(j + 1) for j in range(len(NOLL))] == NOLL
    assert [zernike.from_ansi(j) for j in range(len(ANSI))] == ANSI
    assert [zernike.from_fringe(j + 1) for j in range(len(FRINGE))] == FRINGE
    assert [zernike.from_wyant(j) for j in range(len(FRINGE))] == FRINGE
    assert zernike.to_fringe(10, 0) == 36  # the first radial term of order 10


@pytest.mark.parametrize("school", ["noll", "ansi", "fringe", "wyant"])
def test_indices_there_and_back(school):
    first = {"noll": 1, "ansi": 0, "fringe": 1, "wyant": 0}[school]
    there, back = (getattr(zernike, f"{way}_{school}") for way in ("from", "to"))
    modes = [there(j) for j in range(first, 500)]
    assert [back(*mode) for mode in modes] == list(range(first, 500))
    assert len(set(modes)) == len(modes)
    with pytest.raises(ValueError, match=rf"index {first - 1}; expected a whole number, {first} or more"):
        there(first - 1)


@pytest.mark.parametrize("mode", [(2, 1), (1, 3), (2.5, 0), (-1, 1)])
def test_modes_that_do_not_exist(mode):
    with pytest.raises(ValueError, match=r"expected whole numbers with n >= \|m\|"):
        zernike.polynomial(*mode, 0.5, 0.0)


def test_radial_polynomials_against_exact_fractions():
    rho = [Fraction(k, 16) for k in range(17)]
    for n in range(31):
        for m in range(n % 2, n + 1, 2):
            powers = [
                (Fraction((-1) ** k * factorial(n - k),
                          factorial(k) * factorial((n + m) // 2 - k) * factorial((n - m) // 2 - k)), n - 2 * k)
                for k in range((n - m) // 2 + 1)
            ]  # fmt: skip
            exact = [float(sum(c * r**p for c, p in powers)) for r in rho]
            np.testing.assert_allclose(zernike.radial(n, m, [float(r) for r in rho]), exact, rtol=0, atol=1e-13)


def test_signs_and_names():
    quarter = np.pi / 2
    assert zernike.polynomial(1, 1, 1.0, 0.0) == pytest.approx(2)  # tip: along x
    assert zernike.polynomial(1, -1, 1.0, quarter) == pytest.approx(2)  # tilt: along y
    assert zernike.polynomial(2, -2, 1.0, quarter / 2) == pytest.approx(6**0.5)
    assert zernike.waves(zernike.radians(0.25)) == 0.25
    assert zernike.label([(4, 0), (7, 1)]) == ["spherical", "(7, 1)"]


def test_gram_matrix_over_the_samples_goes_to_the_identity():
    errors = []
    for m in (32, 64, 128, 256):
        p = Pupil(1.2, 0.6, 1.33, 1.33, 0.1, samples=m)
        z = p.polynomials(zernike.noll(36))
        gram = np.einsum("avu,bvu,vu->ab", z, z, p.weight) * (2 / m) ** 2 / np.pi
        errors.append(np.abs(gram - np.eye(36)).max())
    assert (np.array(errors) * [32, 64, 128, 256] < 2).all(), errors
    assert (np.diff(np.log2(errors)) < -0.9).all(), errors  # at least as 1 / m
