// Where weights lie, and the portable loop; see weights.hpp.
#include "weights.hpp"

#include <algorithm>

#include "kernels_paths.hpp"
#include "switch_loops.hpp"
#include "wide.hpp"

namespace confide::ckks {

namespace {

constexpr std::size_t most_terms = 32;  // products below 2^122 in a wide word

void sums(const Ring &ring, const Pairing &pairing, const Word *const *babies, const std::uint8_t *weights,
          std::size_t from, std::size_t to, Word *const *outs) {
    const Word half = Word{1} << 32, wide = multiply(half, half, ring.q);
    const std::size_t terms = pairing.baby.size();
    for (std::size_t i = 8 * from; i < 8 * to; ++i) {
        const Word *weight = reinterpret_cast<const Word *>(weights) + (i / 8) * terms * 8 + i % 8;
        for (std::size_t giant = 0, term = 0; giant < pairing.end.size(); ++giant) {
            Wide first = 0, second = 0;
            for (std::size_t left = most_terms; term < pairing.end[giant]; ++term, --left) {
                if (!left) {
                    first = whole(first, wide, ring.q);
                    second = whole(second, wide, ring.q);
                    left = most_terms - 1;
                }
                const std::size_t baby = pairing.baby[term];
                first += static_cast<Wide>(babies[2 * baby][i]) * weight[8 * term];
                second += static_cast<Wide>(babies[2 * baby + 1][i]) * weight[8 * term];
            }
            outs[2 * giant][i] = whole(first, wide, ring.q);
            outs[2 * giant + 1][i] = whole(second, wide, ring.q);
        }
    }
}

}  // namespace

const WeightLoops portable_weight_loops = {8 * sizeof(Word), sums};

const WeightLoops &weight_loops(const Ring &ring) {
#ifdef CONFIDE_CKKS_X86
    if (&switch_loops(ring) == &ifma_switch_loops) return ifma_weight_loops;
#endif
    return portable_weight_loops;
}

WeightStream::WeightStream(const Context &context, std::size_t limbs, Pairing pairing)
    : limbs_(limbs), pairing_(std::move(pairing)) {
    std::size_t bytes = 0;
    for (std::size_t place = 0; place <= limbs; ++place) {
        start_.push_back(bytes);
        const Ring &ring = context.ring_at(limbs, place);
        bytes += (pairing_.baby.size() * weight_loops(ring).block_bytes * (context.degree() / 8) + 63) / 64 * 64;
    }
    blocks_ = Memory((bytes + key_margin) / sizeof(Word));
}

void WeightStream::store(const Context &context, std::size_t term, std::size_t place, const Word *row) {
    const Ring &ring = context.ring_at(limbs_, place);
    const std::size_t bytes = weight_loops(ring).block_bytes;  // as blocks of keys
    switch_loops(ring).store(ring, row, pairing_.baby.size() * bytes, stream(place) + term * bytes);
}

void WeightStream::sums(const Context &context, std::size_t place, const Word *const *babies, std::size_t from,
                        std::size_t to, Word *const *outs) const noexcept {
    const Ring &ring = context.ring_at(limbs_, place);
    weight_loops(ring).sums(ring, pairing_, babies, stream(place), from, to, outs);
}

}  // namespace confide::ckks
