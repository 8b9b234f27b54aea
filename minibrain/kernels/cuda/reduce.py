"""Sums over voxels, for every channel, in an order that depends on the shape alone."""

from math import prod

import numpy as np

from minibrain.arrays import array_module
from minibrain.kernels.cuda import loader
from minibrain.kernels.cuda.arguments import (
    MULTIPROCESSORS,
    THREADS,
    ceil_divide,
    contiguous,
    rows_of,
)

PARTS_EACH, MOST_LANES = 8, 32  # parts that a thread adds, if that takes no more lanes
BLOCKS = 4 * MULTIPROCESSORS  # into whose parts voxels are cut, nearly
ROWS_EACH = 16  # voxels that a thread adds at least, if there are as many


def partial_sums(kernel, first, quantities, groups, voxels, channels, arguments, width=1):
    """Run a kernel that ends in sum_over_voxels.

    Parameters
    ----------
    kernel : its name; it takes `arguments`, then voxels, channels and the partial sums
    first : an array on the device
    width : channels that a thread takes at once, a divisor of their number

    Returns
    -------
    (quantities, groups, parts, channels) float64 array
    """
    xp = array_module(first)
    threads, rows = block = rows_of(channels, width)
    parts = max(1, min(BLOCKS // groups, ceil_divide(voxels, rows * ROWS_EACH)))
    partial = xp.empty((quantities, groups, parts, channels), np.float64)
    loader.launch(
        kernel,
        (parts, ceil_divide(channels, threads * width), groups),
        block,
        [*arguments, voxels, channels, partial],
        shared_bytes=8 * quantities * width * (THREADS + 2),
    )
    return partial


def sums_over_voxels(*arguments, **options):
    """The parts of `partial_sums`, added: (quantities, groups, channels) float64 array."""
    return add_parts(partial_sums(*arguments, **options), 2, "add_parts_to_double")


def add_parts(partial, axis, kernel="add_float_parts", dtype=None):
    """Sum over one axis, the parts in order."""
    *rows, parts = partial.shape[: axis + 1]
    length = partial.shape[axis + 1 :]
    sums = array_module(partial).empty((*rows, *length), dtype or partial.dtype)
    arguments = [partial, sums, prod(rows), parts, prod(length)]
    launch_columns(f"reduce.{kernel}", sums.size, parts, arguments)
    return sums


def launch_columns(kernel, sums, parts, arguments):
    """Run a kernel of which a column of threads makes a sum of parts; see parts.cuh."""
    lanes = min(MOST_LANES, 1 << (ceil_divide(parts, PARTS_EACH) - 1).bit_length())
    columns = THREADS // lanes
    grid, block = (ceil_divide(sums, columns),), (columns, lanes)
    loader.launch(kernel, grid, block, arguments, shared_bytes=8 * THREADS)


def channel_sum(x):
    """(..., C) -> (C,): sum over everything but the channels."""
    partial = group_sums("reduce.sum_channels", x, 1)
    return add_parts(partial, 2, "add_parts_to_float", np.float32).reshape(x.shape[-1])


def group_sums(kernel, x, groups):
    """The same, in parts, for each of so many groups of x, one after the other in memory:
    (1, groups, parts, C)."""
    (x,) = contiguous(x)
    sizes = groups, x.size // x.shape[-1] // groups, x.shape[-1]
    return partial_sums(kernel, x, 1, *sizes, [x])
