// Sums in two stages: parts of it, block by block, and then the parts, in order.
//
// add_parts_*: partial (rows, parts, length) -> sums (rows, length), each by a column of threads,
// see parts.cuh. Moves the partial sums once; they are few. Architectures: sm_80, sm_90.
#include "parts.cuh"

template <class From, class To>
__device__ void add_parts(const From *partial, To *sums, Index rows, Index parts, Index length) {
    Index i = global_column();
    bool here = i < rows * length;
    partial += i / length * parts * length + i % length;
    double sum = sum_of_parts(partial, parts, length, here);
    if (here && threadIdx.y == 0) sums[i] = sum;
}

extern "C" __global__ void add_parts_to_double(const double *partial, double *sums, Index rows,
                                               Index parts, Index length) {
    add_parts(partial, sums, rows, parts, length);
}

extern "C" __global__ void add_parts_to_float(const double *partial, float *sums, Index rows,
                                              Index parts, Index length) {
    add_parts(partial, sums, rows, parts, length);
}

extern "C" __global__ void add_float_parts(const float *partial, float *sums, Index rows,
                                           Index parts, Index length) {
    add_parts(partial, sums, rows, parts, length);
}

// sum_channels: x (groups, voxels, channels) -> partial (1, groups, parts, channels). Reads x once.
extern "C" __global__ void sum_channels(const Real *x, Index voxels, Index channels,
                                        double *partial) {
    x += blockIdx.z * voxels * channels + own_channel<1>();
    auto load = [&](Index voxel) { return x[voxel * channels]; };
    auto add = [](Index, Real value, float *sums) { sums[0] += value; };
    sum_over_voxels<1>(voxels, channels, partial, load, add);
}

// The same in double alone, for what are sums already, in float: where those of squares are exact,
// what is left of their difference from the square of a sum is exact, too.
extern "C" __global__ void sum_sums(const float *x, Index voxels, Index channels, double *partial) {
    x += blockIdx.z * voxels * channels + own_channel<1>();
    auto load = [&](Index voxel) { return x[voxel * channels]; };
    auto add = [](Index, float value, double *sums) { sums[0] += value; };
    sum_over_voxels<1, 1, double>(voxels, channels, partial, load, add);
}
