"""Training: the loop, its history and its held-out images."""

from .trainer import Trainer
