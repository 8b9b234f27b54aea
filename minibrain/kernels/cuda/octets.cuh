// Octets: eight channels of a voxel, which are 16 bytes in bfloat16 and go through a thread at once.

using Octet = Several<8, bfloat16>;

__device__ inline Octet load_octet(const void *from) {
    return *reinterpret_cast<const Octet *>(from);
}

__device__ inline void store_octet(void *to, const float (&values)[8]) {
    *reinterpret_cast<uint4 *>(to) = {pack(values[0], values[1]), pack(values[2], values[3]),
                                      pack(values[4], values[5]), pack(values[6], values[7])};
}

// An octet in shared memory becomes what is pending; see Pending::activate.
__device__ inline void activate_octet(void *octet, const Pending &pending, Index i, Index line) {
    float values[8];
    pending.read<8>(line).normalize(values, load_octet(octet));
    pending.drop(values, i);
    unsigned words[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) words[j] = relu(pack(values[2 * j], values[2 * j + 1]));
    *reinterpret_cast<uint4 *>(octet) = {words[0], words[1], words[2], words[3]};
}
