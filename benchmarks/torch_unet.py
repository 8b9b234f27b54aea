"""The reference networks in PyTorch's own words: oracle of the tests, rival of the benchmarks.

They are built from the description of the networks; nothing of minibrain goes into them.
"""

import torch
from torch import nn

CHANNELS = (16, 32, 64, 128, 256)
DROPOUT_3D = (0.1, 0.1, 0.2, 0.2, 0.3)
NO_DROPOUT = (0.0,) * len(CHANNELS)


class Block(nn.Sequential):
    """Two 3^n convolutions, each with its norm and ReLU; a plain end has neither."""

    def __init__(self, conv, norm, incoming, channels, rate, plain_end=False):
        layers = [conv(incoming, channels, 3, padding=1), *norm(channels), nn.ReLU()]
        layers += [nn.Dropout(rate)] if rate else []
        layers += [conv(channels, channels, 3, padding=1)]
        layers += [] if plain_end else [*norm(channels), nn.ReLU()]
        super().__init__(*layers)


class Join(nn.Module):
    """What comes from below beside its skip."""

    def __init__(self, conv, skip_channels, channels):
        super().__init__()

    def forward(self, x, skip):
        return torch.cat([x, skip], dim=1)


class GatedJoin(nn.Module):
    """The skip first times sigmoid(ψ · relu(W_x · skip + W_g · x + b_g) + b_ψ)."""

    def __init__(self, conv, skip_channels, channels):
        super().__init__()
        self.from_skip = conv(skip_channels, skip_channels // 2, 1, bias=False)
        self.from_signal = conv(channels, skip_channels // 2, 1)
        self.score = conv(skip_channels // 2, 1, 1)

    def forward(self, x, skip):
        hidden = torch.relu(self.from_skip(skip) + self.from_signal(x))
        return torch.cat([x, skip * torch.sigmoid(self.score(hidden))], dim=1)


class Peer(nn.Module):
    """Encoder, bottleneck and decoder with skips; parts are registered from input to output."""

    def __init__(self, conv, norm, up, incoming, plain_end, rates=NO_DROPOUT, join=Join):
        super().__init__()
        widths = (incoming, *CHANNELS)
        self.encoders = nn.ModuleList(
            [Block(conv, norm, widths[i], widths[i + 1], rates[i]) for i in range(4)]
        )
        self.bottleneck = Block(conv, norm, CHANNELS[3], CHANNELS[4], rates[4])
        self.ascent = nn.ModuleList()
        for i in (3, 2, 1, 0):
            above, channels = up(CHANNELS[i + 1], CHANNELS[i])
            plain = plain_end and i == 0
            block = Block(conv, norm, channels + CHANNELS[i], CHANNELS[i], rates[i], plain)
            self.ascent += [above, join(conv, CHANNELS[i], channels), block]
        self.head = conv(CHANNELS[0], 4, 1)
        self.pool = nn.MaxPool3d(2) if conv is nn.Conv3d else nn.MaxPool2d(2)

    def forward(self, x):
        skips = []
        for encoder in self.encoders:
            skips.append(encoder(x))
            x = self.pool(skips[-1])
        x = self.bottleneck(x)
        for i in range(0, len(self.ascent), 3):
            up, join, decoder = self.ascent[i : i + 3]
            x = decoder(join(up(x), skips.pop()))
        return self.head(x)


def instance_norm_3d(channels):
    return [nn.InstanceNorm3d(channels, eps=1e-5, affine=True)]


def transposed_3d(incoming, channels):
    conv = nn.ConvTranspose3d(incoming, channels, 2, stride=2)
    return nn.Sequential(conv, *instance_norm_3d(channels), nn.ReLU()), channels


def nearest_2d(incoming, channels):
    return nn.Upsample(scale_factor=2, mode="nearest"), incoming


def peer_3d(rates=NO_DROPOUT, join=Join):
    return Peer(nn.Conv3d, instance_norm_3d, transposed_3d, 4, True, rates, join)


def peer_2d(join=Join):
    return Peer(nn.Conv2d, lambda channels: [], nearest_2d, 2, plain_end=False, join=join)


def dice_loss(logits, labels, smooth=1.0, per_sample=False):
    """1 − mean over classes, and samples if each counts for itself, of the soft Dice."""
    p = torch.softmax(logits, dim=1)
    t = nn.functional.one_hot(labels, logits.shape[1]).movedim(-1, 1)
    axes = [*(() if per_sample else (0,)), *range(2, logits.ndim)]
    return 1 - ((2 * (p * t).sum(axes) + smooth) / ((p + t).sum(axes) + smooth)).mean()


def cce_dice_loss(logits, labels):
    """Half cross-entropy, half soft Dice: the loss of both networks."""
    return 0.5 * nn.functional.cross_entropy(logits, labels) + 0.5 * dice_loss(logits, labels)
