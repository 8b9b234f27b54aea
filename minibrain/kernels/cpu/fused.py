"""Instance norm, ReLU and dropout in two passes over memory, forward as backward.

The first pass takes sums of every block, the second applies a line per channel. A block's sum of
squares is taken about the block's own mean, what that lost when it was rounded is summed up beside
it, and the blocks are put together in float64, so that neither a large mean nor an outlier costs
precision (Chan, Golub & LeVeque 1979).

Moves, in floats per voxel and channel: forward reads x twice and writes y; backward reads dy, y
and x, writes dx, and reads and writes x and dx again. Each block writes its own rows.
"""

from typing import NamedTuple

import numpy as np

from minibrain.kernels.cpu.activation import keep_factor
from minibrain.kernels.cpu.buffers import empty
from minibrain.kernels.cpu.reduce import wide
from minibrain.kernels.cpu.threads import each, scratch
from minibrain.saved import DropoutSaved, NormReluSaved, NormSaved

BLOCK_VALUES = 2**18  # smaller blocks lose more to calls than they gain in cache


def norm_relu_forward(x, gamma, beta, *, eps=1e-5, rate=0.0, key=(0, 0, 0)):
    if not _supported(x, gamma, beta) or not 0 <= rate < 1:
        return NotImplemented
    blocks = _Blocks.of(x)
    mean, variance = _statistics(blocks)
    if not np.isfinite(variance).all():
        return NotImplemented  # the reference's sums of squares are float64 and hold more
    inv_std = 1 / np.sqrt(variance + np.float32(eps))
    y = empty(x.shape)
    outputs = _Blocks.of(y)
    beta = np.broadcast_to(beta, mean.shape)
    lines = [blocks.tiled(line) for line in (mean, inv_std * gamma, beta)]

    dropout = DropoutSaved(rate, key, x.shape)

    def work(block):
        centre, scale, shift = (line[block.n] for line in lines)
        out = outputs[block]
        np.subtract(blocks[block], centre, out=out)
        out *= scale
        out += shift
        np.maximum(out, 0, out=out)
        if rate:
            out *= keep_factor(dropout, blocks.in_memory(block)).reshape(out.shape)

    each(work, blocks.all())
    axes = tuple(range(1, x.ndim - 1))
    mean, variance, inv_std = (np.expand_dims(line, axes) for line in (mean, variance, inv_std))
    return y, NormReluSaved(NormSaved(x, gamma, mean, variance, inv_std, axes), y, dropout)


def norm_relu_backward(dy, saved: NormReluSaved):
    (x, gamma, mean, _, inv_std, axes), y, dropout = saved
    if not _supported(x, gamma, gamma) or dy.dtype != np.float32 or dy.shape != x.shape:
        return NotImplemented
    if not inv_std.all():
        return NotImplemented  # the variance is infinite
    dy = np.ascontiguousarray(dy)
    dx = empty(x.shape)
    mean, inv_std = (np.squeeze(line, axes).astype(np.float64) for line in (mean, inv_std))
    inputs, outputs, upstream, gradients = (_Blocks.of(array) for array in (x, y, dy, dx))
    centre = inputs.tiled(mean)

    def gate(block):
        """dx ← dy where y > 0, and its sums alone and against x − mean."""
        g, product = gradients[block], scratch("product", gradients[block].shape)
        # a float's bits times 0 or 1 as an integer: a NaN at a closed ReLU becomes 0 too
        np.multiply(upstream[block].view(np.int32), outputs[block] > 0, out=g.view(np.int32))
        if dropout.rate:
            g *= np.float32(dropout.scale)
        np.subtract(inputs[block], centre[block.n], out=product)
        product *= g
        return _row_sum(g), _row_sum(product)

    sums = inputs.per_sample(each(gate, inputs.all()))
    dbeta, dgamma = sums[:, 0], sums[:, 1] * inv_std
    # dx = γ/σ · (g − Σg/count − x̂ · Σgx̂/count): a line in g and x for every channel
    count = x[0].size // x.shape[-1]
    slope = gamma * inv_std
    toward_x = -slope * inv_std * dgamma / count
    constant = -slope * dbeta / count - toward_x * mean
    lines = [inputs.tiled(line) for line in (slope, toward_x, constant)]

    def line(block):
        slope, toward_x, constant = (line[block.n] for line in lines)
        g, part = gradients[block], scratch("product", gradients[block].shape)
        np.multiply(inputs[block], toward_x, out=part)
        part += constant
        g *= slope
        g += part

    each(line, inputs.all())
    return dx, dgamma.sum(axis=0).astype(x.dtype), dbeta.sum(axis=0).astype(x.dtype)


def _statistics(blocks):
    """(N, C) mean and variance of every sample and channel, in float32; the latter is infinite or
    NaN where a sum overflows."""

    def work(block):
        values = blocks[block]
        centred = scratch("centred", values.shape)
        np.subtract(values, values[0], out=centred)  # exact zeros where a channel is constant
        mean = values[0] + _row_sum(centred) / np.float32(len(values))
        np.subtract(values, mean, out=centred)
        residue = _row_sum(centred)
        centred *= centred
        with np.errstate(over="ignore"):  # what overflows is left to the reference
            squares = _row_sum(centred)
        return mean, residue, squares, np.full_like(mean, len(values))

    parts = np.array(each(work, blocks.all()), np.float64)
    parts = parts.reshape(blocks.samples, -1, 4, blocks.together, blocks.channels)
    means, residues, squares, counts = np.moveaxis(parts, 2, 0)
    means, squares = means + residues / counts, squares - residues**2 / counts
    count = counts.sum(axis=(1, 2))
    first = means[:, :1, :1]
    mean = first[:, 0, 0] + (counts * (means - first)).sum(axis=(1, 2)) / count
    apart = counts * (means - mean[:, None, None]) ** 2
    variance = (squares + apart).sum(axis=(1, 2)) / count
    return mean.astype(np.float32), variance.astype(np.float32)


class _Block(NamedTuple):
    n: int
    rows: slice


class _Blocks(NamedTuple):
    """An array (N, *S, C) as samples of wide rows, and the blocks of rows that fit a cache."""

    rows: np.ndarray  # (N, rows, together·C)
    samples: int
    together: int  # voxels in a row
    channels: int

    @classmethod
    def of(cls, x):
        n, c = len(x), x.shape[-1]
        row = wide(x[0]).shape[1]
        return cls(x.reshape(n, -1, row), n, row // c, c)

    def __getitem__(self, block):
        return self.rows[block.n, block.rows]

    def all(self):
        height, step = self.rows.shape[1], max(1, BLOCK_VALUES // self.rows.shape[2])
        return [
            _Block(n, slice(start, start + step))
            for n in range(self.samples)
            for start in range(0, height, step)
        ]

    def in_memory(self, block):
        """Where the block's values lie among all values; its rows must not go past the end."""
        row, first = self.rows.shape[2], block.n * self.rows.shape[1]
        last = min(block.rows.stop, self.rows.shape[1])
        return slice((first + block.rows.start) * row, (first + last) * row)

    def tiled(self, line):
        """(N, C) -> (N, together·C) float32, to be combined with rows; without negative zeros."""
        return np.tile(line, self.together).astype(np.float32) + np.float32(0)

    def per_sample(self, sums):
        """Row sums of all blocks -> (N, kinds of sum, C) float64."""
        sums = np.array(sums, np.float64)
        kinds = sums.shape[1]
        return sums.reshape(self.samples, -1, kinds, self.together, self.channels).sum(axis=(1, 3))


def _row_sum(block):
    return np.ones(len(block), np.float32) @ block


def _supported(x, gamma, beta):
    channels = x.shape[-1:]
    if not (x.dtype == gamma.dtype == beta.dtype == np.float32 and x.flags.c_contiguous):
        return False
    return gamma.shape == beta.shape == channels and x[0].size > channels[0]
