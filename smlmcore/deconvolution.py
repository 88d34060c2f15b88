"""Deconvolution of images and volumes: Richardson-Lucy, and the object together with the kernel.

The data d + v are taken as Poisson with mean mu + v, mu = object * kernel + background and v the variance of the read
noise (Huang et al. 2013, Nature Methods 10, 653).  The expectation-maximisation step for the object

    object <- object (kernel^T * ratio) / (kernel^T * 1),     ratio = (d + v) / (mu + v)

is multiplicative: nothing becomes negative and no step size is needed (Richardson 1972, J. Opt. Soc. Am. 62, 55;
Lucy 1974, Astron. J. 79, 745; Shepp & Vardi 1982, IEEE Trans. Med. Imaging 1, 113).  The kernel takes the same step
with the object in its place, and is brought back to unit sum (Holmes 1992, J. Opt. Soc. Am. A 9, 1052).  The object
must have formed before the kernel may follow: from the first iteration on the pair drifts away from the truth.  Where
the kernel is symmetric, numerator and denominator are summed over mirror images: the step for so many fewer numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from . import backend
from .renderer.conv import MODES, Plan

FLOOR = 1e-6  # of the mean of the data: the smallest expectation, where a ratio is taken


@dataclass
class Deconvolved:
    """The `object` and the `kernel` (non-negative, unit sum), the `prediction` of the data, and `loss` by iteration.

    `loss`: mean negative log likelihood in nats per pixel, up to a constant of the data, before each iteration.
    """

    object: Any
    kernel: Any
    prediction: Any
    loss: list[float]


def deconvolve(
    image: Any,
    kernel: Any,
    iterations: int = 200,
    *,
    refine: int | None = None,
    every: int = 5,
    symmetric: bool = False,
    mode: str = "periodic",
    background: float = 0.0,
    variance: Any = 0.0,
    start: Any = None,
    deviance: float | None = None,
    progress: bool = False,
) -> Deconvolved:
    """The object that, blurred by `kernel`, explains `image` (y, x) or (z, y, x) in photoelectrons.

    Richardson-Lucy by default.  With `refine` the kernel is only a start: after that many iterations it follows, once
    in `every` iterations; a `symmetric` one stays the same when mirrored in any axis or (if square) with x and y
    exchanged, as that of a round pupil: choose it where the start is but a guess.  `mode`, as for `renderer.convolve`:
    "periodic", "same" (the object is 0 outside the image) or "valid" (the object reaches kernel size - 1 beyond the
    image; best for cut-outs of a larger scene).

    `kernel`: non-negative, centre at element size // 2, brought to unit sum; `background`: photoelectrons per pixel
    that no kernel has blurred; `variance`: of the read noise, scalar or map; `start`: object to start from, default
    uniform; NaN pixels of the image carry no information.  `deviance`: end earlier, as soon as the mean deviance of a
    pixel is down to this; noise alone gives about 1, and what explains more explains noise (Morozov's discrepancy
    principle), which blind deconvolution does with a kernel that becomes ever narrower.

    >>> sharp = np.zeros((9, 9)); sharp[4, 4] = 100
    >>> blur = np.outer([1, 2, 1], [1, 2, 1]) / 16
    >>> from smlmcore import renderer
    >>> found = deconvolve(renderer.convolve(sharp, blur, "periodic"), blur, 500).object
    >>> bool(found[4, 4] > 90)
    True
    """
    image, kernel, mask, v = _check(image, kernel, mode, iterations, background, variance, refine, every)
    xp = backend.module(image)
    even = _mirrored if symmetric and refine is not None else lambda k: k
    kernel = even(kernel)
    size = [n + k - 1 for n, k in zip(image.shape, kernel.shape, strict=True)] if mode == "valid" else image.shape
    plan = Plan(size, kernel.shape, mode, xp)
    back = [-c for c in plan.offset]
    data = image + v
    level = float(data[mask].mean()) if bool(mask.any()) else 0.0
    floor = max(FLOOR * level, np.finfo(image.dtype).tiny)
    rest = background + v
    spectrum = plan.forward(kernel)
    seen = plan.forward(mask.astype(image.dtype))
    reached = xp.maximum(plan.back(seen * spectrum.conj(), back, plan.image), 1e-6)
    if start is None:
        guess = xp.full(plan.image, max(float((image - background)[mask].mean()) if bool(mask.any()) else 0.0, floor))
    else:
        guess = xp.array(start)
        if guess.shape != plan.image or not bool((guess >= 0).all()):
            raise ValueError(f"deconvolve got start of shape {guess.shape}; expected {plan.image}, no value negative")
    guess = guess.astype(image.dtype)
    losses: list[float] = []
    perfect = float(xp.where(mask, data - data * xp.log(xp.maximum(data, floor)), 0).mean(dtype=np.float64))
    end = -np.inf if deviance is None else perfect + deviance / 2 * float(mask.mean())

    def ratio(transform: Any) -> Any:
        mean = xp.maximum(plan.back(transform * spectrum, plan.offset, plan.out), 0) + rest
        mean = xp.maximum(mean, floor)
        losses.append(float(xp.where(mask, mean - data * xp.log(mean), 0).mean(dtype=np.float64)))
        return xp.where(mask, data / mean, 0)

    steps = range(1, iterations + 1)
    for i in tqdm(steps, desc="deconvolving", disable=None if progress else True):
        transform = plan.forward(guess)
        found = plan.forward(ratio(transform))
        if losses[-1] <= end:
            break
        follow = refine is not None and i > refine and i % every == 0
        if follow:
            step = even(plan.back(found * transform.conj(), back, plan.kernel))
            scale = even(plan.back(seen * transform.conj(), back, plan.kernel))
            following = xp.maximum(kernel * step / xp.maximum(scale, floor), 0)
        guess = xp.maximum(guess * plan.back(found * spectrum.conj(), back, plan.image) / reached, 0)
        if follow:
            kernel = following / following.sum()
            spectrum = plan.forward(kernel)
            reached = xp.maximum(plan.back(seen * spectrum.conj(), back, plan.image), 1e-6)
    prediction = xp.maximum(plan.back(plan.forward(guess) * spectrum, plan.offset, plan.out), 0) + background
    return Deconvolved(guess, kernel, prediction, losses)


def _mirrored(kernel: Any) -> Any:
    """The mean of `kernel` and all its mirror images about its centre, the element size // 2."""
    xp = backend.module(kernel)
    for i, n in enumerate(kernel.shape):
        other = xp.flip(kernel, i)
        kernel = (kernel + (other if n % 2 else xp.roll(other, 1, i))) / 2
    return (kernel + kernel.swapaxes(-1, -2)) / 2 if kernel.shape[-1] == kernel.shape[-2] else kernel


def _check(
    image: Any,
    kernel: Any,
    mode: str,
    iterations: int,
    background: float,
    variance: Any,
    refine: int | None,
    every: int,
) -> tuple[Any, Any, Any, Any]:
    """Image without NaN, kernel of unit sum, mask of the pixels that count and variance, all real; or an error."""
    xp = backend.module(image, kernel, variance, name="deconvolve")
    image, kernel = backend.asarray(image), backend.asarray(kernel)
    if image.ndim not in (2, 3) or kernel.ndim != image.ndim or 0 in (*image.shape, *kernel.shape):
        raise ValueError(
            f"deconvolve got an image of shape {image.shape} and a kernel of shape {kernel.shape}; expected both "
            "(y, x) or both (z, y, x), not empty"
        )
    if mode not in MODES:
        raise ValueError(f"deconvolve got mode {mode!r}; expected one of {', '.join(MODES)}")
    if mode != "same" and any(k > n for k, n in zip(kernel.shape, image.shape, strict=True)):
        raise ValueError(
            f"deconvolve got a kernel of shape {kernel.shape}, larger than the image, {image.shape}; crop it, or take "
            "mode 'same'"
        )
    total = float(kernel.sum(dtype=np.float64))
    if not (np.isfinite(total) and total > 0 and bool((kernel >= 0).all())):
        raise ValueError(
            f"deconvolve got a kernel with values from {float(kernel.min())} to {float(kernel.max())} and sum {total}; "
            "expected finite values >= 0 and a sum > 0: subtract the background and clip at 0"
        )
    if iterations < 0 or background < 0 or every < 1 or (refine is not None and refine < 0):
        raise ValueError(
            f"deconvolve got iterations={iterations}, background={background}, refine={refine}, every={every}; "
            "expected iterations, background and refine >= 0 and every >= 1"
        )
    v = xp.asarray(variance, image.dtype)
    if not bool((v >= 0).all()) or v.shape not in ((), image.shape):
        raise ValueError(
            f"deconvolve got variance of shape {v.shape}; expected a number or {image.shape}, >= 0, the square of the "
            "read noise"
        )
    mask = xp.isfinite(image) & xp.isfinite(v)
    v = xp.where(xp.isfinite(v), v, 0)
    clean = xp.where(mask, xp.maximum(xp.where(mask, image, 0), -v), 0).astype(image.dtype)
    return clean, (kernel / total).astype(image.dtype), mask, v
