"""Mappers turn an encoder's features into physical parameters."""

from .direct import Direct, Parameter
