"""Shared memory in the tensor-core kernels: lanes that load or copy at once do so from and to
different banks. No device shows here what it would cost if they waited for each other."""

import numpy as np
import pytest
import test_tensor_core as tensor_core
from compare import host, on_device
from emulator import COUNT_BANKS, emulated

import minibrain.functional as F


def conflicts(name, kernel, inputs, outputs, edit=None):
    """Of every kernel that a convolution of so many channels launches, forward and backward."""
    x = on_device(tensor_core.random(np.random.default_rng(0), 1, 2, 5, 19, inputs))
    channels = (inputs, outputs) if name == "conv" else (outputs, inputs)
    weight = on_device(np.ones((*(kernel,) * 3, *channels), np.float32))
    options = {"padding": "same"} if name == "conv" else {"stride": 2}
    with emulated(COUNT_BANKS, edit) as emulator:
        y, saved = getattr(F, f"{name}_forward")(x, weight, **options)
        y = host(y)
        getattr(F, f"{name}_backward")(on_device(y), saved)
    return {kernel: n for kernel, n in emulator.conflicts.items() if kernel.startswith("conv_")}


CONVOLUTIONS = [
    ("conv", 3, 4, 16),
    ("conv", 3, 16, 16),
    ("conv", 3, 64, 16),
    ("conv", 3, 96, 16),
    ("conv_transpose", 2, 32, 16),
    ("conv_transpose", 2, 64, 32),
]


@pytest.mark.parametrize(("name", "kernel", "inputs", "outputs"), CONVOLUTIONS)
def test_no_lane_waits_for_another(name, kernel, inputs, outputs):
    counted = conflicts(name, kernel, inputs, outputs)
    assert len(counted) > 2
    assert not any(counted.values()), counted


PITCHES = {
    "planes": ("/ 128 * 128 + 128 / OCTETS;", "/ 128 * 128;", ("conv", 3, 16, 16)),
    "tiles": ("PITCH = 16 * 32 * M + 32", "PITCH = 16 * 32 * M", ("conv", 3, 96, 16)),
    "gradient's tiles": (
        "PITCH = 16 * STEP + 16",
        "PITCH = 16 * STEP",
        ("conv_transpose", 2, 32, 16),
    ),
}


@pytest.mark.parametrize("pitch", PITCHES)
def test_without_its_padding_a_pitch_makes_lanes_wait(pitch):
    padded, plain, convolution = PITCHES[pitch]
    assert any(conflicts(*convolution, edit=(padded, plain)).values())
