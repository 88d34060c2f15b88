"""Rendering Gaussian spots, beside NumPy (separable) and torch (dense)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.special import erf

from smlmcore import psf

from .harness import Row, compare

N, SIZE = 10_000, 15


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
    yield compare(
        f"{N} Gaussian ROIs {SIZE}x{SIZE}, float32, images/s",
        lambda: model.render(p, (SIZE, SIZE)),
        {"NumPy separable": numpy_separable, "torch dense": torch_dense(p)},
        items=N,
        target="9,000,000/s",
    )


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
