// How many products of eight words of 52 bits (AVX-512-IFMA) one core makes in a second; bench/native.py compiles and
// runs it. Sixteen chains, so that only the rate counts; the best of many short runs, as other programs share the core.
#include <immintrin.h>

#include <chrono>
#include <cstdio>

int main() {
    constexpr int chains = 16, rounds = 20000;
    __m512i words[chains];
    for (int i = 0; i < chains; ++i) words[i] = _mm512_set1_epi64(i + 12345);
    const __m512i factor = _mm512_set1_epi64((1ll << 52) - 3);
    double best = 1;
    for (int run = 0; run < 200; ++run) {
        const auto start = std::chrono::steady_clock::now();
        for (int round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
            for (int i = 0; i < chains; ++i) words[i] = _mm512_madd52lo_epu64(words[i], words[i], factor);
        }
        const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
        if (spent.count() < best) best = spent.count();
    }
    __m512i total = words[0];
    for (int i = 1; i < chains; ++i) total = _mm512_add_epi64(total, words[i]);
    std::printf("%.4e %lld\n", chains * rounds / best, _mm512_reduce_add_epi64(total));
}
