"""Dropout whose mask is drawn, used and forgotten block by block."""

import numpy as np

from minibrain.kernels.cpu.threads import each
from minibrain.philox import random_uint16
from minibrain.saved import DropoutSaved

BLOCK_VALUES = 2**16


def dropout_forward(x, rate, key):
    if x.dtype != np.float32 or not 0 < rate < 1:
        return NotImplemented
    saved = DropoutSaved(rate, key)
    return _masked(x, saved), saved


def dropout_backward(dy, saved: DropoutSaved):
    if dy.dtype != np.float32 or saved.rate == 0:
        return NotImplemented
    return _masked(dy, saved)


def _masked(x, saved: DropoutSaved):
    y = np.empty(x.shape, np.float32)
    values, results = x.reshape(-1), y.reshape(-1)
    threshold = saved.threshold
    scale = np.float32(65536 / (65536 - threshold))

    def work(start):
        block = slice(start, min(start + BLOCK_VALUES, x.size))
        keep = random_uint16(block.start, block.stop, saved.key, np) >= threshold
        factor = keep.astype(np.float32)
        factor *= scale
        np.multiply(values[block], factor, out=results[block])

    each(work, range(0, x.size, BLOCK_VALUES))
    return y
