"""Instance norm, ReLU and dropout in as many passes as the norm alone; see normalization.cu."""

from minibrain.kernels.cuda.arguments import alike, is_key
from minibrain.kernels.cuda.normalization import (
    instance_norm,
    instance_norm_fits,
    normalize_backward,
)
from minibrain.saved import DropoutSaved, NormReluSaved


def norm_relu_forward(x, gamma, beta, *, eps=1e-5, rate=0.0, key=(0, 0, 0)):
    if not (instance_norm_fits(x, gamma, beta) and 0 <= rate < 1 and is_key(key)):
        return NotImplemented
    dropout = DropoutSaved(rate, key)
    y, norm = instance_norm(x, gamma, beta, eps, dropout)
    return y, NormReluSaved(norm, y, dropout)


def norm_relu_backward(dy, saved: NormReluSaved):
    if not alike(dy, saved.y):
        return NotImplemented
    return normalize_backward(dy, saved.norm, saved.y, saved.dropout.scale)
