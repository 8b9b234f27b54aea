"""NIfTI files as streams of bytes: opened without waiting, read to the last byte, written whole.

The functions raise ValueError or OSError with a reason; `minibrain.data.nifti` adds the file's
name, and says why every byte is read.
"""

import gzip
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from nibabel.nifti1 import Nifti1Header

from minibrain.data.nifti_header import MILLIMETRES, Header, checked_affine, read_exactly
from minibrain.files import replacing

BLOCK_VOXELS = 2**20  # converted at a time: small enough to stay in cache
SCANNER = 1  # qform and sform code: world coordinates are the scanner's


@contextmanager
def open_regular(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file to read bytes; unlike `open`, never wait for the other end of a FIFO.

    Raises
    ------
    OSError : there is no such file, or it is a directory, FIFO or device
    """
    no_wait = getattr(os, "O_NONBLOCK", 0)
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | no_wait)) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OSError("not a regular file")
        yield stream


@contextmanager
def opened(path: str | os.PathLike) -> Iterator[BinaryIO]:
    compressed = is_compressed(path)
    with open_regular(path) as file:
        if compressed:
            with gzip.GzipFile(fileobj=file, mode="rb") as stream:
                yield stream
        else:
            yield file


def is_compressed(path: str | os.PathLike) -> bool:
    name = os.fspath(path).lower()
    if not name.endswith((".nii", ".nii.gz")):
        raise ValueError("expected a name that ends in .nii or .nii.gz")
    return name.endswith(".gz")


def blocks(stream: BinaryIO, header: Header) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield (where, values) through the voxels in the order of the file, then require its end."""
    for start in range(0, header.offset, BLOCK_VOXELS):
        read_exactly(stream, min(BLOCK_VOXELS, header.offset - start))
    size = math.prod(header.shape)
    for start in range(0, size, BLOCK_VOXELS):
        stop = min(start + BLOCK_VOXELS, size)
        values = np.frombuffer(
            read_exactly(stream, (stop - start) * header.dtype.itemsize), header.dtype
        )
        if header.scaling:
            slope, intercept = header.scaling
            with np.errstate(all="ignore"):  # what overflows is reported as not finite
                values = values.astype(np.float64) * slope + intercept
        yield slice(start, stop), values
    if stream.read(1):  # also makes gzip compare its checksum
        raise ValueError("more bytes than the header declares")


def write_file(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write a fresh header and the voxels to a temporary file beside `path`, then rename it."""
    compressed = is_compressed(path)
    if max(array.shape) > np.iinfo(np.int16).max:
        raise ValueError(f"shape {array.shape}: expected at most 32767 voxels along an axis")
    with np.errstate(all="ignore"):  # float32 is what NIfTI-1 stores
        affine = checked_affine(np.asarray(affine).astype(np.float32).astype(np.float64))
    header = Nifti1Header(endianness="<")
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_sform(affine, code=SCANNER)
    header.set_qform(affine, code=SCANNER)
    header.set_slope_inter(1, 0)
    header["xyzt_units"] = MILLIMETRES
    header["vox_offset"] = Nifti1Header.single_vox_offset
    with replacing(path) as file:
        if compressed:  # no name and no time, so that equal voxels give equal files
            with gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as stream:
                _write_voxels(stream, header, array)
        else:
            _write_voxels(file, header, array)


def _write_voxels(stream: BinaryIO, header: Nifti1Header, array: np.ndarray) -> None:
    stream.write(header.binaryblock + bytes(4))  # four zeros: no extensions
    for part in array.T:  # last axis outermost, X fastest, one slice or channel at a time
        stream.write(part.astype(part.dtype.newbyteorder("<"), copy=False).tobytes())
