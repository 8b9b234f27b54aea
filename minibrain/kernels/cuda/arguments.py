"""What launchers do before a launch: look at the arrays, and lay out the geometry."""

from math import prod

import numpy as np

from minibrain.arrays import array_module
from minibrain.geometry import ConvGeometry
from minibrain.kernels.cuda import loader
from minibrain.saved import DropoutSaved

THREADS = 256  # of a block in elementwise kernels
EACH = 8  # voxels of a thread in kernels that go over them, as in common.cuh
LARGEST_SAMPLE = 2**31 - 1  # voxels; kernels number them in 32 bits
LARGEST_GRID = 65535  # blocks along y and z

# of an H200; what is cut for these runs on others as well
MULTIPROCESSORS = 132
SHARED_BYTES = 227 * 1024  # of a multiprocessor

GEOMETRY = np.dtype(
    [(name, np.int32, 3) for name in ("input", "output", "kernel", "stride", "padding", "dilation")]
)

DROPOUT = np.dtype(
    [("seed", np.uint64), ("step_place", np.uint64)]
    + [(name, np.uint32) for name in ("step", "layer", "threshold")]
    + [("scale", np.float32)]
)


def supported(*arrays) -> bool:
    """All float32 or all bfloat16, none empty, and a sample's voxels can be numbered."""
    return all(
        array.dtype == arrays[0].dtype
        and array.dtype.name in ("float32", "bfloat16")
        and array.size
        and prod(array.shape[1:-1]) <= LARGEST_SAMPLE
        and array.shape[:1] <= (LARGEST_GRID,)
        for array in arrays
    )


def alike(dy, y) -> bool:
    """Supported, and a gradient has the shape of what it is the gradient of."""
    return supported(dy, y) and dy.shape == y.shape


def numbered(geometry: ConvGeometry) -> bool:
    """Everything in `packed_geometry` fits into 32 bits, as do the numbers of voxels."""
    voxels = map(prod, (geometry.padded_size, geometry.output_size))
    return max(*voxels, *geometry.stride, *geometry.dilation) <= LARGEST_SAMPLE


def contiguous(*arrays):
    """The arrays in the order of their axes in memory and from a multiple of 16 bytes on, which is
    what kernels read at once; copied only where they are not."""
    arrays = [array_module(array).ascontiguousarray(array) for array in arrays]
    return [array.copy() if loader.address(array) % 16 else array for array in arrays]


def pitched(array):
    """(array, pitch), the `struct View` of common.cuh: elements from a voxel to the next.

    Channels that lie among others of a contiguous array stay where they are; all else is copied if
    need be. (None, 0) for None.
    """
    if array is None:
        return None, 0
    step, channels = array.strides[-2], array.shape[-1]
    steps = [step * prod(array.shape[axis:-1]) for axis in range(1, array.ndim)]
    if array.strides == (*steps, array.itemsize) and step >= channels * array.itemsize:
        return array, step // array.itemsize
    return *contiguous(array), channels


def packed_geometry(geometry: ConvGeometry):
    """`struct Geometry` of geometry.cuh: absent axes come first and have size 1.

    The padding behind only matters to the output's size, which is there.
    """
    before = tuple(pair[0] for pair in geometry.padding)
    fields = (geometry.input_size, geometry.output_size, geometry.kernel_size, geometry.stride)
    ones = [(1,) * (3 - len(axes)) + tuple(axes) for axes in (*fields, geometry.dilation)]
    padding = (0,) * (3 - len(before)) + before
    return np.array((*ones[:4], padding, ones[4]), GEOMETRY)


def packed_dropout(saved: DropoutSaved):
    """`struct Dropout` of common.cuh. A step on the device is read there when the kernel runs, so
    that a launch which is recorded and repeated has the step of its time."""
    seed, step, layer = saved.key
    place, step = (loader.address(step), 0) if is_on_device(step) else (0, step)
    return np.array((seed, place, step, layer, saved.threshold, saved.scale), DROPOUT)


def is_key(key) -> bool:
    """Whether (seed, step, layer) fit into 64, 32 and 32 bits."""
    seed, step, layer = key
    if is_on_device(step):  # its value is not known here
        return step.shape == () and step.dtype == np.uint32 and is_key((seed, 0, layer))
    return all(0 <= number < 2**bits for number, bits in zip(key, (64, 32, 32), strict=True))


def is_on_device(number) -> bool:
    """A number that lies in the device's memory, in an array of no dimension."""
    return hasattr(number, "ndim") and array_module(number) is not np


def ceil_divide(a: int, b: int) -> int:
    return -(-a // b)


def blocks_for(elements: int) -> tuple[int]:
    """The grid of an elementwise kernel."""
    return (ceil_divide(elements, THREADS),)


def rows_of(channels: int, width: int) -> tuple[int, int]:
    """The block of a kernel that goes over voxels, see common.cuh: (threads that share a voxel's
    channels, `width` each; rows)."""
    threads = min(32, 1 << (ceil_divide(channels, width) - 1).bit_length())
    return threads, THREADS // threads


def launch_over_voxels(kernel: str, groups, voxels, channels, width, arguments, each=EACH):
    """Run a kernel in which nothing is summed; it takes `arguments`, then voxels and channels."""
    threads, rows = block = rows_of(channels, width)
    grid = (ceil_divide(voxels, rows * each), ceil_divide(channels, threads * width), groups)
    loader.launch(kernel, grid, block, [*arguments, voxels, channels])
