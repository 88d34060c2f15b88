"""Renderer of one learned image, moved by a part of a pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import backend, interpolate
from ..autograd import ops, plain
from ..pictures import sections
from .conv import convolve
from .convolution import _per_image

METHODS = ("fourier", "spline")


class Template:
    """Images of `shape` = photons * T(. - shift) + background, of a template T that is learned (or not: `learned`).

    `template`: where learning starts, an array of at least `shape`, 2-D or 3-D, in photoelectrons; larger by a margin,
    it supplies what moves in from outside.  Parameters: x, y (and z of a volume), the shift in pixels towards higher
    indices, (n,); at 0 the middles of image and template coincide.  Optional: "photons" (n,), and then T is divided
    by its sum; "background" (n,).  Without photons a shift of all images against T is all that stays undetermined.

    `method` moves it by "fourier" (T repeats periodically: right where it fades to one level at its borders) or cubic
    "spline" (mirrored at its borders).  `blur`: standard deviation in pixels, where a learned Gaussian blur starts.

    >>> draw = Template(np.eye(5), (3, 3))
    >>> draw(draw.init(np.random.default_rng(0)), {"x": np.array([1.0]), "y": np.array([0.0])})[0].round(3) + 0.0
    array([[0., 1., 0.],
           [0., 0., 1.],
           [0., 0., 0.]])
    """

    def __init__(
        self,
        template: Any,
        shape: Sequence[int],
        method: str = "fourier",
        learned: bool = True,
        blur: float | None = None,
    ) -> None:
        template = np.asarray(backend.to_cpu(template), np.float32)
        self.shape = tuple(int(s) for s in shape)
        fits = template.ndim == len(self.shape) and all(
            1 <= n <= m for n, m in zip(self.shape, template.shape, strict=True)
        )
        if template.ndim not in (2, 3) or not fits or not np.isfinite(template).all():
            raise ValueError(
                f"renderer.Template got a template of shape {template.shape} for images of {shape}; expected (y, x) or "
                "(z, y, x), at least as large as the images, finite"
            )
        if method not in METHODS:
            raise ValueError(f"renderer.Template got method {method!r}; expected one of {', '.join(METHODS)}")
        if blur is not None and not blur > 0:
            raise ValueError(f"renderer.Template got blur={blur}; expected a standard deviation in pixels, > 0")
        self.template, self.method, self.learned = template, method, bool(learned)
        self.blur = None if blur is None else float(blur)
        self.scale = float(np.abs(template).max()) or 1.0  # one learning rate fits templates of any brightness
        self.axes = ("z", "y", "x")[-template.ndim :]

    def configuration(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-ready."""
        return {
            "template": self.template.tolist(),
            "shape": list(self.shape),
            "method": self.method,
            "learned": self.learned,
            "blur": self.blur,
        }

    def init(self, rng: np.random.Generator) -> dict[str, Any]:
        """The learned parameters at the start: the `template` over its largest value, and the logarithm of the blur."""
        p = {"template": self.template / np.float32(self.scale)} if self.learned else {}
        if self.blur is not None:
            p["log_blur"] = np.array([math.log(self.blur)], np.float32)
        return p

    def template_of(self, p: Mapping[str, Any], xp: Any = np) -> Any:
        """The template, blurred, for the learned parameters `p` of this part; in `xp` if nothing is learned."""
        template = p["template"] * self.scale if self.learned else xp.asarray(self.template)
        if self.blur is None:
            return template
        edges = np.arange(-math.ceil(6 * self.blur) - 0.5, math.ceil(6 * self.blur) + 1.0, dtype=np.float32)
        xp = backend.module(plain(p["log_blur"]))
        cdf = 0.5 * ops.erf(xp.asarray(edges) / math.sqrt(2) * ops.exp(-p["log_blur"]))
        line = cdf[1:] - cdf[:-1]
        line = line / line.sum()
        for i in range(self.template.ndim):
            shape = [1] * self.template.ndim
            shape[i] = line.size
            template = convolve(template, line.reshape(*shape), "periodic" if self.method == "fourier" else "same")
        return template

    def pictures(self, p: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The template, blurred."""
        return sections("template", self.template_of(p))

    def __call__(self, p: Mapping[str, Any], parameters: Mapping[str, Any]) -> Any:
        """Images (n, *shape) of `parameters`."""
        missing = [name for name in self.axes if name not in parameters]
        if missing:
            raise ValueError(
                f"renderer.Template got parameters {sorted(parameters)} without {', '.join(missing)}; expected the "
                f"shift along {', '.join(self.axes)} in pixels, (n,) each"
            )
        xp = backend.module(*(plain(parameters[name]) for name in self.axes), name="renderer.Template")
        template = self.template_of(p, xp)
        dtype = template.dtype
        points = [
            xp.arange(n, dtype=dtype) + (m - n) / 2 - parameters[name].reshape(-1, 1)
            for n, m, name in zip(self.shape, self.template.shape, self.axes, strict=True)
        ]
        if "photons" in parameters:
            template = template / template.sum()
        if self.method == "fourier":
            image = interpolate.fourier.at(template, points)
        else:
            image = interpolate.sample(interpolate.prefilter(template), product(points))
        if "photons" in parameters:
            image = image * _per_image(parameters["photons"], image.ndim)
        return image + _per_image(parameters["background"], image.ndim) if "background" in parameters else image


def product(points: Sequence[Any]) -> Any:
    """The points (n, m_0, m_1, ..., d) of a grid with coordinates `points[i]` (n, m_i) along axis i."""
    d = len(points)
    n, sizes = len(points[0]), [p.shape[1] for p in points]
    columns = []
    for i, p in enumerate(points):
        line = p.reshape(n, *(m if j == i else 1 for j, m in enumerate(sizes)))
        columns.append(ops.broadcast_to(line, (n, *sizes)))
    return ops.stack(columns, axis=d + 1)
