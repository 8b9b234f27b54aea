// Convolution with one tap and few outputs, the head of a network: bfloat16 arrays, float32 sums.
//
//   correlate         y[v,o] = bias[o] + sum_c w[c,o] x[v,c]
//   spread            x[v,c] = sum_o w[c,o] y[v,o]
//   weight_gradient   dw[c,o] = sum_v x[v,c] dy[v,o],  dbias[o] = sum_v dy[v,o]
//
// Memory is the limit, so there are no tensor cores here, only loads of 16 bytes: eight channels,
// an octet; what is pending is activated in registers. Inputs are whole octets, outputs at most
// MOST. Grids have the samples along z, but for spread, which asks nothing of them. Architectures:
// sm_80, sm_90. Predicted for an H200, 16 to 4 channels at 2x160x160x128: 0.26 GB and 0.06 ms each.
#include "octets.cuh"

constexpr int THREADS = 256, MOST = 4;

// A voxel's outputs, and 0 beyond the last of them.
using Outputs = Several<MOST, bfloat16>;

__device__ inline Outputs load_outputs(const bfloat16 *y, int outputs) {
    if (outputs == MOST) return several<MOST>(y);
    Outputs result;
#pragma unroll
    for (int o = 0; o < MOST; ++o) result[o] = o < outputs ? float(y[o]) : 0;
    return result;
}

// A thread computes one voxel. Moves x and y once; the weights wait in shared memory.
extern "C" __global__ void __launch_bounds__(THREADS)
correlate(const bfloat16 *x, const float *lines, Dropout dropout, const float *weight,
          const float *bias, bfloat16 *y, Index voxels, Index inputs, Index outputs) {
    Pending pending = {lines, dropout};
    float(*w)[MOST] = reinterpret_cast<float(*)[MOST]>(shared_memory);
    for (int i = threadIdx.x; i < inputs * MOST; i += THREADS)
        w[i / MOST][i % MOST] = i % MOST < outputs ? weight[i / MOST * outputs + i % MOST] : 0;
    __syncthreads();
    Index voxel = global_thread();
    if (voxel >= voxels) return;
    voxel += blockIdx.z * voxels;
    float sums[MOST];
    for (int o = 0; o < MOST; ++o) sums[o] = bias && o < outputs ? bias[o] : 0;
    for (int c = 0; c < inputs; c += 8) {
        Index at = voxel * inputs + c;
        Octet octet = load_octet(x + at);
        if (lines) activate_octet(&octet, pending, at, blockIdx.z * inputs + c);
#pragma unroll
        for (int i = 0; i < 8; ++i)
#pragma unroll
            for (int o = 0; o < MOST; ++o) sums[o] += octet[i] * w[c + i][o];
    }
    y += voxel * outputs;
    if (outputs == MOST)
        *reinterpret_cast<uint2 *>(y) = {pack(sums[0], sums[1]), pack(sums[2], sums[3])};
    else
#pragma unroll
        for (int o = 0; o < MOST; ++o)
            if (o < outputs) y[o] = sums[o];
}

// A thread computes one octet of several voxels, see common.cuh, and keeps its weights. Moves y
// once for each octet of x (from cache), x once.
extern "C" __global__ void __launch_bounds__(THREADS)
spread(const bfloat16 *y, const float *weight, const float *bias, bfloat16 *x, Index outputs,
       Index voxels, Index inputs) {
    int c = own_channel<8>();
    if (c >= inputs) return;
    float w[MOST][8], start[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        start[i] = bias ? bias[c + i] : 0;
#pragma unroll
        for (int o = 0; o < MOST; ++o) w[o][i] = o < outputs ? weight[(c + i) * outputs + o] : 0;
    }
    each_voxel(voxels, [&](Index voxel) {
        Outputs values = load_outputs(y + voxel * outputs, outputs);
        float sums[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) sums[i] = start[i];
#pragma unroll
        for (int o = 0; o < MOST; ++o)
#pragma unroll
            for (int i = 0; i < 8; ++i) sums[i] += values[o] * w[o][i];
        store_octet(x + voxel * inputs + c, sums);
    });
}

// A thread sums one octet of every THREADS / octets-th voxel of its block's share; then the threads
// of an octet are added up, in order, to partial[sample][part][c, and dbias behind the last][o].
// Moves x once, dy once for each octet (from cache). Grid: (parts, 1, samples).
extern "C" __global__ void __launch_bounds__(THREADS, 2)
weight_gradient(const bfloat16 *x, const float *lines, Dropout dropout, const bfloat16 *dy,
                float *partial, Index voxels, Index inputs, Index outputs, Index share) {
    Pending pending = {lines, dropout};
    float(*lanes)[9 * MOST] = reinterpret_cast<float(*)[9 * MOST]>(shared_memory);
    int octets = inputs / 8, rows = THREADS / octets, c = threadIdx.x % octets * 8;
    Index sample = blockIdx.z * voxels, begin = blockIdx.x * share;
    Index end = sample + min(begin + share, voxels);
    Lines<8> own = pending.read<8>(blockIdx.z * inputs + c);
    float sums[9][MOST] = {};  // the last is of dy alone
    Index voxel = threadIdx.x < rows * octets ? sample + begin + threadIdx.x / octets : end;
    struct Loaded {
        Octet x;
        Outputs dy;
    };
    for (; voxel < end; voxel += AHEAD<Loaded> * rows) {
        Loaded loaded[AHEAD<Loaded>];
#pragma unroll
        for (int a = 0; a < AHEAD<Loaded>; ++a) {
            Index v = voxel + a * rows;
            if (v < end) loaded[a] = {load_octet(x + v * inputs + c),
                                      load_outputs(dy + v * outputs, outputs)};
        }
#pragma unroll
        for (int a = 0; a < AHEAD<Loaded>; ++a) {
            Index v = voxel + a * rows;
            if (v >= end) break;
            auto &[octet, gradient] = loaded[a];
            pending.activate(octet, v * inputs + c, own);
#pragma unroll
            for (int o = 0; o < MOST; ++o) {
#pragma unroll
                for (int i = 0; i < 8; ++i) sums[i][o] += octet[i] * gradient[o];
                sums[8][o] += gradient[o];
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 9 * MOST; ++i) lanes[threadIdx.x][i] = sums[i / MOST][i % MOST];
    __syncthreads();
    partial += (blockIdx.z * gridDim.x + blockIdx.x) * (inputs + 1) * outputs;
    for (int i = threadIdx.x; i < (inputs + 1) * outputs; i += THREADS) {
        int row = i / int(outputs), o = i % int(outputs);
        int octet = row < inputs ? row / 8 : 0, at = (row < inputs ? row % 8 : 8) * MOST + o;
        float sum = 0;
        for (int r = 0; r < rows; ++r) sum += lanes[r * octets + octet][at];
        partial[i] = sum;
    }
}
