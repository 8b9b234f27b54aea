"""The emulator must see what is wrong with a kernel, or the tests that use it prove nothing."""

import numpy as np
import pytest
import standin
from compare import check_pair, on_device, random
from emulator import SCHEDULES, EmulationError, Emulator, emulated

from minibrain.kernels.cuda import loader

KERNELS = """
extern "C" __global__ void reverse_in_block(const float *x, float *y) {
    float *tile = reinterpret_cast<float *>(shared_memory);
    tile[threadIdx.x] = x[global_thread()];
    __syncthreads();
    y[global_thread()] = tile[blockDim.x - 1 - threadIdx.x];
}
extern "C" __global__ void sum_of_warp(const float *x, float *y) {
    float sum = x[global_thread()];
    for (int distance = 16; distance; distance /= 2)
        sum += __shfl_down_sync(~0u, sum, distance);
    if (threadIdx.x % 32 == 0) y[global_thread() / 32] = sum;
}
extern "C" __global__ void scale(float *x, Index size, double factor) {
    Index i = global_thread();
    if (i < size) x[i] *= factor;
}
"""


@pytest.fixture
def launch(monkeypatch):
    """Launch a kernel of the source above, edited or not, in one schedule."""
    monkeypatch.setattr(loader, "source", lambda file: "using Index = long long;\n" + prelude)
    common = (loader.SOURCES / "common.cuh").read_text()
    prelude = common.replace("using Index = long long;\n", "") + KERNELS

    def run(kernel, grid, block, arguments, shared_bytes=0, schedule=0, edit=None):
        emulator = Emulator(schedule, edit)
        emulator.launch(f"test.{kernel}", grid, block, arguments, shared_bytes)

    return run


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_threads_meet_at_barriers_and_shuffles(launch, schedule):
    x = np.arange(3 * 96, dtype=np.float32)
    y, sums = standin.asarray(np.zeros(3 * 96, np.float32)), standin.asarray(np.zeros(9, "f"))
    launch("reverse_in_block", (3,), (96,), [on_device(x), y], 4 * 96, schedule)
    assert np.array_equal(y.get(), x.reshape(3, 96)[:, ::-1].ravel())
    launch("sum_of_warp", (3,), (96,), [on_device(x), sums], 0, schedule)
    assert np.array_equal(sums.get(), x.reshape(9, 32).sum(axis=1))


@pytest.mark.parametrize(
    ("kernel", "block", "shared_bytes", "edit", "complaint"),
    [
        ("reverse_in_block", 96, 4 * 95, None, "beyond the launch's shared_bytes"),
        ("reverse_in_block", 96, 250_000, None, "more shared memory"),
        ("reverse_in_block", 2048, 4 * 96, None, "a block of this size"),
        ("reverse_in_block", 96, 400, ("__sync", "if (threadIdx.x) __sync"), "never come"),
        ("reverse_in_block", 96, 400, ("y[glo", "y[1 + glo"), "wrote beside an array"),
        ("scale", 96, 0, None, "another number of arguments"),
    ],
)
def test_what_no_kernel_may_do_is_an_error(launch, kernel, block, shared_bytes, edit, complaint):
    arrays = [standin.asarray(np.zeros(96, np.float32)) for _ in range(2)]
    with pytest.raises(EmulationError, match=complaint):
        launch(kernel, (1,), (block,), arrays, shared_bytes, edit=edit)


def test_an_array_given_twice_is_one(launch):
    x = standin.asarray(np.ones(40, np.float32))
    launch("scale", (2,), (32,), [x, 40, 3.0])
    assert (x.get() == 3).all()


RNG = np.random.default_rng(0)
X, DEEP = random(RNG, (2, 5, 6, 7, 3)), random(RNG, (1, 5, 7, 37))
CONV = ("conv", (X, random(RNG, (3, 3, 3, 3, 18)), random(RNG, 18)), {"padding": 1}, 500)
CONV_DEEP = ("conv", (DEEP, random(RNG, (2, 2, 37, 5))), {}, 200)
STRIDED = ("conv", (X, random(RNG, (3, 2, 2, 3, 2))), {"stride": 2, "padding": 1}, 200)
POOL = ("max_pool", (np.round(X), 3), {"stride": 2, "padding": 1}, 9)
NORM = ("instance_norm", (random(RNG, (2, 31, 67, 3)) + 5, *random(RNG, (2, 3))), {}, 4000)
LOSS = ("cce_dice_loss", (X, RNG.integers(0, 3, X.shape[:-1])), {"per_sample": True}, 40)
DROPOUT = ("dropout", (X, 0.5, (2**40, 7, 1)), {}, 1)

FAULTS = {
    "missing barrier before the weights' tile": (
        CONV_DEEP, "__syncthreads();  // the tile before this one has been used", ""),
    "missing barrier after the weights' tile": (
        CONV_DEEP, "__syncthreads();\n            if (!here", "if (!here"),
    "missing barrier before the gradient's tiles": (
        CONV, "__syncthreads();  // the tiles before these have been used", ""),
    "missing barrier after the gradient's tiles": (
        CONV, "__syncthreads();\n        for (int v = lane", "for (int v = lane"),
    "missing barrier before the lanes' sums": (
        CONV, "__syncthreads();\n    float(*lane_sums)", "float(*lane_sums)"),
    "missing barrier after the lanes' sums": (
        CONV, "__syncthreads();\n    Index matrix", "Index matrix"),
    "missing barrier in a sum over voxels": (
        NORM, "__syncthreads();\n    if (threadIdx.y", "if (threadIdx.y"),
    "a barrier that some threads skip": (
        CONV, "for (int tap = 0; tap < g.taps()", "if (here) for (int tap = 0; tap < g.taps()"),
    "wrong tap": (CONV, "g.dilation[a] * tap.axis[a] - g", "g.dilation[a] * tap.axis[2] - g"),
    "taps not turned around": (CONV, "g.padding[a] - g.dilation[a]", "g.dilation[a]"),
    "positions between strides": (STRIDED, "|| distance % g.stride[a]", ""),
    "input bound off by one": (CONV, "p.axis[a] >= g.input[a]", "p.axis[a] > g.input[a]"),
    "output bound off by one": (CONV, "p.axis[a] >= g.output[a]", "p.axis[a] > g.output[a]"),
    "last channel left out": (CONV_DEEP, "min(CHUNK, inputs - start)", "min(CHUNK, inputs - 1)"),
    "tile not filled": (CONV, "i < CHUNK * OUTPUTS; i", "i < (CHUNK - 30) * OUTPUTS; i"),
    "tail of a tile not zeroed": (CONV, "here && o < outputs ? float(dy", "o < outputs ? float(dy"),
    "voxels beyond the last are written": (CONV, "if (!here) return;", ""),
    "a part's share too small": (NORM, "share = ceil_divide(voxels, gridDim.x)",
                                 "share = voxels / gridDim.x"),
    "a row's sum left out": (NORM, "int row = 0; row <", "int row = 1; row <"),
    "a part left out": (CONV, "part < parts; ++part", "part < parts - 1; ++part"),
    "statistics of the wrong group": (NORM, "mean += blockIdx.z * channels;", ""),
    "last of equal values wins": (POOL, "value > largest)", "value >= largest)"),
    "gradient to every window": (POOL, "&& winner[from] == tap", ""),
    "Dice of the wrong sample": (LOSS, "overlap += voxel / voxels_of_group", "overlap += 0"),
    "elements beyond the last": (DROPOUT, "if (element >= size) return;", ""),
    "nine rounds": (DROPOUT, "round < 10", "round < 9"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(name):
    call, old, new = FAULTS[name]
    assert any(old in loader.source(path.stem) for path in loader.SOURCES.glob("*.cu"))
    with emulated() as emulator:
        check_pair(emulator, *call, np.random.default_rng(1))
    with pytest.raises(AssertionError), emulated(edit=(old, new)) as emulator:
        check_pair(emulator, *call, np.random.default_rng(1))
