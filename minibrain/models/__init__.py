"""Networks with a hand-written backward."""

from minibrain.models.presets import brain_2d, brain_2d_small, brain_3d, brain_3d_small
from minibrain.models.unet import UNet

__all__ = ["UNet", "brain_2d", "brain_2d_small", "brain_3d", "brain_3d_small"]
