"""Unfolding a volume plane by plane, in blocks that stay in a core's cache.

Unfolding copies each voxel's neighbourhood beside it, so that a convolution is a matrix product;
over all axes that would be ∏K times the input. Here only the kernel's rows and columns are
unfolded, and the product with the weights of all kernel planes at once gives each input plane's
share in every output plane it reaches:

    share[d, h, w, (kd, o)] = Σ_{kh,kw,c} x[d, h + kh, w + kw, c] · weight[kd, kh, kw, c, o]
    y[t] = Σ_kd share[d = t + kd − padding, kd]

A 2D image is a volume of one plane.
"""

from typing import NamedTuple

import numpy as np

from minibrain.kernels.cpu.threads import scratch

BLOCK_BYTES = 3_000_000  # of unfolded planes: measured best between 0.5 and 5 MB
MOST_SHARES = 4  # a sample is cut in so many blocks at least, for several threads to share,
LEAST_VOXELS = 512  # unless they would be smaller: every block adds a weight gradient of its own


def as_volume(x):
    """(N, *S, C) of rank 2 or 3 as (N, D, H, W, C), a view."""
    return x if x.ndim == 5 else x[:, None]


class Block(NamedTuple):
    n: int
    rows: slice  # of the output


class Sweep(NamedTuple):
    """One pass over the planes of `input`, giving shares to, or taking from, those of `output`."""

    input: np.ndarray  # (N, D, H, W, C)
    output: np.ndarray  # (N, T, H', W', O)
    taps: tuple[int, int, int]
    padding: tuple[tuple[int, int], ...]

    @classmethod
    def over(cls, x, taps, padding, y):
        if len(taps) == 2:
            taps, padding = (1, *taps), ((0, 0), *padding)
        return cls(as_volume(x), as_volume(y), tuple(taps), tuple(padding))

    @property
    def kernel_depth(self):
        return self.taps[0]

    @property
    def kernel_rows(self):
        return self.taps[1] * self.taps[2] * self.input.shape[-1]

    def matrix(self, weight):
        """(KD, KH, KW, C, O) -> (KH·KW·C, KD·O)."""
        weight = weight.reshape(*self.taps, *weight.shape[-2:])
        return np.ascontiguousarray(np.moveaxis(weight, 0, 3).reshape(self.kernel_rows, -1))

    def kernel(self, matrix, shape):
        """The inverse of `matrix`, in the shape of a weight."""
        by_plane = matrix.reshape(*self.taps[1:], shape[-2], self.kernel_depth, shape[-1])
        return np.moveaxis(by_plane, 3, 0).reshape(shape)

    def blocks(self):
        n, depth, height, width, _ = self.output.shape
        fitting = BLOCK_BYTES // (4 * width * self.kernel_rows)
        shares = max(1, min(MOST_SHARES, depth * height * width // LEAST_VOXELS))
        rows = max(1, min(fitting, -(-height // shares)))
        return [
            Block(i, slice(r, min(r + rows, height)))
            for i in range(n)
            for r in range(0, height, rows)
        ]

    def unfolded(self, block):
        """Yield (planes, patches): a slice of input planes, and for every output position in the
        block's rows of each the (KH, KW, C) values under the kernel, as rows of a matrix."""
        width, depth = self.output.shape[3], self.input.shape[1]
        rows = block.rows.stop - block.rows.start
        step = max(1, BLOCK_BYTES // (4 * rows * width * self.kernel_rows))
        for start in range(0, depth, step):
            planes = slice(start, min(start + step, depth))
            frame = self._framed(block, planes)
            *steps, unit = frame.strides
            shape = (len(frame), rows, width, *self.taps[1:], frame.shape[-1])
            windows = np.lib.stride_tricks.as_strided(frame, shape, (*steps, *steps[1:], unit))
            patches = scratch("patches", shape)
            np.copyto(patches, windows)
            yield planes, patches.reshape(-1, self.kernel_rows)

    def _framed(self, block, planes):
        """Copy the input rows that a block's kernels meet, with the padding as zeros."""
        _, _, height, width, channels = self.input.shape
        (top, _), (left, right) = self.padding[1:]
        first, last = block.rows.start - top, block.rows.stop - top + self.taps[1] - 1
        count = planes.stop - planes.start
        frame = scratch("frame", (count, last - first, left + width + right, channels))
        low, high = min(max(first, 0), height), max(min(last, height), 0)
        frame[:, : low - first] = frame[:, max(high, low) - first :] = 0
        frame[:, :, :left] = frame[:, :, left + width :] = 0
        inside = frame[:, low - first : max(high, low) - first, left : left + width]
        inside[...] = self.input[block.n, planes, low : max(high, low)]
        return frame

    def clear(self, block):
        """Set to 0 the output planes that kd = 0 does not reach; add_shares sets all others."""
        before, reached = self.padding[0][0], self.padding[0][0] + self.input.shape[1]
        self.output[block.n, :before, block.rows] = 0
        self.output[block.n, reached:, block.rows] = 0

    def add_shares(self, block, planes, patches, matrix):
        """y[t] += share of input plane d in it, for every plane that d reaches.

        Planes come in order, so the share through kd = 0 is the first that an output plane gets.
        """
        shares = scratch("shares", (len(patches), matrix.shape[1]))
        np.matmul(patches, matrix, out=shares)
        shares = self._by_plane(shares, block, planes)
        for kd, d, t in self._meetings(planes):
            rows = self.output[block.n, t, block.rows]
            if kd == 0:
                rows[...] = shares[d, :, :, kd]
            else:
                rows += shares[d, :, :, kd]

    def gathered(self, block, planes, volume):
        """The adjoint of that: the planes t of a volume like the output, laid beside each d."""
        positions = (planes.stop - planes.start) * (block.rows.stop - block.rows.start)
        shape = (positions * self.output.shape[3], self.kernel_depth * volume.shape[-1])
        beside = scratch("gathered", shape)
        by_plane = self._by_plane(beside, block, planes)
        if self.kernel_depth > 1:
            beside.fill(0)
        for kd, d, t in self._meetings(planes):
            by_plane[d, :, :, kd] = volume[block.n, t, block.rows]
        return beside

    def _by_plane(self, matrix, block, planes):
        count, rows = planes.stop - planes.start, block.rows.stop - block.rows.start
        return matrix.reshape(count, rows, self.output.shape[3], self.kernel_depth, -1)

    def _meetings(self, planes):
        """(kd, slice of d within planes, slice of t): where t = d − kd + padding exists."""
        for kd in range(self.kernel_depth):
            shift = self.padding[0][0] - kd
            low = max(planes.start, -shift)
            high = min(planes.stop, self.output.shape[1] - shift)
            if low < high:
                d = slice(low - planes.start, high - planes.start)
                yield kd, d, slice(low + shift, high + shift)
