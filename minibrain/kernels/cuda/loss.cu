// Cross-entropy and soft Dice of logits z, with p = softmax(z) and t the one-hot labels. A label
// outside [0, channels) belongs to no class: not every voxel is counted then, and the loss is NaN.
//
//   forward    log_softmax writes p and, where it is wanted, log p of each voxel's label;
//              sum_loss adds, for every class, -t log p, p t, p and t; finish_loss ends it.
//   backward   one pass, from what forward saved; before it dice_slopes, for each class.
//
// Moves: forward z once, p and log p twice; backward p and dz once; labels every time. One thread
// writes each voxel's channels, but where threads go over voxels as common.cuh says.

extern "C" __global__ void log_softmax(const Real *logits, const int *labels, float *log_p,
                                       float *p, Index voxels, Index channels) {
    Index voxel = global_thread();
    if (voxel >= voxels) return;
    logits += voxel * channels, p += voxel * channels;
    float largest = logits[0], sum = 0;
    for (int c = 1; c < channels; ++c) largest = fmaxf(largest, logits[c]);
    for (int c = 0; c < channels; ++c) sum += expf(logits[c] - largest);
    float share = 1 / sum;
    for (int c = 0; c < channels; ++c) p[c] = expf(logits[c] - largest) * share;
    int label = labels[voxel];
    if (log_p && label >= 0 && label < channels)
        log_p[voxel] = logits[label] - largest - logf(sum);
}

// Quantities: 0 the sum of -t log p, 1 of p t, 2 of p, 3 of t.
extern "C" __global__ void sum_loss(const float *log_p, const float *p, const int *labels,
                                    Index voxels, Index channels, double *partial) {
    int channel = own_channel<1>();
    sum_over_voxels<4>(voxels, channels, partial, [&](Index voxel, float *sums) {
        voxel += blockIdx.z * voxels;
        Index i = voxel * channels + channel;
        bool t = labels[voxel] == channel;
        if (log_p && t) sums[0] -= log_p[voxel];
        if (t) sums[1] += p[i];
        sums[2] += p[i];
        sums[3] += t;
    });
}

// One thread: overlap = 2 sum(p t) + smooth and total = sum(p) + sum(t) + smooth for each of the
// `size` groups and classes, and the loss, cce_weight * cross-entropy + dice_weight * Dice loss.
// All of it is NaN if a voxel has no class.
extern "C" __global__ void finish_loss(const double *sums, double *overlap, double *total,
                                       double *loss, Index size, Index voxels, double smooth,
                                       double cce_weight, double dice_weight) {
    double cross_entropy = 0, score = 0, counted = 0;
    for (Index i = 0; i < size; ++i) counted += sums[3 * size + i];
    double poison = counted == voxels ? 0 : 0.0 / 0.0;
    for (Index i = 0; i < size; ++i) {
        cross_entropy += sums[i] + poison;
        overlap[i] = 2 * sums[size + i] + smooth;
        total[i] = sums[2 * size + i] + sums[3 * size + i] + smooth + poison;
        if (dice_weight) score += overlap[i] / total[i];
    }
    *loss = cce_weight * cross_entropy / voxels + dice_weight * (1 - score / size);
}

// dz = scale (p - t)
extern "C" __global__ void cross_entropy_backward(const float *p, const int *labels, float *dz,
                                                  double scale, Index voxels, Index channels) {
    int channel = own_channel<1>();
    if (channel >= channels) return;
    each_voxel(voxels, [&](Index voxel) {
        Index i = voxel * channels + channel;
        dz[i] = (p[i] - (labels[voxel] == channel)) * float(scale);
    });
}

// The gradient dp of the Dice loss, times scale, is overlap / total^2 - 2 t / total: two slopes for
// each of the `size` groups and classes.
extern "C" __global__ void dice_slopes(const double *overlap, const double *total, float *slopes,
                                       Index size, double scale) {
    Index i = global_thread();
    if (i >= size) return;
    slopes[2 * i] = scale * overlap[i] / (total[i] * total[i]);
    slopes[2 * i + 1] = scale * 2 / total[i];
}

// dz = cce_scale (p - t), plus dp through softmax. The grid is (voxels of a group, 1, groups).
extern "C" __global__ void cce_dice_backward(const float *p, const int *labels,
                                             const float *slopes, float *dz, Index voxels,
                                             Index channels, double cce_scale) {
    Index voxel = global_thread();
    if (voxel >= voxels) return;
    voxel += blockIdx.z * voxels;
    p += voxel * channels, dz += voxel * channels, slopes += 2 * blockIdx.z * channels;
    int label = labels[voxel];
    auto dp = [&](int c) { return slopes[2 * c] - (c == label ? slopes[2 * c + 1] : 0); };
    float mean = 0;
    for (int c = 0; c < channels; ++c) mean += dp(c) * p[c];
    for (int c = 0; c < channels; ++c)
        dz[c] = float(cce_scale) * (p[c] - (c == label)) + p[c] * (dp(c) - mean);
}
