"""The two reference networks, and a small one of each for a machine without a GPU.

Every keyword of `UNet` can be given to override the preset's, `in_channels` and `classes` too.
"""

from minibrain.models.unet import UNet

CHANNELS = (16, 32, 64, 128, 256)
SMALL_CHANNELS = (16, 32, 64)
DROPOUT = (0.1, 0.1, 0.2, 0.2, 0.3)  # of a 3D network with fewer levels, the upper ones


def brain_3d(**overrides) -> UNet:
    """The 3D reference network: 5,649,652 parameters, four modalities to four classes."""
    levels = len(overrides.get("channels", CHANNELS))
    options = {
        "in_channels": 4,
        "classes": 4,
        "channels": CHANNELS,
        "norm": "instance",
        "up": "transposed",
        "dropout": tuple(DROPOUT[min(level, len(DROPOUT) - 1)] for level in range(levels)),
        "initializer": "he",
        "plain_end": True,
    }
    return UNet(3, **(options | overrides))


def brain_2d(**overrides) -> UNet:
    """The 2D reference network: 1,962,532 parameters, FLAIR and T1gd to four classes."""
    options = {
        "in_channels": 2,
        "classes": 4,
        "channels": CHANNELS,
        "norm": "none",
        "up": "nearest",
        "dropout": 0.0,
        "initializer": "glorot",
    }
    return UNet(2, **(options | overrides))


def brain_3d_small(**overrides) -> UNet:
    """brain_3d with its three upper levels and without dropout: 341,300 parameters."""
    return brain_3d(**({"channels": SMALL_CHANNELS, "dropout": 0.0} | overrides))


def brain_2d_small(**overrides) -> UNet:
    """brain_2d with its three upper levels: 118,180 parameters."""
    return brain_2d(**({"channels": SMALL_CHANNELS} | overrides))
