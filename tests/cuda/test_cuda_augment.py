"""Noise by its kernel against NumPy's."""

import numpy as np
import pytest
from compare import on_device
from emulator import SCHEDULES, emulated

from minibrain.data.augment import add_noise_inplace

LARGEST = {"seed": 2**64 - 1, "epoch": 2**63 + 1, "index": 2**64 - 3}
SMALL = {"seed": 0, "epoch": 1, "index": 2}


def image(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("key", [SMALL, LARGEST], ids=["small", "largest"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 3, 7), (8, 2), (9, 10, 11, 4), (5, 67, 13)])
def test_the_same_numbers_are_added(shape, key, schedule):
    x = image(*shape)
    with emulated(schedule) as emulator:
        y = on_device(x)
        add_noise_inplace(y, 0.5, **key)
        assert emulator.launches == ["augment.add_noise"]
    add_noise_inplace(x, 0.5, **key)
    np.testing.assert_allclose(y.get(), x, rtol=0, atol=2e-6)


def test_what_lies_apart_gets_the_same_numbers_from_the_host():
    """Of a sample that is smaller than the batch, the kernel would hit what is beside it."""
    x, inside = image(6, 7, 5), np.index_exp[1:, :4, 2:]
    with emulated() as emulator:
        y = on_device(x)
        add_noise_inplace(y[inside], 0.5, **SMALL)
        assert not emulator.launches
    add_noise_inplace(x[inside], 0.5, **SMALL)
    np.testing.assert_array_equal(y.get(), x)
