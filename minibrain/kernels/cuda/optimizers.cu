// Adam over all parameters in one launch, each where it lies.
//
//   m = b1 m + (1 - b1) g,   v = b2 v + (1 - b2) g^2,
//   value -= learning_rate / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + epsilon)
//
// m and v are laid end to end. Block b works on CHUNK elements of one parameter; which one, it
// finds by halving in a table: row 0 the parameters' values, 1 their gradients, 2 where they begin
// in m and v (and at the end how long these are), 3 the first block of each.
// Moves: value, m and v once each way, g once. A thread writes the elements it computes.

constexpr int CHUNK = 1024;

extern "C" __global__ void adam(float *mean, float *square, const Index *table, Index parameters,
                                double learning_rate, double beta1, double beta2, double epsilon,
                                double correction1, double correction2) {
    Index row = parameters + 1;
    const Index *begins = table + 2 * row, *first_blocks = table + 3 * row;
    Index which = 0, beyond = parameters;
    while (beyond - which > 1) {
        Index middle = (which + beyond) / 2;
        (first_blocks[middle] <= blockIdx.x ? which : beyond) = middle;
    }
    float *value = reinterpret_cast<float *>(table[which]);
    const float *gradient = reinterpret_cast<const float *>(table[row + which]);
    Index begin = begins[which], size = begins[which + 1] - begin;
    Index start = (blockIdx.x - first_blocks[which]) * CHUNK, end = min(start + CHUNK, size);
    float b1 = beta1, b2 = beta2, rate = learning_rate / correction1;
    for (Index i = start + threadIdx.x; i < end; i += blockDim.x) {
        float g = gradient[i];
        float m = mean[begin + i] = b1 * mean[begin + i] + float(1 - beta1) * g;
        float v = square[begin + i] = b2 * square[begin + i] + float(1 - beta2) * g * g;
        value[i] -= rate * m / (sqrtf(v / float(correction2)) + float(epsilon));
    }
}
