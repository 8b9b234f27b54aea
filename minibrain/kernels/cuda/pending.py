"""Activations that are not written yet, as kernels take them; see saved.Pending."""

import numpy as np

from minibrain.arrays import array_module
from minibrain.kernels.cuda import loader
from minibrain.kernels.cuda.arguments import THREADS, blocks_for, contiguous, packed_dropout
from minibrain.saved import DropoutSaved, NormSaved, Pending


def pending_norm(norm: NormSaved, beta, dropout: DropoutSaved) -> Pending:
    """What is normalised, and goes through ReLU and dropout."""
    x, gamma, mean, _, inv_std, _ = norm
    lines = array_module(x).empty((*mean.shape, 3), np.float32)
    arguments = [mean, inv_std, gamma, *contiguous(beta), lines, mean.size, x.shape[-1]]
    loader.launch("normalization.make_lines", blocks_for(mean.size), (THREADS,), arguments)
    return Pending(x, lines, dropout)


def write(pending: Pending):
    """The activation as an array."""
    raw, lines, dropout = pending_arguments(pending)
    width, voxels = in_one_go(raw), raw[0].size // raw.shape[-1]
    y = array_module(raw).empty(raw.shape, raw.dtype)
    arguments = [raw, lines, dropout, y, raw.size, voxels, raw.shape[-1]]
    kernel = f"normalization.write_pending_{width}"
    loader.launch(kernel, blocks_for(raw.size // width), (THREADS,), arguments)
    return y


def pending_arguments(x):
    """[array, lines, dropout] of an array or a Pending; an array has no lines."""
    if isinstance(x, Pending):
        return [*contiguous(x.raw, x.lines), packed_dropout(x.dropout)]
    return [*contiguous(x), None, packed_dropout(DropoutSaved(0.0, (0, 0, 0)))]


def in_one_go(x) -> int:
    """How many channels of a voxel a thread takes."""
    return 1 if x.shape[-1] % 8 else 8
