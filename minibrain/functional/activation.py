"""Elementwise operations, and softmax over the channels."""

from minibrain.arrays import array_module
from minibrain.kernels import fast_twin
from minibrain.philox import random_uint16
from minibrain.saved import DropoutSaved, ReluSaved, SigmoidSaved, SoftmaxSaved


@fast_twin
def relu_forward(x):
    """y = max(x, 0). Returns (y, saved), y in the shape of x."""
    y = array_module(x).maximum(x, 0)
    return y, ReluSaved(y)


@fast_twin
def relu_backward(dy, saved: ReluSaved):
    """dx = dy where the output was positive; at 0 the derivative is taken as 0."""
    return array_module(dy).where(saved.y > 0, dy, 0)


@fast_twin
def sigmoid_forward(x):
    """y = 1 / (1 + exp(−x)), for any finite x. Returns (y, saved), y in the shape of x."""
    xp = array_module(x)
    y = xp.exp(-xp.logaddexp(0, -x))
    return y, SigmoidSaved(y)


@fast_twin
def sigmoid_backward(dy, saved: SigmoidSaved):
    """dx = dy · y · (1 − y)."""
    return dy * saved.y * (1 - saved.y)


@fast_twin
def softmax_forward(x):
    """y[c] = exp(x[c]) / Σ_j exp(x[j]) over the last axis.

    The largest x is subtracted first: the result is the same and exp cannot overflow.
    Returns (y, saved), y in the shape of x.
    """
    xp = array_module(x)
    y = xp.exp(x - x.max(axis=-1, keepdims=True))
    y /= y.sum(axis=-1, keepdims=True)
    return y, SoftmaxSaved(y)


@fast_twin
def softmax_backward(dy, saved: SoftmaxSaved):
    """dx[c] = y[c] · (dy[c] − Σ_j dy[j]·y[j])."""
    y = saved.y
    return y * (dy - (dy * y).sum(axis=-1, keepdims=True))


@fast_twin
def dropout_forward(x, rate: float, key: tuple[int, int, int]):
    """Set values to 0 with probability `rate` and scale the others so that the mean stays.

    Parameters
    ----------
    x : array of any shape
    rate : in [0, 1), rounded to a multiple of 2^-16
    key : (seed, step, layer), which alone decide the mask

    Returns
    -------
    y : in the shape of x
    saved : DropoutSaved, the key and not the mask
    """
    if not 0 <= rate < 1:
        raise ValueError(f"dropout rate must be in [0, 1), got {rate}")
    saved = DropoutSaved(rate, key)
    return x * _dropout_factor(x, saved), saved


@fast_twin
def dropout_backward(dy, saved: DropoutSaved):
    """dx = dy times the same mask and scale, computed again."""
    return dy * _dropout_factor(dy, saved)


def _dropout_factor(x, saved: DropoutSaved):
    """1 / (1 − rate) where a value is kept and 0 elsewhere, in the dtype of x."""
    keep = random_uint16(0, x.size, saved.key, array_module(x)) >= saved.threshold
    return keep.reshape(x.shape).astype(x.dtype) * saved.scale
