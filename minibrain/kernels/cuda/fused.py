"""Instance norm, ReLU and dropout, one kernel after the other; not yet in fewer passes."""

from minibrain.kernels.cuda.activation import (
    dropout_backward,
    dropout_forward,
    relu_backward,
    relu_forward,
)
from minibrain.kernels.cuda.normalization import instance_norm_backward, instance_norm_forward
from minibrain.saved import DropoutSaved, NormReluSaved, ReluSaved


def norm_relu_forward(x, gamma, beta, *, eps=1e-5, rate=0.0, key=(0, 0, 0)):
    result = instance_norm_forward(x, gamma, beta, eps=eps)
    if result is NotImplemented or not 0 <= rate < 1:
        return NotImplemented
    y, norm = result
    y, _ = relu_forward(y)
    if rate:
        y, _ = dropout_forward(y, rate, key)
    return y, NormReluSaved(norm, y, DropoutSaved(rate, key))


def norm_relu_backward(dy, saved: NormReluSaved):
    dy = relu_backward(dy, ReluSaved(saved.y))
    if dy is NotImplemented:
        return NotImplemented
    if saved.dropout.rate:
        dy = dropout_backward(dy, saved.dropout)
    return instance_norm_backward(dy, saved.norm)
