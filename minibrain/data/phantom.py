"""Generated brain tumours in the layout of the Medical Segmentation Decathlon.

No patient, no download, no licence: a head that can be made anywhere, for examples, tests and
speed measurements. Nothing learnt on phantoms says anything about patients.

What is modelled, and why
-------------------------
Anatomy       a skull-stripped brain (exactly 0 outside, as in the official data): white matter, a
              cortex folded around sulci, deep grey nuclei, ventricles. Everyone's differs a little.
Look-alikes   what makes one voxel alone ambiguous. Vessels, meninges and choroid plexus take up
              gadolinium like enhancing tumour; small lesions and caps around the ventricles shine on
              FLAIR like edema; a necrotic core is as dark and wet as CSF. Only shape and
              surroundings tell which is which, so a classifier of single voxels must do badly.
Tumour        one (rarely two) irregular blobs of edema around a core that is a ring (enhancing rim,
              necrotic centre), solid, patchy, or without any enhancement.
Contrast      one table per family: an intensity per tissue and modality. Family "b" is another
              scanner: same anatomy, other table; what was tuned on "a" is judged on it.
Acquisition   partial volume, texture, bias field, gain and Rician noise.

Positions are in mm and random fields live on coarse grids over the field of view, so one index is
the same head at every size; only the noise differs. Arithmetic is float64, storage int16, so that
a case is the same bytes everywhere: its hash is a test. Changing any number here makes other data:
then raise VERSION and freeze the new hashes.
"""

import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

#from minibrain.data import nifti
from minibrain.errors import InputError

VERSION = 1
TASK = "Task01_BrainTumour"
MODALITIES = ("FLAIR", "T1w", "t1gd", "T2w")
CLASSES = ("background", "edema", "non-enhancing tumor", "enhancing tumour")
FIELD_OF_VIEW = (240.0, 240.0, 155.0)  # mm; a smaller size means larger voxels, not a smaller head
BRAIN = (64.0, 76.0, 56.0)  # half-axes in mm: inside the reference recipe's 160 x 160 x 128 crop
SMALLEST = 16  # voxels per axis: below it the structures are thinner than a voxel


class Tissue(IntEnum):
    WHITE = 0
    GREY = 1
    CSF = 2
    LESION = 3  # FLAIR-bright, harmless
    VESSEL = 4  # takes up gadolinium, harmless: also meninges and choroid plexus
    EDEMA = 5
    NECROSIS = 6
    INFILTRATE = 7  # solid tumour without enhancement
    ENHANCING = 8


LABELS = np.array([0, 0, 0, 0, 0, 1, 2, 2, 3], np.uint8)  # the class of each tissue

CONTRAST = {  # rows are tissues in their order above, columns FLAIR, T1w, t1gd, T2w
    "a": np.array(
        [
            (0.50, 0.72, 0.73, 0.38),
            (0.62, 0.56, 0.58, 0.52),
            (0.24, 0.28, 0.29, 0.88),
            (0.77, 0.56, 0.57, 0.66),
            (0.64, 0.52, 0.93, 0.58),
            (0.76, 0.55, 0.56, 0.68),
            (0.36, 0.33, 0.36, 0.83),
            (0.64, 0.42, 0.45, 0.78),
            (0.66, 0.51, 0.95, 0.61),
        ]
    ),
    "b": np.array(
        [
            (0.42, 0.80, 0.78, 0.45),
            (0.58, 0.60, 0.58, 0.60),
            (0.16, 0.22, 0.24, 0.95),
            (0.72, 0.62, 0.60, 0.74),
            (0.56, 0.58, 0.88, 0.62),
            (0.73, 0.60, 0.59, 0.76),
            (0.30, 0.29, 0.33, 0.90),
            (0.58, 0.46, 0.47, 0.84),
            (0.60, 0.57, 0.90, 0.66),
        ]
    ),
}


# --- smooth random fields ------------------------------------------------------------------


def _centres(count, extent):
    """Voxel centres along one axis in mm, 0 in the middle of the field of view."""
    return ((np.arange(count) + 0.5) / count - 0.5) * extent


def _splines(count, extent, length):
    """(voxels, knots) cubic B-splines, one knot per `length` mm, rows of unit L2 norm."""
    knots = np.arange(-1, np.ceil(extent / length) + 2)
    t = np.abs((_centres(count, extent)[:, None] + extent / 2) / length - knots)
    weights = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.clip(2 - t, 0, None) ** 3 / 6)
    return weights / np.linalg.norm(weights, axis=1, keepdims=True)


def smooth_noise(rng, size, length):
    """Gaussian noise of mean 0 and variance 1 everywhere, correlated over about `length` mm."""
    bases = [_splines(n, extent, length) for n, extent in zip(size, FIELD_OF_VIEW, strict=True)]
    field = rng.standard_normal([basis.shape[1] for basis in bases])
    for basis in bases:  # each turn uses up the first axis and appends its fine one: x, y, z again
        field = np.tensordot(field, basis, axes=(0, 1))
    return field


# --- anatomy -------------------------------------------------------------------------------


def _head_frame(rng, size):
    """Every voxel's (x, y, z) in mm in the standard head: right, front, up from its centre."""
    axes = [_centres(n, extent) for n, extent in zip(size, FIELD_OF_VIEW, strict=True)]
    offset, stretch = rng.uniform(-3, 3, 3), rng.uniform(0.95, 1.04, 3)
    grid = np.meshgrid(*axes, indexing="ij", sparse=True)
    return [
        (axis - o) / s + 2.5 * smooth_noise(rng, size, 60)
        for axis, o, s in zip(grid, offset, stretch, strict=True)
    ]


def _ellipsoid(frame, centre, axes):
    """Distance from `centre` in units of the half-axes: 1 on the surface."""
    return np.sqrt(
        sum(((p - c) / a) ** 2 for p, c, a in zip(frame, centre, axes, strict=True))
    )


def _anatomy(rng, size, frame):
    """The tissue of every voxel and its depth in mm below the brain's surface."""
    depth = BRAIN[0] * (1 - _ellipsoid(frame, (0, 0, 0), BRAIN))
    mirrored = [np.abs(frame[0]), *frame[1:]]
    # A sulcus is a sheet where a smooth field vanishes; cortex lines sheets and surface alike.
    sulcus = np.where(depth < 20, 9 * np.abs(smooth_noise(rng, size, 18)), np.inf)
    fissure = np.where(depth < 24, mirrored[0], np.inf)
    gap = np.minimum(np.minimum(depth, sulcus), fissure)
    tissue = np.full(size, Tissue.WHITE, np.uint8)
    tissue[gap < 5] = Tissue.GREY
    tissue[gap < 1.3] = Tissue.CSF
    tissue[_ellipsoid(mirrored, (24, 4, -4), (9, 17, 11)) < 1] = Tissue.GREY
    width = rng.uniform(0.85, 1.3)
    ventricle = _ellipsoid(mirrored, (9, -2, 6), (7 * width, 30, 10 * width))
    _add_lookalikes(rng, tissue, depth, ventricle)
    return tissue, depth, ventricle < 1


def _add_lookalikes(rng, tissue, depth, ventricle):
    """Write the ventricles, and healthy structures with the intensities of tumour."""
    size = tissue.shape
    white = tissue == Tissue.WHITE
    caps = ventricle < 1.25 + 0.25 * smooth_noise(rng, size, 20)
    tissue[white & (caps | (smooth_noise(rng, size, 14) > 1.7))] = Tissue.LESION
    # A vessel is a tube around the line where two smooth fields vanish together.
    vessel = np.hypot(smooth_noise(rng, size, 24), smooth_noise(rng, size, 24)) < 0.27
    meninges = (depth < 3.5) & (smooth_noise(rng, size, 30) > 0.2)
    tissue[(vessel & (depth < 30)) | meninges] = Tissue.VESSEL
    tissue[ventricle < 1] = Tissue.CSF
    tissue[(ventricle < 1) & (smooth_noise(rng, size, 9) > 0.9)] = Tissue.VESSEL


# --- tumour --------------------------------------------------------------------------------


def _innermost(level, region, share):
    """The part of `region` with the lowest `level`, `share` of its volume."""
    return region & (level <= np.quantile(level[region], share))


def _blob(rng, size, frame):
    """A level that rises outwards from a random centre, with an irregular smooth boundary."""
    direction = rng.standard_normal(3)
    direction[0] += np.copysign(0.8, direction[0])  # tumours of the midline are rare
    direction *= rng.uniform(0.3, 0.6) / np.linalg.norm(direction)
    distance = _ellipsoid(frame, direction * BRAIN, rng.uniform(24, 34, 3))
    return distance + 0.22 * smooth_noise(rng, size, 40) + 0.08 * smooth_noise(rng, size, 20)


def _add_tumour(rng, tissue, frame, host):
    """Write edema and core into `tissue`, inside the mask `host`. Shares are of volume."""
    size = tissue.shape
    level = _blob(rng, size, frame)
    if rng.random() < 0.15:
        level = np.minimum(level, _blob(rng, size, frame) + 0.3)
    whole = _innermost(level, host, rng.uniform(0.10, 0.24))
    level += 0.15 * smooth_noise(rng, size, 30)  # the core does not follow the edema's boundary
    core = _innermost(level, whole, rng.uniform(0.4, 0.55))
    patches = smooth_noise(rng, size, 18)
    tissue[whole] = Tissue.EDEMA
    kind = rng.choice(["ring", "solid", "patchy", "plain"], p=[0.5, 0.2, 0.2, 0.1])
    if kind == "plain":
        tissue[core] = Tissue.INFILTRATE
        return
    tissue[core] = Tissue.ENHANCING
    if kind == "ring":
        tissue[_innermost(level + 0.05 * patches, core, rng.uniform(0.25, 0.4))] = Tissue.NECROSIS
    elif kind == "solid":
        tissue[_innermost(patches, core, rng.uniform(0.1, 0.2))] = Tissue.NECROSIS
    else:
        tissue[_innermost(patches, core, rng.uniform(0.4, 0.6))] = Tissue.INFILTRATE


# --- acquisition ---------------------------------------------------------------------------


def _acquire(rng, tissue, brain, contrast):
    """One modality of the scanner: int16 intensities, 0 outside the brain and positive inside."""
    contrast = contrast + 0.025 * rng.standard_normal(contrast.shape)
    signal = gaussian_filter(contrast[tissue], rng.uniform(0.4, 0.6), truncate=3)  # partial volume
    signal += 0.03 * smooth_noise(rng, tissue.shape, 16)  # texture of the tissue
    signal *= np.exp(0.12 * smooth_noise(rng, tissue.shape, 110))  # bias field
    inside = signal[brain]
    noise = rng.uniform(0.035, 0.055)
    real, imaginary = noise * rng.standard_normal((2, inside.size))
    gain = 1000 * rng.uniform(0.7, 1.4)
    image = np.zeros(tissue.shape, np.int16)
    image[brain] = np.clip(np.rint(gain * np.hypot(inside + real, imaginary)), 1, 32767)
    return image


def make_case(index, *, size=(240, 240, 155), seed=0, family="a", tumour=True):
    """One phantom, a function of its arguments alone.

    Parameters
    ----------
    index, seed : int
        Which head; not negative. The same pair is the same head at every size.
    size : (int, int, int)
        Voxels along x, y, z (RAS+), each at least 16; together they span 240 x 240 x 155 mm.
    family : {"a", "b"}
        The contrast table.
    tumour : bool
        False gives the same head without a tumour.

    Returns
    -------
    image : (X, Y, Z, 4) int16
        FLAIR, T1w, t1gd, T2w in arbitrary units: 0 outside the brain, at least 1 inside.
    label : (X, Y, Z) uint8
        0 background, 1 edema, 2 non-enhancing tumour, 3 enhancing tumour.

    Raises
    ------
    InputError
        An argument outside these ranges.
    """
    size = _checked(size, family, index=index, seed=seed)
    anatomy_rng, tumour_rng, scanner_rng = np.random.default_rng([seed, index]).spawn(3)
    frame = _head_frame(anatomy_rng, size)
    tissue, depth, ventricle = _anatomy(anatomy_rng, size, frame)
    brain = depth > 0
    if tumour:
        _add_tumour(tumour_rng, tissue, frame, brain & ~ventricle)
    tissue[~brain] = Tissue.CSF  # what the partial volume of the surface mixes with
    image = np.empty((*size, len(MODALITIES)), np.int16)
    for channel, rng in enumerate(scanner_rng.spawn(len(MODALITIES))):
        image[..., channel] = _acquire(rng, tissue, brain, CONTRAST[family][:, channel])
    return image, LABELS[tissue]


def _checked(size, family, **counts):
    """The size as a tuple of int, or an InputError about the first bad argument."""
    if family not in CONTRAST:
        raise InputError(f"family: {family!r} is unknown, expected one of {', '.join(CONTRAST)}")
    for name, value in counts.items():
        if value < 0:
            raise InputError(f"{name}: is {value}, expected 0 or more")
    size = tuple(int(n) for n in size)
    if len(size) != 3 or min(size) < SMALLEST:
        raise InputError(f"size: is {size}, expected three numbers of voxels >= {SMALLEST}")
    return size
