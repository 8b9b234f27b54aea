"""Adam, block by block: the eight passes of its formula stay in cache."""

import numpy as np

from minibrain.kernels.cpu.threads import each

BLOCK_VALUES = 2**16


def adam_update(gradient, mean, square, step, *, learning_rate, beta1, beta2, epsilon):
    if not gradient.dtype == mean.dtype == square.dtype == np.float32:
        return NotImplemented
    update, new_mean, new_square = (np.empty_like(gradient) for _ in range(3))
    rate = -learning_rate / (1 - beta1**step)

    def work(start):
        block = slice(start, start + BLOCK_VALUES)
        g, m, v, u = gradient[block], new_mean[block], new_square[block], update[block]
        np.multiply(g, 1 - beta1, out=u)
        np.multiply(mean[block], beta1, out=m)
        m += u
        np.multiply(g, g, out=u)
        u *= 1 - beta2
        np.multiply(square[block], beta2, out=v)
        v += u
        np.divide(v, 1 - beta2**step, out=u)
        np.sqrt(u, out=u)
        u += epsilon
        np.divide(m, u, out=u)
        u *= rate

    each(work, range(0, gradient.size, BLOCK_VALUES))
    return update, new_mean, new_square
