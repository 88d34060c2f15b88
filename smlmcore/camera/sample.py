"""Random exposures: Poisson photoelectrons, gamma-distributed amplification, normal read noise, rounding.

Every pixel has its own stream of random numbers, Philox 4x32-10 (Salmon et al. 2011, SC'11) with the pixel's number as
counter and the seed as key.  So a pixel's value depends on the seed and its place alone: all three bodies, any number
of threads and a GPU give the same counts.  Three of the four words of block 0 suffice for nine pixels in ten:

    Poisson   mean < 10: the quantile of the uniform number, summed from below; else transformed rejection, PTRS
              (Hörmann 1993, Insurance: Mathematics and Economics 12, 39), block after block
    normal    the quantile of a uniform number, AS 241 (Wichura 1988, Applied Statistics 37, 477)
    gamma     of n electrons, shape n: Marsaglia and Tsang 2000, ACM Trans. Math. Softw. 26, 363

All is computed in double precision whatever the dtype: where a comparison decides, both must decide alike.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import scipy

from .. import backend, kernel

if TYPE_CHECKING:
    from .model import Camera

WORD = 2.0**-32
GAMMA = 1 << 16  # blocks from here on belong to the gamma distribution
STRIP = 1024  # pixels that one thread draws at a time

# ---------------------------------------------------------------- reference: the definition


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Four random 32-bit words.

    >>> [f"{word:08x}" for word in philox((0, 0, 0, 0), (0, 0))]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    a, b, c, d = counter
    k, m = key
    mask = 0xFFFFFFFF
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = q >> 32 ^ b ^ k, q & mask, p >> 32 ^ d ^ m, p & mask
        k, m = (k + 0x9E3779B9) & mask, (m + 0xBB67AE85) & mask
    return a, b, c, d


def _reference(expected, offset, gain, read_noise, settings, seed_a, seed_b, counts):
    em_gain, spurious, low, high, rounded = settings
    for i, mean in enumerate(expected.ravel()):
        p = i % expected.shape[1]

        def uniform(block, i=i):
            words = philox((i & 0xFFFFFFFF, i >> 32, block, 0), (seed_a, seed_b))
            return [(word + 0.5) * WORD for word in words]

        electrons = _reference_poisson(mean + spurious, uniform)
        if em_gain > 0 and electrons > 0:
            electrons = em_gain * _reference_gamma(electrons, uniform)
        value = (electrons + read_noise[p] * scipy.special.ndtri(uniform(0)[2])) / gain[p] + offset[p]
        value = np.rint(value) if rounded else value
        counts[i // expected.shape[1], p] = min(max(value, low), high)


def _reference_poisson(mean, uniform):
    if mean < 10:
        k, term = 0, math.exp(-mean)
        below = term
        while uniform(0)[0] > below and k < 100:
            k += 1
            term *= mean / k
            below += term
        return k
    b = 0.931 + 2.53 * math.sqrt(mean)
    a = 0.02483 * b - 0.059
    block = 0
    while True:
        u, v = uniform(block)[0] - 0.5, uniform(block)[1]
        near = 0.5 - abs(u)
        k = math.floor((2 * a / near + b) * u + mean + 0.43)
        if near >= 0.07 and v <= 0.9277 - 3.6224 / (b - 2):
            return k
        if k >= 0 and not (near < 0.013 and v > near):
            height = math.log(v * (1.1239 + 1.1328 / (b - 3.4)) / (a / near**2 + b))
            if height <= k * math.log(mean) - mean - math.lgamma(k + 1):
                return k
        block += 1


def _reference_gamma(shape, uniform):
    d = shape - 1 / 3
    c = 1 / math.sqrt(9 * d)
    block = GAMMA
    while True:
        words = uniform(block)
        x = scipy.special.ndtri(words[0])
        v = (1 + c * x) ** 3
        if v > 0 and math.log(words[1]) < 0.5 * x * x + d - d * v + d * math.log(v):
            return d * v
        block += 1


# ---------------------------------------------------------------- cpu

_A, _B = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_K, _M = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_MASK, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_INVERSE = 1 / np.maximum(np.arange(101.0), 1)
_LOG_FACTORIAL = np.array([math.lgamma(k + 1.0) for k in range(256)])


@numba.njit(cache=True)
def _philox(pixel, block, k, m):
    a, b, c, d = pixel & _MASK, pixel >> _HALF, np.uint64(block), np.uint64(0)
    for _ in range(10):
        p, q = _A * a, _B * c
        a, b, c, d = (q >> _HALF) ^ b ^ k, q & _MASK, (p >> _HALF) ^ d ^ m, p & _MASK
        k, m = (k + _K) & _MASK, (m + _M) & _MASK
    return a, b, c


@numba.njit(cache=True)
def _uniform(word):
    return (np.float64(word) + 0.5) * WORD


@numba.njit(cache=True)
def _horner(x, a, b, c, d, e, f, g, h):
    return ((((((h * x + g) * x + f) * x + e) * x + d) * x + c) * x + b) * x + a


@numba.njit(cache=True, error_model="numpy")
def _normal(u):
    """Quantile of the normal distribution, AS 241."""
    q = u - 0.5
    if abs(q) <= 0.425:
        r = 0.180625 - q * q
        return (
            q
            * _horner(
                r, 3.3871328727963666080, 133.14166789178437745, 1971.5909503065514427, 13731.693765509461125,
                45921.953931549871457, 67265.770927008700853, 33430.575583588128105, 2509.0809287301226727,
            )
            / _horner(
                r, 1.0, 42.313330701600911252, 687.18700749205790830, 5394.1960214247511077, 21213.794301586595867,
                39307.895800092710610, 28729.085735721942674, 5226.4952788528545610,
            )
        )  # fmt: skip
    r = math.sqrt(-math.log(min(u, 1 - u))) - 1.6  # 32 bits stay below 5, where AS 241 has a third branch
    x = _horner(
        r, 1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550, 3.64784832476320460504,
        1.27045825245236838258, 0.241780725177450611770, 0.0227238449892691845833, 7.74545014278341407640e-4,
    ) / _horner(
        r, 1.0, 2.05319162663775882187, 1.67638483018380384940, 0.689767334985100004550, 0.148103976427480074590,
        0.0151986665636164571966, 5.47593808499534494600e-4, 1.05075007164441684324e-9,
    )  # fmt: skip
    return x if q > 0 else -x


@numba.njit(cache=True, error_model="numpy")
def _log_factorial(k):
    if k < 256:
        return _LOG_FACTORIAL[int(k)]
    return (k + 0.5) * math.log(k) - k + 0.9189385332046727 + (1 - 1 / (30 * k * k)) / (12 * k)


@numba.njit(cache=True, error_model="numpy")
def _poisson(mean, word_u, word_v, pixel, k, m):
    if mean < 10:
        photons, term, u = 0, math.exp(-mean), _uniform(word_u)
        below = term
        while u > below and photons < 100:
            photons += 1
            term *= mean * _INVERSE[photons]
            below += term
        return np.float64(photons)
    b = 0.931 + 2.53 * math.sqrt(mean)
    a = 0.02483 * b - 0.059
    block = 0
    while True:
        u, v = _uniform(word_u) - 0.5, _uniform(word_v)
        near = 0.5 - abs(u)
        count = math.floor((2 * a / near + b) * u + mean + 0.43)
        if near >= 0.07 and v <= 0.9277 - 3.6224 / (b - 2):
            return np.float64(count)
        if count >= 0 and not (near < 0.013 and v > near):
            height = math.log(v * (1.1239 + 1.1328 / (b - 3.4)) / (a / near**2 + b))
            if height <= count * math.log(mean) - mean - _log_factorial(count):
                return np.float64(count)
        block += 1
        word_u, word_v, _ = _philox(pixel, block, k, m)


@numba.njit(cache=True, error_model="numpy")
def _gamma(shape, pixel, k, m):
    d = shape - 1 / 3
    c = 1 / math.sqrt(9 * d)
    block = GAMMA
    while True:
        word_u, word_v, _ = _philox(pixel, block, k, m)
        x = _normal(_uniform(word_u))
        v = (1 + c * x) ** 3
        if v > 0 and math.log(_uniform(word_v)) < 0.5 * x * x + d - d * v + d * math.log(v):
            return d * v
        block += 1


@numba.njit(cache=True, error_model="numpy", parallel=True)
def _cpu(expected, offset, gain, read_noise, settings, seed_a, seed_b, counts):
    n, pixels = expected.shape
    k, m = np.uint64(seed_a), np.uint64(seed_b)
    em_gain, spurious, low, high = (
        np.float64(settings[0]), np.float64(settings[1]), np.float64(settings[2]), np.float64(settings[3]),
    )  # fmt: skip
    rounded = settings[4] > 0
    flat, out = expected.reshape(n * pixels), counts.reshape(n * pixels)
    for strip in numba.prange(-(-flat.size // STRIP)):
        p = strip * STRIP % pixels
        for i in range(strip * STRIP, min((strip + 1) * STRIP, flat.size)):
            pixel = np.uint64(i)
            word_u, word_v, word_z = _philox(pixel, 0, k, m)
            value = _poisson(np.float64(flat[i]) + spurious, word_u, word_v, pixel, k, m)
            if em_gain > 0 and value > 0:
                value = em_gain * _gamma(value, pixel, k, m)
            noise = np.float64(read_noise[p]) * _normal(_uniform(word_z))
            value = (value + noise) / np.float64(gain[p]) + np.float64(offset[p])
            value = np.rint(value) if rounded else value
            out[i] = min(max(value, low), high)
            p = p + 1 if p + 1 < pixels else 0


def _sample(rng, n, p, seed_a, seed_b):
    """Means of all magnitudes, dark and bright; every second case an EMCCD."""
    expected = np.where(rng.random((n, p)) < 0.1, 0, 10 ** rng.uniform(-2, 5, (n, p)))
    maps = [rng.uniform(90, 110, p), rng.uniform(0.4, 2, p), rng.uniform(0, 3, p)]
    em_gain, rounded = (300.0, 0.0) if seed_b % 2 else (0.0, 1.0)
    return [expected, *maps, np.array([em_gain, 0.02, 0.0, 65535.0, rounded]), seed_a, seed_b]


_kernel = kernel.register(
    "expose",
    "expected[n,p] offset[p] gain[p] read_noise[p] settings[5] seed_a:int seed_b:int -> counts[n,p]",
    _reference,
    cpu=_cpu,
    cuda=kernel.Cuda("expose.cu", lambda dims: -(-dims["n"] * dims["p"] // 128)),
    sample=_sample,
    cases=tuple(
        {"n": n, "p": p, "seed_a": 2**31 - 1 - n, "seed_b": 7 + p} for n, p in ((0, 5), (1, 1), (3, 117), (2, 150))
    ),
    bench={"n": 100, "p": 65_536, "seed_a": 1, "seed_b": 2},
)


def draw(camera: Camera, photons: Any, rng: np.random.Generator, low: float, high: float, rounded: bool) -> Any:
    """Counts for expected `photons`, as reals of the same shape and dtype; see `Camera.expose`."""
    xp = backend.module(photons)
    real, shape = photons.dtype, photons.shape
    seeds = [int(s) for s in rng.integers(2**31, size=2)]
    pixels = math.prod(shape[-2:]) if camera.shape is not None else shape[-1] if shape else 1
    if photons.size == 0:
        return photons.copy()
    electrons = photons if np.ndim(camera.qe) == 0 and camera.qe == 1 else photons * xp.asarray(camera.qe, real)
    flat = xp.ascontiguousarray(electrons).reshape(-1, pixels)
    maps = [
        xp.ascontiguousarray(xp.broadcast_to(xp.asarray(getattr(camera, name), real).ravel(), pixels))
        for name in ("offset", "gain", "read_noise")
    ]
    settings = xp.asarray([camera.em_gain or 0.0, camera.spurious_charge, low, high, rounded], real)
    return _kernel(flat, *maps, settings, *seeds, out=xp.empty_like(flat)).reshape(shape)
