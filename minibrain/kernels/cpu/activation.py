"""ReLU, and dropout whose mask is drawn, used and forgotten block by block."""

import numpy as np

from minibrain.kernels.cpu.buffers import empty
from minibrain.kernels.cpu.threads import each, scratch
from minibrain.philox import random_uint16
from minibrain.saved import DropoutSaved, ReluSaved

BLOCK_VALUES = 2**16


def relu_forward(x):
    if x.dtype != np.float32:
        return NotImplemented
    y = empty(x.shape)
    values, results = x.reshape(-1), y.reshape(-1)

    def work(start):
        block = slice(start, start + BLOCK_VALUES)
        np.maximum(values[block], 0, out=results[block])

    each(work, range(0, x.size, BLOCK_VALUES))
    return y, ReluSaved(y)


def relu_backward(dy, saved: ReluSaved):
    if not dy.dtype == saved.y.dtype == np.float32 or dy.shape != saved.y.shape:
        return NotImplemented
    dx = empty(dy.shape)
    upstream, outputs, results = dy.reshape(-1), saved.y.reshape(-1), dx.reshape(-1)

    def work(start):
        block = slice(start, start + BLOCK_VALUES)
        # a float's bits times 0 or 1 as an integer: a NaN at a closed ReLU becomes 0 too
        bits, gradients = upstream[block].view(np.int32), results[block].view(np.int32)
        np.multiply(bits, outputs[block] > 0, out=gradients)

    each(work, range(0, dy.size, BLOCK_VALUES))
    return dx


def dropout_forward(x, rate, key):
    if x.dtype != np.float32 or not 0 < rate < 1:
        return NotImplemented
    saved = DropoutSaved(rate, key, x.shape)
    return _masked(x, saved), saved


def dropout_backward(dy, saved: DropoutSaved):
    if dy.dtype != np.float32 or dy.shape != saved.shape or saved.rate == 0:
        return NotImplemented
    return _masked(dy, saved)


def keep_factor(saved: DropoutSaved, block: slice):
    """Of a block of values in the order of memory: 0 where one is dropped, else the scale."""
    factor = scratch("keep", (block.stop - block.start,))
    for start in range(block.start, block.stop, BLOCK_VALUES):
        stop = min(start + BLOCK_VALUES, block.stop)
        keep = random_uint16(start, stop, saved.key, np) >= saved.threshold
        part = factor[start - block.start : stop - block.start]
        np.multiply(keep, np.float32(saved.scale), out=part)
    return factor


def _masked(x, saved: DropoutSaved):
    y = empty(x.shape)
    values, results = x.reshape(-1), y.reshape(-1)

    def work(start):
        block = slice(start, min(start + BLOCK_VALUES, x.size))
        np.multiply(values[block], keep_factor(saved, block), out=results[block])

    each(work, range(0, x.size, BLOCK_VALUES))
    return y
