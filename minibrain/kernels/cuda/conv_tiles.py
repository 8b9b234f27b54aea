"""Convolutions as products of large matrices; see conv_tiles.cu for how the sums are cut."""

from math import prod

import numpy as np

from minibrain.arrays import array_module
from minibrain.kernels import written
from minibrain.kernels.cuda import loader
from minibrain.kernels.cuda.arguments import (
    LARGEST_SAMPLE,
    MULTIPROCESSORS,
    ceil_divide,
    contiguous,
    packed_geometry,
)
from minibrain.kernels.cuda.conv_weights import pack_weights
from minibrain.kernels.cuda.reduce import add_parts

# as in conv_tiles.cu
THREADS, STAGES, STEP, GRADIENT_TILE = 128, 4, 32, (64, 64)
TILES = ((128, 128), (128, 64), (64, 64))  # positions, outputs

MOST_POSITIONS = LARGEST_SAMPLE - 256  # so that rows of a tile beyond the last have numbers too
GRADIENT_BLOCKS = 8 * MULTIPROCESSORS


def correlate(x, weight, geometry, bias=None):
    """Any convolution of 32 channels or a multiple."""
    geometry, folded = _folded(geometry)
    return _correlate(x, weight, geometry, bias, x.shape[-1] * folded, weight.shape[-1])


def spread(y, weight, geometry, bias=None):
    """The adjoint of a convolution with stride 1 that keeps the size, which is such a convolution
    itself, or of one whose windows touch."""
    inputs, columns = y.shape[-1], prod(weight.shape[:-1])
    mirrored = _mirrored(geometry)
    if mirrored:
        return _correlate(y, weight, mirrored, bias, inputs, weight.shape[-2], adjoint=True)
    positions = y.shape[0] * prod(geometry.output_size)
    if not all(_touches(geometry)) or not _fits(inputs, weight.shape[-2], positions):
        return None
    (y,) = contiguous(written(y))
    packed = pack_weights(weight, 1, inputs, columns, adjoint=True)
    x = array_module(y).empty((len(y), *geometry.input_size, weight.shape[-2]), y.dtype)
    arguments = [y, packed, bias, x, packed_geometry(geometry), len(y), inputs, columns]
    _launch("scatter", TILES[-1], positions, columns, arguments)
    return x


def _correlate(x, weight, geometry, bias, inputs, outputs, adjoint=False):
    taps, positions = prod(geometry.kernel_size), x.shape[0] * prod(geometry.output_size)
    if not _fits(inputs, outputs, positions):
        return None
    (x,) = contiguous(written(x))
    packed = pack_weights(weight, taps, inputs, outputs, adjoint=adjoint, mirrored=adjoint)
    y = array_module(x).empty((len(x), *geometry.output_size, outputs), x.dtype)
    arguments = [x, packed, bias, y, packed_geometry(geometry), len(x), inputs, outputs]
    tiles = (tile for tile in TILES if _count(tile, positions, outputs) >= MULTIPROCESSORS)
    _launch("correlate", next(tiles, TILES[-1]), positions, outputs, arguments)
    return y


def transposed_gradients(dy, x, geometry):
    shape = *geometry.kernel_size, dy.shape[-1], x.shape[-1]
    geometry, folded = _folded(geometry)
    inputs, outputs = dy.shape[-1] * folded, x.shape[-1]
    taps, positions = prod(geometry.kernel_size), x.shape[0] * prod(geometry.output_size)
    if not all(_touches(geometry)) or inputs % 8 or outputs % 8 or positions > MOST_POSITIONS:
        return None
    dy, x = contiguous(dy, written(x))
    tiles = _count(GRADIENT_TILE, inputs, outputs)
    share = ceil_divide(positions, ceil_divide(GRADIENT_BLOCKS, taps * tiles))
    share = ceil_divide(share, STEP) * STEP
    parts = ceil_divide(positions, share)
    partial = array_module(x).empty((parts, taps, inputs, outputs), np.float32)
    sum_dy = array_module(x).empty((parts * taps * folded, dy.shape[-1]), np.float32)
    sizes = [len(x), inputs, outputs, share]
    arguments = [dy, x, partial, sum_dy, packed_geometry(geometry), *sizes]
    shared_bytes = STAGES * sum(GRADIENT_TILE) // 8 * (16 * STEP + 16)
    grid = (parts, taps, tiles)
    loader.launch("conv_tiles.weight_gradient", grid, (THREADS,), arguments, shared_bytes)
    return add_parts(partial, 0).reshape(shape), add_parts(sum_dy, 0)


def _fits(inputs, outputs, positions):
    return inputs % STEP == 0 and outputs % 16 == 0 and positions <= MOST_POSITIONS


def _mirrored(geometry):
    """The geometry of the adjoint of a convolution with stride 1 as a convolution, or None."""
    extents = [d * (k - 1) for k, d in zip(geometry.kernel_size, geometry.dilation, strict=True)]
    padding = tuple(
        (extent - before, extent - after)
        for extent, (before, after) in zip(extents, geometry.padding, strict=True)
    )
    if any(step != 1 for step in geometry.stride) or min(map(min, padding)) < 0:
        return None
    sizes = {"input_size": geometry.output_size, "output_size": geometry.input_size}
    return geometry._replace(**sizes, padding=padding)


def _folded(geometry):
    """The geometry with the last axis of the input moved into the channels, where windows touch
    along it: a product of more channels; and by how much they are more."""
    if not _touches(geometry)[-1]:
        return geometry, 1
    return geometry._replace(
        input_size=(*geometry.input_size[:-1], geometry.output_size[-1]),
        kernel_size=(*geometry.kernel_size[:-1], 1),
        stride=(*geometry.stride[:-1], 1),
    ), geometry.kernel_size[-1]


def _touches(geometry):
    """For every axis, whether every voxel of the input lies in exactly one window."""
    kernel, stride, dilation = geometry.kernel_size, geometry.stride, geometry.dilation
    sizes = zip(geometry.input_size, geometry.output_size, strict=True)
    return [
        k == s and d == 1 and p == (0, 0) and n == m * s
        for k, s, d, p, (n, m) in zip(
            kernel, stride, dilation, geometry.padding, sizes, strict=True
        )
    ]


def _count(tile, rows, columns):
    return ceil_divide(rows, tile[0]) * ceil_divide(columns, tile[1])


def _launch(kernel, tile, positions, outputs, arguments):
    grid = (ceil_divide(positions, tile[0]), ceil_divide(outputs, tile[1]))
    shared_bytes = STAGES * (STEP // 8 * (16 * tile[0] + 32) + 2 * STEP * tile[1])
    name = f"conv_tiles.{kernel}_{tile[0]}_{tile[1]}"
    loader.launch(name, grid, (THREADS,), arguments, shared_bytes)
