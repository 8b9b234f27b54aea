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
import standin
from compare import on_device
from emulator import LATE_COPIES, SCHEDULES, EmulationError, emulated

import minibrain.functional as F
from minibrain.geometry import conv_geometry, conv_transpose_geometry
from minibrain.kernels.cuda import conv_tensor_core as tensor_core
from minibrain.kernels.cuda import loader

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
EVERY_SCHEDULE = [*SCHEDULES, *(schedule | LATE_COPIES for schedule in SCHEDULES)]

# samples and size, input channels, output channels, blocks at the same time
PLANES = {
    "odd, 3D": ((2, 3, 17, 19), 16, 16, 4),
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
    "many outputs": ((1, 3, 4, 5), 32, 144, (128, 64)),
    "one voxel": ((1, 1, 1, 1), 96, 32, (64, 64)),
    "odd, 2D": ((3, 9, 5), 128, 32, (64, 64)),
}
TRANSPOSED = {
    "odd, 3D": ((2, 3, 5, 7), 32, 16),
    "one voxel": ((1, 1, 1, 1), 64, 32),
    "many channels": ((1, 2, 3, 5), 96, 80),
    "odd, 2D": ((3, 7, 5), 64, 32),
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


def check_planes(case, schedule, edit=None):
    shape, inputs, outputs, blocks = PLANES[case]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_core, "BLOCKS", blocks)
        patch.setattr(tensor_core, "GRADIENT_BLOCKS", blocks)
        check_conv(shape, inputs, outputs, schedule, edit, "conv_planes")


def check_tiles(case, schedule, edit=None):
    shape, inputs, outputs, tile = TILES[case]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_core, "TILES", (tile,))
        patch.setattr(tensor_core, "_streams", lambda x, outputs: False)
        check_conv(shape, inputs, outputs, schedule, edit, "conv_tiles")


def check_conv(shape, inputs, outputs, schedule, edit, file):
    rng, rank = np.random.default_rng(3), len(shape) - 1
    x, dy = random(rng, *shape, inputs), random(rng, *shape, outputs)
    weight, bias = random(rng, *(3,) * rank, inputs, outputs), random(rng, outputs)
    geometry = conv_geometry(shape[1:], (3,) * rank, padding=1)
    y_of, dx_of, dw_of = reference("conv", weight, padding=1)
    given = [on_device(array.astype(np.float32)) for array in (weight, bias)]
    with emulated(schedule, edit) as emulator:
        y = tensor_core.correlate(on_device(x), given[0], geometry, given[1])
        dx = tensor_core.spread(on_device(dy), given[0], geometry)
        gradients = tensor_core.weight_gradient(on_device(x), on_device(dy), geometry)
    taps, voxels = 3**rank, prod(shape)
    assert_right(
        y, lambda x, weight, bias: y_of(x, weight) + bias, x, weight, bias, length=taps * inputs
    )
    if inputs >= 16:
        assert_right(dx, lambda w, dy: dx_of(x, w, dy), weight, dy, length=taps * outputs)
    assert_right(gradients[0], dw_of, x, dy, length=voxels)
    assert_right(gradients[1], lambda dy: dy.sum(axis=tuple(range(rank + 1))), dy, length=voxels)
    launched = {name.partition(".")[0] for name in emulator.launches}
    assert file in launched


def check_transposed(case, schedule, edit=None):
    shape, inputs, outputs = TRANSPOSED[case]
    rng, rank = np.random.default_rng(3), len(shape) - 1
    weight, bias = random(rng, *(2,) * rank, outputs, inputs), random(rng, outputs)
    x = random(rng, *shape, inputs)
    dy = random(rng, len(x), *(2 * n for n in shape[1:]), outputs)
    geometry = conv_transpose_geometry(shape[1:], (2,) * rank, stride=2)
    y_of, dx_of, dw_of = reference("conv_transpose", weight, stride=2)
    given = [on_device(array.astype(np.float32)) for array in (weight, bias)]
    with emulated(schedule, edit):
        y = tensor_core.spread(on_device(x), given[0], geometry, given[1])
        dx = tensor_core.correlate(on_device(dy), given[0], geometry)
        dw, dbias = tensor_core.transposed_gradients(on_device(dy), on_device(x), geometry)
    assert_right(
        y, lambda x, weight, bias: y_of(x, weight) + bias, x, weight, bias, length=inputs
    )
    assert_right(dx, lambda w, dy: dx_of(x, w, dy), weight, dy, length=2**rank * outputs)
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


@pytest.mark.parametrize("schedule", EVERY_SCHEDULE)
@pytest.mark.parametrize("case", TRANSPOSED)
def test_transposed_convolution(case, schedule):
    check_transposed(case, schedule)
