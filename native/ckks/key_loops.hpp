// Sums of products of digits and one place of a key-switching key: the loops that read keys, and how keys lie there.
//
// A key is read once per key switch, front to back, and keys are larger than the caches: its bytes are what a hoisted
// rotation costs at the least. So residues below 2^50 are kept in 52 bits where AVX-512-IFMA reads them, else in words of 64.
// Eight residues make a block; the blocks of a place are ordered by position in the row, then digit, then polynomial:
// one stream, whatever the level.
#pragma once

#include "kernels.hpp"

namespace confide::ckks {

struct KeyLoops {
    std::size_t block_bytes;
    std::size_t most_terms;  // digits of one call of `sums`
    // Writes the N / 8 blocks of a row, `stride` bytes from one to the next.
    void (*store)(const Ring &, const Word *row, std::size_t stride, std::uint8_t *blocks);
    // first, second = or += sum over i < terms of digits[i], permuted unless permutation is null, times the rows of
    // digit i: key points to the block of polynomial 0 at digit 0, that of polynomial 1 and the next digits follow.
    void (*sums)(const Ring &, const Permutation *permutation, const Word *const *digits, std::size_t terms,
                 const std::uint8_t *key, std::size_t stride, Word *first, Word *second, bool add);
};

// Bytes that loads may read beyond the last block.
constexpr std::size_t key_margin = 64;

// Those of the ring's instruction set.
const KeyLoops &key_loops(const Ring &ring);

extern const KeyLoops portable_key_loops;
// Null where this machine has no AVX-512-IFMA and VBMI.
const KeyLoops *ifma_key_loops();

}  // namespace confide::ckks
