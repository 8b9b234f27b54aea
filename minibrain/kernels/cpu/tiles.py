"""A convolution's volume cut into tiles, and what is done with them before and after the products.

The taps of a kernel are met in two ways. Along planes and rows a tile of outputs comes from a
minimal filter (see `winograd`), so that with three taps on both axes a quarter of the products is
left; j counts the pairs of a product along planes and one along rows:

    v[j, p, c] = Σ_{a,b} input[j, a, b] · x[d + a, h + b, p, c]
    s[j, p, o] = Σ_{k,c} v[j, p + k, c] · u[j, k, c, o],    u[j] = Σ kernel[j, a, b] · weight[a, b]
    y[d + a, h + b, p, o] = Σ_j output[a, b, j] · s[j, p, o]

Position p runs over tiles, over samples and along columns. Neighbouring rows of voxels follow each
other in p, and share the zeros of the padding. An image has no columns: its two axes are planes and
rows, and the images of a batch lie side by side. `products` does the sums in the middle.
"""

from typing import NamedTuple

import numpy as np

from minibrain.duck_arrays import Joined
from minibrain.kernels.cpu.threads import scratch
from minibrain.kernels.cpu.winograd import Filter, make_filter

BLOCK_BYTES = 2_000_000  # of v and s in one block, or twice as much as the weights need
MOST_SHARES = 8  # a batch is cut in so many blocks at least, for several threads to share,
LEAST_VOXELS = 256  # unless they would be smaller: every block adds a weight gradient of its own
LEAST_SHARE = 1 / 8  # of u beside v and s, from which on products are shared instead of blocks


class Volume(NamedTuple):
    """Samples side by side, (D, H, N, W, C). The channels may lie in two arrays (see Joined)."""

    parts: list[np.ndarray]

    @classmethod
    def of(cls, x):
        """Volumes (N, D, H, W, C) as (D, H, N, W, C), images (N, H, W, C) as (H, W, N, 1, C)."""
        parts = [x.a, x.b] if isinstance(x, Joined) else [x]
        order = (1, 2, 0, 3, *range(4, x.ndim))
        parts = [part.transpose(order) for part in parts]
        return cls(parts if x.ndim == 5 else [part[:, :, :, None] for part in parts])

    @property
    def shape(self):
        return *self.parts[0].shape[:4], sum(part.shape[4] for part in self.parts)

    def channels(self):
        """Every part with its place among all channels."""
        first = 0
        for part in self.parts:
            yield part, slice(first, first + part.shape[4])
            first += part.shape[4]

    def cut_out(self, first, size):
        """Copy a box, with zeros where it leaves the volume."""
        box = scratch("box", (*size, self.shape[4]))
        inside, source = (), ()
        for start, length, end in zip(first, size, self.shape[:4], strict=True):
            low = min(max(-start, 0), length)
            high = max(low, min(end - start, length))
            axes_before = (slice(None),) * len(inside)
            box[(*axes_before, slice(low))] = box[(*axes_before, slice(high, None))] = 0
            inside += (slice(low, high),)
            source += (slice(start + low, start + high),)
        for part, channels in self.channels():
            box[(*inside, channels)] = part[source]
        return box

    def put(self, place, values):
        """Write values to a place; what would leave the volume is left out."""
        for part, channels in self.channels():
            here = part[place]
            here[...] = values[(*map(slice, here.shape[:4]), channels)]


class Block(NamedTuple):
    """Neighbouring tiles of some samples. Where they begin is counted in tiles."""

    sample: int
    plane: int
    row: int
    samples: int  # how many
    planes: int
    rows: int


class Tiles(NamedTuple):
    """How the planes and rows of `output` are made from those of `input`."""

    input: Volume  # (D, H, N, W, C)
    output: Volume  # (D', H', N, W', O)
    taps: tuple[int, int, int]
    padding: tuple[tuple[int, int], ...]
    planes: Filter
    rows: Filter

    @classmethod
    def of(cls, x, taps, padding, y):
        if len(taps) == 2:
            taps, padding = (*taps, 1), (*padding, (0, 0))
        y = Volume.of(y)
        filters = (make_filter(k, size) for k, size in zip(taps[:2], y.shape[:2], strict=True))
        return cls(Volume.of(x), y, tuple(taps), tuple(padding), *filters)

    @property
    def products(self):
        return self.planes.products * self.rows.products

    @property
    def kernel(self):
        """(products, KD·KH): how u is made from the taps along planes and rows."""
        return np.kron(self.planes.kernel, self.rows.kernel)

    @property
    def width(self):
        """Positions in a row: the padding after it is the padding before the next one."""
        return max(self.input.shape[3] + max(self.padding[2]), self.output.shape[3])

    @property
    def all(self):
        """Every tile as one block."""
        depth, height, samples = self.output.shape[:3]
        planes, rows = -(-depth // self.planes.outputs), -(-height // self.rows.outputs)
        return Block(0, 0, 0, samples, planes, rows)

    def used(self, block):
        return block.planes * block.rows * block.samples * self.width

    def positions(self, block):
        """One more than are used for every column tap but the first, and a multiple of the taps."""
        taps = self.taps[2]
        return -(-self.used(block) // taps) * taps + taps - 1

    @property
    def weights_outweigh(self):
        """Whether the matrices u come to a share of v and s of all tiles that is worth sparing."""
        channels, features = self.input.shape[-1], self.output.shape[-1]
        matrix = self.taps[2] * channels * features
        return matrix > LEAST_SHARE * self.positions(self.all) * (channels + features)

    def blocks(self):
        """Cut all tiles into blocks, the same for any number of threads."""
        whole = self.all
        planes, rows = whole.planes, whole.rows
        images = self.taps[2] == self.output.shape[3] == 1
        samples = whole.samples if images or self.weights_outweigh else 1
        channels, (depth, height, _, width, features) = self.input.shape[4], self.output.shape
        tile_bytes = 4 * self.products * samples * self.width * (channels + features)
        most_shares = -(-MOST_SHARES * samples // whole.samples)
        shares = max(1, min(most_shares, depth * height * samples * width // LEAST_VOXELS))
        block_bytes = max(BLOCK_BYTES, 8 * self.products * self.taps[2] * channels * features)
        most = max(1, min(block_bytes // tile_bytes, planes * rows // shares))
        high = _even(rows, max(round(most**0.5), most // planes))
        deep = _even(planes, most // high)
        return [
            Block(sample, plane, row, samples, min(deep, planes - plane), min(high, rows - row))
            for sample in range(0, whole.samples, samples)
            for plane in range(0, planes, deep)
            for row in range(0, rows, high)
        ]

    def transform(self, block, v, section):
        """Write v (products, positions, C) of a block, which is a part of a section."""
        plane, row = block.plane * self.planes.outputs, block.row * self.rows.outputs
        (front, _), (top, _), (left, _) = self.padding
        depth = block.planes * self.planes.outputs + self.taps[0] - 1
        height = block.rows * self.rows.outputs + self.taps[1] - 1
        first = (plane - front, row - top, block.sample, -left)
        box = self.input.cut_out(first, (depth, height, block.samples, self.width))
        self._combine(box, block, self.planes.input, self.rows.input, v, section)

    def spread(self, block, volume, out, section):
        """What the gradient at each output contributes to each product: the adjoint of `restore`.

        volume : in the size of the output; the result is (products, positions, O)
        """
        plane, row = block.plane * self.planes.outputs, block.row * self.rows.outputs
        depth, height = block.planes * self.planes.outputs, block.rows * self.rows.outputs
        first, size = (plane, row, block.sample, 0), (depth, height, block.samples, self.width)
        box = volume.cut_out(first, size)
        self._combine(box, block, self.planes.output.T, self.rows.output.T, out, section)

    def _combine(self, box, block, along_planes, along_rows, out, section):
        """Σ_{a,b} along_planes[i, a] · along_rows[k, b] · (plane a, row b of every tile of a box),
        into the positions of products (i, k)."""
        height, line = box.shape[1], box[0, 0].size
        i = len(along_planes)
        by_plane = scratch("lines", (block.planes, i, height, line))
        steps = (self.planes.outputs * height * line, line, height * line, 1)
        tiles = view(box, (block.planes, height, along_planes.shape[1], line), steps)
        np.matmul(along_planes, tiles, out=by_plane.swapaxes(1, 2))

        steps = (i * height * line, height * line, self.rows.outputs * line, line, 1)
        shape = (block.planes, i, block.rows, along_rows.shape[1], line)
        tiles = view(by_plane, shape, steps)
        np.matmul(along_rows, tiles, out=self._by_tile(out, block, section))

    def _by_tile(self, positions, block, section):
        """(products, positions, C) of a section -> (planes, i, rows, k, samples·width·C) of a
        block of it, a view."""
        _, count, channels = positions.shape
        i, k, line = self.planes.products, self.rows.products, block.samples * self.width * channels
        steps = (section.rows * line, k * count * channels, line, count * channels, 1)
        tile = (block.plane - section.plane) * section.rows + block.row - section.row
        return view(positions, (block.planes, i, block.rows, k, line), steps, tile * line)

    def restore(self, block, s, section, bias=None):
        """Write a block of the output."""
        i = self.planes.products
        depth, height = block.planes * self.planes.outputs, block.rows * self.rows.outputs
        line = block.samples * self.width * s.shape[2]
        by_row = scratch("lines", (block.planes, i, height, line))
        out = by_row.reshape(block.planes, i, block.rows, -1, line)
        np.matmul(self.rows.output, self._by_tile(s, block, section), out=out)
        values = scratch("box", (depth, height, line))
        out = values.reshape(block.planes, -1, height, line).swapaxes(1, 2)
        np.matmul(self.planes.output, by_row.swapaxes(1, 2), out=out)
        if bias is not None:
            values += np.tile(bias, line // len(bias))

        plane, row = block.plane * self.planes.outputs, block.row * self.rows.outputs
        samples = slice(block.sample, block.sample + block.samples)
        place = (slice(plane, plane + depth), slice(row, row + height), samples)
        self.output.put(place, values.reshape(depth, height, block.samples, self.width, -1))


def _even(count, most):
    """The length of the longest of equal parts of a count, none above `most`."""
    return -(-count // -(-count // most))


def view(array, shape, steps, first=0):
    """Of contiguous float32 values; NumPy's as_strided takes ten times as long."""
    return np.ndarray(shape, np.float32, array, 4 * first, [4 * step for step in steps])
