"""Convolutions on tensor cores, run on the CPU, against the reference in float64.

The kernels get bfloat16 arrays, and weights that are rounded to bfloat16 here as there. Products of
two bfloat16 are exact in float32, so a sum of `length` of them is wrong by no more than length
roundings of the sum of their magnitudes; a result in bfloat16 is rounded once more.
"""

import re
from math import prod

import ml_dtypes
import numpy as np
import pytest
from compare import check_pending, host, on_device, pending, rounded
from emulator import LATE_COPIES, SCHEDULES, emulated

import minibrain.functional as F
from benchmarks import predict_gpu
from minibrain.duck_arrays import Joined
from minibrain.geometry import conv_geometry, conv_transpose_geometry
from minibrain.kernels.cuda import conv_planes, conv_tiles
from minibrain.kernels.cuda import conv_tensor_core as tensor_core
from minibrain.models import UNet

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
WRITES = {"normalization.write_pending_8", "pooling.concat_forward_8"}
EVERY_SCHEDULE = [*SCHEDULES, *(schedule | LATE_COPIES for schedule in SCHEDULES)]

# samples and size, input channels, output channels, blocks at the same time
PLANES = {
    "odd, 3D": ((2, 3, 17, 19), 16, 16, 5),
    "one voxel": ((1, 1, 1, 1), 16, 32, 396),
    "one plane": ((3, 1, 5, 33), 32, 16, 2),
    "first layer": ((1, 4, 18, 15), 4, 16, 2),
    "two chunks": ((1, 4, 3, 9), 64, 16, 1),
    "odd, 2D": ((3, 17, 35), 16, 16, 2),
    "first layer, 2D": ((2, 9, 21), 4, 32, 396),
    "wide, 2D": ((2, 5, 18), 32, 48, 1),
}
TILES = {
    "odd, 3D": ((2, 3, 5, 7), 128, 32, (128, 128)),
    "many outputs": ((1, 3, 4, 5), 32, 160, (128, 64)),
    "one voxel": ((1, 1, 1, 1), 96, 32, (64, 64)),
    "odd, 2D": ((3, 9, 5), 128, 32, (64, 64)),
}
TRANSPOSED = {
    "odd, 3D": ((2, 3, 5, 7), 32, 16),
    "one voxel": ((1, 1, 1, 1), 64, 32),
    "many channels": ((1, 2, 3, 5), 96, 80),
    "odd, 2D": ((3, 7, 5), 64, 32),
}
POINTWISE = {
    "odd, 3D": ((2, 3, 5, 7), 16, 4),
    "many voxels": ((1, 30, 29), 24, 3),
    "one voxel": ((1, 1, 1, 1), 64, 1),
}


def random(rng, *shape):
    return rng.standard_normal(shape).astype(BFLOAT16)


def assert_right(got, operation, *arrays, length):
    """Compare with the operation in float64, which must be linear in each of the arrays."""
    want = operation(*(array.astype(np.float64) for array in arrays))
    magnitude = operation(*(abs(array.astype(np.float64)) for array in arrays))
    rounding = np.finfo(np.float32).eps * length * magnitude
    if got.dtype == BFLOAT16:
        rounding = rounding + 2.0**-8 * (abs(want) + rounding)
    error = abs(got.get().astype(np.float64) - want)
    assert error.shape == want.shape
    assert np.all(error <= rounding), f"{np.max(error - rounding):.2g} more than rounding"


def reference(name, weight, **options):
    """(y, dx, dw) of a convolution in float64, as functions of x, weight or dy."""
    forward, backward = (getattr(F, f"{name}_{way}").reference for way in ("forward", "backward"))

    def gradients(x, weight, dy):
        return backward(dy, forward(x, weight, **options)[1])

    return (
        lambda x, weight: forward(x, weight, **options)[0],
        lambda x, weight, dy: gradients(x, weight, dy)[0],
        lambda x, dy: gradients(x, np.ones(weight.shape), dy)[1],
    )


def assert_summed(y):
    """Of each of the up to 64 values in a part, and of their squares, the sum is right."""
    values = y.values.get().astype(np.float64)
    axes = tuple(range(1, values.ndim - 1))
    with np.errstate(invalid="ignore"):  # what a planted fault reads may be no number
        for power, sums in zip((1, 2), y.sums.get().astype(np.float64), strict=True):
            want, magnitude = (np.sum(v**power, axis=axes) for v in (values, abs(values)))
            bound = 64 * np.finfo(np.float32).eps * magnitude
            assert np.all(abs(sums.sum(axis=1) - want) <= bound)


def check_planes(case, schedule):
    shape, inputs, outputs, blocks = PLANES[case]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv_planes, "BLOCKS", {2: blocks, 3: blocks})
        patch.setattr(conv_planes, "GRADIENT_BLOCKS", {2: blocks, 3: blocks})
        check_conv("conv_planes", shape, 3, inputs, outputs, schedule)


def check_tiles(case, schedule):
    shape, inputs, outputs, tile = TILES[case]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv_tiles, "TILES", (tile,))
        patch.setattr(conv_planes, "MOST_INPUTS", 0)
        check_conv("conv_tiles", shape, 3, inputs, outputs, schedule)


def check_pointwise(case, schedule):
    shape, inputs, outputs = POINTWISE[case]
    check_conv("conv_pointwise", shape, 1, inputs, outputs, schedule)


def check_conv(file, shape, kernel, inputs, outputs, schedule):
    rng, rank = np.random.default_rng(3), len(shape) - 1
    x, dy = random(rng, *shape, inputs), random(rng, *shape, outputs)
    weight, bias = random(rng, *(kernel,) * rank, inputs, outputs), random(rng, outputs)
    geometry = conv_geometry(shape[1:], (kernel,) * rank, padding="same")
    y_of, dx_of, dw_of = reference("conv", weight, padding="same")
    given = [on_device(array.astype(np.float32)) for array in (weight, bias)]
    with emulated(schedule) as emulator:
        y = tensor_core.correlate(on_device(x), given[0], geometry, given[1])
        dx = tensor_core.spread(on_device(dy), given[0], geometry)
        gradients = tensor_core.gradients(on_device(x), on_device(dy), geometry)
    taps, voxels = kernel**rank, prod(shape)
    if file == "conv_planes":
        assert_summed(y)
        y = y.values
    assert_right(
        y, lambda x, weight, bias: y_of(x, weight) + bias, x, weight, bias, length=taps * inputs
    )
    if inputs >= 16:
        assert_right(
            dx, lambda w, dy: dx_of(x.astype(float), w, dy), weight, dy, length=taps * outputs
        )
    assert_right(gradients[0], dw_of, x, dy, length=voxels)
    assert_right(gradients[1], lambda dy: dy.sum(axis=tuple(range(rank + 1))), dy, length=voxels)
    launched = {name.partition(".")[0] for name in emulator.launches}
    assert file in launched


def check_transposed(case, schedule):
    shape, inputs, outputs = TRANSPOSED[case]
    rng, rank = np.random.default_rng(3), len(shape) - 1
    weight, bias = random(rng, *(2,) * rank, outputs, inputs), random(rng, outputs)
    x = random(rng, *shape, inputs)
    dy = random(rng, len(x), *(2 * n for n in shape[1:]), outputs)
    geometry = conv_transpose_geometry(shape[1:], (2,) * rank, stride=2)
    y_of, dx_of, dw_of = reference("conv_transpose", weight, stride=2)
    given = [on_device(array.astype(np.float32)) for array in (weight, bias)]
    with emulated(schedule):
        y = tensor_core.spread(on_device(x), given[0], geometry, given[1])
        dx = tensor_core.correlate(on_device(dy), given[0], geometry)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(conv_tiles, "GRADIENT_BLOCKS", 8)  # of several steps
            dw, dbias = tensor_core.transposed_gradients(on_device(dy), on_device(x), geometry)
    assert_right(y, lambda x, weight, bias: y_of(x, weight) + bias, x, weight, bias, length=inputs)
    assert_right(
        dx, lambda w, dy: dx_of(x.astype(float), w, dy), weight, dy, length=2**rank * outputs
    )
    assert_right(dw, dw_of, x, dy, length=prod(shape))
    axes = tuple(range(rank + 1))
    assert_right(dbias, lambda dy: dy.sum(axis=axes), dy, length=prod(dy.shape))


@pytest.mark.parametrize("schedule", EVERY_SCHEDULE)
@pytest.mark.parametrize("case", PLANES)
def test_convolution_by_planes(case, schedule):
    check_planes(case, schedule)


@pytest.mark.parametrize("schedule", EVERY_SCHEDULE)
@pytest.mark.parametrize("case", TILES)
def test_convolution_by_tiles(case, schedule):
    check_tiles(case, schedule)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case", POINTWISE)
def test_pointwise_convolution(case, schedule):
    check_pointwise(case, schedule)


@pytest.mark.parametrize("schedule", EVERY_SCHEDULE)
@pytest.mark.parametrize("case", TRANSPOSED)
def test_transposed_convolution(case, schedule):
    check_transposed(case, schedule)


def check_planes_pending(case, schedule, joined=False):
    """What is pending or joined gives the bits that it would give if it were written, which it is
    not unless many outputs read it."""
    shape, inputs, outputs, blocks = PLANES[case]
    x = pending((*shape, inputs), BFLOAT16)
    if joined:  # a part is pending, the other an array
        plain = on_device(random(np.random.default_rng(6), *shape, 16))
        x = Joined(pending((*shape, inputs), BFLOAT16, rate=0.0), plain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv_planes, "BLOCKS", {2: blocks, 3: blocks})
        patch.setattr(conv_planes, "GRADIENT_BLOCKS", {2: blocks, 3: blocks})
        check_conv_pending(x, 3, outputs, schedule)


def check_pointwise_pending(case, schedule):
    shape, inputs, outputs = POINTWISE[case]
    check_conv_pending(pending((*shape, inputs), BFLOAT16), 1, outputs, schedule)


def check_conv_pending(x, kernel, outputs, schedule):
    weight = random(np.random.default_rng(3), *(kernel,) * (x.ndim - 2), x.shape[-1], outputs)
    weight = on_device(weight.astype(np.float32))
    with emulated(schedule) as emulator:
        launches = check_pending(emulator, "conv", (x, weight), {"padding": "same"})
    wrote = WRITES.intersection(launches)
    assert bool(wrote) == (outputs > conv_planes.MOST_OUTPUTS_UNWRITTEN)


@pytest.mark.parametrize("schedule", EVERY_SCHEDULE)
@pytest.mark.parametrize("case", [case for case, (_, inputs, *_) in PLANES.items() if inputs > 4])
def test_convolution_by_planes_of_what_is_pending(case, schedule):
    check_planes_pending(case, schedule)


@pytest.mark.parametrize("schedule", EVERY_SCHEDULE)
@pytest.mark.parametrize("case", ["odd, 3D", "wide, 2D"])
def test_convolution_by_planes_of_what_is_joined(case, schedule):
    check_planes_pending(case, schedule, joined=True)


@pytest.mark.parametrize(("first", "rate"), [(8, 0.0), (16, 0.3)])
def test_what_is_not_joined_as_kernels_want_it_is_written(first, rate):
    parts = (pending((1, 3, 5, channels), BFLOAT16, rate) for channels in (first, 32 - first))
    weight = on_device(np.ones((3, 3, 32, 16), np.float32))
    with emulated() as emulator:
        F.conv_forward(Joined(*parts), weight, padding="same")
    assert WRITES.intersection(emulator.launches)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case", POINTWISE)
def test_pointwise_convolution_of_what_is_pending(case, schedule):
    check_pointwise_pending(case, schedule)


def test_transposed_pointwise_convolution_of_what_is_pending():
    weight = on_device(random(np.random.default_rng(3), 1, 1, 16, 4).astype(np.float32))
    with emulated() as emulator:
        x = pending((2, 3, 5, 4), BFLOAT16)
        launches = check_pending(emulator, "conv_transpose", (x, weight), {})
    assert "conv_pointwise.spread" in launches


PLANES_FILES = {"conv_weights", "conv_planes", "conv_planes_gradient"}

# kernel size, samples and size, input and output channels; files whose kernels are to be launched
ROUTES = [
    ("conv", 3, (1, 3, 4, 5), 4, 16, {*PLANES_FILES, "conv", "reduce"}),
    ("conv", 3, (1, 3, 4, 5), 32, 16, {*PLANES_FILES, "reduce"}),
    ("conv", 3, (1, 3, 4), 128, 64, {*PLANES_FILES, "conv_tiles", "reduce"}),
    ("conv", 1, (1, 3, 4, 5), 16, 4, {"conv_pointwise", "reduce"}),
    ("conv", 3, (1, 3, 4, 5), 3, 16, {"conv", "reduce"}),
    ("conv_transpose", 2, (1, 3, 4, 5), 32, 16, {"conv_weights", "conv_tiles", "reduce"}),
    ("conv_transpose", 3, (1, 3, 4), 32, 32, {"conv", "conv_weights", "conv_tiles", "reduce"}),
]


@pytest.mark.parametrize(("name", "kernel", "shape", "inputs", "outputs", "files"), ROUTES)
def test_operations_find_their_kernels(name, kernel, shape, inputs, outputs, files):
    """The operations of minibrain.functional, with the kernels for their shapes and without."""
    rng, rank = np.random.default_rng(0), len(shape) - 1
    channels = (inputs, outputs) if name == "conv" else (outputs, inputs)
    weight = rng.standard_normal((*(kernel,) * rank, *channels)).astype(np.float32)
    weight, bias = weight.astype(BFLOAT16).astype(np.float32), np.ones(outputs, np.float32)
    x = random(rng, *shape, inputs)
    options = {"padding": "same"} if name == "conv" else {"stride": 2}
    forward, backward = (getattr(F, f"{name}_{way}") for way in ("forward", "backward"))

    def run(dtype):
        y, saved = forward(*map(on_device, (x.astype(dtype), weight, bias)), **options)
        dy = np.cos(np.arange(y.size)).reshape(y.shape).astype(BFLOAT16).astype(dtype)
        return [host(a).astype(np.float64) for a in (y, *backward(on_device(dy), saved))]

    with emulated() as emulator:
        got = run(BFLOAT16)
    assert {launch.partition(".")[0] for launch in emulator.launches} == files
    with emulated() as emulator:
        want = run(np.float32)
    assert {launch.partition(".")[0] for launch in emulator.launches} == {"conv", "reduce"}
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=2.0**-8, atol=1e-5 * np.max(abs(other)))


@pytest.mark.parametrize("rank", [2, 3])
def test_a_network_needs_no_other_convolutions(rank, monkeypatch):
    """And its gradients are those of the kernels for all shapes, but for roundings on the way."""
    rng = np.random.default_rng(1)
    images = on_device(random(rng, 1, *(8,) * rank, 4))
    labels = on_device(rng.integers(0, 4, (1, *(8,) * rank)).astype(np.uint8))

    def run():
        model = UNet(rank, 4, 4, channels=(16, 32, 64), norm="instance", seed=3, dtype=BFLOAT16)
        for parameter in model.named_parameters().values():
            parameter.value = on_device(rounded(parameter.value))
        with emulated() as emulator:
            logits, saved = model.forward(images, training=True)
            loss, loss_saved = F.cce_dice_loss_forward(logits, labels)
            model.backward(F.cce_dice_loss_backward(1.0, loss_saved), saved, input_gradient=False)
        gradients = [p.grad.get().ravel() for p in model.named_parameters().values()]
        return float(loss), np.concatenate(gradients), set(emulator.launches)

    loss, gradients, launches = run()
    assert not any(name.startswith("conv.") for name in launches)
    monkeypatch.setattr(tensor_core, "_first", lambda kernels, *arguments: None)
    want_loss, want, launches = run()
    assert {"conv.correlate_4", "conv.spread_4", "conv.weight_gradient_4"} <= launches
    assert loss == pytest.approx(want_loss, rel=1e-2)
    assert np.linalg.norm(gradients - want) < 0.05 * np.linalg.norm(want)


def test_predicted_times_are_longer_than_the_products_alone(capsys):
    predict_gpu.main()
    table = capsys.readouterr().out
    products = 2.2e12 / predict_gpu.PRODUCTS  # of a whole training step
    assert "Predicted, not measured" in table
    assert 1e3 * products < float(re.search(r"Together (.+) ms", table)[1]) < 2e3 * products
