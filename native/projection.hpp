// Signed subset sums of ring words: the work of a random projection with entries in {-1, 0, 1}.
//
// Words come in groups of eight. A group has 2 * rows bytes of choices: bit i of byte j is b_ij, bit i of byte rows + j is
// c_ij, and row j takes b_ij + c_ij - 1 times word i. Nothing here depends on Python.
#pragma once

#include <cstddef>
#include <cstdint>

namespace confide {

// acc[j] += sum over i < 8 groups of (b_ij + c_ij - 1) words[i], wrapping at the width of the word.
// acc[0 .. rows), words[0 .. 8 groups), choices[0 .. 2 groups rows); rows is a multiple of 16, acc overlaps nothing.
void project(std::uint32_t *acc, std::size_t rows, const std::uint32_t *words, const std::uint8_t *choices,
             std::size_t groups) noexcept;
void project(std::uint64_t *acc, std::size_t rows, const std::uint64_t *words, const std::uint8_t *choices,
             std::size_t groups) noexcept;

}  // namespace confide
