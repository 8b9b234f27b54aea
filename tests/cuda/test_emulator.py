"""The emulator must see what is wrong with a kernel, or the tests that use it prove nothing."""

import numpy as np
import pytest
import standin
from compare import BFLOAT16, on_device
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
extern "C" __global__ void copy_four(const float *x, float *y) {
    several<4>(y) = several<4>(x);
}
extern "C" __global__ void product(const unsigned *a, const unsigned *b, float *d) {
    int lane = threadIdx.x;
    unsigned words[4];
    float sums[4];
    for (int i = 0; i < 4; ++i) words[i] = a[4 * lane + i], sums[i] = d[4 * lane + i];
    multiply_add(sums, words, b[2 * lane], b[2 * lane + 1]);
    for (int i = 0; i < 4; ++i) d[4 * lane + i] = sums[i];
}
extern "C" __global__ void load(const unsigned *rows, unsigned *plain, unsigned *transposed) {
    int first = 4 * threadIdx.x;
    unsigned *row = reinterpret_cast<unsigned *>(shared_memory) + first, words[2][4];
    several<4>(row) = several<4>(rows + first);
    __syncthreads();
    load_matrices(words[0], row);
    load_transposed(words[1], row);
    for (int i = 0; i < 4; ++i) plain[first + i] = words[0][i], transposed[first + i] = words[1][i];
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
        ("reverse_in_block", 96, 400, ("y[glo", "y[1 + glo"), "memory of no array"),
        ("reverse_in_block", 96, 400, ("y[glo", "y[-1 + glo"), "wrote beside an array"),
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


@pytest.mark.parametrize(("x", "y"), [(1, 0), (0, 1)])
def test_what_is_read_or_written_at_once_begins_at_a_multiple_of_its_size(launch, x, y):
    arrays = [standin.asarray(np.ones(8, np.float32)) for _ in range(2)]
    launch("copy_four", (1,), (1,), [array[4:] for array in arrays])
    with pytest.raises(EmulationError, match="at an odd place"):
        launch("copy_four", (1,), (1,), [arrays[0][x : x + 4], arrays[1][y : y + 4]])


# Which element of a matrix each value of a lane is, as CUTLASS has it in mma_traits_sm80.hpp
# (SM80_16x8x16_F32BF16BF16F32_TN) and copy_traits_sm75.hpp (SM75_U32x4_LDSM_N, SM75_U16x8_LDSM_T,
# in elements of 16 bits): sizes and strides of the lanes' digits and of the values', fastest first.
# A and D are numbered column by column and B row by row; of four matrices, row after row.
LAYOUTS = {
    "A": ((4, 8), (32, 1), (2, 2, 2), (16, 8, 128)),
    "B": ((4, 8), (16, 1), (2, 2), (8, 64)),
    "D": ((4, 8), (32, 1), (2, 2), (16, 8)),
    "matrices": ((32,), (2,), (2, 4), (1, 64)),
    "transposed": ((4, 8), (16, 1), (2, 4), (8, 64)),
}


def places(name):
    """(lanes, values) numbers of elements."""

    def numbers(sizes, strides):
        total = np.zeros(1, int)
        for size, stride in zip(sizes, strides, strict=True):
            total = np.add.outer(stride * np.arange(size), total).ravel()
        return total

    sizes, strides, value_sizes, value_strides = LAYOUTS[name]
    return np.add.outer(numbers(sizes, strides), numbers(value_sizes, value_strides))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_lanes_hold_what_cutlass_says_they_hold(launch, schedule):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 9, shape).astype(BFLOAT16) for shape in ((16, 16), (16, 8)))
    d = rng.integers(-99, 100, (16, 8)).astype(np.float32)
    words = [a.ravel("F")[places("A")], b.ravel()[places("B")]]
    sums = on_device(d.ravel("F")[places("D")])
    launch("product", (1,), (32,), [*(on_device(w.view("u4")) for w in words), sums], 0, schedule)
    want = a.astype(np.float32) @ b.astype(np.float32) + d
    assert np.array_equal(sums.get(), want.ravel("F")[places("D")])

    rows = rng.integers(0, 2**16, 4 * 64).astype(np.uint16)
    loaded = [on_device(np.zeros((32, 4), np.uint32)) for _ in range(2)]
    launch("load", (1,), (32,), [on_device(rows.view("u4")), *loaded], 16 * 32, schedule)
    for name, array in zip(("matrices", "transposed"), loaded, strict=True):
        assert np.array_equal(array.get().view("u2"), rows[places(name)])
