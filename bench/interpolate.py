"""Splines and Fourier interpolation beside scipy, torch-interpol and torch; spline-PSF fits beside Picasso.

Floors, for two cores with 32 MB of shared cache.  Sampling a cubic spline of 128^3 at random points reads 16 rows of
16 bytes a point, of 16 to 20 cache lines: at 10 lines in flight and 50 cycles of latency that is 80 to 100 cycles, or
13 ms for a million points on two cores at 3.5 GHz; the 84 multiply-adds, in vectors of four, hide behind it.  The
prefilter moves 8 MB in and out of the cache for each of three axes, 48 MB: 2 ms at 25 GB/s.  A Fourier shift of a
32 x 32 image is 65 536 multiply-adds: 1000 images take 1 ms at 64 GFLOP/s a core.  A spline-PSF fit at 13 x 13 is, for
each step, 530 vector operations of 16 for the image with three derivatives and 450 for the sums: 3 steps, the start
(1000) and the likelihood make about 5000 vector operations, 0.7 us on two cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
from scipy import fft, ndimage, signal

from smlmcore import fit, psf
from smlmcore.interpolate import fourier, kernels, prefilter, sample
from smlmcore.psf.spline import astigmatic_stack

from .harness import Row, compare

N = 200_000  # spots fitted by us, FEW by Picasso
FEW = 5000


def rows() -> Iterator[Row]:
    rng = np.random.default_rng(0)
    volume = rng.normal(size=(128, 128, 128)).astype(np.float32)
    yield from splines(volume, rng.uniform(0, 127, (1_000_000, 3)).astype(np.float32), rng)
    yield from trigonometric(rng)
    yield fits()


def splines(volume, points, rng) -> Iterator[Row]:
    coefficients = ndimage.spline_filter(volume, 3, np.float32, "mirror")
    columns = np.ascontiguousarray(points.T)
    interpol = torch_interpol(coefficients, points)
    yield compare(
        "prefilter of 128^3, cubic, float32",
        lambda: prefilter(volume),
        {"scipy": lambda: ndimage.spline_filter(volume, 3, np.float32, "mirror"), "torch-interpol": interpol["filter"]},
        repeat=5,
        target="5.4 ms",
    )
    yield compare(
        "1 M random points in 128^3, cubic, float32: values",
        lambda: sample(coefficients, points),
        {
            "scipy": lambda: ndimage.map_coordinates(coefficients, columns, order=3, mode="mirror", prefilter=False),
            "torch-interpol": interpol["values"],
        },
        repeat=5,
        target="18 ms, 9x scipy",
    )
    out = np.empty((1, len(points)), np.float32), np.empty((1, len(points), 3), np.float32)
    yield compare(
        "the same: values and gradients to the points",
        lambda: kernels.slopes(coefficients[None], points[None], 3, 0, out=out),
        {"torch-interpol": interpol["gradients"]},
        repeat=5,
        target="63 ms",
    )
    weights, back = rng.normal(size=(1, len(points))).astype(np.float32), np.empty_like(coefficients[None])
    yield compare(
        "the same: gradient to the coefficients",
        lambda: kernels.scatter(weights, points[None], 3, 0, out=back),
        {"torch-interpol": interpol["scatter"]},
        repeat=5,
    )


def torch_interpol(coefficients, points) -> dict[str, Callable[[], object] | None]:
    """Its functions on the same arrays, or None for each."""
    try:
        import interpol
        import torch
    except ImportError:
        return dict.fromkeys(("filter", "values", "gradients", "scatter"))
    torch.set_num_threads(2)
    image = torch.from_numpy(coefficients)[None, None]
    grid = torch.from_numpy(points)[None]
    ones = torch.ones(1, 1, len(points))
    kind = {"interpolation": 3, "bound": "dct1"}
    return {
        "filter": lambda: interpol.spline_coeff_nd(image, interpolation=3, bound="dct1", dim=3),
        "values": lambda: interpol.grid_pull(image, grid, **kind),
        "gradients": lambda: interpol.grid_grad(image, grid, **kind),
        "scatter": lambda: interpol.grid_push(ones, grid, coefficients.shape, **kind),
    }


def trigonometric(rng) -> Iterator[Row]:
    images = rng.normal(size=(1000, 32, 32)).astype(np.float32)
    shifts = rng.uniform(-3, 3, (1000, 2)).astype(np.float32)
    yield compare(
        "Fourier shift of 1000 images 32 x 32, float32",
        lambda: fourier.shift(images, shifts),
        {"scipy.fft": lambda: by_fft(images, shifts), "torch.fft": torch_shift(images, shifts)},
        repeat=9,
        target="2.9 ms",
    )
    fields = (rng.normal(size=(1000, 64, 64)) + 1j * rng.normal(size=(1000, 64, 64))).astype(np.complex64)

    def chirp():
        spectrum = fields
        for axis in (1, 2):
            spectrum = signal.zoom_fft(spectrum, [-0.2, 0.2], 25, axis=axis)
        return spectrum

    yield compare(
        "zoom 64 x 64 -> 25 x 25 of 1000 fields, complex64",
        lambda: fourier.zoom(fields, (4.0, 4.0), shape=(25, 25)),
        {"scipy chirp-z": chirp},
        repeat=3,
        target="8 ms",
    )


def by_fft(images, shifts):
    k = np.fft.fftfreq(32).astype(np.float32)
    spectrum = fft.rfft2(images, workers=2)
    spectrum *= np.exp(-2j * np.pi * shifts[:, :1] * k)[:, :, None].astype(np.complex64)
    spectrum *= np.exp(-2j * np.pi * shifts[:, 1:] * np.abs(k[:17]))[:, None, :].astype(np.complex64)
    return fft.irfft2(spectrum, workers=2)


def torch_shift(images, shifts):
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(2)
    x, s = torch.from_numpy(images), torch.from_numpy(shifts)
    ky, kx = torch.fft.fftfreq(32), torch.fft.rfftfreq(32)

    def run():
        ramp_y = torch.polar(torch.ones(()), -2 * torch.pi * s[:, :1] * ky)
        ramp_x = torch.polar(torch.ones(()), -2 * torch.pi * s[:, 1:] * kx)
        return torch.fft.irfft2(torch.fft.rfft2(x) * ramp_y[:, :, None] * ramp_x[:, None, :], s=(32, 32))

    return run


# ---------------------------------------------------------------- fits


def fits() -> Row:
    model = psf.Spline.from_array(astigmatic_stack(25, 41, 0.05), 0.05)
    known = {"z": (-0.6, 0.6), "photons": 2000.0, "background": 10.0}
    images, truth = fit.simulate_spots(model, N, (13, 13), np.random.default_rng(1), **known)
    few = images[:FEW]
    peers = {"Picasso splinefit": picasso(model, few), "Picasso from the truth": picasso(model, few, truth[:FEW])}
    row = compare(
        "spline-PSF MLE, 13x13, 3-D, own start, float32",
        lambda: fit.mle(images, model, progress=False),
        {name: peer and peer[0] for name, peer in peers.items()},
        repeat=3,
        items=N,
        target="1,000,000/s, 25x Picasso",
    )
    found = fit.mle(images, model, progress=False)
    converged = (found.status == fit.Status.converged).mean()
    row.note = f"converged {converged:.2%}; RMSE/CRLB of x y z N b: ours {accuracy(found.parameters, truth, model)}"
    for name, peer in peers.items():
        if peer is not None:
            row.peers[name] *= N / FEW
            row.note += f"; {name} {accuracy(peer[1](), truth[:FEW], model)}"
    return row


def accuracy(found, truth, model) -> str:
    z = (np.asarray(found, float) - truth) / model.crlb(truth, (13, 13))
    return " ".join(f"{r:.3f}" for r in np.sqrt(np.nanmean(z**2, axis=0)))


def polynomials(model: psf.Spline) -> np.ndarray:
    """The PSF as Picasso has it: (1, z, y, x, 4, 4, 4) polynomial coefficients of each voxel."""
    c = np.pad(model.coefficients, ((1, 1), (0, 0), (0, 0)), mode="reflect")
    c = np.pad(c, ((0, 0), (1, 1), (1, 1)))
    basis = np.array([[1, -3, 3, -1], [4, 0, -6, 3], [1, 3, 3, -3], [0, 0, 0, 1]]) / 6  # (tap, power)
    for axis in range(3):
        windows = np.lib.stride_tricks.sliding_window_view(c, 4, axis)  # the taps of this axis last
        c = windows @ basis
    return np.ascontiguousarray(c[None])


def picasso(model, images, truth=None):
    """Its MLE on two threads: from its own start at five depths, as it does by itself, or once from the truth."""
    try:
        from picasso.fitting import splinefit
    except ImportError:
        return None
    n, (planes, *_), centre = len(images), model.coefficients.shape, np.array(model.centre)
    if truth is None:
        low, high = images.min((1, 2)), images.max((1, 2))
        x, y = (images.shape[2] - 1) / 2, (images.shape[1] - 1) / 2
        peak = model.render({"x": x, "y": y, "z": 0.0, "photons": 1.0, "background": 0.0}, images.shape[1:]).max()
        start = np.stack([(high - low) / peak, *np.full((3, n), [[x], [y], [0.0]]), low], 1)
        seeds = np.linspace(-(planes - 1), 0.0, 5)
    else:
        start, seeds = truth[:, [3, 0, 1, 2, 4]], np.zeros(1)
    start = start.astype(float)
    start[:, 1] -= centre[2]
    start[:, 2] -= centre[1]
    start[:, 3] = -(start[:, 3] / model.dz + centre[0])
    jacobians = np.tile([1.0, 0.0, 0.0, 1.0], (n, 1, 1))
    spots, table = np.ascontiguousarray(images[:, None]), polynomials(model)
    residuals, several = np.zeros((n, 1, 2)), len(seeds) > 1

    def run():
        running = splinefit.fit_spots_async(
            splinefit.KIND_3D,
            spots,
            table,
            jacobians,
            residuals,
            start.copy(),
            seeds,
            several,
            mle=True,
            n_threads=2,
        )
        while not running.finished():
            time.sleep(1e-4)
        running.raise_errors()
        return running.results()[0]

    def parameters():
        photons, x, y, z, background = run().T
        z = (-z - centre[0]) * model.dz
        return np.stack([x + centre[2], y + centre[1], z, photons, background], 1)

    return run, parameters
