// Sums of gradients by column and code, and records on their way down a tree.
//
// Nothing here depends on Python, so that native/histogram_test.cpp runs it under the sanitizers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace confide {

// Adds, for every record whose slot is wanted, both of its numbers to that histogram at each of its columns' codes:
//
//     found[wanted[slots[i]]][starts[c] + codes[i][c]] += gradients[i]
//
// codes is n x columns, gradients n x 2, found histograms x size x 2. Slots are below `slot_count`, codes below their
// column's levels, and wanted below `histograms`; none of it is checked. Returns false if memory ran out.
bool histograms(const std::uint8_t *codes, const std::int32_t *gradients, const std::int32_t *slots, std::size_t n,
                std::size_t columns, const std::int32_t *wanted, std::size_t slot_count, const std::int64_t *starts,
                std::int64_t *found, std::size_t histograms, std::size_t size) noexcept;

// next[i] = 2 slots[i], and one more where the code of the slot's column goes right; a column below 0 sends all left.
// goes_left is slots x 256.
void route(const std::uint8_t *codes, const std::int32_t *slots, std::size_t n, std::size_t columns,
           const std::int32_t *column, const std::uint8_t *goes_left, std::int32_t *next) noexcept;

// The split of each node whose two leaves lose least: the first of those with the largest
//
//     (g^2 / (h + ridge) + (G - g)^2 / (H - h + ridge)) / 2
//
// where (g, h) are the sums of the codes from low to below high, (G, H) those of the node, and both sides have at least
// `least` second derivatives. sums is nodes x codes x 2, whole nodes x 2, low and high count long and at most `codes`;
// none of it is checked. best is -1 and gain minus infinity where no split is allowed. Every operation rounds as
// IEEE 754 says, in this order, so all machines find the same. Returns false if memory ran out.
bool best_splits(const double *sums, const double *whole, std::size_t nodes, std::size_t codes, const std::int64_t *low,
                 const std::int64_t *high, std::size_t count, double ridge, double least, std::int64_t *best,
                 double *gain) noexcept;

}  // namespace confide
