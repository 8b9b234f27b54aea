"""Adam in place, block by block: the passes of its formula stay in cache."""

import numpy as np

from minibrain.kernels.cpu.threads import each, scratch

BLOCK_VALUES = 2**16


def adam_inplace(
    mean, square, values, gradients, step, *, learning_rate, beta1, beta2, epsilon, taken=True
):
    arrays = [mean, square, *values, *gradients]
    if not all(array.dtype == np.float32 and array.flags.c_contiguous for array in arrays):
        return NotImplemented
    if not taken:
        return None
    step = int(step)
    rate = -float(learning_rate) / (1 - beta1**step)

    def work(block):
        m, v, value, g = block
        update = scratch("update", g.shape)
        m *= beta1
        np.multiply(g, 1 - beta1, out=update)
        m += update
        v *= beta2
        np.multiply(g, g, out=update)
        update *= 1 - beta2
        v += update
        np.divide(v, 1 - beta2**step, out=update)
        np.sqrt(update, out=update)
        update += epsilon
        np.divide(m, update, out=update)
        update *= rate
        value += update

    each(work, _blocks(mean, square, values, gradients))
    return None


def _blocks(mean, square, values, gradients):
    """Matching parts of the moments, which lie end to end, and of every parameter."""
    first = 0
    for value, gradient in zip(values, gradients, strict=True):
        value, gradient = value.reshape(-1), gradient.reshape(-1)
        for start in range(0, value.size, BLOCK_VALUES):
            here = slice(start, min(start + BLOCK_VALUES, value.size))
            there = slice(first + here.start, first + here.stop)
            yield mean[there], square[there], value[here], gradient[here]
        first += value.size
