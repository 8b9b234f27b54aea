"""What a training step needs of memory, what there is, and which patches would fit into it."""

import sys
from bisect import bisect_left
from contextlib import suppress
from copy import deepcopy
from math import prod
from pathlib import Path

import numpy as np

from minibrain.arrays import array_module
from minibrain.duck_arrays import DuckArray
from minibrain.functional import cce_dice_loss_forward
from minibrain.models import UNet
from minibrain.training import to_model

WORKSPACE = 12 * 2**20  # bytes of the CPU's fast twins, whatever the batch


def estimate_memory(model: UNet, batch_shape: tuple[int, ...]) -> int:
    """Bytes that training will need beside the program itself; rather too many than too few.

    It is the sum of

    - what network and loss save, measured on a small input and scaled by its voxels;
    - parameters, gradients and Adam's two moments: four times the parameters;
    - what is at work: three times the parameters in Adam or, if that is more, three of the largest
      activation in an operation (on a CPU two: a concatenation is never one array there);
    - a fifth of all this, for gaps between arrays;
    - the blocks that the fast twins of a CPU work in.

    Parameters
    ----------
    batch_shape : (N, *S, C) of the images

    Raises
    ------
    ValueError : it has another rank than the network
    """
    if len(batch_shape) != model.rank + 2:
        raise ValueError(f"batch_shape must be (N, {model.rank} axes, C), got {batch_shape}")
    model = deepcopy(model)  # a forward in training moves batch norm's running statistics
    probe = (1, *(2**model.levels,) * model.rank, model.in_channels)
    weights = [parameter.value for parameter in model.named_parameters().values()]
    images = to_model(np.zeros(probe, np.float32), model)
    logits, saved = model.forward(images, training=True)
    _, loss_saved = cce_dice_loss_forward(
        logits, to_model(np.zeros(probe[:-1], np.uint8), model, np.uint8)
    )
    arrays = {id(array): array for array in _arrays((images, logits, saved, loss_saved))}
    for weight in weights:
        arrays.pop(id(weight), None)
    sizes = [x.nbytes for x in arrays.values() if not isinstance(x, DuckArray)]
    largest = max(x.nbytes for x in arrays.values())  # also of what is not written before it must
    scale = prod(batch_shape[:-1]) / prod(probe[:-1])
    parameters = sum(weight.nbytes for weight in weights)
    on_cpu = array_module(weights[0]) is np
    working = max(3 * parameters, scale * (2 if on_cpu else 3) * largest)
    workspace = WORKSPACE if on_cpu else 0
    return int(1.2 * (4 * parameters + scale * sum(sizes) + working)) + workspace


def available_memory(device: str) -> int | None:
    """Bytes that are free on "cpu" or "cuda"; None where the system does not say."""
    if device == "cuda":
        return sys.modules["cupy"].cuda.runtime.memGetInfo()[0]
    with suppress(OSError, StopIteration):  # only Linux has it
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(x for x in lines if x.startswith("MemAvailable:")).split()[1])
    return None


def fitting_patch(model: UNet, batch_shape: tuple[int, ...], available: int):
    """The spatial size, cut from a batch's, of the largest patches whose training fits.

    The longest axis is shortened first, to multiples of what the network can halve. None if not
    even the smallest patch fits.
    """
    samples, *size, channels = batch_shape
    step = 2 ** (model.levels - 1)
    size = [n // step * step for n in size]

    def is_too_large(size) -> bool:
        return estimate_memory(model, (samples, *size, channels)) > available

    cubes = range(step, max(size), step)  # the largest axis may have a billion voxels: bisect
    first = bisect_left(cubes, True, key=lambda most: is_too_large([min(n, most) for n in size]))
    if first < len(cubes):
        size = [min(n, cubes[first]) for n in size]
    while min(size) >= step:
        if not is_too_large(size):
            return tuple(size)
        size[size.index(max(size))] -= step
    return None


def _arrays(value):
    """Every array in nested lists and tuples, and each DuckArray with what it consists of."""
    if isinstance(value, DuckArray):
        yield value
        value = list(vars(value).values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _arrays(item)
    elif hasattr(value, "nbytes"):
        yield value
