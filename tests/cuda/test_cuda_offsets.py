"""Offsets past 2^31: large arrays of zeros that are not there but at their ends.

Every kernel runs its first and last blocks on arrays of more than 2^31 elements. Nothing of them
takes memory but the pages that are written. The same values side by side give the numbers to
expect; bfloat16 needs half the address space for the same offsets.
"""

import mmap
import sys

import numpy as np
import pytest
import standin
from compare import BFLOAT16, assert_close, random, rounded, wide
from emulator import emulated

import minibrain.functional as F
from minibrain.data.augment import add_noise_inplace
from minibrain.kernels import written
from minibrain.kernels.cuda import conv_tensor_core, reduce
from minibrain.optimizers import adam_inplace
from minibrain.philox import random_uint16
from minibrain.saved import DiceSaved

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages that are not reserved")

NOT_RESERVED = 0x4000  # MAP_NORESERVE
VOXELS, CHANNELS = 68_000_000, 32  # more than 2^31 elements in each of two samples
NEAR = 12  # voxels with values at the beginning and at the end
RNG = np.random.default_rng(0)


def zeros(shape, dtype):
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NOT_RESERVED
    pages = mmap.mmap(-1, max(size, 1), flags=flags)
    return standin.ndarray(np.frombuffer(pages, np.uint8, size).view(dtype).reshape(shape))


def small(channels=CHANNELS, near=NEAR):
    """(2, voxels, channels): the first sample begins with values, and the second one ends so."""
    x = np.zeros((2, 2 * near, channels), np.float32)
    x[0, :near], x[1, near:] = random(RNG, (2, near, channels))
    return x.astype(BFLOAT16)


def stretched(x, voxels=VOXELS):
    """The same with many zeros between beginning and end."""
    large, half = zeros((2, voxels, *x.shape[2:]), x.dtype), x.shape[1] // 2
    large._host[:, :half], large._host[:, -half:] = x[:, :half], x[:, half:]
    return large


def ends(array, count=8):
    """The first voxels of the first sample, the last ones of the last sample, as far as the first
    and the last blocks of a convolution compute them: 16 channels each."""
    array = array._host if isinstance(array, standin.ndarray) else array
    last = 16 * ((array.shape[-1] - 1) // 16)
    return np.concatenate([array[0, :count, :16].ravel(), array[1, -count:, last:].ravel()])


def check(name, *activations, parameters=(), **options):
    """Forward and backward of an operation agree at both ends; returns what they gave."""
    forward, backward = getattr(F, f"{name}_forward"), getattr(F, f"{name}_backward")
    true_y, true_saved = forward.reference(*map(wide, (*activations, *parameters)), **options)
    dy = small(true_y.shape[-1], true_y.shape[1] // 2)
    arguments = [*map(stretched, activations), *map(standin.asarray, parameters)]
    with emulated(empty=zeros), pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv_tensor_core, "_first", lambda *arguments: None)
        y, saved = forward.fast(*arguments, **options)
        y = written(y)
        dx = written(backward(stretched(dy, y.shape[1]), saved))
    assert max(array.size for array in (*arguments, y)) > 2**31
    assert_close(ends(y), ends(true_y), 200)
    want = backward.reference(wide(dy), true_saved)
    copies = zip(dx, want, strict=True) if name == "concat" else [(dx, want)]
    for got, true in copies if not parameters else [(dx[0], want[0])]:
        assert_close(ends(got), ends(true), 400)
    return dx, wide(dy), true_saved


@pytest.mark.parametrize("name", ["relu", "max_pool", "upsample"])
def test_operations_of_one_array(name):
    check(name, small())


def test_concatenation():
    check("concat", small(20), small(14))


def test_a_pool_adds_channels_of_a_larger_array():
    x, both = small(), small(2 * CHANNELS)
    true_y, true_saved = F.max_pool_forward.reference(wide(x))
    dy = small(near=true_y.shape[1] // 2)
    with emulated(empty=zeros):
        y, saved = F.max_pool_forward.fast(stretched(x))
        dx = F.max_pool_backward.fast(stretched(dy, y.shape[1]), saved)
        dx = written(dx + stretched(both)[..., CHANNELS:])
    want = F.max_pool_backward.reference(wide(dy), true_saved) + wide(both)[..., CHANNELS:]
    assert_close(ends(dx), ends(want), 4)


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_operations_that_save_what_they_round(name):
    forward, backward = getattr(F, f"{name}_forward"), getattr(F, f"{name}_backward")
    x = small()
    large, (_, saved) = stretched(x), forward.reference(x)
    with emulated(empty=zeros):
        y, large_saved = forward.fast(large)
        dx = backward.fast(large, large_saved)
    assert_close(ends(y), ends(forward.reference(wide(x))[0]), 200)
    assert_close(ends(dx), ends(backward.reference(wide(x), wide(saved))), 400)


def test_dropout_draws_the_bits_that_belong_there():
    x, key = small(), (5, 6, 7)
    large = stretched(x)
    with emulated(empty=zeros):
        y, _ = F.dropout_forward.fast(large, 0.5, key)
    bits = random_uint16(large.size - NEAR * CHANNELS, large.size, key, np)
    want = np.where(bits >= 2**15, 2 * wide(x[1, NEAR:]).ravel(), 0)
    assert np.array_equal(wide(y._host[1, -NEAR:]).ravel(), want)


def test_norm_and_relu():
    """The statistics are those of nearly all zeros; x0, which is taken off the others, is
    one of them."""
    x, gamma, beta = small(), *random(RNG, (2, CHANNELS))
    x[:, 0] = 0
    large = stretched(x)
    with emulated(empty=zeros):
        pending, saved = F.norm_relu_forward.fast(large, *map(standin.asarray, (gamma, beta)))
        y = written(pending)
        dx, _, _ = F.norm_relu_backward.fast(large, saved)
        among_others = stretched(np.concatenate([x, x], axis=-1))[..., CHANNELS:]
        same, _, _ = F.norm_relu_backward.fast(among_others, saved)
        plain, _ = F.instance_norm_forward.fast(large, *map(standin.asarray, (gamma, beta)))
    values, inv_std = wide(x), wide(saved.norm.inv_std)
    sums = values.sum(axis=1, keepdims=True), (values**2).sum(axis=1, keepdims=True)
    # of the first sample the last blocks are of other channels, of the last sample the first
    met = np.array([[0], [1]]), 0, np.arange(CHANNELS).reshape(2, 16)
    assert_close(saved.norm.mean.get()[met], sums[0][met] / VOXELS, 40)
    assert_close(saved.norm.variance.get()[met], sums[1][met] / VOXELS, 40)
    true_y = (values - saved.norm.mean.get()) * inv_std * gamma + beta
    assert_close(ends(plain), ends(true_y), 40)
    assert_close(ends(y), ends(np.maximum(true_y, 0)), 40)
    gradient, xhat = np.where(true_y > 0, values, 0), (values - saved.norm.mean.get()) * inv_std
    means = [s.sum(axis=1, keepdims=True) / VOXELS for s in (gradient, gradient * xhat)]
    true_dx = (gradient - means[0] - xhat * means[1]) * gamma * inv_std
    assert_close(ends(dx), ends(true_dx), 400)
    assert np.array_equal(ends(same), ends(dx))


@pytest.mark.parametrize(
    ("name", "weight", "options"),
    [
        ("conv", random(RNG, (3, CHANNELS, CHANNELS)), {"padding": 1}),
        ("conv_transpose", random(RNG, (2, 17, CHANNELS)), {"stride": 2}),
    ],
)
@pytest.mark.parametrize("fast", [True, False], ids=["tensor cores", "all shapes"])
def test_convolution(name, weight, options, fast):
    with pytest.MonkeyPatch.context() as patch:
        if not fast:
            patch.setattr(conv_tensor_core, "_first", lambda kernels, *arguments: None)
        check_convolution(name, weight, options)


def check_convolution(name, weight, options):
    """Of dweight the first blocks sum the first tap and channels, the last blocks the last ones."""
    (_, dweight, _), dy, saved = check(name, small(), parameters=(rounded(weight),), **options)
    backward = getattr(F, f"{name}_backward")
    for part, corner in ((0, np.s_[0, :16, :16]), (1, np.s_[-1, 16:, 16:])):
        x, dpart = np.zeros_like(saved.x), np.zeros_like(dy)
        x[part], dpart[part] = saved.x[part], dy[part]
        _, want, _ = backward.reference(dpart, saved._replace(x=x))
        assert_close(dweight.get()[corner], want[corner], 400)


def test_losses():
    logits, labels = small(), RNG.integers(0, CHANNELS, (2, 2 * NEAR)).astype(np.uint8)
    large, large_labels = stretched(logits), stretched(labels)
    statistics = np.abs(random(RNG, (2, 2, 1, CHANNELS))).astype(np.float64) + 1
    with emulated(empty=zeros), pytest.MonkeyPatch.context() as patch:
        patch.setattr(reduce, "BLOCKS", 64_000)  # of 2125 voxels each
        _, saved = F.cross_entropy_forward.fast(large, large_labels)
        dz = F.cross_entropy_backward.fast(2.0 * VOXELS, saved)
        dice = DiceSaved(saved.p, large_labels, *map(standin.asarray, statistics))
        ddice = F.dice_loss_backward.fast(1.0, dice)
        sizes, arguments = (2, VOXELS, CHANNELS), [large, large_labels, saved.p]
        sums = reduce.sums_over_voxels("loss.softmax_sums_1", large, 4, *sizes, arguments).get()
    true_p, _ = F.softmax_forward.reference(wide(logits))
    t = np.eye(CHANNELS)[labels]
    assert_close(ends(saved.p), ends(true_p), 20)
    assert_close(ends(dz), ends(true_p - t), 20)
    want = F.dice_loss_backward.reference(1.0, DiceSaved(true_p, labels, *statistics))
    assert_close(ends(ddice), ends(want), 40)
    # p was computed for the voxels of the first and last blocks, and is 0 in between
    last = saved.p._host[1, -5000:].astype(np.float64)
    assert_close(sums[2, 1], last.sum(axis=0), 200)
    assert_close(sums[1, 1, 1:], (last[-NEAR:] * t[1, -NEAR:]).sum(axis=0)[1:], 200)


def test_sums_over_voxels():
    """The first block meets the first of many channels, the last block the last."""
    x = small(64)
    with emulated(empty=zeros):
        arguments = ["reduce.sum_channels", stretched(x), 1, 1, 2 * VOXELS, 64, [stretched(x)]]
        sums = reduce.sums_over_voxels(*arguments).get()[0, 0]
    assert_close(sums[:32], wide(x)[0, :, :32].sum(axis=0), 40)
    assert_close(sums[32:], wide(x)[1, :, 32:].sum(axis=0), 40)


def test_adam():
    sizes = (2**31 + 5, 3000)
    values, gradients = ([zeros((size,), np.float32) for size in sizes] for _ in range(2))
    moments = [zeros((sum(sizes),), np.float32) for _ in range(2)]
    for gradient in gradients:
        gradient._host[-20:] = random(RNG, 20)
    constants = {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
    with emulated():
        adam_inplace(*moments, values, gradients, 1, **constants)
    gradient = gradients[1]._host[-20:]
    assert_close(values[1]._host[-20:], -0.1 * np.sign(gradient), 40)
    assert_close(moments[0]._host[-20:], 0.1 * gradient, 4)


def test_noise():
    image, blocks = zeros((2**31 + 12, 1), np.float32), 2**31 // 8  # of eight numbers each
    with emulated():
        add_noise_inplace(image, 1.0, seed=1, epoch=2, index=3)
    random = np.random.Generator(np.random.Philox(key=[1, 3], counter=[blocks, 0, 0, 2]))
    u, v = random.random((6, 2), np.float32).astype(float).T
    pairs = np.sqrt(-2 * np.log(1 - u)) * np.exp(2j * np.pi * v)
    assert_close(image._host[-12:, 0], pairs.view(float), 40)
