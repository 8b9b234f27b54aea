"""Adam over all parameters in one launch, the norm of their gradients in two; see optimizers.cu."""

from functools import lru_cache
from itertools import accumulate
from math import sqrt

import numpy as np

from minibrain.arrays import array_module
from minibrain.kernels.cuda import loader
from minibrain.kernels.cuda.arguments import THREADS, ceil_divide
from minibrain.kernels.cuda.reduce import add_parts

CHUNK = 1024  # elements of a block, as in optimizers.cu


def adam_inplace(mean, square, values, gradients, step, *, learning_rate, beta1, beta2, epsilon):
    if not _plain(mean, square, *values, *gradients):
        return NotImplemented
    table, blocks = _table_of(values, gradients)
    corrections = (1 - beta1**step, 1 - beta2**step)
    numbers = map(float, (learning_rate, beta1, beta2, epsilon, *corrections))
    arguments = [mean, square, table, len(values), *numbers]
    loader.launch("optimizers.adam", (blocks,), (THREADS,), arguments)
    return None


def gradient_norm(gradients) -> float:
    """Asking for it waits for the device."""
    if not _plain(*gradients):
        return NotImplemented
    table, blocks = _table_of(gradients, gradients)
    partial = array_module(table).empty((blocks,), np.float64)
    arguments = [table, len(gradients), partial]
    loader.launch("optimizers.sum_squares", (blocks,), (THREADS,), arguments, 8 * THREADS)
    return sqrt(float(add_parts(partial, 0, "add_parts_to_double")))


def _plain(*arrays):
    return all(a.dtype == np.float32 and a.flags.c_contiguous and a.size for a in arrays)


def _table_of(values, gradients):
    """The table of optimizers.cu and the number of blocks."""
    addresses = tuple(tuple(map(loader.address, row)) for row in (values, gradients))
    sizes = tuple(value.size for value in values)
    table = _table(array_module(values[0]), addresses, sizes)
    return table, sum(ceil_divide(size, CHUNK) for size in sizes)


@lru_cache(8)
def _table(xp, addresses, sizes):
    """What `adam` calls its table; the same from step to step, so it is sent to the device once."""
    begins = accumulate(sizes, initial=0)
    first_blocks = accumulate((ceil_divide(size, CHUNK) for size in sizes), initial=0)
    rows = [(*row, 0) for row in addresses]
    return xp.asarray(np.array([*rows, tuple(begins), tuple(first_blocks)], np.int64))
