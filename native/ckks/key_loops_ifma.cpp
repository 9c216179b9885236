// The loops over keys with AVX-512-IFMA, for primes below 2^50; see key_loops.hpp.
//
// A block is 52 bytes: residue i begins at bit 52 i. One permutation of bytes and one shift bring the eight to their
// words; what stands above the 52nd bit of a word is ignored by the multiplication.
#include "key_loops.hpp"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#include <cstring>

#define CONFIDE_IFMA __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx512ifma,avx512vbmi")))

namespace confide::ckks {

namespace {

constexpr std::size_t bytes = 52;
constexpr Word mask52 = (Word{1} << 52) - 1;

void store(const Ring &ring, const Word *row, std::size_t stride, std::uint8_t *blocks) {
    for (std::size_t block = 0; block < ring.degree / 8; ++block, row += 8, blocks += stride)
        for (std::size_t pair = 0; pair < 4; ++pair) {  // 104 bits
            const Word low = row[2 * pair] | row[2 * pair + 1] << 52, high = row[2 * pair + 1] >> 12;
            std::memcpy(blocks + 13 * pair, &low, 8);
            std::memcpy(blocks + 13 * pair + 8, &high, 5);
        }
}

// What brings a block of 52 bytes to eight words.
struct Unpacking {
    __m512i from, shift;
};

CONFIDE_IFMA inline Unpacking unpacking() {
    alignas(64) std::uint8_t from[64];
    alignas(64) Word shift[8];
    for (std::size_t i = 0; i < 8; ++i) {
        shift[i] = 52 * i % 8;
        for (std::size_t byte = 0; byte < 8; ++byte) from[8 * i + byte] = static_cast<std::uint8_t>(52 * i / 8 + byte);
    }
    return {_mm512_load_si512(from), _mm512_load_si512(shift)};
}

CONFIDE_IFMA inline __m512i unpacked(const std::uint8_t *block, const Unpacking &how) {
    return _mm512_srlv_epi64(_mm512_permutexvar_epi8(how.from, _mm512_loadu_si512(block)), how.shift);
}

// Constants of one prime, each in all words.
struct Constants {
    __m512i q, twice, wide, wide_shoup, ratio, mask;  // wide: 2^52 mod q; ratio: floor(2^52 / q)
};

CONFIDE_IFMA inline __m512i all(Word word) { return _mm512_set1_epi64(static_cast<long long>(word)); }

CONFIDE_IFMA inline Constants constants(const Modulus &q) {
    const Word ratio = (mask52 + 1) / q.value, wide = mask52 + 1 - ratio * q.value;
    return {all(q.value), all(2 * q.value), all(wide), all(shoup(wide, q) >> 12), all(ratio), all(mask52)};
}

// (2^52 high + low) mod q, for high below 2^52 - 2^12 and any low: each part is brought below 2q, then their sum.
CONFIDE_IFMA inline __m512i whole(__m512i low, __m512i high, const Constants &c) {
    const __m512i zero = _mm512_setzero_si512();
    high = _mm512_add_epi64(high, _mm512_srli_epi64(low, 52));
    low = _mm512_and_si512(low, c.mask);
    const __m512i quotient = _mm512_madd52hi_epu64(zero, high, c.wide_shoup);
    const __m512i product = _mm512_madd52lo_epu64(zero, high, c.wide);
    const __m512i taken = _mm512_madd52lo_epu64(zero, quotient, c.q);
    const __m512i part = _mm512_and_si512(_mm512_sub_epi64(product, taken), c.mask);
    const __m512i count = _mm512_madd52hi_epu64(zero, low, c.ratio);
    const __m512i rest = _mm512_sub_epi64(low, _mm512_madd52lo_epu64(zero, count, c.q));
    __m512i sum = _mm512_add_epi64(part, rest);
    sum = _mm512_min_epu64(sum, _mm512_sub_epi64(sum, c.twice));
    return _mm512_min_epu64(sum, _mm512_sub_epi64(sum, c.q));
}

template <bool permuted>
CONFIDE_IFMA void sums_of(const Ring &ring, const Permutation *permutation, const Word *const *digits,
                          std::size_t terms, const std::uint8_t *key, std::size_t stride, Word *first, Word *second,
                          bool add) {
    constexpr std::size_t ahead = 2048;  // bytes of the key that are asked for before they are needed
    const Unpacking how = unpacking();
    const Constants c = constants(ring.q);
    const __m512i zero = _mm512_setzero_si512();
    for (std::size_t block = 0; block < ring.degree / 8; ++block, key += stride) {
        __m512i low0 = zero, high0 = zero, low1 = zero, high1 = zero, places = zero;
        std::size_t from = 8 * block;
        if (add) {
            low0 = _mm512_load_si512(first + from);
            low1 = _mm512_load_si512(second + from);
        }
        if (permuted) {
            places = _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(static_cast<long long>(permutation->within[block])));
            from = 8 * std::size_t{permutation->block[block]};
        }
        const std::uint8_t *rows = key;
        for (std::size_t term = 0; term < terms; ++term, rows += 2 * bytes) {
            _mm_prefetch(reinterpret_cast<const char *>(rows + ahead), _MM_HINT_T0);
            _mm_prefetch(reinterpret_cast<const char *>(rows + ahead + bytes), _MM_HINT_T0);
            __m512i digit = _mm512_load_si512(digits[term] + from);
            if (permuted) digit = _mm512_permutexvar_epi64(places, digit);
            const __m512i one = unpacked(rows, how), other = unpacked(rows + bytes, how);
            low0 = _mm512_madd52lo_epu64(low0, digit, one);
            high0 = _mm512_madd52hi_epu64(high0, digit, one);
            low1 = _mm512_madd52lo_epu64(low1, digit, other);
            high1 = _mm512_madd52hi_epu64(high1, digit, other);
        }
        _mm512_store_si512(first + 8 * block, whole(low0, high0, c));
        _mm512_store_si512(second + 8 * block, whole(low1, high1, c));
    }
}

void sums(const Ring &ring, const Permutation *permutation, const Word *const *digits, std::size_t terms,
          const std::uint8_t *key, std::size_t stride, Word *first, Word *second, bool add) {
    (permutation ? sums_of<true> : sums_of<false>)(ring, permutation, digits, terms, key, stride, first, second, add);
}

// Products below 2^100: the upper halves of 15 of them stay below 2^52 - 2^12.
const KeyLoops loops = {bytes, 15, store, sums};

}  // namespace

const KeyLoops *ifma_key_loops() {
    const bool here = __builtin_cpu_supports("avx512ifma") && __builtin_cpu_supports("avx512vbmi") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
    return here ? &loops : nullptr;
}

}  // namespace confide::ckks

#else

namespace confide::ckks {

const KeyLoops *ifma_key_loops() { return nullptr; }

}  // namespace confide::ckks

#endif
