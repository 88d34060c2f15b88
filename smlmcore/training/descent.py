"""The optimiser of a training: AdamW with a schedule, clipped gradients, and other rates for some parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .. import optim

SCHEDULES: dict[str, Callable[[float, int, int], optim.Schedule]] = {  # of the rate, all steps and those of warm-up
    "cosine": optim.cosine,
    "constant": lambda rate, steps, warmup: optim.warmup(rate, warmup),
    "one_cycle": lambda rate, steps, warmup: optim.one_cycle(rate, steps),
    "plateau": lambda rate, steps, warmup: optim.Plateau(rate),
}


def schedule_of(kind: str | optim.Schedule, rate: float, steps: int, warmup: int) -> optim.Schedule:
    """The schedule called `kind`, or `kind` itself if it is a function; warm-up takes at most a fifth of `steps`.

    >>> schedule_of("constant", 0.1, steps=100, warmup=2)(0)
    0.05
    """
    if callable(kind):
        return kind
    if kind not in SCHEDULES:
        raise ValueError(f"Trainer got schedule={kind!r}; expected a function or one of {', '.join(SCHEDULES)}")
    return SCHEDULES[kind](rate, steps, min(warmup, steps // 5))


def descent(
    schedule: optim.Schedule, rates: Mapping[str, float] | None = None, decay: float = 1e-3, clip: float = 1.0
) -> optim.Optimiser:
    """AdamW after clipping; `rates` are multiples of the schedule for parameters by pattern.

    >>> import numpy as np
    >>> p = {"encoder.w": np.ones(1), "psf.z": np.ones(1)}
    >>> o = descent(optim.constant(0.5), {"psf.*": 0.1}, decay=0.0)
    >>> {name: u.round(6) for name, u in o.update(p, o.init(p), p)[0].items()}
    {'encoder.w': array([-0.5]), 'psf.z': array([-0.05])}
    """
    rules = {
        pattern: optim.adamw(lambda i, f=factor: f * schedule(i), decay) for pattern, factor in (rates or {}).items()
    }
    rest = optim.adamw(schedule, decay)
    return optim.chain(optim.clip_global_norm(clip), optim.by_name({**rules, "*": rest}) if rules else rest)
