"""Encoders: images -> numbers, from which a mapper makes physical parameters.

`Conv` gives a few numbers for each image, `UNet` channels for each pixel; `Table` learns the numbers of each image by
themselves, without looking at it.  `tiled` runs a U-Net over large images.
`Feedback` shows an encoder what the renderer has learned.
"""

from .conv import Conv
from .feedback import Feedback
from .table import Table
from .tiles import tiled
from .unet import UNet

__all__ = ["Conv", "Feedback", "Table", "UNet", "tiled"]
