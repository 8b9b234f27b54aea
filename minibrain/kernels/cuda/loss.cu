// Cross-entropy and soft Dice of logits z, with p = softmax(z) and t the one-hot labels. A label
// outside [0, channels) belongs to no class: not every voxel is counted then, and the loss is NaN.
//
//   forward    softmax_sums_* writes p and adds, for every class, -t log p, p t, p and t over the
//              voxels; finish_loss ends it.
//   backward   one pass, from what forward saved; before it dice_slopes, for each class.
//
// Moves: forward z once, p once; backward p and dz once; labels every time. Threads go over voxels
// as common.cuh says, each with WIDTH channels, 4 where that is all of them. With more or fewer, a
// thread has one, and reads the others of its voxel for that from cache.
// Architectures: sm_80, sm_90.

using Label = unsigned char;

// What a thread loads of a voxel: its channels, and the label.
template <class T, int WIDTH> struct Voxel {
    Several<WIDTH, T> values;
    int label;
};

// Quantities: 0 the sum of -t log p, 1 of p t, 2 of p, 3 of t.
template <int WIDTH>
__device__ void softmax_sums(const Real *logits, const Label *labels, float *p, Index voxels,
                             int channels, double *partial) {
    int channel = own_channel<WIDTH>();
    Index before = blockIdx.z * voxels;
    auto load = [&](Index voxel) -> Voxel<Real, WIDTH> {
        voxel += before;
        return {several<WIDTH>(logits + voxel * channels + channel), labels[voxel]};
    };
    auto add = [&](Index voxel, const Voxel<Real, WIDTH> &own, float *sums) {
        voxel += before;
        int count = WIDTH > 1 ? WIDTH : channels;  // of which all are the thread's own, or one is
        const Real *row = logits + voxel * channels;
        auto z = [&](int c) -> float { return WIDTH > 1 ? own.values[c] : row[c]; };
        float largest = z(0), sum = 0;
#pragma unroll
        for (int c = 1; c < count; ++c) largest = fmaxf(largest, z(c));
#pragma unroll
        for (int c = 0; c < count; ++c) sum += expf(z(c) - largest);
        float share = 1 / sum, log_sum = logf(sum);
        Several<WIDTH, float> shares;
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            float shifted = own.values[j] - largest;
            bool t = own.label == channel + j;
            shares[j] = expf(shifted) * share;
            sums[j] += t ? log_sum - shifted : 0;
            sums[WIDTH + j] += t ? shares[j] : 0;
            sums[2 * WIDTH + j] += shares[j];
            sums[3 * WIDTH + j] += t;
        }
        several<WIDTH>(p + voxel * channels + channel) = shares;
    };
    sum_over_voxels<4, WIDTH>(voxels, channels, partial, load, add);
}

extern "C" __global__ void softmax_sums_1(const Real *logits, const Label *labels, float *p,
                                          Index voxels, Index channels, double *partial) {
    softmax_sums<1>(logits, labels, p, voxels, channels, partial);
}

extern "C" __global__ void softmax_sums_4(const Real *logits, const Label *labels, float *p,
                                          Index voxels, Index channels, double *partial) {
    softmax_sums<4>(logits, labels, p, voxels, channels, partial);
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
    *loss = dice_weight * (1 - score / size);
    if (cce_weight) *loss += cce_weight * cross_entropy / voxels;
}

// dz = scale (p - t)
extern "C" __global__ void cross_entropy_backward(const float *p, const Label *labels, float *dz,
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

// dz = cce_scale (p - t), plus dp through softmax.
template <int WIDTH>
__device__ void cce_dice_backward(const float *p, const Label *labels, const float *slopes,
                                  float *dz, double cce_scale, Index voxels, int channels) {
    int channel = own_channel<WIDTH>(), count = WIDTH > 1 ? WIDTH : channels;
    if (channel >= channels) return;
    slopes += 2 * blockIdx.z * channels;
    Index before = blockIdx.z * voxels;
    auto load = [&](Index voxel) -> Voxel<float, WIDTH> {
        voxel += before;
        return {several<WIDTH>(p + voxel * channels + channel), labels[voxel]};
    };
    each_voxel(voxels, load, [&](Index voxel, const Voxel<float, WIDTH> &own) {
        Index i = (before + voxel) * channels;
        auto share = [&](int c) { return WIDTH > 1 ? own.values[c] : p[i + c]; };
        auto dp = [&](int c) { return slopes[2 * c] - (c == own.label ? slopes[2 * c + 1] : 0); };
        float mean = 0;
#pragma unroll
        for (int c = 0; c < count; ++c) mean += dp(c) * share(c);
        Several<WIDTH, float> gradient;
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            int c = channel + j;
            float step = own.values[j] - (c == own.label);
            gradient[j] = float(cce_scale) * step + own.values[j] * (dp(c) - mean);
        }
        several<WIDTH>(dz + i + channel) = gradient;
    });
}

extern "C" __global__ void cce_dice_backward_1(const float *p, const Label *labels,
                                               const float *slopes, float *dz, double cce_scale,
                                               Index voxels, Index channels) {
    cce_dice_backward<1>(p, labels, slopes, dz, cce_scale, voxels, channels);
}

extern "C" __global__ void cce_dice_backward_4(const float *p, const Label *labels,
                                               const float *slopes, float *dz, double cce_scale,
                                               Index voxels, Index channels) {
    cce_dice_backward<4>(p, labels, slopes, dz, cce_scale, voxels, channels);
}
