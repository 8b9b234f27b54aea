// Weights as the tensor-core kernels read them.
//
// pack_weights: float32 -> bfloat16 fragments packed[column / 16][row / 16][tap][lane][8], so that
// one load of 16 bytes gives a lane its B words (see tensor_core.cuh) for two products of 8
// columns. The columns are spread over the two so that a lane's sums are those of four neighbouring
// channels: column j of product h is channel 4 (j / 2) + 2 h + j % 2. Beyond the last row or column
// are zeros.
//
// The weight of (tap, row, column) is weight[tap, row, column]; of the adjoint it is weight[tap,
// column, row], and of the mirrored kernel that of tap taps - 1 - tap. One thread writes a lane's
// 16 bytes; moves the weights once, which are few. Architectures: sm_80, sm_90.

extern "C" __global__ void pack_weights(const float *weight, unsigned *packed, Index taps,
                                        Index rows, Index columns, Index size, Index adjoint,
                                        Index mirrored) {
    Index i = global_thread();
    if (i >= size) return;
    int lane = i % 32, tap = i / 32 % taps, steps = ceil_divide(rows, 16);
    int row = i / 32 / taps % steps * 16 + lane % 4 * 2;
    int column = i / 32 / taps / steps * 16 + lane / 8 * 4 + lane / 4 % 2;
    if (mirrored) tap = taps - 1 - tap;
    auto value = [&](int r, int c) -> float {
        if (r >= rows || c >= columns) return 0;
        return weight[adjoint ? (tap * columns + c) * rows + r : (tap * rows + r) * columns + c];
    };
    for (int j = 0; j < 4; ++j) {
        int r = row + j % 2 * 8, c = column + j / 2 * 2;
        packed[4 * i + j] = pack(value(r, c), value(r + 1, c));
    }
}
