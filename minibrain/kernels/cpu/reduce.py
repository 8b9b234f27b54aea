"""Sums over voxels, block by block in float32 and from block to block in float64."""

import numpy as np

from minibrain.kernels.cpu.threads import each

BLOCK_VALUES = 2**16


def wide(x):
    """(..., C) -> (rows, 16·C) if that divides: longer rows for per-channel arithmetic."""
    voxels, channels = x.size // x.shape[-1], x.shape[-1]
    together = 16 if voxels % 16 == 0 else 1
    return x.reshape(voxels // together, together * channels)


def as_volume(x):
    """(N, *S, C) of rank 2 or 3 as (N, D, H, W, C), a view: an image is one plane."""
    return x if x.ndim == 5 else x[:, None]


def channel_sum(x):
    """(..., C) -> (C,). Block sums are matrix products with ones, in the order of memory."""
    rows = wide(x)
    step = max(1, BLOCK_VALUES // rows.shape[1])

    def work(start):
        block = rows[start : start + step]
        return np.ones(len(block), np.float32) @ block

    partial = np.sum(each(work, range(0, len(rows), step)), axis=0, dtype=np.float64)
    return partial.reshape(-1, x.shape[-1]).sum(axis=0).astype(x.dtype)
