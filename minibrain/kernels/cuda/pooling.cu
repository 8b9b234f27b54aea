// Max-pool, nearest upsampling, their gradients, and concatenation, whose gradients are views.
// Gradients are gathered, in the order of the taps, so that nobody adds to what somebody else
// writes. Threads go over the voxels that they write as common.cuh says, in max_pool_backward over
// cells of them, one each; with WIDTH channels, 8 if the channels are a multiple of it. Forward
// they take what is pending.
//
// Moves, per element written: max_pool_forward K values of x, each from memory once if windows do
// not overlap, and writes besides y a byte, the winner's number; max_pool_backward the dy and
// winners of the windows that hold it, and dskip, which is added before the sum is rounded; the
// others one value (upsample_backward: the values of its block). Architectures: sm_80, sm_90.
#include "geometry.cuh"

using Number = unsigned char;  // of a tap

// visit(tap, voxel) for all taps that meet a voxel of the input at an output position.
template <class Visit>
__device__ void each_tap(const Position &output, const Geometry &g, Visit visit) {
    auto along = [&](int a, int tap) { return input_along(a, output.axis[a], tap, g); };
    for (int i = 0; i < g.kernel[0]; ++i) {
        int z = along(0, i);
        if (z < 0) continue;
        for (int j = 0; j < g.kernel[1]; ++j) {
            int y = along(1, j);
            if (y < 0) continue;
            for (int k = 0; k < g.kernel[2]; ++k) {
                int x = along(2, k);
                if (x < 0) continue;
                visit((i * g.kernel[1] + j) * g.kernel[2] + k, number_of({z, y, x}, g.input));
            }
        }
    }
}

// A cell is the part of the input from where a window begins to where the next one does, along each
// axis. Cells do not overlap, whatever windows do, and who has one can tell without a division
// which windows hold its voxels: that of the cell's own number, and some before it.
// visit(position) for all voxels of a cell.
template <class Visit>
__device__ void each_voxel_of(const Position &cell, const Geometry &g, Visit visit) {
    int begin[3], end[3];
    for (int a = 0; a < 3; ++a) {
        int first = g.stride[a] * cell.axis[a] - g.padding[a];
        begin[a] = max(first, 0), end[a] = first + min(g.stride[a], g.input[a] - first);
    }
    for (int z = begin[0]; z < end[0]; ++z)
        for (int y = begin[1]; y < end[1]; ++y)
            for (int x = begin[2]; x < end[2]; ++x) visit(Position{z, y, x});
}

// visit(tap, voxel) for all windows, which are voxels of the output, that hold a position of a
// cell, and the tap that meets it there; in the order of taps.
template <class Visit>
__device__ void each_window(const Position &p, const Position &cell, const Geometry &g,
                            Visit visit) {
    auto last = [&](int a) { return min(cell.axis[a], g.output[a] - 1); };
    auto tap_in = [&](int a, int window) {  // too large behind the window; -1 between two taps
        int place = p.axis[a] + g.padding[a] - g.stride[a] * window, apart = g.dilation[a];
        if (apart == 1 || place > apart * (g.kernel[a] - 1)) return place;
        return place % apart ? -1 : place / apart;
    };
    for (int z = last(0); z >= 0; --z) {
        int i = tap_in(0, z);
        if (i >= g.kernel[0]) break;
        for (int y = last(1); i >= 0 && y >= 0; --y) {
            int j = tap_in(1, y);
            if (j >= g.kernel[1]) break;
            for (int x = last(2); j >= 0 && x >= 0; --x) {
                int k = tap_in(2, x);
                if (k >= g.kernel[2]) break;
                if (k < 0) continue;
                visit((i * g.kernel[1] + j) * g.kernel[2] + k, number_of({z, y, x}, g.output));
            }
        }
    }
}

template <int WIDTH>
__device__ void max_pool_forward(const Real *x, const Pending &pending, Real *y, Number *winner,
                                 const Geometry &g, Index voxels, int channels) {
    int channel = own_channel<WIDTH>();
    if (channel >= channels) return;
    Lines<WIDTH> own = pending.read<WIDTH>((Index)blockIdx.z * channels + channel);
    Index sample = (Index)blockIdx.z * g.input_voxels();
    each_voxel(voxels, [&](Index number) {
        float largest[WIDTH];
        Several<WIDTH, Number> first = {};  // of equal values the first one wins
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) largest[j] = __uint_as_float(0xff800000);  // -infinity
        each_tap(position_of(number, g.output), g, [&](int tap, int voxel) {
            Index at = (sample + voxel) * channels + channel;
            Several<WIDTH> values = several<WIDTH>(x + at);
            pending.activate(values, at, own);
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) {
                float value = values[j];
                if (value > largest[j]) first[j] = tap;
                largest[j] = larger(value, largest[j]);
            }
        });
        Index i = (blockIdx.z * voxels + number) * channels + channel;
        write(y + i, largest);
        several<WIDTH>(winner + i) = first;
    });
}

extern "C" __global__ void max_pool_forward_1(const Real *x, const float *lines, Dropout dropout,
                                              Real *y, Number *winner, Geometry geometry,
                                              Index voxels, Index channels) {
    max_pool_forward<1>(x, {lines, dropout}, y, winner, geometry, voxels, channels);
}

extern "C" __global__ void max_pool_forward_8(const Real *x, const float *lines, Dropout dropout,
                                              Real *y, Number *winner, Geometry geometry,
                                              Index voxels, Index channels) {
    max_pool_forward<8>(x, {lines, dropout}, y, winner, geometry, voxels, channels);
}

template <int WIDTH>
__device__ void max_pool_backward(const Real *dy, const Number *winner, const View &dskip, Real *dx,
                                  const Geometry &g, Index cells, int channels) {
    int channel = own_channel<WIDTH>(), size[3];
    Index number = blockIdx.x * (Index)blockDim.y + threadIdx.y;
    if (channel >= channels || number >= cells) return;
    for (int a = 0; a < 3; ++a) size[a] = (g.input[a] + g.padding[a] - 1) / g.stride[a] + 1;
    Position cell = position_of(number, size);
    each_voxel_of(cell, g, [&](const Position &p) {
        float sums[WIDTH] = {};
        each_window(p, cell, g, [&](int tap, int window) {
            Index from = ((Index)blockIdx.z * g.output_voxels() + window) * channels + channel;
            Several<WIDTH> gradient = several<WIDTH>(dy + from);
            Several<WIDTH, Number> won = several<WIDTH>(winner + from);
#pragma unroll
            for (int j = 0; j < WIDTH; ++j)
                if (won[j] == tap) sums[j] += gradient[j];
        });
        Index voxel = (Index)blockIdx.z * g.input_voxels() + number_of(p, g.input);
        if (dskip.first) {
            Several<WIDTH> values = dskip.read<WIDTH>(voxel, channel);
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) sums[j] += values[j];
        }
        write(dx + voxel * channels + channel, sums);
    });
}

extern "C" __global__ void max_pool_backward_1(const Real *dy, const Number *winner,
                                               const Real *dskip, Index pitch, Real *dx,
                                               Geometry geometry, Index cells, Index channels) {
    max_pool_backward<1>(dy, winner, {dskip, pitch}, dx, geometry, cells, channels);
}

extern "C" __global__ void max_pool_backward_8(const Real *dy, const Number *winner,
                                               const Real *dskip, Index pitch, Real *dx,
                                               Geometry geometry, Index cells, Index channels) {
    max_pool_backward<8>(dy, winner, {dskip, pitch}, dx, geometry, cells, channels);
}

// The geometry of upsampling is that of a pooling back from y, its input, to x: kernel = stride.
template <int WIDTH>
__device__ void upsample_forward(const Real *x, Real *y, const Geometry &g, Index voxels,
                                 int channels) {
    int channel = own_channel<WIDTH>();
    if (channel >= channels) return;
    Index sample = (Index)blockIdx.z * g.output_voxels();
    each_voxel(voxels, [&](Index number) {
        Position p = position_of(number, g.input);
        for (int a = 0; a < 3; ++a) p.axis[a] /= g.stride[a];
        Index from = (sample + number_of(p, g.output)) * channels + channel;
        number += blockIdx.z * voxels;
        several<WIDTH>(y + number * channels + channel) = several<WIDTH>(x + from);
    });
}

extern "C" __global__ void upsample_forward_1(const Real *x, Real *y, Geometry geometry,
                                              Index voxels, Index channels) {
    upsample_forward<1>(x, y, geometry, voxels, channels);
}

extern "C" __global__ void upsample_forward_8(const Real *x, Real *y, Geometry geometry,
                                              Index voxels, Index channels) {
    upsample_forward<8>(x, y, geometry, voxels, channels);
}

template <int WIDTH>
__device__ void upsample_backward(const Real *dy, Real *dx, const Geometry &g, Index voxels,
                                  int channels) {
    int channel = own_channel<WIDTH>();
    if (channel >= channels) return;
    Index sample = (Index)blockIdx.z * g.input_voxels();
    each_voxel(voxels, [&](Index number) {
        float sums[WIDTH] = {};
        each_tap(position_of(number, g.output), g, [&](int, int voxel) {
            Several<WIDTH> gradient = several<WIDTH>(dy + (sample + voxel) * channels + channel);
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) sums[j] += gradient[j];
        });
        number += blockIdx.z * voxels;
        write(dx + number * channels + channel, sums);
    });
}

extern "C" __global__ void upsample_backward_1(const Real *dy, Real *dx, Geometry geometry,
                                               Index voxels, Index channels) {
    upsample_backward<1>(dy, dx, geometry, voxels, channels);
}

extern "C" __global__ void upsample_backward_8(const Real *dy, Real *dx, Geometry geometry,
                                               Index voxels, Index channels) {
    upsample_backward<8>(dy, dx, geometry, voxels, channels);
}

template <int WIDTH>
__device__ void concat_forward(const Real *a, const Pending &pending_a, const Real *b,
                               const Pending &pending_b, int a_channels, Real *y, Index voxels,
                               int channels) {
    int channel = own_channel<WIDTH>();
    if (channel >= channels) return;
    bool of_a = channel < a_channels;
    const Real *x = of_a ? a : b;
    Pending pending = of_a ? pending_a : pending_b;
    int own_channels = of_a ? a_channels : channels - a_channels;
    int c = of_a ? channel : channel - a_channels;
    Lines<WIDTH> own = pending.read<WIDTH>((Index)blockIdx.z * own_channels + c);
    each_voxel(voxels, [&](Index voxel) {
        voxel += blockIdx.z * voxels;
        Index at = voxel * own_channels + c;
        Several<WIDTH> values = several<WIDTH>(x + at);
        pending.activate(values, at, own);
        several<WIDTH>(y + voxel * channels + channel) = values;
    });
}

extern "C" __global__ void concat_forward_1(const Real *a, const float *a_lines, Dropout a_dropout,
                                            const Real *b, const float *b_lines, Dropout b_dropout,
                                            Index a_channels, Real *y, Index voxels,
                                            Index channels) {
    concat_forward<1>(a, {a_lines, a_dropout}, b, {b_lines, b_dropout}, a_channels, y, voxels,
                      channels);
}

extern "C" __global__ void concat_forward_8(const Real *a, const float *a_lines, Dropout a_dropout,
                                            const Real *b, const float *b_lines, Dropout b_dropout,
                                            Index a_channels, Real *y, Index voxels,
                                            Index channels) {
    concat_forward<8>(a, {a_lines, a_dropout}, b, {b_lines, b_dropout}, a_channels, y, voxels,
                      channels);
}
