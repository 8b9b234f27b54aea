// Sums of parts: what blocks have added up each for itself, added up in order.
//
// A block has COLUMNS columns of LANES threads, and a column makes one sum: a thread takes every
// LANES-th part, then the first adds the lanes, in order.
constexpr int COLUMNS = 32, LANES = 8;

__device__ inline Index global_column() { return blockIdx.x * (Index)COLUMNS + threadIdx.x; }

// The parts lie `stride` apart; the first thread of the column gets the sum. All threads of a block
// must come here, but those whose column has nothing to add are not `here`.
template <class From>
__device__ double sum_of_parts(const From *first, Index parts, Index stride, bool here) {
    double(*lanes)[COLUMNS] = reinterpret_cast<double(*)[COLUMNS]>(shared_memory);
    double sum = 0;
    if (here)
        for (Index part = threadIdx.y; part < parts; part += LANES) sum += first[part * stride];
    __syncthreads();  // the lanes of the sum before this one have been added
    lanes[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0)
        for (int lane = 1; lane < LANES; ++lane) sum += lanes[lane][threadIdx.x];
    return sum;
}
