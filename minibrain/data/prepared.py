"""Prepared cases on the disk: mapped arrays, and an index that says what they must be.

The folder is named by a fingerprint of the sources and the recipe. Every case has a checksum in
the index, which is compared when a run finds the case prepared.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minibrain.data.decathlon import Task
from minibrain.data.nifti import MOST_APART
from minibrain.errors import InputError
from minibrain.files import read_json, write_json

FORMAT = 1  # of the cache; another number makes every older cache unknown


@dataclass(frozen=True)
class Geometry:
    """Where a prepared array comes from; with it `restore` undoes crop and orientation."""

    shape: tuple[int, int, int]  # of the file, in its own axes
    affine: tuple[tuple[float, ...], ...]  # of the file: voxel to mm, (4, 4)
    box: tuple[tuple[int, int], ...]  # (start, stop) per RAS+ axis; may reach outside the volume

    @property
    def prepared_shape(self) -> tuple[int, ...]:
        return tuple(stop - start for start, stop in self.box)


@dataclass(frozen=True)
class PreparedCase:
    """One case in the cache.

    Its arrays are mapped anew at each access: a mapping that stays open holds a file descriptor,
    and a task has more cases than a process may have files open.
    """

    name: str
    folder: Path
    voxels: tuple[int, ...]  # per class, within the box
    geometry: Geometry
    checksum: int  # of both arrays
    repaired: int  # voxels of the file, over all channels, that were not finite and became 0

    @property
    def tumour_fraction(self) -> float:
        return sum(self.voxels[1:]) / sum(self.voxels)

    @property
    def image(self) -> np.ndarray:
        """(X, Y, Z, C) float32, RAS+, normalised; read-only."""
        return _map(self.folder / f"{self.name}.image.npy")

    @property
    def label(self) -> np.ndarray:
        """(X, Y, Z) uint8, RAS+; read-only."""
        return _map(self.folder / f"{self.name}.label.npy")


@dataclass(frozen=True)
class Prepared:
    """The training cases of a task: those to learn from, and those with too little tumour."""

    cases: tuple[PreparedCase, ...]
    dropped: tuple[PreparedCase, ...]

    @property
    def fingerprint(self) -> str:
        """A hash of the prepared cases' names and content, wherever they lie."""
        cases = sorted(self.cases + self.dropped, key=lambda case: case.name)
        content = [(c.name, c.voxels, asdict(c.geometry), c.checksum) for c in cases]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    @property
    def repaired(self) -> int:
        """Voxels that were not finite and became 0, of all cases."""
        return sum(case.repaired for case in self.cases + self.dropped)


def cache_name(task: Task, recipe: str) -> str:
    """The folder's name, a fingerprint of all that the prepared arrays depend on and of what they
    were allowed to be made of; no image is opened for it."""
    digest = hashlib.sha256((task.folder / "dataset.json").read_bytes())
    allowed = "|nonfinite voxels are 0" if task.repair_nonfinite else ""
    if task.affine_tolerance != MOST_APART:
        allowed += f"|{task.affine_tolerance} mm apart"
    digest.update(f"|format {FORMAT}|{recipe}{allowed}".encode())
    for path in (path for case in task.training for path in (*case.images, case.label)):
        relative, status = os.path.relpath(path, task.folder), path.stat()
        digest.update(f"|{relative}|{status.st_size}|{status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def write_index(folder: Path, cases: Sequence[PreparedCase]) -> None:
    own = ("name", "voxels", "checksum", "repaired")
    index = [{key: getattr(c, key) for key in own} | asdict(c.geometry) for c in cases]
    write_json(folder / "index.json", index)


def read_index(folder: Path, task: Task, workers: int) -> list[PreparedCase] | None:
    """The labelled cases of a task, if all are there and as the index says."""
    if not (folder / "index.json").exists():
        return None
    try:
        records = read_json(folder / "index.json", "an index")
        if [record["name"] for record in records] != [case.name for case in task.training]:
            return None
        with ThreadPoolExecutor(workers) as pool:
            checked = pool.map(partial(_case_from, folder), records)
            return list(tqdm(checked, "check", len(records), disable=None))
    except (ValueError, KeyError, TypeError):
        return None


def _case_from(folder: Path, record: dict) -> PreparedCase:
    """The case of a record of the index; ValueError or KeyError if it is not as the index says."""
    affine, box = (tuple(map(tuple, record[field])) for field in ("affine", "box"))
    geometry = Geometry(tuple(record["shape"]), affine, box)
    voxels, checksum = tuple(record["voxels"]), record["checksum"]
    case = PreparedCase(record["name"], folder, voxels, geometry, checksum, record["repaired"])
    if not case.image.shape[:3] == case.label.shape == geometry.prepared_shape:
        raise ValueError("an array has not the shape that the index says")
    if checksum_of(case.image, case.label) != checksum:
        raise ValueError("an array is not the one that was written")
    return case


def checksum_of(image: np.ndarray, label: np.ndarray) -> int:
    """CRC-32 of both arrays, which must lie in C order."""
    return zlib.crc32(label, zlib.crc32(image))


def _map(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read as a prepared array: {reason}") from error
