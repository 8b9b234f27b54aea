"""Augmentation: a random flip along each spatial axis, then Gaussian noise on every voxel.

The random numbers are keyed by (seed, epoch, index of the sample). They depend neither on the
order in which samples are drawn nor on the thread that draws them.
"""

import numpy as np

from minibrain.arrays import like
from minibrain.kernels import fast_twin

NOISE_STD = 0.02  # in prepared intensities: min-max spans [0, 1]
AT_ONCE = 2**15  # values, which stay in a core's cache


def flip(
    image: np.ndarray, label: np.ndarray, *, seed: int, epoch: int, index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Image (*S, C) and label (*S,) flipped alike, each axis of S in half of all samples; views."""
    random = np.random.default_rng([seed, epoch, index])
    axes = tuple(np.flatnonzero(random.random(label.ndim) < 0.5))
    return np.flip(image, axes), np.flip(label, axes)


@fast_twin
def add_noise_inplace(image, std: float, *, seed: int, epoch: int, index: int) -> None:
    """Add to every value of an image a normal number with mean 0, on the device where it lies.

    Numbers 2i and 2i + 1 are made of two uniform ones, u and v, the low and the high half of word i
    of NumPy's Philox4x64-10, of which each gives its upper 24 bits:

        r = std √(−2 ln(1 − u)),    r cos 2πv    and    r sin 2πv

    Parameters
    ----------
    image : (*S, C) float32, S of one axis or more
    std : their standard deviation
    seed, epoch, index : what the numbers are keyed by, each >= 0 and below 2^64

    References
    ----------
    Box & Muller, Annals of Mathematical Statistics 29 (1958); Salmon et al., "Parallel random
    numbers: as easy as 1, 2, 3", SC 2011
    """
    key, counter = np.array([seed, index], np.uint64), np.array([0, 0, 0, epoch], np.uint64)
    random = np.random.Generator(np.random.Philox(key=key, counter=counter))
    rows = 2 * max(1, AT_ONCE // 2 // image[0].size)  # an even number of values, but at the end
    for first in range(0, len(image), rows):
        part = image[first : first + rows]
        u, v = random.random((-(-part.size // 2), 2), np.float32).T
        radius, angle = np.sqrt(-2 * std**2 * np.log(1 - u)), np.float32(2 * np.pi) * v
        noise = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        part += like(noise.ravel()[: part.size].reshape(part.shape), part)
