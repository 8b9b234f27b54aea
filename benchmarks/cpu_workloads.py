"""What the CPU benchmark runs, and the floating-point operations of it."""

from math import prod
from typing import NamedTuple

BATCH, SIZE, SGEMM_SIZE = 2, 64, 2048
CHANNELS = (16, 32, 64, 128, 256)


class Network(NamedTuple):
    name: str  # of the preset
    rank: int
    shape: tuple[int, ...]


NETWORKS = {
    "3D": Network("brain_3d", 3, (BATCH, SIZE, SIZE, SIZE, 4)),
    "2D": Network("brain_2d", 2, (16, 160, 160, 2)),
}


class Layer(NamedTuple):
    """One of the 3D network's convolutions."""

    size: int  # of its input, along each axis
    incoming: int
    outgoing: int
    kernel: int = 3
    transposed: bool = False
    input_gradient: bool = True
    times: int = 1  # in the network

    @property
    def input_shape(self):
        return BATCH, *(self.size,) * 3, self.incoming

    @property
    def output_shape(self):
        size = self.size * self.kernel if self.transposed else self.size
        return BATCH, *(size,) * 3, self.outgoing

    @property
    def weight_shape(self):
        channels = (self.incoming, self.outgoing)
        return *(self.kernel,) * 3, *(channels[::-1] if self.transposed else channels)

    @property
    def flops(self):
        """Of forward and of backward, of a direct convolution: two for every product."""
        forward = 2 * prod(self.weight_shape) * prod(self.input_shape[:-1])
        return forward, forward * (1 + self.input_gradient)

    def __str__(self):
        kind = "transposed" if self.transposed else "convolution"
        return f"{self.kernel}³ {kind} {self.incoming}→{self.outgoing} at {self.size}³"


def _layers():
    yield Layer(SIZE, 4, CHANNELS[0], input_gradient=False)
    for level, channels in enumerate(CHANNELS):
        size = SIZE >> level
        if level:
            yield Layer(size, CHANNELS[level - 1], channels)
        if level + 1 < len(CHANNELS):
            yield Layer(size, channels, channels, times=2)
            yield Layer(size, 2 * channels, channels)
            yield Layer(size // 2, CHANNELS[level + 1], channels, kernel=2, transposed=True)
        else:
            yield Layer(size, channels, channels)
    yield Layer(SIZE, CHANNELS[0], 4, kernel=1)


LAYERS = {str(layer): layer for layer in _layers()}


def flops(name) -> int:
    """Of a workload's products; those of the 2D network are not counted."""
    if name == "sgemm":
        return 2 * SGEMM_SIZE**3
    if name in LAYERS:
        return sum(LAYERS[name].flops)
    parts = {"3D step": slice(None), "3D inference": slice(1)}[name]
    return sum(layer.times * sum(layer.flops[parts]) for layer in LAYERS.values())
