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

}  // namespace confide
