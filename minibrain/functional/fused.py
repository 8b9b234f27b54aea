"""Operations that follow each other in a network, as one pair: a twin can do them in one go."""

from minibrain.arrays import array_module, like, require_float, widened
from minibrain.functional.activation import dropout_forward, relu_forward
from minibrain.functional.normalization import instance_norm_backward, instance_norm_forward
from minibrain.kernels import fast_twin
from minibrain.saved import DropoutSaved, NormReluSaved


@fast_twin
def norm_relu_forward(x, gamma, beta, *, eps=1e-5, rate=0.0, key=(0, 0, 0)):
    """Instance norm, then ReLU, then dropout.

    Parameters
    ----------
    x : (N, *S, C) float array
    gamma, beta : (C,)
    rate, key : as in dropout_forward; rate 0 is no dropout

    Returns
    -------
    y : (N, *S, C); on a GPU in its place duck_arrays.Pending, what it would be made from
    saved : NormReluSaved

    Raises
    ------
    ValueError : a sample has one voxel; gamma, beta or rate is not as above
    """
    y, norm = instance_norm_forward(widened(x), gamma, beta, eps=eps)
    y, _ = relu_forward(y)
    dropout = DropoutSaved(rate, key, x.shape)
    if rate:
        y, dropout = dropout_forward(y, rate, key)
    y = like(y, x)
    return y, NormReluSaved(norm._replace(x=x), y, dropout)


@fast_twin
def norm_relu_backward(dy, saved: NormReluSaved):
    """Gradients of norm_relu_forward: (dx, dgamma, dbeta).

    A result above 0 passed the ReLU and was kept by dropout, any other did not: no mask is needed.
    """
    require_float("dy", dy, saved.y.shape)
    dy = array_module(dy).where(saved.y > 0, widened(dy), 0) * saved.dropout.scale
    return instance_norm_backward(dy, saved.norm)
