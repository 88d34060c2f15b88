"""From a movie to a table of localizations: detect spots, cut them out, fit them, score and draw the result."""

from .cut import cut
from .detect import detect, isolated
from .match import match
from .render import render

__all__ = ["cut", "detect", "isolated", "match", "render"]
