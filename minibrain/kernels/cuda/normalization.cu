// Instance and batch norm, and what comes after it in a network. Arrays are seen as (groups, voxels,
// channels): a group is what shares statistics, one sample in instance norm, the whole batch in
// batch norm. Of any parameter or statistic, `line` is group * channels + channel.
//
//   forward    sum_centred, finish_statistics -> mean, variance, inv_std; then normalize, or the
//              activation is pending until somebody writes it
//   backward   sum_gradients -> dbeta, dgamma and the two means; normalize_backward
//
// With ReLU and dropout, backward finds out from x once more who passed them.
//
// Moves: forward x once; normalize and write_pending x and y once; backward x and dy twice and dx
// once. The sums are cut as sum_over_voxels says; elsewhere a thread writes what it computes, WIDTH
// channels of a voxel: 8, if the channels are a multiple of it.
#include "parts.cuh"

// Unless who wrote x has summed it already, see saved.Summed, whose sums have no x0 taken off them:
// quantity 0: sum of x - x0; 1: of (x - x0)^2, where x0 is the group's first value. It cannot be
// further from the mean than sqrt(voxels) standard deviations, as its own square is among those that
// make up the variance: so of the 53 bits of the sums no more cancel than log2(voxels).
template <int WIDTH>
__device__ void sum_centred(const Real *x, Index voxels, Index channels, double *partial) {
    x += blockIdx.z * voxels * channels;
    auto add = [&](Index voxel, int channel, double *sums) {
        using Values = Several<WIDTH>;
        Values values = *reinterpret_cast<const Values *>(x + voxel * channels + channel);
        Values first = *reinterpret_cast<const Values *>(x + channel);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            double centred = float(values[i]) - float(first[i]);
            sums[i] += centred;
            sums[WIDTH + i] += centred * centred;
        }
    };
    sum_over_voxels<2, WIDTH>(voxels, channels, partial, add);
}

extern "C" __global__ void sum_centred_1(const Real *x, Index voxels, Index channels,
                                         double *partial) {
    sum_centred<1>(x, voxels, channels, partial);
}

extern "C" __global__ void sum_centred_8(const Real *x, Index voxels, Index channels,
                                         double *partial) {
    sum_centred<8>(x, voxels, channels, partial);
}

// The parts of these sums are added, and a pending activation gets its lines; see parts.cuh.
extern "C" __global__ void finish_statistics(const Real *x, const double *partial, Index groups,
                                             Index parts, Index voxels, Index channels, double eps,
                                             const float *gamma, const float *beta, float *mean,
                                             float *variance, float *inv_std, float *lines) {
    Index line = global_column(), group = line / channels, channel = line % channels;
    bool here = group < groups;
    partial += group * parts * channels + channel;
    double sum = sum_of_parts(partial, parts, channels, here);
    partial += groups * parts * channels;
    double squares = sum_of_parts(partial, parts, channels, here);
    if (!here || threadIdx.y > 0) return;
    mean[line] = (x ? float(x[group * voxels * channels + channel]) : 0) + sum / voxels;
    variance[line] = (squares - sum * sum / voxels) / voxels;
    inv_std[line] = 1 / sqrtf(variance[line] + float(eps));
    if (!lines) return;
    lines[3 * line] = mean[line];
    lines[3 * line + 1] = inv_std[line] * gamma[channel];
    lines[3 * line + 2] = beta[channel];
}

extern "C" __global__ void normalize(const Real *x, const float *gamma, const float *beta,
                                     const float *mean, const float *inv_std, Real *y, Index size,
                                     Index voxels, Index channels) {
    Index i = global_thread();
    if (i >= size) return;
    Index channel = i % channels, line = i / channels / voxels * channels + channel;
    y[i] = (x[i] - mean[line]) * inv_std[line] * gamma[channel] + beta[channel];
}

template <int WIDTH>
__device__ void write_pending(const Real *raw, const Pending &pending, Real *y, Index size,
                              Index voxels, Index channels) {
    using Values = Several<WIDTH>;
    Index i = WIDTH * global_thread();
    if (i >= size) return;
    Values values = *reinterpret_cast<const Values *>(raw + i);
    pending.activate(values, i, i / channels / voxels * channels + i % channels);
    *reinterpret_cast<Values *>(y + i) = values;
}

extern "C" __global__ void write_pending_1(const Real *raw, const float *lines, Dropout dropout,
                                           Real *y, Index size, Index voxels, Index channels) {
    write_pending<1>(raw, {lines, dropout}, y, size, voxels, channels);
}

extern "C" __global__ void write_pending_8(const Real *raw, const float *lines, Dropout dropout,
                                           Real *y, Index size, Index voxels, Index channels) {
    write_pending<8>(raw, {lines, dropout}, y, size, voxels, channels);
}

// WIDTH values of x̂, and the gradients that come through ReLU and dropout.
template <int WIDTH> struct Upstream {
    float xhat[WIDTH], gradient[WIDTH];

    __device__ Upstream(const Several<WIDTH> &dy, const Real *x, const Pending &pending,
                        const float *mean, const float *inv_std, Index i, Index line) {
        using Values = Several<WIDTH>;
        Values values = *reinterpret_cast<const Values *>(x + i), upstream = dy;
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            xhat[j] = (values[j] - mean[line + j]) * inv_std[line + j];
            gradient[j] = upstream[j];
        }
        if (!pending.lines) return;
        float normalized[WIDTH];
        pending.normalize(normalized, values, line);
        DropoutFactors factors(pending.dropout, i / 8);
        int first = WIDTH == 8 ? 0 : i % 8;
#pragma unroll
        for (int j = 0; j < WIDTH; ++j)
            gradient[j] = normalized[j] > 0 ? gradient[j] * factors[first + j] : 0;
    }
};

// Quantity 0: sum of dy; 1: sum of dy * xhat.
template <int WIDTH>
__device__ void sum_gradients(const View &dy, const Real *x, const Pending &pending,
                              const float *mean, const float *inv_std, Index voxels,
                              Index channels, double *partial) {
    Index group = blockIdx.z * voxels;
    auto add = [&](Index voxel, int channel, double *sums) {
        voxel += group;
        Upstream<WIDTH> up(dy.read<WIDTH>(voxel, channel), x, pending, mean, inv_std,
                           voxel * channels + channel, blockIdx.z * channels + channel);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            sums[j] += up.gradient[j];
            sums[WIDTH + j] += up.gradient[j] * up.xhat[j];
        }
    };
    sum_over_voxels<2, WIDTH>(voxels, channels, partial, add);
}

extern "C" __global__ void sum_gradients_1(const Real *dy, Index pitch, const Real *x,
                                           const float *lines, Dropout dropout, const float *mean,
                                           const float *inv_std, Index voxels, Index channels,
                                           double *partial) {
    sum_gradients<1>({dy, pitch}, x, {lines, dropout}, mean, inv_std, voxels, channels, partial);
}

extern "C" __global__ void sum_gradients_8(const Real *dy, Index pitch, const Real *x,
                                           const float *lines, Dropout dropout, const float *mean,
                                           const float *inv_std, Index voxels, Index channels,
                                           double *partial) {
    sum_gradients<8>({dy, pitch}, x, {lines, dropout}, mean, inv_std, voxels, channels, partial);
}

// dx = inv_std * gamma * (dy - mean(dy) - xhat * mean(dy * xhat)); without `sums` the statistics
// were given, and nothing flows through them.
template <int WIDTH>
__device__ void normalize_backward(const View &dy, const Real *x, const Pending &pending,
                                   const float *mean, const float *inv_std, const float *gamma,
                                   const double *sums, Real *dx, Index size, Index voxels,
                                   Index channels) {
    Index i = WIDTH * global_thread();
    if (i >= size) return;
    Index channel = i % channels, line = i / channels / voxels * channels + channel;
    Index lines = size / voxels;
    Upstream<WIDTH> up(dy.read<WIDTH>(i / channels, channel), x, pending, mean, inv_std, i, line);
    Several<WIDTH> values;
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) {
        float through_mean = 0, through_variance = 0;
        if (sums) {
            through_mean = sums[line + j] / voxels;
            through_variance = up.xhat[j] * float(sums[lines + line + j] / voxels);
        }
        float dxhat = up.gradient[j] - through_mean - through_variance;
        values[j] = dxhat * gamma[channel + j] * inv_std[line + j];
    }
    *reinterpret_cast<Several<WIDTH> *>(dx + i) = values;
}

extern "C" __global__ void normalize_backward_1(const Real *dy, Index pitch, const Real *x,
                                                const float *lines, Dropout dropout,
                                                const float *mean, const float *inv_std,
                                                const float *gamma, const double *sums, Real *dx,
                                                Index size, Index voxels, Index channels) {
    normalize_backward<1>({dy, pitch}, x, {lines, dropout}, mean, inv_std, gamma, sums, dx, size,
                          voxels, channels);
}

extern "C" __global__ void normalize_backward_8(const Real *dy, Index pitch, const Real *x,
                                                const float *lines, Dropout dropout,
                                                const float *mean, const float *inv_std,
                                                const float *gamma, const double *sums, Real *dx,
                                                Index size, Index voxels, Index channels) {
    normalize_backward<8>({dy, pitch}, x, {lines, dropout}, mean, inv_std, gamma, sums, dx, size,
                          voxels, channels);
}
