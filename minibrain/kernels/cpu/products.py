"""The products of a convolution by tiles (see `tiles`), shared among threads in one of two ways.

Block by block, where there are many tiles: a thread takes some tiles through all they need, and
what it makes on the way stays in its cache. Every block adds a weight gradient of its own.

Product by product, where the weights outweigh the volume: first all tiles are transformed, then
every thread takes some of the products j for all tiles at once, so that their weights are read and
their gradients written once, then the outputs are put together.
"""

import numpy as np

from minibrain.kernels.cpu.threads import each, scratch
from minibrain.kernels.cpu.tiles import view

GROUP = 3  # products j that a thread takes at a time
CHUNK = 2**16  # values of a weight gradient that a thread puts together at a time


def correlate(tiles, weight, bias=None):
    """Fill tiles.output. weight : (*K, C, O)."""
    if tiles.weights_outweigh:
        v, s = _all_transformed(tiles), _section("all s", tiles, tiles.output)
        _by_product(tiles, v, s, weight)
        each(lambda block: tiles.restore(block, s, tiles.all, bias), tiles.blocks())
        return
    matrices = _all_matrices(tiles, weight)

    def work(block):
        tiles.restore(block, _multiplied(tiles, _transformed(tiles, block), matrices), block, bias)

    each(work, tiles.blocks())


def gradients(tiles, volume, shape, weight=None):
    """The gradient (*K, B, A) of a weight by whose taps `volume` (B channels) met the input of
    tiles (A channels); with the weight (*K, B, A) itself, its turned kernel also fills the output.
    """
    if not tiles.weights_outweigh:
        return _gradients_by_block(tiles, volume, shape, weight)
    v, spread = _all_transformed(tiles), _section("all s", tiles, volume)
    each(lambda block: tiles.spread(block, volume, spread, tiles.all), tiles.blocks())
    du = scratch("gradients", (tiles.products, tiles.taps[2], *shape[-2:]))
    used = tiles.used(tiles.all)
    each(lambda group: _gradient(tiles, v[group], spread[group, :used], du[group]), _groups(tiles))
    if weight is not None:
        s = _section("all s", tiles, tiles.output)  # in the place of spread
        _by_product(tiles, v, s, weight, turned=True)
        each(lambda block: tiles.restore(block, s, tiles.all), tiles.blocks())
    return _put_together(tiles.kernel.T, du, shape)


def _gradients_by_block(tiles, volume, shape, weight):
    matrices = None if weight is None else _all_matrices(tiles, weight, turned=True)
    blocks = tiles.blocks()
    parts = scratch("gradients", (len(blocks), *shape))
    to_taps = tiles.kernel.T

    def work(item):
        block, part = item
        spread = scratch("spread", (tiles.products, tiles.positions(block), volume.shape[-1]))
        tiles.spread(block, volume, spread, block)
        v = _transformed(tiles, block)
        du = scratch("s", (tiles.products, tiles.taps[2], *shape[-2:]))
        _gradient(tiles, v, spread[:, : tiles.used(block)], du)
        np.matmul(to_taps, du.reshape(tiles.products, -1), out=part.reshape(len(to_taps), -1))
        if weight is not None:
            tiles.restore(block, _multiplied(tiles, v, matrices), block)

    each(work, zip(blocks, parts, strict=True))
    return _put_together(np.ones((1, len(parts)), np.float32), parts, shape)


def _put_together(factors, parts, shape):
    """factors (taps, n) · parts (n, ...), in chunks: a weight gradient of this shape."""
    dweight = np.empty(shape, np.float32)
    sums, parts = dweight.reshape(len(factors), -1), parts.reshape(factors.shape[1], -1)

    def work(start):
        chunk = slice(start, start + CHUNK)
        sums[:, chunk] = factors @ parts[:, chunk]

    each(work, range(0, sums.shape[1], CHUNK))
    return dweight


def _section(name, tiles, volume):
    """Room for all positions: (products, positions, channels of the volume)."""
    return scratch(name, (tiles.products, tiles.positions(tiles.all), volume.shape[-1]))


def _all_transformed(tiles):
    v = _section("all v", tiles, tiles.input)
    v[:, tiles.used(tiles.all) :] = 0
    each(lambda block: tiles.transform(block, v, tiles.all), tiles.blocks())
    return v


def _transformed(tiles, block):
    v = scratch("v", (tiles.products, tiles.positions(block), tiles.input.shape[-1]))
    v[:, tiles.used(block) :] = 0
    tiles.transform(block, v, block)
    return v


def _groups(tiles):
    return [slice(start, start + GROUP) for start in range(0, tiles.products, GROUP)]


def _matrices(tiles, weight, group, turned):
    """u of a group of products: (products, K, C, O). A kernel turned around has its last tap first
    along every axis, and the channels of its input where those of its output were."""
    kernel, (*_, a, b) = tiles.kernel[group], weight.shape
    u = scratch("u", (len(kernel), tiles.taps[2], a, b))
    taps = weight.reshape(kernel.shape[1], -1)
    np.matmul(kernel[:, ::-1] if turned else kernel, taps, out=u.reshape(len(u), -1))
    return u[:, ::-1].swapaxes(-1, -2) if turned else u


def _all_matrices(tiles, weight, turned=False):
    """(products, K·C, O), to meet windows."""
    channels, features = tiles.input.shape[-1], tiles.output.shape[-1]
    matrices = scratch("matrices", (tiles.products, tiles.taps[2], channels, features))

    def work(group):
        matrices[group] = _matrices(tiles, weight, group, turned)

    each(work, _groups(tiles))
    return matrices.reshape(tiles.products, -1, features)


def _by_product(tiles, v, s, weight, turned=False):
    """s[j, p] = Σ_k v[j, p + k] · u[j, k] for all positions."""
    used = tiles.used(tiles.all)

    def work(group):
        u, out = _matrices(tiles, weight, group, turned), s[group, :used]
        np.matmul(v[group, :used], u[:, 0], out=out)
        for k in range(1, tiles.taps[2]):
            out += np.matmul(v[group, k : used + k], u[:, k], out=scratch("term", out.shape))

    each(work, _groups(tiles))


def _multiplied(tiles, v, matrices):
    """The same for a block. Along columns nothing is copied: row p of the matrix that meets u[j] is
    the K·C values of v[j] from p·C on. Rows overlap, which BLAS does not take, but every K-th of
    them do not: K products serve all."""
    taps, (products, count, channels) = tiles.taps[2], v.shape
    s = scratch("s", (products, count, matrices.shape[-1]))
    shape = (products, count // taps, taps * channels)
    steps = (count * channels, taps * channels, 1)
    for first in range(taps):
        windows = view(v, shape, steps, first * channels)
        np.matmul(windows, matrices, out=s[:, first : count - taps + 1 : taps])
    return s


def _gradient(tiles, v, spread, du):
    """du[j, k] = Σ_p spread[j, p]ᵀ · v[j, p + k]."""
    used = spread.shape[1]
    for k in range(tiles.taps[2]):
        np.matmul(spread.swapaxes(1, 2), v[:, k : used + k], out=du[:, k])
