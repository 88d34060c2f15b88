"""Layers: plain objects with `init(rng) -> named parameters` and `layer(parameters, x)`, images channels-last.

>>> import numpy as np
>>> from smlmcore.layers import Conv2d, Flatten, Gelu, Linear, chain
>>> net = chain(Conv2d(1, 8), Gelu(), Flatten(), Linear(8 * 5 * 5, 2))
>>> net(net.init(np.random.default_rng(0)), np.ones((4, 5, 5, 1), np.float32)).shape
(4, 2)
"""

from .activation import Gelu, gelu
from .chain import Flatten, chain
from .conv import Conv2d, Conv3d, conv
from .linear import Linear, linear

__all__ = ["Conv2d", "Conv3d", "Flatten", "Gelu", "Linear", "chain", "conv", "gelu", "linear"]
