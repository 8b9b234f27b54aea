"""Adam against its definition in scalars, and the halving learning rate."""

from math import inf, nan, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibrain.optimizers import Adam, HalveOnPlateau
from minibrain.parameter import Parameter

SHAPES = [(2, 3), (4,), (1, 1, 2), ()]


def make(dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return [Parameter(np.asarray(rng.standard_normal(shape), dtype)) for shape in SHAPES]


def set_gradients(parameters, seed):
    """Of very different sizes, some of them 0."""
    rng = np.random.default_rng(seed)
    for parameter in parameters:
        scale = 10.0 ** rng.integers(-6, 4, parameter.value.shape)
        present = rng.random(parameter.value.shape) < 0.8
        parameter.grad[...] = rng.standard_normal(parameter.value.shape) * scale * present


def scalar_adam(value, gradients, learning_rate, beta1=0.9, beta2=0.999, epsilon=1e-8):
    """Algorithm 1 of the paper, one number and one step at a time."""
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        corrected_m = m / (1 - beta1**t)
        corrected_v = v / (1 - beta2**t)
        value = value - learning_rate * corrected_m / (sqrt(corrected_v) + epsilon)
    return value


def flat(parameters, what="value"):
    return np.concatenate([getattr(p, what).ravel() for p in parameters])


# Adam


def test_two_steps_worked_by_hand():
    """g = 3 and then -1: m = 0.3 and 0.17, v = 0.009 and 0.009991 before the correction."""
    parameter = Parameter(np.array([1.0]))
    optimizer = Adam([parameter], learning_rate=0.1)
    parameter.grad[:] = 3
    optimizer.step()
    np.testing.assert_allclose(parameter.value, 0.9, rtol=1e-8)
    parameter.grad[:] = -1
    optimizer.step()
    expected = 0.9 - 0.1 * (0.17 / 0.19) / sqrt(0.009991 / 0.001999)
    np.testing.assert_allclose(parameter.value, expected, rtol=1e-8)


@given(
    st.integers(0, 2**16),
    st.integers(1, 8),
    st.sampled_from([1e-4, 0.1]),
    st.sampled_from([{}, {"beta1": 0.5, "beta2": 0.9, "epsilon": 1e-3}]),
)
def test_adam_is_the_scalar_algorithm(seed, steps, learning_rate, constants):
    parameters = make(seed=seed)
    optimizer = Adam(parameters, learning_rate, **constants)
    start, history = flat(parameters), []
    for step in range(steps):
        set_gradients(parameters, seed=seed + step)
        history.append(flat(parameters, "grad"))
        optimizer.step()
    expected = [
        scalar_adam(value, gradients, learning_rate, **constants)
        for value, gradients in zip(start, np.transpose(history), strict=True)
    ]
    np.testing.assert_allclose(flat(parameters), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_first_step_is_the_learning_rate_whatever_the_gradient(dtype):
    """Without the bias correction it would be 0.1/√0.001, over three times that."""
    parameter = Parameter(np.zeros(4, dtype))
    parameter.grad[:] = [1e-3, -1, 50, 1e4]
    Adam([parameter], learning_rate=0.01).step()
    np.testing.assert_allclose(parameter.value, [-0.01, 0.01, -0.01, -0.01], rtol=2e-5)


def test_a_gradient_of_0_changes_nothing():
    parameters = make(np.float32)
    before = flat(parameters)
    Adam(parameters).step()
    assert np.array_equal(flat(parameters), before)


def test_values_change_in_place_and_gradients_stay_until_they_are_zeroed():
    parameters = make(np.float32)
    arrays = [(p.value, p.grad) for p in parameters]
    set_gradients(parameters, 0)
    gradients = flat(parameters, "grad")
    optimizer = Adam(parameters)
    optimizer.step()
    assert np.array_equal(flat(parameters, "grad"), gradients)
    optimizer.zero_grad()
    assert not flat(parameters, "grad").any()
    for parameter, (value, grad) in zip(parameters, arrays, strict=True):
        assert parameter.value is value
        assert parameter.grad is grad


@pytest.mark.parametrize(
    "wrap",
    [list, tuple, iter, lambda p: dict(zip("abcd", p, strict=True)), lambda p: (x for x in p)],
)
def test_a_mapping_or_any_iterable_of_parameters_will_do(wrap):
    results = []
    for given_as in (list, wrap):
        parameters = make()
        optimizer = Adam(given_as(parameters), learning_rate=0.1)
        for step in range(3):
            set_gradients(parameters, step)
            optimizer.step()
        results.append(flat(parameters))
    assert np.array_equal(*results)


def test_moments_follow_the_dtype_of_the_parameters():
    parameters = make(np.float32)
    optimizer = Adam(parameters, learning_rate=0.1)
    assert optimizer.mean.dtype == optimizer.square.dtype == np.float32
    set_gradients(parameters, 0)
    optimizer.step()
    before = [moment.astype(np.float64) for moment in (optimizer.mean, optimizer.square)]
    for parameter in parameters:
        parameter.value = parameter.value.astype(np.float64)
    set_gradients(parameters, 1)
    gradient = flat(parameters, "grad")
    optimizer.step()
    assert optimizer.mean.dtype == optimizer.square.dtype == np.float64
    np.testing.assert_allclose(optimizer.mean, 0.9 * before[0] + 0.1 * gradient, rtol=1e-12)
    np.testing.assert_allclose(
        optimizer.square, 0.999 * before[1] + 0.001 * gradient**2, rtol=1e-12
    )
    assert optimizer.steps == 2


def test_the_learning_rate_may_change_between_steps():
    parameter = Parameter(np.zeros(1))
    optimizer = Adam([parameter], learning_rate=1.0)
    parameter.grad[:] = 1
    optimizer.step()
    optimizer.learning_rate = 0.5
    optimizer.step()
    np.testing.assert_allclose(parameter.value, -1.5, rtol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_step_that_is_not_taken_changes_nothing_and_is_not_counted(dtype):
    parameters = make(dtype)
    optimizer = Adam(parameters, learning_rate=0.1)
    set_gradients(parameters, 0)
    optimizer.step()
    before = flat(parameters), optimizer.mean.copy(), optimizer.square.copy()
    optimizer.step(taken=np.bool_(False))
    for array, was in zip(
        (flat(parameters), optimizer.mean, optimizer.square), before, strict=True
    ):
        assert np.array_equal(array, was)
    assert optimizer.steps == 1


def test_adam_finds_the_bottom_of_a_bowl():
    parameter = Parameter(np.array([5.0, -3.0]))
    optimizer = Adam([parameter], learning_rate=0.1)
    for _ in range(500):
        optimizer.zero_grad()
        parameter.grad += np.array([1.0, 100.0]) * (parameter.value - [1, 2])
        optimizer.step()
    np.testing.assert_allclose(parameter.value, [1, 2], atol=1e-3)


# Halving


def schedule(losses, **options):
    """The learning rate after every epoch."""
    optimizer = Adam([Parameter(np.zeros(1))], learning_rate=0.8)
    plateau = HalveOnPlateau(optimizer, **options)
    rates = []
    for loss in losses:
        plateau.update(loss)
        rates.append(optimizer.learning_rate)
    return rates


def test_the_rate_is_halved_after_patience_epochs_without_a_lower_loss():
    losses = [5, 4, 4, 6, 4.5, 3, 3, 3, 3, 3, 3]
    assert schedule(losses, patience=3) == [0.8] * 4 + [0.4] * 4 + [0.2] * 3
    assert schedule(losses, patience=1) == [
        0.8, 0.8, 0.4, 0.2, 0.1, 0.1, 0.05, 0.025, 0.0125, 0.00625, 0.003125
    ]  # fmt: skip


def test_a_lower_loss_starts_the_wait_again():
    assert schedule([5, 6, 4, 6, 3, 6, 2, 6], patience=2) == [0.8] * 8
    assert schedule([5, 6, 4, 6, 6], patience=2)[-1] == 0.4


def test_the_rate_is_not_halved_below_the_minimum():
    assert schedule([1] * 5, patience=1, minimum=0.3) == [0.8, 0.4, 0.3, 0.3, 0.3]


def test_a_rate_below_the_minimum_is_not_raised_to_it():
    assert schedule([1] * 3, patience=1, minimum=2.0) == [0.8, 0.8, 0.8]


def test_an_optimizer_of_nothing_is_refused():
    with pytest.raises(ValueError, match="parameters must hold one"):
        Adam(iter(()))


@pytest.mark.parametrize("loss", [nan, inf])
def test_a_loss_that_is_not_finite_is_not_progress(loss):
    assert schedule([loss] * 2, patience=2) == [0.8, 0.4]
    assert schedule([1, loss, loss], patience=2) == [0.8, 0.8, 0.4]


def test_moments_are_as_wide_as_the_widest_parameter():
    narrow, wide = (Parameter(np.ones(3, dtype)) for dtype in (np.float32, np.float64))
    alone = Parameter(np.ones(3))
    optimizers = [Adam([narrow, wide], learning_rate=0.1), Adam([alone], learning_rate=0.1)]
    for _ in range(3):
        for parameter in (narrow, wide, alone):
            parameter.grad[:] = 1 / 3, 1e-9, -7
        for optimizer in optimizers:
            optimizer.step()
    assert optimizers[0].mean.dtype == np.float64
    assert np.array_equal(wide.value, alone.value)
    assert narrow.value.dtype == np.float32
