"""Images behind a pupil by matrix Fourier transform, straight onto the pixels, and their derivatives: the kernels.

With pupil samples j = -(m-1)/2 ... (m-1)/2 along u (columns) and v (rows), and fields P of c components:

    Q = P exp(i (k' z - v_phase - u_phase)) exp(-k'' max(z, floor))       k = k' + i k'': `axial`, u_phase = step j x
    E = A Q A^T,   A = exp(i step (pixel) j)
    image = photons sum_c |E_c|^2 + background

`optics` is (step, floor): radians per pixel and sample, and the z (um) below which evanescent waves stay as they are.
`axial` is given for one quadrant, from the centre outwards.  Complex arrays are two planes, real and imaginary.
Backwards, with G = 2 photons g E: dL/dQ = A^H G A*, and all gradients are sums over the pupil: of P by the phase, of z
by i k Q, of x by -i step j Q.  The gradient of P is summed over the images part by part, from n p // parts to
n (p + 1) // parts, so that threads need not wait for one another and the sum does not depend on them.
"""

from __future__ import annotations

import numpy as np

from .. import backend, kernel
from ..autograd import op
from . import pupil_cpu

PARTS = {True: 16, False: 264}  # of the sum over images; enough to keep all cores, or multiprocessors, at work

# ---------------------------------------------------------------- reference: the definition


def _waves(pupil, axial, optics, x, y, z, shape):
    """phase (n, m, m), Q (n, c, m, m), A_y (n, h, m), A_x (n, w, m), and dQ/dz / Q (n, m, m).

    A is here relative to the emitter, exp(i step (pixel - x) j), so Q is without the lateral phase.
    """
    step, floor = optics
    j = np.arange(pupil.shape[-1]) - (pupil.shape[-1] - 1) / 2
    mirrored = abs(j).astype(int)
    k, decay = axial[:, mirrored[:, None], mirrored]
    z = z[:, None, None]
    phase = np.exp(1j * k * z - decay * np.maximum(z, floor))
    slope = 1j * k - decay * (z > floor)
    q = (pupil[:, 0] + 1j * pupil[:, 1]) * phase[:, None]
    a_y, a_x = (
        np.exp(1j * step * (np.arange(size) - centre[:, None])[:, :, None] * j)
        for size, centre in zip(shape, (y, x), strict=True)
    )
    return phase, q, a_y, a_x, slope, 1j * step * j


def _transform(a_y, q, a_x):
    return a_y[:, None] @ q @ a_x[:, None].swapaxes(-1, -2)


def _render(pupil, axial, optics, x, y, z, photons, background, image):
    _, q, a_y, a_x, _, _ = _waves(pupil, axial, optics, x, y, z, image.shape[1:])
    intensity = (np.abs(_transform(a_y, q, a_x)) ** 2).sum(1)
    image[...] = photons[:, None, None] * intensity + background[:, None, None]


def _render_vjp(pupil, axial, optics, x, y, z, photons, gradient, gpupil, gx, gy, gz, gphotons, gbackground):
    gpupil[...] = 0
    parts, n = len(gpupil), len(x)
    for part, i in ((p, i) for p in range(parts) for i in range(n * p // parts, n * (p + 1) // parts)):
        one = slice(i, i + 1)
        phase, q, a_y, a_x, slope, j = _waves(pupil, axial, optics, x[one], y[one], z[one], gradient.shape[1:])
        field = _transform(a_y, q, a_x)
        gphotons[i] = (gradient[i] * (np.abs(field) ** 2).sum(1)).sum()
        gbackground[i] = gradient[i].sum()
        back = a_y.conj().swapaxes(1, 2)[:, None] @ (2 * photons[i] * gradient[i] * field) @ a_x.conj()[:, None]
        product = (back.conj() * q).sum(1)[0]
        gz[i] = (product * slope[0]).real.sum()
        gx[i] = -(product * j).real.sum()
        gy[i] = -(product * j[:, None]).real.sum()
        found = back[0] * phase.conj()
        gpupil[part, :, 0] += found.real
        gpupil[part, :, 1] += found.imag


def _partials(parameters, pupil, axial, optics, value, partials):
    for i, (x, y, z, photons, background) in enumerate(parameters):
        _, q, a_y, a_x, slope, j = _waves(pupil, axial, optics, *np.array([[x], [y], [z]]), value.shape[1:])
        field = _transform(a_y, q, a_x)
        partials[i, 3] = (np.abs(field) ** 2).sum((0, 1))
        partials[i, 4] = 1
        value[i] = photons * partials[i, 3] + background
        for column, moved in enumerate((-j * q, -j[:, None] * q, slope[:, None] * q)):
            partials[i, column] = 2 * photons * (field.conj() * _transform(a_y, moved, a_x)).real.sum((0, 1))


# ---------------------------------------------------------------- registration


def _sample(rng, n, h, w, m, k, c):
    """Fields of a few radians of aberration in a disc, some waves evanescent, emitters near the centre."""
    u = (np.arange(m) + 0.5) * 2 / m - 1
    rho = np.hypot(u, u[:, None])
    phase = rng.normal(0, 1, (c, 1, 1)) + 2 * rho**2 + u
    pupil = rng.uniform(0.5, 1, (c, m, m)) * (rho <= 1) * np.exp(1j * phase) / m
    axial = np.where(rho <= 1, 10 * np.sqrt(1 - 0.9 * np.minimum(rho, 1) ** 2) + 1j * np.maximum(rho - 0.8, 0), 0)
    axial = axial[m - k :, m - k :]
    spread = np.reshape([w - 1, h - 1, 1, 2000], (4, 1)) * rng.uniform(0.3, 0.7, (4, n))
    x, y, z, photons = spread + np.reshape([0, 0, -0.5, 500], (4, 1))
    planes = [np.stack([a.real, a.imag], -3) for a in (pupil, axial)]
    return [*planes, np.array([1.7 / m, -0.1]), x, y, z, photons, rng.uniform(1, 5, n)]


def _sample_vjp(rng, n, h, w, m, k, c, p):
    return [*_sample(rng, n, h, w, m, k, c)[:-1], rng.normal(size=(n, h, w))]


def _sample_partials(rng, n, h, w, m, k, c):
    inputs = _sample(rng, n, h, w, m, k, c)
    return [np.stack(inputs[3:], 1), *inputs[:3]]


def _strips(dims):
    """Blocks of the CUDA bodies: strips of up to 8 columns."""
    return dims["n"] * -(-dims["w"] // 8)


_CASES = tuple(
    {"n": n, "h": h, "w": w, "m": m, "k": (m + 1) // 2, "c": c}
    for n, h, w, m, c in [(0, 5, 5, 8, 1), (1, 1, 1, 3, 1), (3, 5, 12, 16, 5), (5, 33, 9, 35, 2)]
)
_BENCH = {"n": 100, "h": 15, "w": 15, "m": 64, "k": 32, "c": 5}
_FIELDS = "pupil[c,2,m,m] axial[2,k,k] optics[2]"

render_kernel = kernel.register(
    "pupil_render",
    f"{_FIELDS} x[n] y[n] z[n] photons[n] background[n] -> image[n,h,w]",
    _render,
    cpu=pupil_cpu.render,
    cuda=kernel.Cuda("pupil.cu", _strips, constants=("h", "w", "m")),
    sample=_sample,
    cases=_CASES,
    bench=_BENCH,
)
render_vjp_kernel = kernel.register(
    "pupil_render_vjp",
    f"{_FIELDS} x[n] y[n] z[n] photons[n] gradient[n,h,w] -> "
    "gpupil[p,c,2,m,m] gx[n] gy[n] gz[n] gphotons[n] gbackground[n]",
    _render_vjp,
    cpu=pupil_cpu.render_vjp,
    cuda=kernel.Cuda("pupil.cu", lambda dims: dims["p"], constants=("h", "w", "m")),
    sample=_sample_vjp,
    cases=tuple(case | {"p": p} for case, p in zip(_CASES, (1, 1, 2, 3), strict=True)),
    bench=_BENCH | {"p": 16},
)
partials_kernel = kernel.register(
    "pupil_partials",
    f"parameters[n,5] {_FIELDS} -> value[n,h,w] partials[n,5,h,w]",
    _partials,
    cpu=pupil_cpu.partials,
    cuda=kernel.Cuda("pupil.cu", _strips, constants=("h", "w", "m")),
    sample=_sample_partials,
    cases=_CASES,
    bench=_BENCH,
)


@op
def render_op(pupil, x, y, z, photons, background, axial, optics, *, shape):
    """Images (n, h, w) behind the fields `pupil` (c, 2, m, m), of one emitter each."""
    saved = (pupil, axial, optics, x, y, z, photons)
    image = backend.module(x).empty((len(x), *shape), x.dtype)
    return render_kernel(*saved, background, out=image), saved


@render_op.vjp
def _(saved, gradient):
    xp = backend.module(gradient)
    pupil, _, _, x, _, _, _ = saved
    parts = xp.empty((max(1, min(len(x), PARTS[xp is np])), *pupil.shape), pupil.dtype)
    others = [xp.empty_like(x) for _ in range(5)]
    render_vjp_kernel(*saved, gradient, out=(parts, *others))
    return (parts.sum(0), *others)
