// Instance and batch norm, and what comes after it in a network. Arrays are seen as (groups,
// voxels, channels): a group is what shares statistics, one sample in instance norm, the whole
// batch in batch norm. Of any parameter or statistic, `line` is group * channels + channel.
//
//   forward    sum_centred, finish_statistics -> mean, variance, inv_std; then normalize, or the
//              activation is pending until somebody writes it
//   backward   sum_gradients, finish_gradients -> dgamma, dbeta, and what goes through the
//              statistics; normalize_backward
//
// With ReLU and dropout, backward finds out from x once more who passed them.
//
// Moves: forward x once; normalize and write_pending x and y once; backward x and dy twice and dx
// once. Threads go over voxels as common.cuh says, each with WIDTH channels, 8 if the channels are
// a multiple of it; what belongs to their lines waits in registers. Whoever adds nothing up writes
// what it computes. Architectures: sm_80, sm_90.
#include "parts.cuh"

constexpr int THREADS = 256;

// x0 of a channel of a group: the median of its first, middle and last value, so that one value far
// from all others is not it.
__device__ inline float origin(const Real *x, Index voxels, Index channels) {
    float a = x[0], b = x[voxels / 2 * channels], c = x[(voxels - 1) * channels];
    return fmaxf(fminf(a, b), fminf(fmaxf(a, b), c));
}

// Unless who wrote x has summed it already, see duck_arrays.Summed, whose sums have no x0 taken off
// them: quantity 0: sum of x - x0; 1: of (x - x0)^2. If x0 is d standard deviations from the mean,
// the variance loses 1 + d^2 times what the squares have lost.
template <int WIDTH>
__device__ void sum_centred(const Real *x, Index voxels, int channels, double *partial) {
    int channel = own_channel<WIDTH>();
    x += blockIdx.z * voxels * channels + channel;
    float x0[WIDTH] = {};
    for (int j = 0; j < WIDTH && channel < channels; ++j) x0[j] = origin(x + j, voxels, channels);
    auto load = [&](Index voxel) { return several<WIDTH>(x + voxel * channels); };
    auto add = [&](Index, const Several<WIDTH> &values, float *sums) {
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            float centred = values[j] - x0[j];
            sums[j] += centred;
            sums[WIDTH + j] += centred * centred;
        }
    };
    sum_over_voxels<2, WIDTH>(voxels, channels, partial, load, add);
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
    float x0 = x ? origin(x + group * voxels * channels + channel, voxels, channels) : 0;
    mean[line] = x0 + sum / voxels;
    variance[line] = (squares - sum * sum / voxels) / voxels;
    inv_std[line] = 1 / sqrtf(variance[line] + float(eps));
    if (!lines) return;
    lines[3 * line] = mean[line];
    lines[3 * line + 1] = inv_std[line] * gamma[channel];
    lines[3 * line + 2] = beta[channel];
}

// y = (x - mean) inv_std gamma + beta, rounded as often as in the reference.
template <int WIDTH>
__device__ void normalize(const Real *x, const float *gamma, const float *beta, const float *mean,
                          const float *inv_std, Real *y, Index voxels, int channels) {
    int channel = own_channel<WIDTH>();
    if (channel >= channels) return;
    Index line = (Index)blockIdx.z * channels + channel;
    float centre[WIDTH], rate[WIDTH], factor[WIDTH], shift[WIDTH];
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) {
        centre[j] = mean[line + j], rate[j] = inv_std[line + j];
        factor[j] = gamma[channel + j], shift[j] = beta[channel + j];
    }
    each_voxel(voxels, [&](Index voxel) {
        Index i = (blockIdx.z * voxels + voxel) * channels + channel;
        Several<WIDTH> from = several<WIDTH>(x + i);
        float values[WIDTH];
#pragma unroll
        for (int j = 0; j < WIDTH; ++j)
            values[j] = (from[j] - centre[j]) * rate[j] * factor[j] + shift[j];
        write(y + i, values);
    });
}

extern "C" __global__ void normalize_1(const Real *x, const float *gamma, const float *beta,
                                       const float *mean, const float *inv_std, Real *y,
                                       Index voxels, Index channels) {
    normalize<1>(x, gamma, beta, mean, inv_std, y, voxels, channels);
}

extern "C" __global__ void normalize_8(const Real *x, const float *gamma, const float *beta,
                                       const float *mean, const float *inv_std, Real *y,
                                       Index voxels, Index channels) {
    normalize<8>(x, gamma, beta, mean, inv_std, y, voxels, channels);
}

template <int WIDTH>
__device__ void write_pending(const Real *raw, const Pending &pending, Real *y, Index voxels,
                              int channels) {
    int channel = own_channel<WIDTH>();
    if (channel >= channels) return;
    Lines<WIDTH> own = pending.read<WIDTH>((Index)blockIdx.z * channels + channel);
    each_voxel(voxels, [&](Index voxel) {
        Index i = (blockIdx.z * voxels + voxel) * channels + channel;
        float values[WIDTH];
        Several<WIDTH> loaded = several<WIDTH>(raw + i);
        pending.activate(values, loaded, i, own);
        write(y + i, values);
    });
}

extern "C" __global__ void write_pending_1(const Real *raw, const float *lines, Dropout dropout,
                                           Real *y, Index voxels, Index channels) {
    write_pending<1>(raw, {lines, dropout}, y, voxels, channels);
}

extern "C" __global__ void write_pending_8(const Real *raw, const float *lines, Dropout dropout,
                                           Real *y, Index voxels, Index channels) {
    write_pending<8>(raw, {lines, dropout}, y, voxels, channels);
}

// The gradients of what was normalised: dy or, if that is pending, what of dy comes through dropout
// and ReLU.
template <int WIDTH> struct Upstream {
    View dy;
    const Real *x;
    Pending pending;
    Lines<WIDTH> own;
    Index before;  // voxels of the groups before this one
    int channel, channels;

    struct Loaded {
        Several<WIDTH> dy, x;
    };

    __device__ Upstream(const View &dy, const Real *x, const Pending &pending, const float *mean,
                        const float *inv_std, const float *gamma, Index voxels, int channel,
                        int channels)
        : dy(dy), x(x), pending(pending), before(blockIdx.z * voxels), channel(channel),
          channels(channels) {
        Index line = (Index)blockIdx.z * channels + channel;
        own = pending.read<WIDTH>(line);
        if (pending.lines) return;
#pragma unroll
        for (int j = 0; j < WIDTH; ++j)
            own.centre[j] = mean[line + j], own.scale[j] = inv_std[line + j] * gamma[channel + j];
    }

    // The number of the first element.
    __device__ Index element(Index voxel) const { return (before + voxel) * channels + channel; }

    __device__ Loaded load(Index voxel) const {
        return {dy.read<WIDTH>(before + voxel, channel), several<WIDTH>(x + element(voxel))};
    }

    // And x - mean.
    __device__ void read(float (&gradient)[WIDTH], float (&centred)[WIDTH], const Loaded &loaded,
                         Index voxel) const {
#pragma unroll
        for (int j = 0; j < WIDTH; ++j)
            gradient[j] = loaded.dy[j], centred[j] = loaded.x[j] - own.centre[j];
        if (!pending.lines) return;
        pending.drop(gradient, element(voxel));
#pragma unroll
        for (int j = 0; j < WIDTH; ++j)
            if (!(fmaf(centred[j], own.scale[j], own.shift[j]) > 0)) gradient[j] = 0;
    }
};

// Quantity 0: sum of dy; 1: sum of dy (x - mean). At 128 registers two blocks fit a multiprocessor.
template <int WIDTH>
__device__ void sum_gradients(const View &dy, const Real *x, const Pending &pending,
                              const float *mean, const float *inv_std, const float *gamma,
                              Index voxels, int channels, double *partial) {
    int channel = own_channel<WIDTH>(), inside = min(channel, channels - WIDTH);
    Upstream<WIDTH> up(dy, x, pending, mean, inv_std, gamma, voxels, inside, channels);
    auto load = [&](Index voxel) { return up.load(voxel); };
    auto add = [&](Index voxel, const typename Upstream<WIDTH>::Loaded &loaded, float *sums) {
        float gradient[WIDTH], centred[WIDTH];
        up.read(gradient, centred, loaded, voxel);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            sums[j] += gradient[j];
            sums[WIDTH + j] += gradient[j] * centred[j];
        }
    };
    sum_over_voxels<2, WIDTH>(voxels, channels, partial, load, add);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
sum_gradients_1(const Real *dy, Index pitch, const Real *x, const float *lines, Dropout dropout,
                const float *mean, const float *inv_std, const float *gamma, Index voxels,
                Index channels, double *partial) {
    sum_gradients<1>({dy, pitch}, x, {lines, dropout}, mean, inv_std, gamma, voxels, channels,
                     partial);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
sum_gradients_8(const Real *dy, Index pitch, const Real *x, const float *lines, Dropout dropout,
                const float *mean, const float *inv_std, const float *gamma, Index voxels,
                Index channels, double *partial) {
    sum_gradients<8>({dy, pitch}, x, {lines, dropout}, mean, inv_std, gamma, voxels, channels,
                     partial);
}

// The parts of these sums are added, with xhat = (x - mean) inv_std, over all groups to dbeta and
// dgamma. What goes through mean and variance of each line are mean(dy) and inv_std mean(dy xhat);
// `share` of their sums is 1 / voxels, or 0 if the statistics were given.
extern "C" __global__ void finish_gradients(const double *partial, Index groups, Index parts,
                                            Index channels, double share, const float *inv_std,
                                            float *dgamma, float *dbeta, float *through) {
    Index channel = global_column(), quantity = groups * parts * channels;
    bool here = channel < channels;
    double all = 0, all_products = 0;
    for (Index group = 0; group < groups; ++group) {
        Index line = group * channels + channel;
        const double *first = partial + group * parts * channels + channel;
        double sum = sum_of_parts(first, parts, channels, here);
        double products = sum_of_parts(first + quantity, parts, channels, here);
        if (threadIdx.y > 0 || !here) continue;
        products *= inv_std[line];
        through[2 * line] = sum * share;
        through[2 * line + 1] = products * inv_std[line] * share;
        all += sum, all_products += products;
    }
    if (threadIdx.y == 0 && here) dbeta[channel] = all, dgamma[channel] = all_products;
}

// dx = gamma inv_std (dy - mean(dy) - xhat mean(dy xhat))
template <int WIDTH>
__device__ void normalize_backward(const View &dy, const Real *x, const Pending &pending,
                                   const float *mean, const float *inv_std, const float *gamma,
                                   const float *through, Real *dx, Index voxels, int channels) {
    int channel = own_channel<WIDTH>();
    if (channel >= channels) return;
    Upstream<WIDTH> up(dy, x, pending, mean, inv_std, gamma, voxels, channel, channels);
    auto means = several<2 * WIDTH>(through + 2 * ((Index)blockIdx.z * channels + channel));
    auto load = [&](Index voxel) { return up.load(voxel); };
    each_voxel(voxels, load, [&](Index voxel, const typename Upstream<WIDTH>::Loaded &loaded) {
        float gradient[WIDTH], centred[WIDTH];
        up.read(gradient, centred, loaded, voxel);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            float through_mean = means[2 * j], through_variance = centred[j] * means[2 * j + 1];
            gradient[j] = (gradient[j] - through_mean - through_variance) * up.own.scale[j];
        }
        write(dx + up.element(voxel), gradient);
    });
}

extern "C" __global__ void normalize_backward_1(const Real *dy, Index pitch, const Real *x,
                                                const float *lines, Dropout dropout,
                                                const float *mean, const float *inv_std,
                                                const float *gamma, const float *through, Real *dx,
                                                Index voxels, Index channels) {
    normalize_backward<1>({dy, pitch}, x, {lines, dropout}, mean, inv_std, gamma, through, dx,
                          voxels, channels);
}

extern "C" __global__ void normalize_backward_8(const Real *dy, Index pitch, const Real *x,
                                                const float *lines, Dropout dropout,
                                                const float *mean, const float *inv_std,
                                                const float *gamma, const float *through, Real *dx,
                                                Index voxels, Index channels) {
    normalize_backward<8>({dy, pitch}, x, {lines, dropout}, mean, inv_std, gamma, through, dx,
                          voxels, channels);
}
