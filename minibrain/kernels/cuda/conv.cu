// Convolution for any kernel, stride, padding, dilation and number of channels. Weights, bias and
// sums are float32 whatever the activations are.
//
//   correlate         y[n,p,o] = bias[o] + sum_{k,c} w[k,c,o] x[n, s p + d k - padding, c]
//   spread            x[n,q,c] = bias[c] + sum_{k,o} w[k,c,o] y[n,p,o],  q = s p + d k - padding
//   weight_gradient   dw[k,c,o] = sum_{n,p} x[n, s p + d k - padding, c] dy[n,p,o]
//
// `spread` looks, for every voxel it writes, for the positions that reach it: a gather like the
// other, so that nobody adds to what somebody else writes, and sums have a fixed order.

constexpr int THREADS = 128;

// correlate and spread: a thread computes OUTPUTS channels of one voxel, THREADS voxels a block.
// For each tap the weights of CHUNK channels wait in shared memory, where all threads read them at
// once; x is read through the cache, OUTPUTS products for each value.
//
// Moves, per voxel: K C values of x for every OUTPUTS channels (from memory once, then from cache)
// and its channels of y; per block: all weights of its OUTPUTS channels.
// Grid: (voxels / THREADS, channels / OUTPUTS, samples). Each thread writes what it sums.
constexpr int OUTPUTS = 16, CHUNK = 32;

template <bool adjoint>
__device__ void convolve(const Real *x, const float *weight, const float *bias, Real *y,
                         const Geometry &g, int inputs, int outputs) {
    float *tile = reinterpret_cast<float *>(shared_memory);  // (CHUNK, OUTPUTS)
    int from_voxels = adjoint ? g.output_voxels() : g.input_voxels();
    int to_voxels = adjoint ? g.input_voxels() : g.output_voxels();
    int voxel = blockIdx.x * THREADS + threadIdx.x, first = blockIdx.y * OUTPUTS;
    bool here = voxel < to_voxels;
    Position position = position_of(here ? voxel : 0, adjoint ? g.input : g.output);
    x += blockIdx.z * (Index)from_voxels * inputs;
    y += (blockIdx.z * (Index)to_voxels + voxel) * outputs;

    float sums[OUTPUTS];
    for (int o = 0; o < OUTPUTS; ++o) sums[o] = bias && first + o < outputs ? bias[first + o] : 0;
    for (int tap = 0; tap < g.taps(); ++tap) {
        Position k = position_of(tap, g.kernel);
        int source = adjoint ? output_voxel(position, k, g) : input_voxel(position, k, g);
        const Real *values = x + (Index)source * inputs;
        for (int start = 0; start < inputs; start += CHUNK) {
            __syncthreads();  // the tile before this one has been used
            for (int i = threadIdx.x; i < CHUNK * OUTPUTS; i += THREADS) {
                int c = start + i / OUTPUTS, o = first + i % OUTPUTS;
                Index at = adjoint ? ((Index)tap * outputs + o) * inputs + c
                                   : ((Index)tap * inputs + c) * outputs + o;
                tile[i] = c < inputs && o < outputs ? weight[at] : 0;
            }
            __syncthreads();
            if (!here || source < 0) continue;
            for (int c = 0; c < min(CHUNK, inputs - start); ++c) {
                float value = values[start + c];
#pragma unroll
                for (int o = 0; o < OUTPUTS; ++o) sums[o] += value * tile[c * OUTPUTS + o];
            }
        }
    }
    if (!here) return;
#pragma unroll
    for (int o = 0; o < OUTPUTS; ++o)
        if (first + o < outputs) y[first + o] = sums[o];
}

extern "C" __global__ void __launch_bounds__(THREADS)
correlate(const Real *__restrict__ x, const float *weight, const float *bias, Real *y,
          Geometry geometry, Index inputs, Index outputs) {
    convolve<false>(x, weight, bias, y, geometry, inputs, outputs);
}

extern "C" __global__ void __launch_bounds__(THREADS)
spread(const Real *__restrict__ y, const float *weight, const float *bias, Real *x,
       Geometry geometry, Index inputs, Index outputs) {
    convolve<true>(y, weight, bias, x, geometry, inputs, outputs);
}

// weight_gradient: a block sums one tap's TILE x TILE channels over its share of the positions.
// VOXELS positions at a time are laid in shared memory; 16 threads hold 4 x 4 sums each, and the
// LANES such groups of a block take turns with the positions. At the end their sums are added, in
// order, and written to partial[part, k, c, o]; reduce.cu adds the parts, in order.
//
// Moves, per tap and position: C ceil(O / TILE) values of x and O ceil(C / TILE) of dy; once: the
// parts. Grid: (parts, taps, tiles of c and o).
constexpr int TILE = 16, VOXELS = 32, GROUP = 16, LANES = THREADS / GROUP;

extern "C" __global__ void __launch_bounds__(THREADS)
weight_gradient(const Real *x, const Real *dy, float *partial, Geometry geometry, Index samples,
                Index inputs, Index outputs) {
    float(*tile_x)[TILE] = reinterpret_cast<float(*)[TILE]>(shared_memory);
    float(*tile_dy)[TILE] = tile_x + VOXELS;
    int tiles = ceil_divide(outputs, TILE);
    int first_c = blockIdx.z / tiles * TILE, first_o = blockIdx.z % tiles * TILE;
    int lane = threadIdx.x / GROUP, row = threadIdx.x % GROUP / 4 * 4, column = threadIdx.x % 4 * 4;
    int voxels = geometry.output_voxels();
    Position tap = position_of(blockIdx.y, geometry.kernel);
    Index share = ceil_divide(samples * voxels, gridDim.x), begin = blockIdx.x * share;
    Index end = min(begin + share, samples * voxels);

    float sums[4][4] = {};
    for (Index start = begin; start < end; start += VOXELS) {
        __syncthreads();  // the tiles before these have been used
        for (int i = threadIdx.x; i < VOXELS * TILE; i += THREADS) {
            Index number = start + i / TILE, n = number / voxels;
            int c = first_c + i % TILE, o = first_o + i % TILE;
            bool here = number < end;
            Position p = position_of(here ? number % voxels : 0, geometry.output);
            int source = input_voxel(p, tap, geometry);
            Index at = (n * geometry.input_voxels() + source) * inputs + c;
            tile_x[i / TILE][i % TILE] = here && source >= 0 && c < inputs ? float(x[at]) : 0;
            tile_dy[i / TILE][i % TILE] = here && o < outputs ? float(dy[number * outputs + o]) : 0;
        }
        __syncthreads();
        for (int v = lane; v < VOXELS; v += LANES)
#pragma unroll
            for (int c = 0; c < 4; ++c)
#pragma unroll
                for (int o = 0; o < 4; ++o)
                    sums[c][o] += tile_x[v][row + c] * tile_dy[v][column + o];
    }

    __syncthreads();
    float(*lane_sums)[TILE * TILE] = reinterpret_cast<float(*)[TILE * TILE]>(shared_memory);
#pragma unroll
    for (int i = 0; i < 16; ++i)
        lane_sums[lane][(row + i / 4) * TILE + column + i % 4] = sums[i / 4][i % 4];
    __syncthreads();
    Index matrix = (Index)blockIdx.x * geometry.taps() + blockIdx.y;
    for (int i = threadIdx.x; i < TILE * TILE; i += THREADS) {
        int c = first_c + i / TILE, o = first_o + i % TILE;
        if (c >= inputs || o >= outputs) continue;
        float sum = 0;
        for (int l = 0; l < LANES; ++l) sum += lane_sums[l][i];
        partial[(matrix * inputs + c) * outputs + o] = sum;
    }
}
