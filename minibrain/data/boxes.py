"""Boxes in a volume: one (start, stop) per axis, which may reach outside."""

from collections.abc import Sequence

import numpy as np

Box = Sequence[tuple[int, int]]


def cut(array: np.ndarray, box: Box) -> np.ndarray:
    """Copy a box out of an (X, Y, Z) or (X, Y, Z, C) array, with zeros where it is outside."""
    inside_box, inside_volume = common_part(box, array.shape[:3])
    piece = np.zeros((*(stop - start for start, stop in box), *array.shape[3:]), array.dtype)
    piece[inside_box] = array[inside_volume]
    return piece


def common_part(box: Box, shape: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """What box and volume share, as slices of the box and as slices of the volume."""
    common = [(max(a, 0), min(b, size)) for (a, b), size in zip(box, shape, strict=True)]
    inside_box = (slice(a - o, b - o) for (a, b), (o, _) in zip(common, box, strict=True))
    return tuple(inside_box), tuple(slice(a, b) for a, b in common)
