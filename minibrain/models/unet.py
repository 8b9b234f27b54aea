"""The U-Net, in two or three dimensions, with its backward written out.

    encoder ──────────────── skip ────────────────▶ concat ▶ decoder ▶ head
       └ down ▶ encoder ────── skip ──────▶ concat ▶ decoder ▶ up ┘
                   └ down ▶ bottleneck ▶ up ┘

Source: Ronneberger et al., arXiv:1505.04597; Çiçek et al., arXiv:1606.06650.
"""

import numpy as np

from minibrain.arrays import find_device, require_float, to_device
from minibrain.geometry import require_multiple
from minibrain.layers import (
    BatchNorm,
    Chain,
    Concat,
    Conv,
    ConvTranspose,
    Dropout,
    InstanceNormReLU,
    MaxPool,
    ReLU,
    Upsample,
)
from minibrain.parameter import Parameter, glorot_uniform, he_uniform
from minibrain.saved import ConvSaved, new_saved

NORMS = ("none", "batch", "instance")
INITIALIZERS = {"he": he_uniform, "glorot": glorot_uniform}


class UNet:
    """An encoder that halves the volume level by level, a decoder that doubles it back, and at
    every level a skip connection from one to the other.

    Parameters
    ----------
    rank : number of spatial axes, 2 or 3 (1 works too)
    in_channels, classes : channels of the input and of the logits
    channels : one per level, from the full size to the bottleneck
    norm : "instance", "batch" or "none", after every convolution
    up : "transposed" (2^rank transposed convolution, norm, ReLU) or "nearest" (no parameters)
    dropout : rate inside each block, one for all or one per level; the decoder's are its level's
    initializer : "he" or "glorot", of the blocks' convolutions; all else is Glorot
    plain_end : the last convolution before the head has neither norm nor ReLU
    seed : of the initial weights and the dropout masks
    dtype : of the activations; with bfloat16 the parameters are float32

    Raises
    ------
    ValueError : an argument is not as above
    """

    def __init__(
        self,
        rank: int,
        in_channels: int,
        classes: int,
        *,
        channels=(16, 32, 64, 128, 256),
        norm: str = "instance",
        up: str = "transposed",
        dropout=0.0,
        initializer: str = "he",
        plain_end: bool = False,
        seed: int = 0,
        dtype=np.float32,
    ):
        self.rank, self.in_channels, self.classes = rank, in_channels, classes
        self.levels, self.initializer, self.dtype = len(channels), initializer, np.dtype(dtype)
        rates = (dropout,) * self.levels if np.isscalar(dropout) else tuple(dropout)
        _check_sizes(rank, in_channels, classes, channels, rates)
        _check_names(norm, up, initializer)
        parameter_dtype = np.result_type(dtype, np.float32)
        make = _Maker(rank, norm, INITIALIZERS[initializer], seed, parameter_dtype)

        widths = (in_channels, *channels)
        self.encoders = [
            make.block(widths[i], widths[i + 1], rates[i]) for i in range(self.levels - 1)
        ]
        self.downs = [MaxPool() for _ in self.encoders]
        self.bottleneck = make.block(widths[-2], widths[-1], rates[-1])
        self.ups, self.joins, self.decoders = [], [], []
        for i in reversed(range(self.levels - 1)):
            below, here = channels[i + 1], channels[i]
            self.ups.append(make.transposed(below, here) if up == "transposed" else make.nearest())
            incoming = here if up == "transposed" else below
            self.joins.append(Concat())
            plain = plain_end and i == 0
            self.decoders.append(make.block(incoming + here, here, rates[i], plain_end=plain))
        self.head = make.head(channels[0], classes)

    def forward(self, x, training=False, step=0):
        """Logits of every voxel.

        Parameters
        ----------
        x : (N, *S, in_channels), every axis of S a multiple of 2^(levels − 1)
        training : dropout and batch statistics, and save what backward needs
        step : number of the training step, a part of the dropout key; on a GPU it may be there, in
            a uint32 array of no dimension

        Returns
        -------
        logits : (N, *S, classes)
        saved : list for backward, which empties it; empty without training

        Raises
        ------
        ValueError : x has another rank, channel count or a size that cannot be halved so often
        """
        self._check_input(x)
        saved, skips = new_saved(training), []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x, kept = encoder.forward(x, training, step)
            saved.append(kept)
            skips.append(x)
            x, kept = down.forward(x)
            saved.append(kept)
        x, kept = self.bottleneck.forward(x, training, step)
        saved.append(kept)
        for up, join, decoder in zip(self.ups, self.joins, self.decoders, strict=True):
            x, kept = up.forward(x, training, step)
            saved.append(kept)
            x, kept = join.forward(x, skips.pop())
            saved.append(kept)
            del kept  # what a gate saves would fill as much memory as the decoder needs
            x, kept = decoder.forward(x, training, step)
            saved.append(kept)
        x, kept = self.head.forward(x)
        saved.append(kept)
        return x, saved

    def backward(self, dx, saved, input_gradient=True):
        """Add every parameter's gradient to its `grad`; the mirror of forward, line by line.

        Parameters
        ----------
        dx : (N, *S, classes), gradient of the loss with respect to the logits
        saved : from forward(training=True); consumed, so memory is freed on the way

        Returns
        -------
        dx : gradient with respect to the input, None without input_gradient

        Raises
        ------
        ValueError : saved is empty, or dx is not as the logits were; then saved is still whole
        """
        self._check_gradient(dx, saved)
        dskips = []
        dx = self.head.backward(dx, saved.pop())
        ascent = zip(self.ups[::-1], self.joins[::-1], self.decoders[::-1], strict=True)
        for up, join, decoder in ascent:
            dx = decoder.backward(dx, saved.pop())
            dx, dskip = join.backward(dx, saved.pop())
            dskips.append(dskip)
            dx = up.backward(dx, saved.pop())
        dx = self.bottleneck.backward(dx, saved.pop())
        for encoder, down in zip(self.encoders[::-1], self.downs[::-1], strict=True):
            dx = down.backward(dx, saved.pop())
            dx += dskips.pop()  # the skip was used twice: its gradients add
            dx = encoder.backward(
                dx, saved.pop(), input_gradient or encoder is not self.encoders[0]
            )
        return dx

    def named_parameters(self) -> dict[str, Parameter]:
        """Every learned parameter by name, from input to output."""
        return self._named("parameters")

    def named_buffers(self) -> dict[str, Parameter]:
        """What is stored but not learned: batch norm's running statistics."""
        return self._named("buffers")

    def to(self, device: str):
        """Move every parameter and buffer to "cpu" or "cuda"; returns the network.

        Raises
        ------
        InputError : there is no such device
        """
        device = find_device(device)
        for parameter in (self.named_parameters() | self.named_buffers()).values():
            parameter.value = to_device(parameter.value, device)
        return self

    def parts(self):
        """Every layer and chain with its name, from input to output."""
        for i, (encoder, down) in enumerate(zip(self.encoders, self.downs, strict=True)):
            yield f"encoder{i}", encoder
            yield f"down{i}", down
        yield "bottleneck", self.bottleneck
        numbers = reversed(range(self.levels - 1))
        for i, up, join, decoder in zip(numbers, self.ups, self.joins, self.decoders, strict=True):
            yield f"up{i}", up
            yield f"join{i}", join
            yield f"decoder{i}", decoder
        yield "head", self.head

    def _named(self, kind):
        return {
            f"{part_name}.{name}": parameter
            for part_name, part in self.parts()
            for name, parameter in getattr(part, kind).items()
        }

    def _check_input(self, x):
        if x.ndim != self.rank + 2 or x.shape[-1] != self.in_channels:
            raise ValueError(
                f"input must be (N, {self.rank} spatial axes, {self.in_channels} channels), "
                f"got shape {x.shape}"
            )
        require_multiple(x.shape[1:-1], 2 ** (self.levels - 1))

    def _check_gradient(self, dx, saved):
        if not saved:
            raise ValueError("saved is empty: backward needs a forward with training=True, once")
        if isinstance(saved[-1], ConvSaved):  # of anything else the head says what it is
            require_float("dx", dx, (*saved[-1].x.shape[:-1], self.classes))


class _Maker:
    """Makes the parts of one network, drawing their initial weights in order."""

    def __init__(self, rank, norm, initializer, seed, dtype):
        self.rank, self.norm, self.initializer = rank, norm, initializer
        self.seed, self.dtype = seed, dtype
        self.rng = np.random.default_rng(seed)
        self.dropouts = 0

    def block(self, incoming, channels, rate, plain_end=False) -> Chain:
        first = {"conv1": self.conv(incoming, channels), **self.norm_relu(channels, "1", rate)}
        second = {"conv2": self.conv(channels, channels)}
        return Chain(**first, **second, **({} if plain_end else self.norm_relu(channels, "2")))

    def conv(self, incoming, channels) -> Conv:
        shape = (*(3,) * self.rank, incoming, channels)
        return Conv(self.initializer(self.rng, shape, self.dtype))

    def norm_relu(self, channels, suffix, rate=0.0) -> dict:
        """The configured norm, ReLU and, at a rate, dropout with a number of its own."""
        dropout = {"rate": rate, "seed": self.seed, "number": self.dropouts}
        self.dropouts += bool(rate)
        if self.norm == "instance":
            return {f"norm{suffix}": InstanceNormReLU(channels, self.dtype, **dropout)}
        norm = {f"norm{suffix}": BatchNorm(channels, self.dtype)} if self.norm == "batch" else {}
        last = {f"dropout{suffix}": Dropout(**dropout)} if rate else {}
        return {**norm, f"relu{suffix}": ReLU(), **last}

    def transposed(self, incoming, channels) -> Chain:
        shape = (*(2,) * self.rank, channels, incoming)
        conv = ConvTranspose(glorot_uniform(self.rng, shape, self.dtype))
        return Chain(conv=conv, **self.norm_relu(channels, ""))

    def nearest(self) -> Chain:
        return Chain(upsample=Upsample())

    def head(self, incoming, classes) -> Conv:
        shape = (*(1,) * self.rank, incoming, classes)
        return Conv(glorot_uniform(self.rng, shape, self.dtype))


def _check_sizes(rank, in_channels, classes, channels, rates):
    if not channels or min(rank, in_channels, classes, *channels) < 1:
        raise ValueError(
            "rank, in_channels, classes and the channels of one level or more must be above 0, "
            f"got {rank}, {in_channels}, {classes} and {channels}"
        )
    if len(rates) != len(channels):
        raise ValueError(f"dropout needs one rate per level, got {len(rates)} for {len(channels)}")


def _check_names(norm, up, initializer):
    for name, value, allowed in (
        ("norm", norm, NORMS),
        ("up", up, ("transposed", "nearest")),
        ("initializer", initializer, INITIALIZERS),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
