"""The self-test measures every call against float64, and lets nothing wrong pass."""

import re
from dataclasses import replace

import numpy as np
import pytest

from minibrain import experiment, kernels
from minibrain.errors import InputError
from minibrain.functional import (
    attention_gate_backward,
    attention_gate_forward,
    conv_backward,
    conv_forward,
    max_pool_forward,
    norm_relu_forward,
)
from minibrain.models import brain_2d_small, brain_3d_small
from minibrain.runs.config import SMALL_3D
from minibrain.selftest import TOLERANCE, self_test, worst_errors

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def planted(monkeypatch, name, change):
    """Let the twin of an operation return something else."""
    find = kernels._find_twin

    def find_changed(package, module, asked):
        twin = find(package, module, asked)
        return twin if asked != name else lambda *a, **options: change(twin(*a, **options))

    monkeypatch.setattr(kernels, "_find_twin", find_changed)


def convolve():
    x, weight = normal(2, 6, 5, 8, 16), normal(3, 3, 3, 16, 16)
    y, saved = conv_forward(x, weight, padding="same")
    conv_backward(normal(*y.shape), saved)


def test_what_is_right_is_found_right_and_named():
    errors = worst_errors(convolve)
    assert set(errors) == {"conv_forward", "conv_backward"}
    assert all(0 < error < TOLERANCE["float32"] for error in errors.values())


def test_bfloat16_is_off_by_its_rounding():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    x = normal(2, 6, 5, 8, 16).astype(bfloat16)
    errors = worst_errors(lambda: norm_relu_forward(x, normal(16), normal(16)))
    assert 1e-4 < errors["norm_relu_forward"] < TOLERANCE["bfloat16"]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_one_gradient_that_is_a_little_off_is_seen(monkeypatch, which):
    def change(gradients):
        wrong = [1.001 * g if i == which else g for i, g in enumerate(gradients)]
        return tuple(wrong)

    planted(monkeypatch, "conv_backward", change)
    errors = worst_errors(convolve)
    assert errors["conv_forward"] < TOLERANCE["float32"] < 5e-4 < errors["conv_backward"]


def test_what_is_made_of_others_may_round_as_often_as_they_do(monkeypatch):
    """And no more than that."""
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    skip, signal = normal(2, 16, 16, 16).astype(bfloat16), normal(2, 16, 16, 16).astype(bfloat16)
    weights = normal(1, 1, 16, 8), normal(1, 1, 16, 8), normal(8), normal(1, 1, 8, 1), normal(1)

    def step():
        y, saved = attention_gate_forward(skip, signal, *weights)
        attention_gate_backward(normal(*y.shape).astype(bfloat16), saved)

    assert max(worst_errors(step).values()) < TOLERANCE["bfloat16"]
    find, whole = kernels._find_twin, attention_gate_backward.reference

    def wrong(*arguments):
        dskip, *others = whole(*arguments)
        return 1.05 * dskip, *others

    monkeypatch.setattr(
        kernels, "_find_twin", lambda *names: wrong if names[-1] == whole.__name__ else find(*names)
    )
    errors = worst_errors(step)
    assert errors.pop("attention_gate_backward") > TOLERANCE["bfloat16"] > max(errors.values())


def test_nan_is_not_right(monkeypatch):
    planted(monkeypatch, "max_pool_forward", lambda result: (result[0] * np.nan, result[1]))
    errors = worst_errors(lambda: max_pool_forward(normal(1, 32, 32, 4), 2))
    assert not errors["max_pool_forward"] < TOLERANCE["float32"]


def test_a_sum_that_vanishes_is_measured_by_what_was_added(monkeypatch):
    x, weight = normal(1, 8, 8, 16), normal(3, 3, 16, 16)
    y, saved = conv_forward(x, weight, padding="same")
    dy = normal(*y.shape)
    dy -= dy.mean(axis=(0, 1, 2))
    assert worst_errors(lambda: conv_backward(dy, saved))["conv_backward"] < TOLERANCE["float32"]


@pytest.mark.parametrize("network", [brain_3d_small, brain_2d_small])
def test_a_network_is_tested_and_left_as_it_is(network):
    model = network()
    before = {name: p.value.copy() for name, p in model.named_parameters().items()}
    right, findings = self_test(model)
    assert right
    assert re.fullmatch(r"right, \w+ward off by \d\.\de-0\d", findings)
    for name, parameter in model.named_parameters().items():
        assert np.array_equal(parameter.value, before[name])


def test_nothing_is_trained_where_an_operation_is_wrong(monkeypatch):
    config = replace(SMALL_3D, device="cuda", precision="fp32")
    planted(monkeypatch, "conv_backward", lambda gradients: (*gradients[:2], 1.01 * gradients[2]))
    with pytest.raises(InputError, match=r"device cuda: computes fp32 wrong \(WRONG, conv_backw"):
        experiment._require_right(brain_3d_small(), config)


def test_nobody_listens_afterwards():
    before = list(kernels.listeners)
    with pytest.raises(ZeroDivisionError):
        worst_errors(lambda: 1 / 0)
    assert kernels.listeners == before
