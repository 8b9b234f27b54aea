"""Max-pool, upsampling and concatenation; see pooling.cu."""

import numpy as np

from minibrain.arrays import array_module
from minibrain.geometry import axis_of_padding_only, conv_geometry, per_axis
from minibrain.kernels import takes
from minibrain.kernels.cuda import loader
from minibrain.kernels.cuda.arguments import (
    THREADS,
    blocks_for,
    contiguous,
    numbered,
    packed_geometry,
    supported,
)
from minibrain.kernels.cuda.unwritten import in_one_go, pending_arguments
from minibrain.saved import ConcatSaved, Joined, MaxPoolSaved, Pending, UpsampleSaved


@takes(Pending, Joined)
def max_pool_forward(x, kernel_size=2, *, stride=None, padding=0, dilation=1):
    if not _fits(x):
        return NotImplemented
    stride = kernel_size if stride is None else stride
    geometry = conv_geometry(x.shape[1:-1], kernel_size, stride, padding, dilation)
    if not numbered(geometry) or axis_of_padding_only(geometry) is not None:
        return NotImplemented  # the reference says what is wrong
    x, *pending = pending_arguments(x)
    y = _empty(x, geometry.output_size)
    winner = array_module(x).empty(y.shape, np.int32)
    _launch("max_pool_forward", [x, *pending, y, winner], geometry, y, in_one_go(y))
    return y, MaxPoolSaved(winner, geometry)


def max_pool_backward(dy, saved: MaxPoolSaved):
    winner, geometry = saved
    if not (_fits(dy) and numbered(geometry) and dy.shape == winner.shape):
        return NotImplemented
    dy, winner = contiguous(dy, winner)
    dx = _empty(dy, geometry.input_size)
    _launch("max_pool_backward", [dy, winner, dx], geometry, dx)
    return dx


def upsample_forward(x, factor=2):
    if not _fits(x):
        return NotImplemented
    factor = per_axis(factor, x.ndim - 2, "factor")
    size = [n * f for n, f in zip(x.shape[1:-1], factor, strict=True)]
    geometry = conv_geometry(size, factor, factor)
    if not numbered(geometry):
        return NotImplemented
    (x,) = contiguous(x)
    y = _empty(x, size)
    _launch("upsample_forward", [x, y], geometry, y)
    return y, UpsampleSaved(factor)


def upsample_backward(dy, saved: UpsampleSaved):
    if not _fits(dy) or any(n % f for n, f in zip(dy.shape[1:-1], saved.factor, strict=True)):
        return NotImplemented
    geometry = conv_geometry(dy.shape[1:-1], saved.factor, saved.factor)
    (dy,) = contiguous(dy)
    dx = _empty(dy, geometry.output_size)
    _launch("upsample_backward", [dy, dx], geometry, dx)
    return dx


@takes(Pending)
def concat_forward(a, b):
    if not (supported(a, b) and a.shape[:-1] == b.shape[:-1]):
        return NotImplemented
    return Joined(a, b), ConcatSaved(a.shape[-1])


def concat_backward(dy, saved: ConcatSaved):
    channels = saved.channels, dy.shape[-1] - saved.channels
    if not supported(dy) or min(channels) < 1:
        return NotImplemented
    (dy,) = contiguous(dy)
    da, db = (array_module(dy).empty((*dy.shape[:-1], c), dy.dtype) for c in channels)
    arguments = [dy, da, db, dy.size, *channels]
    loader.launch("pooling.concat_backward", blocks_for(dy.size), (THREADS,), arguments)
    return da, db


def _fits(x):
    return x.ndim in (3, 4, 5) and supported(x)


def _empty(x, size):
    return array_module(x).empty((len(x), *size, x.shape[-1]), x.dtype)


def _launch(kernel, arrays, geometry, written, width=None):
    """A thread for each element that is written, or for each `width` of them."""
    arguments = [*arrays, packed_geometry(geometry), written.size, written.shape[-1]]
    name = f"pooling.{kernel}_{width}" if width else f"pooling.{kernel}"
    loader.launch(name, blocks_for(written.size // (width or 1)), (THREADS,), arguments)
