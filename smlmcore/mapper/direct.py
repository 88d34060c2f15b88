"""Mapper that reads each physical parameter from one feature, and solves the linear ones in closed form on request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .. import backend
from ..autograd import ops, plain
from .projection import solve_linear

ACTIVATIONS: dict[str, Callable[[Any, float, float], Any]] = {
    "linear": lambda f, offset, scale: offset + scale * f,
    "tanh": lambda f, offset, scale: offset + scale * ops.tanh(f),
    "exp": lambda f, offset, scale: offset * ops.exp(scale * f),
    "softplus": lambda f, offset, scale: offset + scale * ops.softplus(f),
}


@dataclass(frozen=True)
class Parameter:
    """How a feature f becomes a parameter: `linear` offset + scale f, `tanh` offset + scale tanh f,
    `exp` offset exp(scale f), `softplus` offset + scale log(1 + e^f).

    `per`: in mappers of several emitters, whether each "emitter" has its own value or each "image" has one.  Not
    `fitted`, it is always `offset` and takes no feature.

    >>> float(Parameter("tanh", offset=5.0, scale=3.0)(0.0))
    5.0
    """

    activation: str = "linear"
    offset: float = 0.0
    scale: float = 1.0
    per: str = "emitter"
    fitted: bool = True

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"Parameter got activation {self.activation!r}; expected one of {sorted(ACTIVATIONS)}")
        if self.per not in ("emitter", "image"):
            raise ValueError(f"Parameter got per {self.per!r}; expected 'emitter' or 'image'")

    def configuration(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-ready."""
        return asdict(self)

    @classmethod
    def between(cls, low: float, high: float, **settings: Any) -> Parameter:
        """A parameter within (low, high), which starts in the middle.

        >>> float(Parameter.between(1.0, 3.0)(0.0))
        2.0
        """
        return cls("tanh", (low + high) / 2, (high - low) / 2, **settings)

    def constant(self, like: Any, shape: tuple[int, ...]) -> Any:
        """`offset` in an array of `shape`, of the kind and precision of `like`, an array or Tensor."""
        like = plain(like)
        return backend.module(like).full(shape, self.offset, like.dtype)

    def __call__(self, feature: Any) -> Any:
        """The parameter's value for `feature` (array, Tensor or number)."""
        return ACTIVATIONS[self.activation](feature, self.offset, self.scale)


class Direct:
    """One emitter per image; feature i gives the i-th of `parameters`, those in `solve` come in closed form.

    `solve` names parameters in which the image is linear (photons, background).  Given the others they are the
    weighted least-squares solution for each image, with the gradient passing through: variable projection (Golub &
    Pereyra 1973, SIAM J. Numer. Anal. 10, 413).  The encoder then has only the shape to learn.

    >>> import numpy as np
    >>> mapper = Direct({"x": Parameter("tanh", 5.0, 3.0), "sigma": Parameter("exp", 1.3, 0.3)})
    >>> values = mapper({}, np.zeros((2, 2)))
    >>> values["x"].tolist(), values["sigma"].tolist()
    ([5.0, 5.0], [1.3, 1.3])
    """

    def __init__(self, parameters: Mapping[str, Parameter], solve: Sequence[str] = ()) -> None:
        both = set(parameters) & set(solve)
        if both:
            raise ValueError(f"Direct got {sorted(both)} both as a feature and in `solve`; name each parameter once")
        self.parameters, self.solve = dict(parameters), tuple(solve)

    @property
    def features(self) -> int:
        """How many features it needs."""
        return sum(to.fitted for to in self.parameters.values())

    def configuration(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"parameters": self.parameters, "solve": list(self.solve)}

    def init(self, rng: Any) -> dict[str, Any]:
        """The learned parameters at the start: none."""
        return {}

    def __call__(
        self,
        p: Mapping[str, Any],
        features: Any,
        images: Any = None,
        variance: Any = 0.0,
        draw: Callable[[Mapping[str, Any]], Any] | None = None,
    ) -> dict[str, Any]:
        """Parameters (n,) each from `features` (n, c); `images`, `variance` and the renderer `draw` serve `solve`."""
        if features.ndim != 2 or features.shape[1] != self.features:
            raise ValueError(
                f"mapper.Direct got features of shape {features.shape}; expected (n, {self.features}), "
                f"one column for each of {', '.join(name for name, to in self.parameters.items() if to.fitted)}"
            )
        columns = iter(range(self.features))
        values = {
            name: to(features[:, next(columns)]) if to.fitted else to.constant(features, features.shape[:1])
            for name, to in self.parameters.items()
        }
        if self.solve:
            if images is None or draw is None:
                raise ValueError("mapper.Direct with `solve` needs the images and the renderer; pass images= and draw=")
            values |= solve_linear(draw, values, self.solve, images, variance)
        return values
