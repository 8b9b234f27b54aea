"""Max-pool, upsampling and concatenation; see pooling.cu."""

from dataclasses import dataclass, replace
from math import prod

import numpy as np

from minibrain.arrays import array_module
from minibrain.duck_arrays import DuckArray, Joined, Pending
from minibrain.geometry import axis_of_padding_only, conv_geometry, per_axis
from minibrain.kernels import takes, written
from minibrain.kernels.cuda.arguments import (
    LARGEST_GRID,
    alike,
    ceil_divide,
    contiguous,
    launch_over_voxels,
    numbered,
    packed_geometry,
    pitched,
    supported,
)
from minibrain.kernels.cuda.duck_arrays import in_one_go, pending_arguments
from minibrain.saved import Array, ConcatSaved, MaxPoolSaved, UpsampleSaved

MOST_TAPS = 256  # whose numbers fit into the byte that kernels keep of each winner


@takes(Pending, Joined)
def max_pool_forward(x, kernel_size=2, *, stride=None, padding=0, dilation=1):
    if not _fits(x):
        return NotImplemented
    stride = kernel_size if stride is None else stride
    geometry = conv_geometry(x.shape[1:-1], kernel_size, stride, padding, dilation)
    if not numbered(geometry) or prod(geometry.kernel_size) > MOST_TAPS:
        return NotImplemented
    if axis_of_padding_only(geometry) is not None:
        return NotImplemented  # the reference says what is wrong
    x, *pending = pending_arguments(x)
    y = _empty(x, geometry.output_size)
    winner = array_module(x).empty(y.shape, np.uint8)
    _launch("max_pool_forward", [x, *pending, y, winner], geometry, y)
    return y, MaxPoolSaved(winner, geometry)


def max_pool_backward(dy, saved: MaxPoolSaved):
    winner, geometry = saved
    if not (_fits(dy) and numbered(geometry) and dy.shape == winner.shape):
        return NotImplemented
    return Unpooled(dy, saved) if winner.dtype == np.uint8 else NotImplemented


@dataclass(frozen=True, eq=False)
class Unpooled(DuckArray):
    """The gradient of what was pooled, before it is written.

    In a U-Net another is added to it next, that by way of the skip. So the kernel waits until
    somebody asks for the array, and writes the sum: one pass over memory instead of two, and in
    bfloat16 one rounding.

    dy : (N, *T, C)
    dskip : (N, *S, C), what has been added; it may be some channels of a larger array
    """

    dy: Array
    saved: MaxPoolSaved
    dskip: Array | None = None

    @property
    def shape(self):
        return (len(self.dy), *self.saved.geometry.input_size, self.dy.shape[-1])

    @property
    def dtype(self):
        return self.dy.dtype

    def __add__(self, other):
        if self.dskip is None and isinstance(other, type(self.dy)) and alike(other, self):
            return replace(self, dskip=other)
        return self.write() + written(other)

    __iadd__ = __add__

    def write(self):
        geometry, dskip = self.saved.geometry, pitched(self.dskip)
        dy, winner = contiguous(self.dy, self.saved.winner)
        dx = _empty(dy, geometry.input_size)
        width, arguments = in_one_go(dx, dskip), [dy, winner, *dskip, dx, packed_geometry(geometry)]
        axes = zip(geometry.input_size, geometry.padding, geometry.stride, strict=True)
        cells = prod(ceil_divide(size + before, stride) for size, (before, _), stride in axes)
        kernel, sizes = f"pooling.max_pool_backward_{width}", (len(dx), cells, dx.shape[-1])
        launch_over_voxels(kernel, *sizes, width, arguments, each=1)
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
    return y, UpsampleSaved(factor, y.shape)


def upsample_backward(dy, saved: UpsampleSaved):
    if not _fits(dy) or dy.shape != saved.shape:
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
    y = Joined(a, b)
    if y.shape[-1] > LARGEST_GRID:
        return NotImplemented
    return y, ConcatSaved(a.shape[-1], y.shape)


def _fits(x):
    return x.ndim in (3, 4, 5) and supported(x) and x.shape[-1] <= LARGEST_GRID


def _empty(x, size):
    return array_module(x).empty((len(x), *size, x.shape[-1]), x.dtype)


def _launch(kernel, arrays, geometry, written):
    """Threads go over the voxels that are written."""
    (samples, *size, channels), width = written.shape, in_one_go(written)
    name, arguments = f"pooling.{kernel}_{width}", [*arrays, packed_geometry(geometry)]
    launch_over_voxels(name, samples, prod(size), channels, width, arguments)
