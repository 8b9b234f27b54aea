// What the hardware can do and C++ cannot say: rounding to bfloat16, tensor cores and asynchronous
// copies (sm_80 and later). The only inline PTX is here; the tests have the same functions for a
// CPU.
//
// multiply_add is D += A B for A (16, 16) and B (16, 8) in bfloat16 and D (16, 8) in float32. The
// 32 lanes of a warp hold the matrices together; lane 4 g + t has, two to a word where they are
// neighbours,
//
//   A   rows g, g + 8, g, g + 8    at columns 2t, 2t + 1 (twice) and 2t + 8, 2t + 9 (twice)
//   B   rows 2t, 2t + 1 and 2t + 8, 2t + 9    of column g
//   D   columns 2t, 2t + 1    of rows g and g + 8
//
// load_matrices brings four (8, 8) matrices out of shared memory: lane 8 i + r says where row r of
// matrix i is, 16 bytes, and gets columns 2t, 2t + 1 of row g of every matrix, and with
// load_transposed rows 2t, 2t + 1 of column g. Rows that lie in 128 bytes in a row do not make each
// other wait.

__device__ inline unsigned pack(float low, float high) {  // two bfloat16 in a word
    unsigned word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

__device__ inline float larger(float a, float b) {  // NaN, if one of them is
    float result;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
    return result;
}

// The larger of two bfloat16 and 0, twice; NaN stays NaN.
__device__ inline unsigned relu(unsigned word) {
    unsigned result;
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(word), "r"(0));
    return result;
}

// Volatile, because all lanes must come: it must not be moved to where only some need the result.
__device__ inline void multiply_add(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                    unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline unsigned shared_address(const void *address) {
    return static_cast<unsigned>(__cvta_generic_to_shared(address));
}

__device__ inline void load_matrices(unsigned (&words)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ inline void load_transposed(unsigned (&words)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Start to copy 16 bytes into shared memory past the registers, or zeros if there is nothing there.
__device__ inline void copy_16_bytes(void *to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(there ? 16 : 0)
                 : "memory");
}

__device__ inline void copy_8_bytes(void *to, const void *from, bool there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(there ? 8 : 0)
                 : "memory");
}

// What this thread has started to copy since the last time becomes a group.
__device__ inline void close_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait for this thread's groups but the last `pending`. Others see what was copied after a barrier.
template <int pending> __device__ void wait_for_groups() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}
