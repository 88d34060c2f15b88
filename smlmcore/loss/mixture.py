"""How well a field of Gaussian components, one for each pixel, foretells the emitters of an image and their number.

With the components' probabilities p_k, means m_k and standard deviations s_k (see `mapper.mixture`), S = Σ p_k,
V = Σ p_k (1 - p_k) + 1e-4, and the n emitters u_i = (x, y, log photons):

    nats = ½ (n - S)² / V + ½ log 2πV - Σ_i log Σ_k (p_k / S) Π_c N(u_ic; m_kc, s_kc)

The first two terms are the normal approximation to the number of components that are there, the last says that each
emitter is drawn from their mixture (the loss of DECODE: Speiser et al. 2021, Nat. Methods 18, 1082).  No component is
told which emitter is its own, so neighbours may share one, and one that is anybody's guess may be spread out.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import scipy

from .. import backend, kernel
from ..autograd import op
from ..backend import Array
from ..mapper.mixture import CHANNELS, LEAST, REACH, SHIFT, components

LOG_TAU = math.log(2 * math.pi)
FLOOR = 1e-4  # of V
FAR = 40.0  # nats below an emitter's best component: beyond, a component's share is below the rounding of double

# ---------------------------------------------------------------- reference


def _reference(features, truth, start, nats, evidence, slope):
    for i in range(len(features)):
        p, mean, spread = (v.reshape(*v.shape[:-2], -1) for v in components(features[i]))
        f = features[i].reshape(-1, CHANNELS).T
        q, own = 1 / (1 + np.exp(f[0] - SHIFT)), truth[start[i] : start[i + 1]]
        n, s, v = len(own), p.sum(), (p * q).sum() + FLOOR
        d = (own[:, :, None] - mean) / spread
        t = np.log(p) - np.log(s) - 0.5 * (d**2).sum(1) - np.log(spread).sum(0) - 1.5 * LOG_TAU
        log = scipy.special.logsumexp(t, axis=1, keepdims=True) if n else np.empty((0, 1))
        r = np.exp(t - log)
        evidence[start[i] : start[i + 1]] = log[:, 0]
        nats[i] = 0.5 * (n - s) ** 2 / v + 0.5 * (LOG_TAU + np.log(v)) - log.sum()
        ds, dv = n / s - (n - s) / v, 0.5 / v - 0.5 * (n - s) ** 2 / v**2
        out = np.empty_like(f)
        out[0] = p * q * (ds + dv * (1 - 2 * p)) - q * r.sum(0)
        out[1:4] = -(r[:, None] * d / spread).sum(0)
        out[1:3] *= 0.5 * REACH * (1 - np.tanh(0.5 * f[1:3]) ** 2)
        out[4:] = -(r[:, None] * (d**2 - 1) / spread).sum(0) / (1 + np.exp(-f[4:]))
        slope[i] = out.T.reshape(slope[i].shape)


# ---------------------------------------------------------------- cpu


@numba.njit(cache=True, parallel=True, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"})
def _cpu(features, truth, start, nats, evidence, slope):
    n, h, w = features.shape[:3]
    real = features.dtype.type
    half, one, far, shift, reach, least = real(0.5), real(1), real(FAR), real(SHIFT), real(REACH), real(LEAST)
    for i in numba.prange(n):
        m = h * w
        f, g = features[i].reshape(m, CHANNELS), slope[i].reshape(m, CHANNELS)
        p, q, height, t = np.empty(m, real), np.empty(m, real), np.empty(m, real), np.empty(m, real)
        mean, inverse = np.empty((3, m), real), np.empty((3, m), real)
        total, spread = 0.0, 0.0
        for k in range(m):
            logit = f[k, 0] - shift
            e = math.exp(-abs(logit))
            small, large = e / (one + e), one / (one + e)
            p[k], q[k] = (large, small) if logit >= 0 else (small, large)
            total += p[k]
            spread += p[k] * q[k]
            mean[0, k] = real(k % w) + reach * math.tanh(half * f[k, 1])
            mean[1, k] = real(k // w) + reach * math.tanh(half * f[k, 2])
            mean[2, k] = f[k, 3]
            height[k] = min(logit, real(0)) - math.log1p(e)
            for c in range(3):
                x = f[k, 4 + c]
                s = max(x, real(0)) + math.log1p(math.exp(-abs(x))) + least
                inverse[c, k] = one / s
                height[k] -= math.log(s)
                g[k, 1 + c], g[k, 4 + c] = real(0), real(0)
            g[k, 0] = real(0)
        count, spread = start[i + 1] - start[i], spread + FLOOR
        value = 0.5 * (count - total) ** 2 / spread + 0.5 * (LOG_TAU + math.log(spread))
        for e in range(start[i], start[i + 1]):
            u, v, z = truth[e, 0], truth[e, 1], truth[e, 2]
            top = real(-np.inf)
            for k in range(m):
                a = (u - mean[0, k]) * inverse[0, k]
                b = (v - mean[1, k]) * inverse[1, k]
                c = (z - mean[2, k]) * inverse[2, k]
                t[k] = height[k] - half * (a * a + b * b + c * c)
            for k in range(m):
                top = max(top, t[k])
            norm = real(0)
            for k in range(m):
                if t[k] > top - far:
                    t[k] = math.exp(t[k] - top)
                    norm += t[k]
                else:
                    t[k] = real(0)
            evidence[e] = float(top) + math.log(norm) - math.log(total) - 1.5 * LOG_TAU
            value -= evidence[e]
            for k in range(m):
                if t[k] > 0:
                    r = t[k] / norm
                    g[k, 0] += r
                    for c in range(3):
                        d = (truth[e, c] - mean[c, k]) * inverse[c, k]
                        g[k, 1 + c] -= r * d * inverse[c, k]
                        g[k, 4 + c] -= r * (d * d - one) * inverse[c, k]
        nats[i] = value
        ds = real(count / total - (count - total) / spread)
        dv = real(0.5 / spread - 0.5 * ((count - total) / spread) ** 2)
        for k in range(m):
            g[k, 0] = q[k] * (p[k] * (ds + dv * (one - p[k] - p[k])) - g[k, 0])
            for c in range(3):
                if c < 2:
                    bend = math.tanh(half * f[k, 1 + c])
                    g[k, 1 + c] *= half * reach * (one - bend * bend)
                g[k, 4 + c] /= one + math.exp(-f[k, 4 + c])


# ---------------------------------------------------------------- registration


def _sample(rng, n, h, w, s, e):
    features = rng.normal(size=(n, h, w, CHANNELS))
    features[..., 0] += 2
    start = np.sort(rng.integers(0, e + 1, s))
    if s:
        start[0], start[-1] = 0, e
    truth = np.stack([rng.uniform(-0.5, w - 0.5, e), rng.uniform(-0.5, h - 0.5, e), rng.normal(size=e)], 1)
    return [features, truth, start]


mixture_kernel = kernel.register(
    "mixture_loss",
    f"features[n,h,w,{CHANNELS}] truth[e,3] start[s]:int32 -> nats[n] evidence[e] slope[n,h,w,{CHANNELS}]",
    _reference,
    cpu=_cpu,
    cuda=kernel.Cuda("mixture.cu", lambda dims: dims["n"], threads=128),
    sample=_sample,
    cases=tuple(
        {"n": n, "h": h, "w": w, "s": n + 1, "e": e}
        for n, h, w, e in [(0, 5, 5, 0), (1, 1, 1, 1), (2, 4, 7, 0), (3, 13, 11, 17)]
    ),
    bench={"n": 16, "h": 40, "w": 40, "s": 17, "e": 200},
)


@op
def _mixture(features, truth, start):
    xp, real = backend.module(features), features.dtype
    out = xp.empty(len(features), real), xp.empty(len(truth), real), xp.empty(features.shape, real)
    mixture_kernel(features, truth, start, out=out)
    return out[0], out[2]


@_mixture.vjp
def _(slope, g):
    return (slope * g[:, None, None, None],)


class Mixture:
    """Nats of each image (n,) from a network's features (n, h, w, 7) and the emitters that are there; see the module.

    `emitters` (e, 3): x, y in pixels and the logarithm of the photons in units of `mapper.mixture.PHOTONS`; `image`
    (e,): which image each belongs to, in order.

    >>> features = np.zeros((1, 8, 8, 7))
    >>> features[0, 4, 3, 0] = 9  # sure of one emitter near x = 3, y = 4
    >>> there, elsewhere = (Mixture()(features, np.array([[x, 4.0, 0.0]]), np.array([0])) for x in (3.0, 6.0))
    >>> bool(there < elsewhere)
    True
    """

    def configuration(self) -> dict[str, Any]:
        """What makes this part again: nothing."""
        return {}

    def __call__(self, features: Any, emitters: Array, image: Array) -> Any:
        """Nats of each image."""
        n = features.shape[0]
        if features.ndim != 4 or features.shape[3] != CHANNELS:
            raise ValueError(f"loss.Mixture got features of shape {features.shape}; expected (n, h, w, {CHANNELS})")
        if emitters.shape != (len(image), 3) or (
            len(image) and not ((image[1:] >= image[:-1]).all() and image[0] >= 0 and image[-1] < n)
        ):
            raise ValueError(
                f"loss.Mixture got emitters of shape {emitters.shape} and image of shape {image.shape}; expected "
                f"(e, 3) and (e,), the emitters sorted by image, from 0 to {n - 1}"
            )
        xp = backend.module(emitters)
        start = xp.searchsorted(image, xp.arange(n + 1)).astype(np.int32)
        return _mixture(features, xp.asarray(emitters, features.dtype), start)
