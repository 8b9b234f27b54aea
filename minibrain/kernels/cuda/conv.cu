// Convolution for any kernel, stride, padding, dilation and number of channels. Weights, bias and
// sums are float32 whatever the activations are.
//
//   correlate         y[n,p,o] = bias[o] + sum_{k,c} w[k,c,o] x[n, s p + d k - padding, c]
//   spread            x[n,q,c] = bias[c] + sum_{k,o} w[k,c,o] y[n,p,o],  q = s p + d k - padding
//   weight_gradient   dw[k,c,o] = sum_{n,p} x[n, s p + d k - padding, c] dy[n,p,o]
//
// `spread` looks, for every voxel it writes, for the positions that reach it: a gather like the
// other, so that nobody adds to what somebody else writes, and sums have a fixed order.
//
// Architectures: sm_80, sm_90. In float32, four channels at a time, 128 of 164 instructions of the
// innermost loop are products, in a weight gradient's 64 of 182 (counted for sm_90). Predicted for
// an H200: 30 of its 67 TFLOP/s, and 0.09 s for a step of the reference network in float32.
#include "rows.cuh"

constexpr int THREADS = 128;

// correlate and spread: a thread computes OUTPUTS channels of VOXELS_EACH voxels, which lie THREADS
// apart. For each tap the weights of CHUNK channels wait in shared memory, where all threads read
// them at once; x is read through the cache, WIDTH channels of a voxel at a time. Each value meets
// OUTPUTS weights, and each weight that is read VOXELS_EACH values.
//
// Moves, per voxel: K C values of x for every OUTPUTS channels (from memory once, then from cache)
// and its channels of y; per block: all weights of its OUTPUTS channels.
// Grid: (voxels / THREADS / VOXELS_EACH, channels / OUTPUTS, samples). Each thread writes what it
// sums.
constexpr int OUTPUTS = 16, CHUNK = 32, VOXELS_EACH = 2;

template <bool adjoint, int WIDTH>
__device__ void convolve(const Real *x, const float *weight, const float *bias, Real *y,
                         const Geometry &g, int inputs, int outputs) {
    float *tile = reinterpret_cast<float *>(shared_memory);  // (CHUNK, OUTPUTS)
    int from_voxels = adjoint ? g.output_voxels() : g.input_voxels();
    int to_voxels = adjoint ? g.input_voxels() : g.output_voxels();
    int first = blockIdx.y * OUTPUTS;
    x += blockIdx.z * (Index)from_voxels * inputs;
    y += blockIdx.z * (Index)to_voxels * outputs;

    Position positions[VOXELS_EACH];
    float sums[VOXELS_EACH][OUTPUTS];
    auto voxel = [&](int v) {
        return blockIdx.x * (Index)(VOXELS_EACH * THREADS) + v * THREADS + threadIdx.x;
    };
#pragma unroll
    for (int v = 0; v < VOXELS_EACH; ++v) {
        positions[v] = position_of(min(voxel(v), to_voxels - 1ll), adjoint ? g.input : g.output);
#pragma unroll
        for (int o = 0; o < OUTPUTS; ++o)
            sums[v][o] = bias && first + o < outputs ? bias[first + o] : 0;
    }
    for (int tap = 0; tap < g.taps(); ++tap) {
        Position k = position_of(tap, g.kernel);
        int sources[VOXELS_EACH];
#pragma unroll
        for (int v = 0; v < VOXELS_EACH; ++v)
            sources[v] = adjoint ? output_voxel(positions[v], k, g)
                                 : input_voxel(positions[v], k, g);
        for (int start = 0; start < inputs; start += CHUNK) {
            __syncthreads();  // the tile before this one has been used
            for (int i = threadIdx.x; i < CHUNK * OUTPUTS; i += THREADS) {
                int c = start + i / OUTPUTS, o = first + i % OUTPUTS;
                Index at = adjoint ? ((Index)tap * outputs + o) * inputs + c
                                   : ((Index)tap * inputs + c) * outputs + o;
                tile[i] = c < inputs && o < outputs ? weight[at] : 0;
            }
            __syncthreads();
            for (int c = 0; c < min(CHUNK, inputs - start); c += WIDTH) {
                Several<WIDTH> values[VOXELS_EACH] = {};
#pragma unroll
                for (int v = 0; v < VOXELS_EACH; ++v)
                    if (sources[v] >= 0)
                        values[v] = several<WIDTH>(x + (Index)sources[v] * inputs + start + c);
#pragma unroll
                for (int j = 0; j < WIDTH; ++j)
#pragma unroll
                    for (int o = 0; o < OUTPUTS; ++o) {
                        float w = tile[(c + j) * OUTPUTS + o];
#pragma unroll
                        for (int v = 0; v < VOXELS_EACH; ++v) sums[v][o] += values[v][j] * w;
                    }
            }
        }
    }
#pragma unroll
    for (int v = 0; v < VOXELS_EACH; ++v) {
        if (voxel(v) >= to_voxels) return;
#pragma unroll
        for (int o = 0; o < OUTPUTS; ++o)
            if (first + o < outputs) y[voxel(v) * outputs + first + o] = sums[v][o];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
correlate_1(const Real *__restrict__ x, const float *weight, const float *bias, Real *y,
            Geometry geometry, Index inputs, Index outputs) {
    convolve<false, 1>(x, weight, bias, y, geometry, inputs, outputs);
}

extern "C" __global__ void __launch_bounds__(THREADS)
correlate_4(const Real *__restrict__ x, const float *weight, const float *bias, Real *y,
            Geometry geometry, Index inputs, Index outputs) {
    convolve<false, 4>(x, weight, bias, y, geometry, inputs, outputs);
}

extern "C" __global__ void __launch_bounds__(THREADS)
spread_1(const Real *__restrict__ y, const float *weight, const float *bias, Real *x,
         Geometry geometry, Index inputs, Index outputs) {
    convolve<true, 1>(y, weight, bias, x, geometry, inputs, outputs);
}

extern "C" __global__ void __launch_bounds__(THREADS)
spread_4(const Real *__restrict__ y, const float *weight, const float *bias, Real *x,
         Geometry geometry, Index inputs, Index outputs) {
    convolve<true, 4>(y, weight, bias, x, geometry, inputs, outputs);
}

// weight_gradient: a block sums one tap's TILE x TILE channels over its share of the positions.
// VOXELS positions at a time are laid in shared memory, WIDTH channels by a thread; 16 threads hold
// 4 x 4 sums each, and the LANES such groups of a block take turns with the positions. At the end
// their sums are added, in order, and written to partial[part, k, c, o]; reduce.cu adds the parts,
// in order.
//
// Moves, per tap and position: C ceil(O / TILE) values of x and O ceil(C / TILE) of dy; once: the
// parts. Grid: (parts, taps, tiles of c and o).
constexpr int TILE = 16, VOXELS = 32, GROUP = 16, LANES = THREADS / GROUP;

template <int WIDTH>
__device__ void sum_products(const Real *x, const Real *dy, float *partial, const Geometry &g,
                             Index samples, int inputs, int outputs) {
    float(*tile_x)[TILE] = reinterpret_cast<float(*)[TILE]>(shared_memory);
    float(*tile_dy)[TILE] = tile_x + VOXELS;
    int tiles = ceil_divide(outputs, TILE);
    int first_c = blockIdx.z / tiles * TILE, first_o = blockIdx.z % tiles * TILE;
    int lane = threadIdx.x / GROUP, row = threadIdx.x % GROUP / 4 * 4, column = threadIdx.x % 4 * 4;
    Position tap = position_of(blockIdx.y, g.kernel);
    Index total = samples * g.output_voxels(), share = ceil_divide(total, gridDim.x);
    Index begin = blockIdx.x * share, end = min(begin + share, total);

    constexpr int ACROSS = TILE / WIDTH, DOWN = THREADS / ACROSS, ROWS = VOXELS / DOWN;
    int own_row = threadIdx.x / ACROSS, own_column = threadIdx.x % ACROSS * WIDTH;
    int c = first_c + own_column, o = first_o + own_column;
    Row step_row((Index)VOXELS, g), rows[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) rows[i] = Row(begin + own_row + i * DOWN, g);

    float sums[4][4] = {};
    for (Index start = begin; start < end; start += VOXELS) {
        __syncthreads();  // the tiles before these have been used
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            Index number = start + own_row + i * DOWN;
            int source = input_voxel(rows[i].position, tap, g);
            Index voxel = (Index)rows[i].sample * g.input_voxels() + source;
            Several<WIDTH> from_x = {}, from_dy = {};
            if (number < end && source >= 0 && c < inputs)
                from_x = several<WIDTH>(x + voxel * inputs + c);
            if (number < end && o < outputs) from_dy = several<WIDTH>(dy + number * outputs + o);
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) {
                tile_x[own_row + i * DOWN][own_column + j] = from_x[j];
                tile_dy[own_row + i * DOWN][own_column + j] = from_dy[j];
            }
            rows[i].advance(step_row, g);
        }
        __syncthreads();
#pragma unroll
        for (int v = lane; v < VOXELS; v += LANES)
#pragma unroll
            for (int i = 0; i < 16; ++i)
                sums[i / 4][i % 4] += tile_x[v][row + i / 4] * tile_dy[v][column + i % 4];
    }

    __syncthreads();
    float(*lane_sums)[TILE * TILE] = reinterpret_cast<float(*)[TILE * TILE]>(shared_memory);
#pragma unroll
    for (int i = 0; i < 16; ++i)
        lane_sums[lane][(row + i / 4) * TILE + column + i % 4] = sums[i / 4][i % 4];
    __syncthreads();
    Index matrix = (Index)blockIdx.x * g.taps() + blockIdx.y;
    for (int i = threadIdx.x; i < TILE * TILE; i += THREADS) {
        int c = first_c + i / TILE, o = first_o + i % TILE;
        if (c >= inputs || o >= outputs) continue;
        float sum = 0;
        for (int l = 0; l < LANES; ++l) sum += lane_sums[l][i];
        partial[(matrix * inputs + c) * outputs + o] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
weight_gradient_1(const Real *__restrict__ x, const Real *__restrict__ dy, float *partial,
                  Geometry geometry, Index samples, Index inputs, Index outputs) {
    sum_products<1>(x, dy, partial, geometry, samples, inputs, outputs);
}

extern "C" __global__ void __launch_bounds__(THREADS)
weight_gradient_4(const Real *__restrict__ x, const Real *__restrict__ dy, float *partial,
                  Geometry geometry, Index samples, Index inputs, Index outputs) {
    sum_products<4>(x, dy, partial, geometry, samples, inputs, outputs);
}
