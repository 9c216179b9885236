// Words of the ring Z / 2^k, 1 <= k <= 64: sums in place, and exactly k bits per word.
//
// Packed form: word i fills the bits [i k, (i + 1) k) of a little-endian bit string; zeros fill the last byte.
// Nothing here depends on Python, so that native/ring_test.cpp runs it under the sanitizers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace confide {

// acc[i] += words[i] (or -=), wrapping at the width of the word. The arrays are equal or do not overlap.
void add_words(std::uint32_t *acc, const std::uint32_t *words, std::size_t count, bool negate) noexcept;
void add_words(std::uint64_t *acc, const std::uint64_t *words, std::size_t count, bool negate) noexcept;

// Bytes of `count` packed words; exact for every count of words that fits into memory.
constexpr std::size_t packed_size(std::size_t count, unsigned bits) noexcept {
    return count / 8 * bits + (count % 8 * bits + 7) / 8;
}

// Writes the low `bits` bits of every word to out[0 .. packed_size(count, bits)).
// 1 <= bits <= 8 sizeof(Word).
void pack(const std::uint32_t *words, std::size_t count, unsigned bits, std::uint8_t *out) noexcept;
void pack(const std::uint64_t *words, std::size_t count, unsigned bits, std::uint8_t *out) noexcept;

// Reads in[0 .. packed_size(count, bits)); bits behind the last word are ignored.
void unpack(const std::uint8_t *in, std::size_t count, unsigned bits, std::uint32_t *words) noexcept;
void unpack(const std::uint8_t *in, std::size_t count, unsigned bits, std::uint64_t *words) noexcept;

}  // namespace confide
