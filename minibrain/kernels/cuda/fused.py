"""Instance norm, ReLU and dropout: the statistics, and a Pending for whoever reads the rest."""

import numpy as np

from minibrain.arrays import array_module
from minibrain.duck_arrays import Pending, Summed
from minibrain.kernels import takes
from minibrain.kernels.cuda.arguments import is_key
from minibrain.kernels.cuda.normalization import (
    instance_norm,
    instance_norm_fits,
    normalize_backward,
)
from minibrain.saved import DropoutSaved, NormReluSaved


@takes(Summed)
def norm_relu_forward(x, gamma, beta, *, eps=1e-5, rate=0.0, key=(0, 0, 0)):
    if not (instance_norm_fits(x, gamma, beta) and 0 <= rate < 1 and is_key(key)):
        return NotImplemented
    lines = array_module(gamma).empty((len(x), *(1,) * (x.ndim - 2), x.shape[-1], 3), np.float32)
    norm, dropout = instance_norm(x, gamma, beta, eps, lines), DropoutSaved(rate, key, x.shape)
    y = Pending(norm.x, lines, dropout)
    return y, NormReluSaved(norm, y, dropout)


@takes(Pending)
def norm_relu_backward(dy, saved: NormReluSaved):
    if not isinstance(saved.y, Pending):
        return NotImplemented  # only who has written y need not know beta
    return normalize_backward(dy, saved.norm, saved.y)
