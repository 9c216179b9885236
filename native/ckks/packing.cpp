// Packed residues, word by word and by eights: eight words of b bits fill b whole bytes. See packing.hpp.
#include "packing.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#define CONFIDE_VBMI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi")))
#include <immintrin.h>
#endif

namespace confide::ckks {

namespace {

void pack(const Word *words, std::size_t count, unsigned bits, std::uint8_t *out) {
    Word pending = 0;  // the lowest `held` < 64 bits wait for their byte
    unsigned held = 0;
    for (std::size_t i = 0; i < count; ++i) {
        pending |= words[i] << held;
        held += bits;
        if (held >= 64) {
            for (unsigned byte = 0; byte < 8; ++byte) *out++ = static_cast<std::uint8_t>(pending >> (8 * byte));
            held -= 64;
            pending = held ? words[i] >> (bits - held) : 0;
        }
    }
    for (unsigned byte = 0; 8 * byte < held; ++byte) *out++ = static_cast<std::uint8_t>(pending >> (8 * byte));
}

inline Word load(const std::uint8_t *in, unsigned size) {
    Word value = 0;
    for (unsigned byte = 0; byte < size; ++byte) value |= Word{in[byte]} << (8 * byte);
    return value;
}

bool unpack(const std::uint8_t *in, std::size_t count, unsigned bits, Word bound, Word *words) {
    const Word mask = ~Word{0} >> (64 - bits);
    const std::uint8_t *end = in + packed_bytes(count, bits);
    Word pending = 0, wrong = 0;
    unsigned held = 0;
    for (std::size_t i = 0; i < count; ++i) {
        Word word = pending;
        if (held >= bits) {
            pending >>= bits;
            held -= bits;
        } else {
            const unsigned taken = end - in < 8 ? static_cast<unsigned>(end - in) : 8;
            const Word fresh = taken == 8 ? load(in, 8) : load(in, taken);  // 8: one instruction
            in += taken;
            word |= fresh << held;
            const unsigned used = bits - held;  // 1 to 61 bits of `fresh`
            pending = fresh >> used;
            held = 64 - used;  // zeros among them where the body has ended
        }
        words[i] = word & mask;
        wrong |= words[i] >= bound;
    }
    return !wrong && !pending;
}

#ifdef CONFIDE_VBMI

constexpr unsigned most_bits = 57;  // a word that begins within a byte then lies in eight bytes

// Word i of a group begins at bit i b: at byte (i b) / 8, shifted by (i b) % 8. `lanes` are the bytes of each word.
struct Places {
    alignas(64) std::uint8_t lanes[64];
    alignas(64) Word shifts[8];
    alignas(64) std::uint8_t even[64], odd[64];  // where each byte of a group is in the words of even and of odd place
    Word has_even, has_odd, group;               // which bytes there are

    explicit Places(unsigned bits) : lanes{}, shifts{}, even{}, odd{}, has_even(0), has_odd(0) {
        group = ~Word{0} >> (64 - bits);
        for (unsigned word = 0; word < 8; ++word) {
            const unsigned first = word * bits / 8, last = ((word + 1) * bits - 1) / 8;
            shifts[word] = word * bits % 8;
            for (unsigned byte = 0; byte < 8; ++byte) lanes[8 * word + byte] = static_cast<std::uint8_t>(first + byte);
            for (unsigned byte = first; byte <= last; ++byte) {
                (word % 2 ? odd : even)[byte] = static_cast<std::uint8_t>(8 * word + byte - first);
                (word % 2 ? has_odd : has_even) |= Word{1} << byte;
            }
        }
    }
};

// Words of even place share no byte where b >= 8, so two shuffles bring every bit to its byte.
CONFIDE_VBMI void pack_by_eights(const Word *words, std::size_t count, unsigned bits, std::uint8_t *out) {
    if (bits < 8 || bits > most_bits) return pack(words, count, bits, out);
    const Places places(bits);
    const __m512i shifts = _mm512_load_si512(places.shifts);
    const __m512i even = _mm512_load_si512(places.even), odd = _mm512_load_si512(places.odd);
    std::size_t i = 0;
    for (; i + 8 <= count; i += 8, out += bits) {
        const __m512i moved = _mm512_sllv_epi64(_mm512_loadu_si512(words + i), shifts);
        const __m512i bytes = _mm512_or_si512(_mm512_maskz_permutexvar_epi8(places.has_even, even, moved),
                                              _mm512_maskz_permutexvar_epi8(places.has_odd, odd, moved));
        _mm512_mask_storeu_epi8(out, places.group, bytes);
    }
    pack(words + i, count - i, bits, out);
}

CONFIDE_VBMI bool unpack_by_eights(const std::uint8_t *in, std::size_t count, unsigned bits, Word bound, Word *words) {
    if (bits > most_bits) return unpack(in, count, bits, bound, words);
    const Places places(bits);
    const __m512i lanes = _mm512_load_si512(places.lanes), shifts = _mm512_load_si512(places.shifts);
    const __m512i mask = _mm512_set1_epi64(static_cast<long long>(places.group));
    const __m512i most = _mm512_set1_epi64(static_cast<long long>(bound));
    unsigned wrong = 0;
    std::size_t i = 0;
    for (; i + 8 <= count; i += 8, in += bits) {
        const __m512i bytes = _mm512_permutexvar_epi8(lanes, _mm512_maskz_loadu_epi8(places.group, in));
        const __m512i found = _mm512_and_si512(_mm512_srlv_epi64(bytes, shifts), mask);
        _mm512_storeu_si512(words + i, found);
        wrong |= _mm512_cmpge_epu64_mask(found, most);
    }
    return unpack(in, count - i, bits, bound, words + i) && !wrong;
}

const Packing vbmi_packing = {"vbmi", pack_by_eights, unpack_by_eights};

#endif

}  // namespace

const Packing portable_packing = {"portable", pack, unpack};

const Packing &packing_of([[maybe_unused]] Path path) {
#ifdef CONFIDE_VBMI
    if (path == Path::ifma && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        return vbmi_packing;
#endif
    return portable_packing;
}

}  // namespace confide::ckks
