// The loops of key switching by AVX-512-IFMA, for primes below 2^50; see switch_loops.hpp.
//
// A block is 52 bytes: residue i begins at bit 52 i. One permutation of bytes and one shift bring the eight to their
// words; what stands above the 52nd bit of a word is ignored by the multiplication.
#include "switch_loops.hpp"

#include "kernels_paths.hpp"

#ifdef CONFIDE_CKKS_X86

#include "unpacking_ifma.hpp"

namespace confide::ckks {

using namespace ifma;

namespace {

constexpr std::size_t bytes = packed_bytes;

const Ifma52 &tables_of(const Ring &ring) { return *static_cast<const Ifma52 *>(ring.own.get()); }

void store_word(Word word, std::size_t count, std::uint8_t *out) {
    for (std::size_t byte = 0; byte < count; ++byte) out[byte] = static_cast<std::uint8_t>(word >> (8 * byte));
}

void store_blocks(const Ring &ring, const Word *row, std::size_t stride, std::uint8_t *blocks) {
    for (std::size_t block = 0; block < ring.degree / 8; ++block, row += 8, blocks += stride)
        for (std::size_t pair = 0; pair < 4; ++pair) {  // 104 bits
            store_word(row[2 * pair] | row[2 * pair + 1] << 52, 8, blocks + 13 * pair);
            store_word(row[2 * pair + 1] >> 12, 5, blocks + 13 * pair + 8);
        }
}

Vector places_of(const Permutation &permutation, std::size_t block) {
    return _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(static_cast<long long>(permutation.within.data()[block])));
}

std::size_t start_of(const Permutation &permutation, std::size_t block) {
    return 8 * static_cast<std::size_t>(permutation.block.data()[block]);
}

template <bool Permuted>
void sums_of(const Ring &ring, const Permutation *permutation, const Word *const *digits, std::size_t terms,
             const std::uint8_t *key, std::size_t stride, Word *first, Word *second, bool add) {
    constexpr std::size_t ahead = 4096;  // bytes of the key that are asked for before they are needed
    const Unpacking unpacked;
    const Fold fold(tables_of(ring));
    const Vector none = _mm512_setzero_si512();
    for (std::size_t block = 0; block < ring.degree / 8; ++block, key += stride) {
        Vector top0 = none, top1 = none, places = none;
        Vector bottom0 = add ? load(first + 8 * block) : none, bottom1 = add ? load(second + 8 * block) : none;
        if (Permuted) places = places_of(*permutation, block);
        const std::size_t from = Permuted ? start_of(*permutation, block) : 8 * block;
        const std::uint8_t *rows = key;
        for (std::size_t term = 0; term < terms; ++term, rows += 2 * bytes) {
            _mm_prefetch(reinterpret_cast<const char *>(rows + ahead), _MM_HINT_T0);
            _mm_prefetch(reinterpret_cast<const char *>(rows + ahead + bytes), _MM_HINT_T0);
            Vector digit = load(digits[term] + from);
            if (Permuted) digit = _mm512_permutexvar_epi64(places, digit);
            const Vector one = unpacked(rows), other = unpacked(rows + bytes);
            top0 = high(top0, digit, one);
            bottom0 = low(bottom0, digit, one);
            top1 = high(top1, digit, other);
            bottom1 = low(bottom1, digit, other);
        }
        store(first + 8 * block, fold(top0, bottom0));
        store(second + 8 * block, fold(top1, bottom1));
    }
}

void sums(const Ring &ring, const Permutation *permutation, const Word *const *digits, std::size_t terms,
          const std::uint8_t *key, std::size_t stride, Word *first, Word *second, bool add) {
    (permutation ? sums_of<true> : sums_of<false>)(ring, permutation, digits, terms, key, stride, first, second, add);
}

void quotient(const Ring &ring, const Word *a, const Word *b, Word w, const Word *addend,
              const Permutation *permutation, Word *out) {
    const Prime prime(tables_of(ring));
    const Vector factor = all(w), constant = all(shoup52(w, ring.q)), none = _mm512_setzero_si512();
    for (std::size_t block = 0; block < ring.degree / 8; ++block) {
        Vector added = load(addend + (permutation ? start_of(*permutation, block) : 8 * block));
        if (permutation) added = _mm512_permutexvar_epi64(places_of(*permutation, block), added);
        const Vector difference = plus(minus(load(a + 8 * block), load(b + 8 * block)), prime.q);
        const Vector product = clean(times(none, difference, factor, constant, prime.negative));
        store(out + 8 * block, once(once(plus(product, added), prime.twice), prime.q));
    }
}

}  // namespace

// Products below 2^100: the upper halves of 15 of them stay below 2^52 - 2^12.
const SwitchLoops ifma_switch_loops = {bytes, 15, store_blocks, sums, quotient};

}  // namespace confide::ckks

#endif
