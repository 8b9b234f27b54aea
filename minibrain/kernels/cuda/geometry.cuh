// Where the taps of a convolution or pooling meet its input.

// The shape of a convolution or pooling along three axes; an axis that is absent has size 1.
struct Geometry {
    int input[3], output[3], kernel[3], stride[3], padding[3], dilation[3];

    __device__ int input_voxels() const { return input[0] * input[1] * input[2]; }
    __device__ int output_voxels() const { return output[0] * output[1] * output[2]; }
    __device__ int taps() const { return kernel[0] * kernel[1] * kernel[2]; }
};

struct Position {
    int axis[3];
};

__device__ inline Position position_of(int number, const int (&size)[3]) {
    unsigned n = number, row = n / size[2], plane = row / size[1];  // cheaper than with a sign
    return {int(plane), int(row - plane * size[1]), int(n - row * size[2])};
}

__device__ inline int number_of(const Position &p, const int (&size)[3]) {
    return (p.axis[0] * size[1] + p.axis[1]) * size[2] + p.axis[2];
}

// Along an axis: where a tap of the kernel meets the input at an output position, or -1 in the
// padding; and where in the output it meets an input position, or -1 if there is none.
__device__ inline int input_along(int a, int output, int tap, const Geometry &g) {
    int input = g.stride[a] * output + g.dilation[a] * tap - g.padding[a];
    return input >= 0 && input < g.input[a] ? input : -1;
}

__device__ inline int output_along(int a, int input, int tap, const Geometry &g) {
    int distance = input + g.padding[a] - g.dilation[a] * tap;
    unsigned stride = g.stride[a], output = distance / stride;
    return distance >= 0 && distance == output * stride && output < g.output[a] ? output : -1;
}

// The voxel of the input, or of the output, that a tap of all axes meets so, or -1.
__device__ inline int input_voxel(const Position &output, const Position &tap, const Geometry &g) {
    Position p;
    for (int a = 0; a < 3; ++a) {
        p.axis[a] = input_along(a, output.axis[a], tap.axis[a], g);
        if (p.axis[a] < 0) return -1;
    }
    return number_of(p, g.input);
}

__device__ inline int output_voxel(const Position &input, const Position &tap, const Geometry &g) {
    Position p;
    for (int a = 0; a < 3; ++a) {
        p.axis[a] = output_along(a, input.axis[a], tap.axis[a], g);
        if (p.axis[a] < 0) return -1;
    }
    return number_of(p, g.output);
}
