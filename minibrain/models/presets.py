"""The two reference networks, the 3D one with attention gates, and a small one of each for a
machine without a GPU.

Every keyword of `UNet` can be given to override the preset's, `in_channels` and `classes` too.
"""

from minibrain.models.attention_unet import AttentionUNet
from minibrain.models.unet import UNet

CHANNELS = (16, 32, 64, 128, 256)
SMALL_CHANNELS = (16, 32, 64)
DROPOUT = (0.1, 0.1, 0.2, 0.2, 0.3)
SMALL_3D = {"channels": SMALL_CHANNELS, "dropout": 0.0}


def brain_3d(**overrides) -> UNet:
    """The 3D reference network: 5,649,652 parameters, four modalities to four classes."""
    return UNet(3, **_options_3d(**overrides))


def brain_3d_attention(**overrides) -> AttentionUNet:
    """brain_3d with an attention gate on each of its four skips: 5,671,656 parameters."""
    return AttentionUNet(3, **_options_3d(**overrides))


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
    return brain_3d(**(SMALL_3D | overrides))


def brain_3d_attention_small(**overrides) -> AttentionUNet:
    """brain_3d_attention with its three upper levels and without dropout: 342,630 parameters."""
    return brain_3d_attention(**(SMALL_3D | overrides))


def brain_2d_small(**overrides) -> UNet:
    """brain_2d with its three upper levels: 118,180 parameters."""
    return brain_2d(**({"channels": SMALL_CHANNELS} | overrides))


def _options_3d(*, channels=CHANNELS, **overrides) -> dict:
    """With fewer levels the first rates of dropout are used, with more the last is repeated."""
    last = len(DROPOUT) - 1
    options = {
        "in_channels": 4,
        "classes": 4,
        "channels": channels,
        "norm": "instance",
        "up": "transposed",
        "dropout": tuple(DROPOUT[min(level, last)] for level in range(len(channels))),
        "initializer": "he",
        "plain_end": True,
    }
    return options | overrides
