"""What a NIfTI header may say: everything that the voxels could not be trusted under is refused.

The functions raise ValueError with a reason; `minibrain.data.nifti` adds the file's name.
"""

import math
from typing import BinaryIO, NamedTuple

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

MAX_EXTENSION_BYTES = 64 * 2**20  # what may stand between header and voxels
METRES, MILLIMETRES, MICROMETRES = 1, 2, 3  # the spatial codes of xyzt_units


class Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int  # of the first voxel, counted from the end of the header
    scaling: tuple[float, float] | None  # slope and intercept
    affine: np.ndarray
    warning: str | None


def read_header(stream: BinaryIO, max_bytes: int) -> Header:
    """Read the header alone and refuse whatever the voxels could not be trusted under."""
    start = read_exactly(stream, 4)
    kinds = {
        size.to_bytes(4, order): (size, "<" if order == "little" else ">", kind)
        for size, kind in ((348, Nifti1Header), (540, Nifti2Header))
        for order in ("little", "big")
    }
    if start not in kinds:
        raise ValueError("not a NIfTI file: expected a header of 348 or 540 bytes")
    size, endianness, kind = kinds[start]
    header = kind(start + read_exactly(stream, size - 4), endianness=endianness, check=False)
    if header["magic"].item() != kind.single_magic.rstrip(b"\0"):
        raise ValueError(f"magic {header['magic'].item()!r}: expected a single-file NIfTI image")
    if int(header["xyzt_units"]) & 7 in (METRES, MICROMETRES):
        raise ValueError("lengths in metres or micrometres: expected millimetres")
    shape = _checked_shape(header)
    dtype = _checked_dtype(header)
    if math.prod(shape) * dtype.itemsize > max_bytes:
        raise ValueError(
            f"shape {shape} of {dtype.name} declares {math.prod(shape) * dtype.itemsize} bytes: "
            f"expected at most {max_bytes}"
        )
    offset = float(header["vox_offset"])
    if not (offset.is_integer() and 0 <= offset - size - 4 <= MAX_EXTENSION_BYTES):
        raise ValueError(
            f"vox_offset {offset:g}: expected an integer from {size + 4} to "
            f"{size + 4 + MAX_EXTENSION_BYTES}"
        )
    affine, warning = _stored_affine(header, shape)
    return Header(shape, dtype, int(offset) - size, _checked_scaling(header), affine, warning)


def _checked_shape(header: Nifti1Header) -> tuple[int, ...]:
    rank, *dims = header["dim"].tolist()
    if rank not in (3, 4):
        raise ValueError(f"{rank} dimensions: expected 3 or 4")
    if min(dims[:rank]) < 1:
        raise ValueError(f"shape {tuple(dims[:rank])}: expected at least 1 voxel along every axis")
    return tuple(dims[:rank])


def _checked_dtype(header: Nifti1Header) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except KeyError as error:
        raise ValueError(f"datatype {error}: expected one that NIfTI defines") from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ValueError(f"voxels of type {dtype}: expected integers or floats of 8 to 64 bits")
    if header["bitpix"] != 8 * dtype.itemsize:
        raise ValueError(
            f"bitpix {header['bitpix']}: expected {8 * dtype.itemsize} for {dtype.name}"
        )
    return dtype


def _checked_scaling(header: Nifti1Header) -> tuple[float, float] | None:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope) or (slope, intercept) == (1, 0):
        return None  # NIfTI: a slope of 0 means unscaled, and so do writers of NaN
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise ValueError(f"scl_slope {slope:g}, scl_inter {intercept:g}: expected finite numbers")
    return slope, intercept


def _stored_affine(header: Nifti1Header, shape: tuple[int, ...]) -> tuple[np.ndarray, str | None]:
    """Return the sform, else the qform, else the spacing alone; and whether the forms disagree.

    Quaternions in float32 are off by up to 1e-3 near half turns, so only half a voxel counts.
    """
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1  # NIfTI: a qfac of 0 means 1
    with np.errstate(all="ignore"):
        affine = checked_affine(header.get_best_affine())
        if header["sform_code"] == 0 or header["qform_code"] == 0:
            return affine, None
        try:
            apart = largest_distance(affine, header.get_qform(), shape)
        except (HeaderDataError, ValueError):
            return affine, "qform is not a rotation: the sform is used"
        if not apart <= spacing_of(affine).min() / 2:
            return affine, f"qform and sform disagree by up to {apart:.3g} mm: the sform is used"
    return affine, None


def checked_affine(affine: np.ndarray) -> np.ndarray:
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise ValueError("affine holds NaN or infinity, or is not 4x4: expected finite mm")
    spacing = spacing_of(affine)
    if not np.all((spacing > 0) & np.isfinite(spacing)):
        raise ValueError(f"voxel spacing {spacing} mm: expected positive numbers")
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3 or np.any(affine[3] != (0, 0, 0, 1)):
        raise ValueError("affine does not span space: expected three independent axes")
    return affine


def spacing_of(affine: np.ndarray) -> np.ndarray:
    return np.sqrt(np.sum(affine[:3, :3] ** 2, axis=0))


def largest_distance(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> float:
    """The distance (mm) between the two places of a voxel is largest in one of the corners."""
    corners = np.indices((2, 2, 2)).reshape(3, 8) * (np.array(shape[:3]) - 1)[:, None]
    with np.errstate(all="ignore"):  # hostile affines may overflow; NaN is never <= a tolerance
        moved = (a - b)[:3, :3] @ corners + (a - b)[:3, 3:]
        return float(np.sqrt(np.sum(moved**2, axis=0)).max())


def read_exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise ValueError(f"truncated: {count - len(data)} bytes short of what was declared")
    return data
