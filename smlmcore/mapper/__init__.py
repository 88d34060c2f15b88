"""Mappers turn an encoder's features into physical parameters."""

from .centroid import Centroid
from .direct import Direct, Parameter
from .image import Image
