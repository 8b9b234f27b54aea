// Instance and batch norm. Arrays are seen as (groups, voxels, channels): a group is what shares
// statistics, one sample in instance norm, the whole batch in batch norm. Statistics come in two
// passes over x, the mean and then the squares of what is left, with float64 sums.
//
//   forward    sum -> mean; sum_squares -> variance, inv_std; normalize
//   backward   sum_gradients -> dbeta, dgamma and the two means; normalize_backward
//
// Moves: forward x three times and y once; backward x and dy twice and dx once.
// The sums are cut as sum_over_voxels says; elsewhere a thread writes the element it computes.

extern "C" __global__ void sum(const float *x, Index voxels, Index channels, double *partial) {
    x += blockIdx.z * voxels * channels;
    sum_over_voxels<1>(voxels, channels, partial, [&](Index voxel, int channel, double *sums) {
        sums[0] += x[voxel * channels + channel];
    });
}

extern "C" __global__ void sum_squares(const float *x, const float *mean, Index voxels,
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

extern "C" __global__ void normalize(const float *x, const float *gamma, const float *beta,
                                     const float *mean, const float *inv_std, float *y, Index size,
                                     Index voxels, Index channels) {
    Index i = global_thread();
    if (i >= size) return;
    Index channel = i % channels, of_group = i / channels / voxels * channels + channel;
    y[i] = (x[i] - mean[of_group]) * inv_std[of_group] * gamma[channel] + beta[channel];
}

// Quantity 0: sum of dy; 1: sum of dy * xhat.
extern "C" __global__ void sum_gradients(const float *dy, const float *x, const float *mean,
                                         const float *inv_std, Index voxels, Index channels,
                                         double *partial) {
    dy += blockIdx.z * voxels * channels;
    x += blockIdx.z * voxels * channels;
    mean += blockIdx.z * channels;
    inv_std += blockIdx.z * channels;
    sum_over_voxels<2>(voxels, channels, partial, [&](Index voxel, int channel, double *sums) {
        Index i = voxel * channels + channel;
        sums[0] += dy[i];
        sums[1] += dy[i] * ((x[i] - mean[channel]) * inv_std[channel]);
    });
}

// dx = inv_std * gamma * (dy - mean(dy) - xhat * mean(dy * xhat)); without `sums` the statistics
// were given, and nothing flows through them.
extern "C" __global__ void normalize_backward(const float *dy, const float *x, const float *gamma,
                                              const float *mean, const float *inv_std,
                                              const double *sums, float *dx, Index size,
                                              Index voxels, Index channels) {
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
    dx[i] = (dy[i] - through_mean - through_variance) * gamma[channel] * inv_std[of_group];
}
