"""What does not fit is refused by name: no operation broadcasts it, or rounds it to integers."""

import inspect

import numpy as np
import pytest

from minibrain import functional as F
from minibrain.arrays import array_module
from minibrain.kernels import listening
from minibrain.layers import Dropout, InstanceNormReLU
from minibrain.study.gradcheck_cases import operation_cases

CASES = operation_cases()
LOSSES = {"cross_entropy", "dice_loss", "cce_dice_loss"}
DISTORTIONS = {
    "one sample less": lambda dy: dy[:1],
    "one sample more": lambda dy: np.concatenate([dy, dy[:1]]),
    "a shorter axis": lambda dy: dy[:, :-1],
    "a longer axis": lambda dy: np.concatenate([dy, dy], axis=1),
    "an axis of one": lambda dy: dy[:, :1],
    "one channel": lambda dy: dy[..., :1],
    "no samples' axis": lambda dy: dy[0],
    "one more axis": lambda dy: dy[None],
}
FLOATS_ONLY = ["conv", "conv_transpose", "batch_norm", "instance_norm", "norm_relu"]
FLOATS_ONLY += ["sigmoid", "softmax", "dropout", "max_pool"]
# in float32, where the cases' own geometry is left to the readable body
TAKEN_BY_TWINS = {
    "conv": {"padding": "same"},
    "conv_transpose": {"stride": (3, 2)},
    "max_pool": {"stride": 2},
    "upsample": {"factor": 2},
}
both_twins = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def case(name, dtype=np.float64):
    """The arrays of an operation, and its options."""
    arrays, options = CASES[name]
    if name == "max_pool":
        arrays = {"x": arrays["x"][:, :, :4]}  # twins halve even axes
    return {key: x.astype(dtype) for key, x in arrays.items()}, TAKEN_BY_TWINS.get(name, options)


def call(name, dtype=np.float64, **others):
    """(y, saved) of an operation's case, with some of its arrays and options exchanged."""
    arrays, options = case(name, dtype)
    given = arrays | options | others
    first = [given.pop(argument) for argument in arrays]
    return getattr(F, f"{name}_forward")(*first, **given)


def arrays_in(result):
    """Every array in nested tuples."""
    if isinstance(result, tuple):
        return [x for item in result for x in arrays_in(item)]
    return [np.asarray(result)] if hasattr(result, "dtype") else []


@both_twins
@pytest.mark.parametrize("distortion", DISTORTIONS)
@pytest.mark.parametrize("name", sorted(CASES.keys() - LOSSES))
def test_a_gradient_of_another_shape_is_refused(name, distortion, dtype):
    y, saved = call(name, dtype)
    backward = getattr(F, f"{name}_backward")
    backward(y, saved)
    dy = DISTORTIONS[distortion](y)
    with pytest.raises(ValueError, match="dy must have shape") as error:
        backward(dy, saved)
    assert f"{y.shape}, got {dy.shape}" in str(error.value)


def test_a_joined_gradient_is_split_where_the_arrays_were_joined():
    a, b = np.ones((2, 4, 5, 3), np.float32), np.zeros((2, 4, 5, 1), np.float32)
    (joined, _), (_, saved) = F.concat_forward(a, b), F.concat_forward(b, a)
    parts = F.concat_backward(joined, saved)
    assert [part.shape for part in parts] == [b.shape, a.shape]
    assert np.array_equal(np.concatenate(parts, axis=-1), joined)


@pytest.mark.parametrize("name", sorted(CASES))
def test_what_another_operation_has_saved_is_refused(name):
    y, saved = call(name)
    for other in CASES:
        _, others = call(other)
        if type(others) is type(saved):
            continue
        kind, found = type(saved).__name__, type(others).__name__
        expected = f"{name}_backward: saved must be a {kind}, got {found}"
        with pytest.raises(TypeError, match=expected):
            getattr(F, f"{name}_backward")(y, others)


@pytest.mark.parametrize("name", FLOATS_ONLY)
@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool, complex])
def test_only_floats_are_computed_with(name, dtype):
    arrays, _ = CASES[name]
    for argument, x in arrays.items():
        with pytest.raises(ValueError, match=f"^{argument} must be an array of floats") as error:
            call(name, **{argument: x.real.astype(dtype)})
        assert np.dtype(dtype).name in str(error.value)


@pytest.mark.parametrize(
    ("argument", "shape"),
    [
        ("skip_weight", (3, 3, 3, 2)),
        ("signal_weight", (1, 1, 4, 1)),
        ("score_weight", (1, 1, 2, 3)),
    ],
)
def test_the_weights_of_an_attention_gate_fit_each_other(argument, shape):
    with pytest.raises(ValueError, match=f"^{argument} must have shape"):
        call("attention_gate", **{argument: np.ones(shape)})


@both_twins
@pytest.mark.parametrize("name", sorted(CASES))
def test_a_call_by_name_has_the_same_twin_and_the_same_bits(name, dtype):
    forward, backward = getattr(F, f"{name}_forward"), getattr(F, f"{name}_backward")
    arrays, options = case(name, dtype)
    upstream = next(iter(inspect.signature(backward).parameters))
    calls = []
    with listening(calls.append):
        y, saved = forward(*arrays.values(), **options)
        dy = np.random.default_rng(0).standard_normal(y.shape).astype(dtype)
        backward(dy, saved)
        _, saved = forward(**options, **arrays)
        backward(saved=saved, **{upstream: dy})
    for one, other in zip(calls[: len(calls) // 2], calls[len(calls) // 2 :], strict=True):
        assert (one.name, one.who) == (other.name, other.who)
        assert all(map(np.array_equal, arrays_in(one.result), arrays_in(other.result)))


@pytest.mark.parametrize("argument", ["running_mean", "running_variance"])
@pytest.mark.parametrize("wrong", [np.ones((5, 1)), np.ones(()), 1.0])
def test_running_statistics_are_one_number_a_channel(argument, wrong):
    x, gamma, beta = CASES["batch_norm"][0].values()
    running = {"running_mean": gamma, "running_variance": np.abs(gamma)} | {argument: wrong}
    with pytest.raises(ValueError, match=f"^{argument} must"):
        F.batch_norm_forward(x, gamma, beta, **running, training=False)


@pytest.mark.parametrize("key", [(1, 2), (1, 2, 3, 4), (0.5, 0, 0), ("a", 0, 0), None, 7])
def test_a_key_is_three_integers(key):
    with pytest.raises(ValueError, match="key must be three integers"):
        call("dropout", key=key)


@both_twins
@pytest.mark.parametrize("name", sorted(CASES))
def test_a_list_is_no_array(name, dtype):
    arrays, options = case(name, dtype)
    y, saved = call(name, dtype)
    if name in LOSSES:
        arrays["labels"] = options["labels"]
    said = r"^{} must be an array( of floats)?, got a list"
    for argument, x in arrays.items():
        with pytest.raises(ValueError, match=said.format(argument)):
            call(name, dtype, **{argument: x.tolist()})
    if name not in LOSSES:
        with pytest.raises(ValueError, match=said.format("dy")):
            getattr(F, f"{name}_backward")(np.asarray(y).tolist(), saved)


def test_what_is_no_array_is_refused():
    with pytest.raises(ValueError, match=r"^x must be an array, got a list$"):
        F.relu_forward([[-1.0, 2.0]])
    with pytest.raises(AttributeError, match="expected a NumPy or CuPy array, got list"):
        array_module([[-1.0, 2.0]])


@both_twins
@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("dloss", [np.ones(3), np.ones(1), [1.0], "1", None])
def test_the_gradient_of_a_loss_is_one_number(name, dloss, dtype):
    _, saved = call(name, dtype)
    with pytest.raises(ValueError, match="dloss must be one number, got"):
        getattr(F, f"{name}_backward")(dloss, saved)


@pytest.mark.parametrize("rate", [2, 1, -0.1, float("nan")])
def test_a_layer_refuses_a_rate_when_it_is_made(rate):
    for make in (lambda: Dropout(rate, 0, 0), lambda: InstanceNormReLU(3, rate=rate)):
        with pytest.raises(ValueError, match=r"dropout rate must be in \[0, 1\), got"):
            make()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_loss_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match=r"labels .* must not be empty"):
        getattr(F, f"{name}_forward")(np.ones((0, 4, 3)), np.ones((0, 4), int))
