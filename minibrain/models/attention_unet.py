"""The attention U-Net: a U-Net whose decoder says which parts of a skip connection it wants.

    encoder ──── skip ───▶ gate ──▶ concat ▶ decoder
                            ▲ signal  ▲
                            └─── up ──┘

Source: Oktay et al., arXiv:1804.03999.
"""

import numpy as np

from minibrain.layers import GatedConcat
from minibrain.models.unet import UNet
from minibrain.parameter import glorot_uniform


class AttentionUNet(UNet):
    """A U-Net with an additive attention gate on every skip connection.

    It takes the arguments of UNet. A gate scores in half as many channels as its skip has. Its
    weights are Glorot's from a generator of its own: all others are those of the UNet of the same
    seed, so that the two differ in nothing but the gates.
    """

    def __init__(
        self,
        rank: int,
        in_channels: int,
        classes: int,
        *,
        channels=(16, 32, 64, 128, 256),
        up: str = "transposed",
        seed: int = 0,
        dtype=np.float32,
        **options,
    ):
        options |= {"channels": channels, "up": up, "seed": seed, "dtype": dtype}
        super().__init__(rank, in_channels, classes, **options)
        rng, points = np.random.default_rng([seed, 1]), (1,) * rank
        self.joins = []
        for below, here in zip(channels[:0:-1], channels[-2::-1], strict=True):
            signal, scoring = here if up == "transposed" else below, max(1, here // 2)
            widths = (here, scoring), (signal, scoring), (scoring, 1)
            self.joins.append(
                GatedConcat(*(glorot_uniform(rng, (*points, *pair), dtype) for pair in widths))
            )
