"""Convolution with stride 1, and transposed convolution whose stride is its kernel size.

The first goes tile by tile (see `tiles` and `products`); in backward one transform of dy serves
both gradients. What is joined is read from two arrays, and its gradient written into two. Where the
stride of a transposed convolution is its kernel size nothing overlaps, and one product gives every
output voxel, to be put in its place. A kernel of size 1 goes the same way.
"""

from typing import NamedTuple

import numpy as np

from minibrain.duck_arrays import Joined
from minibrain.geometry import conv_geometry, conv_transpose_geometry
from minibrain.kernels import takes, written
from minibrain.kernels.cpu import products
from minibrain.kernels.cpu.buffers import empty
from minibrain.kernels.cpu.reduce import as_volume, channel_sum, wide
from minibrain.kernels.cpu.threads import each, scratch
from minibrain.kernels.cpu.tiles import Tiles, Volume
from minibrain.saved import ConvSaved


@takes(Joined)
def conv_forward(x, weight, bias=None, *, stride=1, padding=0, dilation=1):
    if not (_supported(x, weight) and _fit(x, weight, bias, inputs=-2, outputs=-1)):
        return NotImplemented
    geometry = conv_geometry(x.shape[1:-1], weight.shape[:-2], stride, padding, dilation)
    if not _stride_1(geometry):
        return NotImplemented
    x = _loadable(x)
    saved = ConvSaved(x, weight, geometry)
    if _pointwise(geometry):
        return _place(written(x), weight.swapaxes(-1, -2), bias, geometry), saved
    return _correlated(x, weight, bias, geometry), saved


@takes(Joined)
def conv_backward(dy, saved: ConvSaved, *, input_gradient=True):
    dy, (x, weight, geometry) = written(dy), saved
    if not (_supported(x, weight) and dy.dtype == np.float32 and _stride_1(geometry)):
        return NotImplemented
    if dy.shape != (x.shape[0], *geometry.output_size, weight.shape[-1]):
        return NotImplemented
    if any(max(p) >= k for p, k in zip(geometry.padding, geometry.kernel_size, strict=True)):
        return NotImplemented  # the correlation that gives dx would have to cut rows off dy
    x = _loadable(x)
    if _pointwise(geometry):
        dx, dweight = _take(dy, written(x), weight.swapaxes(-1, -2), geometry)
        dweight = dweight.swapaxes(-1, -2)
    elif input_gradient:
        dx, dweight = _both_gradients(x, weight, dy, geometry)
    else:
        dx, dweight = None, _weight_gradient(x, dy, geometry)
    return dx if input_gradient else None, dweight, channel_sum(dy)


def conv_transpose_forward(
    x, weight, bias=None, *, stride=1, padding=0, dilation=1, output_padding=0
):
    if not (_supported(x, weight) and _fit(x, weight, bias, inputs=-1, outputs=-2)):
        return NotImplemented
    geometry = conv_transpose_geometry(
        x.shape[1:-1], weight.shape[:-2], stride, padding, dilation, output_padding
    )
    if not _apart(geometry):
        return NotImplemented
    return _place(x, weight, bias, geometry), ConvSaved(x, weight, geometry)


def conv_transpose_backward(dy, saved: ConvSaved, *, input_gradient=True):
    x, weight, geometry = saved
    if not (_supported(x, weight) and dy.dtype == np.float32 and _apart(geometry)):
        return NotImplemented
    if dy.shape != (x.shape[0], *geometry.input_size, weight.shape[-2]):
        return NotImplemented
    dx, dweight = _take(dy, x, weight, geometry)
    return dx if input_gradient else None, dweight, channel_sum(dy)


def _place(x, weight, bias, geometry):
    """Put x[voxel] · weight[tap] at its own place of the output, for every voxel and tap."""
    size = [n * k for n, k in zip(x.shape[1:-1], geometry.kernel_size, strict=True)]
    y = empty((x.shape[0], *size, weight.shape[-2]))
    planes, places = as_volume(x), _Places.of(y, geometry.kernel_size)
    matrix = np.ascontiguousarray(weight.reshape(-1, weight.shape[-1]).T)

    def work(plane):
        voxels = planes[plane].reshape(-1, len(matrix))
        product = scratch("product", (len(voxels), matrix.shape[1]))
        np.matmul(voxels, matrix, out=product)
        if bias is not None:
            rows = wide(product)
            rows += np.tile(bias, rows.shape[1] // len(bias))
        places.put(plane, product)

    each(work, np.ndindex(planes.shape[:2]))
    return y


def _take(dy, x, weight, geometry):
    """The gradients of that: (dx, dweight)."""
    dy, dx = np.ascontiguousarray(dy), empty(x.shape)
    planes, dplanes = as_volume(x), as_volume(dx)
    places = _Places.of(dy, geometry.kernel_size)
    matrix = np.ascontiguousarray(weight.reshape(-1, weight.shape[-1]))

    def work(plane):
        voxels = planes[plane].reshape(-1, matrix.shape[1])
        taken = places.take(plane, scratch("product", (len(voxels), len(matrix))))
        np.matmul(taken, matrix, out=dplanes[plane].reshape(voxels.shape))
        return taken.T @ voxels

    return dx, sum(each(work, np.ndindex(planes.shape[:2]))).reshape(weight.shape)


class _Places(NamedTuple):
    """Where the ∏K output voxels of every input voxel lie, when kernels do not overlap."""

    volume: np.ndarray  # (N, D, KD, H, KH, W, KW, O), a view

    @classmethod
    def of(cls, y, kernel):
        y = as_volume(y)
        kernel = kernel if len(kernel) == 3 else (1, *kernel)
        pairs = [m for n, k in zip(y.shape[1:4], kernel, strict=True) for m in (n // k, k)]
        return cls(y.reshape(len(y), *pairs, y.shape[-1]))

    def _plane(self, plane):
        """(H, W, KD, KH, KW, O) view of the output of one input plane (n, d)."""
        return self.volume[plane].transpose(1, 3, 0, 2, 4, 5)

    def put(self, plane, matrix):
        voxels = self._plane(plane)
        voxels[...] = matrix.reshape(voxels.shape)

    def take(self, plane, out):
        voxels = self._plane(plane)
        out.reshape(voxels.shape)[...] = voxels
        return out


def _loadable(x):
    """What is joined is read from its two arrays; what is pending in it is written before."""
    return Joined(written(x.a), written(x.b)) if isinstance(x, Joined) else x


def _correlated(x, weight, bias, geometry):
    y = empty((x.shape[0], *geometry.output_size, weight.shape[-1]))
    tiles = Tiles.of(x, geometry.kernel_size, geometry.padding, y)
    products.correlate(tiles, weight, bias)
    return y


def _both_gradients(x, weight, dy, geometry):
    """dx is the correlation of dy with the kernel turned around; dweight uses its transform."""
    taps = geometry.kernel_size
    padding = [(k - 1 - b, k - 1 - a) for k, (b, a) in zip(taps, geometry.padding, strict=True)]
    dx = Joined(empty(x.a.shape), empty(x.b.shape)) if isinstance(x, Joined) else empty(x.shape)
    tiles = Tiles.of(dy, taps, padding, dx)
    dweight = products.gradients(tiles, Volume.of(x), weight.shape, weight)
    return dx, np.flip(dweight, axis=tuple(range(len(taps))))


def _weight_gradient(x, dy, geometry):
    """Without dx it is x that is transformed: the first layer has few channels."""
    tiles = Tiles.of(x, geometry.kernel_size, geometry.padding, dy)
    shape = (*geometry.kernel_size, dy.shape[-1], x.shape[-1])
    return products.gradients(tiles, tiles.output, shape).swapaxes(-1, -2)


def _supported(x, weight):
    return x.dtype == weight.dtype == np.float32 and x.ndim in (4, 5)


def _fit(x, weight, bias, inputs, outputs):
    """Whether the channels agree; what does not fit is left to the reference, which says why."""
    if weight.ndim != x.ndim or 0 in x.shape or 0 in weight.shape:
        return False
    fits = bias is None or bias.shape == (weight.shape[outputs],)
    return fits and x.shape[-1] == weight.shape[inputs]


def _stride_1(geometry):
    return all(s == d == 1 for s, d in zip(geometry.stride, geometry.dilation, strict=True))


def _pointwise(geometry):
    """Kernel size 1 without padding: a transposed convolution as well."""
    return set(geometry.kernel_size) == {1} and geometry.padded_size == geometry.input_size


def _apart(geometry):
    """Kernels tile the output: stride = kernel size, nothing cut off, nothing added."""
    tiled = tuple(n * k for n, k in zip(geometry.output_size, geometry.kernel_size, strict=True))
    whole = geometry.padded_size == geometry.input_size == tiled
    return whole and geometry.stride == geometry.kernel_size
