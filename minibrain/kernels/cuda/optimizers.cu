// Adam over all parameters in one launch, each where it lies; the sum of their gradients' squares;
// gradients times a factor, and gradients of 0. Numbers that change from step to step are read from
// memory, so that launches can be recorded once and repeated.
//
//   m = b1 m + (1 - b1) g,   v = b2 v + (1 - b2) g^2,
//   value -= learning_rate / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + epsilon)
//
// m and v are laid end to end. Block b works on CHUNK elements of one parameter; which one, it
// finds by halving in a table: row 0 the parameters' values, 1 their gradients, 2 where they begin
// in m and v (and at the end how long these are), 3 the first block of each.
// Moves: value, m and v once each way, g once (to be scaled: both ways). A thread writes the
// elements it computes; of the squares a block writes its sum, in a fixed order. Architectures:
// sm_80, sm_90.

constexpr int THREADS = 256, EACH_THREAD = 4, CHUNK = THREADS * EACH_THREAD;

// What this block works on: elements [start, end) of one parameter, which begins at `begin` in m,
// v.
struct Share {
    float *value, *gradient;
    Index begin, start, end;

    __device__ Share(const Index *table, Index parameters) {
        Index row = parameters + 1, which = 0, beyond = parameters;
        const Index *begins = table + 2 * row, *first_blocks = table + 3 * row;
        while (beyond - which > 1) {
            Index middle = (which + beyond) / 2;
            (first_blocks[middle] <= blockIdx.x ? which : beyond) = middle;
        }
        value = reinterpret_cast<float *>(table[which]);
        gradient = reinterpret_cast<float *>(table[row + which]);
        begin = begins[which], start = (blockIdx.x - first_blocks[which]) * CHUNK;
        end = min(start + CHUNK, begins[which + 1] - begin);
    }
};

extern "C" __global__ void adam(float *mean, float *square, const Index *table, Index parameters,
                                const unsigned *step, const double *learning_rate,
                                const bool *taken, double beta1, double beta2, double epsilon) {
    if (!*taken) return;
    Share share(table, parameters);
    mean += share.begin, square += share.begin;
    float g[EACH_THREAD], m[EACH_THREAD], v[EACH_THREAD], value[EACH_THREAD];
#pragma unroll
    for (int j = 0; j < EACH_THREAD; ++j) {  // all that is read is on its way at once
        Index i = share.start + threadIdx.x + j * THREADS;
        if (i >= share.end) break;
        g[j] = share.gradient[i], m[j] = mean[i], v[j] = square[i], value[j] = share.value[i];
    }
    double *corrections = shared_memory;
    if (threadIdx.x < 2) {
        double beta = threadIdx.x ? beta2 : beta1;
        corrections[threadIdx.x] = 1 - pow(beta, double(*step));
    }
    __syncthreads();
    float b1 = beta1, b2 = beta2, rate = *learning_rate / corrections[0];
#pragma unroll
    for (int j = 0; j < EACH_THREAD; ++j) {
        Index i = share.start + threadIdx.x + j * THREADS;
        if (i >= share.end) break;
        mean[i] = m[j] = b1 * m[j] + float(1 - beta1) * g[j];
        square[i] = v[j] = b2 * v[j] + float(1 - beta2) * g[j] * g[j];
        float root = sqrtf(v[j] / float(corrections[1])) + float(epsilon);
        share.value[i] = value[j] - rate * m[j] / root;
    }
}

extern "C" __global__ void clear(const Index *table, Index parameters) {
    Share share(table, parameters);
    for (Index i = share.start + threadIdx.x; i < share.end; i += blockDim.x)
        share.gradient[i] = 0;
}

extern "C" __global__ void scale(const Index *table, Index parameters, const double *factor) {
    Share share(table, parameters);
    float by = *factor;
    for (Index i = share.start + threadIdx.x; i < share.end; i += blockDim.x)
        share.gradient[i] *= by;
}

extern "C" __global__ void sum_squares(const Index *table, Index parameters, double *partial) {
    Share share(table, parameters);
    double sum = 0;
    for (Index i = share.start + threadIdx.x; i < share.end; i += blockDim.x)
        sum += (double)share.gradient[i] * share.gradient[i];
    shared_memory[threadIdx.x] = sum;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) shared_memory[threadIdx.x] += shared_memory[threadIdx.x + half];
    }
    if (threadIdx.x == 0) partial[blockIdx.x] = shared_memory[0];
}
