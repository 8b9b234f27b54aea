"""From a prepared image to the class of every voxel, in one go or window by window.

Windows of the training's patch size overlap, and each counts most in its middle, where the
network sees furthest around: its weight is a Gaussian whose standard deviation is an eighth of
the window, as in nnU-Net (Isensee et al., Nature Methods 18, 203, 2021). Windows form a grid and a
Gaussian is a product of one line per axis, so the lines are divided by their sum along the axis
beforehand. Weighted logits then simply add up, and nothing but their sum is kept.

A whole volume is one window. A 2D network takes windows that are stacks of slices.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, combinations, product
from math import ceil
from typing import NamedTuple

import numpy as np

from minibrain.arrays import array_module, to_host, widened
from minibrain.data.boxes import common_part, cut
from minibrain.errors import InputError
from minibrain.functional import softmax_forward
from minibrain.models import UNet
from minibrain.saved import Array
from minibrain.training import to_model

SLICES_AT_A_TIME = 16
MOST_OVERLAP = 0.9  # of windows: every voxel is then seen a thousand times, at 0.5 eight times


class Window(NamedTuple):
    box: tuple[tuple[int, int], ...]  # (start, stop) along x, y, z; may reach outside the volume
    weight: np.ndarray  # (X, Y, Z, 1) float32; where windows overlap, the weights add up to 1


def predict_logits(
    model: UNet,
    image: np.ndarray,
    channels: Sequence[int] | None = None,
    *,
    patch_size: Sequence[int] | None = None,
    overlap: float = 0.5,
    mirror: bool = False,
) -> Array:
    """Logits of a whole volume; a 2D network sees it slice by slice along z.

    Parameters
    ----------
    image : (X, Y, Z, C), prepared as for training; of a mapped array one window at a time is read
    channels : those the network was trained on, all if None
    patch_size : of the windows, one number per axis of the network; the whole volume if None.
        Where the volume is smaller, zeros are put around it
    overlap : share of a window that the next one covers too, from 0 to MOST_OVERLAP
    mirror : average over the image and its reflections along every set of the network's axes

    Returns
    -------
    logits : (X, Y, Z, classes) float32, on the model's device

    Raises
    ------
    InputError : an argument is not as above, or the network cannot halve such windows as often as
        it has levels
    """
    check_windows(model, patch_size, overlap)
    _check_image(image, channels)
    volume = image.shape[:3]
    overlaps = (overlap, overlap, overlap if model.rank == 3 else 0)
    xp = array_module(next(iter(model.named_parameters().values())).value)
    logits = xp.zeros((*volume, model.classes), np.float32)
    for box, weight in windows(volume, _window_size(model, volume, patch_size), overlaps):
        patch = cut(image, box)
        patch = patch if channels is None else patch[..., list(channels)]
        inside_window, inside_volume = common_part(box, volume)
        weighted = _patch_logits(model, patch, mirror) * xp.asarray(weight)
        logits[inside_volume] += weighted[inside_window]
    return logits


def predict(model: UNet, image: np.ndarray, channels=None, **options) -> np.ndarray:
    """(X, Y, Z, C) -> (X, Y, Z) uint8, the most likely class; arguments as in predict_logits."""
    return most_likely(predict_logits(model, image, channels, **options))


def most_likely(logits: Array) -> np.ndarray:
    """(X, Y, Z, classes) -> (X, Y, Z) uint8 on the CPU, without wide integers for all of it."""
    planes = [plane.argmax(axis=-1).astype(np.uint8) for plane in logits]
    return to_host(array_module(logits).stack(planes))


def softmax_inplace(logits: Array) -> None:
    """Turn (X, Y, Z, classes) logits into probabilities, one plane at a time."""
    for plane in logits:
        plane[...], _ = softmax_forward(plane)


def check_windows(model: UNet, patch_size: Sequence[int] | None, overlap: float = 0.5) -> None:
    """Require what predict_logits requires of both; raises InputError."""
    factor = 2 ** (model.levels - 1)
    fits = patch_size is None or (
        len(patch_size) == model.rank and all(n > 0 and n % factor == 0 for n in patch_size)
    )
    if not fits:
        expected = f"{model.rank} multiples of {factor} above 0"
        raise InputError(f"patch_size: got {tuple(patch_size)}, expected {expected}")
    if not 0 <= overlap <= MOST_OVERLAP:
        raise InputError(f"overlap: got {overlap}, expected 0 to {MOST_OVERLAP}")


def _check_image(image: np.ndarray, channels: Sequence[int] | None) -> None:
    if image.ndim != 4:
        raise InputError(f"image: got shape {image.shape}, expected (X, Y, Z, C)")
    count = image.shape[-1]
    if channels is not None and not all(0 <= channel < count for channel in channels):
        raise InputError(f"channels: got {tuple(channels)}, expected some of an image's {count}")


def windows(
    volume: Sequence[int], size: Sequence[int], overlap: Sequence[float]
) -> Iterator[Window]:
    """A grid of windows that covers a volume, with weights; all arguments have one entry per axis.

    Along each axis the windows are spread evenly from border to border, as few as overlap at
    least as much as asked for. One that is larger than the volume has the volume in its middle.
    """
    axes = [_along_axis(*each) for each in zip(volume, size, overlap, strict=True)]
    for parts in product(*axes):
        box = tuple((start, start + n) for (start, _), n in zip(parts, size, strict=True))
        x, y, z = (line for _, line in parts)
        weight = x[:, None, None] * y[:, None] * z
        yield Window(box, weight[..., None].astype(np.float32))


def _along_axis(volume: int, size: int, overlap: float) -> list[tuple[int, np.ndarray]]:
    """Start and (size,) weights of every window along one axis."""
    first = -(max(size - volume, 0) // 2)
    room = max(volume - size, 0)
    count = ceil(room / max(1, size * (1 - overlap))) + 1
    starts = np.rint(np.linspace(0, room, count)).astype(int)
    distance = (np.arange(size) - (size - 1) / 2) / (size / 8)
    bell = np.exp(-(distance**2) / 2)
    total = np.zeros(room + size)
    for start in starts:
        total[start : start + size] += bell
    return [(first + int(start), bell / total[start : start + size]) for start in starts]


def _patch_logits(model: UNet, patch: np.ndarray, mirror: bool) -> Array:
    """(X, Y, Z, C) -> (X, Y, Z, classes): a volume for a 3D network, a batch of slices for a 2D."""
    images = to_model(patch[None] if model.rank == 3 else np.moveaxis(patch, 2, 0), model)
    axes = range(1, model.rank + 1) if mirror else ()
    reflections = [*chain.from_iterable(combinations(axes, k) for k in range(len(axes) + 1))]
    xp, logits = array_module(images), 0
    for flipped in reflections:
        reflected, _ = model.forward(xp.flip(images, flipped))
        logits += xp.flip(widened(reflected), flipped) / len(reflections)
    return logits[0] if model.rank == 3 else xp.moveaxis(logits, 0, 2)


def _window_size(model: UNet, volume: Sequence[int], patch_size) -> tuple[int, ...]:
    """The size of windows along x, y and z."""
    if patch_size is None:
        factor = 2 ** (model.levels - 1)
        patch_size = [-(-n // factor) * factor for n in volume[: model.rank]]
    stack = () if model.rank == 3 else (min(volume[2], SLICES_AT_A_TIME),)
    return (*patch_size, *stack)
