"""Generated heads with brain tumours; `phantom_task` writes whole tasks of them.

For examples, tests and timing only: nothing learnt on phantoms says anything about patients.
Anatomy       a skull-stripped brain (exactly 0 outside, as in the official data): white matter, a
              cortex folded around sulci, deep grey nuclei, ventricles; everyone's differs a little.
Look-alikes   what makes one voxel ambiguous, so that shape and surroundings must decide: vessels,
              meninges and choroid plexus enhance like tumour, lesions and caps around the
              ventricles shine on FLAIR like edema, necrosis is dark and wet like CSF.
Tumour        one or two irregular blobs of edema around a core that is a ring (enhancing rim,
              necrotic centre), solid, patchy, or without any enhancement ("plain").
Contrast      an intensity per tissue and modality; family "b" is another scanner.
Acquisition   partial volume, texture, bias field, gain and Rician noise.

Positions are in mm and smooth fields live on coarse grids, so one index is the same head at every
size; only the noise differs. Arithmetic is float64 and storage int16, so a case is the same bytes
everywhere and its hash is a test. Who changes a number here raises VERSION and the hashes.
"""

from enum import IntEnum

import numpy as np
from scipy.ndimage import gaussian_filter

from minibrain.errors import InputError

VERSION = 1  # dataset.json says it as the release
MODALITIES = ("FLAIR", "T1w", "t1gd", "T2w")
CLASSES = ("background", "edema", "non-enhancing tumor", "enhancing tumour")
FULL_SIZE = (240, 240, 155)  # voxels of 1 mm, so also the field of view in mm at every size
BRAIN = (64, 76, 56)  # half-axes in mm: inside the reference recipe's 160 x 160 x 128 crop
Size = tuple[int, int, int]
Tissue = IntEnum("Tissue", "WHITE GREY CSF LESION VESSEL EDEMA NECROSIS SOLID ENHANCING", start=0)
LABELS = np.array([0, 0, 0, 0, 0, 1, 2, 2, 3], np.uint8)  # the class of each tissue
FAMILIES = ("a", "b")
CONTRAST = [  # (tissue, family, modality), in the order of the names above
    [(0.50, 0.72, 0.73, 0.38), (0.42, 0.80, 0.78, 0.45)],  # white matter
    [(0.62, 0.56, 0.58, 0.52), (0.58, 0.60, 0.58, 0.60)],  # grey matter
    [(0.24, 0.28, 0.29, 0.88), (0.16, 0.22, 0.24, 0.95)],  # CSF
    [(0.74, 0.56, 0.57, 0.66), (0.72, 0.62, 0.60, 0.74)],  # lesion: a look-alike of edema
    [(0.65, 0.52, 0.93, 0.59), (0.56, 0.58, 0.88, 0.62)],  # vessel, meninges, choroid plexus
    [(0.74, 0.55, 0.56, 0.67), (0.73, 0.60, 0.59, 0.76)],  # edema
    [(0.36, 0.33, 0.36, 0.83), (0.30, 0.29, 0.33, 0.90)],  # necrosis
    [(0.64, 0.42, 0.45, 0.78), (0.58, 0.46, 0.47, 0.84)],  # solid tumour without enhancement
    [(0.66, 0.51, 0.95, 0.61), (0.60, 0.57, 0.90, 0.66)],  # enhancing tumour
]


def _splines(count, extent, length):
    """(voxels, knots) cubic B-splines, one knot per `length` mm, rows of unit L2 norm."""
    knots = np.arange(-1, np.ceil(extent / length) + 2)
    t = np.abs((np.arange(count)[:, None] + 0.5) / count * extent / length - knots)
    weights = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.clip(2 - t, 0, None) ** 3 / 6)
    return weights / np.linalg.norm(weights, axis=1, keepdims=True)


def smooth_noise(rng, size, length):
    """Gaussian noise of mean 0 and variance 1 everywhere, correlated over about `length` mm."""
    bases = [_splines(n, extent, length) for n, extent in zip(size, FULL_SIZE, strict=True)]
    field = rng.standard_normal([basis.shape[1] for basis in bases])
    for basis in bases:  # each turn uses up the first axis and appends its fine one: x, y, z again
        field = np.tensordot(field, basis, axes=(0, 1))
    return field


def _head_frame(rng, size):
    """Every voxel's (x, y, z) in mm in the standard head: right, front, up from its centre."""
    indexes = np.ogrid[tuple(slice(n) for n in size)]
    offset, stretch = rng.uniform(-3, 3, 3), rng.uniform(0.95, 1.04, 3)
    return [
        (((i + 0.5) / n - 0.5) * mm - o) / s + 2.5 * smooth_noise(rng, size, 60)
        for i, n, mm, o, s in zip(indexes, size, FULL_SIZE, offset, stretch, strict=True)
    ]


def _ellipsoid(frame, centre, axes):
    """Distance from `centre` in units of the half-axes: 1 on the surface."""
    return np.sqrt(sum(((p - c) / a) ** 2 for p, c, a in zip(frame, centre, axes, strict=True)))


def _anatomy(rng, size, frame):
    """The tissue of every voxel and the masks of brain and ventricles."""
    depth = BRAIN[0] * (1 - _ellipsoid(frame, (0, 0, 0), BRAIN))  # about mm below the surface
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
    return tissue, depth > 0, ventricle < 1


def _add_lookalikes(rng, tissue, depth, ventricle):
    """Write the ventricles, and healthy structures with the intensities of tumour."""
    size = tissue.shape
    white = tissue == Tissue.WHITE
    caps = ventricle < 1.3 + 0.2 * smooth_noise(rng, size, 20)
    tissue[white & (caps | (smooth_noise(rng, size, 12) > 1.5))] = Tissue.LESION
    # A vessel is a tube around the line where two smooth fields vanish together.
    vessel = np.hypot(smooth_noise(rng, size, 24), smooth_noise(rng, size, 24)) < 0.32
    meninges = (depth < 3.5) & (smooth_noise(rng, size, 30) > 0.2)
    tissue[(vessel & (depth < 30)) | meninges] = Tissue.VESSEL
    tissue[ventricle < 1] = Tissue.CSF
    tissue[(ventricle < 1) & (smooth_noise(rng, size, 9) > 0.9)] = Tissue.VESSEL


def _innermost(level, region, share):
    """The part of `region` with the lowest `level`, `share` of its volume."""
    return region & (level <= np.quantile(level[region], share))


def _blob(rng, size, frame):
    """A level that rises outwards from a random centre, with an irregular smooth boundary."""
    direction = rng.standard_normal(3)
    direction[0] += np.copysign(0.8, direction[0])  # tumours of the midline are rare
    direction *= rng.uniform(0.3, 0.6) / np.linalg.norm(direction)
    distance = _ellipsoid(frame, direction * BRAIN, rng.uniform(24, 34, 3))
    return distance + 0.22 * smooth_noise(rng, size, 40) + 0.05 * smooth_noise(rng, size, 20)


def _add_tumour(rng, tissue, frame, host):
    """Write edema and core into `tissue`, inside the mask `host`. Shares are of volume."""
    size = tissue.shape
    level = _blob(rng, size, frame)
    if rng.random() < 0.15:
        level = np.minimum(level, _blob(rng, size, frame) + 0.3)
    whole = _innermost(level, host, rng.uniform(0.12, 0.25))
    level += 0.15 * smooth_noise(rng, size, 30)  # the core does not follow the edema's boundary
    core = _innermost(level, whole, rng.uniform(0.4, 0.55))
    patches = smooth_noise(rng, size, 18)
    tissue[whole] = Tissue.EDEMA
    tissue[core] = Tissue.ENHANCING
    kinds = {  # what does not enhance, what it fills first, and its least and largest share
        "ring": (Tissue.NECROSIS, level + 0.05 * patches, 0.25, 0.4),
        "solid": (Tissue.NECROSIS, patches, 0.1, 0.2),
        "patchy": (Tissue.SOLID, patches, 0.4, 0.6),
        "plain": (Tissue.SOLID, patches, 1, 1),
    }
    other, order, low, high = kinds[rng.choice(list(kinds), p=[0.5, 0.2, 0.2, 0.1])]
    tissue[_innermost(order, core, rng.uniform(low, high))] = other


def _acquire(rng, tissue, brain, contrast):
    """The intensities of one modality inside the brain, all positive: (brain voxels,) float64."""
    contrast = contrast + 0.03 * rng.standard_normal(contrast.shape)
    signal = gaussian_filter(contrast[tissue], rng.uniform(0.3, 0.5), truncate=3)  # partial volume
    signal += 0.03 * smooth_noise(rng, tissue.shape, 16)  # texture of the tissue
    signal *= np.exp(0.2 * smooth_noise(rng, tissue.shape, 110))  # bias field
    real, imaginary = rng.uniform(0.025, 0.045) * rng.standard_normal((2, brain.sum()))
    signal = 1000 * rng.uniform(0.7, 1.4) * np.hypot(signal[brain] + real, imaginary)
    return np.clip(np.rint(signal), 1, np.iinfo(np.int16).max)


def make_case(
    index: int, *, size: Size = FULL_SIZE, seed: int = 0, family: str = "a", tumour: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """One phantom, a function of its arguments alone.

    Parameters
    ----------
    index, seed : which head, neither negative
    size : voxels along x, y, z (RAS+), each at least 16, over 240 x 240 x 155 mm in all
    family : the contrast table, "a" or "b"
    tumour : False gives the same head without a tumour

    Returns
    -------
    image : (X, Y, Z, 4) int16, FLAIR, T1w, t1gd, T2w: 0 outside the brain, at least 1 inside
    label : (X, Y, Z) uint8, 0 background, 1 edema, 2 non-enhancing, 3 enhancing tumour

    Raises
    ------
    InputError : an argument outside these ranges
    """
    size = checked(size, family, index=index, seed=seed)
    anatomy_rng, tumour_rng, scanner_rng = np.random.default_rng([seed, index]).spawn(3)
    frame = _head_frame(anatomy_rng, size)
    tissue, brain, ventricles = _anatomy(anatomy_rng, size, frame)
    if tumour:
        _add_tumour(tumour_rng, tissue, frame, brain & ~ventricles)
    tissue[~brain] = Tissue.CSF  # what the partial volume of the surface mixes with
    contrast = np.array(CONTRAST)[:, FAMILIES.index(family)]
    image = np.zeros((*size, len(MODALITIES)), np.int16)
    for channel, rng in enumerate(scanner_rng.spawn(len(MODALITIES))):
        image[brain, channel] = _acquire(rng, tissue, brain, contrast[:, channel])
    return image, LABELS[tissue]


def checked(size: Size, family: str, **counts: int) -> Size:
    """The size as a tuple of int, or an InputError about the first bad argument."""
    if family not in FAMILIES:
        raise InputError(f"family: got {family!r}, expected one of {', '.join(FAMILIES)}")
    for name, value in counts.items():
        least = int(name in ("cases", "workers"))
        if value < least:
            raise InputError(f"{name}: got {value}, expected {least} or more")
    size = tuple(int(n) for n in size)
    if len(size) != 3 or min(size) < 16:  # below it the structures are thinner than a voxel
        raise InputError(f"size: got {size}, expected three numbers of voxels >= 16")
    return size
