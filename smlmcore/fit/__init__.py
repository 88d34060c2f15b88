"""Fitting: directly, at the Cramér–Rao bound, or by models learned from images alone."""

from ..lazy import lazily
from .direct import lsq, mle, simulate_spots
from .refine import refine
from .result import Result, Status
from .score import Score, score

__getattr__, __dir__ = lazily(
    __name__,
    check="check_model",
    emitters="Several",
    in_situ="learn_pupil locate twin",
    model="FitModel",
    presets="gaussian2d pupil3d",
)
