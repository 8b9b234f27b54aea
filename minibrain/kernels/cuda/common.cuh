// What all kernels share. No CUDA header is included, so that NVRTC alone can compile them.
//
// Arrays are channels last and contiguous, but for a View. A voxel's number within its sample is an int (launchers
// leave larger samples to the reference); whatever addresses memory is an Index of 64 bits.

using Index = long long;

// The upper half of a float. It is only stored: arithmetic is in float, and a result is rounded
// once, to the nearest, to the even one of two that are equally near. NaN stays NaN.
struct bfloat16 {
    unsigned short bits;

    bfloat16() = default;
    __device__ bfloat16(float value) {
        unsigned word = __float_as_uint(value);
        bits = value == value ? (word + 0x7fff + (word >> 16 & 1)) >> 16 : word >> 16 | 0x40;
    }
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

// An array, or some channels of a larger one where they lie: from a voxel to the next it is `pitch`
// elements.
struct View {
    const Real *first;
    Index pitch;

    template <int WIDTH> __device__ const Several<WIDTH> &read(Index voxel, Index channel) const {
        return *reinterpret_cast<const Several<WIDTH> *>(first + voxel * pitch + channel);
    }
};

extern __shared__ __align__(128) double shared_memory[];

__device__ inline Index global_thread() { return blockIdx.x * (Index)blockDim.x + threadIdx.x; }

__device__ inline Index ceil_divide(Index a, Index b) { return (a + b - 1) / b; }

// The shape of a convolution or pooling along three axes; an axis that is absent has size 1.
struct Geometry {
    int input[3], output[3], kernel[3], stride[3], padding[3], dilation[3];

    __device__ int input_voxels() const { return input[0] * input[1] * input[2]; }
    __device__ int output_voxels() const { return output[0] * output[1] * output[2]; }
    __device__ int taps() const { return kernel[0] * kernel[1] * kernel[2]; }
};

struct Position {
    int axis[3];
};

__device__ inline Position position_of(int number, const int (&size)[3]) {
    return {number / size[2] / size[1], number / size[2] % size[1], number % size[2]};
}

__device__ inline int number_of(const Position &p, const int (&size)[3]) {
    return (p.axis[0] * size[1] + p.axis[1]) * size[2] + p.axis[2];
}

// The input voxel that a tap of the kernel meets at an output position, or -1 in the padding.
__device__ inline int input_voxel(const Position &output, const Position &tap, const Geometry &g) {
    Position p;
    for (int a = 0; a < 3; ++a) {
        p.axis[a] = g.stride[a] * output.axis[a] + g.dilation[a] * tap.axis[a] - g.padding[a];
        if (p.axis[a] < 0 || p.axis[a] >= g.input[a]) return -1;
    }
    return number_of(p, g.input);
}

// The output position at which a tap of the kernel meets an input voxel, or -1 if there is none.
__device__ inline int output_voxel(const Position &input, const Position &tap, const Geometry &g) {
    Position p;
    for (int a = 0; a < 3; ++a) {
        int distance = input.axis[a] + g.padding[a] - g.dilation[a] * tap.axis[a];
        p.axis[a] = distance / g.stride[a];
        if (distance < 0 || distance % g.stride[a] || p.axis[a] >= g.output[a]) return -1;
    }
    return number_of(p, g.output);
}

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
        for (int round = 0; round < 10; ++round) {
            unsigned long long p0 = words[0] * 0xD2511F53ull, p1 = words[2] * 0xCD9E8D57ull;
            words[0] = unsigned(p1 >> 32) ^ words[1] ^ k0, words[1] = unsigned(p1);
            words[2] = unsigned(p0 >> 32) ^ words[3] ^ k1, words[3] = unsigned(p0);
            k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
        }
    }

    __device__ float operator[](int i) const {
        unsigned random = words[i / 2] >> (i % 2 * 16) & 0xffff;
        return random >= dropout.threshold ? dropout.scale : 0;
    }
};

// An activation that is not written yet, see minibrain/saved.py: relu((raw - centre) scale + shift),
// then dropout. Without lines, values are what they are. Of a channel of a sample, `line` is
// sample * channels + channel.
struct Pending {
    const float *lines;  // (samples, channels, 3): centre, scale, shift
    Dropout dropout;

    // WIDTH channels of one voxel before ReLU and dropout.
    template <int WIDTH, class T>
    __device__ void normalize(float (&values)[WIDTH], const Several<WIDTH, T> &raw,
                              Index line) const {
        using Lines = Several<3 * WIDTH, float>;
        Lines l = *reinterpret_cast<const Lines *>(lines + 3 * line);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j)
            values[j] = fmaf(raw[j] - l[3 * j], l[3 * j + 1], l[3 * j + 2]);
    }

    // The same after them; i is the number of the first element in the array.
    template <int WIDTH, class T>
    __device__ void activate(float (&values)[WIDTH], const Several<WIDTH, T> &raw, Index i,
                             Index line) const {
        normalize(values, raw, line);
        DropoutFactors factors(dropout, i / 8);
        int first = WIDTH == 8 ? 0 : i % 8;
#pragma unroll
        for (int j = 0; j < WIDTH; ++j)  // NaN stays NaN
            values[j] = values[j] < 0 ? 0 : values[j] * factors[first + j];
    }

    // The same in place, rounded once; without lines nothing happens.
    template <int WIDTH, class T>
    __device__ void activate(Several<WIDTH, T> &values, Index i, Index line) const {
        if (!lines) return;
        float activations[WIDTH];
        activate(activations, values, i, line);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) values[j] = activations[j];
    }
};

// Sums over voxels, for every channel and in a fixed order: first within this block's share.
//
// The grid is (parts, channels / blockDim.x / WIDTH, groups); threads are (channels / WIDTH, rows),
// and row r takes every blockDim.y-th voxel of the share. add(voxel, channel, sums) adds to
// `quantities` sums of WIDTH channels; the block writes partial[quantity, group, part, channel],
// and reduce.cu adds the parts up.
template <int quantities, int WIDTH = 1, class Add>
__device__ void sum_over_voxels(Index voxels, int channels, double *partial, Add add) {
    int length = blockDim.x * WIDTH, first = blockIdx.y * length;
    int mine = threadIdx.x * WIDTH, threads = blockDim.x * blockDim.y;
    Index share = ceil_divide(voxels, gridDim.x), begin = blockIdx.x * share;
    Index end = min(begin + share, voxels);
    double sums[quantities * WIDTH] = {};
    if (first + mine < channels)
        for (Index voxel = begin + threadIdx.y; voxel < end; voxel += blockDim.y)
            add(voxel, first + mine, sums);
    for (int i = 0; i < quantities * WIDTH; ++i)
        shared_memory[(threadIdx.y * quantities + i / WIDTH) * length + mine + i % WIDTH] = sums[i];
    __syncthreads();
    for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < quantities * length; i += threads) {
        int q = i / length, channel = first + i % length;
        if (channel >= channels) continue;
        double sum = 0;
        for (int row = 0; row < blockDim.y; ++row)
            sum += shared_memory[row * quantities * length + i];
        Index part = ((Index)q * gridDim.z + blockIdx.z) * gridDim.x + blockIdx.x;
        partial[part * channels + channel] = sum;
    }
}
