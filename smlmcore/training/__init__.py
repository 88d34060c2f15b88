"""Training: the loop, what it is fed with, and those that watch it."""

from .board import Board
from .callback import Callback
from .errors import errors
from .feed import Source
from .profiling import Profiler
from .trainer import Trainer
