"""Operations that follow each other in a network, as one pair: a twin can do them in one go."""

from minibrain.functional.activation import relu_backward, relu_forward
from minibrain.functional.normalization import instance_norm_backward, instance_norm_forward
from minibrain.kernels import fast_twin
from minibrain.saved import NormReluSaved


@fast_twin
def norm_relu_forward(x, gamma, beta, *, eps=1e-5):
    """Instance norm, then ReLU.

    Parameters
    ----------
    x : (N, *S, C) float array
    gamma, beta : (C,)

    Returns
    -------
    y : (N, *S, C)
    saved : NormReluSaved

    Raises
    ------
    ValueError : a sample has one voxel; gamma or beta does not fit
    """
    y, norm = instance_norm_forward(x, gamma, beta, eps=eps)
    y, relu = relu_forward(y)
    return y, NormReluSaved(norm, relu)


@fast_twin
def norm_relu_backward(dy, saved: NormReluSaved):
    """Gradients of norm_relu_forward: (dx, dgamma, dbeta)."""
    dy = relu_backward(dy, saved.relu)
    return instance_norm_backward(dy, saved.norm)
