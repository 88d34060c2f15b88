"""Mapper of several emitters in each image, which all pass one small network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import layers
from .direct import Parameter
from .presence import gate


class StackedConv:
    """`channels` features of each of `emitters` emitters pass a shared 1x1 network (dense, GELU, dense).

    Features are (n, channels · emitters), or (n, channels · emitters, 1, 1).  Parameters `per` "emitter" become
    (n, emitters), those `per` "image" (n,), from the mean over the emitters; those not `fitted` take no output.
    `presence`: whether an emitter is there, p, multiplies its photons: "soft" p in (0, 1), "straight" 0 or 1 with the
    gradient of the soft one, None without.  p is among the values, then.

    >>> mapper = StackedConv(3, {"x": Parameter("tanh", 5.0, 5.0), "photons": Parameter("exp", 500.0)}, presence="soft")
    >>> p = mapper.init(np.random.default_rng(0))
    >>> {k: v.shape for k, v in mapper(p, np.ones((2, mapper.features), np.float32)).items()}
    {'x': (2, 3), 'photons': (2, 3), 'p': (2, 3)}
    """

    def __init__(
        self,
        emitters: int,
        parameters: Mapping[str, Parameter],
        channels: int = 8,
        hidden: int = 32,
        presence: str | None = None,
    ) -> None:
        if min(emitters, channels, hidden) < 1 or presence not in (None, "soft", "straight"):
            raise ValueError(
                f"mapper.StackedConv got emitters {emitters}, channels {channels}, hidden {hidden}, "
                f"presence {presence!r}; expected at least 1 of each, and presence None, 'soft' or 'straight'"
            )
        if presence and "photons" not in parameters:
            raise ValueError("mapper.StackedConv got presence without a parameter 'photons' to multiply; add one")
        self.emitters, self.parameters, self.presence = int(emitters), dict(parameters), presence
        self.channels, self.hidden = int(channels), int(hidden)
        self.fitted = [name for name, to in self.parameters.items() if to.fitted]
        outputs = len(self.fitted) + bool(presence)
        self.network = layers.chain(
            layers.Linear(self.channels, self.hidden), layers.Gelu(), layers.Linear(self.hidden, max(1, outputs))
        )

    @property
    def features(self) -> int:
        """How many features it needs."""
        return self.channels * self.emitters

    def configuration(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "emitters": self.emitters,
            "parameters": self.parameters,
            "channels": self.channels,
            "hidden": self.hidden,
            "presence": self.presence,
        }

    def init(self, rng: np.random.Generator) -> dict[str, Any]:
        """Draw the network; its last layer starts small, so that values start at their offsets, but no two alike."""
        p = self.network.init(rng)
        p["2.weight"] *= p["2.weight"].dtype.type(0.1)
        return p

    def __call__(self, p: Mapping[str, Any], features: Any, *_: Any) -> dict[str, Any]:
        """`parameters` (n, emitters) or (n,) each from `features`."""
        n = features.shape[0]
        if features.shape not in ((n, self.features), (n, self.features, 1, 1)):
            raise ValueError(
                f"mapper.StackedConv got features of shape {features.shape}; expected (n, {self.features}): "
                f"{self.channels} for each of {self.emitters} emitters"
            )
        out = self.network(p, features.reshape((n * self.emitters, self.channels)))
        out = out.reshape((n, self.emitters, out.shape[1]))
        values = {}
        for name, to in self.parameters.items():
            if not to.fitted:
                values[name] = to.constant(out, (n,) if to.per == "image" else (n, self.emitters))
                continue
            f = out[:, :, self.fitted.index(name)]
            values[name] = to(f.mean(axis=1) if to.per == "image" else f)
        if self.presence:
            values["p"] = gate(out[:, :, len(self.fitted)], self.presence)
            values["photons"] = values["photons"] * values["p"]
        return values
