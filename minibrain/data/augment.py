"""Augmentation: a random flip along each spatial axis, then Gaussian noise on every voxel.

The random numbers are keyed by (seed, epoch, index of the sample). They depend neither on the
order in which samples are drawn nor on the thread that draws them.
"""

import numpy as np

NOISE_STD = 0.02  # in prepared intensities: min-max spans [0, 1]


def augment(
    image: np.ndarray, label: np.ndarray, *, seed: int, epoch: int, index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Flip image and label together and add noise to the image.

    Parameters
    ----------
    image : (*S, C) array of prepared intensities, S of two or three axes; left untouched
    label : (*S,) integer array; left untouched
    seed, epoch, index : what the random numbers are keyed by, each >= 0

    Returns
    -------
    image : (*S, C) float32, a new array
    label : (*S,), a new array; its values are moved by the flips and never altered
    """
    random = np.random.default_rng([seed, epoch, index])
    axes = tuple(np.flatnonzero(random.random(label.ndim) < 0.5))
    noisy = random.standard_normal(image.shape, dtype=np.float32)
    noisy *= NOISE_STD
    noisy += np.flip(image, axes)
    return noisy, np.flip(label, axes).copy()
