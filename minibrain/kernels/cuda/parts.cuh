// Sums of parts: what blocks have added up each for itself, added up in order.
//
// A block's threads are (columns, lanes), and a column makes one sum: a thread takes every lane'th
// part, then the first adds the lanes, in order. With few parts there are few lanes, with many
// parts few columns, so that no thread waits for long, nor in vain; see reduce.py. AT_ONCE parts
// are loaded before the first is added.
constexpr int AT_ONCE = 8;

__device__ inline Index global_column() { return blockIdx.x * (Index)blockDim.x + threadIdx.x; }

// The parts lie `stride` apart; the first thread of the column gets the sum. All threads of a block
// must come here, but those whose column has nothing to add are not `here`.
template <class From>
__device__ double sum_of_parts(const From *first, int parts, Index stride, bool here) {
    int columns = blockDim.x, lanes = blockDim.y;
    double sum = 0;
    first += threadIdx.y * stride;
    for (int part = threadIdx.y; here && part < parts; part += AT_ONCE * lanes) {
        From few[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; ++j, first += lanes * stride)
            few[j] = part + j * lanes < parts ? *first : 0;
#pragma unroll
        for (int j = 0; j < AT_ONCE; ++j) sum += few[j];
    }
    __syncthreads();  // the lanes of the sum before this one have been added
    shared_memory[threadIdx.y * columns + threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0)
        for (int lane = 1; lane < lanes; ++lane) sum += shared_memory[lane * columns + threadIdx.x];
    return sum;
}
