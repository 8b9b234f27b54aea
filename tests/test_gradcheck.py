"""The check itself: it passes what is right, and finds every kind of wrong gradient."""

import inspect

import numpy as np
import pytest

from minibrain import functional, layers, models
from minibrain.cli import main
from minibrain.functional import (
    batch_norm_backward,
    batch_norm_forward,
    conv_backward,
    conv_forward,
    relu_backward,
    relu_forward,
    softmax_backward,
    softmax_forward,
)
from minibrain.models import UNet
from minibrain.saved import SoftmaxSaved
from minibrain.study.gradcheck import check_gradient, gradcheck, gradcheck_layer
from minibrain.study.gradcheck_cases import checks_of, layer_cases, network_makers, operation_cases

rng = np.random.default_rng(0)
X = rng.standard_normal((2, 6, 5, 3))
WEIGHT, BIAS = rng.standard_normal((3, 3, 3, 4)), rng.standard_normal(4)
GAMMA, BETA = rng.standard_normal((2, 3))


def verdicts(checks):
    return {check.argument: check.verdict for check in checks}


# What is right passes


@pytest.mark.parametrize("name", [*operation_cases(), *layer_cases(), "brain_2d", "brain_3d_small"])
def test_every_gradient_of_the_library_is_right(name):
    checks = checks_of(name)
    assert checks
    assert all(check.passed for check in checks), checks


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(network_makers().keys() - {"brain_2d", "brain_3d_small"}))
def test_every_other_preset_is_right(name):
    assert all(check.passed for check in checks_of(name))


def test_nothing_is_forgotten():
    """Who adds an operation, a layer or a preset gives it a case."""
    operations = {name.rpartition("_")[0] for name in functional.__all__}
    assert operations == operation_cases().keys()
    shown = {
        name
        for name, value in vars(layers).items()
        if inspect.isclass(value) and value.__module__ == layers.__name__ and name != "Layer"
    }
    joins = {"Concat", "GatedConcat"}  # take a skip besides x: their operations have cases
    assert shown == layer_cases().keys() | joins
    assert set(models.__all__) - {"UNet", "AttentionUNet"} == network_makers().keys()


def test_no_case_has_a_gradient_of_nothing():
    """Where the right gradient is 0, a backward that returns 0 would pass."""
    for name in [*operation_cases(), *layer_cases()]:
        for check in checks_of(name):
            if check.argument != "conv.bias":  # the norm after it takes it out again
                assert abs(check.numeric) > 1e-4, (name, check)


def test_both_numbers_are_the_slope_of_a_function_done_by_hand():
    """y = Σ a·x² along u is 2·Σ a·x·u, and dy is a number."""
    a, x = np.array([1.0, -2.0, 4.0]), np.array([3.0, 1.0, 0.5])

    class FixedDirection:
        def standard_normal(self, shape):
            return np.array([0.0, 3.0, 4.0])  # of length 5

    check = check_gradient(
        lambda x: np.sum(a * x**2), x, 2 * a * x * 1.5, 1.5, FixedDirection(), name="x"
    )
    assert check.argument == "x"
    assert check.verdict == "ok"
    assert check.analytic == pytest.approx(1.5 * 2 * (-2 * 1 * 0.6 + 4 * 0.5 * 0.8), rel=1e-12)
    assert check.numeric == pytest.approx(check.analytic, rel=1e-8)


# What is wrong does not

FAULTS = {
    "sign flip": lambda dx, dw, db: (-dx, dw, db),
    "a factor": lambda dx, dw, db: (dx, 1.001 * dw, db),
    "no bias": lambda dx, dw, db: (dx, dw, 0 * db),
    "one wrong element": lambda dx, dw, db: (dx, dw + np.eye(3, 3)[:, :, None, None] * 1e-2, db),
    "not a number": lambda dx, dw, db: (dx * np.nan, dw, db),
    "kernel not flipped": lambda dx, dw, db: (dx, dw[::-1, ::-1], db),
}
HURT = dict(zip(FAULTS, ["x", "weight", "bias", "weight", "x", "weight"], strict=True))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_gradient_of_a_convolution_is_found_and_named(fault):
    arrays = {"x": X, "weight": WEIGHT, "bias": BIAS}
    checks = gradcheck(
        conv_forward, lambda dy, saved: FAULTS[fault](*conv_backward(dy, saved)), arrays
    )
    expected = dict.fromkeys(arrays, "ok") | {HURT[fault]: "wrong"}
    assert verdicts(checks) == expected


def test_batch_norm_without_the_way_through_its_statistics_is_found():
    def backward(dy, saved):
        _, dgamma, dbeta = batch_norm_backward(dy, saved)
        return dy * saved.gamma * saved.inv_std, dgamma, dbeta

    arrays = {"x": X, "gamma": GAMMA, "beta": BETA}
    assert verdicts(gradcheck(batch_norm_forward, backward, arrays))["x"] == "wrong"


@pytest.mark.parametrize(
    ("forward", "backward"),
    [
        (lambda x: batch_norm_forward(x, GAMMA, BETA), lambda dy, saved: 0 * saved.x),
        (softmax_forward, lambda dy, saved: 0 * saved.y),
    ],
    ids=["batch norm", "softmax"],
)
def test_nothing_is_wrong_where_ones_would_have_passed(forward, backward):
    """The case from which the random upstream gradient was learned."""
    assert verdicts(gradcheck(forward, backward, {"x": X})) == {"x": "wrong"}


def test_the_seed_that_drew_x_does_not_draw_dy():
    """With dy = x the gradient of instance norm is nearly 0."""
    x = np.random.default_rng(0).standard_normal((2, 6, 5, 3))
    seen = []

    def backward(dy, saved):
        seen.append(dy)
        return relu_backward(dy, saved)

    gradcheck(relu_forward, backward, {"x": x}, seed=0)
    assert abs(np.corrcoef(seen[0].ravel(), x.ravel())[0, 1]) < 0.5


def test_a_softmax_that_forgets_its_sum_is_found():
    def backward(dy, saved: SoftmaxSaved):
        return dy * saved.y

    assert verdicts(gradcheck(softmax_forward, softmax_backward, {"x": X})) == {"x": "ok"}
    assert verdicts(gradcheck(softmax_forward, backward, {"x": X})) == {"x": "wrong"}


# Kinks


def test_a_direction_over_a_kink_is_drawn_again(monkeypatch):
    """The first value is so near 0 that a step along some directions crosses it."""
    x = np.linspace(2e-7, 1, 16)

    def found():
        checks = [gradcheck(relu_forward, relu_backward, {"x": x}, seed=seed) for seed in range(20)]
        return {check.verdict for [check] in checks}

    assert found() == {"ok"}
    monkeypatch.setattr("minibrain.study.gradcheck.DIRECTIONS", 1)
    assert found() == {"ok", "kink"}


def test_kinks_everywhere_are_named():
    x = np.full((8,), 1e-8)
    [check] = gradcheck(relu_forward, relu_backward, {"x": x})
    assert check.verdict == "kink"
    assert not check.passed


# Layers and networks


class Doubled(layers.Conv):
    """A user's own layer: twice a convolution."""

    def forward(self, x, training=False, step=0):
        y, saved = super().forward(x, training, step)
        return 2 * y, saved

    def backward(self, dy, saved, input_gradient=True):
        return super().backward(2 * dy, saved, input_gradient)


class Forgetful(Doubled):
    def backward(self, dy, saved, input_gradient=True):
        dx = super().backward(dy, saved, input_gradient)
        self.parameters["bias"].grad /= 2
        return dx


def test_a_layer_of_ones_own():
    assert verdicts(gradcheck_layer(Doubled(WEIGHT), X)) == {
        "x": "ok",
        "weight": "ok",
        "bias": "ok",
    }
    forgetful = gradcheck_layer(Forgetful(WEIGHT), X)
    assert verdicts(forgetful) == {"x": "ok", "weight": "ok", "bias": "wrong"}


def test_a_forgotten_gamma_is_found_though_it_starts_at_one():
    class NoGamma(layers.BatchNorm):
        def backward(self, dy, saved, input_gradient=True):
            return super().backward(dy, saved._replace(gamma=np.ones(3)))

    assert verdicts(gradcheck_layer(NoGamma(3), X))["x"] == "wrong"


def test_the_layer_itself_is_left_alone():
    layer = layers.BatchNorm(3)
    before = [p.value.copy() for p in (*layer.parameters.values(), *layer.buffers.values())]
    gradcheck_layer(layer, X.astype(np.float32))
    after = [p.value for p in (*layer.parameters.values(), *layer.buffers.values())]
    for a, b in zip(after, before, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a, b)
    assert not layer.parameters["gamma"].grad.any()


class WithoutSkipGradient(UNet):
    """The U-Net whose author forgot `dx + dskips.pop()`."""

    def backward(self, dx, saved, input_gradient=True):
        dx = self.head.backward(dx, saved.pop())
        for up, decoder in zip(self.ups[::-1], self.decoders[::-1], strict=True):
            dx = decoder.backward(dx, saved.pop())
            dx, _ = functional.concat_backward(dx, saved.pop())
            dx = up.backward(dx, saved.pop())
        dx = self.bottleneck.backward(dx, saved.pop())
        for encoder, down in zip(self.encoders[::-1], self.downs[::-1], strict=True):
            dx = encoder.backward(down.backward(dx, saved.pop()), saved.pop())
        return dx


def test_a_skip_whose_gradient_is_dropped_is_found_in_the_encoder_alone():
    network = WithoutSkipGradient(2, 2, 3, channels=(2, 3), norm="none")
    found = verdicts(gradcheck_layer(network, rng.standard_normal((1, 4, 4, 2))))
    wrong = {name for name, verdict in found.items() if verdict == "wrong"}
    assert wrong == {"x"} | {name for name in found if name.startswith("encoder0")}


# Errors


def test_the_number_the_shapes_and_the_dtype_of_gradients_are_checked():
    arrays = {"x": X, "weight": WEIGHT}
    with pytest.raises(ValueError, match="3 gradients of x, weight"):
        gradcheck(conv_forward, conv_backward, arrays)
    with pytest.raises(ValueError, match=r"x has shape \(2, 6, 5, 3\), its gradient \(5,\)"):
        gradcheck(relu_forward, lambda dy, saved: np.zeros(5), {"x": X})
    with pytest.raises(ValueError, match="float64, got float32"):
        gradcheck(relu_forward, relu_backward, {"x": X.astype(np.float32)})


# The command


def test_the_table_and_its_exit_code(capsys):
    assert main(["gradcheck", "conv", "ReLU"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:-1]] == [
        ["conv", "x"],
        ["conv", "weight"],
        ["conv", "bias"],
        ["ReLU", "x"],
    ]
    assert all(line.endswith(" ok") for line in lines[1:-1])
    assert lines[-1] == "gradients checked: 4, wrong: 0"


def test_another_seed_takes_another_direction(capsys):
    tables = []
    for seed in ("0", "0", "1"):
        assert main(["gradcheck", "conv", "BatchNorm", "--seed", seed]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
    assert not set(tables[0].splitlines()[1:-1]) & set(tables[2].splitlines()[1:-1])
    assert main(["gradcheck", "--seed", "-1"]) == 2
    assert capsys.readouterr().err == "error: argument --seed: got -1, expected 0 or more\n"


def test_a_wrong_gradient_ends_the_command_with_1(capsys, monkeypatch):
    monkeypatch.setattr(functional, "relu_backward", lambda dy, saved: dy)
    assert main(["gradcheck", "relu"]) == 1
    assert "gradients checked: 1, wrong: 1" in capsys.readouterr().out


def test_a_name_that_nobody_knows(capsys):
    assert main(["gradcheck", "convolution"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: argument NAME: got 'convolution', expected some of")
    assert "conv_transpose" in error
