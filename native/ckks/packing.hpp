// Residues as they travel: numbers of b bits each, the lowest bit first, without gaps; see confide.he.packed.
#pragma once

#include "kernels.hpp"

namespace confide::ckks {

struct Packing {
    const char *name;
    // Writes count * bits bits, rounded up to bytes, zeros behind the last. 1 <= bits <= 61; every word is below 2^bits.
    void (*pack)(const Word *words, std::size_t count, unsigned bits, std::uint8_t *out);
    // Reads as many bytes. Returns whether every word is below `bound` (at most 2^bits), and only zeros follow the last;
    // takes the same time whatever the words are, and writes all of them in either case.
    bool (*unpack)(const std::uint8_t *in, std::size_t count, unsigned bits, Word bound, Word *words);
};

extern const Packing portable_packing;

// AVX-512-VBMI moves eight words at once; taken where `path` is IFMA and the machine has both.
const Packing &packing_of(Path path);

inline std::size_t packed_bytes(std::size_t count, unsigned bits) noexcept { return (count * bits + 7) / 8; }

}  // namespace confide::ckks
