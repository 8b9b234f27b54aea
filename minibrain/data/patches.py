"""Patches of prepared cases, so that volumes of any size train in little memory.

A patch drawn anywhere is mostly background: one in three is drawn about a tumour voxel instead,
of a class chosen first, so that rare classes are seen as often as large ones. The voxel lies
in the middle, as far as the border of the volume allows. Cases without tumour are drawn from
anywhere.

Source: Isensee et al., nnU-Net, Nature Methods 18, 203 (2021).
"""

from collections.abc import Sequence
from math import prod

import numpy as np

from minibrain.data.boxes import Box, cut
from minibrain.data.prepared import PreparedCase
from minibrain.errors import InputError

FOREGROUND = 1 / 3  # share of the patches that are drawn about tumour
MOST_VOXELS = 1000  # of a class in a case that are remembered to draw patches about


class PatchSamples:
    """Samples drawn by (seed, epoch, index): image (*patch_size, C), label patch_size.

    An epoch takes as many patches of every case as would tile it, and so shows about as many
    voxels as one of VolumeSamples. Of the mapped arrays only the patches are read; each label is
    searched for tumour once, when its case first comes up.

    Parameters
    ----------
    patch_size : voxels along (X, Y, Z); where a case has fewer, it lies centred between zeros

    Raises
    ------
    InputError : the patch size is not three positive numbers
    """

    def __init__(self, cases: Sequence[PreparedCase], patch_size: tuple[int, int, int]):
        if len(patch_size) != 3 or min(patch_size) < 1:
            raise InputError(f"patch_size: got {patch_size}, expected three numbers above 0")
        self.patch_size = tuple(patch_size)
        voxels = prod(self.patch_size)
        self.cases = [case for case in cases for _ in range(-(-case.label.size // voxels))]
        self._tumour: dict[str, list[np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def largest_shape(self) -> tuple[int, ...]:
        return self.patch_size

    def name(self, index: int) -> str:
        return self.cases[index].name

    def read(
        self, index: int, *, seed: int = 0, epoch: int = 0
    ) -> tuple[np.ndarray, np.ndarray, str]:
        case = self.cases[index]
        image, label = case.image, case.label
        # a key of its own: the noise has (seed, epoch, index), the order of an epoch ends in 1
        box = self._draw(case.name, label, np.random.default_rng([seed, epoch, index, 2]))
        return cut(image, box), cut(label, box), case.name

    def _draw(self, name: str, label: np.ndarray, random: np.random.Generator) -> Box:
        spare = np.subtract(label.shape, self.patch_size)
        lowest = -(np.maximum(-spare, 0) // 2)
        highest = lowest + np.maximum(spare, 0)
        start = random.integers(lowest, highest + 1)
        classes = self._tumour_voxels(name, label)
        if classes and random.random() < FOREGROUND:
            voxels = classes[random.integers(len(classes))]
            centre = np.unravel_index(voxels[random.integers(len(voxels))], label.shape)
            start = np.clip(
                np.subtract(centre, np.floor_divide(self.patch_size, 2)), lowest, highest
            )
        return [(int(a), int(a) + size) for a, size in zip(start, self.patch_size, strict=True)]

    def _tumour_voxels(self, name: str, label: np.ndarray) -> list[np.ndarray]:
        """Positions in the flat label, at most MOST_VOXELS for each tumour class that is there."""
        if name not in self._tumour:
            tumour = np.flatnonzero(label)
            classes = label.reshape(-1)[tumour]
            groups = (tumour[classes == number] for number in np.unique(classes))
            self._tumour[name] = [group[:: -(-len(group) // MOST_VOXELS)] for group in groups]
        return self._tumour[name]
