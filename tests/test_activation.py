"""ReLU, sigmoid, softmax and dropout with its random numbers: by hand, by loops, by law."""

from math import exp

import numpy as np
import pytest
from gradcheck import assert_gradient
from hypothesis import given
from hypothesis import strategies as st

from minibrain.functional import (
    dropout_backward,
    dropout_forward,
    relu_backward,
    relu_forward,
    sigmoid_backward,
    sigmoid_forward,
    softmax_backward,
    softmax_forward,
)
from minibrain.philox import philox, random_uint16

KEY = (42, 3, 5)  # seed, step, layer
DTYPES = [np.float32, np.float64]
WORD = st.integers(0, 2**32 - 1)


@st.composite
def arrays(draw):
    """(N, *S, C) of rank 1 to 3, moderate values."""
    size = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    shape = (draw(st.integers(1, 2)), *size, draw(st.integers(1, 5)))
    return draw(st.sampled_from([1, 5])) * rng.standard_normal(shape)


def random_like(x, seed=1):
    return np.random.default_rng(seed).standard_normal(x.shape)


# ReLU and sigmoid


def test_relu_worked_by_hand():
    x = np.array([-2.0, -0.0, 0.0, 3.0])
    y, saved = relu_forward(x)
    assert y.tolist() == [0, 0, 0, 3]
    assert relu_backward(np.array([1.0, 10, 100, 1000]), saved).tolist() == [0, 0, 0, 1000]


def test_sigmoid_worked_by_hand():
    x = np.log(np.array([1 / 3, 1, 3, 9]))
    y, saved = sigmoid_forward(x)
    np.testing.assert_allclose(y, [0.25, 0.5, 0.75, 0.9], rtol=1e-14)
    dx = sigmoid_backward(np.array([1.0, 10, 100, 1000]), saved)
    np.testing.assert_allclose(dx, [0.1875, 2.5, 18.75, 90], rtol=1e-14)


@given(arrays())
def test_relu_is_the_naive_loop(x):
    y, _ = relu_forward(x)
    assert y.ravel().tolist() == [v if v > 0 else 0 for v in x.ravel().tolist()]


@given(arrays())
def test_sigmoid_is_the_naive_loop(x):
    y, _ = sigmoid_forward(x)
    assert y.shape == x.shape
    np.testing.assert_allclose(y.ravel(), [1 / (1 + exp(-v)) for v in x.ravel()], rtol=1e-13)


@given(arrays())
def test_sigmoid_of_minus_x_is_the_rest(x):
    np.testing.assert_allclose(sigmoid_forward(-x)[0], 1 - sigmoid_forward(x)[0], atol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoid_of_huge_values(dtype):
    x = np.array([-1e4, -200, 0, 200, 1e4], dtype)
    y, saved = sigmoid_forward(x)
    assert y.dtype == dtype
    np.testing.assert_allclose(y, [0, 0, 0.5, 1, 1], atol=1e-30)
    assert np.isfinite(sigmoid_backward(np.ones_like(x), saved)).all()


# Softmax


def test_softmax_worked_by_hand():
    x = np.log(np.array([[1.0, 2, 5]]))
    y, saved = softmax_forward(x)
    np.testing.assert_allclose(y, [[1 / 8, 2 / 8, 5 / 8]], rtol=1e-14)
    # dy = 8, 0, 0 has the mean 1 under y
    dx = softmax_backward(np.array([[8.0, 0, 0]]), saved)
    np.testing.assert_allclose(dx, [[7 / 8, -2 / 8, -5 / 8]], rtol=1e-14)


@given(arrays())
def test_softmax_is_the_naive_loop(x):
    y, _ = softmax_forward(x)
    for voxel in np.ndindex(x.shape[:-1]):
        exponentials = [exp(v) for v in x[voxel]]
        expected = [e / sum(exponentials) for e in exponentials]
        np.testing.assert_allclose(y[voxel], expected, rtol=1e-12)


@given(arrays(), st.floats(-1e3, 1e3))
def test_softmax_sums_to_1_and_a_shift_changes_nothing(x, shift):
    y, _ = softmax_forward(x)
    np.testing.assert_allclose(y.sum(axis=-1), 1, rtol=1e-14)
    np.testing.assert_allclose(softmax_forward(x + shift)[0], y, rtol=1e-11)


@given(arrays())
def test_dx_of_softmax_sums_to_0(x):
    _, saved = softmax_forward(x)
    dx = softmax_backward(random_like(x), saved)
    np.testing.assert_allclose(dx.sum(axis=-1), 0, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ([1e4, 0, -1e4], [1, 0, 0]),
        ([1e4, 1e4], [0.5, 0.5]),
        ([-1e4, -1e4, -1e4, -1e4], [0.25] * 4),
        ([-1e4, 1e4, 1e4], [0, 0.5, 0.5]),
    ],
)
def test_softmax_of_huge_values(dtype, x, expected):
    """Warnings are errors here, so nothing overflows on the way."""
    y, saved = softmax_forward(np.array([x], dtype))
    assert y.dtype == dtype
    assert y.tolist() == [expected]
    dx = softmax_backward(random_like(y).astype(dtype), saved)
    assert np.isfinite(dx).all()


# All of them

PAIRS = {
    "relu": (relu_forward, relu_backward),
    "sigmoid": (sigmoid_forward, sigmoid_backward),
    "softmax": (softmax_forward, softmax_backward),
    "dropout": (lambda x: dropout_forward(x, 0.3, KEY), dropout_backward),
}
every = pytest.mark.parametrize("name", PAIRS)


@every
@given(x=arrays())
def test_gradient(name, x):
    forward, backward = PAIRS[name]
    _, saved = forward(x)
    dy = random_like(x)
    assert_gradient(lambda x: forward(x)[0], x, backward(dy, saved), dy, np.random.default_rng(2))


@every
@given(x=arrays(), dtype=st.sampled_from(DTYPES))
def test_shapes_and_dtypes_stay_and_arguments_are_left_alone(name, x, dtype):
    forward, backward = PAIRS[name]
    x, dy = x.astype(dtype), random_like(x).astype(dtype)
    before = x.copy(), dy.copy()
    y, saved = forward(x)
    dx = backward(dy, saved)
    assert y.shape == dx.shape == x.shape
    assert y.dtype == dx.dtype == dtype
    assert np.array_equal(x, before[0])
    assert np.array_equal(dy, before[1])


# Philox


def philox_oracle(counter, key):
    """The definition with Python's integers: one block, ten rounds."""
    a, b, c, d = counter
    k0, k1 = key
    for round_number in range(10):
        if round_number:
            k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
        high_a, low_a = divmod(a * 0xD2511F53, 2**32)
        high_c, low_c = divmod(c * 0xCD9E8D57, 2**32)
        a, b, c, d = high_c ^ b ^ k0, low_c, high_a ^ d ^ k1, low_a
    return a, b, c, d


def uint16_oracle(i, seed, step, layer):
    """Element i of the stream: half-word i % 8, low half first, of block i // 8."""
    block, half = divmod(i, 8)
    counter = (block % 2**32, block // 2**32, layer, step)
    word = philox_oracle(counter, (seed % 2**32, seed // 2**32))[half // 2]
    return word // 2 ** (16 * (half % 2)) % 2**16


KNOWN_ANSWERS = [  # published with Random123, the authors' own library
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter, key, expected):
    counter, key, expected = (
        [int(w, 16) for w in words.split()] for words in (counter, key, expected)
    )
    words = philox([np.array([w], np.uint64) for w in counter], key)
    assert [int(w[0]) for w in words] == expected
    assert list(philox_oracle(counter, key)) == expected  # so that the oracle may judge below


@given(st.lists(st.tuples(WORD, WORD, WORD, WORD), min_size=1, max_size=4), st.tuples(WORD, WORD))
def test_philox_is_the_oracle(counters, key):
    words = philox(np.array(counters, np.uint64).T, key)
    assert np.array(words).T.tolist() == [list(philox_oracle(c, key)) for c in counters]


@given(st.integers(0, 2**64 - 1), WORD, WORD, st.integers(1, 40))
def test_random_uint16_is_the_oracle(seed, step, layer, size):
    values = random_uint16(0, size, (seed, step, layer), np)
    assert values.dtype == np.uint16
    assert values.tolist() == [uint16_oracle(i, seed, step, layer) for i in range(size)]


@pytest.mark.parametrize("integer", [np.int64, np.uint64, np.int32, np.uint8])
def test_a_key_of_numpy_integers_is_as_good(integer):
    key = tuple(map(integer, KEY))
    assert np.array_equal(random_uint16(0, 20, key, np), random_uint16(0, 20, KEY, np))


@given(arrays(), st.integers(0, 100))
def test_an_element_does_not_depend_on_the_size_of_the_array(x, more):
    long = random_uint16(0, x.size + more, KEY, np)
    assert np.array_equal(random_uint16(0, x.size, KEY, np), long[: x.size])
    start = x.size // 2
    assert np.array_equal(random_uint16(start, x.size, KEY, np), long[start : x.size])


def test_the_words_are_uniform():
    """Mean and variance of 2^20 draws within five standard errors; every 4-bit bin likewise."""
    draws = random_uint16(0, 2**20, KEY, np) / 65536
    assert abs(draws.mean() - 0.5) < 5 * np.sqrt(1 / 12 / draws.size)
    assert abs(draws.var() - 1 / 12) < 5 * np.sqrt(1 / 180 / draws.size)
    counts, _ = np.histogram(draws, bins=16, range=(0, 1))
    assert np.abs(counts - 2**16).max() < 5 * np.sqrt(2**16)


# Dropout


def kept(rate, key=KEY, size=1000):
    y, _ = dropout_forward(np.ones(size), rate, key)
    return y != 0


def test_dropout_elements_by_the_oracle():
    """The first element, the ends of a block, and some later ones: kept at or above rate · 2^16."""
    x = 1 + np.arange(200.0).reshape(2, 5, 5, 4)
    y, _ = dropout_forward(x, 0.25, KEY)
    for i in (0, 1, 7, 8, 9, 63, 64, 101, 198, 199):
        keep = uint16_oracle(i, *KEY) >= 0.25 * 65536
        np.testing.assert_allclose(y.ravel()[i], x.ravel()[i] / 0.75 if keep else 0, rtol=1e-15)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_the_share_that_is_kept_and_the_mean(rate):
    """Within five standard deviations of a million draws."""
    x = np.ones((1, 100, 100, 100), np.float32)
    y, _ = dropout_forward(x, rate, KEY)
    deviation = np.sqrt(rate * (1 - rate) / x.size)
    assert abs((y != 0).mean() - (1 - rate)) < 5 * deviation + 2**-16
    assert abs(y.mean(dtype=np.float64) - 1) < 5 * deviation / (1 - rate) + 1e-6


@pytest.mark.parametrize("rate", [0.1, 0.3, 1e-6, 0.999, 1 - 1e-12])
def test_the_scale_belongs_to_the_rounded_rate(rate):
    """Draws are 16 bits wide; of their 2^16 values, the share that is kept times the scale is 1."""
    y, _ = dropout_forward(np.ones(200_000), rate, KEY)
    dropped_values = 65536 - 65536 / y.max()
    assert abs(dropped_values - rate * 65536) <= 1
    draws = random_uint16(0, y.size, KEY, np).reshape(y.shape)
    np.testing.assert_array_equal(y != 0, draws > dropped_values - 0.5)


@given(arrays(), st.floats(0, 0.99))
def test_forward_and_backward_use_the_same_mask_and_scale(x, rate):
    y, saved = dropout_forward(x, rate, KEY)
    dy = random_like(x)
    np.testing.assert_allclose(dropout_backward(dy, saved) * x, y * dy, rtol=1e-14)
    assert np.array_equal(dropout_backward(x, saved), y)


@pytest.mark.parametrize(
    "key", [(43, 3, 5), (42, 4, 5), (42, 3, 6), (42 + 2**32, 3, 5), (42, 5, 3)]
)
def test_every_part_of_the_key_matters(key):
    """Two independent masks at one half agree in half of the places."""
    agreement = (kept(0.5, KEY) == kept(0.5, key)).mean()
    assert abs(agreement - 0.5) < 5 * np.sqrt(0.25 / 1000)


def test_the_same_key_gives_the_same_mask():
    assert np.array_equal(kept(0.5), kept(0.5))
    assert not kept(0.5).all()


def test_a_higher_rate_drops_more_of_the_same():
    assert not (kept(0.6) & ~kept(0.2)).any()
    assert kept(0.6).sum() < kept(0.2).sum()


@given(arrays(), st.sampled_from(DTYPES))
def test_rate_0_is_exactly_the_identity(x, dtype):
    x = x.astype(dtype)
    y, saved = dropout_forward(x, 0.0, KEY)
    assert y.tobytes() == x.tobytes()
    assert dropout_backward(x, saved).tobytes() == x.tobytes()


def test_at_rate_0_no_numbers_are_drawn(monkeypatch):
    monkeypatch.setattr("minibrain.saved.random_uint16", None)
    x = np.ones((2, 3, 4))
    y, _ = dropout_forward(x, 0.0, KEY)
    assert y is not x
    assert np.array_equal(y, x)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1, 2.5, float("nan"), float("inf")])
def test_a_rate_outside_0_to_1_is_an_error(rate):
    with pytest.raises(ValueError, match="rate") as error:
        dropout_forward(np.ones(3), rate, KEY)
    assert str(rate) in str(error.value)
