"""Noise; see augment.cu."""

import numpy as np

from minibrain.kernels.cuda import loader
from minibrain.kernels.cuda.arguments import THREADS, blocks_for, ceil_divide


def add_noise_inplace(image, std, *, seed, epoch, index):
    if image.dtype != np.float32 or not image.flags.c_contiguous or not image.size:
        return NotImplemented
    grid = blocks_for(ceil_divide(image.size, 8))
    arguments = [image, image.size, float(std), seed, epoch, index]
    loader.launch("augment.add_noise", grid, (THREADS,), arguments)
    return None
