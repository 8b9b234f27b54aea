"""Max-pool, upsampling and concatenation: by hand, by loops, by derivative and by law."""

from typing import NamedTuple

import numpy as np
import oracles
import pytest
from gradcheck import assert_gradient
from hypothesis import assume, given
from hypothesis import strategies as st

from minibrain.functional import (
    concat_backward,
    concat_forward,
    max_pool_backward,
    max_pool_forward,
    upsample_backward,
    upsample_forward,
)


class Pool(NamedTuple):
    x: np.ndarray
    kernel: tuple[int, ...]
    options: dict

    def forward(self, x=None):
        return max_pool_forward(self.x if x is None else x, self.kernel, **self.options)

    def expected(self):
        return oracles.max_pool(self.x, self.kernel, **self.options)


@st.composite
def pools(draw, distinct=True, finite=True):
    """A max-pool of rank 1 to 3; if finite, every window holds a voxel of the input."""
    rank = draw(st.integers(1, 3))

    def per_axis(low, high):
        return draw(st.tuples(*[st.integers(low, high)] * rank))

    kernel, stride, dilation = per_axis(1, 3), per_axis(1, 3), per_axis(1, 2)
    padding = tuple(
        tuple(draw(st.integers(0, d * (k - 1))) for _ in "ba")
        for k, d in zip(kernel, dilation, strict=True)
    )
    size = tuple(
        draw(st.integers(max(1, d * (k - 1) + 1 - sum(p)), {1: 10, 2: 6, 3: 5}[rank]))
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    )
    shape = (draw(st.integers(1, 2)), *size, draw(st.integers(1, 3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    x = rng.standard_normal(shape) if distinct else rng.integers(-2, 0, shape).astype(float)
    case = Pool(x, kernel, {"stride": stride, "padding": padding, "dilation": dilation})
    assume(np.isfinite(case.expected()).all() or not finite)
    return case


@st.composite
def arrays(draw, channels=3):
    """Random values of rank 1 to 3, any number of channels up to `channels`."""
    size = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    return rng.standard_normal((draw(st.integers(1, 2)), *size, draw(st.integers(1, channels))))


def random_like(y, seed=1):
    return np.random.default_rng(seed).standard_normal(y.shape)


# Max-pool


def test_a_pool_worked_by_hand():
    x = np.array([[1.0, 5, 2], [4, 3, 9], [7, 7, 7]]).reshape(1, 3, 3, 1)
    y, saved = max_pool_forward(x, 2, stride=1)
    assert y.ravel().tolist() == [5, 9, 7, 9]
    dx = max_pool_backward(np.array([1.0, 10, 100, 1000]).reshape(y.shape), saved)
    # the third window holds 7 twice: the first one wins
    assert dx[0, ..., 0].tolist() == [[0, 1, 0], [0, 0, 1010], [100, 0, 0]]


@pytest.mark.parametrize(("taps", "dtype"), [(1, "u1"), (256, "u1"), (257, "u2")])
def test_a_winner_is_kept_in_the_fewest_bytes_that_number_all_taps(taps, dtype):
    x = np.arange(taps, dtype=float).reshape(1, taps, 1)
    y, saved = max_pool_forward(x, taps)
    assert saved.winner.dtype == dtype
    assert saved.winner == taps - 1
    assert np.array_equal(max_pool_backward(y, saved)[0, [0, -1]], x[0, [0, -1]])


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_default_halves_every_axis_and_leaves_an_odd_last_voxel_out(rank):
    x = np.random.default_rng(rank).standard_normal((2, *[5] * rank, 3))
    y, saved = max_pool_forward(x)
    assert y.shape == (2, *[2] * rank, 3)
    assert np.array_equal(
        y, oracles.max_pool(x, [2] * rank, [2] * rank, [(0, 0)] * rank, [1] * rank)
    )
    dx = max_pool_backward(random_like(y), saved)
    assert dx.shape == x.shape
    for axis in range(1, rank + 1):
        assert not dx.take(4, axis=axis).any()


def test_the_stride_is_the_kernel_unless_given():
    x = np.random.default_rng(0).standard_normal((1, 9, 8, 2))
    y, _ = max_pool_forward(x, (3, 2))
    assert np.array_equal(y, max_pool_forward(x, (3, 2), stride=(3, 2))[0])


def test_padding_never_wins():
    x = np.full((1, 4, 4, 1), -5.0)
    y, _ = max_pool_forward(x, 3, stride=1, padding=1)
    assert np.array_equal(y, x)


@given(pools())
def test_max_pool_is_the_naive_loop(case):
    y, _ = case.forward()
    assert np.array_equal(y, case.expected())


@given(pools(finite=False))
def test_a_pool_is_refused_exactly_where_a_window_sees_padding_only(case):
    if np.isfinite(case.expected()).all():
        assert np.isfinite(case.forward()[0]).all()
    else:
        with pytest.raises(ValueError, match="padding only"):
            case.forward()


@given(pools())
def test_max_pool_gradient(case):
    y, saved = case.forward()
    dy = random_like(y)
    dx = max_pool_backward(dy, saved)
    assert_gradient(lambda x: case.forward(x)[0], case.x, dx, dy, np.random.default_rng(2))


@given(pools(distinct=False))
def test_of_equal_values_exactly_one_gets_the_gradient(case):
    """Few values, so many ties: nothing is shared, doubled or lost."""
    y, saved = case.forward()
    assert np.array_equal(y, case.expected())
    dy = np.random.default_rng(1).integers(1, 9, y.shape).astype(float)
    dx = max_pool_backward(dy, saved)
    assert dx.sum() == dy.sum()
    assert np.count_nonzero(dx) <= dy.size
    for value in np.unique(case.x):  # each gradient reached a voxel of the value that won
        assert dx[case.x == value].sum() == dy[y == value].sum()


@given(pools(), st.sampled_from([np.float32, np.float64]))
def test_max_pool_keeps_dtypes_and_leaves_its_arguments_alone(case, dtype):
    x = case.x.astype(dtype)
    before = x.copy()
    y, saved = case.forward(x)
    dy = random_like(y).astype(dtype)
    dy_before = dy.copy()
    assert y.dtype == max_pool_backward(dy, saved).dtype == dtype
    assert np.array_equal(x, before)
    assert np.array_equal(dy, dy_before)


@given(pools())
def test_max_pool_commutes_with_growing_functions(case):
    y, _ = case.forward()
    assert np.array_equal(case.forward(3 * case.x + 1)[0], 3 * y + 1)


@pytest.mark.parametrize(
    ("shape", "kernel", "options", "words"),
    [
        ((1, 1, 4, 2), 2, {}, ["axis 0", "size 1", "kernel_size 2", "vanish"]),
        ((1, 4, 4, 2), 2, {"dilation": (1, 4)}, ["axis 1", "size 4", "dilation 4", "vanish"]),
        ((1, 4, 4, 2), 0, {}, ["kernel_size", "0"]),
        ((1, 4, 4, 2), (2, 2, 2), {}, ["kernel_size", "2", "(2, 2, 2)"]),
        ((1, 4, 4, 2), 2, {"stride": 0}, ["stride", "0"]),
        ((1, 4, 4, 2), 2, {"padding": "reflect"}, ["padding", "'reflect'"]),
        ((1, 4, 4, 2), 2, {"padding": "same"}, ["padding", "same", "stride"]),
        ((1, 4, 4, 2), 2, {"padding": 2}, ["axis 0", "padding only", "(2, 2)"]),
        ((1, 4, 4, 2), 2, {"padding": ((0, 0), (0, 2))}, ["axis 1", "padding only", "(0, 2)"]),
        ((1, 4, 1, 2), 2, {"padding": 1, "dilation": 2}, ["axis 1", "size 1", "dilation 2"]),
        ((4, 2), 2, {}, ["x", "(N, *S, C)"]),
    ],
)
def test_max_pool_errors_name_the_argument_and_its_numbers(shape, kernel, options, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (each word is checked below)
        max_pool_forward(np.zeros(shape), kernel, **options)
    missing = [word for word in words if word not in str(error.value)]
    assert not missing, f"{missing} not in {error.value}"


def test_max_pool_takes_floats():
    with pytest.raises(ValueError, match="x must be an array of floats, got int64"):
        max_pool_forward(np.zeros((1, 4, 1), np.int64))


# Upsampling


def test_upsampling_worked_by_hand():
    x = np.array([1.0, 2]).reshape(1, 2, 1)
    y, saved = upsample_forward(x, 3)
    assert y.ravel().tolist() == [1, 1, 1, 2, 2, 2]
    dx = upsample_backward(np.array([1.0, 10, 100, 2, 20, 200]).reshape(y.shape), saved)
    assert dx.ravel().tolist() == [111, 222]


@given(arrays(), st.data())
def test_upsample_is_the_naive_loop(x, data):
    factor = data.draw(st.tuples(*[st.integers(1, 3)] * (x.ndim - 2)))
    y, _ = upsample_forward(x, factor)
    assert np.array_equal(y, oracles.upsample(x, factor))


@given(arrays(), st.data())
def test_upsample_backward_is_its_adjoint(x, data):
    factor = data.draw(st.integers(1, 3))
    y, saved = upsample_forward(x, factor)
    dy = random_like(y)
    dx = upsample_backward(dy, saved)
    assert dx.shape == x.shape
    np.testing.assert_allclose(np.vdot(y, dy), np.vdot(x, dx), rtol=1e-12, atol=1e-11)
    assert_gradient(lambda x: upsample_forward(x, factor)[0], x, dx, dy, np.random.default_rng(2))


@given(arrays())
def test_pooling_undoes_upsampling(x):
    y, _ = upsample_forward(x)
    assert np.array_equal(max_pool_forward(y)[0], x)


@pytest.mark.parametrize("factor", [0, -1, 1.5, (2, 2, 2)])
def test_upsample_errors_name_the_factor(factor):
    with pytest.raises(ValueError, match="factor") as error:
        upsample_forward(np.zeros((1, 2, 2, 1)), factor)
    assert str(factor) in str(error.value)


def test_upsampling_needs_a_spatial_axis():
    with pytest.raises(ValueError, match="x must be"):
        upsample_forward(np.zeros((4, 2)))


# Concatenation


def test_concatenation_worked_by_hand():
    a, b = np.array([[[1.0], [2]]]), np.array([[[3.0, 4], [5, 6]]])
    y, saved = concat_forward(a, b)
    assert y.tolist() == [[[1, 3, 4], [2, 5, 6]]]
    da, db = concat_backward(y, saved)
    assert np.array_equal(da, a)
    assert np.array_equal(db, b)


@given(arrays(), st.integers(1, 3))
def test_concat_gradients(a, channels):
    b = np.random.default_rng(3).standard_normal((*a.shape[:-1], channels))
    y, saved = concat_forward(a, b)
    dy, rng = random_like(y), np.random.default_rng(2)
    da, db = concat_backward(dy, saved)
    assert np.array_equal(np.concatenate([da, db], axis=-1), dy)
    assert_gradient(lambda a: concat_forward(a, b)[0], a, da, dy, rng)
    assert_gradient(lambda b: concat_forward(a, b)[0], b, db, dy, rng)


@pytest.mark.parametrize("shape", [(1, 4, 5, 2), (2, 4, 4, 2), (1, 4, 2)])
def test_concat_errors_give_both_shapes(shape):
    with pytest.raises(ValueError, match=r"\(1, 4, 4, 2\)") as error:
        concat_forward(np.zeros((1, 4, 4, 2)), np.zeros(shape))
    assert str(shape) in str(error.value)
