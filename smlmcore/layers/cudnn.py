"""Convolutions by cuDNN, for float32 arrays of a GPU where NVIDIA's package `nvidia-cudnn-frontend` is installed.

Never required: without the package, or where cuDNN has no plan for a shape, one logged line says so, the functions
here return False, and the caller takes its own body.  A graph of one operation is built and planned once for each
shape, kept, and called with addresses.  cuDNN counts axes as (n, channel, *size), but takes any strides, so that
images stay channels-last; filters are copied to (outputs, *taps, inputs), the order its fast algorithms need.

Only plans that multiply float32 as float32 and that give the same bits each time are taken: TF32 keeps 11 bits of
each factor, which a U-Net does not bring within 1e-4.  Who can do with 11 bits has `layers.half()`: float16 factors
and result, sums in float32, at twice the rate of TF32.

When.  A convolution of one tap is one product of matrices, which cuBLAS reads and writes once: left to it.  With more
taps `blas` reads the input and adds to the sums once for each, taps · (C + 2 D) numbers a pixel; cuDNN moves 3 (C + D)
even where it copies both to another order of the axes: a 3x3 filter some 4 times less, and at the widths of our
networks bytes, not flops, bound these products.  But a call costs the processor time, taken as 30 µs; meanwhile a
direct kernel, with 8 bytes from the cache for each multiply-add at 10 TB/s, a third of what an H100's can give, gets
through 2^25: `FROM`.  This is arithmetic: no device has measured it yet (`python -m bench --device gpu` would).
"""

from __future__ import annotations

import logging
import math
from functools import lru_cache
from threading import get_ident
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from ..backend import Array
from .blas import finish_kernel, sloped
from .half import asked, narrow

FROM = 1 << 25  # multiply-adds
WORKSPACE = 1 << 30  # bytes, the most that a plan may want
ALIGNMENT = 16  # bytes, of every address: what cuDNN takes for granted
LARGEST = float(np.finfo(np.float16).max)

logger = logging.getLogger(__name__)


class Plan(NamedTuple):
    """A graph that is ready to run: its operands, the two factors and the result, and the bytes it works in."""

    graph: Any
    operands: tuple[Any, Any, Any]
    workspace: int


class Steps(NamedTuple):
    """How a filter moves over the pixels, along each axis."""

    padding: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]


# ---------------------------------------------------------------------------------------------- plans
@lru_cache
def library(device: int, thread: int) -> Any:
    """The package and a handle of cuDNN for the current device and thread, which may not share one; None without."""
    try:
        import cudnn

        return cudnn, cudnn.create_handle()
    except (ImportError, OSError, RuntimeError) as error:
        logger.info("cuDNN is not used (%s); pip install 'smlmcore[cudnn-cuda13]' (or cudnn-cuda12) if wanted", error)
        return None


def layout(shape: tuple[int, ...]) -> dict[str, list[int]]:
    """Shape and strides, as cuDNN counts them, of a C-contiguous array (n, *size, channel).

    >>> layout((2, 5, 7, 3))
    {'dim': [2, 3, 5, 7], 'stride': [105, 1, 21, 3]}
    """
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return {"dim": [shape[0], shape[-1], *shape[1:-1]], "stride": [strides[0], 1, *strides[1:-1]]}


@lru_cache(maxsize=256)
def planned(
    operation: str, a: tuple, b: tuple, result: tuple, steps: Steps, half: bool, device: int, thread: int
) -> Plan | None:
    """The plan of cuDNN's `operation`, conv_fprop, conv_dgrad or conv_wgrad, for arrays of these shapes; or None."""
    found = library(device, thread)
    if found is None:
        return None
    cudnn, handle = found
    kind, notes = cudnn.data_type, cudnn.numerical_note
    real = kind.HALF if half else kind.FLOAT
    try:
        graph = cudnn.pygraph(
            io_data_type=real, intermediate_data_type=kind.FLOAT, compute_data_type=kind.FLOAT, handle=handle
        )
        factors = [graph.tensor(**layout(shape), data_type=real, name=name) for shape, name in ((a, "a"), (b, "b"))]
        settings = {name: list(values) for name, values in steps._asdict().items()}
        out = getattr(graph, operation)(*factors, **settings, compute_data_type=kind.FLOAT)
        out.set_output(True).set_data_type(real).set_dim(layout(result)["dim"]).set_stride(layout(result)["stride"])
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        graph.deselect_numeric_notes([notes.NONDETERMINISTIC, notes.REDUCED_PRECISION_REDUCTION])
        if not half:
            graph.deselect_numeric_notes([notes.TENSOR_CORE, notes.DOWN_CONVERT_INPUTS])
        graph.deselect_workspace_greater_than(WORKSPACE)
        graph.check_support()
        graph.build_plans()
        return Plan(graph, (*factors, out), graph.get_workspace_size())
    except (cudnn.cudnnGraphNotSupportedError, NotImplementedError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        logger.warning("cuDNN has no plan for %s of %s and %s with %s (%s)", operation, a, b, steps, reason)
        return None


# ---------------------------------------------------------------------------------------------- a call
def _address(a: Array) -> int:
    return a.data.ptr if backend.is_gpu(a) else a.ctypes.data


def _ready(a: Array) -> Array:
    """The array contiguous, and where cuDNN takes it to be: a view may begin anywhere."""
    a = backend.module(a).ascontiguousarray(a)
    return a.copy() if _address(a) % ALIGNMENT else a


def _narrow(a: Array, b: Array, terms: int) -> tuple[Array, Array, Any]:
    """float16 factors with sums of `terms` products that do not overflow, and what to multiply those with."""
    spare = max(0, math.ceil(math.log2(4 * terms / LARGEST)))  # each factor is below 2
    (a, p), (b, q) = narrow(a), narrow(b, spare)
    return a, b, p * q


def _product(operation: str, a: Array, b: Array, result: tuple[int, ...], steps: Steps, terms: int) -> Array | None:
    """What `operation` makes of two arrays (n, *size, channel), each number a sum of `terms` products; None without."""
    import cupy

    place, half = (cupy.cuda.runtime.getDevice(), get_ident()), asked()
    plan = planned(operation, a.shape, b.shape, result, steps, half, *place)
    if plan is None:
        return None
    xp, factor = backend.module(a), None
    if half:
        a, b, factor = _narrow(a, b, terms)
    arrays = _ready(a), _ready(b), xp.empty(result, a.dtype)
    cudnn, handle = library(*place)
    cudnn.set_stream(handle=handle, stream=cupy.cuda.get_current_stream().ptr)
    # from CuPy's pool, which gives freed memory only to later work of the same stream
    workspace = xp.empty(max(plan.workspace, 1), np.uint8)
    addresses = dict(zip(plan.operands, map(_address, arrays), strict=True))
    plan.graph.execute(addresses, _address(workspace), handle=handle)
    return arrays[2] if factor is None else xp.multiply(arrays[2], factor, dtype=np.float32)


def _suits(images: Array, weight: Array, result: Array) -> bool:
    """Whether there is enough to do: `result` has the pixels and channels that a convolution gives."""
    taps = math.prod(weight.shape[:3])
    return images.dtype == np.float32 and taps > 1 and result.size * taps * weight.shape[3] >= FROM


def _settings(x: Array, weight: Array, stride: int, pad: int, dilation: int) -> tuple[int, Steps]:
    """1 for images, which are volumes of one plane here, an axis that cuDNN does without; and the filter's steps."""
    flat = int(x.shape[1] == weight.shape[0] == 1)
    taps = weight.shape[flat:3]
    return flat, Steps(tuple(pad if t > 1 else 0 for t in taps), (stride,) * len(taps), (dilation,) * len(taps))


def _images(a: Array, flat: int) -> Array:
    return a[:, 0] if flat else a


def _filters(weight: Array, flat: int) -> Array:
    """(outputs, *taps, inputs), of weight (*taps, inputs, outputs)."""
    xp = backend.module(weight)
    return xp.ascontiguousarray(xp.moveaxis(weight[0] if flat else weight, -1, 0))


# ---------------------------------------------------------------------------------------------- the three operations
def forward(
    x: Array, weight: Array, bias: Array, stride: int, pad: int, dilation: int, activation: int, out: Array,
    slope: Array,
) -> bool:  # fmt: skip
    """`forward` of the module `conv`.  True if it is done."""
    if not _suits(x, weight, out):
        return False
    flat, steps = _settings(x, weight, stride, pad, dilation)
    result, terms = _images(out, flat).shape, math.prod(weight.shape[:4])
    sums = _product("conv_fprop", _images(x, flat), _filters(weight, flat), result, steps, terms)
    if sums is None:
        return False
    finish_kernel(sums.reshape(out.shape), bias, activation, out=(out, slope))
    return True


def input_gradient(
    gradient: Array, slope: Array, weight: Array, stride: int, pad: int, dilation: int, out: Array
) -> bool:
    """`input_gradient` of the module `conv`.  True if it is done."""
    if not _suits(gradient, weight, gradient):
        return False
    flat, steps = _settings(out, weight, stride, pad, dilation)
    g, terms = _images(sloped(gradient, slope), flat), math.prod(weight.shape[:3]) * weight.shape[4]
    found = _product("conv_dgrad", g, _filters(weight, flat), _images(out, flat).shape, steps, terms)
    if found is None:
        return False
    out[...] = found.reshape(out.shape)
    return True


def weight_gradient(
    x: Array, gradient: Array, slope: Array, stride: int, pad: int, dilation: int, weight: Array, bias: Array
) -> bool:
    """`weight_gradient` of the module `conv`.  True if it is done."""
    if not _suits(x, weight, gradient):
        return False
    flat, steps = _settings(x, weight, stride, pad, dilation)
    g, result = sloped(gradient, slope), (weight.shape[4], *weight.shape[flat:4])
    found = _product("conv_wgrad", _images(x, flat), _images(g, flat), result, steps, gradient[..., 0].size)
    if found is None:
        return False
    weight[...] = backend.module(x).moveaxis(found, 0, -1).reshape(weight.shape)
    bias[...] = g.reshape(-1, g.shape[4]).sum(0)
    return True
