"""Elementwise operations, and softmax over the channels."""

from minibrain.arrays import array_module, like, require_float, widened
from minibrain.kernels import fast_twin
from minibrain.saved import DropoutSaved, ReluSaved, SigmoidSaved, SoftmaxSaved


@fast_twin
def relu_forward(x):
    """y = max(x, 0). Returns (y, saved), y in the shape of x."""
    y = array_module(x).maximum(x, 0)
    return y, ReluSaved(y)


@fast_twin
def relu_backward(dy, saved: ReluSaved):
    """dx = dy where the output was positive; at 0 the derivative is taken as 0."""
    require_float("dy", dy, saved.y.shape)
    return array_module(dy).where(saved.y > 0, dy, 0)


@fast_twin
def sigmoid_forward(x):
    """y = 1 / (1 + exp(−x)), for any finite x. Returns (y, saved), y in the shape of x."""
    require_float("x", x)
    xp = array_module(x)
    y = like(xp.exp(-xp.logaddexp(0, -widened(x))), x)  # exp(−x) alone could overflow
    return y, SigmoidSaved(y)


@fast_twin
def sigmoid_backward(dy, saved: SigmoidSaved):
    """dx = dy · y · (1 − y)."""
    require_float("dy", dy, saved.y.shape)
    y = widened(saved.y)
    return like(widened(dy) * y * (1 - y), dy)


@fast_twin
def softmax_forward(x):
    """y[c] = exp(x[c]) / Σ_j exp(x[j]) over the last axis.

    The largest x is subtracted first: the result is the same and exp cannot overflow.
    Returns (y, saved), y in the shape of x.
    """
    require_float("x", x)
    wide = widened(x)
    y = array_module(x).exp(wide - wide.max(axis=-1, keepdims=True))
    y = like(y / y.sum(axis=-1, keepdims=True), x)
    return y, SoftmaxSaved(y)


@fast_twin
def softmax_backward(dy, saved: SoftmaxSaved):
    """dx[c] = y[c] · (dy[c] − Σ_j dy[j]·y[j])."""
    require_float("dy", dy, saved.y.shape)
    y, dwide = widened(saved.y), widened(dy)
    return like(y * (dwide - (dwide * y).sum(axis=-1, keepdims=True)), dy)


@fast_twin
def dropout_forward(x, rate: float, key: tuple):
    """Set values to 0 with probability `rate` and scale the others so that the mean stays.

    Parameters
    ----------
    x : float array of any shape
    rate : in [0, 1), rounded to a multiple of 2^-16
    key : (seed, step, layer), which alone decide the mask; the step may be an array of no dimension

    Returns
    -------
    y : in the shape of x
    saved : DropoutSaved, the key and not the mask
    """
    require_float("x", x)
    require_rate(rate)
    saved = DropoutSaved(rate, key, x.shape)
    return _dropped(x, saved), saved


@fast_twin
def dropout_backward(dy, saved: DropoutSaved):
    """dx = dy times the same mask and scale, computed again."""
    require_float("dy", dy, saved.shape)
    return _dropped(dy, saved)


def require_rate(rate: float) -> None:
    """Require a rate of dropout; raises ValueError."""
    if not 0 <= rate < 1:
        raise ValueError(f"dropout rate must be in [0, 1), got {rate}")


def _dropped(x, saved: DropoutSaved):
    """x / (1 − rate) where it is kept, and 0 elsewhere."""
    if not saved.threshold:
        return x.copy()  # nothing is dropped: no numbers need be drawn
    wide = widened(x)
    return like(wide * saved.factors(wide), x)
