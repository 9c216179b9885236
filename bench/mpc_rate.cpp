// How many multiply-adds mod 2^64 the vector units of one core make in a second, with nothing to load or store:
// bench/mpc_kernels.py compiles and runs it. AVX-512: vpmullq and vpaddq for eight. AVX2: vpmuludq, vpaddq, vpmulld and
// vpaddd for four. Twelve chains, so that only the rate counts; the best of many short runs in processor time.
#include <immintrin.h>

#include <cstdio>
#include <ctime>

#ifdef __AVX512DQ__
using Vector = __m512i;
constexpr double lanes = 8;
#define MULTIPLY_ADD(sum, other, factor)                                                        \
    asm volatile("vpmullq %2, %2, %%zmm31\n\tvpaddq %%zmm31, %0, %0" : "+v"(sum), "+v"(other) : "v"(factor) : "xmm31")
#else
using Vector = __m256i;
constexpr double lanes = 4;
#define MULTIPLY_ADD(sum, other, factor)                                                                          \
    asm volatile("vpmuludq %2, %2, %%ymm14\n\tvpaddq %%ymm14, %0, %0\n\tvpmulld %2, %2, %%ymm15\n\tvpaddd %%ymm15, %1, %1" \
                 : "+x"(sum), "+x"(other)                                                                         \
                 : "x"(factor)                                                                                    \
                 : "xmm14", "xmm15")
#endif

double now() {
    timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

int main() {
    constexpr int chains = 6, rounds = 20000;
    Vector sums[chains] = {}, others[chains] = {};
    const Vector factor = (Vector)(Vector{} + 12345);
    double best = 1;
    for (int run = 0; run < 200; ++run) {
        const double start = now();
        for (int round = 0; round < rounds; ++round) {
#pragma GCC unroll 6
            for (int i = 0; i < chains; ++i) MULTIPLY_ADD(sums[i], others[i], factor);
        }
        const double spent = now() - start;
        if (spent < best) best = spent;
    }
    long long total = 0;
    for (int i = 0; i < chains; ++i) total += sums[i][0] + others[i][0];
    std::printf("%.4e %lld\n", lanes * chains * rounds / best, total);
}
