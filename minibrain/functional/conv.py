"""Convolution and transposed convolution, in any number of dimensions.

Both are built from the same three sums over output positions p, kernel taps k and channels:

    correlate         y[n,p,o] = Σ_{k,c} w[k,c,o] · x[n, s·p + d·k − padding, c]
    spread            x[n, s·p + d·k − padding, c] += Σ_o w[k,c,o] · y[n,p,o]
    weight_gradient   dw[k,c,o] = Σ_{n,p} x[n, s·p + d·k − padding, c] · dy[n,p,o]

`spread` is the adjoint of `correlate`: ⟨correlate(x), y⟩ = ⟨x, spread(y)⟩. So it is the input
gradient of a convolution, and it is the transposed convolution itself, whose own input gradient
is `correlate` in turn.

Source: Dumoulin & Visin, "A guide to convolution arithmetic", arXiv:1603.07285.
"""

from math import prod

import numpy as np

from minibrain.arrays import array_module, channel_sum, like, require_float, widened
from minibrain.geometry import ConvGeometry, conv_geometry, conv_transpose_geometry
from minibrain.kernels import fast_twin
from minibrain.saved import ConvSaved


@fast_twin
def conv_forward(x, weight, bias=None, *, stride=1, padding=0, dilation=1):
    """Cross-correlate x with weight over every spatial axis.

    y[n,p,o] = bias[o] + Σ_{k,c} weight[k,c,o] · x[n, stride·p + dilation·k − padding, c]

    Parameters
    ----------
    x : (N, *S, C) float array
    weight : (*K, C, O)
    bias : (O,), optional
    stride, dilation : int, or one per axis
    padding : int, one per axis, one (before, after) pair per axis, "valid", or "same" (stride 1)

    Returns
    -------
    y : (N, *T, O), T = (S + padding − dilation·(K−1) − 1)//stride + 1, padding of both sides
    saved : ConvSaved, references without copies

    Raises
    ------
    ValueError : not floats, ranks or channel counts differ, or an output axis would be < 1
    """
    _check(x, weight, bias, inputs=-2, outputs=-1)
    geometry = conv_geometry(x.shape[1:-1], weight.shape[:-2], stride, padding, dilation)
    return correlate(x, weight, geometry, bias), ConvSaved(x, weight, geometry)


@fast_twin
def conv_backward(dy, saved: ConvSaved, *, input_gradient=True):
    """Gradients of conv_forward: (dx, dweight, dbias), dbias even if there was no bias.

    dx is None without input_gradient.
    """
    x, weight, geometry = saved
    require_float("dy", dy, (len(x), *geometry.output_size, weight.shape[-1]))
    dy = like(dy, x)  # a loss's gradient is float32 where x is bfloat16
    dx = spread(dy, weight, geometry) if input_gradient else None
    return dx, weight_gradient(x, dy, geometry), channel_sum(dy)


@fast_twin
def conv_transpose_forward(
    x, weight, bias=None, *, stride=1, padding=0, dilation=1, output_padding=0
):
    """Place the kernel, scaled by x, at every stride-th voxel; where kernels overlap they add.

    y[n, stride·p + dilation·k − padding, o] = bias[o] + Σ_{p,k,c} weight[k,o,c] · x[n,p,c]

    Parameters
    ----------
    x : (N, *S, C) float array
    weight : (*K, O, C), so that it is the adjoint of a convolution with the same array
    bias : (O,), optional
    stride, dilation : int, or one per axis
    padding : as in conv_forward; it is cut off the result
    output_padding : int, or one per axis, below max(stride, dilation); added at the end

    Returns
    -------
    y : (N, *T, O), T = (S − 1)·stride + dilation·(K−1) + 1 − padding + output_padding
    saved : ConvSaved, references without copies

    Raises
    ------
    ValueError : not floats, ranks or channel counts differ, or an output axis would be < 1
    """
    _check(x, weight, bias, inputs=-1, outputs=-2)
    geometry = conv_transpose_geometry(
        x.shape[1:-1], weight.shape[:-2], stride, padding, dilation, output_padding
    )
    return spread(x, weight, geometry, bias), ConvSaved(x, weight, geometry)


@fast_twin
def conv_transpose_backward(dy, saved: ConvSaved, *, input_gradient=True):
    """Gradients of conv_transpose_forward, as conv_backward returns them."""
    x, weight, geometry = saved
    require_float("dy", dy, (len(x), *geometry.input_size, weight.shape[-2]))
    dy = like(dy, x)
    dx = correlate(dy, weight, geometry) if input_gradient else None
    return dx, weight_gradient(dy, x, geometry), channel_sum(dy)


def correlate(x, weight, geometry: ConvGeometry, bias=None):
    """y[n,p,o] = Σ_{k,c} w[k,c,o] · x[n, s·p + d·k − padding, c]: one matrix product a block."""
    windows = _windows(_pad(widened(x), geometry), geometry)
    matrix = weight.reshape(-1, weight.shape[-1])
    y = array_module(x).empty((len(x), *geometry.output_size, weight.shape[-1]), x.dtype)
    for block in _blocks(windows, geometry):
        product = windows[block].reshape(-1, len(matrix)) @ matrix
        y[block] = (product if bias is None else product + bias).reshape(y[block].shape)
    return y


def spread(y, weight, geometry: ConvGeometry, bias=None):
    """x[n, s·p + d·k − padding, c] += Σ_o w[k,c,o] · y[n,p,o]: one tap after the other."""
    wide = widened(y)
    shape = (len(y), *geometry.padded_size, weight.shape[-2])
    padded = array_module(y).zeros(shape, wide.dtype)
    windows = _windows(padded, geometry)
    every = (slice(None),) * (y.ndim - 1)
    for tap in geometry.taps():
        windows[every + tap] += wide @ weight[tap].T
    x = padded[(slice(None), *geometry.interior)]
    return like(x if bias is None else x + bias, y)


def weight_gradient(x, dy, geometry: ConvGeometry):
    """dw[k,c,o] = Σ_{n,p} x[n, s·p + d·k − padding, c] · dy[n,p,o]: block sums, in order."""
    x, dy = widened(x), widened(dy)
    windows = _windows(_pad(x, geometry), geometry)
    c, o = x.shape[-1], dy.shape[-1]
    dmatrix = array_module(x).zeros((prod(geometry.kernel_size) * c, o), x.dtype)
    for block in _blocks(windows, geometry):
        dmatrix += windows[block].reshape(-1, len(dmatrix)).T @ dy[block].reshape(-1, o)
    return dmatrix.reshape(*geometry.kernel_size, c, o)


def _windows(padded, geometry: ConvGeometry):
    """View windows[n, p, k, c] = padded[n, s·p + d·k, c]: every kernel's voxels, not copied."""
    n, *steps, c = padded.strides
    positions = (s * step for s, step in zip(geometry.stride, steps, strict=True))
    taps = (d * step for d, step in zip(geometry.dilation, steps, strict=True))
    return array_module(padded).lib.stride_tricks.as_strided(
        padded,
        (len(padded), *geometry.output_size, *geometry.kernel_size, padded.shape[-1]),
        (n, *positions, *taps, c),
    )


def _blocks(windows, geometry: ConvGeometry):
    """Index a few rows of output positions at a time.

    Copied out, the windows of the whole volume would be the im2col matrix, ∏K times the input.
    A block of them stays in a CPU's cache, and gives a GPU enough to do.
    """
    block_bytes = 2**20 if array_module(windows) is np else 2**28
    rows = geometry.output_size[0]
    row_bytes = windows[0, 0].size * windows.itemsize
    step = max(1, block_bytes // row_bytes)
    for n in range(len(windows)):
        for start in range(0, rows, step):
            yield n, slice(start, start + step)


def _pad(x, geometry: ConvGeometry):
    if geometry.padded_size == geometry.input_size:
        return x
    padded = array_module(x).zeros((len(x), *geometry.padded_size, x.shape[-1]), x.dtype)
    padded[(slice(None), *geometry.interior)] = x
    return padded


def _check(x, weight, bias, inputs: int, outputs: int):
    require_float("x", x)
    require_float("weight", weight)
    if x.ndim < 3 or weight.ndim != x.ndim:
        raise ValueError(
            "x must be (N, *S, C) and weight have one kernel axis per spatial axis and two channel "
            f"axes, got x {x.shape} and weight {weight.shape}"
        )
    if 0 in x.shape or 0 in weight.shape:
        raise ValueError(f"x {x.shape} and weight {weight.shape} must not be empty")
    if x.shape[-1] != weight.shape[inputs]:
        raise ValueError(
            f"x has {x.shape[-1]} channels, but weight {weight.shape} takes {weight.shape[inputs]}"
        )
    if bias is not None:
        require_float("bias", bias, (weight.shape[outputs],))
