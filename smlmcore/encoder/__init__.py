"""Encoders: images -> numbers, from which a mapper makes physical parameters."""

from .conv import Conv

__all__ = ["Conv"]
