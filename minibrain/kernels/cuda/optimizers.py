"""Adam over all parameters in one launch; see optimizers.cu."""

from functools import lru_cache
from itertools import accumulate

import numpy as np

from minibrain.arrays import array_module
from minibrain.kernels.cuda import loader
from minibrain.kernels.cuda.arguments import THREADS, ceil_divide

CHUNK = 1024  # elements of a block, as in optimizers.cu


def adam_inplace(mean, square, values, gradients, step, *, learning_rate, beta1, beta2, epsilon):
    arrays = (mean, square, *values, *gradients)
    if any(a.dtype != np.float32 or not a.flags.c_contiguous or not a.size for a in arrays):
        return NotImplemented
    addresses = tuple(tuple(map(loader.address, row)) for row in (values, gradients))
    table = _table(array_module(mean), addresses, tuple(value.size for value in values))
    blocks = sum(ceil_divide(value.size, CHUNK) for value in values)
    corrections = (1 - beta1**step, 1 - beta2**step)
    numbers = map(float, (learning_rate, beta1, beta2, epsilon, *corrections))
    arguments = [mean, square, table, len(values), *numbers]
    loader.launch("optimizers.adam", (blocks,), (THREADS,), arguments)
    return None


@lru_cache(8)
def _table(xp, addresses, sizes):
    """What `adam` calls its table; the same from step to step, so it is sent to the device once."""
    begins = accumulate(sizes, initial=0)
    first_blocks = accumulate((ceil_divide(size, CHUNK) for size in sizes), initial=0)
    rows = [(*row, 0) for row in addresses]
    return xp.asarray(np.array([*rows, tuple(begins), tuple(first_blocks)], np.int64))
