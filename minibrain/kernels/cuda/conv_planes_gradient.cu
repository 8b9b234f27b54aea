// Weight gradient of a convolution with 3x3x3 or 3x3 taps, stride 1 and "same" padding: bfloat16
// arrays, float32 sums.
//
//   weight_gradient   dw[k,c,o] = sum_{n,p} x[n, p + k - 1, c] dy[n,p,o],  dbias[o] = sum dy[n,p,o]
//
// A block sums the products of 16 channels of x (or of 4, at 4 taps along x) and 16 of dy over its
// share of the planes, for all taps. What the products sum over are voxels, so both operands are
// transposed while they are loaded. In three dimensions warp kz takes plane z + kz - 1 of x and
// plane z of dy; in two, every warp has two rows and partial sums of its own. dbias is one more row
// of the matrix: the product of ones and dy. A pending x is activated as in conv_planes.cu.
//
// Writes partial[part][tap][c][o] and, behind the last tap, [o] of dbias; reduce.cu adds the parts,
// in order. Grid: (parts, tiles of 16 x 16 channels). Moves x once for every 16 outputs (1.41 times
// with the halo, mostly from L2), dy once for every 16 inputs, the parts once. Architectures:
// sm_80, sm_90. Predicted for an H200: 158 registers and 32 KB of shared memory, so 4 blocks on a
// multiprocessor, 3 in two dimensions. 16 to 16 channels at 2x160x160x128: 0.45 GB, 91 GFLOP, 0.25
// ms at an assumed 370 TFLOP/s.
#include "planes.cuh"

constexpr int HEIGHT = 8;

template <int DEPTH> constexpr int WARPS = DEPTH == 1 ? 4 : DEPTH;
constexpr int THREADS_2D = 32 * WARPS<1>, THREADS_3D = 32 * WARPS<3>;

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
__device__ void weight_gradient(const Input &x, const bfloat16 *dy, float *partial,
                                const Problem &p) {
    constexpr int THREADS = 32 * WARPS<DEPTH>, ROWS = DEPTH == 1 ? HEIGHT / WARPS<DEPTH> : HEIGHT;
    constexpr int BORDER = DEPTH / 2, RING = DEPTH + 1;
    using PlaneX = Tile<CHANNELS, HEIGHT + 2, WIDTH + 2, THREADS>;
    using PlaneDy = Tile<16, HEIGHT, WIDTH, THREADS, 0>;
    char *ring_x = reinterpret_cast<char *>(shared_memory);
    char *ring_dy = ring_x + RING * PlaneX::BYTES;
    int *places_x = reinterpret_cast<int *>(ring_dy + 2 * PlaneDy::BYTES);
    int *places_dy = places_x + PlaneX::PLACES;
    int first_o = blockIdx.y % (p.outputs / 16) * 16, first_c = blockIdx.y / (p.outputs / 16) * 16;
    int warp = threadIdx.x / 32, kz = DEPTH == 1 ? 0 : warp, row = DEPTH == 1 ? warp * ROWS : 0;
    bool with_bias = first_c == 0 && kz == 0;
    Part part_x = x.part(first_c), part_dy = {dy + first_o, {}, first_o, p.outputs};

    Sums<PlaneX::TAPS_X> sums = {};
    float bias_sums[2][4] = {};
    Segment s;
    for (Walk walk(p, HEIGHT); walk.next(s);) {
        auto copy_x = [&](int z) {
            PlaneX::copy(ring_x + (z + BORDER) % RING * PlaneX::BYTES, places_x, part_x, s, z, p);
        };
        auto activate_x = [&](int z) {
            PlaneX::activate(ring_x + (z + BORDER) % RING * PlaneX::BYTES, places_x, part_x,
                             DEPTH == 1 ? z : s.sample, s, z, p);
        };
        auto copy_dy = [&](int z) {
            PlaneDy::copy(ring_dy + z % 2 * PlaneDy::BYTES, places_dy, part_dy, s, z, p);
        };
        PlaneX::locate(places_x, s, p);
        PlaneDy::locate(places_dy, s, p);
        __syncthreads();  // all places are known, and the planes of the last segment have been used
        for (int z = s.begin - BORDER; z <= s.begin + BORDER; ++z) copy_x(z);
        copy_dy(s.begin);
        close_group();
        int written = s.begin - BORDER;  // all planes before this one, or they were not pending
        for (int z = s.begin; z < s.end; ++z) {
            wait_for_groups<0>();
            for (; written <= z + BORDER; ++written) activate_x(written);
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

extern "C" __global__ void __launch_bounds__(THREADS_2D, 3)
weight_gradient_4_2d(const bfloat16 *a, const float *a_lines, Dropout dropout, const bfloat16 *b,
                     const float *b_lines, Index a_channels, const bfloat16 *dy, float *partial,
                     Problem p) {
    weight_gradient<4, 1>({a, b, a_lines, b_lines, dropout, int(a_channels), p.inputs}, dy,
                          partial, p);
}

extern "C" __global__ void __launch_bounds__(THREADS_3D, 4)
weight_gradient_4_3d(const bfloat16 *a, const float *a_lines, Dropout dropout, const bfloat16 *b,
                     const float *b_lines, Index a_channels, const bfloat16 *dy, float *partial,
                     Problem p) {
    weight_gradient<4, 3>({a, b, a_lines, b_lines, dropout, int(a_channels), p.inputs}, dy,
                          partial, p);
}

extern "C" __global__ void __launch_bounds__(THREADS_2D, 3)
weight_gradient_16_2d(const bfloat16 *a, const float *a_lines, Dropout dropout, const bfloat16 *b,
                     const float *b_lines, Index a_channels, const bfloat16 *dy, float *partial,
                     Problem p) {
    weight_gradient<16, 1>({a, b, a_lines, b_lines, dropout, int(a_channels), p.inputs}, dy,
                          partial, p);
}

extern "C" __global__ void __launch_bounds__(THREADS_3D, 4)
weight_gradient_16_3d(const bfloat16 *a, const float *a_lines, Dropout dropout, const bfloat16 *b,
                     const float *b_lines, Index a_channels, const bfloat16 *dy, float *partial,
                     Problem p) {
    weight_gradient<16, 3>({a, b, a_lines, b_lines, dropout, int(a_channels), p.inputs}, dy,
                          partial, p);
}
