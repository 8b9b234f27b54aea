// CUDA C++ on a CPU, for tests: the same .cu sources, compiled by any C++ compiler after this
// header.
//
// A launch runs one block after the other, and every thread of a block as a fiber that goes on
// until it has to wait for others: at __syncthreads (for the block) or a shuffle (for its warp).
// So a barrier that is missing lets one thread run as far ahead as it can, and shows. Before each
// block shared memory is filled with NaN, and what lies behind the bytes that the launch asked for
// is watched. What is read or written at once must begin at a multiple of its size, as on a device:
// g++ calls a function here where it does not. A schedule has four bits: 1 runs blocks, warps and
// lanes in descending order; 2 runs one warp as far as it gets before the next, instead of all of
// them a step at a time; 4 makes asynchronous copies as late as they may be, see
// emulated_tensor_core.h; 8 counts bank conflicts of these copies and of matrices that are loaded.
//
// Not seen: bank conflicts of other loads and stores, weak memory ordering, races between blocks
// beyond their two orders.
#pragma once
#include <setjmp.h>
#include <signal.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

using std::max;
using std::min;

struct dim3 {
    unsigned x, y, z;
};

struct alignas(8) uint2 {
    unsigned x, y;
};

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

// the least that a block may have on any device from sm_80 on: sm_86, sm_89 and sm_120 have no more
constexpr size_t SHARED_LIMIT = 99 * 1024, GUARD = 1024;
alignas(128) double shared_memory[(SHARED_LIMIT + GUARD) / sizeof(double)];

namespace emulation {

constexpr unsigned WARP = 32;
constexpr size_t STACK = 64 * 1024;

struct Meeting {  // of all threads of a warp or block
    unsigned members = 0, arrived = 0, held = 0;
};

struct Warp {
    Meeting meeting;
    alignas(8) char values[WARP][8];
    void *brought[WARP];
};

struct Copy {  // asynchronous, not yet made
    void *to;
    const void *from;
    size_t bytes;
    bool there;
    const void *caller;
};

struct Fiber {
    dim3 index;
    unsigned lane;
    Warp *warp;
    bool finished;
    bool started = false;
    std::vector<std::vector<Copy>> groups, copied;  // that are to be made; all of them
    ucontext_t context;
    jmp_buf state;
    std::vector<char> stack = std::vector<char>(STACK);
};

struct Launch {
    unsigned grid[3], block[3];
    long long shared_bytes, first_block, end_block;
    int schedule;
    long long conflicts;  // of banks
};

using Body = void (*)(void *kernel, void **arguments);

inline std::vector<Fiber *> fibers;  // kept from launch to launch: fiber t runs thread t
inline std::vector<Warp> warps;
inline Meeting block_meeting;
inline Fiber *current, **turn;  // turn: of the lanes of a warp that follow it, up to a null
inline jmp_buf scheduler;
inline dim3 grid_size, block_size, block_index;
inline unsigned progress;  // counts meetings held and threads finished
inline unsigned finished;  // threads of this block
inline Body body;
inline void *kernel;
inline void **arguments;
inline bool late_copies, count_banks;
inline const char *fault;  // that a kernel made and the launch is to report
inline long long conflicts;

void live();

inline void go_on() {  // with the lane whose turn is next, or with the scheduler
    current = *turn++;
    if (!current) _longjmp(scheduler, 1);
    if (current->started) _longjmp(current->state, 1);
    current->started = true;
    getcontext(&current->context);
    current->context.uc_stack.ss_sp = current->stack.data();
    current->context.uc_stack.ss_size = STACK;
    makecontext(&current->context, live, 0);
    setcontext(&current->context);
}

inline void pause() {
    if (!_setjmp(current->state)) go_on();
}

inline void live() {  // the life of a fiber: one thread of each block, for ever
    for (;;) {
        body(kernel, arguments);
        current->finished = true;
        ++progress, ++finished;
        pause();
    }
}

// The thread ends here, before it does what is wrong, and begins anew in the next block.
inline void stop(const char *reason) {
    fault = reason;
    current->started = false;
    current->finished = true;
    ++progress, ++finished;
    pause();
}

// While it lives, a thread ends where it touches memory that is protected, beside an array say.
struct Trap {
    struct sigaction before;

    Trap() {
        struct sigaction action = {};
        action.sa_handler = [](int) { stop("memory of no array is read or written"); };
        action.sa_flags = SA_NODEFER;  // it does not return
        sigaction(SIGSEGV, &action, &before);
    }
    ~Trap() { sigaction(SIGSEGV, &before, nullptr); }
};

inline void meet(Meeting &meeting) {
    unsigned before = meeting.held;
    if (++meeting.arrived == meeting.members) {
        meeting.arrived = 0;
        ++meeting.held;
        ++progress;
    }
    while (meeting.held == before) pause();
}

template <class T> T from_lane(T value, unsigned source) {
    Warp &warp = *current->warp;
    std::memcpy(warp.values[current->lane], &value, sizeof value);
    meet(warp.meeting);
    if (source < warp.meeting.members) std::memcpy(&value, warp.values[source], sizeof value);
    meet(warp.meeting);  // nobody overwrites what another has yet to read
    return value;
}

inline void prepare_block(unsigned threads) {
    block_meeting = {threads};
    warps.assign((threads + WARP - 1) / WARP, Warp());
    while (fibers.size() < threads) fibers.push_back(new Fiber);
    for (unsigned t = 0; t < threads; ++t) {
        Fiber &fiber = *fibers[t];
        fiber.index = {t % block_size.x, t / block_size.x % block_size.y,
                       t / block_size.x / block_size.y};
        fiber.lane = t % WARP;
        fiber.warp = &warps[t / WARP];
        fiber.warp->meeting.members++;
        fiber.finished = false;
        fiber.groups.assign(1, {});
        fiber.copied.assign(1, {});
    }
}

// So many lanes as move 128 bytes of shared memory together, `bytes` each, do so at once, unless
// places in the same column of banks make them wait for each other. Lanes without a place have 0.
inline void count_conflicts(const size_t (&places)[WARP], size_t bytes) {
    size_t columns = 128 / bytes;
    for (size_t first = 0; first < WARP; first += columns) {
        size_t most = 1;
        for (size_t column = 0; column < columns; ++column) {
            std::set<size_t> rows;
            for (size_t lane = first; lane < first + columns; ++lane)
                if (places[lane] && places[lane] / bytes % columns == column)
                    rows.insert(places[lane]);
            most = max(most, rows.size());
        }
        conflicts += most - 1;
    }
}

// Of the copies that the lanes of a warp make together: those of one group which the same line of
// the kernel starts for the same time.
inline void count_conflicts_of_copies(const Fiber *const *lanes) {
    struct Places {
        size_t of_lanes[WARP] = {}, bytes;
    };
    for (size_t group = 0; group < lanes[0]->copied.size(); ++group) {
        std::map<std::pair<const void *, int>, Places> together;
        for (unsigned lane = 0; lane < WARP; ++lane) {
            std::map<const void *, int> times;
            for (const Copy &copy : lanes[lane]->copied[group]) {
                Places &places = together[{copy.caller, times[copy.caller]++}];
                places.of_lanes[lane] = reinterpret_cast<size_t>(copy.to);
                places.bytes = copy.bytes;
            }
        }
        for (const auto &[_, places] : together) count_conflicts(places.of_lanes, places.bytes);
    }
}

inline void step_warp(unsigned warp, unsigned threads, bool descending) {
    unsigned first = warp * WARP, count = min(WARP, threads - first);
    Fiber *lanes[WARP + 1], **end = lanes;
    for (unsigned i = 0; i < count; ++i) {
        Fiber *fiber = fibers[first + (descending ? count - 1 - i : i)];
        if (!fiber->finished) *end++ = fiber;
    }
    *end = nullptr;
    turn = lanes;
    if (!_setjmp(scheduler)) go_on();
}

inline const char *run_block(const Launch &launch) {
    bool descending = launch.schedule & 1, greedy = launch.schedule & 2;
    unsigned threads = block_size.x * block_size.y * block_size.z;
    prepare_block(threads);
    std::memset(shared_memory, 0xff, launch.shared_bytes + GUARD);
    late_copies = launch.schedule & 4, count_banks = launch.schedule & 8;
    fault = nullptr;
    finished = 0;
    while (finished < threads) {
        unsigned before = progress;
        for (unsigned i = 0; i < warps.size(); ++i) {
            unsigned warp = descending ? warps.size() - 1 - i : i, last;
            do {
                last = progress;
                step_warp(warp, threads, descending);
            } while (greedy && progress != last);
        }
        if (progress == before) {
            fibers.clear();  // those that wait for ever are left behind
            return fault ? fault
                         : "threads wait for others that never come: a barrier that not all reach";
        }
    }
    for (unsigned first = 0; count_banks && first + WARP <= threads; first += WARP)
        count_conflicts_of_copies(&fibers[first]);
    const char *used = reinterpret_cast<char *>(shared_memory) + launch.shared_bytes;
    bool clean = std::all_of(used, used + GUARD, [](char byte) { return byte == char(0xff); });
    return clean ? fault : "shared memory was written beyond the launch's shared_bytes";
}

inline const char *run(Launch &launch) {
    const unsigned *g = launch.grid, *b = launch.block;
    if (!g[0] || !g[1] || !g[2] || g[0] > 0x7fffffff || g[1] > 65535 || g[2] > 65535)
        return "a grid of this size cannot be launched";
    if (!b[0] || !b[1] || !b[2] || b[2] > 64 || size_t(b[0]) * b[1] * b[2] > 1024)
        return "a block of this size cannot be launched";
    if (launch.shared_bytes > (long long)SHARED_LIMIT)
        return "more shared memory than a block can have";
    grid_size = {g[0], g[1], g[2]};
    block_size = {b[0], b[1], b[2]};
    Trap trap;
    conflicts = 0;
    for (long long i = launch.first_block; i < launch.end_block; ++i) {
        long long n = launch.schedule & 1 ? launch.first_block + launch.end_block - 1 - i : i;
        block_index = {unsigned(n % g[0]), unsigned(n / g[0] % g[1]), unsigned(n / g[0] / g[1])};
        if (const char *error = run_block(launch)) return error;
    }
    launch.conflicts = conflicts;
    return nullptr;
}

template <class... Parameters, size_t... i>
void call(void (*kernel)(Parameters...), void **arguments, std::index_sequence<i...>) {
    kernel(*static_cast<std::remove_reference_t<Parameters> *>(arguments[i])...);
}

template <class... Parameters>
const char *launch(void (*function)(Parameters...), Launch &launch, void **values, int count) {
    if (count != sizeof...(Parameters)) return "the kernel takes another number of arguments";
    kernel = reinterpret_cast<void *>(function);
    arguments = values;
    body = [](void *kernel, void **arguments) {
        call(reinterpret_cast<void (*)(Parameters...)>(kernel), arguments,
             std::index_sequence_for<Parameters...>{});
    };
    return run(launch);
}

// What a parameter takes: i8 an integer of 8 bytes, f4* a pointer to floats, s72 a struct.
template <class T> void describe(std::string &text) {
    using Element = std::remove_cv_t<std::remove_pointer_t<T>>;
    bool is_float = std::is_floating_point_v<Element> ||
                    (std::is_pointer_v<T> && sizeof(Element) == 2);
    text += is_float ? 'f' : std::is_integral_v<Element> ? 'i' : 's';
    text += std::to_string(sizeof(Element)) + (std::is_pointer_v<T> ? "* " : " ");
}

template <class... Parameters> const char *signature(void (*)(Parameters...)) {
    static std::string text;
    text.clear();
    (describe<Parameters>(text), ...);
    return text.c_str();
}

}  // namespace emulation

extern "C" void __ubsan_handle_type_mismatch_v1(void *, void *) {
    emulation::stop("memory is read or written at an odd place");
}

#define threadIdx (emulation::current->index)
#define blockIdx (emulation::block_index)
#define blockDim (emulation::block_size)
#define gridDim (emulation::grid_size)

inline void __syncthreads() { emulation::meet(emulation::block_meeting); }

template <class T> T __shfl_down_sync(unsigned, T value, unsigned distance) {
    return emulation::from_lane(value, emulation::current->lane + distance);
}

template <class T> T __shfl_xor_sync(unsigned, T value, unsigned bits) {
    return emulation::from_lane(value, emulation::current->lane ^ bits);
}

template <class T> T __ldg(const T *address) { return *address; }

inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned long long)a * b >> 32; }

inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned __int128)a * b >> 64;
}

inline void sincospif(float x, float *sine, float *cosine) {
    *sine = std::sin(M_PI * x), *cosine = std::cos(M_PI * x);
}

inline unsigned __float_as_uint(float value) {
    unsigned word;
    std::memcpy(&word, &value, sizeof word);
    return word;
}

inline float __uint_as_float(unsigned word) {
    float value;
    std::memcpy(&value, &word, sizeof value);
    return value;
}

// makes one kernel callable by name from outside
#define EMULATE(kernel)                                                                    \
    extern "C" const char *emulate_##kernel(emulation::Launch *launch, void **values,      \
                                            int count) {                                   \
        return emulation::launch(kernel, *launch, values, count);                          \
    }                                                                                      \
    extern "C" const char *signature_##kernel() { return emulation::signature(kernel); }
