"""Weights in the order in which tensor cores take them; see conv_weights.cu."""

import numpy as np

from minibrain.arrays import array_module
from minibrain.kernels.cuda import loader
from minibrain.kernels.cuda.arguments import THREADS, blocks_for, ceil_divide, contiguous


def pack_weights(weight, taps, rows, columns, *, adjoint=False, mirrored=False):
    """Fragments of the matrices weight[tap], (rows, columns), rounded to bfloat16.

    Parameters
    ----------
    weight : (taps, rows, columns) float32 array, or of any shape with the same order in memory
    adjoint : it is (taps, columns, rows) instead
    mirrored : the taps are taken in the opposite order

    Returns
    -------
    (columns / 16, rows / 16, taps, 32, 4) int32 array, two bfloat16 in each word
    """
    (weight,) = contiguous(weight)
    shape = (ceil_divide(columns, 16), ceil_divide(rows, 16), taps, 32, 4)
    packed = array_module(weight).empty(shape, np.int32)
    lanes = packed.size // 4
    arguments = [weight, packed, taps, rows, columns, lanes, int(adjoint), int(mirrored)]
    loader.launch("conv_weights.pack_weights", blocks_for(lanes), (THREADS,), arguments)
    return packed
