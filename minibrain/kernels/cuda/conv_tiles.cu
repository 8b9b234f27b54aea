// Convolution in any geometry as products of matrices: bfloat16 arrays, float32 sums.
//
//   correlate         y[n,p,o] = bias[o] + sum_{k,c} w[k,c,o] x[n, s p + d k - padding, c]
//   scatter           x[n, s p + k, c] = bias[c] + sum_o w[k,c,o] y[n,p,o],  kernel = stride
//   weight_gradient   dw[k,c,o] = sum_{n,p} x[n, s p + d k - padding, c] dy[n,p,o]
//
// For many channels, where the products are the limit. Tiles of both matrices go through a ring of
// STAGES in shared memory: while one is used, those behind it are on their way. Voxels lie in
// octets of channels, as in planes.cuh. Architectures: sm_80, sm_90.
#include "rows.cuh"

constexpr int THREADS = 128, STAGES = 4, STEP = 32;

// correlate and scatter: a block computes 32 M positions x 32 N outputs, each of its 4 warps 16 M x
// 16 N, from STEP channels of one tap at a time. `scatter` has one tap, and (tap, channel) as
// outputs: each goes to a voxel of its own, so that it moves x and y once as well.
//
// Grid: (positions / 32 M, outputs / 32 N). Moves, from L2, K x for every 32 N outputs and all
// weights for every 32 M positions; writes y once, each lane four channels of a voxel. Predicted
// for an H200: 128 x 128 has 226 registers and 65 KB of shared memory, 2 blocks on a
// multiprocessor; 128 x 64 has 153, 49 KB, 3 blocks; 64 x 64 has 102, 33 KB, 4 blocks. 256 to 128
// channels at 2x20x20x16: 23 GFLOP, 0.1 ms; 32 to 16 transposed to 2x160x160x128: 0.06 ms.
template <int M, int N, bool scatter>
__device__ void multiply(const bfloat16 *x, const unsigned *weight, const float *bias, bfloat16 *y,
                         const Geometry &g, int samples, int inputs, int outputs) {
    constexpr int PITCH = 16 * 32 * M + 32, FRAGMENTS = 2 * N * STEP / 16 * 32;
    constexpr int BYTES = STEP / 8 * PITCH + 16 * FRAGMENTS;
    const uint4 *packed = reinterpret_cast<const uint4 *>(weight);
    char *stages = reinterpret_cast<char *>(shared_memory);
    int lane = threadIdx.x % 32, warp_m = threadIdx.x / 32 % 2, warp_n = threadIdx.x / 64;
    int total = samples * g.output_voxels(), first = blockIdx.x * 32 * M;
    int taps = scatter ? 1 : g.taps(), chunks = inputs / STEP, steps = taps * chunks;
    int from_voxels = scatter ? g.output_voxels() : g.input_voxels();

    Row rows[M];  // that this thread copies an octet of
    Index offsets[M] = {};  // of what they take with the tap at hand; -1 for nothing
#pragma unroll
    for (int i = 0; i < M; ++i) rows[i] = Row(first + int(threadIdx.x) / 4 + 32 * i, g);
    int tile = blockIdx.y * 2 * N + threadIdx.x / 64, tiles = ceil_divide(outputs, 16);
    Index fragments = 32 * (Index)taps * (inputs / 16);  // of all rows for 16 outputs
    packed += tile * fragments + 32 * taps * (threadIdx.x / 32 % 2) + lane;

    int tap = 0, chunk = 0;  // of the step that is copied next
    auto copy = [&](int step) {
        int octet = threadIdx.x % 4;
        char *stage = stages + step % STAGES * BYTES;
        if (chunk == 0) {
            Position k = position_of(tap, g.kernel);
#pragma unroll
            for (int i = 0; i < M; ++i) {
                const Row &row = rows[i];
                bool there = first + int(threadIdx.x) / 4 + 32 * i < total;
                int source = scatter ? number_of(row.position, g.output)
                                     : input_voxel(row.position, k, g);
                bool here = there && source >= 0;
                offsets[i] = here ? ((Index)row.sample * from_voxels + source) * inputs : -1;
            }
        }
        const bfloat16 *from = x + chunk * STEP + 8 * octet;
        char *to = stage + octet * PITCH + 16 * (threadIdx.x / 4);
#pragma unroll
        for (int i = 0; i < M; ++i)
            copy_16_bytes(to + 16 * 32 * i, from + max(offsets[i], (Index)0), offsets[i] >= 0);
        uint4 *weights = reinterpret_cast<uint4 *>(stage + STEP / 8 * PITCH) + threadIdx.x;
        const uint4 *fragment = packed + 32 * (STEP / 16 * chunk * taps + tap);
#pragma unroll
        for (int i = 0; i < N; ++i, fragment += 2 * fragments)
            copy_16_bytes(weights + i * THREADS, tile + 2 * i < tiles ? fragment : packed,
                          tile + 2 * i < tiles);
        if (++chunk == chunks) chunk = 0, ++tap;
    };

    float sums[M][N][2][4] = {};
    for (int step = 0; step < STAGES - 1; ++step) {
        if (step < steps) copy(step);
        close_group();
    }
    for (int step = 0; step < steps; ++step) {
        wait_for_groups<STAGES - 2>();
        __syncthreads();  // all copies of this stage have come, and the one before it has been used
        if (step + STAGES - 1 < steps) copy(step + STAGES - 1);
        close_group();
        const char *stage = stages + step % STAGES * BYTES;
        const uint4 *weights = reinterpret_cast<const uint4 *>(stage + STEP / 8 * PITCH);
        const char *corner = stage + 16 * (16 * M * warp_m + lane % 16) + lane / 16 * PITCH;
#pragma unroll
        for (int k = 0; k < STEP / 16; ++k) {
            uint4 w[N];
#pragma unroll
            for (int n = 0; n < N; ++n) w[n] = weights[((warp_n * N + n) * 2 + k) * 32 + lane];
#pragma unroll
            for (int m = 0; m < M; ++m) {
                unsigned a[4];
                load_matrices(a, corner + 16 * 16 * m + 2 * k * PITCH);
#pragma unroll
                for (int n = 0; n < N; ++n) {
                    multiply_add(sums[m][n][0], a, w[n].x, w[n].y);
                    multiply_add(sums[m][n][1], a, w[n].z, w[n].w);
                }
            }
        }
    }

    int channels = scatter ? outputs / g.taps() : outputs;
#pragma unroll
    for (int i = 0; i < 2 * M; ++i) {
        int number = first + 16 * (M * warp_m + i / 2) + lane / 4 + i % 2 * 8;
        Row row(number, g);
#pragma unroll
        for (int n = 0; n < N; ++n) {
            int column = 32 * N * blockIdx.y + 16 * (N * warp_n + n) + lane % 4 * 4;
            if (number >= total || column >= outputs) continue;
            int channel = column % channels;
            Index voxel = number;
            if (scatter) {
                Position tap = position_of(column / channels, g.kernel), to;
                for (int a = 0; a < 3; ++a)
                    to.axis[a] = row.position.axis[a] * g.stride[a] + tap.axis[a];
                voxel = (Index)row.sample * g.input_voxels() + number_of(to, g.input);
            }
            const float *s0 = sums[i / 2][n][0] + i % 2 * 2, *s1 = sums[i / 2][n][1] + i % 2 * 2;
            float b[4];
            for (int j = 0; j < 4; ++j) b[j] = bias ? bias[channel + j] : 0;
            *reinterpret_cast<uint2 *>(y + voxel * channels + channel) = {
                pack(s0[0] + b[0], s0[1] + b[1]), pack(s1[0] + b[2], s1[1] + b[3])};
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
correlate_128_128(const bfloat16 *x, const unsigned *weight, const float *bias, bfloat16 *y,
                  Geometry geometry, Index samples, Index inputs, Index outputs) {
    multiply<4, 4, false>(x, weight, bias, y, geometry, samples, inputs, outputs);
}

extern "C" __global__ void __launch_bounds__(THREADS, 3)
correlate_128_64(const bfloat16 *x, const unsigned *weight, const float *bias, bfloat16 *y,
                 Geometry geometry, Index samples, Index inputs, Index outputs) {
    multiply<4, 2, false>(x, weight, bias, y, geometry, samples, inputs, outputs);
}

extern "C" __global__ void __launch_bounds__(THREADS, 4)
correlate_64_64(const bfloat16 *x, const unsigned *weight, const float *bias, bfloat16 *y,
                Geometry geometry, Index samples, Index inputs, Index outputs) {
    multiply<2, 2, false>(x, weight, bias, y, geometry, samples, inputs, outputs);
}

extern "C" __global__ void __launch_bounds__(THREADS, 4)
scatter_64_64(const bfloat16 *y, const unsigned *weight, const float *bias, bfloat16 *x,
              Geometry geometry, Index samples, Index inputs, Index outputs) {
    multiply<2, 2, true>(y, weight, bias, x, geometry, samples, inputs, outputs);
}

// weight_gradient: a block sums one tap's 64 x 64 channels over its share of the positions, STEP of
// them at a time; each of its 4 warps 32 x 32. Both operands are transposed while they are loaded.
//
// Writes partial[part, tap, c, o], and sum_x[part, tap, c], the sum of the x that met this tap: the
// product of x with ones. reduce.cu adds the parts, in order. Grid: (parts, taps, tiles of c and
// o). Moves, for every tap, x for every 64 outputs and dy for every 64 inputs; the parts once.
// Predicted for an H200: 113 registers and 33 KB of shared memory, 4 blocks on a multiprocessor; 32
// to 16 channels, transposed to 2x160x160x128, 0.15 ms.
constexpr int TILE = 64, PITCH = 16 * STEP + 16, TILE_BYTES = TILE / 8 * PITCH;

extern "C" __global__ void __launch_bounds__(THREADS, 4)
weight_gradient(const bfloat16 *x, const bfloat16 *dy, float *partial, float *sum_x,
                Geometry geometry, Index samples, Index inputs, Index outputs, Index share) {
    char *stages = reinterpret_cast<char *>(shared_memory);
    int lane = threadIdx.x % 32, warp_c = threadIdx.x / 32 % 2, warp_o = threadIdx.x / 64;
    int tiles = ceil_divide(outputs, TILE), total = samples * geometry.output_voxels();
    int first_c = blockIdx.z / tiles * TILE, first_o = blockIdx.z % tiles * TILE;
    int begin = blockIdx.x * share, end = min(begin + share, (Index)total);
    int steps = end > begin ? ceil_divide(end - begin, STEP) : 0;
    Position tap = position_of(blockIdx.y, geometry.kernel);

    constexpr int ROWS = STEP * 8 / THREADS;  // that this thread copies an octet of
    int octet = threadIdx.x % 8, number = begin + threadIdx.x / 8;
    bool in_c = first_c + 8 * octet < inputs, in_o = first_o + 8 * octet < outputs;
    x += in_c ? first_c + 8 * octet : 0, dy += in_o ? first_o + 8 * octet : 0;
    Row step_row(STEP, geometry), rows[ROWS];
    for (int i = 0; i < ROWS; ++i) rows[i] = Row(number + THREADS / 8 * i, geometry);

    auto copy = [&](int step) {
        char *to = stages + step % STAGES * 2 * TILE_BYTES + octet * PITCH + 16 * (threadIdx.x / 8);
#pragma unroll
        for (int i = 0; i < ROWS; ++i, to += 16 * (THREADS / 8)) {
            Index at = number + THREADS / 8 * i;
            int source = input_voxel(rows[i].position, tap, geometry);
            bool here_x = at < end && source >= 0 && in_c, here_dy = at < end && in_o;
            Index voxel = (Index)rows[i].sample * geometry.input_voxels() + source;
            copy_16_bytes(to, x + (here_x ? voxel * inputs : 0), here_x);
            copy_16_bytes(to + TILE_BYTES, dy + (here_dy ? at * outputs : 0), here_dy);
            rows[i].advance(step_row, geometry);
        }
        number += STEP;
    };

    float sums[2][2][2][4] = {}, x_sums[2][4] = {};
    for (int step = 0; step < STAGES - 1; ++step) {
        if (step < steps) copy(step);
        close_group();
    }
    for (int step = 0; step < steps; ++step) {
        wait_for_groups<STAGES - 2>();
        __syncthreads();  // all copies of this stage have come, and the one before it has been used
        if (step + STAGES - 1 < steps) copy(step + STAGES - 1);
        close_group();
        const char *stage = stages + step % STAGES * 2 * TILE_BYTES;
        const char *rows_x = stage + 16 * (lane % 8 + lane / 16 * 8) +
                             (4 * warp_c + lane / 8 % 2) * PITCH;
        const char *rows_dy = stage + TILE_BYTES + 16 * (lane % 16) +
                              (4 * warp_o + lane / 16) * PITCH;
#pragma unroll
        for (int k = 0; k < STEP / 16; ++k) {
            unsigned a[2][4], b[2][4];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                load_transposed(a[i], rows_x + 16 * 16 * k + 2 * i * PITCH);
                load_transposed(b[i], rows_dy + 16 * 16 * k + 2 * i * PITCH);
            }
#pragma unroll
            for (int m = 0; m < 2; ++m) {
#pragma unroll
                for (int n = 0; n < 2; ++n) {
                    multiply_add(sums[m][n][0], a[m], b[n][0], b[n][1]);
                    multiply_add(sums[m][n][1], a[m], b[n][2], b[n][3]);
                }
                multiply_add(x_sums[m], a[m], 0x3f803f80, 0x3f803f80);
            }
        }
    }

    Index matrix = (Index)blockIdx.x * geometry.taps() + blockIdx.y;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        int c = first_c + 32 * warp_c + 16 * (i / 2) + lane / 4 + i % 2 * 8;
        if (c >= inputs) continue;
        if (first_o + warp_o + lane % 4 == 0) sum_x[matrix * inputs + c] = x_sums[i / 2][i % 2 * 2];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            int o = first_o + 32 * warp_o + 8 * j + lane % 4 * 2;
            if (o >= outputs) continue;
            const float *s = sums[i / 2][j / 2][j % 2] + i % 2 * 2;
            *reinterpret_cast<uint2 *>(partial + (matrix * inputs + c) * outputs + o) = {
                __float_as_uint(s[0]), __float_as_uint(s[1])};
        }
    }
}
