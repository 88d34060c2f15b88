"""Exchange with other libraries."""

from .weights import from_torch, to_torch

__all__ = ["from_torch", "to_torch"]
