// Cross-entropy and soft Dice of logits z, with p = softmax(z) and t the one-hot labels. A label
// outside [0, channels) belongs to no class: not every voxel is counted then, and the loss is NaN.
//
//   forward    log_softmax writes p and log p (which may be null);
//              sum_loss adds, for every class, -t log p, p t, p and t; finish_loss ends it.
//   backward   one pass each, from what forward saved.
//
// Moves: forward z once, log p and p twice; backward p and dz once, labels always.
// One thread writes each voxel's channels; the sums are cut as sum_over_voxels says.

extern "C" __global__ void log_softmax(const Real *logits, float *log_p, float *p, Index voxels,
                                       Index channels) {
    Index voxel = global_thread();
    if (voxel >= voxels) return;
    Index row = voxel * channels, end = row + channels;
    float largest = logits[row], sum = 0;
    for (Index i = row; i < end; ++i) largest = fmaxf(largest, logits[i]);
    for (Index i = row; i < end; ++i) sum += expf(logits[i] - largest);
    float log_sum = logf(sum);
    for (Index i = row; i < end; ++i) {
        if (log_p) log_p[i] = logits[i] - largest - log_sum;
        p[i] = expf(logits[i] - largest) / sum;
    }
}

// Quantities: 0 the sum of -t log p, 1 of p t, 2 of p, 3 of t.
extern "C" __global__ void sum_loss(const float *log_p, const float *p, const int *labels,
                                    Index voxels, Index channels, double *partial) {
    Index group = blockIdx.z * voxels;
    sum_over_voxels<4>(voxels, channels, partial, [&](Index voxel, int channel, double *sums) {
        Index i = (group + voxel) * channels + channel;
        bool t = labels[group + voxel] == channel;
        if (log_p && t) sums[0] -= log_p[i];
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
                                                  Index size, Index channels, double scale) {
    Index i = global_thread();
    if (i >= size) return;
    float t = labels[i / channels] == i % channels;
    dz[i] = (p[i] - t) * float(scale);
}

// dz = cce_scale (p - t), plus dp = dice_scale (overlap / total^2 - 2 t / total) through softmax.
extern "C" __global__ void cce_dice_backward(const float *p, const int *labels,
                                             const double *overlap, const double *total, float *dz,
                                             Index voxels, Index voxels_of_group, Index channels,
                                             double cce_scale, double dice_scale) {
    Index voxel = global_thread();
    if (voxel >= voxels) return;
    Index row = voxel * channels, label = labels[voxel];
    overlap += voxel / voxels_of_group * channels;
    total += voxel / voxels_of_group * channels;
    auto dp = [&](Index c) {
        double toward_label = c == label ? 2 / total[c] : 0;
        return float(dice_scale * (overlap[c] / (total[c] * total[c]) - toward_label));
    };
    float mean = 0;
    for (Index c = 0; c < channels; ++c) mean += dp(c) * p[row + c];
    for (Index c = 0; c < channels; ++c) {
        float cross_entropy = float(cce_scale) * (p[row + c] - (c == label));
        dz[row + c] = cross_entropy + p[row + c] * (dp(c) - mean);
    }
}
