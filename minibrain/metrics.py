"""Scores of a segmentation, all from one confusion matrix.

confusion[t, p] counts the voxels of true class t that were predicted as p, in int64. With TP, FP
and FN read off it for a class,

    IoU = TP/(TP + FP + FN)      Dice = F1 = 2·TP/(2·TP + FP + FN)
    recall = TP/(TP + FN)        precision = TP/(TP + FP)

A class that is in neither truth nor prediction has no score: NaN, left out of means and counted,
never a silent 0 or 1. All scores are higher-is-better, in [0, 1]. `docs/metrics.md` sets this
beside the conventions of other tools.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Count voxels by (true class, predicted class).

    Parameters
    ----------
    labels, predictions : integer arrays of one shape, values in [0, classes)

    Returns
    -------
    (classes, classes) int64

    Raises
    ------
    ValueError : shapes differ, or a value is not a class
    """
    if labels.shape != predictions.shape:
        raise ValueError(
            f"labels {labels.shape} and predictions {predictions.shape} differ in shape"
        )
    for name, values in (("labels", labels), ("predictions", predictions)):
        if values.dtype.kind not in "iu":
            raise ValueError(f"{name} must be integers, got {values.dtype}")
        if values.size and not (values.min() >= 0 and values.max() < classes):
            raise ValueError(
                f"{name} must be in [0, {classes}), got {values.min()} to {values.max()}"
            )
    pairs = labels.ravel().astype(np.int64) * classes + predictions.ravel()
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes).astype(np.int64)


class Region(NamedTuple):
    """Several classes judged as one, as if all of them had the same label."""

    name: str
    labels: tuple[int, ...]


def tumour_regions(classes: Sequence[str]) -> tuple[Region, ...]:
    """Whole tumour, tumour core and enhancing tumour, found by the names of the classes.

    Parameters
    ----------
    classes : names in label order, the background first

    Returns
    -------
    regions : empty unless there are three classes beside the background, of which one each says
        edema, non-enhancing or necrotic, enhancing
    """
    patterns = ("edema", "non.?enhancing|necro", "(?<!non)(?<!non[ _-])enhancing")
    found = [
        tuple(i for i, name in enumerate(classes) if i and re.search(pattern, name.lower()))
        for pattern in patterns
    ]
    if len(classes) != 4 or sorted(found) != [(1,), (2,), (3,)]:
        return ()
    (edema,), (core,), (enhancing,) = found
    return (
        Region("whole tumour", tuple(sorted((edema, core, enhancing)))),
        Region("tumour core", tuple(sorted((core, enhancing)))),
        Region("enhancing", (enhancing,)),
    )


def merge(confusion: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """(..., C, C) -> (..., 2, 2): these labels as class 1 against all others as class 0."""
    inside = np.isin(np.arange(confusion.shape[-1]), labels).astype(np.int64)
    sides = np.stack([1 - inside, inside])
    return sides @ confusion @ sides.T


def iou_score(confusion: np.ndarray) -> np.ndarray:
    """(..., C, C) -> (..., C) intersection over union of every class."""
    tp, fp, fn = _counts(confusion)
    return _ratio(tp, tp + fp + fn)


def dice_score(confusion: np.ndarray) -> np.ndarray:
    """(..., C, C) -> (..., C) Dice, which is the F1 score, of every class."""
    tp, fp, fn = _counts(confusion)
    return _ratio(2 * tp, 2 * tp + fp + fn)


def recall_score(confusion: np.ndarray) -> np.ndarray:
    """(..., C, C) -> (..., C) share of the true voxels that were found; NaN without truth."""
    tp, _, fn = _counts(confusion)
    return _ratio(tp, tp + fn)


def precision_score(confusion: np.ndarray) -> np.ndarray:
    """(..., C, C) -> (..., C) share of the predicted voxels that are true; NaN if none is."""
    tp, fp, _ = _counts(confusion)
    return _ratio(tp, tp + fp)


SCORES = {
    "iou": iou_score,
    "dice": dice_score,
    "recall": recall_score,
    "precision": precision_score,
}


class Summary(NamedTuple):
    """One score of a set of cases, the four ways that papers mix up, and per class and region.

    `pooled` sums the confusion matrices first; `per_case` scores every case and averages over
    those in which the class has a score, `absent` being the number of the others. Regions follow
    the classes in the three arrays; the means are over classes alone.
    """

    pooled: np.ndarray  # (C + regions,)
    per_case: np.ndarray  # (C + regions,)
    absent: np.ndarray  # (C + regions,) int
    pooled_mean: float
    pooled_foreground_mean: float
    per_case_mean: float
    per_case_foreground_mean: float


def summarize(
    confusions: np.ndarray, score: Callable = iou_score, regions: Sequence[Region] = ()
) -> Summary:
    """Score a set of cases.

    Parameters
    ----------
    confusions : (..., cases, C, C), one confusion matrix a case; class 0 is the background
    score : one of the functions of this module
    regions : classes to be judged together, too

    Returns
    -------
    Summary : a case's mean is over the classes it has; a mean of nothing is NaN
    """
    confusions = np.asarray(confusions)
    classes = confusions.shape[-1]
    pooled = score_all(confusions.sum(axis=-3), score, regions)
    cases = score_all(confusions, score, regions)
    return Summary(
        pooled=pooled,
        per_case=nan_mean(cases, axis=-2),
        absent=np.isnan(cases).sum(axis=-2),
        pooled_mean=nan_mean(pooled[..., :classes]),
        pooled_foreground_mean=nan_mean(pooled[..., 1:classes]),
        per_case_mean=nan_mean(nan_mean(cases[..., :classes])),
        per_case_foreground_mean=nan_mean(nan_mean(cases[..., 1:classes])),
    )


def score_all(confusions, score: Callable, regions: Sequence[Region]) -> np.ndarray:
    """(..., C, C) -> (..., C + regions): the score of every class, then of every region."""
    merged = [score(merge(confusions, region.labels))[..., 1:] for region in regions]
    return np.concatenate([score(confusions), *merged], axis=-1)


def nan_mean(values, axis=-1):
    """Mean of the values that are not NaN; NaN, without a warning, where there are none."""
    present = ~np.isnan(values)
    return _ratio(np.where(present, values, 0).sum(axis=axis), present.sum(axis=axis))


def _counts(confusion):
    """True positives, false positives, false negatives of every class."""
    tp = np.diagonal(confusion, axis1=-2, axis2=-1)
    return tp, confusion.sum(axis=-2) - tp, confusion.sum(axis=-1) - tp


def _ratio(part, whole):
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)[()]
