"""Reading a whole task once: every fault of every case, and what its images and labels hold."""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from nibabel.orientations import aff2axcodes
from tqdm import tqdm

from minibrain.data import nifti
from minibrain.data.decathlon import Case, Task, check_channels, check_overlay, survey_task
from minibrain.errors import InputError


class CaseContent(NamedTuple):
    """What a sound labelled case holds."""

    name: str
    shape: tuple[int, int, int]  # of the file
    spacing: tuple[float, float, float]  # mm, along the axes of the file
    orientation: str  # axis codes, such as "RAS"
    voxels: tuple[int, ...]  # per class
    intensities: tuple[tuple[float, float, float, float], ...]  # per channel: see `_intensities`
    fullest_slice: tuple[int, float]  # RAS+ z of the slice with most tumour, tumour share of it

    @property
    def tumour_ml(self) -> float:
        return sum(self.voxels[1:]) * float(np.prod(self.spacing)) / 1000


class Inspection(NamedTuple):
    """All that `inspect` found.

    faults : what makes a case unusable, one line each, empty for a sound task
    notes : what is allowed and good to know
    contents : of the labelled cases that could be read
    """

    task: Task
    faults: list[str]
    notes: list[str]
    contents: list[CaseContent]


def inspect(folder: str | Path, *, workers: int = 2) -> Inspection:
    """Read every file of a task and report all faults, not the first.

    Parameters
    ----------
    workers : threads, each with one case in memory at a time

    Raises
    ------
    TaskError : there is no task at all: no dataset.json, or no channels or classes in it
    """
    task, faults = survey_task(folder)
    cases = task.training + task.test
    contents: list[CaseContent] = []
    # Warnings are caught for all threads at once: the filter is shared between them.
    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("always")
        reading = pool.map(lambda case: _read(task, case), cases)
        for found, content in tqdm(reading, "inspect", len(cases), disable=None):
            faults += found
            contents += [] if content is None else [content]
    notes = _stray_files(task) + [str(warning.message) for warning in caught]
    for content in contents:
        notes += _notes(task, content)
    prefix = f"{task.folder}/"
    faults, notes = ([line.replace(prefix, "") for line in lines] for lines in (faults, notes))
    return Inspection(task, faults, notes, contents)


def _read(task: Task, case: Case) -> tuple[list[str], CaseContent | None]:
    """All faults of one case, and its content if it has a label and no fault."""
    faults: list[str] = []

    def attempt(call: Callable, *arguments, **options):
        try:
            return call(*arguments, **options)
        except InputError as error:
            faults.append(str(error))

    volumes = [attempt(nifti.read, path) for path in case.images]
    files = list(zip(case.images, volumes, strict=True))
    label = None
    if case.label is not None:
        label = attempt(nifti.read_label, case.label, allowed=range(len(task.classes)))
        files.append((case.label, label))
    for path, volume in files:
        if volume is not None and path != case.label:
            attempt(check_channels, task, case, path, volume)
        if volume is not None and volumes[0] is not None:
            attempt(check_overlay, task, case, volumes[0], path, volume)
    if faults or label is None:
        return faults, None
    return faults, _content(task, case, volumes, label)


def _content(task: Task, case: Case, volumes: list[nifti.Volume], label: nifti.Volume):
    channels = [
        channel
        for volume in volumes
        for channel in np.moveaxis(volume.array.reshape(*label.array.shape, -1, order="F"), 3, 0)
    ]
    canonical, _ = nifti.to_canonical(label.array, label.affine)
    shares = (canonical > 0).mean(axis=(0, 1))
    return CaseContent(
        case.name,
        label.array.shape,
        tuple(volumes[0].spacing.tolist()),
        "".join(aff2axcodes(volumes[0].affine)),
        tuple(np.bincount(label.array.ravel("K"), minlength=len(task.classes)).tolist()),
        tuple(_intensities(channel) for channel in channels),
        (int(shares.argmax()), float(shares.max())),
    )


def _intensities(channel: np.ndarray) -> tuple[float, float, float, float]:
    """Mean, standard deviation, least and greatest of the non-zero voxels; zeros if there is none.

    Exactly 0 is air in skull-stripped images.
    """
    values = channel[channel != 0]
    if not values.size:
        return 0.0, 0.0, 0.0, 0.0
    mean, std = values.mean(dtype=np.float64), values.std(dtype=np.float64)
    return float(mean), float(std), float(values.min()), float(values.max())


def _notes(task: Task, content: CaseContent) -> list[str]:
    notes = [] if any(content.voxels[1:]) else [f"{content.name}: no tumour at all"]
    return notes + [
        f"{content.name}: channel {name} is constant where it is not 0"
        for name, (_, std, _, _) in zip(task.channels, content.intensities, strict=True)
        if std == 0
    ]


def _stray_files(task: Task) -> list[str]:
    """Images and labels that no case uses; macOS's hidden copies do not count."""
    used = {path for case in task.training + task.test for path in (*case.images, case.label)}
    found = [
        path
        for name in ("imagesTr", "labelsTr", "imagesTs")
        for path in sorted((task.folder / name).glob("[!.]*.nii*"))
    ]
    return [f"{path}: not used by any case" for path in found if path.resolve() not in used]
