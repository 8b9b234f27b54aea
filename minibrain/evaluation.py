"""Judging predictions in the space of the original files."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from minibrain.bootstrap import bootstrap_interval
from minibrain.data import nifti
from minibrain.data.decathlon import Task
from minibrain.data.prepare import PreparedCase, restore
from minibrain.errors import InputError
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
from minibrain.surfaces import hausdorff95


VOXELS_PER_CASE = 5000  # that the voxel-wise classifier learns from


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
    """

    classes: tuple[str, ...]
    regions: tuple[Region, ...]
    cases: tuple[str, ...]
    confusions: np.ndarray
    hausdorff95: np.ndarray
    voxel_ml: np.ndarray

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

        def drawn(draws):
            summary = summarize(self.confusions[draws], SCORES[name], self.regions)
            return np.column_stack(summary)

        ends = bootstrap_interval(drawn, len(self.cases))
        summary = self.summary(name)
        parts = np.split(ends, np.cumsum([np.size(value) for value in summary])[:-1])
        return Summary(
            *(part.reshape(*np.shape(value), 2) for part, value in zip(parts, summary, strict=True))
        )


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
    names, confusions, distances, voxel_ml = [], [], [], []
    for name, truth, prediction in pairs:
        names.append(name)
        confusions.append(confusion_matrix(truth.array, prediction, len(classes)))
        distances.append(_distances(truth, prediction, len(classes), regions))
        voxel_ml.append(truth.voxel_ml)
    return Evaluation(
        tuple(classes),
        regions,
        tuple(names),
        np.stack(confusions),
        np.stack(distances),
        np.array(voxel_ml),
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
        path = prediction_path(folder, name)
        truth = nifti.read_label(labels[name], allowed=allowed)
        prediction = nifti.read_label(path, allowed=allowed)
        nifti.check_same_space(truth, prediction, image_path=labels[name], label_path=path)
        yield name, truth, prediction.array


def prediction_path(folder: Path, name: str) -> Path:
    """The file that holds the prediction of a case."""
    for ending in (".nii.gz", ".nii"):
        if (path := folder / f"{name}{ending}").exists():
            return path
    raise InputError(f"{folder}: no prediction of case {name}, expected {name}.nii.gz")


def _distances(truth, prediction, classes, regions) -> np.ndarray:
    structures = [(label,) for label in range(1, classes)] + [r.labels for r in regions]
    masks = ((np.isin(truth.array, s), np.isin(prediction, s)) for s in structures)
    return np.array([np.nan, *(hausdorff95(*pair, truth.spacing) for pair in masks)])


def predict_cases(
    predict: Callable[[np.ndarray], np.ndarray], cases: Sequence[PreparedCase], task: Task
) -> Iterator[tuple[PreparedCase, np.ndarray, nifti.Volume]]:
    """Predict case after case, each brought back to the shape and orientation of its label file.

    Parameters
    ----------
    predict : (X, Y, Z, C) prepared image -> (X, Y, Z) uint8 classes

    Yields
    ------
    case, prediction, truth : the last two in the label file's own space
    """
    labels = {case.name: case.label for case in task.training}
    for case in cases:
        truth = nifti.read_label(labels[case.name], allowed=range(len(task.classes)))
        yield case, restore(predict(case.image), case), truth


def confusions_of(predict, cases: Sequence[PreparedCase], task: Task) -> np.ndarray:
    """(cases, classes, classes) confusion matrices, one a case."""
    return np.stack(
        [
            confusion_matrix(truth.array, prediction, len(task.classes))
            for _, prediction, truth in predict_cases(predict, cases, task)
        ]
    )


def voxelwise_classifier(cases: Sequence[PreparedCase], seed: int = 0):
    """What can be had without context: boosted trees on the intensities of single voxels.

    A network is worth its trouble only as far as it is better than this.

    Returns
    -------
    predict : (X, Y, Z, C) prepared image -> (X, Y, Z) uint8 classes
    """
    rng = np.random.default_rng(seed)
    intensities, labels = [], []
    for case in cases:
        chosen = rng.integers(0, case.label.size, VOXELS_PER_CASE)
        intensities.append(case.image.reshape(-1, case.image.shape[-1])[chosen])
        labels.append(case.label.ravel()[chosen])
    classifier = HistGradientBoostingClassifier(
        max_iter=60, early_stopping=False, random_state=seed
    )
    classifier.fit(np.concatenate(intensities), np.concatenate(labels))

    def predict(image):
        classes = classifier.predict(image.reshape(-1, image.shape[-1]))
        return classes.reshape(image.shape[:-1]).astype(np.uint8)

    return predict
