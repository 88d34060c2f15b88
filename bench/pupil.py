"""PSFs behind a pupil, beside psf-generator (padded FFTs in torch) and psfmodels (radial quadrature in C++).

The floor of a volume of 64 planes of 128 x 128 from 64 x 64 samples: the two products of a quarter size are 1.6 M real
multiply-adds for each plane and field, 0.1 G for the scalar volume, 0.5 G for the five fields of a free dipole; at
460 GFLOP/s (two cores, float32) 0.5 and 2.3 ms.  The output is 4.2 MB.  Measured: 1.3 and 4.0 ms alone, 2.7 and 5.4 ms
in turn with the peers, whose arrays drive ours from the caches.  The rest goes into a sine and cosine for each sample
of a quadrant, one complex product for each sample and field, and the squares.  The gradient does the products three
times: images, fields, and back.

psf-generator's fields are those of one polarisation, half of a free dipole's; its volume has no aberrations here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from smlmcore import fit, psf
from smlmcore.autograd import Tensor

from .harness import Row, compare

NA, WAVELENGTH, INDEX, PIXEL, SAMPLES = 1.4, 0.68, 1.518, 0.05, 64
PLANES, SIZE, MODES = 64, 128, psf.zernike.noll(15)
Z = np.linspace(-1.6, 1.6, PLANES, dtype=np.float32)


def rows() -> Iterator[Row]:
    for vectorial in (False, True):
        kind = "vectorial" if vectorial else "scalar"
        pupil = psf.Pupil(NA, WAVELENGTH, INDEX, INDEX, PIXEL, vectorial=vectorial, samples=SAMPLES)
        yield compare(
            f"{kind} volume {PLANES}x{SIZE}x{SIZE}, NA {NA}, float32",
            lambda pupil=pupil: pupil.volume(Z, (SIZE, SIZE)),
            {"psf-generator": psf_generator(vectorial, False), "psfmodels": psfmodels_volume(vectorial)},
            target="45 ms" if vectorial else "15 ms",
        )
        yield compare(
            f"{kind} volume and its gradient to {len(MODES)} Zernikes, float32",
            lambda pupil=pupil: volume_gradient(pupil),
            {"psf-generator": psf_generator(vectorial, True)},
            repeat=3,
            target="100 ms" if vectorial else "34 ms",
        )
    yield dipoles(100)
    yield direct_fit(10_000, 32)


def volume_gradient(pupil: psf.Pupil) -> np.ndarray:
    coefficients = Tensor(np.zeros(len(MODES), np.float32))
    volume = pupil.replace(zernike=coefficients, modes=MODES).volume(Z, (SIZE, SIZE))
    volume.backward(np.ones(volume.shape, np.float32))
    return coefficients.grad


def dipoles(n: int) -> Row:
    """Free dipoles of their own x, y, z, water on glass: images and gradients to everything."""
    rng = np.random.default_rng(0)
    pupil = psf.Pupil(NA, WAVELENGTH, INDEX, 1.33, 0.1, samples=SAMPLES, z_range=(-0.5, 0.5))
    ends = ((6, 8), (6, 8), (-0.5, 0.5), (500, 3000), (1, 20))
    values = [rng.uniform(*e, n).astype(np.float32) for e in ends]
    gradient = rng.normal(size=(n, 15, 15)).astype(np.float32)

    def run():
        tensors, coefficients = [Tensor(v) for v in values], Tensor(np.zeros(len(MODES), np.float32))
        pupil.replace(zernike=coefficients, modes=MODES).render(*tensors, shape=(15, 15)).backward(gradient)

    return compare(
        f"{n} free dipoles, own x, y, z, 64-pupil -> 15x15, forward + gradients", run, {}, repeat=21, target="40 ms"
    )


def direct_fit(n: int, samples: int) -> Row:
    """Fits of x, y, z, photons and background, with the first guess and the bound."""
    aberrations = {(2, 2): 0.6, (2, -2): -0.2, (3, 1): 0.2, (3, -1): 0.1, (4, 0): -0.2}
    pupil = psf.Pupil(
        NA, WAVELENGTH, INDEX, INDEX, 0.1, samples=samples, zernike=aberrations, z_range=(-0.8, 0.8)
    )  # fmt: skip
    images, truth = fit.simulate_spots(pupil, n, (15, 15), np.random.default_rng(0), z=(-0.6, 0.6))
    result = fit.mle(images, pupil)
    error = (result.parameters - truth) / pupil.crlb(truth, (15, 15))
    near = np.abs(error[:, 2]) < 6
    ratio = np.sqrt((error[near] ** 2).mean(0))
    return compare(
        f"3-D fits with a {samples}-pupil, 15x15, 2000 photons",
        lambda: fit.mle(images, pupil),
        {},
        items=n,
        repeat=3,
        target="RMSE/CRLB <= 1.05",
        note=f"RMSE/CRLB {ratio.round(3).tolist()}, {near.mean():.2%} within 6 standard errors of z",
    )


def psf_generator(vectorial: bool, gradient: bool) -> Callable[[], Any] | None:
    try:
        import torch
        from psf_generator.propagators import ScalarCartesianPropagator, VectorialCartesianPropagator
    except ImportError:
        return None
    torch.set_num_threads(2)
    about = {
        "n_pix_pupil": SAMPLES, "n_pix_psf": SIZE, "wavelength": 1000 * WAVELENGTH, "na": NA, "pix_size": 1000 * PIXEL,
        "defocus_step": 1000 * float(Z[1] - Z[0]), "n_defocus": PLANES, "n_i": INDEX, "n_i0": INDEX, "n_s": INDEX,
        "apod_factor": True,
    }  # fmt: skip
    kind = VectorialCartesianPropagator if vectorial else ScalarCartesianPropagator
    coefficients = torch.zeros(len(MODES), requires_grad=True) if gradient else None

    def run():
        field = kind(**about, zernike_coefficients=coefficients).compute_focus_field()
        volume = (field.abs() ** 2).sum(1)
        if gradient:
            coefficients.grad = None
            volume.sum().backward()
        return volume

    return run


def psfmodels_volume(vectorial: bool) -> Callable[[], Any] | None:
    try:
        import psfmodels
    except ImportError:
        return None
    parameters = {"NA": NA, "ni0": INDEX, "ni": INDEX, "ns": INDEX, "ng": INDEX, "ng0": INDEX}
    model = psfmodels.vectorial_psf if vectorial else psfmodels.scalar_psf
    return lambda: model(Z.astype(float), nx=SIZE - 1, dxy=PIXEL, wvl=WAVELENGTH, params=parameters)  # odd sizes only
