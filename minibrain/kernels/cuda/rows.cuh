// Rows of a convolution's matrices: the positions of all samples, one after the other.
#include "geometry.cuh"

// A position of a sample, which with a tap has a voxel as its source.
struct Row {
    int sample;
    Position position;

    __device__ Row() = default;
    template <class Number>
    __device__ Row(Number number, const Geometry &g)
        : sample(number / g.output_voxels()),
          position(position_of(number % g.output_voxels(), g.output)) {}

    // As many positions further as `step` is from the first: digits are added, without a division.
    __device__ void advance(const Row &step, const Geometry &g) {
        bool carry = false;
#pragma unroll
        for (int a = 2; a >= 0; --a) {
            position.axis[a] += step.position.axis[a] + carry;
            carry = position.axis[a] >= g.output[a];
            if (carry) position.axis[a] -= g.output[a];
        }
        sample += step.sample + carry;
    }
};
