"""The fast twins on the CPU: the numbers of the references, whatever the number of threads."""

import os
import subprocess
import sys
import threading
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibrain import functional as F
from minibrain.errors import InputError
from minibrain.functional import conv
from minibrain.kernels.cpu import threads, tiles, winograd
from minibrain.kernels.cpu.threads import each

CHANNELS = (4, 16, 32, 64, 128, 256)
SIZES = (32, 32, 16, 8, 8, 4)  # smaller than the networks', and on both sides of what is filtered
REFERENCE_LAYERS = [  # from the level above, within a level, and after the skip connection
    *[
        ((1, *(n,) * 3, a), (3, 3, 3, a, b))
        for n, a, b in zip(SIZES[1:], CHANNELS, CHANNELS[1:], strict=False)
    ],
    *[
        ((2, *(n // 2,) * 3, c), (3, 3, 3, c, c))
        for n, c in zip(SIZES[1:], CHANNELS[1:], strict=True)
    ],
    *[
        ((1, *(n,) * 3, 2 * c), (3, 3, 3, 2 * c, c))
        for n, c in zip(SIZES[1:5], CHANNELS[1:5], strict=True)
    ],
    ((1, 16, 16, 16, 16), (1, 1, 1, 16, 4)),
    ((3, 32, 32, 2), (3, 3, 2, 16)),
    ((2, 10, 10, 384), (3, 3, 384, 128)),
]


def random(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_close(fast, exact):
    """To float32 accuracy, in units of the largest value."""
    assert fast.dtype == np.float32
    assert fast.shape == exact.shape
    assert np.abs(fast - exact).max() <= 1e-5 * np.abs(exact).max()


def doubled(arrays):
    return [array.astype(np.float64) for array in arrays]


def check_conv(x, weight, padding):
    """Forward and backward beside the reference in float64; each takes what the other saved."""
    bias = random(weight.shape[-1:], 1)
    y, saved = conv.conv_forward.fast(x, weight, bias, padding=padding)
    exact, exact_saved = conv.conv_forward.reference(*doubled((x, weight, bias)), padding=padding)
    assert_close(y, exact)
    dy = random(y.shape, 2)
    gradients = conv.conv_backward(dy, saved)
    exact_gradients = conv.conv_backward.reference(dy.astype(np.float64), exact_saved)
    crossed = conv.conv_backward.reference(dy, saved)
    for gradient, other, exact_gradient in zip(gradients, crossed, exact_gradients, strict=True):
        assert_close(gradient, exact_gradient)
        assert_close(other, exact_gradient)
    dx, dweight, dbias = conv.conv_backward(dy, saved, input_gradient=False)
    assert dx is None
    assert_close(dweight, exact_gradients[1])
    assert_close(dbias, exact_gradients[2])


@pytest.mark.parametrize(("x_shape", "weight_shape"), REFERENCE_LAYERS)
def test_convolution_of_the_reference_networks(x_shape, weight_shape):
    check_conv(random(x_shape), random(weight_shape, 3), "same")


@st.composite
def convolutions(draw):
    rank = draw(st.integers(2, 3))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    padding = tuple(tuple(draw(st.integers(0, k)) for _ in "ba") for k in kernel)
    size = [draw(st.integers(max(1, k - sum(p)), 11)) for k, p in zip(kernel, padding, strict=True)]
    channels, features = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    x = random((draw(st.integers(1, 3)), *size, channels), draw(st.integers(0, 99)))
    return x, random((*kernel, channels, features), draw(st.integers(0, 99))), padding


def test_minimal_filters_are_exact_in_exact_arithmetic():
    """Σ_j output[a, j] · kernel[j, k] · input[j, b] is 1 where b = a + k, else 0."""
    for taps, size in ((3, 64), (1, 64), (4, 5)):
        filter = winograd.make_filter(taps, size)
        meeting = np.einsum("aj,jk,jb->akb", *doubled((filter.output, filter.kernel, filter.input)))
        a, k, b = np.indices(meeting.shape)
        np.testing.assert_allclose(meeting, b == a + k, atol=2e-7)
    assert winograd.make_filter(3, 64).products == 6  # for four outputs, of 12 products


@given(convolutions())
@settings(max_examples=150)
def test_convolution_of_any_size(case):
    check_conv(*case)


@given(convolutions(), st.integers(50, 5000), st.booleans())
@settings(max_examples=80)
def test_convolution_in_blocks_of_any_size(case, block_bytes, by_product):
    """However the volume is cut, and whether blocks or products are shared, every voxel is met."""
    with (
        patch.object(tiles, "BLOCK_BYTES", block_bytes),
        patch.object(tiles.Tiles, "weights_outweigh", by_product),
    ):
        check_conv(*case)


@pytest.mark.parametrize(
    "options", [{"stride": 2}, {"dilation": 2}, {"stride": (1, 2), "padding": 1}]
)
def test_stride_and_dilation_are_left_to_the_reference(options):
    x, weight = random((1, 7, 7, 2)), random((3, 3, 2, 2))
    assert conv.conv_forward.fast(x, weight, **options) is NotImplemented
    y, saved = conv.conv_forward(x, weight, **options)
    assert conv.conv_backward.fast(y, saved) is NotImplemented


def test_float64_is_left_to_the_reference():
    x, weight = random((1, 7, 7, 2)).astype(np.float64), random((3, 3, 2, 2)).astype(np.float64)
    assert conv.conv_forward.fast(x, weight) is NotImplemented


@pytest.mark.parametrize(
    ("x_shape", "weight_shape"),
    [
        ((2, 4, 3, 5, 8), (2, 2, 2, 4, 8)),
        *[((1, 4, 4, 4, 2 * c), (2, 2, 2, c, 2 * c)) for c in CHANNELS[1:-1]],
        ((1, 5, 7, 3), (2, 2, 2, 3)),
        ((2, 2, 3, 1, 2), (1, 3, 2, 5, 2)),
    ],
)
@pytest.mark.parametrize("biased", [True, False])
def test_transposed_convolution_without_overlap(x_shape, weight_shape, biased):
    x, weight = random(x_shape), random(weight_shape, 1)
    bias = random(weight_shape[-2:-1], 2) if biased else None
    stride = weight_shape[:-2]
    y, saved = F.conv_transpose_forward.fast(x, weight, bias, stride=stride)
    exact, exact_saved = F.conv_transpose_forward.reference(
        *doubled((x, weight)), bias if bias is None else bias.astype(np.float64), stride=stride
    )
    assert_close(y, exact)
    assert saved.geometry == exact_saved.geometry
    dy = random(y.shape, 3)
    exact_gradients = F.conv_transpose_backward.reference(dy.astype(np.float64), exact_saved)
    for backward in (F.conv_transpose_backward.fast, F.conv_transpose_backward.reference):
        for gradient, exact_gradient in zip(backward(dy, saved), exact_gradients, strict=True):
            assert_close(gradient, exact_gradient)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 1},
        {"stride": 2, "output_padding": 1},
        {"stride": 2, "output_padding": 1, "padding": ((1, 0), (0, 1))},  # the size is as without
    ],
)
def test_transposed_convolution_with_overlap_or_more_is_left_to_the_reference(options):
    x, weight = random((1, 3, 3, 2)), random((2, 2, 2, 2))
    assert F.conv_transpose_forward.fast(x, weight, **options) is NotImplemented
    y, saved = F.conv_transpose_forward(x, weight, **options)
    assert F.conv_transpose_backward.fast(y, saved) is NotImplemented


@pytest.mark.parametrize("shape", [(2, 4, 6, 2, 3), (1, 8, 6, 5), (1, 2, 2, 2, 1)])
def test_max_pool(shape):
    """Few different values: of equal ones the first must win, as in the reference."""
    x = np.random.default_rng(0).integers(-2, 2, shape).astype(np.float32)
    y, saved = F.max_pool_forward.fast(x)
    exact, exact_saved = F.max_pool_forward.reference(x)
    assert np.array_equal(y, exact)
    assert np.array_equal(saved.winner, exact_saved.winner)
    assert saved.winner.dtype == exact_saved.winner.dtype == np.uint8
    dy = random(y.shape)
    dx = F.max_pool_backward.reference(dy, saved)
    assert np.array_equal(F.max_pool_backward.fast(dy, saved), dx)


@pytest.mark.parametrize("options", [{"stride": 1}, {"padding": 1}, {"kernel_size": 3}])
def test_other_pools_are_left_to_the_reference(options):
    assert F.max_pool_forward.fast(random((1, 4, 4, 2)), **options) is NotImplemented
    assert F.max_pool_forward.fast(random((1, 5, 4, 2))) is NotImplemented


@pytest.mark.parametrize("shape", [(2, 3, 5, 2, 3), (3, 4, 3, 5), (1, 1, 1, 1, 1)])
def test_upsample(shape):
    x = random(shape)
    y, saved = F.upsample_forward.fast(x)
    exact, exact_saved = F.upsample_forward.reference(x)
    assert np.array_equal(y, exact)
    assert saved == exact_saved
    dy = random(y.shape, 1)
    dx = F.upsample_backward.reference(dy.astype(np.float64), saved)
    assert_close(F.upsample_backward.fast(dy, saved), dx)


def test_other_upsamplings_are_left_to_the_reference():
    x = random((1, 2, 3, 2))
    assert F.upsample_forward.fast(x, 3) is NotImplemented
    y, saved = F.upsample_forward(x, (2, 1))
    assert F.upsample_backward.fast(y, saved) is NotImplemented


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("shape", [(3, 5), (2, 41, 40, 41, 1)])
def test_dropout_draws_the_bits_of_the_reference(rate, shape):
    x, key = random(shape), (5, 6, 7)
    y, saved = F.dropout_forward.fast(x, rate, key)
    exact, exact_saved = F.dropout_forward.reference(x, rate, key)
    assert saved == exact_saved
    np.testing.assert_allclose(y, exact, rtol=1e-6)
    assert np.array_equal(F.dropout_backward.fast(x, saved), y)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("shape", [(2, 24, 20, 19, 4), (3, 5, 7, 2), (1, 9, 3)])
@pytest.mark.parametrize("scale", [1, 1e4])
def test_cce_dice_loss(shape, per_sample, scale):
    logits = random(shape) * np.float32(scale)
    labels = np.random.default_rng(1).integers(0, shape[-1], shape[:-1])
    labels[0] = 0  # in the first sample only the background
    options = {"per_sample": per_sample, "cce_weight": 0.3, "dice_weight": 0.9, "smooth": 0.5}
    loss, saved = F.cce_dice_loss_forward.fast(logits, labels, **options)
    exact, exact_saved = F.cce_dice_loss_forward.reference(
        logits.astype(np.float64), labels, **options
    )
    assert abs(loss - exact) <= 1e-6 * exact
    exact_gradient = F.cce_dice_loss_backward.reference(0.7, exact_saved)
    for backward in (F.cce_dice_loss_backward.fast, F.cce_dice_loss_backward.reference):
        assert_close(backward(0.7, saved), exact_gradient)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("value", [-np.inf, -3e38])
def test_cce_dice_loss_of_classes_that_are_ruled_out(value):
    """log p is −∞ there, which must not meet the zeros of the one-hot labels."""
    logits = random((1, 5, 4, 3))
    labels = np.random.default_rng(1).integers(0, 2, (1, 5, 4))
    logits[..., 2] = value
    logits[0, 0, 0, :2] = 3e38, -3e38
    labels[0, 0, 0] = 0
    loss, saved = F.cce_dice_loss_forward.fast(logits, labels)
    exact, exact_saved = F.cce_dice_loss_forward.reference(logits.astype(np.float64), labels)
    assert abs(loss - exact) <= 1e-6 * exact
    exact_gradient = F.cce_dice_loss_backward.reference(1.0, exact_saved)
    assert_close(F.cce_dice_loss_backward.fast(1.0, saved), exact_gradient)


def test_wrong_labels_are_left_to_the_reference():
    logits = random((1, 3, 3, 2))
    for labels in (np.full((1, 3, 3), 2), np.zeros((1, 3, 3)), np.zeros((1, 3), int)):
        assert F.cce_dice_loss_forward.fast(logits, labels) is NotImplemented


@pytest.mark.parametrize("forward", [F.conv_forward, F.conv_transpose_forward])
def test_channels_that_do_not_fit_are_the_references_error(forward):
    x, weight = random((1, 6, 6, 3)), random((2, 2, 3, 3))
    for arguments in (
        (x[..., :2], weight),
        (x, weight, np.zeros(2, np.float32)),
        (x, weight[0]),
        (x[:0], weight),
    ):
        with pytest.raises(ValueError, match=r"x|bias"):
            forward(*arguments, stride=1 if forward is F.conv_forward else 2)


def test_a_dy_of_another_shape_is_left_to_the_reference():
    y, saved = F.conv_forward(random((1, 6, 6, 2)), random((3, 3, 2, 2)), padding="same")
    for dy in (y[:, :, :5], np.concatenate([y, y]), y[..., :1]):
        assert F.conv_backward.fast(dy, saved) is NotImplemented


@pytest.mark.parametrize("shape", [(2, 5, 4, 3), (1, 3), (3, 50, 40, 16), (2, 3, 4, 5, 1)])
def test_relu_is_the_reference_bit_for_bit(shape):
    x, dy = random(shape), random(shape)
    x.flat[:3], dy.flat[:3] = (-1, 0, 2), (np.nan, np.inf, np.nan)
    y, saved = F.relu_forward.fast(x)
    true_y, true_saved = F.relu_forward.reference(x)
    np.testing.assert_array_equal(y, true_y)
    for each_saved in (saved, true_saved):
        dx = F.relu_backward.fast(dy, each_saved)
        np.testing.assert_array_equal(dx, F.relu_backward.reference(dy, true_saved))
    assert F.relu_forward.fast(x.astype(np.float64)) is NotImplemented


def check_norm_relu(x, **dropout):
    gamma, beta = random(x.shape[-1:], 1), random(x.shape[-1:], 2)
    y, saved = F.norm_relu_forward.fast(x, gamma, beta, **dropout)
    exact, exact_saved = F.norm_relu_forward.reference(*doubled((x, gamma, beta)), **dropout)
    assert_close(y, exact)
    near_kink = (exact != 0) != (y != 0)
    dy = np.where(near_kink, 0, random(x.shape, 3)).astype(np.float32)
    exact_gradients = F.norm_relu_backward.reference(dy.astype(np.float64), exact_saved)
    for backward in (F.norm_relu_backward.fast, F.norm_relu_backward.reference):
        for gradient, exact_gradient in zip(backward(dy, saved), exact_gradients, strict=True):
            assert gradient.shape == exact_gradient.shape
            scale = max(np.abs(exact_gradient).max(), 1e-3)
            assert np.abs(gradient - exact_gradient).max() <= 2e-5 * scale


@pytest.mark.parametrize(
    "shape", [(2, 64, 48, 32, 3), (1, 32, 32, 32, 16), (3, 17, 16, 5), (2, 4, 4, 4, 64), (2, 33, 2)]
)
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_norm_relu(shape, rate):
    check_norm_relu(5 * random(shape) + 3, rate=rate, key=(1, 2, 3))


@pytest.mark.parametrize(("std", "outlier"), [(1, 0), (0.01, 1e4)])
def test_norm_relu_far_from_0_and_beside_an_outlier(std, outlier):
    """The first voxel as an outlier defeats sums about it; a mean of 1e4 defeats sums about 0, and
    beside a small deviation sums about a mean that was rounded to float32."""
    x = np.float32(std) * random((1, 48, 48, 40, 2)) + np.float32(1e4)
    x[0, 0, 0, 0] = outlier
    gamma, beta = np.ones(2, np.float32), np.zeros(2, np.float32)
    _, saved = F.norm_relu_forward.fast(x, gamma, beta)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(saved.norm.mean.ravel(), exact.mean((0, 1, 2, 3)), rtol=1e-7)
    np.testing.assert_allclose(saved.norm.variance.ravel(), exact.var((0, 1, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize("largest", [1e18, 1.7e19])
def test_norm_relu_whose_sums_of_squares_overflow_though_their_mean_does_not(largest):
    x = np.float32(largest) * np.tanh(random((1, 32, 32, 32, 2)))
    gamma, beta, dy = random((2,)), random((2,), 1), random(x.shape, 2)
    y, saved = F.norm_relu_forward(x, gamma, beta)
    exact, exact_saved = F.norm_relu_forward.reference(*doubled((x, gamma, beta)))
    assert_close(y, exact)
    found = F.norm_relu_backward.fast(dy, saved)
    wanted = F.norm_relu_backward.reference(dy.astype(np.float64), exact_saved)
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("largest", [1e30, 3e38])
def test_norm_relu_whose_variance_overflows_is_the_references(largest):
    x = np.abs(np.float32(largest) * np.tanh(random((1, 32, 32, 32, 2))))
    gamma, beta, dy = random((2,)), random((2,), 1), random(x.shape, 2)
    results = []
    for forward, backward in (
        (F.norm_relu_forward, F.norm_relu_backward),
        (F.norm_relu_forward.reference, F.norm_relu_backward.reference),
    ):
        y, saved = forward(x, gamma, beta)
        results.append([y, *backward(dy, saved)])
    assert all(map(np.array_equal, *results))
    assert not np.isnan(results[0][0]).any()


@pytest.mark.parametrize("value", [0.1, 1e4 + 0.3, -7.7])
def test_a_constant_channel_becomes_exactly_beta(value):
    x = np.full((2, 40, 40, 40, 3), value, np.float32)
    gamma, beta = random((3,)), np.abs(random((3,), 1))
    y, _ = F.norm_relu_forward.fast(x, gamma, beta)
    assert (y == beta).all()


def test_a_negative_zero_does_not_open_the_gate():
    x = np.full((1, 4, 4, 1), 2, np.float32)
    y, saved = F.norm_relu_forward.fast(x, np.ones(1, np.float32), np.full(1, -0.0, np.float32))
    dx, dgamma, dbeta = F.norm_relu_backward.fast(np.ones_like(x), saved)
    for array in (y, dx, dgamma, dbeta):
        assert not array.any()


def test_a_nan_at_a_closed_relu_stays_outside():
    x = random((2, 6, 6, 3))
    y, saved = F.norm_relu_forward(x, np.ones(3, np.float32), np.zeros(3, np.float32))
    dy = np.where(y > 0, random(x.shape, 1), np.nan).astype(np.float32)
    for backward in (F.norm_relu_backward.fast, F.norm_relu_backward.reference):
        assert all(np.isfinite(gradient).all() for gradient in backward(dy, saved))
    _, saved = F.relu_forward(x)
    assert np.isfinite(F.relu_backward(np.where(x > 0, x, np.nan), saved)).all()


SCRIPT = """
import hashlib, numpy as np
from minibrain.models import brain_3d
from minibrain.optimizers import Adam
from minibrain.training import train_step
model = brain_3d(channels=(6, 8, 12), dropout=0.2, seed=5)
optimizer = Adam(model.named_parameters(), learning_rate=1e-2)
rng = np.random.default_rng(0)
images = rng.random((2, 24, 16, 20, 4), np.float32)
labels = rng.integers(0, 4, (2, 24, 16, 20))
for step in range(2):
    train_step(model, optimizer, images, labels, step)
values = [parameter.value for parameter in model.named_parameters().values()]
print(hashlib.sha256(b"".join(value.tobytes() for value in values)).hexdigest())
"""


def test_the_number_of_threads_does_not_change_a_bit():
    def weights(threads):
        environment = os.environ | {"MINIBRAIN_THREADS": threads}
        command = [sys.executable, "-W", "error", "-c", SCRIPT]
        return subprocess.run(command, env=environment, capture_output=True, check=True).stdout

    one = weights("1")
    assert len(one) > 60
    assert weights("2") == weights("4") == one


def run(script, **environment):
    """In a fresh interpreter, which must end by itself."""
    command = [sys.executable, "-W", "error", "-c", script]
    subprocess.run(command, env=os.environ | environment, check=True, timeout=60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_threads_of_its_own():
    run(
        "import os, warnings\n"
        "from minibrain.kernels.cpu.threads import each\n"
        "assert each(abs, range(-3, 0)) == [3, 2, 1]\n"
        "warnings.simplefilter('ignore')\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(each(abs, range(-3, 0)) != [3, 2, 1])\n"
        "assert os.waitpid(child, 0)[1] == 0\n",
        MINIBRAIN_THREADS="2",
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_forked_in_the_midst_of_work_can_work():
    """The thread whose turn it was is not there to end it."""
    run(
        "import os, threading, warnings\n"
        "from minibrain.kernels.cpu.threads import each\n"
        "going, done = threading.Event(), threading.Event()\n"
        "work = lambda item: (going.set(), done.wait(50))\n"
        "other = threading.Thread(target=each, args=(work, [0]))\n"
        "other.start(); going.wait()\n"
        "warnings.simplefilter('ignore')\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(each(abs, range(-3, 0)) != [3, 2, 1])\n"
        "done.set(); other.join()\n"
        "assert os.waitpid(child, 0)[1] == 0\n",
        MINIBRAIN_THREADS="2",
    )


def test_the_threads_end_with_the_program_and_follow_the_variable():
    run(
        "import os, threading\n"
        "from minibrain.kernels.cpu.threads import each\n"
        "def names(item):\n"
        "    barrier.wait()\n"
        "    return threading.current_thread().name\n"
        "for count in (2, 3):\n"
        "    os.environ['MINIBRAIN_THREADS'] = str(count)\n"
        "    barrier = threading.Barrier(count, timeout=30)\n"
        "    assert len(set(each(names, range(count)))) == count\n"
    )


def test_two_callers_give_blas_back():
    """Its limit is the process's; were they to overlap, one would keep what the other has set."""
    run(
        "import threading\n"
        "from minibrain.kernels.cpu.threads import _blas, each\n"
        "def limits():\n"
        "    return [info['num_threads'] for info in _blas().info()]\n"
        "before, seen = limits(), []\n"
        "def call():\n"
        "    for _ in range(30):\n"
        "        each(lambda item: seen.append(limits()), range(3))\n"
        "others = [threading.Thread(target=call) for _ in range(3)]\n"
        "[other.start() for other in others]\n"
        "[other.join() for other in others]\n"
        "assert len(seen) == 270 and set(map(tuple, seen)) == {(1,) * len(before)}\n"
        "assert limits() == before\n",
        OPENBLAS_NUM_THREADS="2",
    )


@pytest.mark.parametrize("value", ["abc", "0", "-1", "1.5"])
def test_a_wrong_number_of_threads_is_one_line(value, monkeypatch):
    monkeypatch.setenv("MINIBRAIN_THREADS", value)
    with pytest.raises(InputError, match=f"^MINIBRAIN_THREADS must .*{value}") as error:
        each(abs, [1])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fails", ["the caller", "a helper"])
def test_after_an_error_nobody_begins_another_item(fails, monkeypatch):
    """Of two threads one fails; the other is in its first item until that is known to all."""
    monkeypatch.setenv("MINIBRAIN_THREADS", "2")
    caller, known, begun, joined = threading.current_thread(), threading.Event(), [], threads.wait
    monkeypatch.setattr(threads, "wait", lambda others: (known.set(), joined(others)))

    def work(item):
        begun.append(item)
        both_have_begun.wait(timeout=10)
        if (threading.current_thread() is caller) == (fails == "the caller"):
            raise ZeroDivisionError
        if fails == "the caller":
            known.wait(timeout=10)
        else:  # the only helper can do something else when it has ended its part
            threads._pool(1).submit(int).result(timeout=10)

    both_have_begun = threading.Barrier(2)
    with pytest.raises(ZeroDivisionError):
        each(work, range(9))
    assert sorted(begun) == [0, 1]
    assert each(abs, (-1, 2)) == [1, 2]


def test_an_error_in_one_block_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        each(lambda item: 1 // item, range(-2, 3))


def traced(script):
    environment = os.environ | {"MINIBRAIN_TRACE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    return result.stderr.splitlines()


def test_a_trace_says_who_computed_what_and_how_fast():
    lines = traced(
        "import numpy as np; from minibrain import functional as F\n"
        "x, w = np.ones((1, 90, 90, 8), np.float32), np.ones((3, 3, 8, 8), np.float32)\n"
        "for _ in range(2):\n"  # the first call imports the twins
        "    y, saved = F.conv_forward(x, w); F.conv_forward(x, w, stride=2)\n"
        "    F.conv_backward(y, saved); F.relu_forward(x)\n"
    )
    first, second, third, fourth = lines[4:]
    assert "conv_forward 1x90x90x8 float32 fast" in first
    assert "reference" in second
    assert "GFLOP/s" not in fourth
    flops = 2 * 88 * 88 * (3 * 3 * 8 * 8)  # two for every output voxel, tap and pair of channels
    for line, times in ((first, 1), (third, 2)):  # backward has two gradients
        milliseconds, rate = (float(line.split(unit)[0].split()[-1]) for unit in (" ms", " GFLOP"))
        assert rate == pytest.approx(times * flops / milliseconds / 1e6, rel=0.1, abs=0.06)
