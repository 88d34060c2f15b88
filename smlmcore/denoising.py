"""Denoising of camera images without clean ones, for pixels that each have their own read noise (sCMOS).

An image y = Poisson(mu) + N(0, v) in photoelectrons is split at random into two of the same mean, a and b, whose noise
is independent, so that the network which predicts b from a best is the one that predicts mu best
(recorrupted-to-recorrupted: Pang et al. 2021, CVPR; thinning: Leiner et al. 2023, J. Am. Stat. Assoc.):

    p ~ photons given y,   q ~ Binomial(p, 1/2),   z ~ N(0, v),     a = 2q + (y - p) + z,   b = 2y - a

With the photons known this is exact.  They are drawn given y and the local mean, normally distributed and rounded,
which is exact as v goes to 0, and as v covers single photons.  The network sees the local mean weighted by each pixel's
precision, the residual in units of its noise, and the precision; it adds its correction to the local mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from . import backend, mapper, renderer
from .autograd import no_grad
from .backend import Array
from .encoder import UNet, tiled
from .fit.model import FitModel
from .layers.chain import part
from .loss import GaussianNLL
from .mapper.direct import Parameter
from .training import Trainer

LEAST = 0.1  # of the mean of all images: the smallest mean that a pixel's noise is computed from
GAIN = 8  # features in a spread: with so many, softplus bends close to 0 only
RATE = 5e-3  # highest learning rate
CROP, CROPS, EPOCH = 64, 6, 100  # pixels of a side and splits of a training step, steps of an epoch
STEPS, PASSES = 2000, 1500  # the most steps, and times that each pixel is seen, if nothing else is asked for
LARGE, TILE = 512, 256  # pixels of a side, above which an image is denoised in tiles, and of a tile


@dataclass
class Denoised:
    """The denoised `images`, the `model` that did it, for more images of this camera, and the `history` of training."""

    images: Any
    model: Denoiser
    history: dict[str, list[float]]


def denoise(
    images: Any,
    variance: Any = 0.0,
    *,
    psf: Any = None,
    steps: int | None = None,
    splits: int = 32,
    width: int = 24,
    seed: int = 0,
    progress: bool = True,
) -> Denoised:
    """Learn from `images` (n, y, x) or (y, x) in photoelectrons how to denoise them, and do it.

    `variance` of the read noise in squared photoelectrons: a number, a map (y, x) or one for each image; pixels that
    are NaN or infinite (dead, saturated) in either are left out, and filled in.  `psf`: kernel, non-negative; the
    result is then an object blurred by it.  `steps`: training steps, of 12 crops of 64 x 64 pixels; by default 2000,
    but fewer for a few images, before their noise is learned by heart.  `splits`: over how many halves of each image
    the mean is taken in the end; `width`: channels of the U-Net at full resolution.  Same seed, same result.

    >>> noisy = np.random.default_rng(0).poisson(20.0, (2, 12, 15))
    >>> clean = denoise(noisy, steps=20, splits=4, width=4).images
    >>> clean.shape, bool(clean.std() < 0.7 * noisy.std())
    ((2, 12, 15), True)
    """
    if min(1 if steps is None else steps, splits, width) < 1:
        raise ValueError(f"denoise got steps={steps}, splits={splits}, width={width}; expected at least 1 of each")
    y, v = _check(images, variance)
    if steps is None:
        seen = 2 * CROPS * min(CROP, y.shape[1]) * min(CROP, y.shape[2])  # pixels of a step
        steps = min(STEPS, max(EPOCH, PASSES * y.size // max(seen, 1)))
    known = y[v < np.inf]
    if known.size == 0:
        raise ValueError(f"denoise got images of shape {np.shape(images)} with no pixel to learn from")
    model = Denoiser.of(float(known.mean()), float(known.std()), psf, width)
    epochs = -(-steps // EPOCH)
    settings = {"epochs": epochs, "steps": -(-steps // epochs), "batch": 2 * CROPS, "seed": seed, "progress": progress}
    settings |= {"rate": RATE, "warmup": 100, "average": 0.99}
    history = Trainer(model, Splits(y, v, model, images), **settings).run()
    return Denoised(model.denoise(images, variance, splits, seed=seed, progress=progress), model, history)


class Denoiser(FitModel):
    """encoder.UNet -> mapper.Image -> renderer (`Image`, or `Convolution` with a PSF), for noisy images of any size.

    It predicts from one half of a split, whose noise has the variance 2 (mu + v).
    """

    @classmethod
    def of(cls, level: float, spread: float, psf: Any = None, width: int = 24, depth: int = 2) -> Denoiser:
        """A model for images of mean `level` and standard deviation `spread`, in photoelectrons."""
        level, spread = max(level, 1e-3), max(spread, 1e-3)
        net = UNet(1, inputs=3, depth=depth, width=width, root=False, centre=0.0, spread=1.0)
        to = Parameter("linear" if psf is None else "softplus", scale=spread / GAIN)
        draw = renderer.Image((1, 1)) if psf is None else renderer.Convolution(psf, (1, 1))
        return cls(Correction(net, level, spread), mapper.Image({"image": to}), draw, GaussianNLL(poisson=False))

    @property
    def symmetric(self) -> bool:
        """Whether the renderer's images, turned by a right angle or flipped, are its images, too."""
        k = getattr(self.renderer, "kernel", np.ones((1, 1)))
        return k.shape[0] == k.shape[1] and all(np.allclose(_turned(k, i), k, atol=1e-3 * k.max()) for i in range(8))

    def __call__(self, p: Mapping[str, Any], images: Array, variance: Array, index: Any = None) -> tuple[dict, Any]:
        """{"image": (n, y, x)}, and the expected images, for halves `images` of splits and `variance` (n, y, x)."""
        pair = backend.module(images).stack([images, variance], 1)
        values = self.mapper(part(p, "mapper"), self.encoder(part(p, "encoder"), pair))
        if not isinstance(self.renderer, renderer.Convolution):
            return values, values["image"]
        draw = renderer.Convolution(self.renderer.kernel, images.shape[1:])
        inside = draw({}, {"image": np.ones((1, *images.shape[1:]), np.float32)})  # of the kernel, at the border
        return values, draw({}, values) / _beside(images, inside)

    def objective(self, p: Mapping[str, Any], images: Array, variance: Array, target: Array) -> Any:
        """Mean loss in nats per pixel of the prediction from one half, `images`, as that of the other, `target`."""
        noise = 2 * self.encoder.noise(self.encoder.mean(images, variance), variance)
        return self.loss(self(p, images, variance)[1], target, noise).mean()

    def denoise(self, images: Any, variance: Any = 0.0, splits: int = 32, seed: int = 0, progress: bool = False) -> Any:
        """`images` (n, y, x) or (y, x) denoised: the mean prediction from `splits` halves, turned in all ways."""
        y, v = _check(images, variance)
        out, ways = np.empty_like(y), range(8 if self.symmetric else 1)
        with no_grad():
            for i in tqdm(range(len(y)), desc="denoising", unit="image", disable=None if progress else True):
                rng, found = np.random.default_rng([seed, i]), []
                for k in range(-(-splits // 2)):
                    way = ways[k % len(ways)]
                    halves = split(y[i : i + 1], v[i : i + 1], self.encoder.mean(y[i : i + 1], v[i : i + 1]), rng)
                    turned = (_turned(np.concatenate(a), way) for a in (halves, [v[i : i + 1]] * 2))
                    turned = (_beside(images, a) for a in turned)
                    found.append(_turned_back(backend.to_cpu(self(self.parameters, *turned)[1]).mean(0), way))
                out[i] = np.mean(found, 0)
        return _beside(images, out.reshape(np.shape(images)))


class Correction:
    """Features (n, 1, y, x), in units of `spread` / GAIN: the local mean, plus what `net` adds to it.

    Its input (n, 2, y, x) are halves of splits and their variance, which is infinite where a pixel is to be left out.
    `net`, such as `encoder.UNet`, sees three channels: the mean, the residual in units of its noise, the precision.
    """

    def __init__(self, net: Any, level: float, spread: float) -> None:
        self.net, self.level, self.spread = net, level, spread

    def configuration(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"net": self.net, "level": self.level, "spread": self.spread}

    def init(self, rng: np.random.Generator) -> dict[str, Any]:
        """Draw the parameters of the network."""
        return self.net.init(rng)

    def mean(self, y: Array, v: Array) -> Array:
        """The most precise mean of 3 x 3 pixels, weighted by 1 / (v + level); the level where there are none."""
        weight, least = 1 / (v + self.level), 1e-6 / self.level
        return (_box(y * weight) + least * self.level) / (_box(weight) + least)

    def noise(self, mean: Array, v: Array) -> Array:
        """The variance of pixels with this `mean`."""
        return backend.module(mean).maximum(mean, LEAST * self.level) + v

    def __call__(self, p: Mapping[str, Any], pair: Array) -> Any:
        xp, (y, v) = backend.module(pair), (pair[:, 0], pair[:, 1])
        mean = self.mean(y, v)
        residual = (y - mean) / xp.sqrt(self.noise(mean, v))
        seen = xp.stack([mean / self.spread, residual, self.level / (v + self.level)], 1)
        large = max(seen.shape[2:]) > LARGE
        return ((tiled(self.net, p, seen, TILE) if large else self.net(p, seen)) + seen[:, :1]) * GAIN


class Splits:
    """Draws crops of images, turned at random and split: one half, the variance, the other half, and the same reversed.

    `y` (n, y, x), variance `v` of the same shape, infinite where a pixel is to be left out.
    """

    def __init__(self, y: np.ndarray, v: np.ndarray, model: Denoiser, like: Any) -> None:
        self.y, self.v, self.like, self.ways = y, v, like, 8 if model.symmetric else 1
        self.mean = model.encoder.mean(y, v)

    def draw(self, rng: np.random.Generator, n: int) -> tuple[Any, Any, Any]:
        """Both halves of n / 2 crops, their variance, and for each the other half."""
        h, w = self.y.shape[1:]
        image = rng.integers(0, len(self.y), n // 2)
        top, left = (rng.integers(0, max(s - CROP, 0) + 1) for s in (h, w))
        cut = image, slice(top, top + CROP), slice(left, left + CROP)
        way = rng.integers(self.ways)
        y, v, mean = (_turned(a[cut], way) for a in (self.y, self.v, self.mean))
        a, b = split(y, v, mean, rng)
        batch = np.concatenate([a, b]), np.concatenate([v, v]), np.concatenate([b, a])
        return tuple(_beside(self.like, a) for a in batch)


def split(y: np.ndarray, v: np.ndarray, mean: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two images of the same mean as `y` whose noise is independent and has twice the variance; see the module's text.

    `v`: variance of the read noise; `mean`: about what is expected, which matters less, the smaller v.  The mean of the
    two is y.

    >>> y = np.array([3.0, 0.0, 12.0])
    >>> a, b = split(y, np.zeros(3), np.ones(3), np.random.default_rng(0))
    >>> (a + b) / 2, a % 2
    (array([ 3.,  0., 12.]), array([0., 0., 0.]))
    """
    v = np.where(v < np.inf, v, 0)
    mean = np.maximum(mean, 0)
    both = np.maximum(mean + v, np.finfo(y.dtype).tiny)
    u, z = rng.standard_normal((2, *y.shape), y.dtype)
    photons = np.rint(np.maximum(mean * (y + v) / both + np.sqrt(mean * v / both) * u, 0))
    photons = np.where(v > 0, photons, np.rint(np.maximum(y, 0)))
    a = 2 * rng.binomial(photons.astype(np.int64), 0.5).astype(y.dtype) + (y - photons) + np.sqrt(v) * z
    return a.astype(y.dtype), (2 * y - a).astype(y.dtype)


def _check(images: Any, variance: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images and variance (n, y, x) as float32, 0 and infinite where a pixel is not finite, on the CPU; or an error."""
    images = backend.asarray(images)
    y, v = backend.to_cpu(images), backend.to_cpu(backend.asarray(variance))
    if y.ndim not in (2, 3) or y.dtype.kind not in "biuf" or v.dtype.kind not in "biuf":
        raise ValueError(
            f"denoise got images {y.dtype} of shape {y.shape} and variance {v.dtype}; expected real numbers, images "
            "(n, y, x) or (y, x)"
        )
    y = y.astype(np.float32).reshape(-1, *y.shape[-2:])
    if v.shape not in ((), y.shape[1:], y.shape) or bool((v < 0).any()):
        raise ValueError(
            f"denoise got variance of shape {v.shape}, least {v.min(initial=np.inf)}, for images {images.shape}; "
            f"expected a number, {y.shape[1:]} or {y.shape}, >= 0, the square of the read noise in photoelectrons"
        )
    known = np.isfinite(y) & np.isfinite(v)
    return np.where(known, y, 0).astype(np.float32), np.where(known, v, np.inf).astype(np.float32)


def _beside(images: Any, a: np.ndarray) -> Array:
    """a where `images` live."""
    return backend.to_gpu(a) if backend.is_gpu(images) else a


def _box(a: Array) -> Array:
    """The sum of 3 x 3 pixels of a (n, y, x), 0 outside."""
    a = backend.module(a).pad(a, ((0, 0), (1, 1), (1, 1)))
    a = a[:, :-2] + a[:, 1:-1] + a[:, 2:]
    return a[..., :-2] + a[..., 1:-1] + a[..., 2:]


def _turned(a: Array, way: int) -> Array:
    """a (..., y, x) flipped and transposed in one of 8 ways, 0 for not at all."""
    a = a[..., ::-1, :] if way & 1 else a
    a = a[..., ::-1] if way & 2 else a
    return a.swapaxes(-1, -2) if way & 4 else a


def _turned_back(a: Array, way: int) -> Array:
    """What `_turned` made, as it was."""
    a = a.swapaxes(-1, -2) if way & 4 else a
    a = a[..., ::-1] if way & 2 else a
    return a[..., ::-1, :] if way & 1 else a
