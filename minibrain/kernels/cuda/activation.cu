// Elementwise operations, softmax over the channels, and dropout. One thread for each element (for
// softmax: voxel; for dropout: eight elements) reads what it needs and writes its results.
//
// Moves: every array named in the signature once; softmax reads its row again from cache.
// Architectures: sm_80, sm_90.

extern "C" __global__ void relu_forward(const Real *x, Real *y, Index size) {
    Index i = global_thread();
    if (i < size) y[i] = x[i] < 0.0f ? Real(0) : x[i];  // NaN stays NaN
}

extern "C" __global__ void relu_backward(const Real *dy, const Real *y, Real *dx, Index size) {
    Index i = global_thread();
    if (i < size) dx[i] = y[i] > 0.0f ? dy[i] : Real(0);
}

extern "C" __global__ void sigmoid_forward(const Real *x, Real *y, Index size) {
    Index i = global_thread();
    if (i >= size) return;
    float value = x[i], small = expf(-fabsf(value));  // cannot overflow
    y[i] = value < 0 ? small / (1 + small) : 1 / (1 + small);
}

extern "C" __global__ void sigmoid_backward(const Real *dy, const Real *y, Real *dx, Index size) {
    Index i = global_thread();
    if (i < size) dx[i] = dy[i] * y[i] * (1 - y[i]);
}

extern "C" __global__ void softmax_forward(const Real *x, Real *y, Index voxels,
                                           Index channels) {
    Index voxel = global_thread();
    if (voxel >= voxels) return;
    x += voxel * channels;
    y += voxel * channels;
    float largest = x[0], sum = 0;
    for (int c = 1; c < channels; ++c) largest = fmaxf(largest, x[c]);
    for (int c = 0; c < channels; ++c) sum += expf(x[c] - largest);
    float share = 1 / sum;
    for (int c = 0; c < channels; ++c) y[c] = expf(x[c] - largest) * share;
}

extern "C" __global__ void softmax_backward(const Real *dy, const Real *y, Real *dx,
                                            Index voxels, Index channels) {
    Index voxel = global_thread();
    if (voxel >= voxels) return;
    dy += voxel * channels, y += voxel * channels, dx += voxel * channels;
    float sum = 0;
    for (int c = 0; c < channels; ++c) sum += dy[c] * y[c];
    for (int c = 0; c < channels; ++c) dx[c] = y[c] * (dy[c] - sum);
}

extern "C" __global__ void dropout(const Real *x, Real *y, Index size, Dropout dropout) {
    Index block = global_thread();
    DropoutFactors factors(dropout, block);
    for (int i = 0; i < 8; ++i) {
        Index element = 8 * block + i;
        if (element >= size) return;
        y[element] = x[element] * factors[i];
    }
}
