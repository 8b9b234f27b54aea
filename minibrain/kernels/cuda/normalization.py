"""Instance and batch norm; see normalization.cu."""

import numpy as np

from minibrain.arrays import array_module
from minibrain.kernels import takes, written
from minibrain.kernels.cuda import loader
from minibrain.kernels.cuda.arguments import (
    LARGEST_GRID,
    THREADS,
    alike,
    blocks_for,
    contiguous,
    pitched,
    supported,
)
from minibrain.kernels.cuda.reduce import (
    add_parts,
    group_sums,
    launch_columns,
    partial_sums,
    sums_over_voxels,
)
from minibrain.kernels.cuda.unwritten import in_one_go, pending_arguments
from minibrain.saved import NormSaved, Pending, Summed


@takes(Summed)
def instance_norm_forward(x, gamma, beta, *, eps=1e-5):
    if not instance_norm_fits(x, gamma, beta):
        return NotImplemented
    saved = instance_norm(x, gamma, beta, eps)
    return _normalize(saved, beta), saved


@takes(Summed)
def batch_norm_forward(
    x, gamma, beta, running_mean=None, running_variance=None, *, training=True, eps=1e-5
):
    if not _fit(x, gamma, beta):
        return NotImplemented
    if training and x.size > x.shape[-1]:
        saved = _computed(x, gamma, beta, eps, axes=tuple(range(x.ndim - 1)))
        return _normalize(saved, beta), saved
    if training or running_mean is None or running_variance is None:
        return NotImplemented
    if not _fit(x, running_mean, running_variance):
        return NotImplemented
    mean, variance = contiguous(running_mean, running_variance)
    inv_std = 1 / array_module(mean).sqrt(variance + np.float32(eps))
    saved = NormSaved(*contiguous(written(x), gamma), mean, variance, inv_std, axes=())
    return _normalize(saved, beta), saved


def instance_norm_backward(dy, saved: NormSaved):
    return normalize_backward(dy, saved)


def batch_norm_backward(dy, saved: NormSaved):
    return normalize_backward(dy, saved)


def instance_norm_fits(x, gamma, beta) -> bool:
    return _fit(x, gamma, beta) and x[0].size > x.shape[-1]


def instance_norm(x, gamma, beta, eps, lines=None) -> NormSaved:
    """The statistics of every channel of every sample, and the lines of a Pending to be filled."""
    return _computed(x, gamma, beta, eps, tuple(range(1, x.ndim - 1)), lines)


def _computed(x, gamma, beta, eps, axes, lines=None):
    """With mean, variance and 1/σ of every channel in every group; they broadcast against x."""
    groups, channels = 1 if 0 in axes else len(x), x.shape[-1]
    voxels = x.size // groups // channels
    values, gamma, beta = contiguous(written(x), gamma, beta)
    if isinstance(x, Summed):
        origin, partial = None, group_sums(x.sums, 2 * groups)
    else:
        origin, width = values, in_one_go(x)
        kernel, sizes = f"normalization.sum_centred_{width}", (groups, voxels, channels)
        partial = partial_sums(kernel, values, 2, *sizes, [values], width)
    shape = (groups, *(1,) * (x.ndim - 2), channels)
    statistics = [array_module(values).empty(shape, np.float32) for _ in range(3)]
    sizes = groups, partial.shape[2], voxels, channels
    arguments = [origin, partial, *sizes, float(eps), gamma, beta, *statistics, lines]
    launch_columns("normalization.finish_statistics", groups * channels, arguments)
    return NormSaved(values, gamma, *statistics, axes)


def _normalize(saved: NormSaved, beta):
    x, gamma, mean, _, inv_std, _ = saved
    y = array_module(x).empty(x.shape, x.dtype)
    arguments = [x, gamma, contiguous(beta)[0], mean, inv_std, y, *_sizes(x, mean)]
    loader.launch("normalization.normalize", blocks_for(x.size), (THREADS,), arguments)
    return y


def normalize_backward(dy, saved: NormSaved, pending: Pending | None = None):
    """(dx, dgamma, dbeta); if what was normalised is pending, dy is the gradient of that."""
    x, gamma, mean, _, inv_std, axes = saved
    if not (alike(dy, x) and gamma.dtype == mean.dtype == np.float32):
        return NotImplemented
    dy, (x, gamma, mean, inv_std) = pitched(dy), contiguous(x, gamma, mean, inv_std)
    size, voxels, channels = _sizes(x, mean)
    width, groups = in_one_go(x, dy), mean.size // channels
    upstream = [*dy, *pending_arguments(x if pending is None else pending), mean, inv_std]
    kernel, sizes = f"normalization.sum_gradients_{width}", (groups, voxels, channels)
    sums = sums_over_voxels(kernel, x, 2, *sizes, upstream, width=width)
    dbeta, dgamma = add_parts(sums, 1, "add_parts_to_float", np.float32)
    dx = array_module(x).empty(x.shape, x.dtype)
    arguments = [*upstream, gamma, sums if axes else None, dx, size, voxels, channels]
    kernel = f"normalization.normalize_backward_{width}"
    loader.launch(kernel, blocks_for(size // width), (THREADS,), arguments)
    return dx, dgamma, dbeta


def _sizes(x, mean):
    """(elements, voxels that share statistics, channels)."""
    return x.size, x.size // mean.size, x.shape[-1]


def _fit(x, *parameters):
    return (
        x.ndim > 2
        and supported(x)
        and x.shape[-1] <= LARGEST_GRID
        and all(p.shape == x.shape[-1:] and p.dtype == np.float32 for p in parameters)
    )
