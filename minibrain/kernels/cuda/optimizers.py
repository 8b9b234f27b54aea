"""What is done with all parameters or gradients at once, in one launch each; see optimizers.cu."""

from functools import cache
from itertools import accumulate

import numpy as np

from minibrain.arrays import array_module
from minibrain.kernels.cuda import loader
from minibrain.kernels.cuda.arguments import THREADS, ceil_divide, is_on_device
from minibrain.kernels.cuda.reduce import add_parts

CHUNK = 1024  # elements of a block, as in optimizers.cu


def adam_inplace(
    mean, square, values, gradients, step, *, learning_rate, beta1, beta2, epsilon, taken=True
):
    if not _plain(mean, square, *values, *gradients):
        return NotImplemented
    table, blocks = _table_of(values, gradients)
    numbers = (step, np.uint32), (learning_rate, np.float64), (taken, np.bool_)
    numbers = [_on_device(mean, number, dtype) for number, dtype in numbers]
    constants = map(float, (beta1, beta2, epsilon))
    arguments = [mean, square, table, len(values), *numbers, *constants]
    loader.launch("optimizers.adam", (blocks,), (THREADS,), arguments, shared_bytes=2 * 8)
    return None


def clear_inplace(arrays):
    if not _plain(*arrays):
        return NotImplemented
    table, blocks = _table_of(arrays, arrays)
    loader.launch("optimizers.clear", (blocks,), (THREADS,), [table, len(arrays)])
    return None


def scale_inplace(arrays, factor):
    if not _plain(*arrays):
        return NotImplemented
    table, blocks = _table_of(arrays, arrays)
    arguments = [table, len(arrays), _on_device(table, factor, np.float64)]
    loader.launch("optimizers.scale", (blocks,), (THREADS,), arguments)
    return None


def gradient_norm(gradients):
    if not _plain(*gradients):
        return NotImplemented
    table, blocks = _table_of(gradients, gradients)
    partial = array_module(table).empty((blocks,), np.float64)
    arguments = [table, len(gradients), partial]
    loader.launch("optimizers.sum_squares", (blocks,), (THREADS,), arguments, 8 * THREADS)
    return array_module(partial).sqrt(add_parts(partial, 0, "add_parts_to_double"))


def _plain(*arrays):
    return all(a.dtype == np.float32 and a.flags.c_contiguous and a.size for a in arrays)


def _on_device(array, number, dtype):
    """A number in the device's memory, beside an array."""
    return number if is_on_device(number) else array_module(array).full((), number, dtype)


def _table_of(values, gradients):
    """The table of optimizers.cu and the number of blocks."""
    addresses = tuple(tuple(map(loader.address, row)) for row in (values, gradients))
    sizes = tuple(value.size for value in values)
    table = _table(array_module(values[0]), addresses, sizes)
    return table, sum(ceil_divide(size, CHUNK) for size in sizes)


@cache
def _table(xp, addresses, sizes):
    """What optimizers.cu calls a table; the same from step to step, so it is sent to the device
    once. It stays, since launches that are recorded read it again, and outlives the recording's
    own memory; it is small."""
    begins = accumulate(sizes, initial=0)
    first_blocks = accumulate((ceil_divide(size, CHUNK) for size in sizes), initial=0)
    rows = [(*row, 0) for row in addresses]
    with xp.cuda.using_allocator(xp.get_default_memory_pool().malloc):
        return xp.asarray(np.array([*rows, tuple(begins), tuple(first_blocks)], np.int64))
