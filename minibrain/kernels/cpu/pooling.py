"""Max-pool over blocks of 2 voxels per axis, its way back up, and concatenation, plane by plane."""

import numpy as np

from minibrain.duck_arrays import Joined
from minibrain.geometry import conv_geometry
from minibrain.kernels import takes
from minibrain.kernels.cpu.buffers import empty
from minibrain.kernels.cpu.reduce import as_volume
from minibrain.kernels.cpu.threads import each, scratch
from minibrain.saved import ConcatSaved, MaxPoolSaved, UpsampleSaved


def max_pool_forward(x, kernel_size=2, *, stride=None, padding=0, dilation=1):
    if x.dtype != np.float32 or x.ndim not in (4, 5):
        return NotImplemented
    stride = kernel_size if stride is None else stride
    geometry = conv_geometry(x.shape[1:-1], kernel_size, stride, padding, dilation)
    if not _halves(geometry):
        return NotImplemented
    shape = (len(x), *geometry.output_size, x.shape[-1])
    y, winner = empty(shape), np.empty(shape, np.uint8)
    values, winners, candidates = as_volume(y), as_volume(winner), _candidates(x)

    def work(plane):
        best, who = values[plane], winners[plane]
        first, *others = candidates(plane)
        best[...] = first
        who.fill(0)
        for number, candidate in enumerate(others, start=1):
            better = np.greater(candidate, best)  # of equal values the first one wins
            np.maximum(who, better * np.uint8(number), out=who)  # numbers rise: the last is kept
            np.maximum(best, candidate, out=best)

    each(work, np.ndindex(values.shape[:2]))
    return y, MaxPoolSaved(winner, geometry)


def max_pool_backward(dy, saved: MaxPoolSaved):
    winner, geometry = saved
    if dy.dtype != np.float32 or dy.ndim not in (4, 5) or dy.shape != winner.shape:
        return NotImplemented
    if not _halves(geometry):
        return NotImplemented
    dx = empty((len(dy), *geometry.input_size, dy.shape[-1]))
    upstream, winners, candidates = as_volume(dy), as_volume(winner), _candidates(dx)

    def work(plane):
        gate = scratch("gate", winners[plane].shape)
        for number, candidate in enumerate(candidates(plane)):
            np.equal(winners[plane], number, out=gate)
            np.multiply(upstream[plane], gate, out=candidate)

    each(work, np.ndindex(upstream.shape[:2]))
    return dx


def upsample_forward(x, factor=2):
    if x.dtype != np.float32 or x.ndim not in (4, 5) or factor not in (2, (2,) * (x.ndim - 2)):
        return NotImplemented
    y = empty((len(x), *(2 * n for n in x.shape[1:-1]), x.shape[-1]))
    values, copies = as_volume(x), _candidates(y)

    def work(plane):
        for copy in copies(plane):
            copy[...] = values[plane]

    each(work, np.ndindex(values.shape[:2]))
    return y, UpsampleSaved((2,) * (x.ndim - 2), y.shape)


def upsample_backward(dy, saved: UpsampleSaved):
    if dy.dtype != np.float32 or dy.ndim not in (4, 5) or dy.shape != saved.shape:
        return NotImplemented
    if set(saved.factor) != {2}:
        return NotImplemented
    dx = empty((len(dy), *(n // 2 for n in dy.shape[1:-1]), dy.shape[-1]))
    gradients, copies = as_volume(dx), _candidates(dy)

    def work(plane):
        first, second, *others = copies(plane)
        np.add(first, second, out=gradients[plane])
        for other in others:
            gradients[plane] += other

    each(work, np.ndindex(gradients.shape[:2]))
    return dx


def concat_forward(a, b):
    if a.dtype != np.float32 or b.dtype != np.float32 or a.ndim < 3 or a.shape[:-1] != b.shape[:-1]:
        return NotImplemented
    y = Joined(a, b)
    return y, ConcatSaved(a.shape[-1], y.shape)


@takes(Joined)
def concat_backward(dy, saved: ConcatSaved):
    if dy.dtype != np.float32 or dy.ndim < 3 or dy.shape != saved.shape:
        return NotImplemented
    if isinstance(dy, Joined):
        return (dy.a, dy.b) if dy.a.shape[-1] == saved.channels else NotImplemented
    da = empty((*dy.shape[:-1], saved.channels))
    db = empty((*dy.shape[:-1], dy.shape[-1] - saved.channels))

    def work(plane):
        da[plane] = dy[plane][..., : saved.channels]
        db[plane] = dy[plane][..., saved.channels :]

    each(work, _planes(dy))
    return da, db


def _planes(x):
    """An index for every plane of a volume; an image is one."""
    return np.ndindex(x.shape[: max(1, x.ndim - 3)])


def _candidates(x):
    """The views of x, one per tap in order, that belong to one plane of half its size."""
    volume = as_volume(x)
    depth = 2 if x.ndim == 5 else 1

    def of_plane(plane):
        n, d = plane
        block = volume[n, depth * d : depth * (d + 1)]
        return [block[k, i::2, j::2] for k in range(depth) for i in (0, 1) for j in (0, 1)]

    return of_plane


def _halves(geometry):
    """Windows of 2, side by side, with no voxel left over."""
    rank = len(geometry.kernel_size)
    return (
        geometry.kernel_size == geometry.stride == (2,) * rank
        and geometry.padded_size == geometry.input_size
        and all(n % 2 == 0 for n in geometry.input_size)
    )
