"""Fitting: models learned from images alone, and the refinement of their predictions to the Cramér–Rao bound."""

from .model import FitModel
from .presets import gaussian2d
from .refine import Result, Status, refine
