"""Mappers turn an encoder's features into physical parameters."""

from .centroid import Centroid
from .direct import Direct, Parameter
from .image import Image
from .presence import gate, straight_through
from .stacked import StackedConv
