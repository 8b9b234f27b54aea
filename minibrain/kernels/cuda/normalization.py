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
from minibrain.kernels.cuda.reduce import add_parts, group_sums, sums_over_voxels
from minibrain.kernels.cuda.unwritten import in_one_go, pending_arguments
from minibrain.saved import NormSaved, Pending, Summed


@takes(Summed)
def instance_norm_forward(x, gamma, beta, *, eps=1e-5):
    if not instance_norm_fits(x, gamma, beta):
        return NotImplemented
    saved = instance_norm(x, gamma, eps)
    return _normalize(saved, beta), saved


@takes(Summed)
def batch_norm_forward(
    x, gamma, beta, running_mean=None, running_variance=None, *, training=True, eps=1e-5
):
    if not _fit(x, gamma, beta):
        return NotImplemented
    if training and x.size > x.shape[-1]:
        axes = tuple(range(x.ndim - 1))
        saved = _saved(x, gamma, *_statistics(x, groups=1), eps, axes)
        return _normalize(saved, beta), saved
    if training or running_mean is None or running_variance is None:
        return NotImplemented
    if not _fit(x, running_mean, running_variance):
        return NotImplemented
    saved = _saved(x, gamma, *contiguous(running_mean, running_variance), eps, axes=())
    return _normalize(saved, beta), saved


def instance_norm_backward(dy, saved: NormSaved):
    return normalize_backward(dy, saved)


def batch_norm_backward(dy, saved: NormSaved):
    return normalize_backward(dy, saved)


def instance_norm_fits(x, gamma, beta) -> bool:
    return _fit(x, gamma, beta) and x[0].size > x.shape[-1]


def instance_norm(x, gamma, eps) -> NormSaved:
    """The statistics of every channel of every sample."""
    return _saved(x, gamma, *_statistics(x, groups=len(x)), eps, tuple(range(1, x.ndim - 1)))


def _saved(x, gamma, mean, variance, eps, axes):
    inv_std = array_module(mean).empty(mean.shape, np.float32)
    arguments = [variance, inv_std, mean.size, float(eps)]
    loader.launch("normalization.invert", blocks_for(mean.size), (THREADS,), arguments)
    return NormSaved(*contiguous(written(x), gamma), mean, variance, inv_std, axes)


def _statistics(x, groups):
    """Mean and variance of every channel in every group; they broadcast against x."""
    channels = x.shape[-1]
    voxels = x.size // groups // channels
    if isinstance(x, Summed):
        origin, sums = None, group_sums(x.sums, 2 * groups)
    else:
        (origin,) = contiguous(x)
        width = in_one_go(x)
        kernel, sizes = f"normalization.sum_centred_{width}", (groups, voxels, channels)
        sums = sums_over_voxels(kernel, origin, 2, *sizes, [origin], width=width)
    shape = (groups, *(1,) * (x.ndim - 2), channels)
    mean, variance = (array_module(sums).empty(shape, np.float32) for _ in range(2))
    arguments = [origin, sums, mean, variance, mean.size, voxels, channels]
    loader.launch("normalization.finish_statistics", blocks_for(mean.size), (THREADS,), arguments)
    return mean, variance


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
