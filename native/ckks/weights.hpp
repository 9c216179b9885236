// The weights of one linear map, and the loops that read them: all giant steps' sums in one pass.
//
// Weights are larger than the caches and each is read once for an answer, so their bytes are what a map costs at the
// least. They lie in one stream for each place, in the order in which they are read: by block of eight words, giant
// step, and term; in 52 bits a residue where AVX-512-IFMA reads them (as keys do, `switch_loops.hpp`). For each block
// the babies stay in the first cache while all giant steps meet them, and both polynomials meet a weight at once.
#pragma once

#include <cstdint>
#include <vector>

#include "context.hpp"

namespace confide::ckks {

// Which weights meet which babies: term t takes baby baby[t]; giant step g has the terms [end[g - 1], end[g]).
struct Pairing {
    std::vector<std::uint32_t> baby, end;
    std::size_t most;  // the largest place of a baby
};

struct WeightLoops {
    std::size_t block_bytes;
    // outs[2 g + polynomial] = sum over the terms of g of babies[2 baby + polynomial] times weight, for each block of
    // eight words in [from, to); weights: the stream of one place.
    void (*sums)(const Ring &, const Pairing &, const Word *const *babies, const std::uint8_t *weights,
                 std::size_t from, std::size_t to, Word *const *outs);
};

const WeightLoops &weight_loops(const Ring &ring);

extern const WeightLoops portable_weight_loops;
extern const WeightLoops ifma_weight_loops;  // on x86-64 alone

class WeightStream {
  public:
    WeightStream() = default;
    // Room for the weights of a map at the level with `limbs`; no giant step without terms.
    WeightStream(const Context &context, std::size_t limbs, Pairing pairing);
    // Keeps the row of term `term` at a place of the level (limbs: the special prime).
    void store(const Context &context, std::size_t term, std::size_t place, const Word *row);
    // Sums at a place; babies and outs as for `WeightLoops`.
    void sums(const Context &context, std::size_t place, const Word *const *babies, std::size_t from, std::size_t to,
              Word *const *outs) const noexcept;
    const Pairing &pairing() const noexcept { return pairing_; }
    std::size_t giants() const noexcept { return pairing_.end.size(); }
    std::size_t bytes() const noexcept { return blocks_.size() * sizeof(Word); }

  private:
    std::uint8_t *stream(std::size_t place) const noexcept {
        return reinterpret_cast<std::uint8_t *>(blocks_.data()) + start_[place];
    }
    std::size_t limbs_ = 0;
    Pairing pairing_;
    std::vector<std::size_t> start_;
    Memory blocks_;
};

}  // namespace confide::ckks
