"""Encoders: images -> numbers, from which a mapper makes physical parameters."""

from .conv import Conv
from .unet import UNet

__all__ = ["Conv", "UNet"]
