// Arithmetic of four residues below 2^50 as doubles in a register of 256 bits, by fused multiply-adds.
//
// All numbers are integers below 2^53 in magnitude, so sums are exact. A product is exact in two parts, a w = h + l
// with h its rounding and l = fma(a, w, -h); so is h - n q for an integer n near a w / q, whose result has few bits.
// Words are signed on the way and come to [0, q) at the end: the same bits as by any other exact method.
#pragma once

#include "kernels_paths.hpp"

#include <immintrin.h>

namespace confide::ckks::avx2 {

using Vector = __m256d;
using Words = __m256i;

inline Vector all(double number) { return _mm256_set1_pd(number); }
inline Words all_words(Word word) { return _mm256_set1_epi64x(static_cast<long long>(word)); }
inline Words load_words(const Word *from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)); }
inline void store_words(Word *to, Words words) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), words); }
inline Vector rounded(Vector a) { return _mm256_round_pd(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// Words below 2^52 to doubles and back: they are the lowest bits of 2^52 plus them.
inline Vector to_doubles(Words words) {
    const Vector origin = all(0x1p52);
    return _mm256_sub_pd(_mm256_castsi256_pd(_mm256_or_si256(words, _mm256_castpd_si256(origin))), origin);
}

inline Words to_words(Vector numbers) {
    const Vector origin = all(0x1p52);
    return _mm256_xor_si256(_mm256_castpd_si256(_mm256_add_pd(numbers, origin)), _mm256_castpd_si256(origin));
}

struct Prime {
    Vector q, ratio;  // ratio: 1 / q
    explicit Prime(double value) : q(all(value)), ratio(all(1 / value)) {}
};

// a w mod q in about (-q / 2, q / 2); `quotient` is a double next to w / q. If |a| <= A q < 2^53 the result is below
// (1/2 + 3/16 A) q in magnitude: the quotient errs by 1.5 |a| 2^-53 before it is rounded, and q is below 2^50.
inline Vector times(Vector a, Vector w, Vector quotient, const Prime &prime) {
    const Vector h = _mm256_mul_pd(a, w);
    const Vector n = rounded(_mm256_mul_pd(a, quotient));
    return _mm256_add_pd(_mm256_fnmadd_pd(n, prime.q, h), _mm256_fmsub_pd(a, w, h));
}

// a b mod q in (-q, q), for a and b in (-q, q).
inline Vector product(Vector a, Vector b, const Prime &prime) {
    const Vector h = _mm256_mul_pd(a, b);
    const Vector n = rounded(_mm256_mul_pd(h, prime.ratio));
    return _mm256_add_pd(_mm256_fnmadd_pd(n, prime.q, h), _mm256_fmsub_pd(a, b, h));
}

// Any number to about [-q / 2, q / 2].
inline Vector reduce(Vector a, const Prime &prime) {
    return _mm256_fnmadd_pd(rounded(_mm256_mul_pd(a, prime.ratio)), prime.q, a);
}

// (-q, q) to [0, q).
inline Vector positive(Vector a, const Prime &prime) {
    return _mm256_add_pd(a, _mm256_and_pd(_mm256_cmp_pd(a, _mm256_setzero_pd(), _CMP_LT_OQ), prime.q));
}

}  // namespace confide::ckks::avx2
