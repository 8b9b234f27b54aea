// Max-pool, nearest upsampling, concatenation and their gradients. One thread for each element that
// is written; gradients are gathered, in the order of the taps, so that nobody adds to what
// somebody else writes.
//
// Moves, per element written: max_pool_forward K values of x, each from memory once if windows do
// not overlap; max_pool_backward the dy and winners of the windows that hold it; the others one
// value (upsample_backward: the values of its block).

// Element i of an array (samples, voxels, channels).
struct Element {
    Index sample;
    int voxel;
    Index channel;

    __device__ Element(Index i, int voxels, Index channels)
        : sample(i / channels / voxels), voxel(i / channels % voxels), channel(i % channels) {}
};

extern "C" __global__ void max_pool_forward(const Real *x, Real *y, int *winner,
                                            Geometry geometry, Index size, Index channels) {
    Index i = global_thread();
    if (i >= size) return;
    Element e(i, geometry.output_voxels(), channels);
    Position output = position_of(e.voxel, geometry.output);
    x += e.sample * geometry.input_voxels() * channels + e.channel;
    float largest = -1.0f / 0.0f;
    int first = 0;  // of equal values the first one wins
    for (int tap = 0; tap < geometry.taps(); ++tap) {
        int voxel = input_voxel(output, position_of(tap, geometry.kernel), geometry);
        if (voxel < 0) continue;
        float value = x[voxel * channels];
        if (value > largest) largest = value, first = tap;
        if (value != value) largest = value;  // NaN stays NaN
    }
    y[i] = largest;
    winner[i] = first;
}

extern "C" __global__ void max_pool_backward(const Real *dy, const int *winner, Real *dx,
                                             Geometry geometry, Index size, Index channels) {
    Index i = global_thread();
    if (i >= size) return;
    Element e(i, geometry.input_voxels(), channels);
    Position input = position_of(e.voxel, geometry.input);
    Index sample = e.sample * geometry.output_voxels() * channels + e.channel;
    float sum = 0;
    for (int tap = 0; tap < geometry.taps(); ++tap) {
        int voxel = output_voxel(input, position_of(tap, geometry.kernel), geometry);
        Index from = sample + voxel * channels;
        if (voxel >= 0 && winner[from] == tap) sum += dy[from];
    }
    dx[i] = sum;
}

// The geometry of upsampling is that of a pooling back from y, its input, to x: kernel = stride.
extern "C" __global__ void upsample_forward(const Real *x, Real *y, Geometry geometry,
                                            Index size, Index channels) {
    Index i = global_thread();
    if (i >= size) return;
    Element e(i, geometry.input_voxels(), channels);
    Position p = position_of(e.voxel, geometry.input);
    for (int a = 0; a < 3; ++a) p.axis[a] /= geometry.stride[a];
    Index voxel = e.sample * geometry.output_voxels() + number_of(p, geometry.output);
    y[i] = x[voxel * channels + e.channel];
}

extern "C" __global__ void upsample_backward(const Real *dy, Real *dx, Geometry geometry,
                                             Index size, Index channels) {
    Index i = global_thread();
    if (i >= size) return;
    Element e(i, geometry.output_voxels(), channels);
    Position p = position_of(e.voxel, geometry.output);
    dy += e.sample * geometry.input_voxels() * channels + e.channel;
    float sum = 0;
    for (int tap = 0; tap < geometry.taps(); ++tap)
        sum += dy[input_voxel(p, position_of(tap, geometry.kernel), geometry) * channels];
    dx[i] = sum;
}

extern "C" __global__ void concat_forward(const Real *a, const Real *b, Real *y, Index size,
                                          Index a_channels, Index b_channels) {
    Index i = global_thread(), channels = a_channels + b_channels;
    if (i >= size) return;
    Index voxel = i / channels, c = i % channels;
    y[i] = c < a_channels ? a[voxel * a_channels + c] : b[voxel * b_channels + c - a_channels];
}

extern "C" __global__ void concat_backward(const Real *dy, Real *da, Real *db, Index size,
                                           Index a_channels, Index b_channels) {
    Index i = global_thread(), channels = a_channels + b_channels;
    if (i >= size) return;
    Index voxel = i / channels, c = i % channels;
    if (c < a_channels)
        da[voxel * a_channels + c] = dy[i];
    else
        db[voxel * b_channels + c - a_channels] = dy[i];
}
