"""The ways down, up and across a U-Net: max-pool, nearest upsampling, concatenation."""

from math import prod

import numpy as np

from minibrain.arrays import array_module, like, require_float, widened
from minibrain.geometry import axis_of_padding_only, conv_geometry, per_axis
from minibrain.kernels import fast_twin
from minibrain.saved import ConcatSaved, MaxPoolSaved, UpsampleSaved


@fast_twin
def max_pool_forward(x, kernel_size=2, *, stride=None, padding=0, dilation=1):
    """The largest value under each kernel; padding never wins.

    Parameters
    ----------
    x : (N, *S, C) float array
    kernel_size, stride, dilation : int, or one per axis; stride is the kernel size if None
    padding : as in conv_forward

    Returns
    -------
    y : (N, *T, C), T as in conv_forward
    saved : MaxPoolSaved

    Raises
    ------
    ValueError : x is not float, an output axis would be < 1, or a window sees padding only
    """
    require_float("x", x)
    stride = kernel_size if stride is None else stride
    geometry = conv_geometry(x.shape[1:-1], kernel_size, stride, padding, dilation)
    axis = axis_of_padding_only(geometry)
    if axis is not None:
        raise ValueError(
            f"axis {axis}: a window sees padding only: size {geometry.input_size[axis]}, "
            f"kernel_size {geometry.kernel_size[axis]}, stride {geometry.stride[axis]}, "
            f"padding {geometry.padding[axis]}, dilation {geometry.dilation[axis]}"
        )
    xp = array_module(x)
    padded = xp.full((len(x), *geometry.padded_size, x.shape[-1]), -np.inf, x.dtype)
    padded[(slice(None), *geometry.interior)] = x
    numbers = np.min_scalar_type(prod(geometry.kernel_size) - 1)  # one byte for all usual kernels
    y, winner = None, None
    for number, tap in enumerate(geometry.taps()):
        candidate = padded[_window(tap, geometry)]
        if y is None:
            y, winner = candidate.copy(), xp.zeros(candidate.shape, numbers)
        else:
            winner[candidate > y] = number  # of equal values the first one wins
            y = xp.maximum(y, candidate)
    return y, MaxPoolSaved(winner, geometry)


@fast_twin
def max_pool_backward(dy, saved: MaxPoolSaved):
    """Each dy goes to the voxel that won; where windows overlap, gradients add."""
    winner, geometry = saved
    require_float("dy", dy, winner.shape)
    shape, wide = (len(dy), *geometry.padded_size, dy.shape[-1]), widened(dy)
    dpadded = array_module(dy).zeros(shape, wide.dtype)
    for number, tap in enumerate(geometry.taps()):
        dpadded[_window(tap, geometry)] += wide * (winner == number)
    return like(dpadded[(slice(None), *geometry.interior)], dy)


def _window(tap, geometry):
    """Index of the padded voxels that this tap meets, one per output position."""
    axes = zip(tap, geometry.output_size, geometry.stride, geometry.dilation, strict=True)
    return (slice(None), *(slice(d * k, d * k + s * (n - 1) + 1, s) for k, n, s, d in axes))


@fast_twin
def upsample_forward(x, factor=2):
    """Repeat every voxel `factor` times along every spatial axis (nearest neighbour).

    Parameters
    ----------
    x : (N, *S, C) array
    factor : int, or one per axis

    Returns
    -------
    y : (N, *(S·factor), C)
    saved : UpsampleSaved
    """
    factor = per_axis(factor, x.ndim - 2, "factor")
    y = x
    for axis, times in enumerate(factor, start=1):
        y = array_module(x).repeat(y, times, axis=axis)
    return y, UpsampleSaved(factor, y.shape)


@fast_twin
def upsample_backward(dy, saved: UpsampleSaved):
    """A voxel that was used many times gets the sum of their gradients."""
    require_float("dy", dy, saved.shape)
    n, *size, c = dy.shape
    blocks = [m for s, f in zip(size, saved.factor, strict=True) for m in (s // f, f)]
    dx = widened(dy).reshape(n, *blocks, c).sum(axis=tuple(range(2, 2 * len(size) + 1, 2)))
    return like(dx, dy)


@fast_twin
def concat_forward(a, b):
    """Join two arrays along the channels.

    Parameters
    ----------
    a, b : (N, *S, A), (N, *S, B)

    Returns
    -------
    y : (N, *S, A + B); on a GPU in its place duck_arrays.Joined, the two arrays
    saved : ConcatSaved
    """
    if a.shape[:-1] != b.shape[:-1]:
        raise ValueError(f"a and b must agree in all but their channels, got {a.shape}, {b.shape}")
    y = array_module(a).concatenate([a, b], axis=-1)
    return y, ConcatSaved(a.shape[-1], y.shape)


@fast_twin
def concat_backward(dy, saved: ConcatSaved):
    """Split: (da, db)."""
    require_float("dy", dy, saved.shape)
    return dy[..., : saved.channels], dy[..., saved.channels :]
