// Arithmetic of eight residues below 2^50 in a register of 512 bits, by the 52-bit products of AVX-512-IFMA.
//
// A product reads the low 52 bits of its operands and ignores the rest, so a word that is right modulo 2^52, and whose
// true value lies in [0, 2^52), needs no cleaning before it is multiplied. "Lazy" below means exactly that.
#pragma once

#include "kernels_paths.hpp"

#include <immintrin.h>

// Whole passes stay in registers only if all of this is inlined.
#define CONFIDE_INLINE __attribute__((always_inline)) inline

namespace confide::ckks::ifma {

using Vector = __m512i;

CONFIDE_INLINE Vector load(const Word *from) { return _mm512_loadu_si512(from); }
CONFIDE_INLINE void store(Word *to, Vector words) { _mm512_storeu_si512(to, words); }
CONFIDE_INLINE Vector all(Word word) { return _mm512_set1_epi64(static_cast<long long>(word)); }
CONFIDE_INLINE Vector high(Vector acc, Vector a, Vector b) { return _mm512_madd52hi_epu64(acc, a, b); }
CONFIDE_INLINE Vector low(Vector acc, Vector a, Vector b) { return _mm512_madd52lo_epu64(acc, a, b); }
CONFIDE_INLINE Vector plus(Vector a, Vector b) { return _mm512_add_epi64(a, b); }
CONFIDE_INLINE Vector minus(Vector a, Vector b) { return _mm512_sub_epi64(a, b); }
CONFIDE_INLINE Vector clean(Vector a) { return _mm512_and_si512(a, all((Word{1} << 52) - 1)); }

// a in [0, 2b) to [0, b).
CONFIDE_INLINE Vector once(Vector a, Vector b) { return _mm512_min_epu64(a, minus(a, b)); }

struct Prime {
    Vector q, twice, down, negative, quotient;  // down: -2q
    explicit Prime(const Ifma52 &tables)
        : q(all(tables.q)), twice(all(tables.twice)), down(all(0 - tables.twice)), negative(all(tables.minus)),
          quotient(all(tables.quotient)) {}
};

// acc + a w mod q, lazy: the second term in [0, 2q) for any a (Shoup; Harvey, Faster arithmetic for number-theoretic
// transforms, 2014).
CONFIDE_INLINE Vector times(Vector acc, Vector a, Vector w, Vector constant, Vector negative) {
    const Vector quotient = high(_mm512_setzero_si512(), a, constant);
    return low(low(acc, a, w), quotient, negative);
}

// Any lazy word to [0, 2q), lazy.
CONFIDE_INLINE Vector reduce(Vector a, const Prime &prime) {
    return low(a, high(_mm512_setzero_si512(), a, prime.quotient), prime.negative);
}

// Any lazy word to [0, q).
CONFIDE_INLINE Vector exact(Vector a, const Prime &prime) { return once(clean(reduce(a, prime)), prime.q); }

}  // namespace confide::ckks::ifma
