"""Reading NIfTI files that may be damaged or hostile, and writing files that never are.

A gzip stream ends in a checksum, but a reader that stops after the last voxel never sees it: most
single-bit errors then load as silently wrong data. Reading one byte past the voxels forces the
check, so `read` and `read_label` always take four steps:

1. read the header alone and refuse what cannot be right (dimensions, type, offset, affine);
2. compare the size it declares with a limit, before anything is read or allocated for it;
3. read exactly that many bytes, a block at a time, converting each block as it comes;
4. ask for one more byte, which must not exist.

An uncompressed .nii has no checksum: there, only damage to its header or length can be seen.

Axes are (X, Y, Z) or (X, Y, Z, C) and affines map voxel indices to millimetres in RAS+ world
coordinates, both exactly as in the file.
"""

import math
import os
import warnings
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from nibabel.spatialimages import HeaderDataError

from minibrain.data.nifti_file import blocks, opened, write_file
from minibrain.data.nifti_header import largest_distance, read_header, spacing_of
from minibrain.errors import InputError

MAX_BYTES = 4 * 2**30
MOST_APART = 1e-3  # mm between the places that two affines give one voxel
LABEL_TOLERANCE = 1e-3  # labels saved as scaled integers come back as 0.99999999977


class NiftiError(InputError):
    """A NIfTI file cannot be read or written; the message names the file and the reason."""


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels and where they lie.

    Attributes
    ----------
    array : (X, Y, Z) or (X, Y, Z, C)
        X varies fastest in memory, as in the file.
    affine : (4, 4) float64
        Voxel indices to world coordinates (mm, RAS+).
    repaired : int
        Voxels that were NaN or infinite and have been set to zero.
    """

    array: np.ndarray
    affine: np.ndarray
    repaired: int = 0

    @property
    def spacing(self) -> np.ndarray:
        """(3,) distances between neighbouring voxels along X, Y and Z, in mm."""
        return spacing_of(self.affine)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000


def read(
    path: str | os.PathLike, *, max_bytes: int = MAX_BYTES, repair_nonfinite: bool = False
) -> Volume:
    """Read an image of 3 or 4 dimensions, in the intensity units of the file.

    Parameters
    ----------
    path : .nii or .nii.gz, NIfTI-1 or NIfTI-2
    max_bytes : limit on the voxel data that the header declares, uncompressed
    repair_nonfinite : set NaN and infinite voxels to zero, with a warning that counts them

    Returns
    -------
    Volume of float32, scl_slope and scl_inter applied

    Raises
    ------
    NiftiError : the file is damaged, too large, not a real-valued 3-D or 4-D NIfTI image, or
        holds voxels that are not finite (in float32, after scaling)
    """
    nonfinite = 0
    with _explained(path), opened(path) as stream:
        header = read_header(stream, max_bytes)
        voxels = np.empty(math.prod(header.shape), np.float32)
        for part, values in blocks(stream, header):
            with np.errstate(all="ignore"):
                voxels[part] = values
            bad = ~np.isfinite(voxels[part])
            voxels[part][bad] = 0
            nonfinite += int(np.count_nonzero(bad))
        if nonfinite and not repair_nonfinite:
            raise ValueError(
                f"NaN or infinite voxels: {nonfinite}, expected finite intensities (train and "
                "predict set them to zero with --repair-nonfinite)"
            )
    if nonfinite:
        warnings.warn(f"{path}: NaN or infinite voxels set to zero: {nonfinite}", stacklevel=2)
    if header.warning:
        warnings.warn(f"{path}: {header.warning}", stacklevel=2)
    return Volume(voxels.reshape(header.shape, order="F"), header.affine, nonfinite)


def read_label(path: str | os.PathLike, *, allowed: Collection[int] | None = None) -> Volume:
    """Read a segmentation, stored as any real type, without changing a single label.

    Parameters
    ----------
    path : .nii or .nii.gz of three dimensions
    allowed : the labels that may occur, of 0..255; by default all of these

    Returns
    -------
    Volume of uint8: each value rounded to the integer that it must lie within 1e-3 of

    Raises
    ------
    NiftiError : as `read`; or values are fractional or not allowed, which the message lists
    """
    permitted = np.full(256, allowed is None)
    permitted[list(allowed or ())] = True
    wrong: set[float] = set()
    with _explained(path), opened(path) as stream:
        header = read_header(stream, MAX_BYTES)
        if len(header.shape) != 3:
            raise ValueError(f"shape {header.shape}: expected a label of 3 dimensions")
        labels = np.empty(math.prod(header.shape), np.uint8)
        for part, values in blocks(stream, header):
            labels[part], whole = _round_labels(values)
            bad = ~(whole & permitted[labels[part]])
            wrong.update(np.unique(values[bad])[:11].tolist())
        if wrong:
            listed = ", ".join(f"{value:.6g}" for value in sorted(wrong)[:10])
            more = ", ..." if len(wrong) > 10 else ""
            expected = "integers 0 to 255" if allowed is None else f"only {sorted(allowed)}"
            raise ValueError(f"label values {listed}{more}: expected {expected}")
    if header.warning:
        warnings.warn(f"{path}: {header.warning}", stacklevel=2)
    return Volume(labels.reshape(header.shape, order="F"), header.affine)


def check_same_space(
    image: Volume,
    label: Volume,
    *,
    image_path: str | os.PathLike,
    label_path: str | os.PathLike,
    tolerance: float = MOST_APART,
) -> None:
    """Require that a label (or another channel) overlays an image.

    Raises
    ------
    NiftiError : the (X, Y, Z) shapes differ, or the affines put a voxel more than `tolerance`
        mm apart
    """
    if image.array.shape[:3] != label.array.shape[:3]:
        raise NiftiError(
            f"{label_path}: shape {label.array.shape[:3]}: expected {image.array.shape[:3]}, "
            f"as in {image_path}"
        )
    apart = largest_distance(image.affine, label.affine, image.array.shape)
    if not apart <= tolerance:
        raise NiftiError(
            f"{label_path}: affine puts voxels up to {apart:.4g} mm from where {image_path} "
            f"has them: expected at most {tolerance:g} mm"
        )


def write_prediction(path: str | os.PathLike, array: np.ndarray, affine: np.ndarray) -> None:
    """Write a segmentation as uint8, unscaled, replacing `path` only once it is complete.

    Parameters
    ----------
    path : .nii or .nii.gz; the same input always gives the same bytes
    array : (X, Y, Z) integers or booleans, 0..255
    affine : (4, 4), stored as qform and sform

    Raises
    ------
    NiftiError : the array or affine is not as above
    InputError : the file cannot be written
    """
    array = np.asarray(array)
    with _explained(path):
        if array.ndim != 3 or array.size == 0 or array.dtype.kind not in "biu":
            raise ValueError(f"{array.dtype} array of shape {array.shape}: expected 3-D integers")
        if array.min() < 0 or array.max() > 255:
            raise ValueError(f"labels {array.min()} to {array.max()}: expected 0 to 255")
        write_file(Path(path), array.astype(np.uint8), affine)


def write_image(path: str | os.PathLike, array: np.ndarray, affine: np.ndarray) -> None:
    """Write an (X, Y, Z) or (X, Y, Z, C) image of int16 or finite float32, as `write_prediction`.

    Raises
    ------
    NiftiError : the array or affine is not as above
    InputError : the file cannot be written
    """
    array = np.asarray(array)
    with _explained(path):
        if (
            array.ndim not in (3, 4)
            or array.size == 0
            or array.dtype.newbyteorder("=") not in (np.int16, np.float32)
        ):
            raise ValueError(
                f"{array.dtype} array of shape {array.shape}: expected 3-D or 4-D int16 or float32"
            )
        if not np.isfinite(array).all():
            raise ValueError("NaN or infinite voxels: expected finite intensities")
        write_file(Path(path), array, affine)


def to_canonical(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Permute and flip X, Y, Z to the nearest RAS+ axes (right, anterior, superior).

    Returns
    -------
    array : a view
    affine : (4, 4), which puts every voxel where it was
    """
    orientation = io_orientation(affine)
    moved = affine @ inv_ornt_aff(orientation, array.shape[:3])
    return apply_orientation(array, orientation), moved


@contextmanager
def _explained(path: str | os.PathLike) -> Iterator[None]:
    """Turn every way that reading or writing can fail into a NiftiError naming the file."""
    try:
        yield
    except InputError:
        raise
    except (OSError, EOFError, zlib.error, MemoryError, HeaderDataError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NiftiError(f"{path}: {reason}") from error


def _round_labels(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest uint8 of each value, and whether the value stands for it."""
    if values.dtype == np.uint8:
        return values, np.ones(values.shape, bool)
    with np.errstate(all="ignore"):
        values = values.astype(np.float64, copy=False)
        nearest = np.rint(values)
        whole = (np.abs(values - nearest) < LABEL_TOLERANCE) & (nearest >= 0) & (nearest <= 255)
    return np.where(whole, nearest, 0).astype(np.uint8), whole
