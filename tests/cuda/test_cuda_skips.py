"""The gradient of a skip on its way: cut off as a view, and added where a max-pool's is written."""

import numpy as np
import pytest
import standin
from compare import BFLOAT16, assert_close, host, on_device, random, wide
from emulator import SCHEDULES, emulated

import minibrain.functional as F
from minibrain.kernels import written
from minibrain.kernels.cuda import loader
from minibrain.kernels.cuda.arguments import contiguous, pitched
from minibrain.layers import MaxPool
from minibrain.models import AttentionUNet, UNet
from minibrain.selftest import TOLERANCE, skip_error

RNG = np.random.default_rng(0)
BACKWARD = "sum_gradients", "normalize_backward"
DTYPES = pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=["float32", "bfloat16"])


def part(shape, first, behind=0, dtype=np.float32):
    """Random channels of a larger array on the device, with others before and behind them."""
    *voxels, channels = shape
    whole = on_device(random(RNG, (*voxels, first + channels + behind)).astype(dtype))
    return whole[..., first : first + channels]


PARTS = [  # channels before, channels, channels behind; how many a thread takes
    (0, 8, 16, 8),
    (16, 8, 0, 8),
    (10, 8, 6, 1),  # begins between two times 16 bytes
    (8, 8, 4, 1),  # so does every second voxel
    (5, 3, 2, 1),
    (0, 16, 0, 8),
]


@DTYPES
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("before", "channels", "behind", "width"), PARTS)
def test_a_norm_reads_its_gradient_where_it_lies(before, channels, behind, width, schedule, dtype):
    check_norm((before, channels, behind), width, schedule, dtype)


def check_norm(channels, width, schedule, dtype=np.float32):
    before, channels, behind = channels
    x = on_device(random(RNG, (2, 3, 5, 7, channels)).astype(dtype))
    lines = on_device(random(RNG, (2, channels)))
    dy = part(x.shape, before, behind, dtype)
    with emulated(schedule) as emulator:
        assert pitched(dy)[0] is dy
        for name, options in (
            ("instance_norm", {}),
            ("batch_norm", {}),
            ("norm_relu", {"rate": 0.3, "key": (1, 2, 3)}),
        ):
            forward, backward = (getattr(F, f"{name}_{way}") for way in ("forward", "backward"))
            _, saved = forward(x, *lines, **options)
            emulator.launches.clear()
            got = backward(dy, saved)
            over_voxels = {f"normalization.{kernel}_{width}" for kernel in BACKWARD}
            assert {*emulator.launches} == over_voxels | {"normalization.finish_gradients"}
            assert_close(got, backward.reference(wide(dy), wide(saved)), 400)


@DTYPES
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("before", "channels", "behind", "width"), PARTS)
def test_a_pool_adds_what_comes_by_the_skip(before, channels, behind, width, schedule, dtype):
    """Also where windows overlap; in bfloat16 the sum of all is rounded once."""
    check_sum((before, channels, behind), width, schedule, dtype)


def check_sum(channels, width, schedule, dtype=np.float32):
    before, channels, behind = channels
    for size, options in (((4, 6, 2), {}), ((5, 7), {"kernel_size": 3, "stride": 2, "padding": 1})):
        x = random(RNG, (2, *size, channels)).astype(dtype)
        with emulated(schedule) as emulator:
            y, saved = F.max_pool_forward(on_device(x), **options)
            dy = on_device(random(RNG, y.shape).astype(dtype))
            dskip = part(x.shape, before, behind, dtype)
            emulator.launches.clear()
            dx = F.max_pool_backward(dy, saved)
            dx += dskip
            assert not emulator.launches
            assert (dx.shape, dx.dtype) == (x.shape, x.dtype)
            got = written(dx)
            assert emulator.launches == [f"pooling.max_pool_backward_{width}"]
        want = F.max_pool_backward.reference(wide(dy), wide(saved)) + wide(dskip)
        assert_close(got, want, 4)


@DTYPES
def test_the_self_test_sees_whether_the_sum_is_right(dtype):
    def error(*edit):
        with emulated(edit=edit or None):
            return skip_error(lambda x: on_device(x.astype(dtype)))

    assert error() < TOLERANCE[np.dtype(dtype).name]
    assert error("sums[j] += values[j]", "") > 0.1
    assert error("dskip.read<WIDTH>(voxel", "dskip.read<WIDTH>(number_of(p, g.input)") > 0.1


def test_whatever_else_is_added_is_added_to_the_array():
    x, dskip = (on_device(random(RNG, (2, 4, 6, 3))) for _ in range(2))
    with emulated():
        y, saved = F.max_pool_forward(x)
        dx = MaxPool().backward(y, saved)
        want = F.max_pool_backward.reference(host(y), saved._replace(winner=host(saved.winner)))
        for other in (1.5, dskip[:1], dx, dskip.astype(np.float64)):
            got = dx + other
            added = host(other) if hasattr(other, "shape") else other
            assert np.array_equal(host(got), want + added)
        twice = dx + dskip + dskip
        assert np.array_equal(host(twice), want + host(dskip) + host(dskip))
        assert np.array_equal(host(dx), want)


def test_what_lies_otherwise_is_copied():
    whole = on_device(random(RNG, (2, 4, 6, 8)))
    for view in (whole, whole[..., 2:5], whole[..., :3], whole[:1, ..., :1]):
        array, pitch = pitched(view)
        assert array is view
        assert pitch == 8
    with emulated():
        for view in (whole[..., ::2], whole[:, ::-1], whole[:, 1:, ..., :2], whole[:, ::2]):
            array, pitch = pitched(view)
            assert pitch == view.shape[-1]
            assert array._host.flags.c_contiguous
            assert np.array_equal(host(array), host(view))
        repeated = standin.ndarray(np.broadcast_to(random(RNG, 4), (2, 3, 4)))
        assert pitched(repeated)[1] == 4


def test_what_begins_where_no_16_bytes_can_be_read_at_once_is_copied():
    numbers = on_device(random(RNG, 2 * 3 * 8 + 4))
    for begin in range(5):
        view = numbers[begin : begin + 48].reshape(2, 3, 8)
        with emulated():
            (array,) = contiguous(view)
            assert loader.address(array) % 16 == 0
            assert (array._host is view._host) == (begin % 4 == 0)
        assert np.array_equal(host(array), host(view))


def test_more_taps_than_a_byte_numbers_are_left_to_the_reference():
    x = random(RNG, (1, 17, 16, 2))
    for kernel, dtype in (((16, 16), np.uint8), ((17, 16), np.uint16)):
        want, saved = F.max_pool_forward(x, kernel)
        assert saved.winner.dtype == dtype
        with emulated() as emulator:
            y, saved = F.max_pool_forward(on_device(x), kernel)
            dx = F.max_pool_backward(y, saved)
            assert np.array_equal(host(y), want)
            assert host(dx).sum() == want.sum()
            assert len(emulator.launches) == (2 if dtype == np.uint8 else 0)
        assert saved.winner.dtype == dtype


@pytest.mark.parametrize("up", ["transposed", "nearest"])
@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
@pytest.mark.parametrize("make", [UNet, AttentionUNet])
def test_a_networks_gradients_are_right_whoever_gets_the_two_parts(make, norm, up):
    def gradients(dtype, place):
        model = make(2, 3, 2, channels=(8, 12), norm=norm, up=up, seed=1, dtype=dtype)
        for parameter in (model.named_parameters() | model.named_buffers()).values():
            parameter.value = place(parameter.value.astype(dtype))
        _, saved = model.forward(place(images.astype(dtype)), training=True)
        dx = model.backward(place(dlogits.astype(dtype)), saved)
        return [host(dx), *(host(p.grad) for p in model.named_parameters().values())]

    images, dlogits = random(RNG, (2, 6, 8, 3)), random(RNG, (2, 6, 8, 2))
    want = gradients(np.float64, np.asarray)
    with emulated():
        got = gradients(np.float32, on_device)
    largest = max(np.abs(array).max() for array in want)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * largest)
