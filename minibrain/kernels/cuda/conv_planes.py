"""3x3x3 and 3x3 convolutions that keep the size; see planes.cuh for how the sums are cut."""

from math import prod

import numpy as np

from minibrain.arrays import array_module
from minibrain.duck_arrays import Joined, Pending, Summed
from minibrain.kernels import written
from minibrain.kernels.cuda import loader
from minibrain.kernels.cuda.arguments import (
    LARGEST_SAMPLE,
    MULTIPROCESSORS,
    SHARED_BYTES,
    ceil_divide,
    contiguous,
)
from minibrain.kernels.cuda.conv_weights import pack_weights
from minibrain.kernels.cuda.duck_arrays import pending_arguments
from minibrain.kernels.cuda.reduce import add_parts

WIDTH, HEIGHT, STAGES, WARPS = 16, 16, 2, 4  # as in conv_planes.cu
GRADIENT_HEIGHT, GRADIENT_WARPS, DEPTH = 8, {2: 4, 3: 3}, {2: 1, 3: 3}
SIZES = ("samples", "depth", "height", "width", "inputs", "outputs")
PROBLEM = np.dtype([(name, np.int32) for name in (*SIZES, "share")])

# blocks that run at the same time: by their registers, on each multiprocessor
BLOCKS = {2: 5 * MULTIPROCESSORS, 3: 3 * MULTIPROCESSORS}
GRADIENT_BLOCKS = {2: 3 * MULTIPROCESSORS, 3: 4 * MULTIPROCESSORS}
# with more, x is read so often, once for every 16 of them, that it is written once before
MOST_OUTPUTS_UNWRITTEN = 32
MOST_INPUTS = 64  # with more, the weights of 16 outputs would fill the shared memory


def correlate(x, weight, geometry, bias=None):
    """y as an array, with sums over it."""
    inputs, outputs = weight.shape[-2:]
    if not _keeps_size(geometry, inputs, outputs) or not _fits(inputs, outputs):
        return None
    taps = 3 ** (x.ndim - 2)
    if inputs == 4:  # three taps along x and four channels are the rows of one matrix
        packed = pack_weights(weight, taps // 3, 3 * inputs, outputs)
    else:
        packed = pack_weights(weight, taps, inputs, outputs)
    return _correlate(x, packed, bias, outputs, summed=True)


def spread(y, weight, geometry, bias=None):
    outputs, inputs = weight.shape[-2:]
    if not _keeps_size(geometry, inputs, outputs) or inputs == 4 or not _fits(inputs, outputs):
        return None
    taps = 3 ** (y.ndim - 2)
    packed = pack_weights(weight, taps, inputs, outputs, adjoint=True, mirrored=True)
    return _correlate(y, packed, bias, outputs)


def _correlate(x, packed, bias, outputs, summed=False):
    rank, inputs = x.ndim - 2, x.shape[-1]
    source = _read(x, outputs)
    channels = inputs, source[-1]  # where two arrays are joined, a chunk lies in one of them
    chunk = next(count for count in (32, 16, 4) if not any(c % count for c in channels))
    tile = chunk, HEIGHT + 2, WIDTH + 2
    shared_bytes = STAGES * _tile_bytes(*tile) + packed[0].nbytes + _places_bytes(*tile)
    blocks = min(BLOCKS[rank], MULTIPROCESSORS * (SHARED_BYTES // shared_bytes))
    problem, planes = _problem(x, outputs, HEIGHT, blocks // (outputs // 16))
    xp, parts = array_module(packed), planes // len(x) * WARPS
    y = xp.empty((*x.shape[:-1], outputs), x.dtype)
    sums = xp.empty((2, len(x), parts, outputs), np.float32) if summed else None
    grid = (ceil_divide(planes, int(problem["share"])), outputs // 16)
    kernel = f"conv_planes.correlate_{chunk}_{rank}d"
    arguments = [*source, packed, bias, y, sums, problem]
    loader.launch(kernel, grid, (32 * WARPS,), arguments, shared_bytes)
    return Summed(y, sums) if summed else y


def gradients(x, dy, geometry):
    inputs, outputs = x.shape[-1], dy.shape[-1]
    if not _keeps_size(geometry, inputs, outputs) or (inputs != 4 and inputs % 16) or outputs % 16:
        return None
    source = _read(x, outputs)
    (dy,) = contiguous(dy)
    rank, chunk = x.ndim - 2, min(inputs, 16)
    warps, depth = GRADIENT_WARPS[rank], DEPTH[rank]
    tiles = ceil_divide(inputs, 16) * (outputs // 16)
    problem, planes = _problem(x, outputs, GRADIENT_HEIGHT, GRADIENT_BLOCKS[rank] // tiles)
    blocks = ceil_divide(planes, int(problem["share"]))
    parts = blocks * warps if depth == 1 else blocks
    partial = array_module(dy).empty((parts, 3**rank * inputs + 1, outputs), np.float32)
    tile, tile_dy = (chunk, GRADIENT_HEIGHT + 2, WIDTH + 2), (16, GRADIENT_HEIGHT, WIDTH)
    shared_bytes = (depth + 1) * _tile_bytes(*tile) + 2 * _tile_bytes(*tile_dy)
    shared_bytes += _places_bytes(*tile) + _places_bytes(*tile_dy)
    kernel, arguments = f"weight_gradient_{chunk}_{rank}d", [*source, dy, partial, problem]
    name, block = f"conv_planes_gradient.{kernel}", (32 * warps,)
    loader.launch(name, (blocks, tiles), block, arguments, shared_bytes)
    sums = add_parts(partial, 0)
    return sums[:-1].reshape(*(3,) * rank, inputs, outputs), sums[-1]


def _read(x, outputs):
    """`Input` of planes.cuh: an activation need not be written if few read it."""
    if x.shape[-1] == 4 or outputs > MOST_OUTPUTS_UNWRITTEN or not _joins_chunks(x):
        x = written(x)
    if isinstance(x, Joined):
        (a, a_lines, _), (b, b_lines, none) = map(pending_arguments, (x.a, x.b))
        return [a, a_lines, none, b, b_lines, x.a.shape[-1]]
    return [*pending_arguments(x), None, None, x.shape[-1]]


def _joins_chunks(x):
    """Not true of arrays that are joined elsewhere than at 16 channels, or have dropout."""
    parts = (x.a, x.b) if isinstance(x, Joined) else ()
    dropped = (part.dropout.rate for part in parts if isinstance(part, Pending))
    return not any(dropped) and not any(part.shape[-1] % 16 for part in parts)


def _keeps_size(geometry, *channels):
    """And the elements of a plane can be numbered in 32 bits."""
    rank, plane = len(geometry.kernel_size), prod(geometry.input_size[-2:]) * max(channels)
    ones, pairs = (1,) * rank, ((1, 1),) * rank
    return (
        rank in DEPTH
        and geometry.kernel_size == (3,) * rank
        and geometry.stride == geometry.dilation == ones
        and geometry.padding == pairs
        and plane <= LARGEST_SAMPLE
    )


def _fits(inputs, outputs):
    channels = inputs == 4 or (inputs % 16 == 0 and inputs <= MOST_INPUTS)
    return channels and outputs % 16 == 0


def _problem(x, outputs, height, most_blocks):
    """`struct Problem`, and how many planes of tiles there are."""
    samples, *size, inputs = x.shape
    if len(size) == 2:  # the samples are the planes of one volume
        samples, size = 1, (samples, *size)
    planes = samples * size[0] * ceil_divide(size[1], height) * ceil_divide(size[2], WIDTH)
    share = ceil_divide(planes, max(1, most_blocks))
    return np.array((samples, *size, inputs, outputs, share), PROBLEM), planes


def _tile_bytes(channels, rows, columns):
    """`Tile::BYTES`."""
    octet = ceil_divide(16 * rows * columns, 128) * 128
    return octet if channels == 4 else channels // 8 * octet + 128


def _places_bytes(channels, rows, columns):
    """4 `Tile::PLACES`."""
    return 4 * rows * (columns + (channels == 4))
