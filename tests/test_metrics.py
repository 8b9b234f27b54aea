"""Scores: against scikit-learn, by hand, and by law."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn import metrics as peer

from minibrain.metrics import (
    SCORES,
    confusion_matrix,
    dice_score,
    iou_score,
    precision_score,
    recall_score,
    summarize,
)

CLASSES = 4
PEERS = {
    "iou": peer.jaccard_score,
    "dice": peer.f1_score,
    "recall": peer.recall_score,
    "precision": peer.precision_score,
}
every = pytest.mark.parametrize("name", SCORES)


@st.composite
def segmentations(draw):
    """Labels and predictions of one shape; each may lack classes, or all voxels."""
    size = draw(st.lists(st.integers(0, 5), min_size=1, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    chosen = st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=CLASSES, unique=True)
    dtype = draw(st.sampled_from([np.uint8, np.int64]))
    return tuple(rng.choice(draw(chosen), size=size).astype(dtype) for _ in range(2))


confusions = st.lists(
    st.lists(st.integers(0, 3) | st.integers(0, 2**40), min_size=3, max_size=3),
    min_size=3,
    max_size=3,
).map(lambda rows: np.array(rows, np.int64))


# Against scikit-learn


@given(segmentations())
def test_the_confusion_matrix_is_scikit_learns(pair):
    confusion = confusion_matrix(*pair, CLASSES)
    assert confusion.dtype == np.int64
    assume(pair[0].size)  # the peer refuses what is empty
    expected = peer.confusion_matrix(*(a.ravel() for a in pair), labels=range(CLASSES))
    assert np.array_equal(confusion, expected)


@every
@given(pair=segmentations())
def test_scores_are_scikit_learns_and_nan_without_voxels(name, pair):
    """The peer gives nothing out of nothing a number; that is asked of ours alone."""
    assume(pair[0].size)
    truth, prediction = (a.ravel() for a in pair)
    scores = SCORES[name](confusion_matrix(*pair, CLASSES))
    expected = PEERS[name](truth, prediction, labels=range(CLASSES), average=None, zero_division=0)
    for c in range(CLASSES):
        has_truth, has_prediction = (truth == c).any(), (prediction == c).any()
        counted = {"recall": has_truth, "precision": has_prediction}
        if counted.get(name, has_truth or has_prediction):
            np.testing.assert_allclose(scores[c], expected[c], rtol=1e-14)
        else:
            assert np.isnan(scores[c])


# By hand

#              predicted   0   1   2
HAND = np.array([[50, 2, 0], [4, 6, 2], [0, 0, 0]])


def test_a_confusion_matrix_worked_by_hand():
    labels = np.array([[0, 0, 1], [1, 2, 0]], np.uint8)
    predictions = np.array([[0, 1, 1], [2, 2, 0]], np.uint8)
    expected = [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert confusion_matrix(labels, predictions, 3).tolist() == expected


def test_scores_worked_by_hand():
    np.testing.assert_allclose(iou_score(HAND), [50 / 56, 6 / 14, 0])
    np.testing.assert_allclose(dice_score(HAND), [100 / 106, 12 / 20, 0])
    np.testing.assert_allclose(recall_score(HAND), [50 / 52, 6 / 12, np.nan])
    np.testing.assert_allclose(precision_score(HAND), [50 / 54, 6 / 8, 0])


@every
def test_a_class_in_neither_truth_nor_prediction_is_nan(name):
    confusion = np.zeros((3, 3), int)
    confusion[0, 0] = 7
    np.testing.assert_array_equal(SCORES[name](confusion), [1, np.nan, np.nan])
    np.testing.assert_array_equal(SCORES[name](0 * confusion), [np.nan] * 3)


@every
def test_a_stack_of_cases_is_scored_case_by_case(name):
    stack = np.random.default_rng(0).integers(0, 9, (5, 2, 3, 3))
    scores = SCORES[name](stack)
    assert scores.shape == (5, 2, 3)
    for case in np.ndindex(5, 2):
        np.testing.assert_array_equal(scores[case], SCORES[name](stack[case]))


def test_the_four_ways_worked_by_hand():
    """Three cases of three classes. IoU per case: 1, 1/2, absent; 1/2, 0, absent; 1, absent,
    absent. Pooled over them: class 0 has 8 of 10, class 1 has 1 of 4."""
    cases = np.zeros((3, 3, 3), int)
    cases[0] = [[4, 0, 0], [0, 1, 0], [0, 0, 0]]
    cases[0, 1, 1], cases[1, 0, 0], cases[1, 0, 1] = 1, 2, 2
    cases[2, 0, 0] = 2
    summary = summarize(cases)
    np.testing.assert_allclose(summary.pooled, [8 / 10, 1 / 3, np.nan])
    np.testing.assert_allclose(summary.per_case, [(1 + 1 / 2 + 1) / 3, 1 / 2, np.nan])
    assert summary.absent.tolist() == [0, 1, 3]
    np.testing.assert_allclose(summary.pooled_mean, (8 / 10 + 1 / 3) / 2)
    np.testing.assert_allclose(summary.pooled_foreground_mean, 1 / 3)
    np.testing.assert_allclose(summary.per_case_mean, (1 + (1 / 2 + 0) / 2 + 1) / 3)
    np.testing.assert_allclose(summary.per_case_foreground_mean, (1 + 0) / 2)


def test_a_summary_of_nothing_is_nan_and_does_not_warn():
    summary = summarize(np.zeros((2, 3, 3), int), dice_score)
    assert np.isnan(summary.pooled).all()
    assert np.isnan(summary.per_case).all()
    assert summary.absent.tolist() == [2, 2, 2]
    assert np.isnan(summary[3:]).all()
    assert all(isinstance(mean, float) for mean in summary[3:])


# By law


@given(confusions)
def test_iou_is_dice_over_2_minus_dice(confusion):
    dice = dice_score(confusion)
    np.testing.assert_allclose(iou_score(confusion), dice / (2 - dice), rtol=1e-12)


@given(confusions)
def test_dice_is_the_harmonic_mean_of_recall_and_precision(confusion):
    recall, precision = recall_score(confusion), precision_score(confusion)
    dice = dice_score(confusion)
    both = (recall > 0) & (precision > 0)
    harmonic = 2 / (1 / recall[both] + 1 / precision[both])
    np.testing.assert_allclose(dice[both], harmonic, rtol=1e-12)
    assert not np.nansum(dice[~both])


@given(confusions)
def test_truth_and_prediction_exchange_recall_and_precision(confusion):
    np.testing.assert_array_equal(recall_score(confusion), precision_score(confusion.T))
    np.testing.assert_array_equal(iou_score(confusion), iou_score(confusion.T))


@every
@given(confusion=confusions)
def test_scores_lie_between_0_and_1_and_do_not_depend_on_the_unit(name, confusion):
    scores = SCORES[name](confusion)
    present = ~np.isnan(scores)
    assert ((scores[present] >= 0) & (scores[present] <= 1)).all()
    np.testing.assert_allclose(SCORES[name](7 * confusion), scores, rtol=1e-12)


@given(st.lists(confusions, min_size=1, max_size=4))
def test_one_case_is_its_own_pool_and_order_does_not_matter(cases):
    one = summarize(cases[:1])
    np.testing.assert_array_equal(one.pooled, one.per_case)
    np.testing.assert_array_equal(one.pooled_mean, one.per_case_mean)
    forward, backward = summarize(cases), summarize(cases[::-1])
    for a, b in zip(forward, backward, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@given(segmentations(), segmentations())
def test_confusion_matrices_add_up(first, second):
    joined = (np.concatenate([a.ravel(), b.ravel()]) for a, b in zip(first, second, strict=True))
    total = confusion_matrix(*first, CLASSES) + confusion_matrix(*second, CLASSES)
    assert np.array_equal(confusion_matrix(*joined, CLASSES), total)


def test_counts_are_exact_beyond_what_32_bits_hold():
    confusion = np.array([[2**40 + 1, 0], [1, 2**40]], np.int64)
    assert recall_score(confusion)[1] < 1
    pooled = summarize(np.array([confusion] * 3)).pooled
    np.testing.assert_allclose(pooled, iou_score(3 * confusion), rtol=1e-15)


def test_many_classes_do_not_overflow_small_integers():
    """uint8 label 200 times 201 classes is far above 255."""
    labels = np.array([200, 3], np.uint8)
    confusion = confusion_matrix(labels, labels[::-1].copy(), 201)
    assert (confusion[200, 3], confusion[3, 200], confusion.sum()) == (1, 1, 2)


# Errors

GOOD = np.zeros((2, 3), np.uint8)


@pytest.mark.parametrize(
    ("labels", "predictions", "words"),
    [
        (GOOD, GOOD[:1], ["labels", "predictions", "(2, 3)", "(1, 3)", "shape"]),
        (GOOD.astype(float), GOOD, ["labels", "integers", "float64"]),
        (GOOD, GOOD.astype(bool), ["predictions", "integers", "bool"]),
        (GOOD + np.uint8(4), GOOD, ["labels", "[0, 4)", "4"]),
        (GOOD, GOOD + np.uint8(255), ["predictions", "[0, 4)", "255"]),
        (GOOD.astype(int) - 1, GOOD, ["labels", "[0, 4)", "-1"]),
    ],
)
def test_errors_name_the_argument_and_its_values(labels, predictions, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (each word is checked below)
        confusion_matrix(labels, predictions, 4)
    missing = [word for word in words if word not in str(error.value)]
    assert not missing, f"{missing} not in {error.value}"
