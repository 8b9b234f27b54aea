"""Sums over voxels, for every channel, in an order that depends on the shape alone."""

from math import prod

import numpy as np

from minibrain.arrays import array_module
from minibrain.kernels.cuda import loader
from minibrain.kernels.cuda.arguments import THREADS, ceil_divide, contiguous

COLUMNS, LANES = 32, 8  # as in reduce.cu
MOST_PARTS = 256  # of the voxels of a group
ROWS_EACH = 16  # voxels that a thread adds at least, if there are as many


def sums_over_voxels(
    kernel, first, quantities, groups, voxels, channels, arguments, out="double", width=1
):
    """Run a kernel that ends in sum_over_voxels, and add its parts.

    Parameters
    ----------
    kernel : its name; it takes `arguments`, then voxels, channels and the partial sums
    first : an array on the device
    out : "double" or "float"
    width : channels that a thread takes at once, a divisor of their number

    Returns
    -------
    (quantities, groups, channels) float64 or float32 array
    """
    xp = array_module(first)
    threads = min(32, 1 << (channels // width - 1).bit_length())
    rows = THREADS // threads
    parts = max(1, min(MOST_PARTS, ceil_divide(voxels, rows * ROWS_EACH)))
    partial = xp.empty((quantities, groups, parts, channels), np.float64)
    loader.launch(
        kernel,
        (parts, ceil_divide(channels, threads * width), groups),
        (threads, rows),
        [*arguments, voxels, channels, partial],
        shared_bytes=8 * quantities * width * THREADS,
    )
    return add_parts(partial, 2, f"add_parts_to_{out}", np.float32 if out == "float" else None)


def add_parts(partial, axis, kernel="add_float_parts", dtype=None):
    """Sum over one axis, the parts in order."""
    *rows, parts = partial.shape[: axis + 1]
    length = partial.shape[axis + 1 :]
    sums = array_module(partial).empty((*rows, *length), dtype or partial.dtype)
    arguments = [partial, sums, prod(rows), parts, prod(length)]
    grid, block = (ceil_divide(sums.size, COLUMNS),), (COLUMNS, LANES)
    loader.launch(f"reduce.{kernel}", grid, block, arguments, shared_bytes=8 * COLUMNS * LANES)
    return sums


def channel_sum(x):
    """(..., C) -> (C,): sum over everything but the channels."""
    return group_sums(x, 1, "float")[0]


def group_sums(x, groups, out="double"):
    """(groups, C): the same for each of so many equal parts of x, one after the other in memory."""
    (x,) = contiguous(x)
    sizes = groups, x.size // x.shape[-1] // groups, x.shape[-1]
    return sums_over_voxels("reduce.sum_channels", x, 1, *sizes, [x], out)[0]
