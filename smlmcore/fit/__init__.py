"""Fitting: directly, at the Cramér–Rao bound, or by models learned from images alone."""

from .check import check_model
from .direct import lsq, mle, simulate_spots
from .emitters import Several
from .in_situ import learn_pupil, locate, twin
from .model import FitModel
from .presets import gaussian2d, pupil3d
from .refine import refine
from .result import Result, Status
from .score import Score, score
