"""Instance and batch norm; see normalization.cu."""

import numpy as np

from minibrain.arrays import array_module
from minibrain.kernels.cuda import loader
from minibrain.kernels.cuda.arguments import (
    LARGEST_GRID,
    THREADS,
    alike,
    blocks_for,
    ceil_divide,
    contiguous,
    packed_dropout,
    supported,
)
from minibrain.kernels.cuda.reduce import add_parts, sums_over_voxels
from minibrain.saved import DropoutSaved, NormSaved


def instance_norm_forward(x, gamma, beta, *, eps=1e-5):
    if not instance_norm_fits(x, gamma, beta):
        return NotImplemented
    return instance_norm(x, gamma, beta, eps)


def batch_norm_forward(
    x, gamma, beta, running_mean=None, running_variance=None, *, training=True, eps=1e-5
):
    if not _fit(x, gamma, beta):
        return NotImplemented
    if training and x.size > x.shape[-1]:
        x, gamma, beta = contiguous(x, gamma, beta)
        mean, variance = _statistics(x, groups=1)
        return _normalize(x, gamma, beta, mean, variance, eps, tuple(range(x.ndim - 1)))
    if training or running_mean is None or running_variance is None:
        return NotImplemented
    if not _fit(x, running_mean, running_variance):
        return NotImplemented
    x, gamma, beta, *running = contiguous(x, gamma, beta, running_mean, running_variance)
    return _normalize(x, gamma, beta, *running, eps, axes=())


def instance_norm_backward(dy, saved: NormSaved):
    return normalize_backward(dy, saved)


def batch_norm_backward(dy, saved: NormSaved):
    return normalize_backward(dy, saved)


def instance_norm_fits(x, gamma, beta) -> bool:
    return _fit(x, gamma, beta) and x[0].size > x.shape[-1]


def instance_norm(x, gamma, beta, eps, dropout: DropoutSaved | None = None):
    """(y, NormSaved); with `dropout` y has passed a ReLU, and then that."""
    axes = tuple(range(1, x.ndim - 1))
    x, gamma, beta = contiguous(x, gamma, beta)
    mean, variance = _statistics(x, groups=len(x))
    return _normalize(x, gamma, beta, mean, variance, eps, axes, dropout)


def _statistics(x, groups):
    """Mean and variance of every channel in every group; they broadcast against x."""
    channels = x.shape[-1]
    voxels = x.size // groups // channels
    shape = (groups, *(1,) * (x.ndim - 2), channels)
    total = sums_over_voxels("normalization.sum", x, 1, groups, voxels, channels, [x])
    mean = _divide(total, voxels).reshape(shape)
    kernel, arguments = "normalization.sum_squares", [x, mean]
    squares = sums_over_voxels(kernel, x, 1, groups, voxels, channels, arguments)
    return mean, _divide(squares, voxels).reshape(shape)


def _divide(sums, voxels):
    means = array_module(sums).empty(sums.shape, np.float32)
    arguments = [sums, means, sums.size, voxels]
    loader.launch("normalization.divide", blocks_for(sums.size), (THREADS,), arguments)
    return means


def _normalize(x, gamma, beta, mean, variance, eps, axes, dropout=None):
    xp = array_module(x)
    inv_std, y = xp.empty(mean.shape, np.float32), xp.empty(x.shape, x.dtype)
    arguments = [variance, inv_std, mean.size, float(eps)]
    loader.launch("normalization.invert", blocks_for(mean.size), (THREADS,), arguments)
    arguments = [x, gamma, beta, mean, inv_std, y, *_sizes(x, mean)]
    if dropout is None:
        loader.launch("normalization.normalize", blocks_for(x.size), (THREADS,), arguments)
    else:
        arguments.append(packed_dropout(dropout))
        grid = blocks_for(ceil_divide(x.size, 8))
        loader.launch("normalization.norm_relu", grid, (THREADS,), arguments)
    return y, NormSaved(x, gamma, mean, variance, inv_std, axes)


def normalize_backward(dy, saved: NormSaved, y=None, scale=1.0):
    """(dx, dgamma, dbeta), of dy or, if y is given, of scale · dy where y is above 0."""
    x, gamma, mean, _, inv_std, axes = saved
    if not (alike(dy, x) and gamma.dtype == mean.dtype == np.float32):
        return NotImplemented
    dy, x, gamma, mean, inv_std = contiguous(dy, x, gamma, mean, inv_std)
    upstream = [dy, y if y is None else contiguous(y)[0], scale]
    size, voxels, channels = _sizes(x, mean)
    groups = mean.size // channels
    kernel, arguments = "normalization.sum_gradients", [*upstream, x, mean, inv_std]
    sums = sums_over_voxels(kernel, x, 2, groups, voxels, channels, arguments)
    dbeta, dgamma = add_parts(sums, 1, "add_parts_to_float", np.float32)
    dx = array_module(x).empty(x.shape, x.dtype)
    arguments = [*upstream, x, gamma, mean, inv_std, sums if axes else None, dx]
    arguments += [size, voxels, channels]
    loader.launch("normalization.normalize_backward", blocks_for(size), (THREADS,), arguments)
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
