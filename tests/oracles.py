"""What the operations mean, as slow and as obvious as possible.

Explicit loops over batch, output positions, kernel taps and channels; no formula for a size, no
padded copy, nothing shared with minibrain. Arrays are (N, *S, C) of any rank; stride and dilation
hold one int per axis, padding one (before, after) pair per axis.
"""

import numpy as np


def window_starts(size, kernel, stride, padding, dilation):
    """Per axis, the input index under the kernel's first tap at every output position."""
    return [
        range(-before, n + after - d * (k - 1), s)
        for n, k, s, (before, after), d in zip(size, kernel, stride, padding, dilation, strict=True)
    ]


def tap_index(start, dilation, tap):
    """The input index under one tap of the kernel that starts at `start`."""
    return tuple(b + d * t for b, d, t in zip(start, dilation, tap, strict=True))


def is_inside(index, size):
    return all(0 <= i < n for i, n in zip(index, size, strict=True))


def conv(x, weight, bias, stride, padding, dilation):
    """Cross-correlation; weight is (*K, C, O)."""
    batch, *size, channels = x.shape
    *kernel, _, outputs = weight.shape
    starts = window_starts(size, kernel, stride, padding, dilation)
    y = np.zeros((batch, *map(len, starts), outputs))
    for n, *position, o in np.ndindex(y.shape):
        y[(n, *position, o)] = 0.0 if bias is None else bias[o]
        start = [starts[axis][p] for axis, p in enumerate(position)]
        for tap in np.ndindex(*kernel):
            index = tap_index(start, dilation, tap)
            if is_inside(index, size):
                for c in range(channels):
                    y[(n, *position, o)] += x[(n, *index, c)] * weight[(*tap, c, o)]
    return y


def conv_transpose(x, weight, bias, stride, padding, dilation, output_padding):
    """Place one kernel per input voxel, sum the overlaps, cut the padding; weight is (*K, O, C)."""
    batch, *size, _ = x.shape
    *kernel, outputs, _ = weight.shape
    axes = range(len(size))
    canvas_size = [
        stride[a] * (size[a] - 1) + dilation[a] * (kernel[a] - 1) + 1 + output_padding[a]
        for a in axes
    ]
    canvas = np.zeros((batch, *canvas_size, outputs))
    for n, *position, c in np.ndindex(x.shape):
        start = [stride[a] * position[a] for a in axes]
        for tap in np.ndindex(*kernel):
            index = tap_index(start, dilation, tap)
            for o in range(outputs):
                canvas[(n, *index, o)] += x[(n, *position, c)] * weight[(*tap, o, c)]
    kept = [slice(padding[a][0], canvas_size[a] - padding[a][1]) for a in axes]
    y = canvas[(slice(None), *kept)]
    return y if bias is None else y + bias


def max_pool(x, kernel, stride, padding, dilation):
    """The largest value that lies under the kernel and inside the input."""
    batch, *size, channels = x.shape
    starts = window_starts(size, kernel, stride, padding, dilation)
    y = np.full((batch, *map(len, starts), channels), -np.inf)
    for n, *position, c in np.ndindex(y.shape):
        start = [starts[axis][p] for axis, p in enumerate(position)]
        for tap in np.ndindex(*kernel):
            index = tap_index(start, dilation, tap)
            if is_inside(index, size) and x[(n, *index, c)] > y[(n, *position, c)]:
                y[(n, *position, c)] = x[(n, *index, c)]
    return y


def upsample(x, factor):
    """Every voxel repeated factor times along each axis."""
    batch, *size, channels = x.shape
    y = np.zeros((batch, *(f * n for f, n in zip(factor, size, strict=True)), channels))
    for n, *position, c in np.ndindex(y.shape):
        source = (p // f for p, f in zip(position, factor, strict=True))
        y[(n, *position, c)] = x[(n, *source, c)]
    return y
