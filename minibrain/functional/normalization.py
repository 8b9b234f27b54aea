"""Batch and instance normalisation: the same arithmetic, averaged over different axes.

    x̂ = (x − mean) / √(variance + ε),    y = γ·x̂ + β

Batch norm averages over samples and voxels, one mean per channel; instance norm over the
voxels of one sample, one mean per sample and channel. The variance is the mean of squares
(not Bessel-corrected), computed in two passes with float64 sums. In float32 it is infinite where
values are some 2·10¹⁹ from their mean: x̂ and dx are 0 then.

Source: Ioffe & Szegedy, arXiv:1502.03167; Ulyanov et al., arXiv:1607.08022.
"""

import numpy as np

from minibrain.arrays import array_module, channel_sum, like, require_float, widened
from minibrain.kernels import fast_twin
from minibrain.saved import NormSaved


@fast_twin
def instance_norm_forward(x, gamma, beta, *, eps=1e-5):
    """Normalise every channel of every sample over its voxels.

    Parameters
    ----------
    x : (N, *S, C) float array
    gamma, beta : (C,)

    Returns
    -------
    y : (N, *S, C)
    saved : NormSaved, with mean and variance of shape (N, 1, ..., C)

    Raises
    ------
    ValueError : x is not float; a sample has one voxel; gamma or beta does not fit
    """
    axes = tuple(range(1, x.ndim - 1))
    return _normalize(x, gamma, beta, *_statistics(x, axes), eps, axes)


@fast_twin
def instance_norm_backward(dy, saved: NormSaved):
    """Gradients of instance_norm_forward: (dx, dgamma, dbeta)."""
    return _normalize_backward(dy, saved)


@fast_twin
def batch_norm_forward(
    x, gamma, beta, running_mean=None, running_variance=None, *, training=True, eps=1e-5
):
    """Normalise every channel over samples and voxels.

    In training the batch's own mean and variance are used, and returned in `saved` for whoever
    keeps running statistics; otherwise the running ones are used, and are constants in backward.

    Parameters
    ----------
    x : (N, *S, C) float array
    gamma, beta, running_mean, running_variance : (C,)

    Returns
    -------
    y : (N, *S, C)
    saved : NormSaved, with mean and variance of shape (1, ..., C)

    Raises
    ------
    ValueError : x is not float; training with one value per channel; a parameter does not fit
    """
    if training:
        axes = tuple(range(x.ndim - 1))
        return _normalize(x, gamma, beta, *_statistics(x, axes), eps, axes)
    if running_mean is None or running_variance is None:
        raise ValueError("batch norm without training needs running_mean and running_variance")
    require_float("running_mean", running_mean, x.shape[-1:])
    require_float("running_variance", running_variance, x.shape[-1:])
    return _normalize(x, gamma, beta, running_mean, running_variance, eps, axes=())


@fast_twin
def batch_norm_backward(dy, saved: NormSaved):
    """Gradients of batch_norm_forward: (dx, dgamma, dbeta)."""
    return _normalize_backward(dy, saved)


def _statistics(x, axes):
    """Mean and variance over axes, in two passes.

    Values are taken relative to the first one, so that the mean of a constant channel is exactly
    its value and its variance exactly 0, whatever rounding does to the sum.
    """
    require_float("x", x)
    count = np.prod([x.shape[axis] for axis in axes])
    if count < 2:
        raise ValueError(f"one value per channel cannot be normalised: x has shape {x.shape}")
    x = widened(x)
    first = x[tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(x.ndim))]
    centred = x - first
    shift = _mean(centred, axes)
    centred -= shift
    return first + shift, _mean(centred * centred, axes)


def _normalize(x, gamma, beta, mean, variance, eps, axes):
    require_float("gamma", gamma, x.shape[-1:])
    require_float("beta", beta, x.shape[-1:])
    inv_std = 1 / array_module(x).sqrt(variance + eps)
    y = (widened(x) - mean) * inv_std * gamma + beta
    return like(y, x), NormSaved(x, gamma, mean, variance, inv_std, axes)


def _normalize_backward(dy, saved: NormSaved):
    """x̂ depends on x directly and through mean and variance, which take out of dx̂ all that a
    shift or a scaling of x could have caused: its mean, and its component along x̂."""
    x, gamma, mean, _, inv_std, axes = saved
    require_float("dy", dy, x.shape)
    dy, xhat = widened(dy), (widened(x) - mean) * inv_std
    dxhat = dy * gamma
    if axes:  # given statistics are constants: nothing flows through them
        through_mean = _mean(dxhat, axes)
        through_variance = xhat * _mean(dxhat * xhat, axes)
        dxhat = dxhat - through_mean - through_variance
    return like(dxhat * inv_std, x), channel_sum(dy * xhat), channel_sum(dy)


def _mean(x, axes):
    return x.mean(axis=axes, keepdims=True, dtype=np.float64).astype(x.dtype)
