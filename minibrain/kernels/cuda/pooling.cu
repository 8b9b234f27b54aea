// Max-pool, nearest upsampling, their gradients, and concatenation, whose gradients are views. One
// thread for each element that is written; gradients are gathered, in the order of the taps, so that
// nobody adds to what somebody else writes. In max-pool and concatenation a thread takes WIDTH
// channels of a voxel: 8, if the channels are a multiple of it; forward they take what is pending.
//
// Moves, per element written: max_pool_forward K values of x, each from memory once if windows do
// not overlap, and writes besides y a byte, the winner's number; max_pool_backward the dy and
// winners of the windows that hold it, and dskip, which is added before the sum is rounded; the
// others one value (upsample_backward: the values of its block).

// Element i of an array (samples, voxels, channels).
struct Element {
    Index sample;
    int voxel;
    Index channel;

    __device__ Element(Index i, int voxels, Index channels)
        : sample(i / channels / voxels), voxel(i / channels % voxels), channel(i % channels) {}
};

using Number = unsigned char;  // of a tap

template <int WIDTH>
__device__ void max_pool_forward(const Real *x, const Pending &pending, Real *y, Number *winner,
                                 const Geometry &geometry, Index size, Index channels) {
    using Values = Several<WIDTH>;
    Index i = WIDTH * global_thread();
    if (i >= size) return;
    Element e(i, geometry.output_voxels(), channels);
    Position output = position_of(e.voxel, geometry.output);
    Index sample = e.sample * geometry.input_voxels();
    Several<WIDTH> largest;
    Several<WIDTH, Number> first;  // of equal values the first one wins
    for (int j = 0; j < WIDTH; ++j) largest[j] = -1.0f / 0.0f, first[j] = 0;
    for (int tap = 0; tap < geometry.taps(); ++tap) {
        int voxel = input_voxel(output, position_of(tap, geometry.kernel), geometry);
        if (voxel < 0) continue;
        Index at = (sample + voxel) * channels + e.channel;
        Values values = *reinterpret_cast<const Values *>(x + at);
        pending.activate(values, at, e.sample * channels + e.channel);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            float value = values[j];
            if (value > largest[j]) largest[j] = value, first[j] = tap;
            if (value != value) largest[j] = value;  // NaN stays NaN
        }
    }
    *reinterpret_cast<Values *>(y + i) = largest;
    *reinterpret_cast<Several<WIDTH, Number> *>(winner + i) = first;
}

extern "C" __global__ void max_pool_forward_1(const Real *x, const float *lines, Dropout dropout,
                                              Real *y, Number *winner, Geometry geometry,
                                              Index size, Index channels) {
    max_pool_forward<1>(x, {lines, dropout}, y, winner, geometry, size, channels);
}

extern "C" __global__ void max_pool_forward_8(const Real *x, const float *lines, Dropout dropout,
                                              Real *y, Number *winner, Geometry geometry,
                                              Index size, Index channels) {
    max_pool_forward<8>(x, {lines, dropout}, y, winner, geometry, size, channels);
}

template <int WIDTH>
__device__ void max_pool_backward(const Real *dy, const Number *winner, const View &dskip, Real *dx,
                                  const Geometry &geometry, Index size, Index channels) {
    using Values = Several<WIDTH>;
    using Numbers = Several<WIDTH, Number>;
    Index i = WIDTH * global_thread();
    if (i >= size) return;
    Element e(i, geometry.input_voxels(), channels);
    Position input = position_of(e.voxel, geometry.input);
    Index sample = e.sample * geometry.output_voxels();
    float sums[WIDTH] = {};
    for (int tap = 0; tap < geometry.taps(); ++tap) {
        int voxel = output_voxel(input, position_of(tap, geometry.kernel), geometry);
        if (voxel < 0) continue;
        Index from = (sample + voxel) * channels + e.channel;
        Values gradient = *reinterpret_cast<const Values *>(dy + from);
        Numbers won = *reinterpret_cast<const Numbers *>(winner + from);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j)
            if (won[j] == tap) sums[j] += gradient[j];
    }
    Values values = {};
    if (dskip.first) values = dskip.read<WIDTH>(i / channels, e.channel);
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) values[j] = sums[j] + values[j];
    *reinterpret_cast<Values *>(dx + i) = values;
}

extern "C" __global__ void max_pool_backward_1(const Real *dy, const Number *winner,
                                               const Real *dskip, Index pitch, Real *dx,
                                               Geometry geometry, Index size, Index channels) {
    max_pool_backward<1>(dy, winner, {dskip, pitch}, dx, geometry, size, channels);
}

extern "C" __global__ void max_pool_backward_8(const Real *dy, const Number *winner,
                                               const Real *dskip, Index pitch, Real *dx,
                                               Geometry geometry, Index size, Index channels) {
    max_pool_backward<8>(dy, winner, {dskip, pitch}, dx, geometry, size, channels);
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

template <int WIDTH>
__device__ void concat_forward(const Real *a, const Pending &pending_a, const Real *b,
                               const Pending &pending_b, Real *y, Index size, Index voxels,
                               Index a_channels, Index b_channels) {
    using Values = Several<WIDTH>;
    Index i = WIDTH * global_thread(), channels = a_channels + b_channels;
    if (i >= size) return;
    Index voxel = i / channels, sample = voxel / voxels, c = i % channels;
    bool of_a = c < a_channels;
    if (!of_a) c -= a_channels;
    Index own_channels = of_a ? a_channels : b_channels, at = voxel * own_channels + c;
    Values values = *reinterpret_cast<const Values *>((of_a ? a : b) + at);
    Index line = sample * own_channels + c;
    if (of_a) pending_a.activate(values, at, line);
    else pending_b.activate(values, at, line);
    *reinterpret_cast<Values *>(y + i) = values;
}

extern "C" __global__ void concat_forward_1(const Real *a, const float *a_lines, Dropout a_dropout,
                                            const Real *b, const float *b_lines, Dropout b_dropout,
                                            Real *y, Index size, Index voxels, Index a_channels,
                                            Index b_channels) {
    concat_forward<1>(a, {a_lines, a_dropout}, b, {b_lines, b_dropout}, y, size, voxels, a_channels,
                      b_channels);
}

extern "C" __global__ void concat_forward_8(const Real *a, const float *a_lines, Dropout a_dropout,
                                            const Real *b, const float *b_lines, Dropout b_dropout,
                                            Real *y, Index size, Index voxels, Index a_channels,
                                            Index b_channels) {
    concat_forward<8>(a, {a_lines, a_dropout}, b, {b_lines, b_dropout}, y, size, voxels, a_channels,
                      b_channels);
}
