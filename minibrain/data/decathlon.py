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

import os
import reprlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minibrain.data import nifti
from minibrain.data.dataset_json import (
    ENDINGS,
    case_name,
    classes_in_order,
    confined,
    in_order,
    names_in,
    read_json,
    required,
    task_name,
)
from minibrain.errors import InputError


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
    repair_nonfinite: bool = False  # set NaN and infinite voxels of images to zero, or refuse them
    affine_tolerance: float = nifti.MOST_APART  # mm that the files of a case may put a voxel apart


class CaseData(NamedTuple):
    """The voxels of one case, in the file's own orientation.

    image : (X, Y, Z, C) float32, in the intensity units of the file
    label : (X, Y, Z) uint8, or None for a case without one
    affine : (4, 4) float64, voxel indices to world coordinates (mm, RAS+)
    repaired : voxels of the image, over all channels, that were NaN or infinite and are 0 now
    """

    image: np.ndarray
    label: np.ndarray | None
    affine: np.ndarray
    repaired: int = 0


def open_task(
    folder: str | os.PathLike,
    *,
    repair_nonfinite: bool = False,
    affine_tolerance: float = nifti.MOST_APART,
) -> Task:
    """Read `dataset.json` in either form, and check that every file of the task is there.

    No voxels are read, and nothing outside the folder is opened.

    Parameters
    ----------
    repair_nonfinite : let `read_case` set NaN and infinite voxels to zero instead of refusing them
    affine_tolerance : how far apart (mm) the affines of a case's files may put a voxel

    Raises
    ------
    TaskError : the folder or its dataset.json is missing or not as expected, a path leaves the
        folder, there are no training cases, or files are missing (up to five faults are listed)
    """
    task, faults = survey_task(folder)
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise TaskError(f"{task.folder / 'dataset.json'}: {'; '.join(faults[:5])}{more}")
    return replace(task, repair_nonfinite=repair_nonfinite, affine_tolerance=affine_tolerance)


def survey_task(folder: str | os.PathLike) -> tuple[Task, list[str]]:
    """Read `dataset.json` as `open_task` does, but go on after a fault in one case.

    Returns
    -------
    task : with the sound cases alone
    faults : what is wrong with the others, one line each

    Raises
    ------
    TaskError : there is no task at all: no dataset.json, or no channels or classes in it
    """
    if not os.path.isdir(folder):
        raise TaskError(f"{folder}: no such folder: expected one that holds dataset.json")
    root = Path(os.path.realpath(folder))
    if not os.path.lexists(root / "dataset.json"):
        raise TaskError(f"{root / 'dataset.json'}: No such file, expected it in a task's folder")
    faults: list[str] = []
    try:
        content = read_json(confined(root, "dataset.json", "dataset.json"))
        survey = _survey_nnunet if "channel_names" in content else _survey_msd
        task = survey(root, content, faults)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TaskError(f"{root / 'dataset.json'}: {reason}") from error
    if not task.training and not faults:
        faults.append("no training cases: expected at least one")
    return _without_missing(task, faults), faults


@contextmanager
def _noted(faults: list[str]) -> Iterator[None]:
    """Add what is wrong with one entry to the list, and go on with the next."""
    try:
        yield
    except (OSError, ValueError) as error:
        faults.append(str(error))


def read_case(task: Task, case: Case) -> CaseData:
    """Read a case and check that its files belong together.

    Raises
    ------
    NiftiError : a file cannot be read, shapes or affines differ, a label is not a class, or a voxel
        is not finite and the task was not opened to repair it
    TaskError : the number of channels is not that of dataset.json
    """
    volumes = [nifti.read(path, repair_nonfinite=task.repair_nonfinite) for path in case.images]
    for path, volume in zip(case.images, volumes, strict=True):
        check_channels(task, case, path, volume)
        check_overlay(task, case, volumes[0], path, volume)
    parts = [volume.array.reshape(*volume.array.shape[:3], -1, order="F") for volume in volumes]
    image = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=3)
    repaired = sum(volume.repaired for volume in volumes)
    if case.label is None:
        return CaseData(image, None, volumes[0].affine, repaired)
    label = nifti.read_label(case.label, allowed=range(len(task.classes)))
    check_overlay(task, case, volumes[0], case.label, label)
    return CaseData(image, label.array, volumes[0].affine, repaired)


def check_channels(task: Task, case: Case, path: Path, volume: nifti.Volume) -> None:
    """Require that one file of a case holds its share of the channels, else TaskError."""
    expected = len(task.channels) // len(case.images)
    found = volume.array.shape[3] if volume.array.ndim == 4 else 1
    if found != expected:
        names = ", ".join(task.channels)
        raise TaskError(f"{path}: channels: {found}, expected {expected} (the task's are {names})")


def check_overlay(
    task: Task, case: Case, image: nifti.Volume, path: Path, other: nifti.Volume
) -> None:
    """Require that a file of a case lies where its first image does, else NiftiError."""
    paths = {"image_path": case.images[0], "label_path": path}
    nifti.check_same_space(image, other, **paths, tolerance=task.affine_tolerance)


def _survey_msd(root: Path, content: dict[str, Any], faults: list[str]) -> Task:
    """The Decathlon's form: cases come from the lists, as its archives hold `._*` files too."""
    training = []
    for index, entry in enumerate(required(content, "training", list)):
        key = f"training[{index}]"
        with _noted(faults):
            if not isinstance(entry, dict):
                raise ValueError(f"key {key!r} is {reprlib.repr(entry)}: expected image and label")
            image = confined(root, f"{key}.image", entry.get("image"))
            label = confined(root, f"{key}.label", entry.get("label"))
            training.append(Case(case_name(f"{key}.image", entry["image"]), (image,), label))
    test = []
    for index, entry in enumerate(required(content, "test", list) if "test" in content else ()):
        with _noted(faults):
            image = confined(root, f"test[{index}]", entry)
            test.append(Case(case_name(f"test[{index}]", entry), (image,), None))
    return Task(
        folder=root,
        name=task_name(root, content),
        channels=in_order("modality", required(content, "modality", dict)),
        classes=classes_in_order(required(content, "labels", dict)),
        training=tuple(training),
        test=tuple(test),
    )


def _survey_nnunet(root: Path, content: dict[str, Any], faults: list[str]) -> Task:
    """The form of nnU-Net v2: the training cases are the files of labelsTr."""
    ending = required(content, "file_ending", str)
    if ending not in ENDINGS:
        raise ValueError(f"key 'file_ending' is {reprlib.repr(ending)}: expected one of {ENDINGS}")
    channels = in_order("channel_names", required(content, "channel_names", dict))
    values = required(content, "labels", dict)
    labels = {str(value): name for name, value in values.items()}
    if len(labels) < len(values):
        raise ValueError("key 'labels' gives one value two names: expected one each")

    def cases(names: list[str], images: str, labels: str | None) -> tuple[Case, ...]:
        sound = []
        for name in names:
            files = [f"{images}/{name}_{index:04d}{ending}" for index in range(len(channels))]
            label = f"{labels}/{name}{ending}"
            with _noted(faults):
                paths = tuple(confined(root, file, file) for file in files)
                sound.append(Case(name, paths, confined(root, label, label) if labels else None))
        return tuple(sound)

    training = names_in(root, "labelsTr", ending)
    has_test = (root / "imagesTs").exists()
    test = names_in(root, "imagesTs", f"_0000{ending}") if has_test else []
    return Task(
        folder=root,
        name=task_name(root, content),
        channels=channels,
        classes=classes_in_order(labels),
        training=cases(training, "imagesTr", "labelsTr"),
        test=cases(test, "imagesTs", None),
    )


def _without_missing(task: Task, faults: list[str]) -> Task:
    """The task without cases whose name is taken or whose files are not there."""
    taken: set[str] = set()

    def is_sound(case: Case) -> bool:
        files = [path for path in (*case.images, case.label) if path is not None]
        problems = [(path, problem) for path in files if (problem := _problem(path))]
        faults.extend(f"{path.relative_to(task.folder)} {problem}" for path, problem in problems)
        if case.name in taken:
            faults.append(f"case {case.name!r} occurs twice in training and test: expected once")
        is_new = case.name not in taken
        taken.add(case.name)
        return is_new and not problems

    training, test = (tuple(filter(is_sound, part)) for part in (task.training, task.test))
    return replace(task, training=training, test=test)


def _problem(path: Path) -> str | None:
    """Why a file cannot be opened, as far as that shows from outside."""
    try:
        return None if stat.S_ISREG(path.stat().st_mode) else "is not a regular file"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be reached: {error.strerror}"
