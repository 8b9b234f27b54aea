"""Judging predictions in the space of the original files."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np

from minibrain.data import nifti
from minibrain.data.dataset_json import ENDINGS
from minibrain.data.decathlon import Task
from minibrain.errors import InputError
from minibrain.evaluation.bootstrap import bootstrap_interval
from minibrain.evaluation.surfaces import hausdorff95
from minibrain.metrics import (
    SCORES,
    Region,
    Summary,
    confusion_matrix,
    merge,
    score_all,
    summarize,
    tumour_regions,
)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What is known of a set of predictions, case by case; S counts classes, then regions.

    Attributes
    ----------
    classes : names in label order, the background first
    regions : classes judged together, none if the task has other classes than brain tumours
    cases : names
    confusions : (cases, C, C) int64 voxels
    hausdorff95 : (cases, S) mm, NaN for the background and where truth or prediction is empty
    voxel_ml : (cases,) volume of a voxel in ml
    checksums : CRC-32 of the voxels of each truth
    """

    classes: tuple[str, ...]
    regions: tuple[Region, ...]
    cases: tuple[str, ...]
    confusions: np.ndarray
    hausdorff95: np.ndarray
    voxel_ml: np.ndarray
    checksums: tuple[int, ...]

    @property
    def structures(self) -> tuple[Region, ...]:
        """Every class as a region of one label, then the regions."""
        return (*(Region(name, (i,)) for i, name in enumerate(self.classes)), *self.regions)

    @property
    def volumes_ml(self) -> tuple[np.ndarray, np.ndarray]:
        """(cases, S) of the truth and of the prediction."""
        merged = [merge(self.confusions, structure.labels) for structure in self.structures]
        return tuple(
            np.stack([pair.sum(axis=axis)[:, 1] for pair in merged], axis=1)
            * self.voxel_ml[:, None]
            for axis in (2, 1)
        )

    def case_scores(self, name: str) -> np.ndarray:
        """(cases, S) of "iou", "dice", "recall" or "precision"; NaN where there is none."""
        return score_all(self.confusions, SCORES[name], self.regions)

    def summary(self, name: str) -> Summary:
        """Pooled and per case, per class and region, with and without background."""
        return summarize(self.confusions, SCORES[name], self.regions)

    def intervals(self, name: str) -> Summary:
        """The 95 % bootstrap interval of every number of `summary`: (..., 2) in its place."""
        ends = bootstrap_interval(lambda draws: self._drawn(name, draws), len(self.cases))
        return _in_place(ends, self.summary(name))

    def difference(self, other: "Evaluation", name: str) -> tuple[Summary, Summary]:
        """By how much this is better than another evaluation of the same cases, and the interval.

        Both are drawn together, so what makes a case hard for both does not count.
        """
        if self.cases != other.cases or self.classes != other.classes:
            raise ValueError("the two evaluations are of different cases or classes")
        ours, theirs = self.summary(name), other.summary(name)
        ends = bootstrap_interval(
            lambda draws: self._drawn(name, draws) - other._drawn(name, draws), len(self.cases)
        )
        apart = Summary(*(a - b for a, b in zip(ours, theirs, strict=True)))
        return apart, _in_place(ends, ours)

    def _drawn(self, name: str, draws: np.ndarray) -> np.ndarray:
        """(draws, numbers of a summary), of the cases drawn each time."""
        return np.column_stack(summarize(self.confusions[draws], SCORES[name], self.regions))


def evaluate(
    pairs: Iterable[tuple[str, nifti.Volume, np.ndarray]], classes: Sequence[str]
) -> Evaluation:
    """Compare predictions with the truth.

    Parameters
    ----------
    pairs : (name of the case, truth, prediction); two arrays (X, Y, Z) of classes, of one shape
    classes : names in label order, the background first
    """
    regions = tumour_regions(classes)
    names, confusions, distances, voxel_ml, checksums = [], [], [], [], []
    for name, truth, prediction in pairs:
        names.append(name)
        confusions.append(confusion_matrix(truth.array, prediction, len(classes)))
        distances.append(_distances(truth, prediction, len(classes), regions))
        voxel_ml.append(truth.voxel_ml)
        checksums.append(crc32(truth.array.ravel("F")))
    return Evaluation(
        tuple(classes),
        regions,
        tuple(names),
        np.stack(confusions),
        np.stack(distances),
        np.array(voxel_ml),
        tuple(checksums),
    )


def read_pairs(
    task: Task, folder: Path, names: Sequence[str]
) -> Iterator[tuple[str, nifti.Volume, np.ndarray]]:
    """Read truth and prediction of case after case, for `evaluate`.

    Parameters
    ----------
    folder : of the predictions, NAME.nii.gz or NAME.nii

    Raises
    ------
    InputError : a case is not of the task, its prediction is missing or does not overlay its label
    """
    labels = {case.name: case.label for case in task.training}
    allowed = range(len(task.classes))
    for name in names:
        if name not in labels:
            raise InputError(f"{folder}: case {name} is no labelled case of {task.folder}")
        path = find_prediction(folder, name)
        if path is None:
            raise InputError(f"{folder}: no prediction of case {name}, expected {name}.nii.gz")
        truth = nifti.read_label(labels[name], allowed=allowed)
        prediction = nifti.read_label(path, allowed=allowed)
        nifti.check_same_space(truth, prediction, image_path=labels[name], label_path=path)
        yield name, truth, prediction.array


def find_prediction(folder: Path, name: str) -> Path | None:
    """The file that holds the prediction of a case, if there is one."""
    paths = (folder / f"{name}{ending}" for ending in ENDINGS)
    return next((path for path in paths if path.is_file()), None)


def _distances(truth, prediction, classes, regions) -> np.ndarray:
    structures = [(label,) for label in range(1, classes)] + [r.labels for r in regions]
    masks = ((np.isin(truth.array, s), np.isin(prediction, s)) for s in structures)
    return np.array([np.nan, *(hausdorff95(*pair, truth.spacing) for pair in masks)])


def _in_place(ends: np.ndarray, summary: Summary) -> Summary:
    """(numbers, 2) -> the ends of each number of a summary where that number stands."""
    sizes = [np.size(value) for value in summary]
    parts = np.split(ends, np.cumsum(sizes)[:-1])
    return Summary(
        *(part.reshape(*np.shape(value), 2) for part, value in zip(parts, summary, strict=True))
    )
