"""Slices of arrays in eight bits, for a page to draw."""

from base64 import b64encode
from typing import NamedTuple

import numpy as np

from minibrain.arrays import to_host

CHANNELS = 8  # the first ones are shown; more would not be looked at
LARGEST = 64  # pixels of a side: a page of a whole case stays under 3 MB


class Picture(NamedTuple):
    """One slice of the first channels of an array."""

    values: np.ndarray  # (channels, height, width) uint8: 0 is low, 255 is high
    low: float
    high: float
    every: int = 1  # of how many voxels along an axis one is shown

    def as_json(self) -> dict:
        channels, height, width = self.values.shape
        data = b64encode(self.values.tobytes()).decode()
        size = {"channels": channels, "height": height, "width": width}
        return {**size, "low": self.low, "high": self.high, "every": self.every, "data": data}


def slicer(depth: float):
    """A function that takes the slice at a share of the depth, at whatever resolution.

    Returns
    -------
    picture : (N, *S, C) array of 1 to 3 spatial axes -> Picture of sample 0; x runs to the right
        and y upwards, as heads are shown
    """

    def picture(array) -> Picture:
        sample = array[0, ..., :CHANNELS]
        if sample.ndim == 4:
            sample = sample[:, :, int(depth * sample.shape[2])]
        plane = to_host(sample).astype(np.float64)
        plane = plane if plane.ndim == 3 else plane[:, None]
        every = -(-max(plane.shape[:2]) // LARGEST)
        return _in_eight_bits(plane[::every, ::every].transpose(2, 1, 0)[:, ::-1], every)

    return picture


def _in_eight_bits(values, every: int) -> Picture:
    """What is not finite is drawn as if it were 0."""
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    scale = 255 / (high - low) if high > low else 0.0
    return Picture(np.rint((values - low) * scale).astype(np.uint8), low, high, every)
