// Tiles of planes: how conv_planes.cu and conv_planes_gradient.cu walk through a volume.
//
// With few channels memory and caches are the limit, so a block goes from plane to plane: a tile of
// a plane enters shared memory once and then meets all taps. In two dimensions the samples are the
// planes of one volume.
#include "octets.cuh"

constexpr int WIDTH = 16, HALO = 1;  // of a tile along x, and voxels around it

struct Problem {
    int samples, depth, height, width, inputs, outputs;
    int share;  // planes of tiles that a block works on, one after the other

    __device__ Index voxels_before(int sample, int z) const {
        return ((Index)sample * depth + z) * height * width;
    }
};

// Some channels of an array, which may be pending.
struct Part {
    const bfloat16 *x;  // the first of the channels
    Pending pending;
    int channel, channels;  // number of the first one in the array, and of all
};

// What is convolved: one array, or two whose channels lie one after the other.
struct Input {
    const bfloat16 *a, *b;
    const float *a_lines, *b_lines;
    Dropout dropout;  // where there are two, that of neither
    int a_channels, channels;

    // The channels from this one on are never so many that they lie in both.
    __device__ Part part(int channel) const {
        if (channel < a_channels) return {a + channel, {a_lines, dropout}, channel, a_channels};
        channel -= a_channels;
        return {b + channel, {b_lines, dropout}, channel, channels - a_channels};
    }
};

// Some planes [begin, end) of one of a sample's columns of tiles, where (y, x) is the first voxel.
struct Segment {
    int sample, column, y, x, begin, end;
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
        segment = {column / across / down, column % (across * down), column / across % down * rows,
                   column % across * WIDTH, begin, begin + count};
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

    // Of piece i: where it lies in the array, or -1 outside the volume. The tile is at `corner` of
    // plane z, with `halo` voxels around it.
    static __device__ Index source(int i, int channels, const Segment &corner, int z, int halo,
                                   const Problem &p) {
        int voxel = i / OCTETS, piece = i % OCTETS;
        int row = corner.y - halo + voxel / COLUMNS;
        int column = corner.x - halo + voxel % COLUMNS + (PAIRS ? piece : 0);
        if (z < 0 || z >= p.depth || row < 0 || row >= p.height || column < 0 || column >= p.width)
            return -1;
        Index at = p.voxels_before(corner.sample, z) + row * p.width + column;
        return at * channels + (PAIRS ? 0 : 8 * piece);
    }

    static __device__ int place(int i) {
        int voxel = i / OCTETS, piece = i % OCTETS;
        return PAIRS ? 16 * voxel + 8 * piece : piece * PITCH + 16 * voxel;
    }

    // Start to copy; zeros outside.
    static __device__ void copy(char *tile, const Part &part, const Segment &corner, int z,
                                int halo, const Problem &p, int threads) {
#pragma unroll 1
        for (int i = threadIdx.x; i < VOXELS * OCTETS; i += threads) {
            Index at = source(i, part.channels, corner, z, halo, p);
            const bfloat16 *from = part.x + max(at, (Index)0);
            if (PAIRS) copy_8_bytes(tile + place(i), from, at >= 0);
            else copy_16_bytes(tile + place(i), from, at >= 0);
        }
    }

    // What this thread has copied becomes what is pending; zeros outside stay zeros.
    static __device__ void activate(char *tile, const Part &part, int sample,
                                    const Segment &corner, int z, int halo, const Problem &p,
                                    int threads) {
        if (PAIRS || !part.pending.lines) return;
        int line = sample * part.channels + part.channel;
#pragma unroll 1
        for (int i = threadIdx.x; i < VOXELS * OCTETS; i += threads) {
            Index at = source(i, part.channels, corner, z, halo, p);
            if (at < 0) continue;
            activate_octet(tile + place(i), part.pending, at + part.channel, line + i % OCTETS * 8);
        }
    }
};
