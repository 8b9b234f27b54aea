// Elementwise operations, softmax over the channels, and dropout. One thread for each element (for
// softmax: voxel; for dropout: eight elements) reads what it needs and writes its results.
//
// Moves: every array named in the signature once; softmax reads its row again from cache.

extern "C" __global__ void relu_forward(const float *x, float *y, Index size) {
    Index i = global_thread();
    if (i < size) y[i] = x[i] < 0 ? 0 : x[i];  // NaN stays NaN
}

extern "C" __global__ void relu_backward(const float *dy, const float *y, float *dx, Index size) {
    Index i = global_thread();
    if (i < size) dx[i] = y[i] > 0 ? dy[i] : 0;
}

extern "C" __global__ void sigmoid_forward(const float *x, float *y, Index size) {
    Index i = global_thread();
    if (i >= size) return;
    float small = expf(-fabsf(x[i]));  // cannot overflow
    y[i] = x[i] < 0 ? small / (1 + small) : 1 / (1 + small);
}

extern "C" __global__ void sigmoid_backward(const float *dy, const float *y, float *dx,
                                            Index size) {
    Index i = global_thread();
    if (i < size) dx[i] = dy[i] * y[i] * (1 - y[i]);
}

extern "C" __global__ void softmax_forward(const float *x, float *y, Index voxels,
                                           Index channels) {
    Index voxel = global_thread();
    if (voxel >= voxels) return;
    x += voxel * channels;
    y += voxel * channels;
    float largest = x[0], sum = 0;
    for (Index c = 1; c < channels; ++c) largest = fmaxf(largest, x[c]);
    for (Index c = 0; c < channels; ++c) sum += y[c] = expf(x[c] - largest);
    for (Index c = 0; c < channels; ++c) y[c] /= sum;
}

extern "C" __global__ void softmax_backward(const float *dy, const float *y, float *dx,
                                            Index voxels, Index channels) {
    Index voxel = global_thread();
    if (voxel >= voxels) return;
    Index row = voxel * channels;
    float sum = 0;
    for (Index c = row; c < row + channels; ++c) sum += dy[c] * y[c];
    for (Index c = row; c < row + channels; ++c) dx[c] = y[c] * (dy[c] - sum);
}

// Ten rounds of Philox4x32, as in minibrain/philox.py.
__device__ inline void philox(unsigned (&c)[4], unsigned k0, unsigned k1) {
    for (int round = 0; round < 10; ++round) {
        unsigned long long p0 = c[0] * 0xD2511F53ull, p1 = c[2] * 0xCD9E8D57ull;
        unsigned next0 = unsigned(p1 >> 32) ^ c[1] ^ k0, next2 = unsigned(p0 >> 32) ^ c[3] ^ k1;
        c[0] = next0, c[1] = unsigned(p1), c[2] = next2, c[3] = unsigned(p0);
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
}

// y = x * scale where the element's 16 random bits reach the threshold, else 0. One counter gives
// the bits of eight elements, the low half of each word first.
extern "C" __global__ void dropout(const float *x, float *y, Index size, Index seed, Index step,
                                   Index layer, Index threshold, double scale) {
    Index block = global_thread();
    unsigned words[4] = {unsigned(block), unsigned(block >> 32), unsigned(layer), unsigned(step)};
    philox(words, unsigned(seed), unsigned((unsigned long long)seed >> 32));
    for (int i = 0; i < 8; ++i) {
        Index element = 8 * block + i;
        if (element >= size) return;
        unsigned random = words[i / 2] >> (i % 2 * 16) & 0xffff;
        y[element] = x[element] * (random >= threshold ? float(scale) : 0.0f);
    }
}
