"""Networks and their training on disk: stored .npz files that are never trusted.

A checkpoint is a zip of plain .npy arrays, uncompressed, and one of them is JSON. Nothing in it is
ever executed, its size bounds what reading it can cost, and zip's checksums catch damage. Before
any array is read, its header must declare the size that the zip holds and the shape that the
network needs; only then is memory taken for it.
"""

import json
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

import numpy as np

from minibrain.arrays import like, to_host
from minibrain.errors import InputError
from minibrain.files import replacing
from minibrain.models import UNet
from minibrain.optimizers import Adam

# What zipfile and json raise for files that are not what was written: a flipped bit in the
# directory can ask for encryption (RuntimeError), deep JSON exhausts the stack (RecursionError).
UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    EOFError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    struct.error,
)
HEADER = re.compile(  # of a .npy file, exactly as NumPy writes it for numbers in C order
    rb"\x93NUMPY\x01\x00(..)(\{'descr': '([<|][fiu][1248])', 'fortran_order': False, "
    rb"'shape': \(((?:\d+,)?|\d+(?:, \d+)+)\), \} *\n)",
    re.DOTALL,
)
LONGEST_HEADER = 512  # bytes
NAME = re.compile(r"[\w./]+")  # of an array; others could do harm where they are printed


class DamagedError(InputError):
    """A file that is no checkpoint, or no longer."""


def save(path: Path, model: UNet, optimizer: Adam, about: dict, *, keep: Path | None = None):
    """Write parameters, running statistics, Adam's state and a JSON-able description.

    Parameters
    ----------
    keep : the name that the former file at `path` gets once the new one is on the disk
    """
    arrays = {f"network/{name}": p.value for name, p in _network(model).items()}
    arrays |= {
        "adam/mean": optimizer.mean,
        "adam/square": optimizer.square,
        "adam/steps": np.array(optimizer.steps),
        "adam/learning_rate": np.array(optimizer.learning_rate),
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
    }
    arrays = {name: np.asarray(to_host(array), order="C") for name, array in arrays.items()}
    with replacing(path, keep=keep) as file:
        np.savez(file, **arrays)


def load_network(path: Path, model: UNet) -> dict:
    """Read a network's parameters and running statistics into a model of the same structure.

    Returns
    -------
    about : the description it was saved with

    Raises
    ------
    DamagedError : not a checkpoint, or damaged; the model is then as it was
    InputError : of another network; likewise
    """
    arrays, about = _read(path, model)
    _set(model, arrays)
    return about


def load_training(path: Path, model: UNet, optimizer: Adam) -> dict:
    """As `load_network`, and Adam's state into an optimizer of the model's parameters."""
    arrays, about = _read(path, model)
    _set(model, arrays)
    optimizer.mean = like(arrays["adam/mean"], optimizer.mean)
    optimizer.square = like(arrays["adam/square"], optimizer.square)
    optimizer.steps = arrays["adam/steps"].item()
    optimizer.learning_rate = arrays["adam/learning_rate"].item()
    return about


def describe(path: Path) -> str:
    """What a checkpoint holds, as text for people; every byte of it is checked.

    Raises
    ------
    DamagedError : not a checkpoint, or damaged
    """
    with _opened(path) as arrays:
        about = _read_about(arrays["about"])
        for array in arrays.values():
            array.read()
    lines = [f"{path}: {len(arrays)} arrays, all whole"]
    for name, value in about.items():
        entries = value if isinstance(value, dict) else {"": value}
        texts = {key: shorten(_text(entries[key]), 60) for key in entries}
        lines += [_text(name), *(f"  {_text(key):36} {text}" for key, text in texts.items())]
    lines += ["arrays", *(f"  {name:36} {a.dtype!s:8} {a.shape}" for name, a in arrays.items())]
    return "\n".join(lines)


class _Array(NamedTuple):
    """An array in a file: what its header declares, which is what the file holds."""

    file: zipfile.ZipFile
    entry: zipfile.ZipInfo
    dtype: np.dtype
    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        """Reading to the end makes zipfile compare the checksum."""
        data = self.file.read(self.entry)
        size = self.dtype.itemsize * prod(self.shape)
        return np.frombuffer(data, self.dtype, offset=len(data) - size).reshape(self.shape).copy()


@contextmanager
def _opened(path: Path) -> Iterator[dict[str, _Array]]:
    """The arrays of a file by name, none of them read yet."""
    try:
        if not path.is_file():
            raise OSError("a folder, expected a file" if path.is_dir() else "no such file")
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise ValueError("its arrays would be larger than the file")
            arrays = {e.filename.removesuffix(".npy"): _declared(file, e) for e in entries}
            if len(arrays) < len(entries) or "about" not in arrays:
                raise ValueError("a name occurs twice or about is missing")
            if not all(map(NAME.fullmatch, arrays)):
                raise ValueError("an array has a name that none of ours has")
            yield arrays
    except InputError:
        raise
    except UNREADABLE as error:
        raise DamagedError(f"{path}: cannot be read as a checkpoint: {error}") from error


def _declared(file: zipfile.ZipFile, entry: zipfile.ZipInfo) -> _Array:
    """The array of one entry; its header is read, and must account for every byte of it."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise ValueError(f"{entry.filename} is compressed, expected it stored")
    with file.open(entry) as stream:
        header = HEADER.match(stream.read(LONGEST_HEADER))
    if header is None or int.from_bytes(header[1], "little") != len(header[2]):
        raise ValueError(f"{entry.filename} is not a plain array of numbers")
    dtype = np.dtype(header[3].decode())
    shape = tuple(int(size) for size in header[4].decode().split(",") if size)
    if header.end() + dtype.itemsize * prod(shape) != entry.file_size:
        raise ValueError(f"{entry.filename} does not hold the {dtype} {shape} that it declares")
    return _Array(file, entry, dtype, shape)


def _read_about(array: _Array) -> dict:
    about = json.loads(array.read().tobytes())
    if not isinstance(about, dict):
        raise ValueError("about is no JSON object")
    return about


def _text(value) -> str:
    """A JSON value in print; what a terminal would obey is escaped."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _read(path: Path, model: UNet) -> tuple[dict[str, np.ndarray], dict]:
    """All arrays of a checkpoint of this model, and its description."""
    network = _network(model)
    size = sum(parameter.value.size for parameter in model.named_parameters().values())
    shapes = {f"network/{name}": parameter.value.shape for name, parameter in network.items()}
    shapes |= {"adam/mean": (size,), "adam/square": (size,)}
    shapes |= {"adam/learning_rate": (), "adam/steps": ()}
    with _opened(path) as declared:
        about = declared.pop("about")
        if different := sorted(declared.keys() ^ shapes.keys()):
            name = different[0].removeprefix("network/")
            raise InputError(f"{path}: of another network: {name} is missing or not expected")
        for name, array in declared.items():
            found, expected = array.shape, shapes[name]
            if found != expected or array.dtype.kind != ("i" if name == "adam/steps" else "f"):
                name = name.removeprefix("network/")
                raise InputError(
                    f"{path}: {name} has shape {found} of {array.dtype}, expected {expected}"
                )
        about = _read_about(about)
        return {name: array.read() for name, array in declared.items()}, about


def _set(model: UNet, arrays: dict[str, np.ndarray]) -> None:
    for name, parameter in _network(model).items():
        parameter.value = like(arrays[f"network/{name}"], parameter.value)


def _network(model: UNet):
    return model.named_parameters() | model.named_buffers()
