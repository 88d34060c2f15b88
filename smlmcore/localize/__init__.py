"""From a movie to a table of localizations and a picture: detect, cut, fit, link, correct drift, render, score."""

from .. import numba_cache  # makes the cache safe
from .cut import cut
from .detect import detect, isolated
from .drift import Drift, correct, cross_correlation, drift, fiducials
from .frc import decorrelation, frc
from .link import link, on_time
from .match import match
from .render import colour, composite, render, save_image
from .score import score

__all__ = [
    "Drift",
    "colour",
    "composite",
    "correct",
    "cross_correlation",
    "cut",
    "decorrelation",
    "detect",
    "drift",
    "fiducials",
    "frc",
    "isolated",
    "link",
    "match",
    "on_time",
    "render",
    "save_image",
    "score",
]
