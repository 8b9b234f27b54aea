"""Convolution tile by tile, as a few large matrix products that stay in a core's cache.

The taps of a kernel are met in two ways. Along planes and rows a tile of outputs comes from a
minimal filter (see `winograd`), so that with three taps on both axes a quarter of the products is
left; j counts the pairs of a product along planes and one along rows:

    v[j, p, c] = Σ_{a,b} input[j, a, b] · x[d + a, h + b, p, c]
    s[j, p, o] = Σ_{k,c} v[j, p + k, c] · u[j, k, c, o],    u[j] = Σ kernel[j, a, b] · weight[a, b]
    y[d + a, h + b, p, o] = Σ_j output[a, b, j] · s[j, p, o]

Along columns nothing is copied. Row p of the matrix that meets u[j] is the K·C values of v[j] from
p·C on; rows overlap, which BLAS does not take, but every K-th of them do not: K products serve all.
Neighbouring rows of voxels follow each other in p, and share the zeros of the padding.

A 2D image is a volume of one plane.
"""

from typing import NamedTuple

import numpy as np

from minibrain.kernels.cpu.threads import scratch
from minibrain.kernels.cpu.winograd import Filter, make_filter

BLOCK_BYTES = 2_000_000  # of v and s in one block, or twice as much as the weights need
MOST_SHARES = 8  # a batch is cut in so many blocks at least, for several threads to share,
LEAST_VOXELS = 256  # unless they would be smaller: every block adds a weight gradient of its own


def as_volume(x):
    """(N, *S, C) of rank 2 or 3 as (N, D, H, W, C), a view."""
    return x if x.ndim == 5 else x[:, None]


def side_by_side(x):
    """Volumes as they are; images (N, H, W, C) as one volume (1, H, W, N, C), a view."""
    return x if x.ndim == 5 else x.transpose(1, 2, 0, 3)[None]


class Block(NamedTuple):
    """Neighbouring tiles of one sample."""

    n: int
    plane: int  # where they begin, counted in tiles
    row: int
    planes: int  # how many
    rows: int


class Tiles(NamedTuple):
    """How the planes and rows of `output` are made from those of `input`."""

    input: np.ndarray  # (N, D, H, W, C)
    output: np.ndarray  # (N, T, H', W', O)
    taps: tuple[int, int, int]
    padding: tuple[tuple[int, int], ...]
    planes: Filter
    rows: Filter

    @classmethod
    def of(cls, x, taps, padding, y):
        if len(taps) == 2:
            taps, padding = (*taps, 1), (*padding, (0, 0))
        y = side_by_side(y)
        filters = (make_filter(k, size) for k, size in zip(taps[:2], y.shape[1:3], strict=True))
        return cls(side_by_side(x), y, tuple(taps), tuple(padding), *filters)

    @property
    def products(self):
        return self.planes.products * self.rows.products

    @property
    def width(self):
        """Positions in a row: the padding after it is the padding before the next one."""
        return max(self.input.shape[3] + max(self.padding[2]), self.output.shape[3])

    def matrices(self, weight):
        """u from the weight (*K, C, O): (products, K·C, O), in a buffer of the calling thread."""
        channels, features = weight.shape[-2:]
        u = scratch("u", (self.products, self.taps[2] * channels, features))
        taps = weight.reshape(self.taps[0] * self.taps[1], -1)
        np.matmul(self._kernel(), taps, out=u.reshape(self.products, -1))
        return u

    def _kernel(self):
        """(products, KD·KH): how u is made from the taps along planes and rows."""
        return np.kron(self.planes.kernel, self.rows.kernel)

    def blocks(self):
        """Cut the tiles of every sample into blocks, the same for any number of threads."""
        channels = self.input.shape[4]
        _, depth, height, width, features = self.output.shape
        planes, rows = -(-depth // self.planes.outputs), -(-height // self.rows.outputs)
        tile_bytes = 4 * self.products * self.width * (channels + features)
        most_shares = -(-MOST_SHARES // len(self.output))
        shares = max(1, min(most_shares, depth * height * width // LEAST_VOXELS))
        block_bytes = max(BLOCK_BYTES, 8 * self.products * self.taps[2] * channels * features)
        most = max(1, min(block_bytes // tile_bytes, planes * rows // shares))
        high = _even(rows, max(round(most**0.5), most // planes))  # an image is one plane
        deep = _even(planes, most // high)
        return [
            Block(n, plane, row, min(deep, planes - plane), min(high, rows - row))
            for n in range(len(self.output))
            for plane in range(0, planes, deep)
            for row in range(0, rows, high)
        ]

    def transformed(self, block):
        """v of a block: (products, positions, C)."""
        plane, row = block.plane * self.planes.outputs, block.row * self.rows.outputs
        (front, _), (top, _), (left, _) = self.padding
        depth = block.planes * self.planes.outputs + self.taps[0] - 1
        height = block.rows * self.rows.outputs + self.taps[1] - 1
        first = (plane - front, row - top, -left)
        box = _cut_out(self.input[block.n], first, (depth, height, self.width))
        return self._combined("v", box, block, self.planes.input, self.rows.input)

    def spread(self, block, volume):
        """What the gradient at each output contributes to each product: the adjoint of `restore`.

        volume : in the size of the output; the result is (products, positions, O)
        """
        plane, row = block.plane * self.planes.outputs, block.row * self.rows.outputs
        size = (block.planes * self.planes.outputs, block.rows * self.rows.outputs, self.width)
        box = _cut_out(volume[block.n], (plane, row, 0), size)
        return self._combined("spread", box, block, self.planes.output.T, self.rows.output.T)

    def _combined(self, name, box, block, along_planes, along_rows):
        """Σ_{a,b} along_planes[i, a] · along_rows[k, b] · (plane a, row b of every tile of a box),
        as (products (i, k), positions, C), the last positions zeros."""
        _, height, width, channels = box.shape
        line = width * channels
        i, k = len(along_planes), len(along_rows)
        by_plane = scratch("by_plane", (block.planes, i, height, line))
        steps = (self.planes.outputs * height * line, line, height * line, 1)
        tiles = _view(box, (block.planes, height, along_planes.shape[1], line), steps)
        np.matmul(along_planes, tiles, out=by_plane.swapaxes(1, 2))

        used, taps = block.planes * block.rows * width, self.taps[2]
        combined = scratch(name, (i * k, -(-used // taps) * taps + taps - 1, channels))
        combined[:, used:] = 0
        steps = (i * height * line, height * line, self.rows.outputs * line, line, 1)
        shape = (block.planes, i, block.rows, along_rows.shape[1], line)
        tiles = _view(by_plane, shape, steps)
        np.matmul(along_rows, tiles, out=self._by_tile(combined, block, i, k))
        return combined

    def _by_tile(self, positions, block, i, k):
        """(products, positions, C) -> (planes, i, rows, k, width·C), a view."""
        _, count, channels = positions.shape
        line = self.width * channels
        shape = (block.planes, i, block.rows, k, line)
        steps = (block.rows * line, k * count * channels, line, count * channels, 1)
        return _view(positions, shape, steps)

    def multiplied(self, v, matrices):
        """s: (products, positions, O)."""
        s = scratch("s", (*v.shape[:2], matrices.shape[-1]))
        taps, (products, count, channels) = self.taps[2], v.shape
        shape, steps = (
            (products, count // taps, taps * channels),
            (count * channels, taps * channels, 1),
        )
        for first in range(taps):
            windows = _view(v, shape, steps, first * channels)
            np.matmul(windows, matrices, out=s[:, first : count - taps + 1 : taps])
        return s

    def gradient(self, v, spread, dweight):
        """Of the weight, Σ_p spread[j, p, o] · v[j, p + k, c], into dweight (*K, O, C)."""
        taps, count = self.taps[2], v.shape[1] - self.taps[2] + 1
        du = scratch("du", (self.products, taps, spread.shape[2], v.shape[2]))
        for k in range(taps):
            np.matmul(spread[:, :count].swapaxes(1, 2), v[:, k : k + count], out=du[:, k])
        by_tap = dweight.reshape(self.taps[0] * self.taps[1], -1)
        np.matmul(self._kernel().T, du.reshape(self.products, -1), out=by_tap)

    def restore(self, block, s, bias=None):
        """Write a block of the output."""
        i, k = self.planes.products, self.rows.products
        depth, height = block.planes * self.planes.outputs, block.rows * self.rows.outputs
        line = self.width * s.shape[2]
        by_row = scratch("by_row", (block.planes, i, height, line))
        out = by_row.reshape(block.planes, i, block.rows, -1, line)
        np.matmul(self.rows.output, self._by_tile(s, block, i, k), out=out)
        values = scratch("values", (depth, height, line))
        out = values.reshape(block.planes, -1, height, line).swapaxes(1, 2)
        np.matmul(self.planes.output, by_row.swapaxes(1, 2), out=out)

        plane, row = block.plane * self.planes.outputs, block.row * self.rows.outputs
        part = self.output[block.n, plane : plane + depth, row : row + height]
        if bias is not None:
            values += np.tile(bias, self.width)
        values = values.reshape(depth, height, self.width, -1)
        part[...] = values[: part.shape[0], : part.shape[1], : part.shape[2]]


def _even(count, most):
    """The length of the longest of equal parts of a count, none above `most`."""
    return -(-count // -(-count // most))


def _view(array, shape, steps, first=0):
    """Of contiguous float32 values; NumPy's as_strided takes ten times as long."""
    return np.ndarray(shape, np.float32, array, 4 * first, [4 * step for step in steps])


def _cut_out(volume, first, size):
    """Copy a box of a volume (D, H, W, C), with zeros where it leaves it."""
    box = scratch("box", (*size, volume.shape[-1]))
    inside, source = (), ()
    for start, length, end in zip(first, size, volume.shape[:3], strict=True):
        low = min(max(-start, 0), length)
        high = max(low, min(end - start, length))
        axes_before = (slice(None),) * len(inside)
        box[(*axes_before, slice(low))] = box[(*axes_before, slice(high, None))] = 0
        inside, source = (*inside, slice(low, high)), (*source, slice(start + low, start + high))
    box[inside] = volume[source]
    return box
