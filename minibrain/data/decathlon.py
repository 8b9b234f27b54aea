"""Opening a segmentation task laid out like the Medical Segmentation Decathlon, or for nnU-Net.

A task is a folder with a `dataset.json`. The Decathlon's lists every case and stores all channels
of an image in one 4-D file; nnU-Net's (version 2) lists none, and stores one file per channel:

    Task01_BrainTumour/                     Dataset001_BrainTumour/
      dataset.json                            dataset.json
      imagesTr/BRATS_001.nii.gz               imagesTr/BRATS_001_0000.nii.gz, ..._0003.nii.gz
      labelsTr/BRATS_001.nii.gz               labelsTr/BRATS_001.nii.gz
      imagesTs/BRATS_485.nii.gz               imagesTs/BRATS_485_0000.nii.gz, ...

Neither file nor folder is trusted: every path is confined to the task's folder, after following
links, and whatever is wrong with the description is one TaskError.
"""

import json
import os
import reprlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from minibrain.data import nifti
from minibrain.errors import InputError

MAX_JSON_BYTES = 8 * 2**20  # a hundred thousand cases
ENDINGS = (".nii.gz", ".nii")
JSON_NAMES = {dict: "an object", list: "a list", str: "a string"}


class TaskError(InputError):
    """A task cannot be used; the message names dataset.json and the key, or the file."""


@dataclass(frozen=True)
class Case:
    """One patient: `images` is one file with every channel, or one file per channel."""

    name: str
    images: tuple[Path, ...]
    label: Path | None


@dataclass(frozen=True)
class Task:
    """What `dataset.json` says; `classes[i]` is the name of label value i."""

    folder: Path
    name: str
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    training: tuple[Case, ...]
    test: tuple[Case, ...]


class CaseData(NamedTuple):
    """The voxels of one case, in the file's own orientation.

    image : (X, Y, Z, C) float32, in the intensity units of the file
    label : (X, Y, Z) uint8, or None for a case without one
    affine : (4, 4) float64, voxel indices to world coordinates (mm, RAS+)
    """

    image: np.ndarray
    label: np.ndarray | None
    affine: np.ndarray


def open_task(folder: str | os.PathLike) -> Task:
    """Read `dataset.json` in either form, and check that every file of the task is there.

    No voxels are read, and nothing outside the folder is opened.

    Raises
    ------
    TaskError : the folder or its dataset.json is missing or not as expected, a path leaves the
        folder, there are no training cases, or files are missing (up to five are listed)
    """
    if not os.path.isdir(folder):
        raise TaskError(f"{folder}: no such folder: expected one that holds dataset.json")
    root = Path(os.path.realpath(folder))
    try:
        content = _read_json(_confined(root, "dataset.json", "dataset.json"))
        open_form = _open_nnunet if "channel_names" in content else _open_msd
        task = open_form(root, content)
        _check_cases(task)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TaskError(f"{root / 'dataset.json'}: {reason}") from error
    return task


def read_case(
    task: Task, case: Case, *, tolerance: float = 1e-3, repair_nonfinite: bool = False
) -> CaseData:
    """Read a case and check that its files belong together.

    Parameters
    ----------
    tolerance : how far apart (mm) the affines of its files may put a voxel
    repair_nonfinite : set NaN and infinite voxels to zero, with a warning that counts them

    Raises
    ------
    NiftiError : a file cannot be read, shapes or affines differ, or a label is not a class
    TaskError : the number of channels is not that of dataset.json
    """
    volumes = [nifti.read(path, repair_nonfinite=repair_nonfinite) for path in case.images]
    per_file = len(task.channels) // len(case.images)
    for path, volume in zip(case.images, volumes, strict=True):
        found = volume.array.shape[3] if volume.array.ndim == 4 else 1
        if found != per_file:
            names = ", ".join(task.channels)
            raise TaskError(
                f"{path}: channels: {found}, expected {per_file} (dataset.json names {names})"
            )
        _check_overlay(case, volumes[0], volume, path, tolerance)
    parts = [volume.array.reshape(*volume.array.shape[:3], -1, order="F") for volume in volumes]
    image = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=3)
    if case.label is None:
        return CaseData(image, None, volumes[0].affine)
    label = nifti.read_label(case.label, allowed=range(len(task.classes)))
    _check_overlay(case, volumes[0], label, case.label, tolerance)
    return CaseData(image, label.array, volumes[0].affine)


def _check_overlay(
    case: Case, image: nifti.Volume, other: nifti.Volume, path: Path, tolerance: float
) -> None:
    nifti.check_same_space(
        image, other, image_path=case.images[0], label_path=path, tolerance=tolerance
    )


def _open_msd(root: Path, content: dict[str, Any]) -> Task:
    """The Decathlon's form: cases come from the lists, as its archives hold `._*` files too."""
    training = []
    for index, entry in enumerate(_required(content, "training", list)):
        key = f"training[{index}]"
        if not isinstance(entry, dict):
            raise ValueError(f"key {key!r} is {reprlib.repr(entry)}: expected image and label")
        image = _confined(root, f"{key}.image", entry.get("image"))
        label = _confined(root, f"{key}.label", entry.get("label"))
        training.append(Case(_case_name(f"{key}.image", entry["image"]), (image,), label))
    test = []
    for index, entry in enumerate(_required(content, "test", list) if "test" in content else ()):
        image = _confined(root, f"test[{index}]", entry)
        test.append(Case(_case_name(f"test[{index}]", entry), (image,), None))
    return Task(
        folder=root,
        name=_task_name(root, content),
        channels=_in_order("modality", _required(content, "modality", dict)),
        classes=_classes(_required(content, "labels", dict)),
        training=tuple(training),
        test=tuple(test),
    )


def _open_nnunet(root: Path, content: dict[str, Any]) -> Task:
    """The form of nnU-Net v2: the training cases are the files of labelsTr."""
    ending = _required(content, "file_ending", str)
    if ending not in ENDINGS:
        raise ValueError(f"key 'file_ending' is {reprlib.repr(ending)}: expected one of {ENDINGS}")
    channels = _in_order("channel_names", _required(content, "channel_names", dict))
    values = _required(content, "labels", dict)
    labels = {str(value): name for name, value in values.items()}
    if len(labels) < len(values):
        raise ValueError("key 'labels' gives one value two names: expected one each")

    def case(images: str, name: str, labels: str | None) -> Case:
        files = [f"{images}/{name}_{index:04d}{ending}" for index in range(len(channels))]
        label = f"{labels}/{name}{ending}"
        return Case(
            name,
            tuple(_confined(root, file, file) for file in files),
            _confined(root, label, label) if labels else None,
        )

    training = _names_in(root, "labelsTr", ending)
    has_test = (root / "imagesTs").exists()
    test = _names_in(root, "imagesTs", f"_0000{ending}") if has_test else ()
    return Task(
        folder=root,
        name=_task_name(root, content),
        channels=channels,
        classes=_classes(labels),
        training=tuple(case("imagesTr", name, "labelsTr") for name in training),
        test=tuple(case("imagesTs", name, None) for name in test),
    )


def _check_cases(task: Task) -> None:
    cases = task.training + task.test
    if not task.training:
        raise ValueError("no training cases: expected at least one")
    twice = [name for name, count in Counter(case.name for case in cases).items() if count > 1]
    if twice:
        raise ValueError(f"case {twice[0]!r} occurs twice in training and test: expected once")
    files = [path for case in cases for path in (*case.images, case.label) if path is not None]
    missing = [str(path.relative_to(task.folder)) for path in files if not os.path.isfile(path)]
    if missing:
        listed = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ValueError(f"{len(missing)} of {len(files)} files are missing: {listed}")


def _read_json(path: Path) -> dict[str, Any]:
    with nifti.open_regular(path) as stream:
        data = stream.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"larger than {MAX_JSON_BYTES} bytes: expected the description of a task")
    content = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_without_repeats)
    if not isinstance(content, dict):
        raise ValueError(f"holds {reprlib.repr(content)}: expected an object")
    return content


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"key {reprlib.repr(key)} occurs twice: expected once")
    return dict(pairs)


def _required(content: dict[str, Any], key: str, kind: type) -> Any:
    if key not in content:
        raise ValueError(f"key {key!r} is missing: expected {JSON_NAMES[kind]}")
    if not isinstance(content[key], kind):
        found = reprlib.repr(content[key])
        raise ValueError(f"key {key!r} is {found}: expected {JSON_NAMES[kind]}")
    return content[key]


def _task_name(root: Path, content: dict[str, Any]) -> str:
    return _required(content, "name", str) if "name" in content else root.name


def _in_order(key: str, names: dict[str, Any]) -> tuple[str, ...]:
    """Turn {"0": a, "1": b, ...} into (a, b, ...)."""
    numbers = [str(index) for index in range(len(names))]
    if not names or set(names) != set(numbers):
        found = reprlib.repr(sorted(names))
        raise ValueError(f"key {key!r} has the numbers {found}: expected 0, 1, 2, ... without gaps")
    for name in names.values():
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise ValueError(f"key {key!r} holds {reprlib.repr(name)}: expected a name")
    return tuple(names[number] for number in numbers)


def _classes(labels: dict[str, Any]) -> tuple[str, ...]:
    names = _in_order("labels", labels)
    if not 2 <= len(set(names)) == len(names) <= 256:
        raise ValueError(f"key 'labels' names {reprlib.repr(names)}: expected 2 to 256 classes")
    return names


def _confined(root: Path, key: str, relative: Any) -> Path:
    """Return the real path of a file that dataset.json names; it must stay inside the root."""
    found = reprlib.repr(relative)
    if not isinstance(relative, str) or not relative.isprintable():
        raise ValueError(f"key {key!r} is {found}: expected a path such as './imagesTr/A.nii.gz'")
    named = PurePosixPath(relative)
    path = Path(os.path.realpath(root / named)) if ".." not in named.parts else None
    if path is None or named.is_absolute() or not path.is_relative_to(root):
        raise ValueError(f"key {key!r} is {found}: expected a path inside the task's folder")
    return path


def _case_name(key: str, relative: str) -> str:
    file = PurePosixPath(relative).name
    for ending in ENDINGS:
        if file.endswith(ending) and file != ending:
            return file.removesuffix(ending)
    raise ValueError(
        f"key {key!r} is {reprlib.repr(relative)}: expected a name ending in {ENDINGS}"
    )


def _names_in(root: Path, folder: str, ending: str) -> list[str]:
    """Names of the files with this ending; hidden ones are no cases (macOS leaves `._*` files)."""
    files = sorted(os.listdir(_confined(root, folder, folder)))
    names = [file.removesuffix(ending) for file in files if file.endswith(ending)]
    return [name for name in names if name and not name.startswith(".")]
