"""Encoders: images -> numbers, from which a mapper makes physical parameters.

`Conv` gives a few numbers for each image, `UNet` channels for each pixel; `Table` learns the numbers of each image by
themselves, without looking at it.
"""

from .conv import Conv
from .table import Table
from .unet import UNet

__all__ = ["Conv", "Table", "UNet"]
