"""Judging predictions in the space of the original files."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from minibrain.data import nifti
from minibrain.data.decathlon import Task
from minibrain.data.prepare import PreparedCase, restore
from minibrain.metrics import confusion_matrix

VOXELS_PER_CASE = 5000  # that the voxel-wise classifier learns from


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


def evaluate(predict, cases: Sequence[PreparedCase], task: Task) -> np.ndarray:
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
