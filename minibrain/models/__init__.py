"""Networks with a hand-written backward."""

from minibrain.models.attention_unet import AttentionUNet
from minibrain.models.presets import (
    brain_2d,
    brain_2d_small,
    brain_3d,
    brain_3d_attention,
    brain_3d_attention_small,
    brain_3d_small,
)
from minibrain.models.unet import UNet

__all__ = [
    "AttentionUNet",
    "UNet",
    "brain_2d",
    "brain_2d_small",
    "brain_3d",
    "brain_3d_attention",
    "brain_3d_attention_small",
    "brain_3d_small",
]
