// The portable loops of key switching, and the choice; see switch_loops.hpp.
#include "switch_loops.hpp"

#include <cstring>

#include "kernels_paths.hpp"
#include "wide.hpp"

namespace confide::ckks {

namespace {

void store(const Ring &ring, const Word *row, std::size_t stride, std::uint8_t *blocks) {
    for (std::size_t block = 0; block < ring.degree / 8; ++block)
        std::memcpy(blocks + block * stride, row + 8 * block, 8 * sizeof(Word));
}

void sums(const Ring &ring, const Permutation *permutation, const Word *const *digits, std::size_t terms,
          const std::uint8_t *key, std::size_t stride, Word *first, Word *second, bool add) {
    const Word half = Word{1} << 32, wide = multiply(half, half, ring.q);
    for (std::size_t block = 0; block < ring.degree / 8; ++block, key += stride) {
        const std::size_t from = 8 * (permutation ? std::size_t{permutation->block[block]} : block);
        const std::uint64_t places = permutation ? permutation->within[block] : 0x0706050403020100;
        for (std::size_t i = 0; i < 8; ++i) {
            Word *outs[2] = {first + 8 * block + i, second + 8 * block + i};
            Wide one = add ? *outs[0] : 0, other = add ? *outs[1] : 0;
            const std::size_t at = from + (places >> (8 * i) & 7);
            const auto *row = reinterpret_cast<const Word *>(key) + i;
            for (std::size_t term = 0; term < terms; ++term, row += 16) {
                const Word digit = digits[term][at];
                one += static_cast<Wide>(digit) * row[0];
                other += static_cast<Wide>(digit) * row[8];
            }
            *outs[0] = whole(one, wide, ring.q);
            *outs[1] = whole(other, wide, ring.q);
        }
    }
}

void quotient(const Ring &ring, const Word *a, const Word *b, Word w, const Word *addend,
              const Permutation *permutation, Word *out) {
    ring.kernels->subtract_scale(ring, a, b, w, out);
    const Word q = ring.q.value;
    for (std::size_t i = 0; i < ring.degree; ++i) {
        const std::size_t block = i / 8;
        const std::size_t from = permutation ? 8 * std::size_t{permutation->block[block]} +
                                                   (permutation->within[block] >> (8 * (i % 8)) & 7)
                                             : i;
        const Word sum = out[i] + addend[from];
        out[i] = sum >= q ? sum - q : sum;
    }
}

}  // namespace

// Products below 2^122: 32 of them, and a residue, fit a wide word.
const SwitchLoops portable_switch_loops = {8 * sizeof(Word), 32, store, sums, quotient};

const SwitchLoops &switch_loops(const Ring &ring) {
#ifdef CONFIDE_CKKS_X86
    const bool reads = __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bw");
    if (ring.kernels == &ifma_kernels && reads) return ifma_switch_loops;
#endif
    return portable_switch_loops;
}

}  // namespace confide::ckks
