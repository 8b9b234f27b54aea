// Convolution with 3x3x3 or 3x3 taps, stride 1 and "same" padding: bfloat16 arrays, float32 sums.
//
//   correlate         y[n,p,o] = bias[o] + sum_{k,c} w[k,c,o] x[n, p + k - 1, c]
//
// A block of 4 warps computes 16 of the output channels for tiles of 16 x 16 voxels; a warp has 4
// rows of them. Each plane of x, CHANNELS at a time, is copied while the one before it is used. It
// adds to DEPTH planes of y (3; 1 in two dimensions), whose sums wait in registers. The weights
// stay in shared memory, packed as conv_weights.cu does. Where x is pending, each thread makes an
// activation of what it has copied before others use it.
//
// Grid: (parts of all planes of all tiles, outputs / 16). Moves x once for every 16 outputs (1.27
// times with the halo, mostly from L2) and y once: each lane writes four channels of a voxel.
// Architectures: sm_80, sm_90. Predicted for an H200: up to 168 registers and 33 to 96 KB of shared
// memory in three dimensions, so 3 blocks on a multiprocessor, 2 with 64 channels; 90 and 5 in two.
// 16 to 16 channels at 2x160x160x128: 0.42 GB, 91 GFLOP, 0.25 ms at an assumed 370 TFLOP/s.
//
// partial[quantity, sample, part, o], if it is asked for, gets the sum of y and of y^2 over each
// warp's part of each tile of a plane: what a norm would read y for.
#include "planes.cuh"

constexpr int WARPS = 4, THREADS = 32 * WARPS, ROWS = 4, HEIGHT = WARPS * ROWS, STAGES = 2;

using PlaneSums = float[ROWS][2][4];
template <int DEPTH> using Sums = PlaneSums[DEPTH];

template <class Plane, int DEPTH>
__device__ void add_plane(Sums<DEPTH> &sums, const char *tile, const uint4 *weights) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const char *corner = tile + 16 * (warp * ROWS * (WIDTH + 2) + lane % 16) +
                         lane / 16 * Plane::PITCH;
#pragma unroll
    for (int step = 0; step < Plane::STEPS; ++step)
#pragma unroll 1
        for (int kx = 0; kx < Plane::TAPS_X; ++kx) {
            uint4 w[DEPTH * 3];
#pragma unroll
            for (int k = 0; k < DEPTH * 3; ++k)
                w[k] = weights[((step * DEPTH * 3 + k) * Plane::TAPS_X + kx) * 32 + lane];
#pragma unroll
            for (int row = 0; row < ROWS + 2; ++row) {
                unsigned a[4];
                load_matrices(a, corner + 16 * (row * (WIDTH + 2) + kx) + 2 * step * Plane::PITCH);
#pragma unroll
                for (int k = 0; k < DEPTH * 3; ++k) {
                    int kz = k / 3, y = row - k % 3;
                    if (y < 0 || y >= ROWS) continue;
                    float(&sum)[2][4] = sums[DEPTH - 1 - kz][y];
                    multiply_add(sum[0], a, w[k].x, w[k].y);
                    multiply_add(sum[1], a, w[k].z, w[k].w);
                }
            }
        }
}

// Each lane brings eight sums. They are added over the eight lanes that have the same lane % 4, and
// of the results each of these gets that of its own number, lane / 4.
__device__ inline float add_lanes(float (&sums)[8]) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 4; half > 0; half /= 2) {
        bool upper = lane & 4 * half;
#pragma unroll
        for (int i = 0; i < half; ++i) {
            float mine = upper ? sums[i + half] : sums[i];
            float others = upper ? sums[i] : sums[i + half];
            sums[i] = mine + __shfl_xor_sync(0xffffffff, others, 4 * half);
        }
    }
    return sums[0];
}

// What a lane stores of a row: four channels of a voxel, and of that eight further.
__device__ inline uint2 packed(const PlaneSums &sums, int row, int half) {
    const float(&s)[2][4] = sums[row];
    return {pack(s[0][2 * half], s[0][2 * half + 1]), pack(s[1][2 * half], s[1][2 * half + 1])};
}

// A plane is finished: a warp's rows of it leave, and their sums.
__device__ inline void store_plane(const PlaneSums &sums, bfloat16 *y, float *partial,
                                   const Segment &segment, int z, const Problem &p) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, channel = 16 * blockIdx.y + lane % 4 * 4;
    int rows = p.height - segment.y - warp * ROWS, columns = p.width - segment.x - lane / 4;
    Index voxel = p.voxels_before(segment.sample, z) +
                  (Index)(segment.y + warp * ROWS) * p.width + segment.x + lane / 4;
    y += voxel * p.outputs + channel;
#pragma unroll
    for (int i = 0; i < 2 * ROWS; ++i)
        if (i / 2 < rows && i % 2 * 8 < columns)
            *reinterpret_cast<uint2 *>(y + (i / 2 * p.width + i % 2 * 8) * p.outputs) =
                packed(sums, i / 2, i % 2);
    if (!partial) return;

    float y_sums[8] = {};
#pragma unroll
    for (int i = 0; i < 2 * ROWS; ++i) {
        bool here = i / 2 < rows && i % 2 * 8 < columns;
        uint2 words = packed(sums, i / 2, i % 2);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            unsigned word = here ? (j < 2 ? words.x : words.y) : 0;
            float value = __uint_as_float(j % 2 ? word & 0xffff0000 : word << 16);
            y_sums[j] += value, y_sums[4 + j] += value * value;
        }
    }
    int tiles = ceil_divide(p.height, HEIGHT) * ceil_divide(p.width, WIDTH);
    Index tile = (segment.sample * (Index)p.depth + z) * tiles + segment.column;
    Index parts = (Index)p.samples * p.depth * tiles * WARPS;
    partial += (lane / 16 * parts + tile * WARPS + warp) * p.outputs;
    partial[16 * blockIdx.y + lane % 4 * 4 + lane / 4 % 4] = add_lanes(y_sums);
}

__device__ inline void move_plane(PlaneSums &to, const PlaneSums &from) {
#pragma unroll
    for (int i = 0; i < ROWS * 8; ++i) to[i / 8][i / 4 % 2][i % 4] = from[i / 8][i / 4 % 2][i % 4];
}

// A new plane begins, with the bias of the lane's four channels.
__device__ inline void start_plane(PlaneSums &sums, const float *bias) {
    float b[4] = {};
    for (int i = 0; bias && i < 4; ++i) b[i] = bias[16 * blockIdx.y + threadIdx.x % 4 * 4 + i];
#pragma unroll
    for (int i = 0; i < ROWS * 8; ++i) sums[i / 8][i / 4 % 2][i % 4] = b[i / 4 % 2 * 2 + i % 2];
}

template <int CHANNELS, int DEPTH>
__device__ void correlate(const Input &x, const unsigned *weight, const float *bias, bfloat16 *y,
                          float *partial, const Problem &p) {
    using Plane = Tile<CHANNELS, HEIGHT + 2, WIDTH + 2, THREADS>;
    constexpr int BORDER = DEPTH / 2, FRAGMENTS = DEPTH * 3 * Plane::TAPS_X * Plane::STEPS * 32;
    int chunks = p.inputs / CHANNELS;
    char *stages = reinterpret_cast<char *>(shared_memory);
    uint4 *weights = reinterpret_cast<uint4 *>(stages + STAGES * Plane::BYTES);
    int *places = reinterpret_cast<int *>(weights + chunks * FRAGMENTS);
    const uint4 *packed = reinterpret_cast<const uint4 *>(weight);
    for (int i = threadIdx.x; i < chunks * FRAGMENTS; i += THREADS)
        copy_16_bytes(weights + i, packed + blockIdx.y * chunks * FRAGMENTS + i, true);
    Segment s;
    for (Walk walk(p, HEIGHT); walk.next(s);) {
        auto copy = [&](int z, int chunk, int stage) {
            Plane::copy(stages + stage * Plane::BYTES, places, x.part(chunk * CHANNELS), s, z, p);
            close_group();
        };
        auto activate = [&](int z, int chunk, int stage) {
            Plane::activate(stages + stage * Plane::BYTES, places, x.part(chunk * CHANNELS),
                            DEPTH == 1 ? z : s.sample, s, z, p);
        };
        Sums<DEPTH> sums;
        for (int z = 0; z < DEPTH; ++z) start_plane(sums[z], bias);
        Plane::locate(places, s, p);
        __syncthreads();  // all places are known, and the stages of the last segment have been used
        int stage = 0;
        copy(s.begin - BORDER, 0, stage);
        for (int z = s.begin - BORDER; z < s.end + BORDER; ++z) {
            for (int chunk = 0; chunk < chunks; ++chunk, stage ^= 1) {
                wait_for_groups<0>();
                activate(z, chunk, stage);
                __syncthreads();  // all copies have come, and the other stage has been used
                if (chunk + 1 < chunks) copy(z, chunk + 1, stage ^ 1);
                else if (z + 1 < s.end + BORDER) copy(z + 1, 0, stage ^ 1);
                add_plane<Plane, DEPTH>(sums, stages + stage * Plane::BYTES,
                                        weights + chunk * FRAGMENTS);
            }
            int finished = z - BORDER;
            if (finished >= s.begin) store_plane(sums[0], y, partial, s, finished, p);
            for (int i = 1; i < DEPTH; ++i) move_plane(sums[i - 1], sums[i]);
            start_plane(sums[DEPTH - 1], bias);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 5)
correlate_4_2d(const bfloat16 *a, const float *a_lines, Dropout dropout, const bfloat16 *b,
               const float *b_lines, Index a_channels, const unsigned *weight, const float *bias,
               bfloat16 *y, float *partial, Problem p) {
    correlate<4, 1>({a, b, a_lines, b_lines, dropout, int(a_channels), p.inputs}, weight, bias, y,
                  partial, p);
}

extern "C" __global__ void __launch_bounds__(THREADS, 3)
correlate_4_3d(const bfloat16 *a, const float *a_lines, Dropout dropout, const bfloat16 *b,
               const float *b_lines, Index a_channels, const unsigned *weight, const float *bias,
               bfloat16 *y, float *partial, Problem p) {
    correlate<4, 3>({a, b, a_lines, b_lines, dropout, int(a_channels), p.inputs}, weight, bias, y,
                  partial, p);
}

extern "C" __global__ void __launch_bounds__(THREADS, 5)
correlate_16_2d(const bfloat16 *a, const float *a_lines, Dropout dropout, const bfloat16 *b,
               const float *b_lines, Index a_channels, const unsigned *weight, const float *bias,
               bfloat16 *y, float *partial, Problem p) {
    correlate<16, 1>({a, b, a_lines, b_lines, dropout, int(a_channels), p.inputs}, weight, bias, y,
                  partial, p);
}

extern "C" __global__ void __launch_bounds__(THREADS, 3)
correlate_16_3d(const bfloat16 *a, const float *a_lines, Dropout dropout, const bfloat16 *b,
               const float *b_lines, Index a_channels, const unsigned *weight, const float *bias,
               bfloat16 *y, float *partial, Problem p) {
    correlate<16, 3>({a, b, a_lines, b_lines, dropout, int(a_channels), p.inputs}, weight, bias, y,
                  partial, p);
}

extern "C" __global__ void __launch_bounds__(THREADS, 5)
correlate_32_2d(const bfloat16 *a, const float *a_lines, Dropout dropout, const bfloat16 *b,
               const float *b_lines, Index a_channels, const unsigned *weight, const float *bias,
               bfloat16 *y, float *partial, Problem p) {
    correlate<32, 1>({a, b, a_lines, b_lines, dropout, int(a_channels), p.inputs}, weight, bias, y,
                  partial, p);
}

extern "C" __global__ void __launch_bounds__(THREADS, 3)
correlate_32_3d(const bfloat16 *a, const float *a_lines, Dropout dropout, const bfloat16 *b,
               const float *b_lines, Index a_channels, const unsigned *weight, const float *bias,
               bfloat16 *y, float *partial, Problem p) {
    correlate<32, 3>({a, b, a_lines, b_lines, dropout, int(a_channels), p.inputs}, weight, bias, y,
                  partial, p);
}
