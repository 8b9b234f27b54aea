// The functions of tensor_core.cuh for a CPU, behind emulation.h.
//
// A copy happens when it is started or, in schedules with bit 4, as late as it may: when its thread
// waits for its group. So a wait that is missing shows, and so does a copy that is started too
// early.
#pragma once

namespace emulation {

inline float widened(unsigned bits) { return __uint_as_float(bits << 16); }

inline unsigned rounded(float value) {  // to the nearest bfloat16, halves to even
    unsigned bits = __float_as_uint(value);
    return value == value ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fff;
}

// Every lane brings something, and the last one to come works on all of it.
template <class Mine, class Work> void together(Mine mine, Work work) {
    Warp &warp = *current->warp;
    warp.brought[current->lane] = &mine;
    if (warp.meeting.members < WARP) fault = "a warp that is not whole works together";
    if (warp.meeting.arrived + 1 == WARP) work(reinterpret_cast<Mine **>(warp.brought));
    meet(warp.meeting);
}

struct Product {
    float *d;
    const unsigned *a;
    unsigned b[2];
};

__attribute__((optimize("O3"))) inline void multiply_add_all(Product **lanes) {
    using Row = float __attribute__((vector_size(8 * sizeof(float))));
    float a[16][16];
    Row b[16], d[16];
    for (int lane = 0; lane < 32; ++lane) {
        int g = lane / 4, t = lane % 4 * 2;
        const Product &mine = *lanes[lane];
        for (int i = 0; i < 4; ++i) {
            a[g + i % 2 * 8][t + i / 2 * 8] = widened(mine.a[i] & 0xffff);
            a[g + i % 2 * 8][t + i / 2 * 8 + 1] = widened(mine.a[i] >> 16);
            d[g + i / 2 * 8][t + i % 2] = mine.d[i];
        }
        for (int i = 0; i < 2; ++i) {
            b[t + i * 8][g] = widened(mine.b[i] & 0xffff);
            b[t + i * 8 + 1][g] = widened(mine.b[i] >> 16);
        }
    }
    for (int row = 0; row < 16; ++row) {
        Row sums = d[row];
        for (int k = 0; k < 16; ++k) sums += a[row][k] * b[k];
        d[row] = sums;
    }
    for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < 4; ++i)
            lanes[lane]->d[i] = d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}

struct Load {
    unsigned *words;
    const char *row;
};

template <bool transposed> void load_all(Load **lanes) {
    if (count_banks) {
        size_t places[WARP];
        for (unsigned lane = 0; lane < WARP; ++lane)
            places[lane] = reinterpret_cast<size_t>(lanes[lane]->row);
        count_conflicts(places, 16);
    }
    for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < 4; ++i)
            for (int half = 0; half < 2; ++half) {
                int row = lane / 4, column = lane % 4 * 2 + half;
                if (transposed) std::swap(row, column);
                std::memcpy(reinterpret_cast<char *>(lanes[lane]->words + i) + 2 * half,
                            lanes[8 * i + row]->row + 2 * column, 2);
            }
}

template <bool transposed> void load(unsigned *words, const void *row) {
    if (reinterpret_cast<size_t>(row) % 16) fault = "a row of a matrix begins at an odd place";
    together(Load{words, static_cast<const char *>(row)}, load_all<transposed>);
}

inline void perform(const Copy &copy) {
    if (copy.there) std::memcpy(copy.to, copy.from, copy.bytes);
    else std::memset(copy.to, 0, copy.bytes);
}

__attribute__((noinline)) inline void copy(void *to, const void *from, size_t bytes, bool there) {
    if (reinterpret_cast<size_t>(to) % bytes || reinterpret_cast<size_t>(from) % bytes)
        fault = "an asynchronous copy begins at an odd place";
    Copy copy = {to, from, bytes, there, __builtin_return_address(0)};
    if (count_banks) current->copied.back().push_back(copy);
    if (late_copies) current->groups.back().push_back(copy);
    else perform(copy);
}

inline void wait_for_groups(size_t pending) {
    auto &groups = current->groups;  // the last one is still open
    while (groups.size() > pending + 1) {
        for (const Copy &copy : groups.front()) perform(copy);
        groups.erase(groups.begin());
    }
}

}  // namespace emulation

inline unsigned pack(float low, float high) {
    return emulation::rounded(low) | emulation::rounded(high) << 16;
}

inline float larger(float a, float b) {
    if (a != a || b != b) return a + b;
    return a == b ? (std::signbit(a) ? b : a) : a > b ? a : b;  // 0 is larger than -0
}

inline unsigned relu(unsigned word) {
    auto larger = [](unsigned bits) { return bits & 0x8000 && bits <= 0xff80 ? 0 : bits; };
    return larger(word & 0xffff) | larger(word >> 16) << 16;
}

inline void multiply_add(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    emulation::together(emulation::Product{d, a, {b0, b1}}, emulation::multiply_add_all);
}

inline void load_matrices(unsigned (&words)[4], const void *row) {
    emulation::load<false>(words, row);
}

inline void load_transposed(unsigned (&words)[4], const void *row) {
    emulation::load<true>(words, row);
}

__attribute__((always_inline)) inline void copy_16_bytes(void *to, const void *from, bool there) {
    emulation::copy(to, from, 16, there);
}

__attribute__((always_inline)) inline void copy_8_bytes(void *to, const void *from, bool there) {
    emulation::copy(to, from, 8, there);
}

inline void close_group() {
    emulation::current->groups.emplace_back();
    emulation::current->copied.emplace_back();
}

template <int pending> void wait_for_groups() { emulation::wait_for_groups(pending); }
