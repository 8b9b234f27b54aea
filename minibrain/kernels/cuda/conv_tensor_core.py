"""Convolution of bfloat16 arrays by the kernels that are fast for some shapes.

Every function returns None for shapes that none of them takes; conv.py has kernels for those.
"""

from minibrain.kernels.cuda import conv_planes, conv_pointwise, conv_tiles
from minibrain.kernels.cuda.arguments import contiguous


def correlate(x, weight, geometry, bias=None):
    """y[n,p,o] = bias[o] + Σ_{k,c} w[k,c,o] · x[n, s·p + d·k − padding, c]."""
    kernels = conv_planes.correlate, conv_tiles.correlate, conv_pointwise.correlate
    return _first(kernels, x, weight, geometry, _contiguous(bias))


def spread(y, weight, geometry, bias=None):
    """x[n, s·p + d·k − padding, c] += Σ_o w[k,c,o] · y[n,p,o], and then + bias[c]."""
    kernels = conv_planes.spread, conv_tiles.spread, conv_pointwise.spread
    return _first(kernels, y, weight, geometry, _contiguous(bias))


def gradients(x, dy, geometry):
    """(dw, dbias) of a convolution: dw[k,c,o] = Σ_{n,p} x[n, s·p + d·k − padding, c] · dy[n,p,o]
    and the sum over dy."""
    return _first((conv_planes.gradients, conv_pointwise.gradients), x, dy, geometry)


def transposed_gradients(dy, x, geometry):
    """(dw, dbias) of a transposed convolution: the same with dy and x exchanged, but the sum is
    over dy still."""
    return _first((conv_tiles.transposed_gradients,), dy, x, geometry)


def _contiguous(bias):
    return None if bias is None else contiguous(bias)[0]


def _first(kernels, x, *arguments):
    """What the first kernel computes that takes these arguments."""
    if x.dtype.name != "bfloat16":
        return None
    results = (kernel(x, *arguments) for kernel in kernels)
    return next((result for result in results if result is not None), None)
