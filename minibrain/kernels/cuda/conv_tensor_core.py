"""Convolution of bfloat16 arrays on tensor cores, for the shapes that the networks have.

The functions are those of conv.py; they return None for shapes that they leave to it.
See conv_planes.cu and conv_tiles.cu for how the sums are cut.
"""

from math import prod

import numpy as np

from minibrain.arrays import array_module
from minibrain.kernels.cuda import loader
from minibrain.kernels.cuda.arguments import (
    LARGEST_GRID,
    LARGEST_SAMPLE,
    THREADS,
    blocks_for,
    ceil_divide,
    contiguous,
    packed_geometry,
)
from minibrain.kernels.cuda.reduce import add_parts

MULTIPROCESSORS = 132  # of an H200; others work as well with as many blocks
PROBLEM = np.dtype(
    [(name, np.int32) for name in "samples depth height width inputs outputs share".split()]
)

# as in conv_planes.cu
WIDTH, HEIGHT, STAGES, WARPS = 16, 16, 2, 4
GRADIENT_HEIGHT, GRADIENT_WARPS, DEPTH = 8, {2: 4, 3: 3}, {2: 1, 3: 3}
BLOCKS, GRADIENT_BLOCKS = 3 * MULTIPROCESSORS, 4 * MULTIPROCESSORS  # that run at the same time

# as in conv_tiles.cu
TILES = ((128, 128), (128, 64), (64, 64))  # positions, outputs
TILE_THREADS, TILE_STAGES, STEP, GRADIENT_TILE = 128, 4, 32, 64


def correlate(x, weight, geometry, bias=None):
    """y[n,p,o] = bias[o] + Σ_{k,c} w[k,c,o] · x[n, s·p + d·k − padding, c]."""
    if _keeps_size(geometry) and _streams(x, weight.shape[-1]):
        return _correlate_planes(x, weight, bias, weight.shape[-1])
    return _correlate_tiles(x, weight, geometry, bias, weight.shape[-1])


def spread(y, weight, geometry, bias=None):
    """x[n, s·p + d·k − padding, c] += Σ_o w[k,c,o] · y[n,p,o], and then + bias[c]."""
    if _keeps_size(geometry) and _streams(y, weight.shape[-2]):
        return _correlate_planes(y, weight, bias, weight.shape[-2], adjoint=True)
    if _keeps_size(geometry):
        return _correlate_tiles(y, weight, geometry, bias, weight.shape[-2], adjoint=True)
    return _scatter_tiles(y, weight, geometry, bias)


def weight_gradient(x, dy, geometry):
    """(dw, dbias): dw[k,c,o] = Σ_{n,p} x[n, s·p + d·k − padding, c] · dy[n,p,o]."""
    inputs, outputs = x.shape[-1], dy.shape[-1]
    if _keeps_size(geometry) and (inputs == 4 or inputs % 16 == 0) and outputs % 16 == 0:
        return _gradient_planes(x, dy)
    return None


def _keeps_size(geometry):
    """3x3 or 3x3x3 taps around every voxel."""
    rank = len(geometry.kernel_size)
    ones = (1,) * rank
    return (
        rank in (2, 3)
        and geometry.kernel_size == (3,) * rank
        and geometry.stride == geometry.dilation == ones
        and geometry.padding == ((1, 1),) * rank
    )


def _streams(x, outputs):
    """Whether the weights of 16 output channels fit into shared memory beside two tiles."""
    return x.shape[-1] in (4, 16, 32, 48, 64) and outputs % 16 == 0


def _correlate_planes(x, weight, bias, outputs, adjoint=False):
    (x,) = contiguous(x)
    rank, inputs = x.ndim - 2, x.shape[-1]
    chunk = max(count for count in (4, 16, 32) if inputs % count == 0)
    taps, rows = 3**rank, inputs
    if inputs == 4:  # three taps along x and four channels are the rows of one matrix
        taps, rows = taps // 3, 12
    packed = _pack(weight, taps, rows, outputs, adjoint=adjoint, mirrored=adjoint)
    problem, planes = _problem(x, outputs, HEIGHT, BLOCKS // (outputs // 16))
    y = array_module(x).empty((*x.shape[:-1], outputs), x.dtype)
    shared_bytes = STAGES * _tile_bytes(chunk, HEIGHT + 2, WIDTH + 2)
    shared_bytes += packed.nbytes // (outputs // 16)
    grid = (ceil_divide(planes, int(problem["share"])), outputs // 16)
    arguments = [x, packed, bias, y, problem]
    kernel = f"conv_planes.correlate_{chunk}_{rank}d"
    loader.launch(kernel, grid, (32 * WARPS,), arguments, shared_bytes)
    return y


def _gradient_planes(x, dy):
    x, dy = contiguous(x, dy)
    rank, inputs, outputs = x.ndim - 2, x.shape[-1], dy.shape[-1]
    tiles = ceil_divide(inputs, 16) * (outputs // 16)
    problem, planes = _problem(x, outputs, GRADIENT_HEIGHT, GRADIENT_BLOCKS // tiles)
    blocks = ceil_divide(planes, int(problem["share"]))
    warps, depth, chunk = GRADIENT_WARPS[rank], DEPTH[rank], min(inputs, 16)
    parts = blocks * warps if depth == 1 else blocks
    partial = array_module(x).empty((parts, 3**rank * inputs + 1, outputs), np.float32)
    shared_bytes = (depth + 1) * _tile_bytes(chunk, GRADIENT_HEIGHT + 2, WIDTH + 2)
    shared_bytes += 2 * _tile_bytes(16, GRADIENT_HEIGHT, WIDTH)
    kernel, arguments = f"conv_planes.weight_gradient_{chunk}_{rank}d", [x, dy, partial, problem]
    loader.launch(kernel, (blocks, tiles), (32 * warps,), arguments, shared_bytes)
    sums = add_parts(partial, 0)
    return sums[:-1].reshape(*(3,) * rank, inputs, outputs), sums[-1]


def _correlate_tiles(x, weight, geometry, bias, outputs, adjoint=False):
    geometry, folded = _folded(geometry)
    inputs, positions = x.shape[-1] * folded, len(x) * prod(geometry.output_size)
    if inputs % STEP or outputs % 16 or positions > LARGEST_SAMPLE:
        return None
    (x,) = contiguous(x)
    taps = prod(geometry.kernel_size)
    packed = _pack(weight, taps, inputs, outputs, adjoint=adjoint, mirrored=adjoint)
    y = array_module(x).empty((len(x), *geometry.output_size, outputs), x.dtype)
    arguments = [x, packed, bias, y, packed_geometry(geometry), len(x), inputs, outputs]
    tile = next((t for t in TILES if _blocks(t, positions, outputs) >= MULTIPROCESSORS), TILES[-1])
    _launch_tiles("correlate", tile, positions, outputs, arguments)
    return y


def _scatter_tiles(y, weight, geometry, bias):
    inputs, channels = y.shape[-1], weight.shape[-2]
    positions, columns = len(y) * prod(geometry.output_size), prod(weight.shape[:-1])
    if not all(_touches(geometry)) or inputs % STEP or channels % 16 or positions > LARGEST_SAMPLE:
        return None
    (y,) = contiguous(y)
    packed = _pack(weight, 1, inputs, columns, adjoint=True)
    x = array_module(y).empty((len(y), *geometry.input_size, channels), y.dtype)
    arguments = [y, packed, bias, x, packed_geometry(geometry), len(y), inputs, columns]
    _launch_tiles("scatter", TILES[-1], positions, columns, arguments)
    return x


def transposed_gradients(dy, x, geometry):
    """(dw, dbias) of a transposed convolution: weight_gradient(dy, x), and the sum over dy."""
    geometry, folded = _folded(geometry)
    inputs, outputs = dy.shape[-1] * folded, x.shape[-1]
    taps, positions = prod(geometry.kernel_size), len(x) * prod(geometry.output_size)
    tiles = _blocks((GRADIENT_TILE, GRADIENT_TILE), inputs, outputs)
    if not all(_touches(geometry)) or inputs % 8 or outputs % 8 or positions > LARGEST_SAMPLE:
        return None
    dy, x = contiguous(dy, x)
    parts = ceil_divide(GRADIENT_BLOCKS, taps * tiles)
    share = ceil_divide(ceil_divide(positions, parts), STEP) * STEP
    parts = ceil_divide(positions, share)
    xp = array_module(x)
    partial = xp.empty((parts, taps, inputs, outputs), np.float32)
    sum_dy = xp.empty((parts * taps * folded, dy.shape[-1]), np.float32)
    sizes = [len(x), inputs, outputs, share]
    arguments = [dy, x, partial, sum_dy, packed_geometry(geometry), *sizes]
    shared_bytes = TILE_STAGES * 2 * GRADIENT_TILE // 8 * (16 * STEP + 16)
    grid = (parts, taps, tiles)
    loader.launch("conv_tiles.weight_gradient", grid, (TILE_THREADS,), arguments, shared_bytes)
    return add_parts(partial, 0), add_parts(sum_dy, 0)


def _folded(geometry):
    """The geometry with the last axis of the input moved into the channels, so that they are more,
    where windows touch along this axis; and by how much they are more."""
    if not _touches(geometry)[-1]:
        return geometry, 1
    factor = geometry.kernel_size[-1]
    return geometry._replace(
        input_size=(*geometry.input_size[:-1], geometry.output_size[-1]),
        kernel_size=(*geometry.kernel_size[:-1], 1),
        stride=(*geometry.stride[:-1], 1),
    ), factor


def _touches(geometry):
    """For every axis, whether every voxel of the input lies in exactly one window."""
    sizes = (geometry.input_size, geometry.output_size, geometry.kernel_size, geometry.stride)
    return [
        kernel == stride and padding == (0, 0) and dilation == 1 and n == m * stride
        for n, m, kernel, stride, padding, dilation in zip(
            *sizes, geometry.padding, geometry.dilation, strict=True
        )
    ]


def _blocks(tile, rows, columns):
    return ceil_divide(rows, tile[0]) * ceil_divide(columns, tile[1])


def _launch_tiles(kernel, tile, positions, outputs, arguments):
    grid = (ceil_divide(positions, tile[0]), ceil_divide(outputs, tile[1]))
    shared_bytes = TILE_STAGES * (STEP // 8 * (16 * tile[0] + 32) + 2 * STEP * tile[1])
    name = f"conv_tiles.{kernel}_{tile[0]}_{tile[1]}"
    loader.launch(name, grid, (TILE_THREADS,), arguments, shared_bytes)


def _problem(x, outputs, height, most_blocks):
    """`struct Problem` of conv_planes.cu, and how many planes of tiles there are."""
    samples, *size, inputs = x.shape
    if len(size) == 2:  # the samples are the planes of one volume
        samples, size = 1, (samples, *size)
    planes = samples * size[0] * ceil_divide(size[1], height) * ceil_divide(size[2], WIDTH)
    share = ceil_divide(planes, max(1, most_blocks))
    return np.array((samples, *size, inputs, outputs, share), PROBLEM), planes


def _tile_bytes(channels, rows, columns):
    """`Tile::BYTES` of conv_planes.cu."""
    whole = ceil_divide(16 * rows * columns, 128) * 128
    return whole if channels == 4 else channels // 8 * whole + 128


def _pack(weight, taps, rows, columns, *, adjoint=False, mirrored=False):
    """The weights in the order of conv_weights.cu, 16 bytes a row."""
    (weight,) = contiguous(weight)
    count = taps * ceil_divide(rows, 16) * ceil_divide(columns, 16) * 32
    packed = array_module(weight).empty((count, 4), np.int32)
    arguments = [weight, packed, taps, rows, columns, count, int(adjoint), int(mirrored)]
    loader.launch("conv_weights.pack_weights", blocks_for(count), (THREADS,), arguments)
    return packed
