"""Encoders: images -> numbers, from which a mapper makes physical parameters.

`Conv` gives a few numbers for each image, `UNet` channels for each pixel; `Table` learns the numbers of each image by
themselves, without looking at it.  `tiled` runs a U-Net over large images.
"""

from .conv import Conv
from .table import Table
from .tiles import tiled
from .unet import UNet

__all__ = ["Conv", "Table", "UNet", "tiled"]
