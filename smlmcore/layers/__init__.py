"""Layers: plain objects with `init(rng) -> named parameters` and `layer(parameters, x)`, images channels-last.

>>> import numpy as np
>>> from smlmcore.layers import Conv2d, Flatten, Linear, chain
>>> net = chain(Conv2d(1, 8, activation="gelu"), Flatten(), Linear(8 * 5 * 5, 2))
>>> net(net.init(np.random.default_rng(0)), np.ones((4, 5, 5, 1), np.float32)).shape
(4, 2)
"""

from ..memory import keep_freed
from .activation import (
    Activation,
    Elu,
    Gelu,
    LeakyRelu,
    Relu,
    Sigmoid,
    Silu,
    Softplus,
    Tanh,
    activation,
    gelu,
)
from .chain import Flatten, chain, concatenate, residual
from .conv import Conv2d, Conv3d, conv
from .dropout import Dropout
from .half import half
from .linear import Linear, linear
from .mode import note, training
from .norm import BatchNorm, GroupNorm, LayerNorm
from .pool import AvgPool, GlobalPool, MaxPool, average_pool, global_pool, max_pool
from .transpose import ConvTranspose, conv_transpose
from .upsample import Upsample, upsample

__all__ = [
    "Activation",
    "AvgPool",
    "BatchNorm",
    "Conv2d",
    "Conv3d",
    "ConvTranspose",
    "Dropout",
    "Elu",
    "Flatten",
    "Gelu",
    "GlobalPool",
    "GroupNorm",
    "LayerNorm",
    "LeakyRelu",
    "Linear",
    "MaxPool",
    "Relu",
    "Sigmoid",
    "Silu",
    "Softplus",
    "Tanh",
    "Upsample",
    "activation",
    "average_pool",
    "chain",
    "concatenate",
    "conv",
    "conv_transpose",
    "gelu",
    "global_pool",
    "half",
    "keep_freed",
    "linear",
    "max_pool",
    "residual",
    "training",
    "upsample",
]
