"""Batches of prepared cases: volumes, axial slices or patches, read ahead on other threads.

Samples have a length, and for each index a name and what `read` returns. Patches (see `patches`)
are drawn by seed and epoch; a volume or a slice is the same for all.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from minibrain.arrays import aside, to_device
from minibrain.data.augment import NOISE_STD, add_noise_inplace, flip
from minibrain.data.patches import PatchSamples
from minibrain.data.prepared import PreparedCase
from minibrain.errors import InputError

Array = Any

# A GPU takes a batch of whole volumes in a third of the time in which one thread reads it (35 ms),
# so as many are read at once as there are cores, within reason.
MOST_AHEAD = 8


class Batch(NamedTuple):
    """What one training step consumes."""

    images: Array  # (N, *S, C) float32, prepared intensities
    labels: Array  # (N, *S) uint8
    names: tuple[str, ...]  # the case that each sample comes from


class VolumeSamples:
    """One sample per case: the whole prepared volume, image (X, Y, Z, C) and label (X, Y, Z)."""

    def __init__(self, cases: Sequence[PreparedCase]):
        self.cases = tuple(cases)

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def largest_shape(self) -> tuple[int, ...]:
        """(X, Y, Z) into which every sample fits; no voxels are read for it."""
        return _largest(self.cases)

    def name(self, index: int) -> str:
        return self.cases[index].name

    def read(
        self, index: int, *, seed: int = 0, epoch: int = 0
    ) -> tuple[np.ndarray, np.ndarray, str]:
        case = self.cases[index]
        return case.image, case.label, case.name


class SliceSamples:
    """One sample per chosen axial slice: image (X, Y, len(channels)) and label (X, Y).

    Of every case the slices z = 0, every, 2·every, ... of the prepared volume are taken, case
    after case.

    Raises
    ------
    InputError : `every` < 1, or a case lacks one of the channels
    """

    def __init__(self, cases: Sequence[PreparedCase], every: int, channels: Sequence[int]):
        if every < 1:
            raise InputError(f"every: got {every}, expected 1 or more")
        self.channels = list(channels)
        self.slices = []
        for case in cases:
            *_, depth, available = case.image.shape
            if not set(channels) <= set(range(available)):
                raise InputError(
                    f"channels: got {self.channels}, but case {case.name} has only {available}"
                )
            self.slices += [(case, z) for z in range(0, depth, every)]

    def __len__(self) -> int:
        return len(self.slices)

    @property
    def largest_shape(self) -> tuple[int, ...]:
        """(X, Y) into which every sample fits; no voxels are read for it."""
        return _largest(case for case, _ in self.slices)[:2]

    def name(self, index: int) -> str:
        return self.slices[index][0].name

    def read(
        self, index: int, *, seed: int = 0, epoch: int = 0
    ) -> tuple[np.ndarray, np.ndarray, str]:
        case, z = self.slices[index]
        return case.image[:, :, z][..., self.channels], case.label[:, :, z], case.name


class Batches:
    """Iterator over one epoch, made by `batches`; the next batches are read while one is used.

    Attributes
    ----------
    waited : float, seconds that the consumer has spent waiting for data so far
    """

    def __init__(
        self,
        samples,
        groups: list[np.ndarray],
        *,
        seed: int,
        epoch: int,
        training: bool,
        device: str,
    ):
        self.waited, self._device = 0.0, device
        self._samples = samples
        self._keys = {"seed": seed, "epoch": epoch} if training else None
        self._ahead = 1 if device == "cpu" else min(MOST_AHEAD, os.cpu_count() or 1)
        self._length, self._groups = len(groups), deque(groups)
        self._reading: deque[Future] = deque()
        self._next = self._start_next()

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        if self._next is None:
            raise StopIteration
        pending, self._next = self._next, None  # after an error the iterator is at its end
        begin = time.perf_counter()
        batch = pending.result()
        self.waited += time.perf_counter() - begin
        self._next = self._start_next()
        return batch

    def _start_next(self) -> Future | None:
        """The next batch, which is the only one to lie on the device before it is asked for."""
        while self._groups and len(self._reading) < self._ahead:
            group = self._groups.popleft()
            self._reading.append(_on_a_thread(_assemble, self._samples, group, self._keys))
        if not self._reading:
            return None
        return _on_a_thread(_finish, self._reading.popleft(), self._keys, self._device)


def _on_a_thread(work: Callable, *arguments) -> Future:
    """On one that ends with the work: an abandoned iterator leaves none."""
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="minibrain-batch")
    future = thread.submit(work, *arguments)
    thread.shutdown(wait=False)
    return future


def batches(
    samples: VolumeSamples | SliceSamples | PatchSamples,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    training: bool,
    first: int = 0,
    device: str = "cpu",
) -> Batches:
    """Iterate once over all samples; the last batch may be smaller.

    The result is the same, bit for bit, however the threads that read are scheduled.

    Parameters
    ----------
    samples : VolumeSamples, SliceSamples or PatchSamples
    batch_size : samples per batch, >= 1
    seed, epoch : key the order, the augmentation and where patches lie, each >= 0
    training : shuffle and augment; otherwise the samples come as they are, in their own order
    first : number of the batch to start with, as the ones before it are done
    device : "cuda" for arrays on a GPU, where they are brought while the batch before is used.
        Up to 8 batches, as many as there are cores, are then read at once, otherwise one; each
        takes twice its size in memory meanwhile

    Returns
    -------
    Batches : yields Batch. Samples of unequal shape are zero-padded at the end of each axis to
        the largest of the batch, with label 0 there. An error while reading is raised here, in
        the consumer, with a note that names the case.

    Raises
    ------
    InputError : batch_size < 1; from the iterator: the device has too little memory
    """
    if batch_size < 1:
        raise InputError(f"batch_size: got {batch_size}, expected 1 or more")
    order = np.arange(len(samples))
    if training:
        # NumPy pads keys with zeros, so (seed, epoch) alone would be the key of sample 0's noise.
        np.random.default_rng([seed, epoch, 0, 1]).shuffle(order)
    groups = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    keys = {"seed": seed, "epoch": epoch}
    return Batches(samples, groups[first:], training=training, device=device, **keys)


def _largest(cases: Iterable[PreparedCase]) -> tuple[int, ...]:
    shapes = {case.geometry.prepared_shape for case in cases}
    return tuple(max(sizes) for sizes in zip(*shapes, strict=True))


def _assemble(samples, indices: np.ndarray, keys: dict[str, int] | None):
    """A batch on the host, flipped if there are keys but without noise yet; and by the index of
    each sample where in the batch it lies."""
    read = [_read(samples, int(index), keys) for index in indices]
    sizes = [label.shape for _, label, _ in read]
    space = tuple(np.max(sizes, axis=0))
    images = np.zeros((len(read), *space, read[0][0].shape[-1]), np.float32)
    labels = np.zeros((len(read), *space), np.uint8)
    places = {int(i): (n, *map(slice, sizes[n])) for n, i in enumerate(indices)}
    for place, (image, label, _) in zip(places.values(), read, strict=True):
        images[place], labels[place] = image, label
    return Batch(images, labels, tuple(name for *_, name in read)), places


def _read(samples, index: int, keys: dict[str, int] | None):
    try:
        image, label, name = samples.read(index, **(keys or {}))
    except Exception as error:
        error.add_note(f"while reading sample {index}, case {samples.name(index)}")
        raise
    if keys is not None:
        image, label = flip(image, label, index=index, **keys)
    return image, label, name


def _finish(reading: Future, keys: dict[str, int] | None, device: str) -> Batch:
    """The batch on its device, with noise if there are keys."""
    (images, labels, names), places = reading.result()
    try:
        with aside(device):
            images, labels = to_device(images, device), to_device(labels, device)
            for index, place in places.items() if keys is not None else ():
                add_noise_inplace(images[place], NOISE_STD, index=index, **keys)
    except MemoryError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"there is no memory for a batch of shape {images.shape} beside the one before it "
            f"({reason}); choose a smaller batch size or patch size"
        ) from error
    return Batch(images, labels, names)
