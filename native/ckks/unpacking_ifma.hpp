// Blocks of eight residues in 52 bits each, and sums of their products: what keys and weights share on AVX-512-IFMA.
//
// A block is 52 bytes: residue i begins at bit 52 i. One permutation of bytes and one shift bring the eight to their
// words; what stands above the 52nd bit of a word is ignored by the multiplication.
#pragma once

#include "kernels_ifma.hpp"

namespace confide::ckks::ifma {

constexpr std::size_t packed_bytes = 52;

// What brings a block of 52 bytes to eight words.
struct Unpacking {
    Vector from, shift;
    Unpacking() {
        alignas(64) std::uint8_t bytes_of[64];
        alignas(64) Word shifts[8];
        for (std::size_t i = 0; i < 8; ++i) {
            shifts[i] = 52 * i % 8;
            for (std::size_t byte = 0; byte < 8; ++byte)
                bytes_of[8 * i + byte] = static_cast<std::uint8_t>(52 * i / 8 + byte);
        }
        from = _mm512_load_si512(bytes_of);
        shift = _mm512_load_si512(shifts);
    }
    Vector operator()(const std::uint8_t *block) const {
        return _mm512_srlv_epi64(_mm512_permutexvar_epi8(from, _mm512_loadu_si512(block)), shift);
    }
};

// 2^52 top + bottom to [0, q), for top below 2^52 - 2^12: a quotient for each part, taken off together.
struct Fold {
    Prime prime;
    Vector carry, constant;
    explicit Fold(const Ifma52 &tables)
        : prime(tables), carry(all(tables.carry)), constant(all(tables.carry_shoup)) {}
    Vector operator()(Vector top, Vector bottom) const {
        top = plus(top, _mm512_srli_epi64(bottom, 52));
        const Vector quotient = high(high(_mm512_setzero_si512(), top, constant), bottom, prime.quotient);
        const Vector rest = low(low(clean(bottom), top, carry), quotient, prime.negative);
        return once(once(clean(rest), prime.twice), prime.q);
    }
};

}  // namespace confide::ckks::ifma
