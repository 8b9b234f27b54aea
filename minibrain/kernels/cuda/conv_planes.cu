// Convolution with 3x3x3 or 3x3 taps, stride 1 and "same" padding: bfloat16 arrays, float32 sums.
//
//   correlate         y[n,p,o] = bias[o] + sum_{k,c} w[k,c,o] x[n, p + k - 1, c]
//   weight_gradient   dw[k,c,o] = sum_{n,p} x[n, p + k - 1, c] dy[n,p,o],  dbias[o] = sum dy[n,p,o]
//
// With few channels memory and caches are the limit, so a block walks through the volume plane by
// plane: a tile of the plane enters shared memory once and then meets all taps. In two dimensions
// the samples are the planes of one volume, and DEPTH, the taps from plane to plane, is 1.
// Architectures: sm_80, sm_90.

constexpr int WIDTH = 16, HALO = 1;  // of a tile along x, and voxels around it

struct Problem {
    int samples, depth, height, width, inputs, outputs;
    int share;  // planes of tiles that a block works on, one after the other

    __device__ Index voxels_before(int sample, int z) const {
        return ((Index)sample * depth + z) * height * width;
    }
};

// Some planes [begin, end) of one column of tiles, from which (y, x) is the first voxel.
struct Segment {
    int sample, y, x, begin, end;
};

// A block's share of the planes of all columns, one segment after the other.
class Walk {
    const Problem &p;
    int rows;
    Index plane, end;

  public:
    __device__ Walk(const Problem &problem, int tile_rows) : p(problem), rows(tile_rows) {
        Index tiles = ceil_divide(p.height, rows) * ceil_divide(p.width, WIDTH);
        plane = blockIdx.x * (Index)p.share;
        end = min(plane + p.share, tiles * p.samples * p.depth);
    }

    __device__ bool next(Segment &segment) {
        if (plane >= end) return false;
        int across = ceil_divide(p.width, WIDTH), down = ceil_divide(p.height, rows);
        int column = plane / p.depth, begin = plane % p.depth;
        int count = min(end - plane, (Index)(p.depth - begin));
        segment = {column / across / down, column / across % down * rows, column % across * WIDTH,
                   begin, begin + count};
        plane += count;
        return true;
    }
};

// The tile of a plane in shared memory. Eight channels of a voxel are 16 bytes, an octet, and the
// first octets of all voxels come first, then all second octets: load_matrices wants the same octet
// of eight neighbours. The pitch lets the octets of one voxel be written without bank conflicts.
//
// CHANNELS 4 is made to look like 16: an octet is a voxel and its right neighbour, so that this
// octet and that two voxels further hold four taps along x (the fourth has no weights).
template <int CHANNELS, int ROWS, int COLUMNS> struct Tile {
    static constexpr bool PAIRS = CHANNELS == 4;
    static constexpr int OCTETS = PAIRS ? 2 : CHANNELS / 8, STEPS = OCTETS / 2;  // 16 to a step
    static constexpr int TAPS_X = PAIRS ? 1 : 3, VOXELS = ROWS * COLUMNS;
    static constexpr int PITCH = PAIRS ? 32 : (16 * VOXELS + 127) / 128 * 128 + 128 / OCTETS;
    static constexpr int BYTES = PAIRS ? (16 * VOXELS + 127) / 128 * 128 : OCTETS * PITCH;

    // Start to copy the tile at `corner` of plane z, with `halo` voxels around it; outside are zeros.
    static __device__ void copy(char *tile, const bfloat16 *x, int channels, const Segment &corner,
                                int z, int halo, const Problem &p, int threads) {
        bool there = z >= 0 && z < p.depth;
        const bfloat16 *plane = x + p.voxels_before(corner.sample, there ? z : 0) * channels;
#pragma unroll 1
        for (int i = threadIdx.x; i < VOXELS * OCTETS; i += threads) {
            int voxel = i / OCTETS, piece = i % OCTETS;
            int row = corner.y - halo + voxel / COLUMNS;
            int column = corner.x - halo + voxel % COLUMNS + (PAIRS ? piece : 0);
            bool here = there && row >= 0 && row < p.height && column >= 0 && column < p.width;
            const bfloat16 *from = plane + (here ? row * p.width + column : 0) * (Index)channels;
            if (PAIRS) copy_8_bytes(tile + 16 * voxel + 8 * piece, from, here);
            else copy_16_bytes(tile + piece * PITCH + 16 * voxel, from + 8 * piece, here);
        }
    }
};

// correlate: a block of 4 warps computes 16 of the output channels of tiles of 16 x 16 voxels; a
// warp has 4 rows of them. Each plane of x, CHANNELS at a time, is copied while the one before it is
// used. A plane adds to the DEPTH planes of y around it, which wait in registers: sums[0] are
// finished first. Weights stay in shared memory, packed as conv_weights.cu does.
//
// Grid: (parts of all planes of all tiles, outputs / 16). Reads x once for every 16 outputs (1.27
// times with the halo, mostly from L2), writes y once: each lane four channels of a voxel.
namespace correlation {

constexpr int WARPS = 4, THREADS = 32 * WARPS, ROWS = 4, HEIGHT = WARPS * ROWS, STAGES = 2;

template <int DEPTH> using Sums = float[DEPTH][ROWS][2][4];

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
                    multiply_add(sums[DEPTH - 1 - kz][y][0], a, w[k].x, w[k].y);
                    multiply_add(sums[DEPTH - 1 - kz][y][1], a, w[k].z, w[k].w);
                }
            }
        }
}

template <int DEPTH>
__device__ void store_plane(const Sums<DEPTH> &sums, const float *bias, bfloat16 *y,
                            const Segment &segment, int z, const Problem &p) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, channel = 16 * blockIdx.y + lane % 4 * 4;
    int first = segment.y + warp * ROWS, column = segment.x + lane / 4;
    Index voxel = p.voxels_before(segment.sample, z) + (Index)first * p.width + column;
    float b[4];
    for (int i = 0; i < 4; ++i) b[i] = bias ? bias[channel + i] : 0;
#pragma unroll
    for (int row = 0; row < ROWS; ++row, voxel += p.width)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (first + row >= p.height || column + 8 * half >= p.width) continue;
            const float(&s)[2][4] = sums[0][row];
            int q = half * 2;
            *reinterpret_cast<uint2 *>(y + (voxel + 8 * half) * p.outputs + channel) = {
                pack(s[0][q] + b[0], s[0][q + 1] + b[1]), pack(s[1][q] + b[2], s[1][q + 1] + b[3])};
        }
}

// The plane that is finished leaves, and a new one begins.
template <int DEPTH> __device__ void next_plane(Sums<DEPTH> &sums) {
#pragma unroll
    for (int i = 0; i < ROWS * 8; ++i) {
#pragma unroll
        for (int z = 1; z < DEPTH; ++z) sums[z - 1][i / 8][i / 4 % 2][i % 4] = sums[z][i / 8][i / 4 % 2][i % 4];
        sums[DEPTH - 1][i / 8][i / 4 % 2][i % 4] = 0;
    }
}

template <int CHANNELS, int DEPTH>
__device__ void correlate(const bfloat16 *x, const unsigned *weight, const float *bias, bfloat16 *y,
                          const Problem &p) {
    using Plane = Tile<CHANNELS, HEIGHT + 2, WIDTH + 2>;
    constexpr int BORDER = DEPTH / 2, FRAGMENTS = DEPTH * 3 * Plane::TAPS_X * Plane::STEPS * 32;
    char *stages = reinterpret_cast<char *>(shared_memory);
    uint4 *weights = reinterpret_cast<uint4 *>(stages + STAGES * Plane::BYTES);
    int chunks = p.inputs / CHANNELS;
    const uint4 *packed = reinterpret_cast<const uint4 *>(weight);
    for (int i = threadIdx.x; i < chunks * FRAGMENTS; i += THREADS)
        copy_16_bytes(weights + i, packed + blockIdx.y * chunks * FRAGMENTS + i, true);

    Segment s;
    for (Walk walk(p, HEIGHT); walk.next(s);) {
        auto copy = [&](int step) {  // a step is CHANNELS of a plane
            Plane::copy(stages + step % STAGES * Plane::BYTES, x + step % chunks * CHANNELS, p.inputs,
                        s, s.begin - BORDER + step / chunks, HALO, p, THREADS);
            close_group();
        };
        Sums<DEPTH> sums;
        for (int z = 0; z < DEPTH; ++z) next_plane<DEPTH>(sums);
        __syncthreads();  // the stages of the segment before this one have been used
        copy(0);
        int step = 0;
        for (int z = s.begin - 2 * BORDER; z < s.end; ++z) {  // of the plane that will be finished
            for (int chunk = 0; chunk < chunks; ++chunk, ++step) {
                wait_for_groups<0>();
                __syncthreads();  // all copies have come, and the other stage has been used
                if (z + 1 < s.end || chunk + 1 < chunks) copy(step + 1);
                add_plane<Plane, DEPTH>(sums, stages + step % STAGES * Plane::BYTES,
                                        weights + chunk * FRAGMENTS);
            }
            if (z >= s.begin) store_plane<DEPTH>(sums, bias, y, s, z, p);
            next_plane<DEPTH>(sums);
        }
    }
}

}  // namespace correlation

// weight_gradient: a block sums the products of 16 channels of x (or 4, of 4 taps along x) and 16 of
// dy over its share of the planes, for all taps. Voxels are what the products sum over, so both
// operands are transposed while they are loaded. In three dimensions warp kz takes plane
// z + kz - 1 of x and plane z of dy; in two, every warp has two rows and partial sums of its own.
// dbias is one more row of the matrix: the product of dy with ones.
//
// Writes partial[part][tap][c][o] and, behind the last tap, [o] of dbias; reduce.cu adds the parts,
// in order. Grid: (parts, tiles of 16 x 16 channels). Moves x once for every 16 outputs (1.41 times
// with the halo, mostly from L2), dy once for every 16 inputs, the parts once.
namespace gradient {

constexpr int HEIGHT = 8;

template <int DEPTH> constexpr int WARPS = DEPTH == 1 ? 4 : DEPTH;

template <int TAPS_X> using Sums = float[3 * TAPS_X][2][4];

template <class PlaneX, class PlaneDy, int ROWS>
__device__ void add_plane(Sums<PlaneX::TAPS_X> &sums, float (&bias_sums)[2][4], const char *x,
                          const char *dy, bool with_bias) {
    int lane = threadIdx.x % 32;
    const unsigned ones[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
    x += 16 * (lane % 8 + lane / 16 * 8) + lane / 8 % 2 * PlaneX::PITCH;
    dy += 16 * (lane % 16) + lane / 16 * PlaneDy::PITCH;
    unsigned b[3][4];  // the last three rows of dy
#pragma unroll
    for (int row = 0; row < ROWS + 2; ++row) {
        if (row < ROWS) {
            load_transposed(b[row % 3], dy + 16 * WIDTH * row);
            if (with_bias) {
                multiply_add(bias_sums[0], ones, b[row % 3][0], b[row % 3][1]);
                multiply_add(bias_sums[1], ones, b[row % 3][2], b[row % 3][3]);
            }
        }
#pragma unroll
        for (int kx = 0; kx < PlaneX::TAPS_X; ++kx) {
            unsigned a[4];
            load_transposed(a, x + 16 * (row * (WIDTH + 2) + kx));
#pragma unroll
            for (int ky = 0; ky < 3; ++ky) {
                int y = row - ky;
                if (y < 0 || y >= ROWS) continue;
                float(&sum)[2][4] = sums[ky * PlaneX::TAPS_X + kx];
                multiply_add(sum[0], a, b[y % 3][0], b[y % 3][1]);
                multiply_add(sum[1], a, b[y % 3][2], b[y % 3][3]);
            }
        }
    }
}

// Rows of the matrix are c, of which there are `rows` to a tap.
__device__ inline void store(const float (&sums)[2][4], float *matrix, int first, int rows,
                             int outputs, int first_output) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        int row = first + lane / 4 + i / 2 * 8, column = first_output + lane % 4 * 2 + i % 2 * 8;
        if (row >= rows) continue;
        *reinterpret_cast<uint2 *>(matrix + (Index)row * outputs + column) = {
            __float_as_uint(sums[i % 2][i / 2 * 2]), __float_as_uint(sums[i % 2][i / 2 * 2 + 1])};
    }
}

template <int CHANNELS, int DEPTH>
__device__ void weight_gradient(const bfloat16 *x, const bfloat16 *dy, float *partial,
                                const Problem &p) {
    constexpr int THREADS = 32 * WARPS<DEPTH>, ROWS = DEPTH == 1 ? HEIGHT / WARPS<DEPTH> : HEIGHT;
    constexpr int BORDER = DEPTH / 2, RING = DEPTH + 1;
    using PlaneX = Tile<CHANNELS, HEIGHT + 2, WIDTH + 2>;
    using PlaneDy = Tile<16, HEIGHT, WIDTH>;
    char *ring_x = reinterpret_cast<char *>(shared_memory), *ring_dy = ring_x + RING * PlaneX::BYTES;
    int first_o = blockIdx.y % (p.outputs / 16) * 16, first_c = blockIdx.y / (p.outputs / 16) * 16;
    int warp = threadIdx.x / 32, kz = DEPTH == 1 ? 0 : warp, row = DEPTH == 1 ? warp * ROWS : 0;
    bool with_bias = first_c == 0 && kz == 0;

    Sums<PlaneX::TAPS_X> sums = {};
    float bias_sums[2][4] = {};
    Segment s;
    for (Walk walk(p, HEIGHT); walk.next(s);) {
        auto copy_x = [&](int z) {
            PlaneX::copy(ring_x + (z + BORDER) % RING * PlaneX::BYTES, x + first_c, p.inputs, s, z,
                         HALO, p, THREADS);
        };
        auto copy_dy = [&](int z) {
            PlaneDy::copy(ring_dy + z % 2 * PlaneDy::BYTES, dy + first_o, p.outputs, s, z, 0, p,
                          THREADS);
        };
        __syncthreads();  // the planes of the segment before this one have been used
        for (int z = s.begin - BORDER; z <= s.begin + BORDER; ++z) copy_x(z);
        copy_dy(s.begin);
        close_group();
        for (int z = s.begin; z < s.end; ++z) {
            wait_for_groups<0>();
            __syncthreads();  // all copies have come, and the oldest planes have been used
            if (z + 1 < s.end) {
                copy_x(z + 1 + BORDER);
                copy_dy(z + 1);
                close_group();
            }
            add_plane<PlaneX, PlaneDy, ROWS>(
                sums, bias_sums, ring_x + (z + kz) % RING * PlaneX::BYTES + 16 * row * (WIDTH + 2),
                ring_dy + z % 2 * PlaneDy::BYTES + 16 * row * WIDTH, with_bias);
        }
    }

    int part = DEPTH == 1 ? blockIdx.x * WARPS<DEPTH> + warp : blockIdx.x;
    int rows = PlaneX::PAIRS ? 12 : p.inputs, taps = 3 * PlaneX::TAPS_X;  // of one warp
    float *matrix = partial + part * ((Index)DEPTH * taps * rows + 1) * p.outputs;
    for (int tap = 0; tap < taps; ++tap)
        store(sums[tap], matrix + (Index)(kz * taps + tap) * rows * p.outputs, first_c, rows,
              p.outputs, first_o);
    if (with_bias)  // all rows of the product are the same
        store(bias_sums, matrix + (Index)DEPTH * taps * rows * p.outputs, 0, 1, p.outputs, first_o);
}

}  // namespace gradient

extern "C" __global__ void __launch_bounds__(correlation::THREADS, 3)
correlate_4_2d(const bfloat16 *x, const unsigned *weight, const float *bias, bfloat16 *y, Problem p) {
    correlation::correlate<4, 1>(x, weight, bias, y, p);
}

extern "C" __global__ void __launch_bounds__(correlation::THREADS, 3)
correlate_4_3d(const bfloat16 *x, const unsigned *weight, const float *bias, bfloat16 *y, Problem p) {
    correlation::correlate<4, 3>(x, weight, bias, y, p);
}

extern "C" __global__ void __launch_bounds__(correlation::THREADS, 3)
correlate_16_2d(const bfloat16 *x, const unsigned *weight, const float *bias, bfloat16 *y, Problem p) {
    correlation::correlate<16, 1>(x, weight, bias, y, p);
}

extern "C" __global__ void __launch_bounds__(correlation::THREADS, 3)
correlate_16_3d(const bfloat16 *x, const unsigned *weight, const float *bias, bfloat16 *y, Problem p) {
    correlation::correlate<16, 3>(x, weight, bias, y, p);
}

extern "C" __global__ void __launch_bounds__(correlation::THREADS, 3)
correlate_32_2d(const bfloat16 *x, const unsigned *weight, const float *bias, bfloat16 *y, Problem p) {
    correlation::correlate<32, 1>(x, weight, bias, y, p);
}

extern "C" __global__ void __launch_bounds__(correlation::THREADS, 3)
correlate_32_3d(const bfloat16 *x, const unsigned *weight, const float *bias, bfloat16 *y, Problem p) {
    correlation::correlate<32, 3>(x, weight, bias, y, p);
}

extern "C" __global__ void __launch_bounds__(128, 4)
weight_gradient_4_2d(const bfloat16 *x, const bfloat16 *dy, float *partial, Problem p) {
    gradient::weight_gradient<4, 1>(x, dy, partial, p);
}

extern "C" __global__ void __launch_bounds__(96, 4)
weight_gradient_4_3d(const bfloat16 *x, const bfloat16 *dy, float *partial, Problem p) {
    gradient::weight_gradient<4, 3>(x, dy, partial, p);
}

extern "C" __global__ void __launch_bounds__(128, 4)
weight_gradient_16_2d(const bfloat16 *x, const bfloat16 *dy, float *partial, Problem p) {
    gradient::weight_gradient<16, 1>(x, dy, partial, p);
}

extern "C" __global__ void __launch_bounds__(96, 4)
weight_gradient_16_3d(const bfloat16 *x, const bfloat16 *dy, float *partial, Problem p) {
    gradient::weight_gradient<16, 3>(x, dy, partial, p);
}
