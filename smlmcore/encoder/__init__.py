"""Encoders: images -> numbers, from which a mapper makes physical parameters.

`Conv` looks at the images; `Table` learns the numbers of each image by themselves.
"""

from .conv import Conv
from .table import Table

__all__ = ["Conv", "Table"]
