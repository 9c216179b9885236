#include "ring.hpp"

#include "clones.hpp"

namespace confide {
namespace {

template <typename Word>
inline __attribute__((always_inline)) void add(Word *acc, const Word *words, std::size_t count, bool negate) {
    if (negate) {
        for (std::size_t i = 0; i < count; ++i) acc[i] -= words[i];
    } else {
        for (std::size_t i = 0; i < count; ++i) acc[i] += words[i];
    }
}

constexpr std::uint64_t low_bits(unsigned bits) { return ~std::uint64_t{0} >> (64 - bits); }

// In both directions `pending` holds, lowest first, the `held` < 64 bits between the words and the bytes.
template <typename Word>
inline __attribute__((always_inline)) void write(const Word *words, std::size_t count, unsigned bits, std::uint8_t *out) {
    const std::uint64_t mask = low_bits(bits);
    std::uint64_t pending = 0;
    unsigned held = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint64_t word = words[i] & mask;
        pending |= word << held;
        held += bits;
        if (held >= 64) {
            for (unsigned byte = 0; byte < 8; ++byte) *out++ = static_cast<std::uint8_t>(pending >> (8 * byte));
            held -= 64;
            pending = held ? word >> (bits - held) : 0;
        }
    }
    for (unsigned byte = 0; 8 * byte < held; ++byte) *out++ = static_cast<std::uint8_t>(pending >> (8 * byte));
}

inline std::uint64_t load(const std::uint8_t *in, std::size_t size) {
    std::uint64_t value = 0;
    for (std::size_t byte = 0; byte < size; ++byte) value |= std::uint64_t{in[byte]} << (8 * byte);
    return value;
}

template <typename Word>
inline __attribute__((always_inline)) void read(const std::uint8_t *in, std::size_t count, unsigned bits, Word *words) {
    const std::uint64_t mask = low_bits(bits);
    const std::size_t size = packed_size(count, bits);
    std::size_t next = 0;
    std::uint64_t pending = 0;
    unsigned held = 0;
    for (std::size_t i = 0; i < count; ++i) {
        std::uint64_t word = pending;
        if (held >= bits) {
            pending >>= bits;
            held -= bits;
        } else {
            const std::size_t taken = size - next < 8 ? size - next : 8;
            const std::uint64_t fresh = taken == 8 ? load(in + next, 8) : load(in + next, taken);  // 8: one instruction
            next += taken;
            word |= fresh << held;
            const unsigned used = bits - held;  // 1 to 64 bits of `fresh`
            pending = used < 64 ? fresh >> used : 0;
            held = 64 - used;
        }
        words[i] = static_cast<Word>(word & mask);
    }
}

}  // namespace

CONFIDE_CLONES void add_words(std::uint32_t *acc, const std::uint32_t *words, std::size_t count, bool negate) noexcept {
    add(acc, words, count, negate);
}

CONFIDE_CLONES void add_words(std::uint64_t *acc, const std::uint64_t *words, std::size_t count, bool negate) noexcept {
    add(acc, words, count, negate);
}

void pack(const std::uint32_t *words, std::size_t count, unsigned bits, std::uint8_t *out) noexcept {
    write(words, count, bits, out);
}

void pack(const std::uint64_t *words, std::size_t count, unsigned bits, std::uint8_t *out) noexcept {
    write(words, count, bits, out);
}

void unpack(const std::uint8_t *in, std::size_t count, unsigned bits, std::uint32_t *words) noexcept {
    read(in, count, bits, words);
}

void unpack(const std::uint8_t *in, std::size_t count, unsigned bits, std::uint64_t *words) noexcept {
    read(in, count, bits, words);
}

}  // namespace confide
