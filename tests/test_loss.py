"""Cross-entropy, Dice and their sum: by hand, by loops, by derivative and by law."""

from functools import partial
from math import exp, log

import numpy as np
import pytest
from gradcheck import assert_gradient
from hypothesis import given
from hypothesis import strategies as st

from minibrain.functional import (
    cce_dice_loss_backward,
    cce_dice_loss_forward,
    cross_entropy_backward,
    cross_entropy_forward,
    dice_loss_backward,
    dice_loss_forward,
)

DECK = {"per_sample": True, "smooth": 1e-6}
LOSSES = {
    "cross-entropy": (cross_entropy_forward, cross_entropy_backward),
    "dice": (dice_loss_forward, dice_loss_backward),
    "dice per sample": (partial(dice_loss_forward, per_sample=True), dice_loss_backward),
    "dice of the deck": (partial(dice_loss_forward, **DECK), dice_loss_backward),
    "sum": (cce_dice_loss_forward, cce_dice_loss_backward),
    "weighted sum": (
        partial(cce_dice_loss_forward, cce_weight=0.2, dice_weight=3.0, smooth=0.1),
        cce_dice_loss_backward,
    ),
    "sum per sample": (partial(cce_dice_loss_forward, **DECK), cce_dice_loss_backward),
}
every = pytest.mark.parametrize("loss", LOSSES)


@st.composite
def cases(draw):
    """Logits (N, *S, C) of rank 1 to 3 and labels, some classes of which may be absent."""
    size = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    classes = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    shape = (draw(st.integers(1, 3)), *size)
    logits = 2 * rng.standard_normal((*shape, classes))
    present = draw(st.integers(1, classes))
    dtype = draw(st.sampled_from([np.uint8, np.int32, np.int64]))
    return logits, rng.integers(0, present, shape).astype(dtype)


def logits_of(p):
    """Logits whose softmax is p, shifted so that they are not simply log p."""
    return np.log(np.asarray(p, float)) + 3


def probabilities(z):
    exponentials = [exp(v) for v in z]
    return [e / sum(exponentials) for e in exponentials]


def cross_entropy_oracle(logits, labels):
    voxels = list(np.ndindex(labels.shape))
    return sum(-log(probabilities(logits[v])[labels[v]]) for v in voxels) / len(voxels)


def dice_oracle(logits, labels, smooth=1.0, per_sample=False):
    every_sample = range(len(logits))
    scores = []
    for samples in [[n] for n in every_sample] if per_sample else [every_sample]:
        for c in range(logits.shape[-1]):
            overlap = predicted = true = 0.0
            for n in samples:
                for voxel in np.ndindex(labels.shape[1:]):
                    p = probabilities(logits[(n, *voxel)])[c]
                    t = 1.0 if labels[(n, *voxel)] == c else 0.0
                    overlap += p * t
                    predicted += p
                    true += t
            scores.append((2 * overlap + smooth) / (predicted + true + smooth))
    return 1 - sum(scores) / len(scores)


# By hand


def test_cross_entropy_worked_by_hand():
    logits = logits_of([[[1 / 2, 1 / 4, 1 / 4], [1 / 8, 1 / 8, 3 / 4]]])
    labels = np.array([[0, 1]])
    loss, saved = cross_entropy_forward(logits, labels)
    np.testing.assert_allclose(loss, (log(2) + log(8)) / 2, rtol=1e-14)
    dlogits = cross_entropy_backward(2.0, saved)
    np.testing.assert_allclose(dlogits[0, 0], [-1 / 2, 1 / 4, 1 / 4], rtol=1e-13)
    np.testing.assert_allclose(dlogits[0, 1], [1 / 8, -7 / 8, 3 / 4], rtol=1e-13)


def test_dice_worked_by_hand():
    """Class 0: (2·3/4 + 1)/(1 + 1 + 1) = 5/6; class 1: the same, mirrored."""
    logits = logits_of([[[3 / 4, 1 / 4], [1 / 4, 3 / 4]]])
    loss, _ = dice_loss_forward(logits, np.array([[0, 1]]))
    np.testing.assert_allclose(loss, 1 / 6, rtol=1e-14)


def test_dice_per_sample_and_over_the_batch_worked_by_hand():
    """One voxel a sample, p = 3/4, 1/4 in both; the label is 0 in the first, 1 in the second."""
    logits = logits_of([[[3 / 4, 1 / 4]], [[3 / 4, 1 / 4]]])
    labels = np.array([[0], [1]])
    loss, _ = dice_loss_forward(logits, labels)
    np.testing.assert_allclose(loss, 1 - (2.5 / 3.5 + 1.5 / 2.5) / 2, rtol=1e-14)
    loss, _ = dice_loss_forward(logits, labels, per_sample=True)
    scores = [2.5 / 2.75, 1 / 1.25, 1 / 1.75, 1.5 / 2.25]
    np.testing.assert_allclose(loss, 1 - sum(scores) / 4, rtol=1e-14)


def test_the_decks_dice_charges_for_absent_classes_and_ours_does_not():
    """A perfect slice of background cost the deck 3/4 of Dice loss, 0.375 in the sum."""
    logits = np.zeros((1, 8, 8, 4))
    logits[..., 0] = 30.0
    labels = np.zeros((1, 8, 8), np.uint8)
    ours, _ = cce_dice_loss_forward(logits, labels)
    assert 0 <= ours < 1e-9
    logits[..., 0] = 12.0  # nearly as sure, yet p is large against 1e-6
    decks, _ = cce_dice_loss_forward(logits, labels, **DECK)
    np.testing.assert_allclose(decks, 0.375, atol=1e-2)


def test_nothing_where_nothing_is_has_a_dice_loss_of_exactly_0():
    logits = np.full((2, 3, 3, 4), -1e4)
    logits[..., 0] = 1e4
    for options in ({}, {"per_sample": True}, DECK):
        assert dice_loss_forward(logits, np.zeros((2, 3, 3), int), **options)[0] == 0


@given(cases())
def test_the_sum_is_half_of_each_unless_told_otherwise(case):
    cce, dice = cross_entropy_forward(*case)[0], dice_loss_forward(*case)[0]
    np.testing.assert_allclose(cce_dice_loss_forward(*case)[0], (cce + dice) / 2, rtol=1e-14)
    weighted, _ = cce_dice_loss_forward(*case, cce_weight=0.25, dice_weight=2)
    np.testing.assert_allclose(weighted, 0.25 * cce + 2 * dice, rtol=1e-14)


# By loops


@given(cases())
def test_cross_entropy_is_the_naive_loop(case):
    loss, _ = cross_entropy_forward(*case)
    np.testing.assert_allclose(loss, cross_entropy_oracle(*case), rtol=1e-12, atol=1e-15)


@given(cases(), st.sampled_from([0.0, 1e-6, 0.5, 1.0]), st.booleans())
def test_dice_is_the_naive_loop(case, smooth, per_sample):
    loss, _ = dice_loss_forward(*case, smooth=smooth, per_sample=per_sample)
    expected = dice_oracle(*case, smooth, per_sample)
    np.testing.assert_allclose(loss, expected, rtol=1e-11, atol=1e-14)


def test_the_defaults_are_smooth_1_over_the_whole_batch():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((3, 4, 4, 3)), rng.integers(0, 3, (3, 4, 4))
    np.testing.assert_allclose(dice_loss_forward(logits, labels)[0], dice_oracle(logits, labels))


# By derivative


@every
@given(case=cases(), dloss=st.sampled_from([1.0, -2.5]))
def test_the_gradient_of_the_logits(loss, case, dloss):
    forward, backward = LOSSES[loss]
    logits, labels = case
    _, saved = forward(logits, labels)
    dlogits = backward(dloss, saved)
    assert_gradient(
        lambda z: np.float64(forward(z, labels)[0]),
        logits,
        dlogits,
        dloss,
        np.random.default_rng(2),
        eps=1e-5,
    )


@every
@given(case=cases())
def test_the_gradients_of_a_voxel_sum_to_0_over_the_classes(loss, case):
    """Because only differences of logits matter."""
    forward, backward = LOSSES[loss]
    dlogits = backward(1.0, forward(*case)[1])
    np.testing.assert_allclose(dlogits.sum(axis=-1), 0, atol=1e-14)


@every
def test_the_gradient_is_linear_in_dloss_and_not_0(loss):
    forward, backward = LOSSES[loss]
    rng = np.random.default_rng(0)
    _, saved = forward(rng.standard_normal((2, 5, 3)), rng.integers(0, 3, (2, 5)))
    dlogits = backward(1.0, saved)
    assert np.abs(dlogits).max() > 1e-3
    np.testing.assert_allclose(backward(3.0, saved), 3 * dlogits, rtol=1e-12)
    np.testing.assert_allclose(backward(1.0, saved), dlogits)  # backward leaves saved alone


# By law


@every
@given(case=cases(), shift=st.floats(-1e3, 1e3))
def test_a_shift_of_all_logits_changes_nothing(loss, case, shift):
    forward, _ = LOSSES[loss]
    logits, labels = case
    np.testing.assert_allclose(
        forward(logits + shift, labels)[0], forward(logits, labels)[0], rtol=1e-9, atol=1e-11
    )


@every
@given(case=cases())
def test_the_order_of_voxels_and_of_classes_does_not_matter(loss, case):
    forward, _ = LOSSES[loss]
    logits, labels = case
    expected = forward(logits, labels)[0]
    flipped = forward(np.flip(logits, axis=1), np.flip(labels, axis=1))[0]
    np.testing.assert_allclose(flipped, expected, rtol=1e-12, atol=1e-14)
    last = labels.dtype.type(logits.shape[-1] - 1)
    renamed = forward(logits[..., ::-1], last - labels)[0]
    np.testing.assert_allclose(renamed, expected, rtol=1e-12, atol=1e-14)


@given(cases())
def test_dice_lies_between_0_and_1_and_cross_entropy_above_0(case):
    assert 0 <= dice_loss_forward(*case)[0] < 1
    assert cross_entropy_forward(*case)[0] >= 0


def test_ignorance_costs_the_logarithm_of_the_classes():
    labels = np.arange(12).reshape(2, 6) % 4
    loss, _ = cross_entropy_forward(np.zeros((2, 6, 4)), labels)
    np.testing.assert_allclose(loss, log(4), rtol=1e-14)


# Numbers


@every
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("right", [True, False])
def test_logits_of_ten_thousand_stay_finite(loss, dtype, right):
    """Warnings are errors here, so nothing overflows and no log of 0 is taken on the way."""
    forward, backward = LOSSES[loss]
    labels = np.arange(24).reshape(2, 3, 4) % 4
    favoured = labels if right else (labels + 1) % 4
    logits = np.where(favoured[..., None] == np.arange(4), 1e4, -1e4).astype(dtype)
    value, saved = forward(logits, labels)
    dlogits = backward(1.0, saved)
    assert np.isfinite(value)
    assert np.isfinite(dlogits).all()
    assert dlogits.dtype == dtype
    if right:
        assert value == 0
    if loss == "cross-entropy" and not right:
        assert value == 2e4


@every
@given(case=cases())
def test_float32_is_near_float64_and_arguments_are_left_alone(loss, case):
    forward, backward = LOSSES[loss]
    logits, labels = case
    single, before = logits.astype(np.float32), (logits.astype(np.float32), labels.copy())
    value, saved = forward(single, labels)
    dlogits = backward(1.0, saved)
    assert isinstance(value, np.float64)
    assert dlogits.dtype == np.float32
    assert np.array_equal(single, before[0])
    assert np.array_equal(labels, before[1])
    expected, saved = forward(logits, labels)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dlogits, backward(1.0, saved), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("smooth", [1.0, 1e-6])
def test_a_foreground_that_is_empty_has_a_gradient_toward_the_background(per_sample, smooth):
    logits = np.random.default_rng(0).standard_normal((2, 4, 4, 4))
    labels = np.zeros((2, 4, 4), np.uint8)
    loss, saved = dice_loss_forward(logits, labels, per_sample=per_sample, smooth=smooth)
    dlogits = dice_loss_backward(1.0, saved)
    assert np.isfinite(loss)
    assert (dlogits[..., 0] < 0).all()


def test_the_mean_is_right_for_a_million_voxels_in_float32():
    """Sums in float32 would be off by more than this."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((1, 2**20, 2)).astype(np.float32)
    labels = rng.integers(0, 2, (1, 2**20))
    exact = logits.astype(np.float64)
    for forward in (cross_entropy_forward, dice_loss_forward):
        value, expected = forward(logits, labels)[0], forward(exact, labels)[0]
        np.testing.assert_allclose(value, expected, rtol=2e-8)


# Errors


@every
@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros((2, 4, 5), int), ["(2, 4, 4)", "(2, 4, 5)"]),
        (np.zeros((2, 4, 4, 3), int), ["(2, 4, 4)", "(2, 4, 4, 3)"]),
        (np.zeros((2, 4, 4)), ["integers", "float64"]),
        (np.zeros((2, 4, 4), bool), ["integers", "bool"]),
        (np.full((2, 4, 4), 3), ["[0, 3)", "3"]),
        (np.full((2, 4, 4), 255, np.uint8), ["[0, 3)", "255"]),
        (np.full((2, 4, 4), -1), ["[0, 3)", "-1"]),
    ],
)
def test_label_errors_say_what_was_expected(loss, labels, words):
    with pytest.raises(ValueError, match="labels must be") as error:
        LOSSES[loss][0](np.zeros((2, 4, 4, 3)), labels)
    missing = [word for word in words if word not in str(error.value)]
    assert not missing, f"{missing} not in {error.value}"
