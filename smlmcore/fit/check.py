"""One look at a model and its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backend
from ..autograd import no_grad
from ..layers.chain import part
from ..pictures import middle, residual

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .model import FitModel


def check_model(
    model: FitModel, images: Any, variance: Any = 0.0, count: int = 6, seed: int = 0, index: Any = None
) -> Figure:
    """One figure of the first `count` images: data, prediction and residual / σ; pictures of the parts; random renders.

    `images` (n, *shape) in photoelectrons, `variance` and `index` as for `model.predict`; volumes are shown by their
    middle plane.  The random renders show what the model can draw, learned or not: `random_parameters`, from `seed`.

    >>> import smlmcore as sc
    >>> model = sc.fit.gaussian2d((9, 9)).init(np.random.default_rng(0))
    >>> figure = check_model(model, np.random.default_rng(1).poisson(10.0, (5, 9, 9)), count=3)
    >>> len(figure.get_axes())
    12
    """
    from .. import plot  # the only part of `fit` that needs matplotlib, which loads slowly

    images, variance = model.check(images, variance)
    if len(images) == 0:
        raise ValueError("check_model got no images; expected at least one")
    n = min(count, len(images))
    images, variance = images[:n], variance[:n] if variance.ndim == images.ndim else variance
    index = None if index is None else np.asarray(index)[:n]
    with no_grad():
        values, prediction = model(model.parameters, images, variance, index)
        random = random_parameters(model, values, np.random.default_rng(seed))
        renders = model.renderer(part(model.parameters, "renderer"), random)
    spread = residual(backend.to_cpu(images), backend.to_cpu(prediction), variance)
    return plot.check(*map(middle, (images, prediction, spread)), model.pictures(), middle(renders))


def random_parameters(model: FitModel, values: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Parameters of images that the model could draw, in the shapes of `values`, parameters that it predicts.

    Those with a specification in the mapper are drawn from it with standard normal features.  Those solved for in
    closed form, images, and with a presence also the photons are `values` themselves, of other images.

    >>> import smlmcore as sc
    >>> model = sc.fit.gaussian2d((9, 9))
    >>> found = random_parameters(model, {"x": np.zeros(2), "photons": np.ones(2)}, np.random.default_rng(0))
    >>> found["x"].round(1).tolist(), found["photons"].tolist()
    ([3.6, 5.5], [1.0, 1.0])
    """
    order = rng.permutation(len(next(iter(values.values()))))
    found = {}
    for name, value in values.items():
        to = model.mapper.parameters.get(name)
        if to is None or value.ndim > 2 or (name == "photons" and "p" in values):
            found[name] = value[order]
        elif to.fitted:
            feature = rng.standard_normal(value.shape).astype(value.dtype)
            found[name] = to(backend.module(value).asarray(feature))
        else:
            found[name] = value
    return found
