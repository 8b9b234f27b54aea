"""The emulator must see what is wrong with a kernel, or the tests that use it prove nothing."""

import numpy as np
import pytest
import standin
from compare import on_device
from emulator import SCHEDULES, EmulationError, Emulator

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
    common = loader.included("common.cuh")
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


def test_a_kernel_sees_nothing_of_what_lies_between_the_voxels_it_is_given(launch):
    whole = standin.asarray(np.ones((2, 4, 5), np.float32))
    y = standin.asarray(np.zeros(36, np.float32))
    with np.errstate(invalid="ignore"):
        launch("reverse_in_block", (1,), (36,), [whole[..., 1:4], y], 4 * 36)
    assert np.array_equal(np.isnan(y.get()[::-1]), np.arange(36) % 5 > 2)
    with pytest.raises(EmulationError, match="wrote beside an array"):
        launch("scale", (1,), (32,), [whole[..., 1:4], 5, 3.0])
    for view in (whole[:, 1:, :3], whole[..., ::2], whole[0, ::-1]):
        with pytest.raises(EmulationError, match="not contiguous"):
            launch("scale", (1,), (32,), [view, 1, 3.0])


def test_an_array_given_twice_is_one(launch):
    x = standin.asarray(np.ones(40, np.float32))
    launch("scale", (2,), (32,), [x, 40, 3.0])
    assert (x.get() == 3).all()
