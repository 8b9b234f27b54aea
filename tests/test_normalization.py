"""Batch and instance normalisation: by hand, by loops, by derivative and by law."""

from math import sqrt

import numpy as np
import pytest
from gradcheck import assert_gradient
from hypothesis import given
from hypothesis import strategies as st

from minibrain.functional import (
    batch_norm_backward,
    batch_norm_forward,
    instance_norm_backward,
    instance_norm_forward,
)
from minibrain.layers import BatchNorm

EPS = 1e-5
PAIRS = {
    "batch": (batch_norm_forward, batch_norm_backward),
    "instance": (instance_norm_forward, instance_norm_backward),
}
both = pytest.mark.parametrize("norm", PAIRS)


@st.composite
def arrays(draw):
    """(N, *S, C) of rank 1 to 3 with two voxels or more in every sample; odd sizes included."""
    size = draw(
        st.lists(st.integers(1, 5), min_size=1, max_size=3).filter(lambda s: np.prod(s) > 1)
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    return rng.standard_normal((draw(st.integers(1, 3)), *size, draw(st.integers(1, 3))))


def gamma_beta(x, seed=5):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.5, 2, x.shape[-1]), rng.standard_normal(x.shape[-1])


def random_like(x, seed=1):
    return np.random.default_rng(seed).standard_normal(x.shape)


def spread(x):
    """As random, but no two values nearer than 0.5: a deviation near √ε has steep derivatives."""
    return x.ravel().argsort().argsort().reshape(x.shape) + np.tanh(x) / 4


def groups(norm, x):
    """Indices of all values that share a mean: (samples, channel) pairs."""
    samples = [range(len(x))] if norm == "batch" else [[n] for n in range(len(x))]
    return [(chosen, c) for chosen in samples for c in range(x.shape[-1])]


def over_voxels(norm, x):
    """The axes that share a mean."""
    return tuple(range(0 if norm == "batch" else 1, x.ndim - 1))


def oracle(norm, x, gamma, beta):
    """One group after the other, one voxel after the other."""
    y = np.empty(x.shape)
    for samples, c in groups(norm, x):
        voxels = [(n, *voxel, c) for n in samples for voxel in np.ndindex(x.shape[1:-1])]
        mean = sum(x[v] for v in voxels) / len(voxels)
        variance = sum((x[v] - mean) ** 2 for v in voxels) / len(voxels)
        for v in voxels:
            y[v] = gamma[c] * (x[v] - mean) / sqrt(variance + EPS) + beta[c]
    return y


# By hand


def test_instance_norm_worked_by_hand():
    """1, 3 has mean 2 and variance 1; 0, 10 has mean 5 and variance 25."""
    x = np.array([[[1.0], [3.0]], [[0.0], [10.0]]])
    y, saved = instance_norm_forward(x, np.array([2.0]), np.array([1.0]), eps=0.0)
    assert y.ravel().tolist() == [-1, 3, -1, 3]
    assert saved.mean.ravel().tolist() == [2, 5]
    assert saved.variance.ravel().tolist() == [1, 25]


def test_batch_norm_worked_by_hand():
    """-3, 1, 1, 1 over both samples: mean 0, variance 3, and with eps 1 a deviation of 2."""
    x = np.array([[[-3.0], [1.0]], [[1.0], [1.0]]])
    y, saved = batch_norm_forward(x, np.array([4.0]), np.array([10.0]), eps=1.0)
    assert y.ravel().tolist() == [4, 12, 12, 12]
    assert saved.mean.ravel().tolist() == [0]
    assert saved.variance.ravel().tolist() == [3]


def test_a_gradient_worked_by_hand():
    """x̂ = −1, 0, 1 times √1.5. Of dy = 1, 0, 0 take the mean 1/3 and the part along x̂, −1/2, 0, 1/2
    away: 1/6, −1/3, 1/6; divide by the deviation √(2/3)."""
    x = np.array([1.0, 2, 3]).reshape(1, 3, 1)
    _, saved = instance_norm_forward(x, np.ones(1), np.zeros(1), eps=0.0)
    dx, dgamma, dbeta = instance_norm_backward(np.array([1.0, 0, 0]).reshape(x.shape), saved)
    np.testing.assert_allclose(dx.ravel(), np.array([1, -2, 1]) / 6 * sqrt(1.5), rtol=1e-14)
    np.testing.assert_allclose(dgamma, [-sqrt(1.5)], rtol=1e-14)
    assert dbeta == [1]


# By loops and by derivative


@both
@given(x=arrays())
def test_the_norm_is_the_naive_loop(norm, x):
    gamma, beta = gamma_beta(x)
    y, _ = PAIRS[norm][0](x, gamma, beta)
    np.testing.assert_allclose(y, oracle(norm, x, gamma, beta), rtol=1e-10, atol=1e-10)


@both
@given(x=arrays())
def test_gradients_of_x_gamma_and_beta(norm, x):
    forward, backward = PAIRS[norm]
    gamma, beta = gamma_beta(x)
    x = spread(x)
    _, saved = forward(x, gamma, beta)
    dy, rng = random_like(x), np.random.default_rng(2)
    dx, dgamma, dbeta = backward(dy, saved)
    assert_gradient(lambda x: forward(x, gamma, beta)[0], x, dx, dy, rng)
    assert_gradient(lambda gamma: forward(x, gamma, beta)[0], gamma, dgamma, dy, rng)
    assert_gradient(lambda beta: forward(x, gamma, beta)[0], beta, dbeta, dy, rng)


@given(x=arrays())
def test_gradients_of_batch_norm_with_given_statistics(x):
    """They are constants: nothing flows back through them."""
    gamma, beta = gamma_beta(x)
    mean, variance = gamma_beta(x, seed=6)[::-1]

    def forward(x=x, gamma=gamma, beta=beta):
        return batch_norm_forward(x, gamma, beta, mean, variance, training=False)

    y, saved = forward()
    np.testing.assert_allclose(
        y, gamma * (x - mean) / np.sqrt(variance + EPS) + beta, rtol=1e-12, atol=1e-12
    )
    dy, rng = random_like(x), np.random.default_rng(2)
    dx, dgamma, dbeta = batch_norm_backward(dy, saved)
    np.testing.assert_allclose(dx, dy * gamma / np.sqrt(variance + EPS), rtol=1e-12)
    assert_gradient(lambda gamma: forward(gamma=gamma)[0], gamma, dgamma, dy, rng)
    assert_gradient(lambda beta: forward(beta=beta)[0], beta, dbeta, dy, rng)


# By law


@both
@given(x=arrays())
def test_the_result_has_mean_0_and_variance_1(norm, x):
    channels = x.shape[-1]
    y, saved = PAIRS[norm][0](x, np.ones(channels), np.zeros(channels))
    axes = over_voxels(norm, x)
    np.testing.assert_allclose(y.mean(axis=axes), 0, atol=1e-10)
    variance = x.var(axis=axes)
    np.testing.assert_allclose(y.var(axis=axes), variance / (variance + EPS), rtol=1e-9)
    np.testing.assert_allclose(saved.variance, x.var(axis=axes, keepdims=True), rtol=1e-9)


@both
@given(x=arrays(), shift=st.floats(-100, 100), scale=st.floats(0.1, 100))
def test_neither_shift_nor_scale_of_x_matter(norm, x, shift, scale):
    forward, _ = PAIRS[norm]
    gamma, beta = gamma_beta(x)
    x = spread(x)
    y, _ = forward(x, gamma, beta, eps=1e-12)
    np.testing.assert_allclose(
        forward(scale * x + shift, gamma, beta, eps=1e-12)[0], y, rtol=1e-8, atol=1e-8
    )
    np.testing.assert_allclose(
        forward(-scale * x, gamma, beta, eps=1e-12)[0], 2 * beta - y, rtol=1e-8, atol=1e-8
    )


@both
@given(x=arrays())
def test_dx_sums_to_0_and_is_orthogonal_to_xhat(norm, x):
    """The first for any eps; the second, because a scaling changes nothing, for a small one."""
    forward, backward = PAIRS[norm]
    x = spread(x)
    gamma, beta = gamma_beta(x)
    _, saved = forward(x, gamma, beta, eps=1e-12)
    dx, _, _ = backward(random_like(x), saved)
    xhat, _ = forward(x, np.ones_like(gamma), np.zeros_like(beta), eps=1e-12)
    axes = over_voxels(norm, x)
    np.testing.assert_allclose(dx.sum(axis=axes), 0, atol=1e-9)
    np.testing.assert_allclose((dx * xhat).sum(axis=axes), 0, atol=1e-9)


@given(x=arrays())
def test_instance_norm_is_batch_norm_of_one_sample_at_a_time(x):
    gamma, beta = gamma_beta(x)
    dy = random_like(x)
    y, saved = instance_norm_forward(x, gamma, beta)
    dx, dgamma, dbeta = instance_norm_backward(dy, saved)
    one_by_one = []
    for n in range(len(x)):
        one, one_saved = batch_norm_forward(x[n : n + 1], gamma, beta)
        np.testing.assert_allclose(y[n : n + 1], one, rtol=1e-12, atol=1e-12)
        one_by_one.append(batch_norm_backward(dy[n : n + 1], one_saved))
    np.testing.assert_allclose(dx, np.concatenate([d[0] for d in one_by_one]), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(dgamma, sum(d[1] for d in one_by_one), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(dbeta, sum(d[2] for d in one_by_one), rtol=1e-9, atol=1e-9)


@both
@given(x=arrays(), dtype=st.sampled_from([np.float32, np.float64]))
def test_dtypes_stay_and_arguments_are_left_alone(norm, x, dtype):
    forward, backward = PAIRS[norm]
    arguments = [a.astype(dtype) for a in (x, *gamma_beta(x))]
    before = [a.copy() for a in arguments]
    y, saved = forward(*arguments)
    dy = random_like(x).astype(dtype)
    dy_before = dy.copy()
    gradients = backward(dy, saved)
    assert {a.dtype for a in (y, *gradients)} == {np.dtype(dtype)}
    assert [g.shape for g in gradients] == [a.shape for a in arguments]
    assert np.array_equal(dy, dy_before)
    assert all(map(np.array_equal, arguments, before))


# Numbers


@both
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.1, -0.3, 1 / 3, 1e-20, 1e4 + 0.1, -123456.7, 1e7 / 3])
@pytest.mark.parametrize("size", [(7,), (5, 3), (11, 13, 5)])
def test_a_constant_channel_becomes_exactly_beta(norm, dtype, value, size):
    """A mean that is off by rounding would be multiplied by 1/√ε, over 300."""
    forward, backward = PAIRS[norm]
    x = np.full((3, *size, 2), value, dtype)
    gamma, beta = np.array([2, 3], dtype), np.array([0.7, 0], dtype)
    y, saved = forward(x, gamma, beta)
    assert np.array_equal(y, np.broadcast_to(beta, x.shape))
    assert not saved.variance.any()
    dx, dgamma, _ = backward(random_like(x).astype(dtype), saved)
    assert np.isfinite(dx).all()
    assert not dgamma.any()


@both
@pytest.mark.parametrize("mean", [1e4, -1e4, 3e4])
def test_the_variance_is_right_far_from_0_in_float32(norm, mean):
    """E[x²] − E[x]² would lose it: 1e8 has float32 neighbours 8 apart."""
    forward, _ = PAIRS[norm]
    x = (mean + np.random.default_rng(0).standard_normal((2, 16, 16, 16, 2))).astype(np.float32)
    y, saved = forward(x, np.ones(2, np.float32), np.zeros(2, np.float32))
    exact = x.astype(np.float64)
    axes = over_voxels(norm, x)
    np.testing.assert_allclose(
        saved.variance, exact.var(axis=axes, keepdims=True), rtol=4 * np.finfo(np.float32).eps
    )
    # the mean itself is rounded to float32, which shifts y by up to half a unit in its last place
    np.testing.assert_allclose(y.mean(axis=axes), 0, atol=np.spacing(np.float32(abs(mean))))
    np.testing.assert_allclose(y.var(axis=axes), 1, atol=2e-5)


@both
def test_float32_is_as_good_as_its_epsilon(norm):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 9, 9, 9, 3)).astype(np.float32)
    gamma, beta = (a.astype(np.float32) for a in gamma_beta(x))
    y, _ = PAIRS[norm][0](x, gamma, beta)
    expected, _ = PAIRS[norm][0](*(a.astype(np.float64) for a in (x, gamma, beta)))
    np.testing.assert_allclose(y, expected, atol=32 * np.finfo(np.float32).eps)


# The layer


def test_running_statistics_by_hand():
    """From 0 and 1, a tenth of the way to the batch's mean and biased variance each time."""
    layer = BatchNorm(1, np.float64)
    batch = np.array([1.0, 3, 5, 7]).reshape(2, 2, 1)  # mean 4, variance 5
    layer.forward(batch, training=True)
    mean, variance = (buffer.value for buffer in layer.buffers.values())
    np.testing.assert_allclose(mean, [0.4])
    np.testing.assert_allclose(variance, [1.4])
    layer.forward(batch + 10, training=True)
    np.testing.assert_allclose(mean, [0.9 * 0.4 + 1.4])
    np.testing.assert_allclose(variance, [0.9 * 1.4 + 0.5])
    assert list(layer.buffers) == ["running_mean", "running_variance"]


def test_the_layer_infers_with_running_statistics_and_leaves_them():
    rng = np.random.default_rng(0)
    layer = BatchNorm(3, np.float64)
    for _ in range(3):
        layer.forward(rng.standard_normal((2, 4, 4, 3)) + 5, training=True)
    mean, variance = (buffer.value.copy() for buffer in layer.buffers.values())
    x = rng.standard_normal((1, 2, 3, 3))
    y, saved = layer.forward(x)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + EPS), rtol=1e-12)
    assert np.array_equal(layer.buffers["running_mean"].value, mean)
    assert np.array_equal(layer.buffers["running_variance"].value, variance)
    dy = random_like(x)
    dx = layer.backward(dy, saved)
    np.testing.assert_allclose(dx, dy / np.sqrt(variance + EPS), rtol=1e-12)
    assert_gradient(lambda x: layer.forward(x)[0], x, dx, dy, rng)


def test_running_statistics_approach_those_of_the_data():
    rng = np.random.default_rng(0)
    layer = BatchNorm(2)
    for _ in range(100):
        layer.forward((3 + 2 * rng.standard_normal((4, 8, 8, 2))).astype(np.float32), training=True)
    assert layer.buffers["running_mean"].value.dtype == np.float32
    np.testing.assert_allclose(layer.buffers["running_mean"].value, 3, atol=0.1)
    np.testing.assert_allclose(layer.buffers["running_variance"].value, 4, atol=0.3)


# Errors


@both
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 1, 1, 3), (1, 1, 1, 1, 2)])
def test_one_value_per_channel_is_an_error(norm, shape):
    with pytest.raises(ValueError, match="one value per channel") as error:
        PAIRS[norm][0](np.ones(shape), np.ones(shape[-1]), np.zeros(shape[-1]))
    assert str(shape) in str(error.value)


def test_one_voxel_is_enough_for_a_batch_of_two_but_not_for_instances():
    x, gamma, beta = np.array([1.0, 3]).reshape(2, 1, 1), np.ones(1), np.zeros(1)
    assert batch_norm_forward(x, gamma, beta, eps=0.0)[0].ravel().tolist() == [-1, 1]
    with pytest.raises(ValueError, match="one value per channel"):
        instance_norm_forward(x, gamma, beta)


def test_one_value_per_channel_is_fine_for_given_statistics():
    ones = np.ones(3)
    y, _ = batch_norm_forward(
        np.ones((1, 1, 3)), ones, 0 * ones, 0 * ones, ones, training=False, eps=0.0
    )
    assert y.ravel().tolist() == [1, 1, 1]


@both
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 2), ()])
@pytest.mark.parametrize("name", ["gamma", "beta"])
def test_parameters_of_another_size_are_an_error(norm, name, shape):
    parameters = {"gamma": np.ones(2), "beta": np.ones(2)} | {name: np.ones(shape)}
    with pytest.raises(ValueError, match=name) as error:
        PAIRS[norm][0](np.ones((2, 4, 2)), **parameters)
    assert "(2,)" in str(error.value)
    assert str(shape) in str(error.value)


@pytest.mark.parametrize("given_one", [{}, {"running_mean": np.zeros(2)}])
def test_inference_without_running_statistics_is_an_error(given_one):
    with pytest.raises(ValueError, match="running_mean"):
        batch_norm_forward(np.ones((2, 4, 2)), np.ones(2), np.ones(2), training=False, **given_one)
