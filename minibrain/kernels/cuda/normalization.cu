// Instance and batch norm. Arrays are seen as (groups, voxels, channels): a group is what shares
// statistics, one sample in instance norm, the whole batch in batch norm. Statistics come in two
// passes over x, the mean and then the squares of what is left, with float64 sums.
//
//   forward    sum -> mean; sum_squares -> variance, inv_std; normalize or norm_relu
//   backward   sum_gradients -> dbeta, dgamma and the two means; normalize_backward
//
// norm_relu goes on with ReLU and dropout. Backward then needs its y: what is above 0 passed both,
// scaled by dropout; all else stopped.
//
// Moves: forward x three times and y once; backward x and dy (and y) twice and dx once.
// The sums are cut as sum_over_voxels says; elsewhere a thread writes the element it computes.

extern "C" __global__ void sum(const Real *x, Index voxels, Index channels, double *partial) {
    x += blockIdx.z * voxels * channels;
    sum_over_voxels<1>(voxels, channels, partial, [&](Index voxel, int channel, double *sums) {
        sums[0] += x[voxel * channels + channel];
    });
}

extern "C" __global__ void sum_squares(const Real *x, const float *mean, Index voxels,
                                       Index channels, double *partial) {
    x += blockIdx.z * voxels * channels;
    mean += blockIdx.z * channels;
    sum_over_voxels<1>(voxels, channels, partial, [&](Index voxel, int channel, double *sums) {
        float centred = x[voxel * channels + channel] - mean[channel];
        sums[0] += (double)centred * centred;
    });
}

extern "C" __global__ void divide(const double *sums, float *means, Index size, Index voxels) {
    Index i = global_thread();
    if (i < size) means[i] = sums[i] / voxels;
}

extern "C" __global__ void invert(const float *variance, float *inv_std, Index size, double eps) {
    Index i = global_thread();
    if (i < size) inv_std[i] = 1 / sqrtf(variance[i] + float(eps));
}

__device__ float normalized(const Real *x, const float *gamma, const float *beta,
                            const float *mean, const float *inv_std, Index i, Index voxels,
                            Index channels) {
    Index channel = i % channels, of_group = i / channels / voxels * channels + channel;
    return (x[i] - mean[of_group]) * inv_std[of_group] * gamma[channel] + beta[channel];
}

extern "C" __global__ void normalize(const Real *x, const float *gamma, const float *beta,
                                     const float *mean, const float *inv_std, Real *y, Index size,
                                     Index voxels, Index channels) {
    Index i = global_thread();
    if (i < size) y[i] = normalized(x, gamma, beta, mean, inv_std, i, voxels, channels);
}

// A thread computes eight elements, whose dropout is drawn at once.
extern "C" __global__ void norm_relu(const Real *x, const float *gamma, const float *beta,
                                     const float *mean, const float *inv_std, Real *y, Index size,
                                     Index voxels, Index channels, Dropout dropout) {
    Index block = global_thread();
    DropoutFactors factors(dropout, block);
    for (Index i = 8 * block; i < min(8 * block + 8, size); ++i) {
        float value = normalized(x, gamma, beta, mean, inv_std, i, voxels, channels);
        y[i] = value < 0 ? 0 : value * factors[i % 8];
    }
}

// The gradient before ReLU and dropout, if y is given.
__device__ float gated(const Real *dy, const Real *y, float scale, Index i) {
    if (!y) return dy[i];
    return y[i] > 0.0f ? dy[i] * scale : 0;
}

// Quantity 0: sum of dy; 1: sum of dy * xhat.
extern "C" __global__ void sum_gradients(const Real *dy, const Real *y, double scale,
                                         const Real *x, const float *mean, const float *inv_std,
                                         Index voxels, Index channels, double *partial) {
    Index group = blockIdx.z * voxels * channels;
    mean += blockIdx.z * channels;
    inv_std += blockIdx.z * channels;
    sum_over_voxels<2>(voxels, channels, partial, [&](Index voxel, int channel, double *sums) {
        Index i = group + voxel * channels + channel;
        float gradient = gated(dy, y, scale, i);
        sums[0] += gradient;
        sums[1] += gradient * ((x[i] - mean[channel]) * inv_std[channel]);
    });
}

// dx = inv_std * gamma * (dy - mean(dy) - xhat * mean(dy * xhat)); without `sums` the statistics
// were given, and nothing flows through them.
extern "C" __global__ void normalize_backward(const Real *dy, const Real *y, double scale,
                                              const Real *x, const float *gamma, const float *mean,
                                              const float *inv_std, const double *sums, Real *dx,
                                              Index size, Index voxels, Index channels) {
    Index i = global_thread();
    if (i >= size) return;
    Index groups = size / channels / voxels, channel = i % channels;
    Index of_group = i / channels / voxels * channels + channel;
    float through_mean = 0, through_variance = 0;
    if (sums) {
        float xhat = (x[i] - mean[of_group]) * inv_std[of_group];
        through_mean = sums[of_group] / voxels;
        through_variance = xhat * float(sums[groups * channels + of_group] / voxels);
    }
    float dxhat = gated(dy, y, scale, i) - through_mean - through_variance;
    dx[i] = dxhat * gamma[channel] * inv_std[of_group];
}
