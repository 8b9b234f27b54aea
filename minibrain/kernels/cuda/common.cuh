// What all kernels share. No CUDA header is included, so that NVRTC alone can compile them.
//
// Arrays are channels last and contiguous, but for a View. A voxel's number within its sample is an
// int (launchers leave larger samples to the reference); whatever addresses memory is an Index, of
// 64 bits.
//
// Memory is the limit of most kernels, but only just: an H200 issues 215 instructions of a thread
// while it moves 32 bytes, eight values of bfloat16 in and out. A division of 64 bits takes 70 to
// 100 of them, one of doubles as many, so neither is to be found where a thread does so for every
// element.
#include "tensor_core.cuh"

using Index = long long;

// The upper half of a float. It is only stored: arithmetic is in float, and a result is rounded
// once, to the nearest, to the even one of two that are equally near. NaN stays NaN.
struct bfloat16 {
    unsigned short bits;

    bfloat16() = default;
    __device__ bfloat16(float value) : bits(pack(value, 0)) {}
    __device__ operator float() const { return __uint_as_float(unsigned(bits) << 16); }
};

// What activations and their gradients are stored in: float or bfloat16, as the launch has them.
// Parameters and their gradients, statistics and sums are float or double in either case.
#ifndef REAL
#define REAL float
#endif
using Real = REAL;

// Neighbours that one thread reads or writes at once, 16 bytes at a time where they are whole ones,
// or 8.
template <int WIDTH, class T = Real>
struct alignas(WIDTH * sizeof(T) % 8 ? sizeof(T) : WIDTH * sizeof(T) % 16 ? 8 : 16) Several {
    T values[WIDTH];

    __device__ T &operator[](int i) { return values[i]; }
    __device__ const T &operator[](int i) const { return values[i]; }
};

template <int WIDTH, class T> __device__ inline Several<WIDTH, T> &several(T *first) {
    return *reinterpret_cast<Several<WIDTH, T> *>(first);
}

template <int WIDTH, class T> __device__ inline const Several<WIDTH, T> &several(const T *first) {
    return *reinterpret_cast<const Several<WIDTH, T> *>(first);
}

// Each rounded once.
template <int WIDTH> __device__ inline void write(Real *first, const float (&values)[WIDTH]) {
    Several<WIDTH> rounded;
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) rounded[j] = values[j];
    several<WIDTH>(first) = rounded;
}

// An array, or some channels of a larger one where they lie: from a voxel to the next it is `pitch`
// elements.
struct View {
    const Real *first;
    Index pitch;

    template <int WIDTH> __device__ const Several<WIDTH> &read(Index voxel, Index channel) const {
        return several<WIDTH>(first + voxel * pitch + channel);
    }
};

extern __shared__ __align__(128) double shared_memory[];

__device__ inline Index global_thread() { return blockIdx.x * (Index)blockDim.x + threadIdx.x; }

__device__ inline Index ceil_divide(Index a, Index b) { return (a + b - 1) / b; }

// The step is read from memory where its place is given, else it is the one that is given.
struct Dropout {
    unsigned long long seed;
    const unsigned *step_place;
    unsigned step, layer, threshold;
    float scale;
};

// What dropout multiplies elements 8 block, ..., 8 block + 7 with: ten rounds of Philox4x32, as in
// minibrain/philox.py, give each 16 bits, the low half of a word first. What reaches the threshold
// is kept.
struct DropoutFactors {
    Dropout dropout;
    unsigned words[4];

    __device__ DropoutFactors(const Dropout &d, Index block)
        : dropout(d), words{unsigned(block), unsigned(block >> 32), d.layer,
                            d.step_place ? *d.step_place : d.step} {
        if (!d.threshold) return;  // all is kept
        unsigned k0 = unsigned(d.seed), k1 = unsigned(d.seed >> 32);
        for (int round = 0; round < 10; ++round) {  // two products, of 64 bits each
            unsigned low0 = words[0] * 0xD2511F53, high0 = __umulhi(words[0], 0xD2511F53);
            unsigned low1 = words[2] * 0xCD9E8D57, high1 = __umulhi(words[2], 0xCD9E8D57);
            words[0] = high1 ^ words[1] ^ k0, words[1] = low1;
            words[2] = high0 ^ words[3] ^ k1, words[3] = low0;
            k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
        }
    }

    __device__ float operator[](int i) const {  // what lies below the 16 bits decides nothing
        unsigned random = i % 2 ? words[i / 2] : words[i / 2] << 16;
        return random >= dropout.threshold << 16 ? dropout.scale : 0;
    }
};

// Of WIDTH channels of a group, in registers: normalised, a value is (x - centre) scale + shift.
template <int WIDTH> struct Lines {
    float centre[WIDTH], scale[WIDTH], shift[WIDTH];

    template <class T>
    __device__ void normalize(float (&values)[WIDTH], const Several<WIDTH, T> &x) const {
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) values[j] = fmaf(x[j] - centre[j], scale[j], shift[j]);
    }
};

// An activation that is not written yet, see minibrain/duck_arrays.py: relu((raw - centre) scale +
// shift), then dropout. Without lines, values are what they are. Of a channel of a sample, `line`
// is sample * channels + channel.
struct Pending {
    const float *lines;  // (samples, channels, 3): centre, scale, shift
    Dropout dropout;

    // The lines of WIDTH channels, for as many voxels as are to come. Zeros, where there are none.
    template <int WIDTH> __device__ Lines<WIDTH> read(Index line) const {
        Lines<WIDTH> result = {};
        if (!lines) return result;
        Several<3 * WIDTH, float> values = several<3 * WIDTH>(lines + 3 * line);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            result.centre[j] = values[3 * j];
            result.scale[j] = values[3 * j + 1];
            result.shift[j] = values[3 * j + 2];
        }
        return result;
    }

    // i is the number of the first element in the array.
    template <int WIDTH, class T>
    __device__ void activate(float (&values)[WIDTH], const Several<WIDTH, T> &raw, Index i,
                             const Lines<WIDTH> &own) const {
        own.normalize(values, raw);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) values[j] = larger(values[j], 0);
        drop(values, i);
    }

    // The same in place, rounded once; without lines nothing happens.
    template <int WIDTH, class T>
    __device__ void activate(Several<WIDTH, T> &values, Index i, const Lines<WIDTH> &own) const {
        if (!lines) return;
        float activations[WIDTH];
        activate(activations, values, i, own);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) values[j] = activations[j];
    }

    // Dropout alone; forward and backward do the same.
    template <int WIDTH> __device__ void drop(float (&values)[WIDTH], Index i) const {
        if (!dropout.threshold) return;
        DropoutFactors factors(dropout, i / 8);
        int first = WIDTH == 8 ? 0 : i % 8;
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) values[j] *= factors[first + j];
    }
};

// How kernels go over arrays (groups, voxels, channels) without a division: the grid is (parts of
// the voxels, channels / blockDim.x / WIDTH, groups), and threads are (channels / WIDTH, rows). Row
// r takes every blockDim.y-th voxel of the block's part, and a thread always the same channels.
template <int WIDTH> __device__ int own_channel() {
    return WIDTH * (blockIdx.y * blockDim.x + threadIdx.x);
}

constexpr int EACH = 8;  // voxels of a thread, where nothing is summed

template <class Visit> __device__ void each_voxel(Index voxels, Visit visit) {
    Index voxel = blockIdx.x * (Index)(EACH * blockDim.y) + threadIdx.y;
    for (int i = 0; i < EACH && voxel < voxels; ++i, voxel += blockDim.y) visit(voxel);
}

// How many voxels are loaded before the first of them is used, of which a thread loads a T each:
// where it needs so many registers that there are few threads, with one each they would not keep
// memory busy.
template <class T> constexpr int AHEAD = sizeof(T) > 16 ? 2 : 4;

// The same with use(voxel, load(voxel)).
template <class Load, class Use> __device__ void each_voxel(Index voxels, Load load, Use use) {
    using Loaded = decltype(load(voxels));
    Index first = blockIdx.x * (Index)(EACH * blockDim.y) + threadIdx.y;
#pragma unroll 1
    for (int i = 0; i < EACH; i += AHEAD<Loaded>) {
        Loaded loaded[AHEAD<Loaded>];
#pragma unroll
        for (int a = 0; a < AHEAD<Loaded>; ++a)
            if (first + a * blockDim.y < voxels) loaded[a] = load(first + a * blockDim.y);
#pragma unroll
        for (int a = 0; a < AHEAD<Loaded>; ++a, first += blockDim.y)
            if (first < voxels) use(first, loaded[a]);
    }
}

// Sums over voxels, for every channel and in a fixed order: first within this block's share, for
// which add(voxel, load(voxel), sums) adds to `quantities` sums of the thread's channels. The block
// writes partial[quantity, group, part, channel]; kernels of columns add the parts up, see
// parts.cuh.
//
// FEW voxels are summed in float, unless Sum is double: a conversion to double takes as long as
// eight additions. What is lost to that are FEW roundings of 2^-24, however many voxels there are.
constexpr int FEW = 8;

template <int quantities, int WIDTH = 1, class Sum = float, class Load, class Add>
__device__ void sum_over_voxels(Index voxels, int channels, double *partial, Load load, Add add) {
    using Loaded = decltype(load(voxels));
    constexpr int SUMS = quantities * WIDTH;
    int length = blockDim.x * WIDTH, first = blockIdx.y * length, rows = blockDim.y;
    int mine = threadIdx.x * WIDTH, threads = blockDim.x * rows;
    Index share = ceil_divide(voxels, gridDim.x), begin = blockIdx.x * share + threadIdx.y;
    Index end = min(blockIdx.x * share + share, voxels);
    int count = first + mine < channels && begin < end ? int(end - begin - 1) / rows + 1 : 0;
    double sums[SUMS] = {};
    for (int i = 0; i < count; i += FEW) {
        Sum few[SUMS] = {};
#pragma unroll 1
        for (int k = i; k < min(i + FEW, count); k += AHEAD<Loaded>) {
            Index voxel = begin + (Index)k * rows;
            Loaded loaded[AHEAD<Loaded>];
#pragma unroll
            for (int a = 0; a < AHEAD<Loaded>; ++a)
                if (k + a < count) loaded[a] = load(voxel + a * rows);
#pragma unroll
            for (int a = 0; a < AHEAD<Loaded>; ++a)
                if (k + a < count) add(voxel + a * rows, loaded[a], few);
        }
#pragma unroll
        for (int j = 0; j < SUMS; ++j) sums[j] += few[j];
    }
    // one sum of all threads after the other, so that neighbours write side by side; at this pitch
    // those that add up eight channels of a voxel read from different banks
    int thread = threadIdx.y * blockDim.x + threadIdx.x, pitch = threads + 2;
#pragma unroll
    for (int j = 0; j < SUMS; ++j) shared_memory[j * pitch + thread] = sums[j];
    __syncthreads();
    for (int i = thread; i < quantities * length; i += threads) {
        int q = i / length, c = i % length, channel = first + c;
        if (channel >= channels) continue;
        const double *own = shared_memory + (q * WIDTH + c % WIDTH) * pitch + c / WIDTH;
        double sum = 0;
        for (int row = 0; row < rows; ++row) sum += own[row * blockDim.x];
        Index part = ((Index)q * gridDim.z + blockIdx.z) * gridDim.x + blockIdx.x;
        partial[part * channels + channel] = sum;
    }
}
