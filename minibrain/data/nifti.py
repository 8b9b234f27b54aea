"""Reading NIfTI files that may be damaged or hostile, and writing files that never are.

A gzip stream ends in a checksum, but a reader that stops after the last voxel never sees it: most
single-bit errors then load as silently wrong data. Reading one byte past the voxels forces the
check, so `read` and `read_label` always take four steps:

1. read the header alone and refuse what cannot be right (dimensions, type, offset, affine);
2. compare the size it declares with a limit, before anything is read or allocated for it;
3. read exactly that many bytes, a block at a time, converting each block as it comes;
4. ask for one more byte, which must not exist.

Axes are (X, Y, Z) or (X, Y, Z, C) and affines map voxel indices to millimetres in RAS+ world
coordinates, both exactly as in the file.
"""

import gzip
import math
import os
import secrets
import stat
import warnings
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.orientations import (
    apply_orientation,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from nibabel.spatialimages import HeaderDataError

from minibrain.errors import InputError

MAX_BYTES = 4 * 2**30
MAX_EXTENSION_BYTES = 64 * 2**20  # what may stand between header and voxels
BLOCK_VOXELS = 2**20  # converted at a time: small enough to stay in cache
LABEL_TOLERANCE = 1e-3  # labels saved as scaled integers come back as 0.99999999977
METRES, MILLIMETRES, MICROMETRES = 1, 2, 3  # the spatial codes of xyzt_units
SCANNER = 1  # qform and sform code: world coordinates are the scanner's


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
    """

    array: np.ndarray
    affine: np.ndarray

    @property
    def spacing(self) -> np.ndarray:
        """(3,) distances between neighbouring voxels along X, Y and Z, in mm."""
        return _spacing(self.affine)


class _Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int  # of the first voxel, counted from the end of the header
    scaling: tuple[float, float] | None  # slope and intercept
    affine: np.ndarray
    warning: str | None


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
    with _explained(path), _opened(path) as stream:
        header = _read_header(stream, max_bytes)
        voxels = np.empty(math.prod(header.shape), np.float32)
        for part, values in _blocks(stream, header):
            with np.errstate(all="ignore"):
                voxels[part] = values
            bad = ~np.isfinite(voxels[part])
            voxels[part][bad] = 0
            nonfinite += np.count_nonzero(bad)
        if nonfinite and not repair_nonfinite:
            raise ValueError(
                f"{nonfinite} voxels are NaN or infinite: expected finite intensities "
                "(repair_nonfinite=True sets them to zero)"
            )
    if nonfinite:
        warnings.warn(f"{path}: {nonfinite} NaN or infinite voxels set to zero", stacklevel=2)
    if header.warning:
        warnings.warn(f"{path}: {header.warning}", stacklevel=2)
    return Volume(voxels.reshape(header.shape, order="F"), header.affine)


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
    with _explained(path), _opened(path) as stream:
        header = _read_header(stream, MAX_BYTES)
        if len(header.shape) != 3:
            raise ValueError(f"shape {header.shape}: expected a label of 3 dimensions")
        labels = np.empty(math.prod(header.shape), np.uint8)
        for part, values in _blocks(stream, header):
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
    tolerance: float = 1e-3,
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
    apart = _largest_distance(image.affine, label.affine, image.array.shape)
    if apart > tolerance:
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
    NiftiError : the array or affine is not as above, or the file cannot be written
    """
    array = np.asarray(array)
    with _explained(path):
        if array.ndim != 3 or array.size == 0 or array.dtype.kind not in "biu":
            raise ValueError(f"{array.dtype} array of shape {array.shape}: expected 3-D integers")
        if array.min() < 0 or array.max() > 255:
            raise ValueError(f"labels {array.min()} to {array.max()}: expected 0 to 255")
        _write(Path(path), array.astype(np.uint8), affine)


def write_image(path: str | os.PathLike, array: np.ndarray, affine: np.ndarray) -> None:
    """Write an (X, Y, Z) or (X, Y, Z, C) image of int16 or finite float32, as `write_prediction`.

    Raises
    ------
    NiftiError : the array or affine is not as above, or the file cannot be written
    """
    array = np.asarray(array)
    with _explained(path):
        if array.ndim not in (3, 4) or array.size == 0 or array.dtype not in (np.int16, np.float32):
            raise ValueError(
                f"{array.dtype} array of shape {array.shape}: expected 3-D or 4-D int16 or float32"
            )
        if not np.isfinite(array).all():
            raise ValueError("NaN or infinite voxels: expected finite intensities")
        _write(Path(path), array, affine)


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


def from_canonical(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Undo `to_canonical`; `affine` is the one given to it, not the one it returned."""
    canonical = io_orientation(np.eye(4))
    return apply_orientation(array, ornt_transform(canonical, io_orientation(affine)))


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a file to read bytes; unlike `open`, never wait for the other end of a FIFO.

    Raises
    ------
    OSError : there is no such file, or it is a directory, FIFO or device
    """
    no_wait = getattr(os, "O_NONBLOCK", 0)
    stream = open(path, "rb", opener=lambda name, flags: os.open(name, flags | no_wait))
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError("not a regular file")
    return stream


@contextmanager
def _explained(path: str | os.PathLike) -> Iterator[None]:
    """Turn every way that reading or writing can fail into a NiftiError naming the file."""
    try:
        yield
    except (OSError, EOFError, zlib.error, MemoryError, HeaderDataError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NiftiError(f"{path}: {reason}") from error


@contextmanager
def _opened(path: str | os.PathLike) -> Iterator[BinaryIO]:
    compressed = _is_compressed(path)
    with open_regular(path) as file:
        if compressed:
            with gzip.GzipFile(fileobj=file, mode="rb") as stream:
                yield stream
        else:
            yield file


def _is_compressed(path: str | os.PathLike) -> bool:
    name = os.fspath(path).lower()
    if not name.endswith((".nii", ".nii.gz")):
        raise ValueError("expected a name that ends in .nii or .nii.gz")
    return name.endswith(".gz")


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise ValueError(f"truncated: {count - len(data)} bytes short of what was declared")
    return data


def _blocks(stream: BinaryIO, header: _Header) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield (where, values) through the voxels in the order of the file, then require its end."""
    for start in range(0, header.offset, BLOCK_VOXELS):
        _exactly(stream, min(BLOCK_VOXELS, header.offset - start))
    size = math.prod(header.shape)
    for start in range(0, size, BLOCK_VOXELS):
        stop = min(start + BLOCK_VOXELS, size)
        values = np.frombuffer(
            _exactly(stream, (stop - start) * header.dtype.itemsize), header.dtype
        )
        if header.scaling:
            slope, intercept = header.scaling
            with np.errstate(all="ignore"):  # what overflows is reported as not finite
                values = values.astype(np.float64) * slope + intercept
        yield slice(start, stop), values
    if stream.read(1):  # also makes gzip compare its checksum
        raise ValueError("more bytes than the header declares")


def _round_labels(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest uint8 of each value, and whether the value stands for it."""
    if values.dtype == np.uint8:
        return values, np.ones(values.shape, bool)
    with np.errstate(all="ignore"):
        values = values.astype(np.float64, copy=False)
        nearest = np.rint(values)
        whole = (np.abs(values - nearest) < LABEL_TOLERANCE) & (nearest >= 0) & (nearest <= 255)
    return np.where(whole, nearest, 0).astype(np.uint8), whole


def _read_header(stream: BinaryIO, max_bytes: int) -> _Header:
    """Read the header alone and refuse whatever the voxels could not be trusted under."""
    start = _exactly(stream, 4)
    kinds = {
        size.to_bytes(4, order): (size, "<" if order == "little" else ">", kind)
        for size, kind in ((348, Nifti1Header), (540, Nifti2Header))
        for order in ("little", "big")
    }
    if start not in kinds:
        raise ValueError("not a NIfTI file: expected a header of 348 or 540 bytes")
    size, endianness, kind = kinds[start]
    header = kind(start + _exactly(stream, size - 4), endianness=endianness, check=False)
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
    return _Header(shape, dtype, int(offset) - size, _checked_scaling(header), affine, warning)


def _checked_shape(header: Nifti1Header) -> tuple[int, ...]:
    rank, *dims = header["dim"].tolist()
    if rank not in (3, 4):
        raise ValueError(f"{rank} dimensions: expected 3 or 4")
    if min(dims[:rank]) < 1:
        raise ValueError(f"shape {tuple(dims[:rank])}: expected at least 1 voxel along every axis")
    return tuple(dims[:rank])


def _checked_dtype(header: Nifti1Header) -> np.dtype:
    dtype = header.get_data_dtype()
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
        affine = _checked_affine(header.get_best_affine())
        if header["sform_code"] == 0 or header["qform_code"] == 0:
            return affine, None
        try:
            apart = _largest_distance(affine, header.get_qform(), shape)
        except (HeaderDataError, ValueError):
            return affine, "qform is not a rotation: the sform is used"
        if not apart <= _spacing(affine).min() / 2:
            return affine, f"qform and sform disagree by up to {apart:.3g} mm: the sform is used"
    return affine, None


def _checked_affine(affine: np.ndarray) -> np.ndarray:
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise ValueError("affine holds NaN or infinity, or is not 4x4: expected finite mm")
    spacing = _spacing(affine)
    if not np.all((spacing > 0) & np.isfinite(spacing)):
        raise ValueError(f"voxel spacing {spacing} mm: expected positive numbers")
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3 or np.any(affine[3] != (0, 0, 0, 1)):
        raise ValueError("affine does not span space: expected three independent axes")
    return affine


def _spacing(affine: np.ndarray) -> np.ndarray:
    return np.sqrt(np.sum(affine[:3, :3] ** 2, axis=0))


def _largest_distance(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> float:
    """The distance (mm) between the two places of a voxel is largest in one of the corners."""
    corners = np.indices((2, 2, 2)).reshape(3, 8) * (np.array(shape[:3]) - 1)[:, None]
    moved = (a - b)[:3, :3] @ corners + (a - b)[:3, 3:]
    return float(np.sqrt(np.sum(moved**2, axis=0)).max())


def _write(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write a fresh header and the voxels to a temporary file beside `path`, then rename it."""
    compressed = _is_compressed(path)
    if max(array.shape) > np.iinfo(np.int16).max:
        raise ValueError(f"shape {array.shape}: expected at most 32767 voxels along an axis")
    with np.errstate(all="ignore"):  # float32 is what NIfTI-1 stores
        affine = _checked_affine(np.asarray(affine).astype(np.float32).astype(np.float64))
    header = Nifti1Header(endianness="<")
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_sform(affine, code=SCANNER)
    header.set_qform(affine, code=SCANNER)
    header.set_slope_inter(1, 0)
    header["xyzt_units"] = MILLIMETRES
    header["vox_offset"] = Nifti1Header.single_vox_offset
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            if compressed:  # no name and no time, so that equal voxels give equal files
                with gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as stream:
                    _write_voxels(stream, header, array)
            else:
                _write_voxels(file, header, array)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_voxels(stream: BinaryIO, header: Nifti1Header, array: np.ndarray) -> None:
    stream.write(header.binaryblock + bytes(4))  # four zeros: no extensions
    for part in array.T:  # last axis outermost, X fastest, one slice or channel at a time
        stream.write(part.astype(part.dtype.newbyteorder("<"), copy=False).tobytes())
