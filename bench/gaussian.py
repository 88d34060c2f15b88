"""Rendering Gaussian spots and fields of emitters, beside NumPy (separable, bincount) and torch (dense, index_add).

A spot of 15x15 costs 32 edges, two vectors of exponential and erf, and 900 bytes written: 25 M/s on two cores is
22 GB/s.  An emitter in a large image costs as much, and its window is read and written in the second cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.special import erf

from smlmcore import psf
from smlmcore.autograd import Tensor
from smlmcore.psf.gaussian import render_vjp_kernel
from smlmcore.psf.scatter import scatter_vjp_kernel

from .harness import Row, compare

N, SIZE, FIELD = 10_000, 15, 256


def rows() -> Iterator[Row]:
    rng = np.random.default_rng(0)
    single = {
        "x": rng.uniform(6, 8, N),
        "y": rng.uniform(6, 8, N),
        "photons": rng.uniform(500, 3000, N),
        "background": rng.uniform(1, 20, N),
        "sigma": rng.uniform(1, 1.6, N),
    }
    p = {name: values.astype(np.float32) for name, values in single.items()}
    model = psf.Gaussian2D()
    edges = np.arange(SIZE + 1, dtype=np.float32) - np.float32(0.5)

    def numpy_separable():
        def axis(c):
            u = (edges - c[:, None]) / (np.float32(np.sqrt(2)) * p["sigma"][:, None])
            return np.float32(0.5) * np.diff(erf(u), axis=1)

        spots = p["photons"][:, None, None] * axis(p["y"])[:, :, None] * axis(p["x"])[:, None, :]
        return spots + p["background"][:, None, None]

    np.testing.assert_allclose(model.render(p, (SIZE, SIZE)), numpy_separable(), rtol=1e-3, atol=1e-3)
    forward = compare(
        f"{N} Gaussian ROIs {SIZE}x{SIZE}, float32, images/s",
        lambda: model.render(p, (SIZE, SIZE)),
        {"NumPy separable": numpy_separable, "torch dense": torch_dense(p)},
        repeat=15,
        items=N,
        target="9,000,000/s",
    )
    yield forward
    yield gradient_row("their gradient to all five parameters", forward, *gradient(p, None, (SIZE, SIZE)))
    yield from field()


def field() -> Iterator[Row]:
    """N emitters of sigma 1.3 in one image."""
    rng = np.random.default_rng(1)
    p = {"x": rng.uniform(0, FIELD - 1, N), "y": rng.uniform(0, FIELD - 1, N), "photons": rng.uniform(500, 3000, N)}
    p |= {"sigma": np.full(N, 1.3), "background": np.full(1, 5.0)}
    p = {name: values.astype(np.float32) for name, values in p.items()}
    image, shape, model = np.zeros(N, int), (FIELD, FIELD), psf.Gaussian2D()
    numpy_field = bincount(p)
    np.testing.assert_allclose(model.render(p, shape, image=image)[0], numpy_field(), rtol=1e-3)
    forward = compare(
        f"{N} emitters into one {FIELD}x{FIELD} image, float32, emitters/s",
        lambda: model.render(p, shape, image=image),
        {"NumPy bincount": numpy_field, "torch index_add": torch_field(p)},
        repeat=15,
        items=N,
        target="7,000,000/s",
    )
    yield forward
    yield gradient_row("their gradient to all five parameters", forward, *gradient(p, image, shape))


def gradient(p, image, shape) -> tuple[Any, Any]:
    """The kernel of the gradient alone, and rendering and gradient through the tape."""
    model = psf.Gaussian2D()
    ones = np.ones((len(p["background"]), *shape), np.float32)

    def record():
        tensors = {k: Tensor(v) for k, v in p.items()}
        return model.render(tensors, shape, image=image)

    def both():
        record().backward(ones)

    if image is None:
        e = [p[k][:, None] for k in ("x", "y", "photons", "sigma", "sigma")]
        out = (*(np.empty_like(a) for a in e), np.empty_like(p["background"]))
        return lambda: render_vjp_kernel(*e, ones, out=out), both
    e = [p[k] for k in ("x", "y", "photons", "sigma", "sigma")] + [np.array([0, N], np.int32)]
    out = (*(np.empty_like(a) for a in e[:5]), np.empty_like(p["background"]))
    return lambda: scatter_vjp_kernel(*e, ones, out=out), both


def gradient_row(work, forward, alone, both) -> Row:
    """A row whose peer is the rendering itself: the ratio is its time over ours."""
    row = compare(work, alone, {"with rendering and tape": both}, repeat=15, items=N, target="<= 2.5x rendering")
    row.note = f"{row.ours / forward.ours:.2f}x the time of rendering"
    return row


def bincount(p):
    """The windows of 15x15 pixels (5.4 sigma) of all emitters, added up by bincount."""
    steps = np.arange(-7, 9, dtype=np.float32) - np.float32(0.5)

    def run():
        axes, pixels = [], []
        for name in ("y", "x"):
            middle = np.rint(p[name])
            u = (middle[:, None] + steps - p[name][:, None]) / (np.float32(np.sqrt(2)) * p["sigma"][:, None])
            axes.append(np.float32(0.5) * np.diff(erf(u), axis=1))
            pixels.append(middle[:, None].astype(np.int64) + np.arange(-7, 8) + 7)
        weights = p["photons"][:, None, None] * axes[0][:, :, None] * axes[1][:, None, :]
        wide = FIELD + 14
        index = pixels[0][:, :, None] * wide + pixels[1][:, None, :]
        image = np.bincount(index.ravel(), weights.ravel(), wide * wide).reshape(wide, wide)
        return image[7:-7, 7:-7] + p["background"]

    return run


def torch_field(p):
    """The same windows in torch, added up by index_add; None without torch."""
    try:
        import torch
    except ImportError:
        return None
    t = {name: torch.from_numpy(v) for name, v in p.items()}
    steps, wide = torch.arange(-7, 9) - 0.5, FIELD + 14

    def run():
        axes, pixels = [], []
        for name in ("y", "x"):
            middle = torch.round(t[name])
            u = (middle[:, None] + steps - t[name][:, None]) / (2**0.5 * t["sigma"][:, None])
            axes.append(0.5 * torch.erf(u).diff(dim=1))
            pixels.append(middle[:, None].long() + torch.arange(-7, 8) + 7)
        weights = t["photons"][:, None, None] * axes[0][:, :, None] * axes[1][:, None, :]
        index = pixels[0][:, :, None] * wide + pixels[1][:, None, :]
        image = torch.zeros(wide * wide).index_add_(0, index.ravel(), weights.ravel())
        return image.reshape(wide, wide)[7:-7, 7:-7] + t["background"]

    return run


def torch_dense(p):
    """Every pixel's four erf, as written without thought of separability; None without torch."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(2)
    t = {name: torch.from_numpy(v)[:, None, None] for name, v in p.items()}
    grid = torch.arange(SIZE, dtype=torch.float32)

    def run():
        def axis(pixels, c):
            s = t["sigma"] * 2**0.5
            return 0.5 * (torch.erf((pixels + 0.5 - c) / s) - torch.erf((pixels - 0.5 - c) / s))

        y, x = grid[None, :, None].expand(1, SIZE, SIZE), grid[None, None, :].expand(1, SIZE, SIZE)
        return t["photons"] * axis(y, t["y"]) * axis(x, t["x"]) + t["background"]

    return run
