// Sums in two stages: parts of it, block by block, and then the parts, in order.
//
// add_parts_*: partial (rows, parts, length) -> sums (rows, length). A block adds COLUMNS sums up:
// of its LANES threads for each, one takes every LANES-th part, and then the first adds the lanes,
// in order, and writes. Moves the partial sums once; they are few.
constexpr int COLUMNS = 32, LANES = 8;

template <class From, class To>
__device__ void add_parts(const From *partial, To *sums, Index rows, Index parts, Index length) {
    double(*lanes)[COLUMNS] = reinterpret_cast<double(*)[COLUMNS]>(shared_memory);
    Index i = blockIdx.x * (Index)COLUMNS + threadIdx.x;
    double sum = 0;
    if (i < rows * length) {
        const From *first = partial + i / length * parts * length + i % length;
        for (Index part = threadIdx.y; part < parts; part += LANES) sum += first[part * length];
    }
    lanes[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || i >= rows * length) return;
    for (int lane = 1; lane < LANES; ++lane) sum += lanes[lane][threadIdx.x];
    sums[i] = sum;
}

extern "C" __global__ void add_parts_to_double(const double *partial, double *sums, Index rows,
                                               Index parts, Index length) {
    add_parts(partial, sums, rows, parts, length);
}

extern "C" __global__ void add_parts_to_float(const double *partial, float *sums, Index rows,
                                              Index parts, Index length) {
    add_parts(partial, sums, rows, parts, length);
}

extern "C" __global__ void add_float_parts(const float *partial, float *sums, Index rows,
                                           Index parts, Index length) {
    add_parts(partial, sums, rows, parts, length);
}

// sum_channels: x (groups, voxels, channels) -> partial (1, groups, parts, channels). Reads x once.
extern "C" __global__ void sum_channels(const Real *x, Index voxels, Index channels,
                                        double *partial) {
    x += blockIdx.z * voxels * channels;
    sum_over_voxels<1>(voxels, channels, partial, [&](Index voxel, int channel, double *sums) {
        sums[0] += x[voxel * channels + channel];
    });
}
