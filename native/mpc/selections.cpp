#include "selections.hpp"

#include "../clones.hpp"

namespace confide::mpc {
namespace {

#define CONFIDE_INLINE inline __attribute__((always_inline))

template <typename T>
CONFIDE_INLINE Word read(const Byte *from, std::size_t place) {
    T value;
    __builtin_memcpy(&value, from + place * sizeof value, sizeof value);
    return value;
}

// T = (Y >> bits) - 2^(62 - bits) and c = 1 - msb(Y) in all bits, for Y = the opened value + 2^62.
CONFIDE_INLINE Word quotient(Word opened, unsigned bits, Word &carry) {
    const Word lifted = opened + (Word{1} << 62);
    carry = (lifted >> 63) - 1;
    return (lifted >> bits) - (Word{1} << (62 - bits));
}

// g = 0: beta's share of a value; g = 1: what is left of the whole.
CONFIDE_INLINE Word chosen_of(Word zero, Word whole, Word ones) { return (zero ^ ones) - ones + (whole & ones); }

template <typename Top>
CONFIDE_INLINE void truncate_all(Word party, const Word *opened, std::size_t count, unsigned bits, const Tops &tops,
                                 Word *out) {
    for (std::size_t i = 0; i < count; ++i) {
        Word carry;
        const Word t = quotient(opened[i], bits, carry);
        out[i] = (t & (0 - party)) - read<Word>(tops.shifted, i) + (read<Top>(tops.top, i) << (64 - bits) & carry);
    }
}

template <typename Top>
CONFIDE_INLINE void select_all(Word party, const Byte *g, const Byte *beta, const Word *opened, std::size_t count,
                               unsigned bits, const Tops &tops, const Tops &chosen, Word *out) {
    for (std::size_t i = 0; i < count; ++i) {
        const Word ones = 0 - Word{g[i]};
        Word carry;
        const Word t = quotient(opened[i], bits, carry);
        const Word bit = chosen_of(read<Word>(beta, i), party, ones);
        const Word shifted = chosen_of(read<Word>(chosen.shifted, i), read<Word>(tops.shifted, i), ones);
        const Word top = chosen_of(read<Top>(chosen.top, i), read<Top>(tops.top, i), ones) << (64 - bits);
        out[i] = bit * t - shifted + (top & carry);
    }
}

CONFIDE_CLONES void truncate_1(Word party, const Word *opened, std::size_t count, unsigned bits, const Tops &tops,
                               Word *out) {
    truncate_all<std::uint8_t>(party, opened, count, bits, tops, out);
}

CONFIDE_CLONES void truncate_2(Word party, const Word *opened, std::size_t count, unsigned bits, const Tops &tops,
                               Word *out) {
    truncate_all<std::uint16_t>(party, opened, count, bits, tops, out);
}

CONFIDE_CLONES void truncate_4(Word party, const Word *opened, std::size_t count, unsigned bits, const Tops &tops,
                               Word *out) {
    truncate_all<std::uint32_t>(party, opened, count, bits, tops, out);
}

CONFIDE_CLONES void truncate_8(Word party, const Word *opened, std::size_t count, unsigned bits, const Tops &tops,
                               Word *out) {
    truncate_all<Word>(party, opened, count, bits, tops, out);
}

CONFIDE_CLONES void select_0(Word party, const Byte *g, const Byte *beta, const Word *opened, std::size_t count,
                             unsigned, const Tops &tops, const Tops &chosen, Word *out) {
    for (std::size_t i = 0; i < count; ++i) {
        const Word ones = 0 - Word{g[i]};
        const Word bit = chosen_of(read<Word>(beta, i), party, ones);
        out[i] = bit * opened[i] - chosen_of(read<Word>(chosen.shifted, i), read<Word>(tops.shifted, i), ones);
    }
}

CONFIDE_CLONES void select_1(Word party, const Byte *g, const Byte *beta, const Word *opened, std::size_t count,
                             unsigned bits, const Tops &tops, const Tops &chosen, Word *out) {
    select_all<std::uint8_t>(party, g, beta, opened, count, bits, tops, chosen, out);
}

CONFIDE_CLONES void select_2(Word party, const Byte *g, const Byte *beta, const Word *opened, std::size_t count,
                             unsigned bits, const Tops &tops, const Tops &chosen, Word *out) {
    select_all<std::uint16_t>(party, g, beta, opened, count, bits, tops, chosen, out);
}

CONFIDE_CLONES void select_4(Word party, const Byte *g, const Byte *beta, const Word *opened, std::size_t count,
                             unsigned bits, const Tops &tops, const Tops &chosen, Word *out) {
    select_all<std::uint32_t>(party, g, beta, opened, count, bits, tops, chosen, out);
}

CONFIDE_CLONES void select_8(Word party, const Byte *g, const Byte *beta, const Word *opened, std::size_t count,
                             unsigned bits, const Tops &tops, const Tops &chosen, Word *out) {
    select_all<Word>(party, g, beta, opened, count, bits, tops, chosen, out);
}

}  // namespace

void truncate(unsigned party, const Word *opened, std::size_t count, unsigned bits, const Tops &tops, Word *out) {
    auto *const loop = tops.size == 1 ? truncate_1 : tops.size == 2 ? truncate_2 : tops.size == 4 ? truncate_4 : truncate_8;
    loop(party, opened, count, bits, tops, out);
}

void select(unsigned party, const Byte *g, const Byte *beta, const Word *opened, std::size_t count, unsigned bits,
            const Tops &tops, const Tops &chosen, Word *out) {
    auto *const loop = bits == 0        ? select_0
                       : tops.size == 1 ? select_1
                       : tops.size == 2 ? select_2
                       : tops.size == 4 ? select_4
                                        : select_8;
    loop(party, g, beta, opened, count, bits, tops, chosen, out);
}

}  // namespace confide::mpc
