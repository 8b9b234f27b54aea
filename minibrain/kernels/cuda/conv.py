"""Convolution and its transpose; see conv.cu for how the sums are cut.

Where there are faster kernels for a shape, in conv_tensor_core.py, those are launched. The kernels
here read x for every tap and 16 outputs anew, so a pending x is written before, and then forgotten.
"""

from math import prod

import numpy as np

from minibrain.arrays import array_module
from minibrain.duck_arrays import Joined, Pending
from minibrain.geometry import conv_geometry, conv_transpose_geometry
from minibrain.kernels import takes, written
from minibrain.kernels.cuda import conv_tensor_core, loader
from minibrain.kernels.cuda.arguments import (
    LARGEST_GRID,
    ceil_divide,
    contiguous,
    numbered,
    packed_geometry,
    supported,
)
from minibrain.kernels.cuda.reduce import add_parts, channel_sum
from minibrain.saved import ConvSaved

# as in conv.cu
THREADS, OUTPUTS, VOXELS_EACH, CHUNK, TILE, VOXELS, LANES = 128, 16, 2, 32, 16, 32, 8

BLOCKS = 4096  # that a weight gradient is cut into, nearly: some for every multiprocessor
LEAST_SHARE = 8 * VOXELS  # positions


@takes(Pending, Joined)
def conv_forward(x, weight, bias=None, *, stride=1, padding=0, dilation=1):
    if not _fit(x, weight, bias, inputs=-2, outputs=-1):
        return NotImplemented
    geometry = conv_geometry(x.shape[1:-1], weight.shape[:-2], stride, padding, dilation)
    if not numbered(geometry):
        return NotImplemented
    return correlate(x, weight, geometry, bias), ConvSaved(x, weight, geometry)


@takes(Pending, Joined)
def conv_backward(dy, saved: ConvSaved, *, input_gradient=True):
    x, weight, geometry = saved
    dy = dy.astype(x.dtype, copy=False)  # a loss's gradient is float32
    if not _gradients_fit(dy, saved, geometry.output_size, outputs=-1):
        return NotImplemented
    dx = spread(dy, weight, geometry) if input_gradient else None
    fast = conv_tensor_core.gradients(x, dy, geometry)
    return dx, *(fast or (weight_gradient(x, dy, geometry), channel_sum(dy)))


@takes(Pending, Joined)
def conv_transpose_forward(
    x, weight, bias=None, *, stride=1, padding=0, dilation=1, output_padding=0
):
    if not _fit(x, weight, bias, inputs=-1, outputs=-2):
        return NotImplemented
    geometry = conv_transpose_geometry(
        x.shape[1:-1], weight.shape[:-2], stride, padding, dilation, output_padding
    )
    if not numbered(geometry):
        return NotImplemented
    return spread(x, weight, geometry, bias), ConvSaved(x, weight, geometry)


@takes(Pending, Joined)
def conv_transpose_backward(dy, saved: ConvSaved, *, input_gradient=True):
    x, weight, geometry = saved
    dy = dy.astype(x.dtype, copy=False)
    if not _gradients_fit(dy, saved, geometry.input_size, outputs=-2):
        return NotImplemented
    dx = written(correlate(dy, weight, geometry)) if input_gradient else None
    fast = conv_tensor_core.transposed_gradients(dy, x, geometry)
    return dx, *(fast or (weight_gradient(dy, x, geometry), channel_sum(dy)))


def correlate(x, weight, geometry, bias=None):
    """y[n,p,o] = bias[o] + Σ_{k,c} w[k,c,o] · x[n, s·p + d·k − padding, c]."""
    fast = conv_tensor_core.correlate(x, weight, geometry, bias)
    if fast is not None:
        return fast
    return _convolve("conv.correlate", x, weight, bias, geometry, geometry.output_size, -1)


def spread(y, weight, geometry, bias=None):
    """x[n, s·p + d·k − padding, c] += Σ_o w[k,c,o] · y[n,p,o], and then + bias[c]."""
    fast = conv_tensor_core.spread(y, weight, geometry, bias)
    if fast is not None:
        return fast
    return _convolve("conv.spread", y, weight, bias, geometry, geometry.input_size, -2)


def _convolve(kernel, x, weight, bias, geometry, size, channel_axis):
    x, weight = contiguous(written(x), weight)
    bias = None if bias is None else contiguous(bias)[0]
    outputs = weight.shape[channel_axis]
    y = array_module(x).empty((len(x), *size, outputs), x.dtype)
    blocks = ceil_divide(prod(size), THREADS * VOXELS_EACH)
    grid = (blocks, ceil_divide(outputs, OUTPUTS), len(x))
    arguments = [x, weight, bias, y, packed_geometry(geometry), x.shape[-1], outputs]
    kernel = f"{kernel}_{_at_once(x)}"
    loader.launch(kernel, grid, (THREADS,), arguments, shared_bytes=4 * CHUNK * OUTPUTS)
    return y


def weight_gradient(x, dy, geometry):
    """dw[k,c,o] = Σ_{n,p} x[n, s·p + d·k − padding, c] · dy[n,p,o]."""
    x, dy = contiguous(written(x), written(dy))
    samples, inputs, outputs = len(x), x.shape[-1], dy.shape[-1]
    taps = prod(geometry.kernel_size)
    tiles = ceil_divide(inputs, TILE) * ceil_divide(outputs, TILE)
    shares = ceil_divide(samples * prod(geometry.output_size), LEAST_SHARE)
    parts = min(shares, ceil_divide(BLOCKS, taps * tiles))
    shape = (parts, *geometry.kernel_size, inputs, outputs)
    partial = array_module(x).empty(shape, np.float32)
    arguments = [x, dy, partial, packed_geometry(geometry), samples, inputs, outputs]
    shared_bytes = 4 * max(2 * VOXELS * TILE, LANES * TILE * TILE)
    grid = (parts, taps, tiles)
    kernel = f"conv.weight_gradient_{_at_once(x, dy)}"
    loader.launch(kernel, grid, (THREADS,), arguments, shared_bytes)
    return add_parts(partial, 0)


def _at_once(*arrays) -> int:
    """How many channels of a voxel a thread reads at once."""
    return 1 if any(array.shape[-1] % 4 for array in arrays) else 4


def _fit(x, weight, bias, inputs, outputs):
    """Whether the shapes agree; the reference says what is wrong if they do not."""
    return (
        weight.ndim == x.ndim
        and supported(x)
        and _weight_fits(weight)
        and x.shape[-1] == weight.shape[inputs]
        and (bias is None or (bias.shape == (weight.shape[outputs],) and bias.dtype == np.float32))
    )


def _gradients_fit(dy, saved: ConvSaved, size, outputs):
    """Whether dy is the gradient of what was computed, and that by one of these kernels."""
    x, weight, geometry = saved
    shape = (x.shape[0], *size, weight.shape[outputs])
    fits = supported(x, dy) and dy.shape == shape
    return fits and _weight_fits(weight) and numbered(geometry)


def _weight_fits(weight):
    """float32, one to three spatial axes, and taps and tiles of channels within a grid's limits."""
    tiles = [ceil_divide(channels, TILE) for channels in weight.shape[-2:]]
    return (
        weight.dtype == np.float32
        and weight.ndim in (3, 4, 5)
        and weight.size
        and max(prod(weight.shape[:-2]), prod(tiles)) <= LARGEST_GRID
    )
