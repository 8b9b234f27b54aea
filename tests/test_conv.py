"""Convolution and transposed convolution: by hand, by loops, by derivative and by law."""

import tracemalloc
from math import prod
from typing import NamedTuple

import numpy as np
import oracles
import pytest
from gradcheck import assert_gradient
from hypothesis import given
from hypothesis import strategies as st

from minibrain.functional import (
    conv_backward,
    conv_forward,
    conv_transpose_backward,
    conv_transpose_forward,
)

LARGEST_SIZE = {1: 9, 2: 6, 3: 4}


class Case(NamedTuple):
    """One convolution; `transposed` is the one that goes back from y to x."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None
    options: dict

    @property
    def output_padding(self):
        """What restores the voxels at the end of x that no kernel reaches under this stride."""
        axes = zip(
            self.x.shape[1:-1],
            self.weight.shape[:-2],
            self.options["stride"],
            self.options["padding"],
            self.options["dilation"],
            strict=True,
        )
        return tuple((n + sum(p) - d * (k - 1) - 1) % s for n, k, s, p, d in axes)


@st.composite
def cases(draw):
    """A convolution of rank 1 to 3 whose kernel fits into its padded input."""
    rank = draw(st.integers(1, 3))

    def per_axis(low, high):
        return draw(st.tuples(*[st.integers(low, high)] * rank))

    kernel = per_axis(1, 3 if rank == 3 else 4)
    stride, dilation = per_axis(1, 3), per_axis(1, 2)
    before, after = per_axis(0, 3), per_axis(0, 3)
    smallest = [
        max(1, d * (k - 1) + 1 - b - a)
        for k, d, b, a in zip(kernel, dilation, before, after, strict=True)
    ]
    size = tuple(draw(st.integers(n, max(n, LARGEST_SIZE[rank]))) for n in smallest)
    batch, channels, outputs = (draw(st.integers(1, 3 if rank < 3 else 2)) for _ in range(3))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    return Case(
        rng.standard_normal((batch, *size, channels)),
        rng.standard_normal((*kernel, channels, outputs)),
        rng.standard_normal(outputs) if draw(st.booleans()) else None,
        {"stride": stride, "padding": tuple(zip(before, after, strict=True)), "dilation": dilation},
    )


@st.composite
def transposed_cases(draw):
    """A transposed convolution whose padding leaves at least one voxel, and its output_padding."""
    x, weight, _, options = draw(cases())
    stride, dilation = options["stride"], options["dilation"]
    extra = tuple(
        draw(st.integers(0, max(pair) - 1)) for pair in zip(stride, dilation, strict=True)
    )
    padding = []
    axes = zip(
        x.shape[1:-1], weight.shape[:-2], stride, options["padding"], dilation, extra, strict=True
    )
    for n, k, s, (before, after), d, e in axes:
        spare = (n - 1) * s + d * (k - 1) + e
        before = min(before, spare)
        padding.append((before, min(after, spare - before)))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    return Case(
        rng.standard_normal((*x.shape[:-1], weight.shape[-1])),
        weight,
        rng.standard_normal(weight.shape[-2]) if draw(st.booleans()) else None,
        {**options, "padding": tuple(padding), "output_padding": extra},
    )


def random_like(y, seed=1):
    return np.random.default_rng(seed).standard_normal(y.shape)


def assert_close(actual, expected, terms=1):
    """Equal up to the rounding of a sum of so many terms."""
    tolerance = 8 * np.finfo(np.float64).eps * max(terms, 8)
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * scale)


# By hand


def test_a_convolution_worked_by_hand():
    x = np.array([1.0, 2, 4, 8, 16]).reshape(1, 5, 1)
    weight = np.array([1.0, 10, 100]).reshape(3, 1, 1)
    y, _ = conv_forward(x, weight, np.array([0.5]), stride=2, padding=1)
    assert y.ravel().tolist() == [0 + 10 + 200.5, 2 + 40 + 800.5, 8 + 160 + 0.5]


def test_two_channels_and_two_axes_by_hand():
    x = np.arange(8.0).reshape(1, 2, 2, 2)  # the channels of the four voxels: 01 23 45 67
    weight = np.array([[1.0, 10], [100, 1000]]).reshape(2, 1, 2, 1)  # down the first axis
    y, _ = conv_forward(x, weight)
    assert y.shape == (1, 1, 2, 1)
    assert y.ravel().tolist() == [0 + 10 + 400 + 5000, 2 + 30 + 600 + 7000]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_it_is_a_cross_correlation_the_kernel_is_not_flipped(rank):
    """Where x is a single 1, a correlation writes the kernel mirrored; a convolution would not."""
    x = np.zeros((1, *[5] * rank, 1))
    x[(0, *[2] * rank, 0)] = 1
    weight = np.arange(1.0, 3**rank + 1).reshape(*[3] * rank, 1, 1)
    y, _ = conv_forward(x, weight)
    assert np.array_equal(y[0, ..., 0], np.flip(weight[..., 0, 0]))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_transposed_convolution_places_the_kernel_as_it_is(rank):
    weight = np.arange(1.0, 3**rank + 1).reshape(*[3] * rank, 1, 1)
    y, _ = conv_transpose_forward(np.full((1, *[1] * rank, 1), 2.0), weight)
    assert np.array_equal(y[0, ..., 0], 2 * weight[..., 0, 0])


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_seven_gives_five_gives_seven(rank):
    x, weight = np.ones((1, *[7] * rank, 1)), np.ones((*[3] * rank, 1, 1))
    y, _ = conv_forward(x, weight)
    assert y.shape == (1, *[5] * rank, 1)
    assert conv_transpose_forward(y, weight)[0].shape == x.shape


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_same_keeps_seven_at_seven(rank):
    x, weight = np.ones((1, *[7] * rank, 1)), np.ones((*[3] * rank, 1, 1))
    y, _ = conv_forward(x, weight, padding="same")
    assert y.shape == x.shape
    assert np.array_equal(y, conv_forward(x, weight, padding=1)[0])
    assert y.max() == 3**rank
    assert y.min() == 2**rank  # a corner sees its own octant only


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_transposed_convolution_of_ones_counts_the_overlaps(rank):
    """Kernels of 3 at every 2nd voxel: one above each voxel, two where they meet."""
    x, weight = np.ones((1, *[3] * rank, 1)), np.ones((*[3] * rank, 1, 1))
    y, _ = conv_transpose_forward(x, weight, stride=2)
    line = np.array([1.0, 1, 2, 1, 2, 1, 1])
    expected = line
    for _ in range(rank - 1):
        expected = np.multiply.outer(expected, line)
    assert np.array_equal(y[0, ..., 0], expected)


# By loops


@given(cases())
def test_conv_is_the_naive_loop(case):
    y, _ = conv_forward(case.x, case.weight, case.bias, **case.options)
    expected = oracles.conv(case.x, case.weight, case.bias, **case.options)
    assert y.shape == expected.shape
    assert_close(y, expected, prod(case.weight.shape[:-1]))


@given(transposed_cases())
def test_conv_transpose_is_the_naive_scatter(case):
    y, _ = conv_transpose_forward(case.x, case.weight, case.bias, **case.options)
    expected = oracles.conv_transpose(case.x, case.weight, case.bias, **case.options)
    assert y.shape == expected.shape
    assert_close(y, expected, prod(case.weight.shape[:-1]))


@given(cases())
def test_every_way_to_write_the_same_padding(case):
    x, weight, bias, options = case
    options = options | {"padding": tuple((after, after) for _, after in options["padding"])}
    per_axis = tuple(after for after, _ in options["padding"])
    try:
        nested, _ = conv_forward(x, weight, bias, **options)
    except ValueError:
        return  # with less in front the kernel no longer fits
    assert np.array_equal(
        nested, conv_forward(x, weight, bias, **options | {"padding": per_axis})[0]
    )
    if len(set(per_axis)) == 1:
        y, _ = conv_forward(x, weight, bias, **options | {"padding": per_axis[0]})
        assert np.array_equal(nested, y)


def test_lists_are_as_good_as_tuples():
    x, weight = np.ones((1, 5, 6, 1)), np.ones((2, 3, 1, 1))
    y, _ = conv_forward(x, weight, stride=(2, 1), padding=((1, 0), (2, 2)), dilation=(1, 2))
    z, _ = conv_forward(x, weight, stride=[2, 1], padding=[[1, 0], [2, 2]], dilation=[1, 2])
    assert np.array_equal(y, z)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_valid_is_no_padding(rank):
    x = np.random.default_rng(0).standard_normal((2, *[5] * rank, 1))
    weight = np.random.default_rng(1).standard_normal((*[2] * rank, 1, 2))
    valid, _ = conv_forward(x, weight, padding="valid", stride=2)
    assert np.array_equal(valid, conv_forward(x, weight, padding=0, stride=2)[0])


@given(cases())
def test_same_keeps_the_size_and_an_even_kernel_puts_the_odd_row_after(case):
    dilation = case.options["dilation"]
    y, _ = conv_forward(case.x, case.weight, case.bias, padding="same", dilation=dilation)
    assert y.shape[:-1] == case.x.shape[:-1]
    totals = [d * (k - 1) for k, d in zip(case.weight.shape[:-2], dilation, strict=True)]
    expected = oracles.conv(
        case.x,
        case.weight,
        case.bias,
        stride=[1] * len(totals),
        padding=[(total // 2, (total + 1) // 2) for total in totals],
        dilation=dilation,
    )
    assert_close(y, expected, prod(case.weight.shape[:-1]))


# By derivative


@given(cases())
def test_conv_gradients(case):
    x, weight, bias, options = case
    y, saved = conv_forward(x, weight, bias, **options)
    dy, rng = random_like(y), np.random.default_rng(2)
    dx, dweight, dbias = conv_backward(dy, saved)
    assert_gradient(lambda x: conv_forward(x, weight, bias, **options)[0], x, dx, dy, rng)
    assert_gradient(lambda w: conv_forward(x, w, bias, **options)[0], weight, dweight, dy, rng)
    if bias is not None:
        assert_gradient(lambda b: conv_forward(x, weight, b, **options)[0], bias, dbias, dy, rng)


@given(transposed_cases())
def test_conv_transpose_gradients(case):
    x, weight, bias, options = case
    y, saved = conv_transpose_forward(x, weight, bias, **options)
    dy, rng = random_like(y), np.random.default_rng(2)
    dx, dweight, dbias = conv_transpose_backward(dy, saved)

    def forward(x=x, weight=weight, bias=bias):
        return conv_transpose_forward(x, weight, bias, **options)[0]

    assert_gradient(lambda x: forward(x=x), x, dx, dy, rng)
    assert_gradient(lambda weight: forward(weight=weight), weight, dweight, dy, rng)
    if bias is not None:
        assert_gradient(lambda bias: forward(bias=bias), bias, dbias, dy, rng)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    ("forward", "backward"),
    [(conv_forward, conv_backward), (conv_transpose_forward, conv_transpose_backward)],
)
def test_the_bias_gradient_is_the_sum_of_dy(forward, backward, rank):
    rng = np.random.default_rng(rank)
    x = rng.standard_normal((2, *[4] * rank, 3))
    weight = rng.standard_normal((*[3] * rank, 3, 3))
    y, saved = forward(x, weight, rng.standard_normal(3), padding=1)
    dy = random_like(y)
    dbias = backward(dy, saved)[2]
    assert_close(dbias, dy.reshape(-1, 3).sum(axis=0), dy.size)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_first_layer_may_skip_its_input_gradient(stride):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 5, 5, 2)), rng.standard_normal((3, 3, 2, 4))
    y, saved = conv_forward(x, weight, stride=stride)
    _, dweight, dbias = conv_backward(random_like(y), saved)
    none, dweight_alone, dbias_alone = conv_backward(random_like(y), saved, input_gradient=False)
    assert none is None
    assert np.array_equal(dweight, dweight_alone)
    assert np.array_equal(dbias, dbias_alone)


# By law


@given(cases())
def test_conv_transpose_is_the_adjoint_of_conv(case):
    """⟨conv x, y⟩ = ⟨x, convᵀ y⟩ with one and the same weight array."""
    x, weight, _, options = case
    y, _ = conv_forward(x, weight, **options)
    other = random_like(y)
    back, _ = conv_transpose_forward(other, weight, **options, output_padding=case.output_padding)
    assert back.shape == x.shape
    assert_close(np.vdot(y, other), np.vdot(x, back), x.size * y.size)


@given(cases())
def test_the_input_gradient_of_conv_is_the_transposed_convolution(case):
    y, saved = conv_forward(case.x, case.weight, **case.options)
    dy = random_like(y)
    back, _ = conv_transpose_forward(
        dy, case.weight, **case.options, output_padding=case.output_padding
    )
    assert_close(conv_backward(dy, saved)[0], back, prod(case.weight.shape))


@given(cases())
def test_conv_is_linear_in_x_and_in_the_weight(case):
    x, weight, _, options = case
    y, _ = conv_forward(x, weight, **options)
    other_x, other_weight = random_like(x, 3), random_like(weight, 4)
    terms = prod(weight.shape[:-1])
    in_x = conv_forward(2 * x + other_x, weight, **options)[0]
    assert_close(in_x, 2 * y + conv_forward(other_x, weight, **options)[0], terms)
    in_weight = conv_forward(x, 2 * weight + other_weight, **options)[0]
    assert_close(in_weight, 2 * y + conv_forward(x, other_weight, **options)[0], terms)


@given(cases())
def test_shapes_follow_the_formulas(case):
    x, weight, _, options = case
    y, _ = conv_forward(x, weight, **options)
    for axis, (n, k) in enumerate(zip(x.shape[1:-1], weight.shape[:-2], strict=True)):
        s, p, d = (options[name][axis] for name in ("stride", "padding", "dilation"))
        assert y.shape[1 + axis] == (n + sum(p) - (d * (k - 1) + 1)) // s + 1
    assert (y.shape[0], y.shape[-1]) == (x.shape[0], weight.shape[-1])


@given(transposed_cases())
def test_transposed_shapes_follow_the_formulas(case):
    x, weight, _, options = case
    y, _ = conv_transpose_forward(x, weight, **options)
    for axis, (n, k) in enumerate(zip(x.shape[1:-1], weight.shape[:-2], strict=True)):
        s, p, d, e = (
            options[name][axis] for name in ("stride", "padding", "dilation", "output_padding")
        )
        assert y.shape[1 + axis] == (n - 1) * s + d * (k - 1) + 1 - sum(p) + e
    assert (y.shape[0], y.shape[-1]) == (x.shape[0], weight.shape[-2])


@given(cases(), st.sampled_from([np.float32, np.float64]))
def test_arguments_stay_untouched_and_dtypes_stay_what_they_are(case, dtype):
    arrays = [a if a is None else a.astype(dtype) for a in case[:3]]
    before = [a if a is None else a.copy() for a in arrays]
    y, saved = conv_forward(*arrays, **case.options)
    dy = random_like(y).astype(dtype)
    dy_before = dy.copy()
    gradients = conv_backward(dy, saved)
    assert {y.dtype, *(g.dtype for g in gradients if g is not None)} == {np.dtype(dtype)}
    assert np.array_equal(dy, dy_before)
    assert all(b is None or np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))


@given(cases())
def test_arrays_need_not_be_contiguous(case):
    x, weight, bias, options = case
    y, saved = conv_forward(x, weight, bias, **options)
    dy = random_like(y)
    turned = [np.asfortranarray(a) for a in (x, weight, dy)]
    z, turned_saved = conv_forward(*turned[:2], bias, **options)
    terms = prod(weight.shape) * prod(y.shape)
    assert_close(z, y, terms)
    for actual, expected in zip(
        conv_backward(turned[2], turned_saved), conv_backward(dy, saved), strict=True
    ):
        if expected is not None:
            assert_close(actual, expected, terms)


def test_no_operation_builds_the_whole_im2col_matrix():
    """That matrix is 27 times the input; every pass stays within a third of it."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 32, 32, 32, 8))
    weight = rng.standard_normal((3, 3, 3, 8, 8))

    def peak(function, *arguments, **options):
        tracemalloc.start()
        result = function(*arguments, **options)
        largest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert largest < 9 * x.nbytes
        return result

    y, saved = peak(conv_forward, x, weight, padding=1)
    peak(conv_backward, y, saved)
    y, saved = peak(conv_transpose_forward, x, weight, padding=1)
    peak(conv_transpose_backward, y, saved)


# Errors

X, WEIGHT = np.zeros((1, 7, 7, 2)), np.zeros((3, 3, 2, 4))


@pytest.mark.parametrize(
    ("x", "weight", "options", "words"),
    [
        (X[:, :2], WEIGHT, {}, ["axis 0", "size 2", "kernel_size 3", "vanish"]),
        (X[:, :, :4], WEIGHT, {"dilation": 2}, ["axis 1", "size 4", "dilation 2", "vanish"]),
        (X[0], WEIGHT, {}, ["x", "weight", "(7, 7, 2)", "(3, 3, 2, 4)"]),
        (X, WEIGHT[0], {}, ["x", "weight", "(1, 7, 7, 2)", "(3, 2, 4)"]),
        (X[0, 0], WEIGHT[0, 0], {}, ["x", "(7, 2)", "weight", "(2, 4)"]),
        (X[..., :1], WEIGHT, {}, ["channels", "1", "2", "weight"]),
        (X[:0], WEIGHT, {}, ["x", "(0, 7, 7, 2)", "empty"]),
        (X[..., :0], WEIGHT[:, :, :0], {}, ["weight", "(3, 3, 0, 4)", "empty"]),
        (X, WEIGHT, {"bias": np.zeros(3)}, ["bias", "(4,)", "(3,)"]),
        (X, WEIGHT, {"bias": np.zeros((4, 1))}, ["bias", "(4,)", "(4, 1)"]),
        (X, WEIGHT, {"padding": "full"}, ["padding", "same", "valid", "'full'"]),
        (X, WEIGHT, {"padding": "same", "stride": 2}, ["padding", "same", "stride", "2"]),
        (X, WEIGHT, {"padding": -1}, ["padding", "-1"]),
        (X, WEIGHT, {"padding": (1, 1, 1)}, ["padding", "2", "(1, 1, 1)"]),
        (X, WEIGHT, {"padding": ((1, 1),)}, ["padding", "2", "((1, 1),)"]),
        (X, WEIGHT, {"padding": ((1, 1), (0, -1))}, ["padding", "-1"]),
        (X, WEIGHT, {"padding": 0.5}, ["padding", "0.5"]),
        (X, WEIGHT, {"padding": None}, ["padding", "None"]),
        (X, WEIGHT, {"stride": 0}, ["stride", "0"]),
        (X, WEIGHT, {"stride": (1, 2, 3)}, ["stride", "2", "(1, 2, 3)"]),
        (X, WEIGHT, {"stride": 1.5}, ["stride", "1.5"]),
        (X, WEIGHT, {"dilation": 0}, ["dilation", "0"]),
        (X, WEIGHT, {"dilation": (1,)}, ["dilation", "2", "(1,)"]),
    ],
)
def test_conv_errors_name_the_argument_and_its_numbers(x, weight, options, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (each word is checked below)
        conv_forward(x, weight, **options)
    missing = [word for word in words if word not in str(error.value)]
    assert not missing, f"{missing} not in {error.value}"


@pytest.mark.parametrize(
    ("x", "weight", "options", "words"),
    [
        (X, WEIGHT, {}, ["channels", "2", "4", "weight"]),
        (X[..., 0], np.zeros((3, 3, 4, 2)), {}, ["x", "weight", "(1, 7, 7)"]),
        (X, np.zeros((3, 3, 4, 2)), {"bias": np.zeros(2)}, ["bias", "(4,)", "(2,)"]),
        (X[:, :1], np.zeros((3, 3, 4, 2)), {"padding": 2}, ["axis 0", "size 1", "vanish"]),
        (X, np.zeros((3, 3, 4, 2)), {"output_padding": 1}, ["output_padding", "stride 1", "got 1"]),
        (
            X,
            np.zeros((3, 3, 4, 2)),
            {"output_padding": (0, 2), "stride": 2},
            ["output_padding", "2"],
        ),
        (X, np.zeros((3, 3, 4, 2)), {"output_padding": -1}, ["output_padding", "-1"]),
        (
            X,
            np.zeros((3, 3, 4, 2)),
            {"stride": 2, "padding": "same"},
            ["padding", "same", "stride"],
        ),
    ],
)
def test_conv_transpose_errors_name_the_argument_and_its_numbers(x, weight, options, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (each word is checked below)
        conv_transpose_forward(x, weight, **options)
    missing = [word for word in words if word not in str(error.value)]
    assert not missing, f"{missing} not in {error.value}"
