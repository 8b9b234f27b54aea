"""What every forward hands to its backward: references, named, and nothing else."""

from typing import Any, NamedTuple

from minibrain.arrays import array_module
from minibrain.geometry import ConvGeometry
from minibrain.philox import random_uint16

Array = Any


class ConvSaved(NamedTuple):
    x: Array  # (N, *S, C), or a DuckArray, see duck_arrays.py
    weight: Array  # (*K, C, O); for a transposed convolution (*K, O, C)
    geometry: ConvGeometry


class MaxPoolSaved(NamedTuple):
    winner: Array  # (N, *T, C) unsigned int: number of the kernel tap that held the largest value
    geometry: ConvGeometry


class UpsampleSaved(NamedTuple):
    factor: tuple[int, ...]
    shape: tuple[int, ...]  # of y


class ConcatSaved(NamedTuple):
    channels: int  # of the first array
    shape: tuple[int, ...]  # of y


class NormSaved(NamedTuple):
    x: Array  # (N, *S, C)
    gamma: Array  # (C,)
    mean: Array  # broadcasts against x
    variance: Array
    inv_std: Array
    axes: tuple[int, ...]  # averaged over; () where the statistics were given, not computed


class ReluSaved(NamedTuple):
    y: Array


class SigmoidSaved(NamedTuple):
    y: Array


class SoftmaxSaved(NamedTuple):
    y: Array


class DropoutSaved(NamedTuple):
    rate: float
    key: tuple  # (seed, step, layer): the mask is computed again from it
    shape: tuple[int, ...]  # of y

    @property
    def threshold(self):
        """A value is kept where its random 16-bit integer is not below this."""
        return min(round(self.rate * 65536), 65535)

    @property
    def scale(self):
        """What is kept is divided by the share that is kept."""
        return 65536 / (65536 - self.threshold)

    def factors(self, x):
        """What the values of x are to be multiplied with: 0, or `scale` where they are kept."""
        keep = random_uint16(0, x.size, self.key, array_module(x)) >= self.threshold
        return keep.reshape(x.shape).astype(x.dtype) * self.scale


class AttentionGateSaved(NamedTuple):
    skip: ConvSaved
    signal: ConvSaved
    relu: ReluSaved
    score: ConvSaved
    sigmoid: SigmoidSaved


class NormReluSaved(NamedTuple):
    norm: NormSaved
    y: Array  # after ReLU and dropout, or Pending
    dropout: DropoutSaved


class CrossEntropySaved(NamedTuple):
    p: Array  # (N, *S, C)
    labels: Array  # (N, *S)


class DiceSaved(NamedTuple):
    p: Array  # (N, *S, C)
    labels: Array  # (N, *S)
    overlap: Array  # 2 Σ p·t + smooth, broadcasts against p
    total: Array  # Σ p + Σ t + smooth


class CceDiceSaved(NamedTuple):
    cross_entropy: CrossEntropySaved
    dice: DiceSaved
    cce_weight: float
    dice_weight: float


class NothingSaved(list):
    """The list of a forward without a backward: what is appended is forgotten, and freed."""

    def append(self, item):
        pass


def new_saved(training: bool) -> list:
    """Where a network collects, in order of use, what its layers save."""
    return [] if training else NothingSaved()
