"""From a prepared image to the class of every voxel."""

import numpy as np

from minibrain.arrays import to_host, widened
from minibrain.models import UNet
from minibrain.training import to_model

SLICES_AT_A_TIME = 16


def predict_logits(model: UNet, image: np.ndarray, channels=None) -> np.ndarray:
    """Logits of a whole volume; a 2D network sees it slice by slice along z.

    Parameters
    ----------
    image : (X, Y, Z, C), prepared as for training
    channels : those the network was trained on, all if None

    Returns
    -------
    logits : (X, Y, Z, classes) on the CPU
    """
    image = image if channels is None else image[..., list(channels)]
    if model.rank == 3:
        return _logits(model, image[None])[0]
    slices = np.moveaxis(image, 2, 0)
    parts = [
        _logits(model, slices[start : start + SLICES_AT_A_TIME])
        for start in range(0, len(slices), SLICES_AT_A_TIME)
    ]
    return np.moveaxis(np.concatenate(parts), 0, 2)


def predict(model: UNet, image: np.ndarray, channels=None) -> np.ndarray:
    """(X, Y, Z, C) -> (X, Y, Z) uint8, the most likely class of every voxel."""
    return predict_logits(model, image, channels).argmax(axis=-1).astype(np.uint8)


def _logits(model, images):
    logits, _ = model.forward(to_model(images, model))
    return widened(to_host(logits))
