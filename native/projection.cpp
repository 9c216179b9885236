#include "projection.hpp"

// Two bodies; the loader picks at start (glibc's ifunc), as in clones.hpp.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(CONFIDE_SANITIZE)
#define CONFIDE_AVX512
#define CONFIDE_DEFAULT __attribute__((target("default")))
#include <immintrin.h>

#include <initializer_list>
#else
#define CONFIDE_DEFAULT
#endif

namespace confide {
namespace {

// The sums of all subsets of `count` words, in the order of the subsets read as binary numbers.
template <typename Word>
inline void subset_sums(const Word *words, std::size_t count, Word *table) {
    table[0] = 0;
    for (std::size_t bit = 0, half = 1; bit < count; ++bit, half *= 2)
        for (std::size_t subset = 0; subset < half; ++subset)
            table[half + subset] = static_cast<Word>(table[subset] + words[bit]);
}

// A byte of choices costs one load. The choices are public: which line of the table is read tells nobody anything.
template <typename Word>
inline void sum_by_table(Word *acc, std::size_t rows, const Word *words, const std::uint8_t *choices,
                             std::size_t groups) {
    Word table[256];
    for (std::size_t group = 0; group < groups; ++group, words += 8, choices += 2 * rows) {
        subset_sums(words, 8, table);
        for (std::size_t row = 0; row < rows; ++row)
            acc[row] += static_cast<Word>(table[choices[row]] + table[choices[rows + row]] - table[255]);
    }
}

CONFIDE_DEFAULT void sum(std::uint32_t *acc, std::size_t rows, const std::uint32_t *words,
                         const std::uint8_t *choices, std::size_t groups) {
    sum_by_table(acc, rows, words, choices, groups);
}

CONFIDE_DEFAULT void sum(std::uint64_t *acc, std::size_t rows, const std::uint64_t *words,
                         const std::uint8_t *choices, std::size_t groups) {
    sum_by_table(acc, rows, words, choices, groups);
}

#ifdef CONFIDE_AVX512

// Half a byte of choices picks one of sixteen sums, which stand in registers: no load for a choice at all.

__attribute__((target("avx512f"))) void sum(std::uint32_t *acc, std::size_t rows, const std::uint32_t *words,
                                            const std::uint8_t *choices, std::size_t groups) {
    alignas(64) std::uint32_t table[32];
    for (std::size_t group = 0; group < groups; ++group, words += 8, choices += 2 * rows) {
        subset_sums(words, 4, table);
        subset_sums(words + 4, 4, table + 16);
        const __m512i low = _mm512_load_si512(table), high = _mm512_load_si512(table + 16);
        const __m512i all = _mm512_set1_epi32(static_cast<int>(table[15] + table[31]));
        for (std::size_t row = 0; row < rows; row += 16) {
            __m512i sum = _mm512_sub_epi32(_mm512_loadu_si512(acc + row), all);
            for (const std::uint8_t *from : {choices + row, choices + rows + row}) {
                const __m512i pick = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
                sum = _mm512_add_epi32(sum, _mm512_permutexvar_epi32(pick, low));  // by the lowest four bits of a pick
                sum = _mm512_add_epi32(sum, _mm512_permutexvar_epi32(_mm512_srli_epi32(pick, 4), high));
            }
            _mm512_storeu_si512(acc + row, sum);
        }
    }
}

__attribute__((target("avx512f"))) void sum(std::uint64_t *acc, std::size_t rows, const std::uint64_t *words,
                                            const std::uint8_t *choices, std::size_t groups) {
    alignas(64) std::uint64_t table[32];
    for (std::size_t group = 0; group < groups; ++group, words += 8, choices += 2 * rows) {
        subset_sums(words, 4, table);
        subset_sums(words + 4, 4, table + 16);
        const __m512i low = _mm512_load_si512(table), low_end = _mm512_load_si512(table + 8);
        const __m512i high = _mm512_load_si512(table + 16), high_end = _mm512_load_si512(table + 24);
        const __m512i all = _mm512_set1_epi64(static_cast<long long>(table[15] + table[31]));
        for (std::size_t row = 0; row < rows; row += 8) {
            __m512i sum = _mm512_sub_epi64(_mm512_loadu_si512(acc + row), all);
            for (const std::uint8_t *from : {choices + row, choices + rows + row}) {
                const __m512i pick = _mm512_cvtepu8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(from)));
                const __m512i rest = _mm512_srli_epi64(pick, 4);
                sum = _mm512_add_epi64(sum, _mm512_permutex2var_epi64(low, pick, low_end));
                sum = _mm512_add_epi64(sum, _mm512_permutex2var_epi64(high, rest, high_end));
            }
            _mm512_storeu_si512(acc + row, sum);
        }
    }
}

#endif

}  // namespace

void project(std::uint32_t *acc, std::size_t rows, const std::uint32_t *words, const std::uint8_t *choices,
             std::size_t groups) noexcept {
    sum(acc, rows, words, choices, groups);
}

void project(std::uint64_t *acc, std::size_t rows, const std::uint64_t *words, const std::uint8_t *choices,
             std::size_t groups) noexcept {
    sum(acc, rows, words, choices, groups);
}

}  // namespace confide
