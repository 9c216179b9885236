// The loops of key switching that read keys and finish divisions, and how keys lie in memory.
//
// A key is read once per key switch, front to back, and keys are larger than the caches: its bytes are what a hoisted
// rotation costs at the least. So residues below 2^50 are kept in 52 bits where AVX-512-IFMA reads them, else in words
// of 64. Eight residues make a block; the blocks of a place are ordered by position in the row, then digit, then
// polynomial: one stream, whatever the level.
#pragma once

#include "kernels.hpp"

namespace confide::ckks {

struct SwitchLoops {
    std::size_t block_bytes;
    std::size_t most_terms;  // digits of one call of `sums`
    // Writes the N / 8 blocks of a row, `stride` bytes from one to the next.
    void (*store)(const Ring &, const Word *row, std::size_t stride, std::uint8_t *blocks);
    // first, second = or += sum over i < terms of digits[i], permuted unless permutation is null, times the rows of
    // digit i: key points to the block of polynomial 0 at digit 0, that of polynomial 1 and the next digits follow.
    void (*sums)(const Ring &, const Permutation *permutation, const Word *const *digits, std::size_t terms,
                 const std::uint8_t *key, std::size_t stride, Word *first, Word *second, bool add);
    // out = (a - b) w + addend, the addend permuted unless permutation is null; out may be a, b, or, if there is no
    // permutation, addend.
    void (*quotient)(const Ring &, const Word *a, const Word *b, Word w, const Word *addend,
                     const Permutation *permutation, Word *out);
};

// Bytes that loads may read beyond the last block.
constexpr std::size_t key_margin = 64;

// Those of the ring's instruction set.
const SwitchLoops &switch_loops(const Ring &ring);

extern const SwitchLoops portable_switch_loops;
extern const SwitchLoops ifma_switch_loops;  // on x86-64 alone

}  // namespace confide::ckks
