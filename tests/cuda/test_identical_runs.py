"""The same training again and again gives the same bits, whatever was in memory before.

On a GPU it is run as it is. On a CPU the kernels go through the emulator: blocks, warps and lanes
in another order every time, copies early or late, and other bytes in what is allocated.
"""

from functools import partial
from itertools import islice, product

import numpy as np
import pytest
from compare import BFLOAT16, on_device, random
from emulator import LATE_COPIES, SCHEDULES, emulated, poisoned

from minibrain.arrays import find_device, to_host
from minibrain.kernels.cuda import loader, reduce
from minibrain.models import UNet, brain_3d
from minibrain.optimizers import Adam
from minibrain.training import RepeatedStep

STEPS = 3  # to run, to record and to run what is recorded
RUNS = list(islice(product((0xFF, 0x00, 0x3C), range(len(SCHEDULES) + LATE_COPIES)), 20))
PRECISIONS = {"fp32": np.float32, "bf16": BFLOAT16}
NETWORKS = {
    "fp32": {"rank": 3, "channels": (4, 6), "norm": "instance"},
    "bf16": {"rank": 2, "channels": (16, 16), "norm": "batch"},
}
SIZES = {"fp32": (4, 12, 10), "bf16": (20, 20)}  # sums over the voxels are of several parts


def trained(model, size, steps=STEPS):
    """The bits of all that a training changes, gradients too, and of the losses on its way."""
    rng = np.random.default_rng(2)
    optimizer, take_step = Adam(model.named_parameters()), RepeatedStep()
    losses = []
    for step in range(steps):
        images = random(rng, (2, *size, 4))
        labels = rng.integers(0, 3, (2, *size)).astype(np.uint8)
        losses.append(take_step(model, optimizer, images, labels, step))
    assert take_step.recording.graph, take_step.recording.obstacle
    buffers = [buffer.value for buffer in model.named_buffers().values()]
    arrays = map(to_host, (*optimizer.arrays(), *buffers))
    return losses, [array.tobytes() for array in (np.array(losses), *arrays)]


def emulated_training(precision, fill, schedule, edit=None):
    dtype = PRECISIONS[precision]
    model = UNet(in_channels=4, classes=3, dropout=0.3, dtype=dtype, **NETWORKS[precision])
    for parameter in (model.named_parameters() | model.named_buffers()).values():
        parameter.value = on_device(parameter.value)
    with emulated(schedule, edit, empty=partial(poisoned, byte=fill)):
        return trained(model, SIZES[precision])


def assert_identical(runs):
    (losses, first), *others = runs
    assert all(bits == first for _, bits in others), "bits differ from run to run"
    assert np.isfinite(losses).all()


def check(precision, runs, edit=None):
    assert_identical([emulated_training(precision, *run, edit) for run in runs])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_emulated_runs_are_identical(precision):
    check(precision, RUNS[::5])


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_20_emulated_runs_are_identical(precision, record_property):
    check(precision, RUNS)
    record_property("figure", f"{precision}: {len(RUNS)} of {len(RUNS)} bit-equal, emulated")


FAULTS = {
    "partial gradients added as they arrive": (
        """\
    shared_memory[threadIdx.y * columns + threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0)
        for (int lane = 1; lane < lanes; ++lane) sum += shared_memory[lane * columns + threadIdx.x];
    return sum;
""",
        """\
    double &all = shared_memory[threadIdx.x];
    all = 0;
    __syncthreads();
    all = float(all) + float(sum);  // as atomicAdd would
    __syncthreads();
    return all;
""",
    ),
    "a sum left as memory was": ("if (here && threadIdx.y", "if (i && here && threadIdx.y"),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_changes_bits(fault, precision, monkeypatch):
    monkeypatch.setattr(reduce, "PARTS_EACH", 1)  # so that even few parts are added by many lanes
    assert FAULTS[fault][0] in loader.source("reduce")
    with pytest.raises(AssertionError, match="bits differ"):
        check(precision, RUNS[:2] + RUNS[8:9], edit=FAULTS[fault])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_20_runs_on_a_gpu_are_identical(precision, record_property):
    if find_device() == "cpu":
        pytest.skip("no GPU here")
    import cupy

    def run():
        dirt = [cupy.full(2**power, np.nan, np.float32) for power in range(6, 24)]
        del dirt  # which the next arrays will lie in
        model = brain_3d(in_channels=4, classes=3, seed=1, dtype=PRECISIONS[precision])
        return trained(model.to("cuda"), (48, 32, 32), steps=20)

    assert_identical([run() for _ in range(20)])
    record_property("figure", f"{precision}: 20 of 20 bit-equal")
