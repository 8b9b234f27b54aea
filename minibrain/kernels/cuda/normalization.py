"""Instance and batch norm; see normalization.cu."""

import numpy as np

from minibrain.arrays import array_module
from minibrain.duck_arrays import Pending, Summed
from minibrain.kernels import takes, written
from minibrain.kernels.cuda.arguments import (
    LARGEST_GRID,
    alike,
    contiguous,
    launch_over_voxels,
    pitched,
    supported,
)
from minibrain.kernels.cuda.duck_arrays import in_one_go, pending_arguments
from minibrain.kernels.cuda.reduce import group_sums, launch_columns, partial_sums
from minibrain.saved import NormSaved


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
        origin, partial = None, group_sums("reduce.sum_sums", x.sums, 2 * groups)
    else:
        origin, width = values, in_one_go(x)
        kernel, sizes = f"normalization.sum_centred_{width}", (groups, voxels, channels)
        partial = partial_sums(kernel, values, 2, *sizes, [values], width)
    shape = (groups, *(1,) * (x.ndim - 2), channels)
    statistics = [array_module(values).empty(shape, np.float32) for _ in range(3)]
    parts = partial.shape[2]
    sizes = groups, parts, voxels, channels
    arguments = [origin, partial, *sizes, float(eps), gamma, beta, *statistics, lines]
    launch_columns("normalization.finish_statistics", groups * channels, parts, arguments)
    return NormSaved(values, gamma, *statistics, axes)


def _normalize(saved: NormSaved, beta):
    x, gamma, mean, _, inv_std, _ = saved
    y = array_module(x).empty(x.shape, x.dtype)
    width, arguments = in_one_go(x), [x, gamma, contiguous(beta)[0], mean, inv_std, y]
    launch_over_voxels(f"normalization.normalize_{width}", *_sizes(x, mean), width, arguments)
    return y


def normalize_backward(dy, saved: NormSaved, pending: Pending | None = None):
    """(dx, dgamma, dbeta); if what was normalised is pending, dy is the gradient of that."""
    x, gamma, mean, _, inv_std, axes = saved
    if not (alike(dy, x) and gamma.dtype == mean.dtype == np.float32):
        return NotImplemented
    dy, (x, gamma, mean, inv_std) = pitched(dy), contiguous(x, gamma, mean, inv_std)
    sizes, width = _sizes(x, mean), in_one_go(x, dy)
    upstream = [*dy, *pending_arguments(x if pending is None else pending), mean, inv_std, gamma]
    kernel = f"normalization.sum_gradients_{width}"
    partial = partial_sums(kernel, x, 2, *sizes, upstream, width)
    xp, (groups, voxels, channels) = array_module(x), sizes
    dgamma, dbeta = (xp.empty(gamma.shape, np.float32) for _ in range(2))
    through, dx = xp.empty((groups, channels, 2), np.float32), xp.empty(x.shape, x.dtype)
    share = 1 / voxels if axes else 0.0  # nothing goes through statistics that were given
    parts = partial.shape[2]
    arguments = [partial, groups, parts, channels, share, inv_std, dgamma, dbeta, through]
    launch_columns("normalization.finish_gradients", channels, parts, arguments)
    kernel, arguments = f"normalization.normalize_backward_{width}", [*upstream, through, dx]
    launch_over_voxels(kernel, *sizes, width, arguments)
    return dx, dgamma, dbeta


def _sizes(x, mean):
    """(groups, voxels of each, channels)."""
    channels = x.shape[-1]
    return mean.size // channels, x.size // mean.size, channels


def _fit(x, *parameters):
    return (
        x.ndim > 2
        and supported(x)
        and x.shape[-1] <= LARGEST_GRID
        and all(p.shape == x.shape[-1:] and p.dtype == np.float32 for p in parameters)
    )
