"""The attention gate: by hand, by loops, by derivative and by law."""

from math import exp

import numpy as np
import pytest
from gradcheck import assert_gradient
from hypothesis import given
from hypothesis import strategies as st

from minibrain.functional import attention_gate_backward, attention_gate_forward
from minibrain.models import AttentionUNet, UNet

NAMES = ["skip", "signal", "skip_weight", "signal_weight", "bias", "score_weight", "score_bias"]


@st.composite
def gates(draw):
    """Arguments of a gate of rank 1 to 3, all float64."""
    size = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    c, g, f = (draw(st.integers(1, 4)) for _ in range(3))
    points, volume = (1,) * len(size), (draw(st.integers(1, 2)), *size)
    shapes = [(*volume, c), (*volume, g)]
    shapes += [(*points, c, f), (*points, g, f), (f,), (*points, f, 1), (1,)]
    return [rng.standard_normal(shape) for shape in shapes]


def random_like(y, seed=1):
    return np.random.default_rng(seed).standard_normal(y.shape)


def naive(skip, signal, skip_weight, signal_weight, bias, score_weight, score_bias):
    """One voxel after the other, one number after the other."""
    y = np.empty_like(skip)
    skip_weight, signal_weight = (w.reshape(w.shape[-2:]) for w in (skip_weight, signal_weight))
    for voxel in np.ndindex(skip.shape[:-1]):
        score = score_bias[0]
        for f in range(len(bias)):
            hidden = bias[f]
            hidden += sum(skip[voxel][c] * w for c, w in enumerate(skip_weight[:, f]))
            hidden += sum(signal[voxel][g] * w for g, w in enumerate(signal_weight[:, f]))
            score += score_weight.ravel()[f] * max(hidden, 0)
        for c, value in enumerate(skip[voxel]):
            y[voxel][c] = value / (1 + exp(-score))
    return y


def test_a_gate_worked_by_hand():
    """Hidden values 1·2 + 3·1 − 1 = 4 and −2 − 3 < 0; the score is 4 · ln 3 / 4, sigmoid 3/4."""
    skip, signal = np.array([[[2.0]]]), np.array([[[1.0]]])
    weights = np.array([[[1.0, -1.0]]]), np.array([[[3.0, -3.0]]]), np.array([-1.0, 0.0])
    score = np.array([[[np.log(3) / 4], [100.0]]]), np.array([0.0])
    y, saved = attention_gate_forward(skip, signal, *weights, *score)
    np.testing.assert_allclose(y, [[[1.5]]], rtol=1e-14)
    dskip, dsignal, *_ = attention_gate_backward(np.array([[[1.0]]]), saved)
    # d score / d skip = ln 3 / 4 and of the signal 3 times that; sigmoid' = 3/4 · 1/4
    slope = 2 * 3 / 16 * np.log(3) / 4
    np.testing.assert_allclose(dskip, [[[0.75 + slope]]], rtol=1e-14)
    np.testing.assert_allclose(dsignal, [[[3 * slope]]], rtol=1e-14)


@given(gates())
def test_a_gate_is_the_naive_loop(arguments):
    y, _ = attention_gate_forward(*arguments)
    np.testing.assert_allclose(y, naive(*arguments), rtol=1e-11, atol=1e-12)


@given(gates())
def test_the_gradient_of_every_argument(arguments):
    y, saved = attention_gate_forward(*arguments)
    dy, rng = random_like(y), np.random.default_rng(2)
    gradients = attention_gate_backward(dy, saved)
    assert len(gradients) == len(NAMES)
    for number, (argument, gradient) in enumerate(zip(arguments, gradients, strict=True)):

        def forward(value, number=number):
            return attention_gate_forward(*arguments[:number], value, *arguments[number + 1 :])[0]

        assert_gradient(forward, argument, gradient, dy, rng)


@given(gates(), st.sampled_from([np.float32, np.float64]))
def test_a_gate_keeps_dtypes_and_leaves_its_arguments_alone(arguments, dtype):
    arguments = [argument.astype(dtype) for argument in arguments]
    before = [argument.copy() for argument in arguments]
    y, saved = attention_gate_forward(*arguments)
    dy = random_like(y).astype(dtype)
    gradients = attention_gate_backward(dy, saved)
    assert {array.dtype for array in (y, *gradients)} == {np.dtype(dtype)}
    for argument, gradient, copy in zip(arguments, gradients, before, strict=True):
        assert gradient.shape == argument.shape
        assert np.array_equal(argument, copy)


@given(gates())
def test_a_gate_lets_a_share_of_each_voxel_through_from_all_to_nothing(arguments):
    skip, *rest, _ = arguments
    y, _ = attention_gate_forward(*arguments)
    assert (np.abs(y) <= np.abs(skip)).all()
    assert (y * skip >= 0).all()
    assert np.array_equal(attention_gate_forward(skip, *rest, np.array([1e3]))[0], skip)
    assert not attention_gate_forward(skip, *rest, np.array([-1e4]))[0].any()


@pytest.mark.parametrize("shape", [(1, 4, 5, 2), (2, 4, 4, 2), (1, 1, 4, 2), (1, 4, 2)])
def test_skip_and_signal_of_different_sizes_are_refused(shape):
    weights = np.zeros((1, 1, 2, 1)), np.zeros((1, 1, 2, 1)), np.zeros(1)
    score = np.zeros((1, 1, 1, 1)), np.zeros(1)
    with pytest.raises(ValueError, match=r"\(1, 4, 4, 2\)") as error:
        attention_gate_forward(np.zeros((1, 4, 4, 2)), np.zeros(shape), *weights, *score)
    assert str(shape) in str(error.value)


# The network


@pytest.mark.parametrize("up", ["transposed", "nearest"])
@pytest.mark.parametrize("rank", [2, 3])
def test_gates_that_let_everything_through_leave_the_unet_of_the_same_seed(rank, up):
    options = {"channels": (3, 4, 5), "up": up, "dropout": 0.2, "seed": 6, "dtype": np.float64}
    plain, gated = UNet(rank, 2, 3, **options), AttentionUNet(rank, 2, 3, **options)
    names = set(gated.named_parameters()) - set(plain.named_parameters())
    assert names == {f"join{i}.{name}" for i in (0, 1) for name in NAMES[2:]}
    x = np.random.default_rng(0).standard_normal((2, *(8,) * rank, 2))
    expected = plain.forward(x, training=True, step=3)[0]
    assert np.abs(gated.forward(x, training=True, step=3)[0] - expected).max() > 1e-3
    for join in gated.joins:
        join.parameters["score_bias"].value = np.array([1e3])
    assert np.array_equal(gated.forward(x, training=True, step=3)[0], expected)


def test_gates_of_different_seeds_and_levels_start_differently():
    networks = [AttentionUNet(2, 1, 2, channels=(4, 4, 4), seed=seed) for seed in (0, 0, 1)]
    weights = [join.parameters["skip_weight"].value for n in networks for join in n.joins]
    first, second, first_again, second_again, other, _ = weights
    assert np.array_equal(first, first_again)
    assert np.array_equal(second, second_again)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other)
