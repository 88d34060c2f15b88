"""Training: the loop, what it is fed with, and those that watch it."""

from .callback import Callback
from .feed import Source
from .trainer import Trainer
