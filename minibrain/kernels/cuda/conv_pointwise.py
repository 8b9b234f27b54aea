"""Convolutions with one tap and few outputs, the heads of networks; see conv_pointwise.cu."""

from math import prod

import numpy as np

from minibrain.arrays import array_module
from minibrain.kernels import written
from minibrain.kernels.cuda import loader
from minibrain.kernels.cuda.arguments import (
    MULTIPROCESSORS,
    THREADS,
    blocks_for,
    ceil_divide,
    contiguous,
    launch_over_voxels,
)
from minibrain.kernels.cuda.duck_arrays import pending_arguments
from minibrain.kernels.cuda.reduce import add_parts

MOST_INPUTS, MOST_OUTPUTS = 64, 4  # as in conv_pointwise.cu
GRADIENT_BLOCKS = 8 * MULTIPROCESSORS


def correlate(x, weight, geometry, bias=None):
    inputs, outputs = weight.shape[-2:]
    if not _fits(geometry, inputs, outputs):
        return None
    x, *pending = pending_arguments(x)
    (weight,) = contiguous(weight)
    voxels = prod(x.shape[1:-1])
    y = array_module(x).empty((*x.shape[:-1], outputs), x.dtype)
    arguments = [x, *pending, weight, bias, y, voxels, inputs, outputs]
    grid, shared_bytes = (*blocks_for(voxels), 1, len(x)), 4 * MOST_OUTPUTS * inputs
    loader.launch("conv_pointwise.correlate", grid, (THREADS,), arguments, shared_bytes)
    return y


def spread(y, weight, geometry, bias=None):
    inputs, outputs = weight.shape[-2:]
    if not _fits(geometry, inputs, outputs):
        return None
    y, weight = contiguous(written(y), weight)
    x = array_module(y).empty((*y.shape[:-1], inputs), y.dtype)
    voxels, arguments = prod(y.shape[:-1]), [y, weight, bias, x, outputs]
    launch_over_voxels("conv_pointwise.spread", 1, voxels, inputs, 8, arguments)
    return x


def gradients(x, dy, geometry):
    inputs, outputs = x.shape[-1], dy.shape[-1]
    if not _fits(geometry, inputs, outputs):
        return None
    x, *pending = pending_arguments(x)
    (dy,) = contiguous(dy)
    voxels = prod(x.shape[1:-1])
    share = max(THREADS, ceil_divide(voxels * len(x), GRADIENT_BLOCKS))
    parts = ceil_divide(voxels, share)
    partial = array_module(x).empty((len(x) * parts, inputs + 1, outputs), np.float32)
    arguments = [x, *pending, dy, partial, voxels, inputs, outputs, share]
    grid, shared_bytes = (parts, 1, len(x)), 4 * THREADS * 9 * MOST_OUTPUTS
    loader.launch("conv_pointwise.weight_gradient", grid, (THREADS,), arguments, shared_bytes)
    sums = add_parts(partial, 0)
    return sums[:-1].reshape(*geometry.kernel_size, inputs, outputs), sums[-1]


def _fits(geometry, inputs, outputs):
    ones = {1} == {*geometry.kernel_size, *geometry.stride}
    same = geometry.input_size == geometry.output_size
    return ones and same and inputs % 8 == 0 and inputs <= MOST_INPUTS and outputs <= MOST_OUTPUTS
