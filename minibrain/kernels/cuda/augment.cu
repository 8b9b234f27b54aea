// Gaussian noise, added to an image in place: the numbers that NumPy's Philox4x64-10 gives, by the
// formula of minibrain/data/augment.py.
//
// A thread draws four words and adds the eight numbers that they make to eight neighbours, which
// nobody else writes. Moves: the image both ways. Architectures: sm_80, sm_90.

using Word = unsigned long long;

// Four words to a counter and a key: ten rounds, as those of DropoutFactors with 64 bits for 32.
__device__ inline void draw(Word (&words)[4], Word k0, Word k1) {
    for (int round = 0; round < 10; ++round) {
        Word low0 = words[0] * 0xD2E7470EE14C6C93, high0 = __umul64hi(words[0], 0xD2E7470EE14C6C93);
        Word low1 = words[2] * 0xCA5A826395121157, high1 = __umul64hi(words[2], 0xCA5A826395121157);
        words[0] = high1 ^ words[1] ^ k0, words[1] = low1;
        words[2] = high0 ^ words[3] ^ k1, words[3] = low0;
        k0 += 0x9E3779B97F4A7C15, k1 += 0xBB67AE8584CAA73B;
    }
}

extern "C" __global__ void add_noise(float *image, Index size, double std, Word seed, Word epoch,
                                     Word index) {
    Index block = global_thread(), first = 8 * block;
    if (first >= size) return;
    Word words[4] = {block + 1ull, 0, 0, epoch};  // NumPy counts before it draws
    draw(words, seed, index);
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
        float u = unsigned(words[i / 2]) >> 8, v = words[i / 2] >> 40, sine, cosine;
        float radius = float(std) * sqrtf(-2 * logf(1 - u * 0x1p-24f));
        sincospif(v * 0x1p-23f, &sine, &cosine);  // of 2 pi v / 2^24
        if (first + i < size) image[first + i] += radius * cosine;
        if (first + i + 1 < size) image[first + i + 1] += radius * sine;
    }
}
