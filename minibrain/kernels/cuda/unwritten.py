"""What stands in place of arrays, as kernels take it; see saved.Pending, Joined and Summed."""

from math import prod

from minibrain.arrays import array_module
from minibrain.kernels.cuda import loader
from minibrain.kernels.cuda.arguments import (
    contiguous,
    launch_over_voxels,
    packed_dropout,
)
from minibrain.saved import DropoutSaved, DuckArray, Joined, Pending

NO_DROPOUT = DropoutSaved(0.0, (0, 0, 0), ())


def write(duck_array: DuckArray):
    """The array that it stands for."""
    if isinstance(duck_array, Joined):
        return _join(duck_array)
    return _activate(duck_array) if isinstance(duck_array, Pending) else duck_array.write()


def pending_arguments(x):
    """[array, lines, dropout] of an array or a Pending; an array has no lines."""
    if isinstance(x, Joined):
        x = _join(x)
    if isinstance(x, Pending):
        return [*contiguous(x.raw, x.lines), packed_dropout(x.dropout)]
    return [*contiguous(x), None, packed_dropout(NO_DROPOUT)]


def in_one_go(x, *views) -> int:
    """How many channels of a voxel a thread takes: 8, where they are a multiple of it and those of
    every view, see `pitched`, begin at a multiple of 16 bytes."""
    begin_so = all(
        array is None or (pitch % 8 == 0 and loader.address(array) % 16 == 0)
        for array, pitch in views
    )
    return 8 if x.shape[-1] % 8 == 0 and begin_so else 1


def _activate(pending: Pending):
    raw, lines, dropout = pending_arguments(pending)
    y = array_module(raw).empty(raw.shape, raw.dtype)
    sizes, width = (len(raw), prod(raw.shape[1:-1]), raw.shape[-1]), in_one_go(raw)
    kernel = f"normalization.write_pending_{width}"
    launch_over_voxels(kernel, *sizes, width, [raw, lines, dropout, y])
    return y


def _join(joined: Joined):
    a, b = joined.a, joined.b
    parts = [*pending_arguments(a), *pending_arguments(b)]
    y = array_module(parts[0]).empty(joined.shape, joined.dtype)
    sizes, width = (len(y), prod(y.shape[1:-1]), y.shape[-1]), min(in_one_go(a), in_one_go(b))
    kernel = f"pooling.concat_forward_{width}"
    launch_over_voxels(kernel, *sizes, width, [*parts, a.shape[-1], y])
    return y
